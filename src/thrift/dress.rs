//! What is around a message on a connection: nothing, a frame, or a frame with THeader.
//!
//!   0x80 …                     unframed binary: the message itself
//!   0x82 …                     unframed compact
//!   length · 0x80 … / 0x82 …   framed binary or compact; the length is four bytes
//!   length · 0x0fff …          framed THeader, which names its protocol
//!
//! The first byte of a connection tells whether it is framed; what a frame holds is found out for each frame. A framed
//! message's length is held against the bound before anything is reserved for it. An answer wears what its call wore.
//!
//! Not here: the message (`codec`), where an unframed one ends (`scan`).

use std::ops::Range;

use bytes::BytesMut;

use super::codec::Protocol;
use super::scan::{Bounds, Broken, Scanner};

/// What a call wore and its answer will wear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dress {
    /// The protocol of the message inside.
    pub protocol: Protocol,
    around: Around,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    Nothing,
    Frame,
    /// A frame with THeader; its sequence number as it came.
    Header([u8; 4]),
}

impl Dress {
    /// The message alone.
    pub fn unframed(protocol: Protocol) -> Dress {
        Dress { protocol, around: Around::Nothing }
    }

    /// A frame around it.
    pub fn framed(protocol: Protocol) -> Dress {
        Dress { protocol, around: Around::Frame }
    }

    /// A frame and THeader, without transforms, around it.
    pub fn header(protocol: Protocol, sequence: i32) -> Dress {
        Dress { protocol, around: Around::Header(sequence.to_be_bytes()) }
    }

    /// Appends to `out` the message that `write` appends, dressed.
    pub fn wrap(self, out: &mut Vec<u8>, write: impl FnOnce(Protocol, &mut Vec<u8>)) {
        match self.around {
            Around::Nothing => write(self.protocol, out),
            Around::Frame => framed(out, |out| write(self.protocol, out)),
            Around::Header(sequence) => framed(out, |out| {
                out.extend_from_slice(&header_bytes(self.protocol, sequence));
                write(self.protocol, out);
            }),
        }
    }
}

/// Appends to `out` a frame around what `write` appends: all that a client or a peer link has to wear.
pub fn framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_LENGTH_BYTES]);
    write(out);
    let length = out.len() - start - FRAME_LENGTH_BYTES;
    let length = i32::try_from(length).expect("who writes a message keeps it far below 2 GB");
    out[start..start + FRAME_LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Takes the first frame off `inbox`, without its length; `None`: it has not all come. What a client or a peer link
/// reads with.
pub fn take_frame(inbox: &mut BytesMut, bytes_max: usize) -> Result<Option<BytesMut>, FrameTooLong> {
    let Some(length) = inbox.first_chunk::<FRAME_LENGTH_BYTES>() else { return Ok(None) };
    let bytes = u32::from_be_bytes(*length) as usize;
    if bytes > bytes_max {
        return Err(FrameTooLong { bytes, bytes_max });
    }
    if inbox.len() < FRAME_LENGTH_BYTES + bytes {
        return Ok(None);
    }
    let mut frame = inbox.split_to(FRAME_LENGTH_BYTES + bytes);
    Ok(Some(frame.split_off(FRAME_LENGTH_BYTES)))
}

/// A frame longer than agreed. The connection cannot be used further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes came, more than the {bytes_max} allowed")]
pub struct FrameTooLong {
    /// What its length says.
    pub bytes: usize,
    /// The bound.
    pub bytes_max: usize,
}

/// Bytes of the length in front of each frame.
pub(crate) const FRAME_LENGTH_BYTES: usize = 4;

// THeader: magic, flags, sequence number, count of the 4-byte words that follow; in those the protocol, the count of
// transforms and their numbers, then headers of the application, which are not looked at.
const HEADER_MAGIC: [u8; 2] = [0x0f, 0xff];
const HEADER_SEQUENCE: Range<usize> = 4..8;
const HEADER_WORDS: Range<usize> = 8..10;
const HEADER_BYTES_MIN: usize = 10;
const HEADER_BINARY: u8 = 0;
const HEADER_COMPACT: u8 = 2;

fn header_bytes(protocol: Protocol, sequence: [u8; 4]) -> [u8; 14] {
    let id = match protocol {
        Protocol::Binary => HEADER_BINARY,
        Protocol::Compact => HEADER_COMPACT,
    };
    let mut bytes = [0; 14]; // no flags, no transforms
    bytes[..2].copy_from_slice(&HEADER_MAGIC);
    bytes[HEADER_SEQUENCE].copy_from_slice(&sequence);
    bytes[HEADER_WORDS].copy_from_slice(&[0, 1]);
    bytes[10] = id;
    bytes
}

/// Cuts what comes on one connection into messages.
#[derive(Debug)]
pub struct Splitter {
    bounds: Bounds,
    stream: Stream,
    /// Of the last message begun.
    dress: Option<Dress>,
}

#[derive(Debug)]
enum Stream {
    /// Nothing has come.
    Untold,
    Unframed(Scanner),
    Framed,
}

/// What a buffer starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// A whole message.
    Message {
        /// What it wears.
        dress: Dress,
        /// Where in the buffer the message proper is. The next one starts at its end.
        body: Range<usize>,
    },
    /// A part of a message.
    Part {
        /// How many bytes the message has at least, dress included.
        bytes_min: usize,
    },
}

