//! Framed binary Thrift, the caller's side: frames appended to one buffer, and frames taken out of one.

use std::io;

use bytes::{Bytes, BytesMut};
use thrift::protocol::{
    TBinaryOutputProtocol, TFieldIdentifier, TListIdentifier, TMessageIdentifier, TMessageType,
    TOutputProtocol, TStructIdentifier, TType,
};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::thrift::codec::{self, Protocol, UNNAMED};
use crate::thrift::dress::{FrameTooLong, framed, take_frame};
use crate::thrift::method::{Apply, Method};

/// Bytes to make room for before each read: many small answers come in one system call.
const READ_BYTES: usize = 32_768;

/// An empty buffer larger than this is given back: one large message should not be paid for ever after.
pub(super) const KEPT_BYTES_MAX: usize = 1_048_576;

/// Bytes of an apply frame beside its mutations, at most.
const APPLY_OVERHEAD_BYTES: usize = 64;

/// Bytes of the length in front of each mutation, as binary Thrift has it.
const STRING_LENGTH_BYTES: usize = 4;

/// Appends a framed call of `M`.
pub(super) fn write_call<M: Method>(sequence: i32, request: &M::Request, out: &mut Vec<u8>) {
    framed(out, |out| codec::write_call::<M>(Protocol::Binary, sequence, request, out));
}

/// Appends a framed `peerApply`. As `write_call` would, but the mutations are copied only into the frame.
pub(super) fn write_apply(sequence: i32, epoch: u64, mutations: &[Bytes], out: &mut Vec<u8>) {
    let before = out.len();
    framed(out, |out| {
        let mut output = TBinaryOutputProtocol::new(out, true);
        apply_message(&mut output, sequence, epoch as i64, mutations).expect("writing to memory cannot fail");
    });
    assert!(out.len() - before <= apply_bytes(mutations));
}

/// Bytes of the frame that [`write_apply`] makes, at most.
pub(super) fn apply_bytes(mutations: &[Bytes]) -> usize {
    let mutations: usize = mutations.iter().map(|mutation| STRING_LENGTH_BYTES + mutation.len()).sum();
    APPLY_OVERHEAD_BYTES + mutations
}

/// Adds a mutation to the apply that begins at `start` and is the last frame of `out`.
pub(super) fn join_apply(start: usize, mutation: &[u8], out: &mut Vec<u8>) {
    let end = out.len() - APPLY_END_BYTES;
    out.truncate(end);
    out.extend_from_slice(&(mutation.len() as u32).to_be_bytes());
    out.extend_from_slice(mutation);
    out.extend_from_slice(&[0; APPLY_END_BYTES]);
    let mut add = |at: usize, more: usize| {
        let number = out[at..].first_chunk_mut::<4>().expect("an apply is longer");
        *number = (u32::from_be_bytes(*number) + more as u32).to_be_bytes();
    };
    add(start, joined_bytes(mutation));
    add(start + APPLY_COUNT_AT, 1);
}

/// Bytes by which a mutation makes an apply longer.
pub(super) fn joined_bytes(mutation: &[u8]) -> usize {
    STRING_LENGTH_BYTES + mutation.len()
}

fn apply_message(
    output: &mut dyn TOutputProtocol,
    sequence: i32,
    epoch: i64,
    mutations: &[Bytes],
) -> thrift::Result<()> {
    output.write_message_begin(&TMessageIdentifier::new(Apply::NAME, TMessageType::Call, sequence))?;
    output.write_struct_begin(&TStructIdentifier::new(UNNAMED))?;
    output.write_field_begin(&TFieldIdentifier::new(UNNAMED, TType::Struct, 1))?;

    output.write_struct_begin(&TStructIdentifier::new(UNNAMED))?;
    output.write_field_begin(&TFieldIdentifier::new(UNNAMED, TType::I64, 1))?;
    output.write_i64(epoch)?;
    output.write_field_end()?;
    output.write_field_begin(&TFieldIdentifier::new(UNNAMED, TType::List, 2))?;
    output.write_list_begin(&TListIdentifier::new(TType::String, mutations.len() as i32))?;
    for mutation in mutations {
        output.write_bytes(mutation)?;
    }
    output.write_list_end()?;
    output.write_field_end()?;
    output.write_field_stop()?;
    output.write_struct_end()?;

    output.write_field_end()?;
    output.write_field_stop()?;
    output.write_struct_end()?;
    output.write_message_end()
}