impl Splitter {
    /// A splitter before the first byte of a connection.
    pub fn new(bounds: Bounds) -> Splitter {
        Splitter { bounds, stream: Stream::Untold, dress: None }
    }

    /// What `bytes` start with. After a `Part` the next call must bring the same bytes and more.
    pub fn split(&mut self, bytes: &[u8]) -> Result<Split, Broken> {
        if let Stream::Untold = self.stream {
            match self.tell(bytes)? {
                Some(stream) => self.stream = stream,
                None => return Ok(Split::Part { bytes_min: FRAME_LENGTH_BYTES }),
            }
        }
        match &mut self.stream {
            Stream::Untold => unreachable!("it has just been told"),
            Stream::Framed => self.split_frame(bytes),
            Stream::Unframed(scanner) => {
                let dress = Dress::unframed(scanner.protocol());
                self.dress = Some(dress);
                Ok(match scanner.end(bytes)? {
                    Some(end) => Split::Message { dress, body: 0..end },
                    None => Split::Part { bytes_min: scanner.bytes_min() },
                })
            }
        }
    }

    /// What the last message begun wears, as far as that was seen: how to tell the sender what is wrong with it.
    pub fn dress(&self) -> Option<Dress> {
        self.dress
    }

    /// By the first byte for an unframed connection; by four for a framed one, since any small enough length will do.
    fn tell(&self, bytes: &[u8]) -> Result<Option<Stream>, Broken> {
        if let Some(protocol) = bytes.first().copied().and_then(protocol_of) {
            return Ok(Some(Stream::Unframed(Scanner::new(protocol, self.bounds))));
        }
        let Some(first) = bytes.first_chunk::<FRAME_LENGTH_BYTES>() else { return Ok(None) };
        let bytes_max = self.bounds.bytes_max;
        match frame_length(*first, bytes_max) {
            Ok(_) => Ok(Some(Stream::Framed)),
            Err(_) => Err(Broken::NotThrift { first: *first, bytes_max }),
        }
    }

    fn split_frame(&mut self, bytes: &[u8]) -> Result<Split, Broken> {
        let Some(length) = bytes.first_chunk::<FRAME_LENGTH_BYTES>() else {
            return Ok(Split::Part { bytes_min: FRAME_LENGTH_BYTES });
        };
        let end = FRAME_LENGTH_BYTES + frame_length(*length, self.bounds.bytes_max)?;
        let Some(frame) = bytes.get(FRAME_LENGTH_BYTES..end) else {
            return Ok(Split::Part { bytes_min: end });
        };
        let (dress, header_bytes) = self.look_into(frame)?;
        Ok(Split::Message { dress, body: FRAME_LENGTH_BYTES + header_bytes..end })
    }

    /// What a frame holds, and after how many bytes of THeader.
    fn look_into(&mut self, frame: &[u8]) -> Result<(Dress, usize), Broken> {
        if frame.starts_with(&HEADER_MAGIC) {
            return self.read_header(frame);
        }
        let protocol = frame.first().copied().and_then(protocol_of).ok_or(Broken::BadFrame)?;
        let dress = Dress::framed(protocol);
        self.dress = Some(dress);
        Ok((dress, 0))
    }