/// Where the number of mutations is in the frame of an apply: behind its length (4 bytes), the message header (12 and
/// the name), the header of the argument (3), the epoch (3 + 8), and the header and the element type of the list (3 +
/// 1).
const APPLY_COUNT_AT: usize = 4 + 12 + Apply::NAME.len() + 3 + 3 + 8 + 3 + 1;

/// What follows the last mutation: the ends of two structs.
const APPLY_END_BYTES: usize = 2;

/// What has been read from a connection and not yet taken as frames.
pub(super) struct Inbox {
    bytes: BytesMut,
    frame_bytes_max: usize,
}

impl Inbox {
    /// Empty, for frames of at most `frame_bytes_max` bytes.
    pub(super) fn new(frame_bytes_max: usize) -> Inbox {
        Inbox { bytes: BytesMut::new(), frame_bytes_max }
    }

    /// Reads what has come; 0: the other side closed. Cancel-safe.
    pub(super) async fn fill(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = BytesMut::new();
        }
        if self.bytes.capacity() - self.bytes.len() < READ_BYTES {
            self.bytes.reserve(READ_BYTES);
        }
        reader.read_buf(&mut self.bytes).await
    }

    /// The next whole frame, without its length; `None`: it has not all come.
    pub(super) fn next(&mut self) -> Result<Option<BytesMut>, FrameTooLong> {
        take_frame(&mut self.bytes, self.frame_bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thrift::chord::{PeerApply, PeerPing};
    use crate::thrift::dress::FRAME_LENGTH_BYTES;
    use crate::thrift::method::Ping;

    #[test]
    fn an_apply_frame_is_what_the_generic_writer_makes() {
        for mutations in
            [vec![], vec![Bytes::from_static(b"a")], vec![Bytes::new(), Bytes::from(vec![7; 500])]]
        {
            let request = PeerApply::new(3, mutations.iter().map(|bytes| bytes.to_vec()).collect::<Vec<_>>());
            let mut expected = Vec::new();
            write_call::<Apply>(9, &request, &mut expected);
            let mut out = Vec::new();
            write_apply(9, 3, &mutations, &mut out);
            assert_eq!(out, expected);
            let mut joined = b"before".to_vec();
            write_apply(9, 3, &mutations[..mutations.len().min(1)], &mut joined);
            mutations.iter().skip(1).for_each(|mutation| join_apply(6, mutation, &mut joined));
            assert_eq!(joined[6..], expected);
        }
    }

    #[tokio::test]
    async fn frames_come_out_as_they_went_in_however_the_bytes_are_cut() {
        let mut wire = Vec::new();
        let mut frames = Vec::new();
        for sequence in 0..5 {
            let start = wire.len();
            write_call::<Ping>(sequence, &PeerPing::new(1), &mut wire);
            frames.push(wire[start + FRAME_LENGTH_BYTES..].to_vec());
        }
        for cut in 1..wire.len() {
            let mut inbox = Inbox::new(100);
            let mut taken = Vec::new();
            for mut chunk in wire.chunks(cut) {
                while !chunk.is_empty() {
                    inbox.fill(&mut chunk).await.unwrap();
                }
                while let Some(frame) = inbox.next().unwrap() {
                    taken.push(frame.to_vec());
                }
            }
            assert_eq!(taken, frames, "in chunks of {cut}");
        }
    }
}