    fn read_header(&mut self, frame: &[u8]) -> Result<(Dress, usize), Broken> {
        let fixed = frame.get(..HEADER_BYTES_MIN).ok_or(Broken::BadFrame)?;
        let words = usize::from(fixed[HEADER_WORDS.start]) << 8 | usize::from(fixed[HEADER_WORDS.start + 1]);
        let header_bytes = HEADER_BYTES_MIN + 4 * words;
        let mut rest = frame.get(HEADER_BYTES_MIN..header_bytes).ok_or(Broken::BadFrame)?;
        let protocol = match take_varint(&mut rest)? {
            id if id == u64::from(HEADER_BINARY) => Protocol::Binary,
            id if id == u64::from(HEADER_COMPACT) => Protocol::Compact,
            id => return Err(Broken::UnknownProtocol { id }),
        };
        let sequence = fixed[HEADER_SEQUENCE].try_into().expect("a range of four bytes");
        let dress = Dress { protocol, around: Around::Header(sequence) };
        self.dress = Some(dress);
        if take_varint(&mut rest)? != 0 {
            return Err(Broken::Transforms);
        }
        Ok((dress, header_bytes))
    }
}

/// By the first byte of a message.
fn protocol_of(first: u8) -> Option<Protocol> {
    match first {
        0x80 => Some(Protocol::Binary),
        0x82 => Some(Protocol::Compact),
        _ => None,
    }
}

fn frame_length(bytes: [u8; FRAME_LENGTH_BYTES], bytes_max: usize) -> Result<usize, Broken> {
    let length = usize::try_from(i32::from_be_bytes(bytes)).map_err(|_| Broken::NegativeLength)?;
    if length > bytes_max {
        return Err(Broken::TooLong { bytes_max });
    }
    Ok(length)
}

/// One small number of THeader; all of them fit into four bytes.
fn take_varint(bytes: &mut &[u8]) -> Result<u64, Broken> {
    let mut value = 0;
    for index in 0..4 {
        let (byte, rest) = bytes.split_first().ok_or(Broken::BadFrame)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Broken::LongVarint { bytes_max: 4 })
}

#[cfg(test)]
mod tests {
    use super::super::codec::write_call;
    use super::super::method::Hello;
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes_max: 1_000, depth_max: 64 };

    fn all_dresses() -> Vec<Dress> {
        [Protocol::Binary, Protocol::Compact]
            .into_iter()
            .flat_map(|protocol| {
                [Dress::unframed(protocol), Dress::framed(protocol), Dress::header(protocol, 0x0102_0304)]
            })
            .collect()
    }

    fn hello(protocol: Protocol, out: &mut Vec<u8>) {
        write_call::<Hello>(protocol, 5, &(), out);
    }

    fn broken(bytes: &[u8]) -> Broken {
        Splitter::new(BOUNDS).split(bytes).unwrap_err()
    }

    #[test]
    fn what_was_wrapped_is_split_byte_by_byte_in_every_dress() {
        for dress in all_dresses() {
            let mut bytes = Vec::new();
            dress.wrap(&mut bytes, hello);
            let mut plain = Vec::new();
            hello(dress.protocol, &mut plain);
            let mut splitter = Splitter::new(BOUNDS);
            for _message in 0..2 {
                for there in 0..bytes.len() {
                    match splitter.split(&bytes[..there]).unwrap() {
                        Split::Part { bytes_min } => assert!(bytes_min <= bytes.len()),
                        whole => panic!("{whole:?} after {there} of {} bytes", bytes.len()),
                    }
                }
                let body = bytes.len() - plain.len()..bytes.len();
                assert_eq!(&bytes[body.clone()], plain);
                assert_eq!(splitter.split(&bytes), Ok(Split::Message { dress, body }));
            }
        }
    }

    #[test]
    fn frames_are_taken_off_once_they_are_whole_and_refused_by_their_length_alone() {
        let mut wire = Vec::new();
        framed(&mut wire, |out| out.extend_from_slice(b"one"));
        framed(&mut wire, |_| {});
        framed(&mut wire, |out| out.extend_from_slice(b"three"));
        let mut inbox = BytesMut::new();
        let mut taken = Vec::new();
        for byte in wire {
            inbox.extend_from_slice(&[byte]);
            taken.extend(take_frame(&mut inbox, 5).unwrap());
        }
        assert_eq!(taken, [&b"one"[..], b"", b"three"]);
        inbox.extend_from_slice(&6u32.to_be_bytes());
        assert_eq!(take_frame(&mut inbox, 5), Err(FrameTooLong { bytes: 6, bytes_max: 5 }));
    }

    #[test]
    fn frames_of_one_connection_may_wear_different_things() {
        let mut splitter = Splitter::new(BOUNDS);
        for dress in all_dresses().into_iter().filter(|dress| dress.around != Around::Nothing) {
            let mut bytes = Vec::new();
            dress.wrap(&mut bytes, hello);
            match splitter.split(&bytes).unwrap() {
                Split::Message { dress: told, body } => assert_eq!((told, body.end), (dress, bytes.len())),
                part => panic!("{part:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_thrift_is_refused_by_its_first_bytes() {
        let first = *b"GET ";
        assert_eq!(broken(b"GET / HTTP/1.1"), Broken::NotThrift { first, bytes_max: 1_000 });
        assert!(matches!(broken(&[0x16, 3, 1, 2]), Broken::NotThrift { .. })); // TLS
        assert!(matches!(broken(&[0x7f, 0xff, 0xff, 0xff]), Broken::NotThrift { .. }));
        assert!(matches!(broken(&[0xff; 4]), Broken::NotThrift { .. }));
        assert_eq!(broken(&[0, 0, 0, 5, b'h', b'e', b'l', b'l', b'o']), Broken::BadFrame); // not strict
        assert_eq!(broken(&[0, 0, 0, 0]), Broken::BadFrame);
    }

    #[test]
    fn a_frame_past_the_bound_is_refused_at_its_length() {
        let mut bytes = Vec::new();
        Dress::framed(Protocol::Binary).wrap(&mut bytes, hello);
        let mut splitter = Splitter::new(BOUNDS);
        splitter.split(&bytes).unwrap();
        for (length, why) in [
            ([0x7f, 0xff, 0xff, 0xff], Broken::TooLong { bytes_max: 1_000 }),
            ([0, 0, 0x03, 0xe9], Broken::TooLong { bytes_max: 1_000 }),
            ([0xff; 4], Broken::NegativeLength),
        ] {
            assert_eq!(splitter.split(&length), Err(why));
        }
        assert_eq!(splitter.split(&[0, 0, 0x03, 0xe8]), Ok(Split::Part { bytes_min: 1_004 }));
    }

    #[test]
    fn header_with_transforms_or_cut_short_is_refused() {
        let mut bytes = Vec::new();
        Dress::header(Protocol::Compact, 1).wrap(&mut bytes, hello);
        let words = FRAME_LENGTH_BYTES + HEADER_WORDS.start;
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            bytes
        };
        let zlib = with(words + 3, 1);
        let mut splitter = Splitter::new(BOUNDS);
        assert_eq!(splitter.split(&zlib), Err(Broken::Transforms));
        assert_eq!(splitter.dress(), Some(Dress::header(Protocol::Compact, 1)), "so the sender can be told");
        assert_eq!(broken(&with(words + 2, 1)), Broken::UnknownProtocol { id: 1 });
        assert_eq!(broken(&with(words, 0xff)), Broken::BadFrame); // more words than the frame has
        assert_eq!(broken(&with(words + 1, 0)), Broken::BadFrame); // no words at all
        assert_eq!(broken(&[0, 0, 0, 3, 0x0f, 0xff, 0]), Broken::BadFrame);
    }

    #[test]
    fn header_of_the_application_is_passed_over() {
        let mut message = Vec::new();
        hello(Protocol::Binary, &mut message);
        let mut bytes = Vec::new();
        framed(&mut bytes, |out| {
            out.extend_from_slice(&[0x0f, 0xff, 0, 0, 0, 0, 0, 9, 0, 3]);
            out.extend_from_slice(&[0, 0, 1, 1, 3, b'k', b'e', b'y', 3, b'v', b'a', b'l']); // one key and value
            out.extend_from_slice(&message);
        });
        let body = bytes.len() - message.len()..bytes.len();
        let dress = Dress::header(Protocol::Binary, 9);
        assert_eq!(Splitter::new(BOUNDS).split(&bytes), Ok(Split::Message { dress, body }));
    }
}
