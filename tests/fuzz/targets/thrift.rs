//! What comes over a socket, in every dress: where messages end does not depend on how the bytes were cut, is what
//! the decoder finds as well, and neither reserves more than came. What was read can be written and read again.

use std::io::Cursor;

use tetrachord::thrift::codec::{
    Protocol, read_message, read_reply, reply_sequence, write_application_exception, write_call, write_reply,
};
use tetrachord::thrift::dress::{Dress, Split, Splitter};
use tetrachord::thrift::method::*;
use tetrachord::thrift::scan::{Bounds, Broken, Scanner};
use thrift::TConfiguration;
use thrift::protocol::{TBinaryInputProtocol, TCompactInputProtocol, TInputProtocol, TType};

use super::{Input, Seeds, Target, memory, samples};

pub const CALLS: Target = Target {
    name: "calls",
    start: || Box::new(calls),
    input_bytes_max: 4_096,
    rounds: 15_000,
    seeds: call_seeds,
};

pub const REPLIES: Target = Target {
    name: "replies",
    start: || Box::new(replies),
    input_bytes_max: 4_096,
    rounds: 10_000,
    seeds: reply_seeds,
};

/// Small enough for inputs to pass them.
const BOUNDS: Bounds = Bounds { bytes_max: 3_000, depth_max: 12 };

/// An item of a list is a byte on the wire at least, and the largest (an outcome of a batch) some hundreds in memory.
pub const BYTES_EACH: usize = 600;

const BOTH: [Protocol; 2] = [Protocol::Binary, Protocol::Compact];
const SEQUENCE: i32 = 7;

/// Writes, for every method, what the library has only for the method whose type is known.
macro_rules! every {
    ($($method:ident)+) => {
        fn write(call: &Call, protocol: Protocol, out: &mut Vec<u8>) {
            match call { $( Call::$method(request) => write_call::<$method>(protocol, SEQUENCE, request, out), )+ }
        }

        /// The message as the reply of each method, where it is one.
        pub fn read_as_each(protocol: Protocol, sequence: i32, message: &[u8]) -> Vec<Reply> {
            let read = [ $( read_reply::<$method>(protocol, sequence, message).ok().map(Reply::$method), )+ ];
            read.into_iter().flatten().collect()
        }

        fn read_like(reply: &Reply, protocol: Protocol, message: &[u8]) -> Option<Reply> {
            match reply {
                $( Reply::$method(_) => read_reply::<$method>(protocol, SEQUENCE, message).ok().map(Reply::$method), )+
            }
        }
    };
}
every!(ClientGet ClientPut ServerGet ServerPut ServerDelete ResendHints Hello GetServerId GetInfo Put Get Remove Batch
       Describe GetStats InspectDigest InspectPage Greet Ping Apply Read
       Reconcile);

/// The first byte says how the stream is cut; the rest is what one connection brings.
fn calls(data: &[u8]) {
    let mut input = Input(data);
    let piece = usize::from(input.byte() % 16) + 1;
    let stream = input.0;

    let (messages, end) = split(stream, stream.len().max(1));
    assert_eq!(split(stream, piece), (messages.clone(), end), "pieces of {piece}");
    for (dress, message) in messages {
        check_call(dress, &message);
    }
    for protocol in BOTH {
        check_end(protocol, stream);
    }
}

/// The messages of a stream that comes in such pieces, and why it broke if it did.
fn split(stream: &[u8], piece: usize) -> (Vec<(Dress, Vec<u8>)>, Option<Broken>) {
    let mut splitter = Splitter::new(BOUNDS);
    let (mut messages, mut start, mut claimed) = (Vec::new(), 0, 0);
    for come in (0..stream.len()).step_by(piece).map(|at| (at + piece).min(stream.len())) {
        loop {
            match memory::bounded(0, 0, || splitter.split(&stream[start..come])) {
                Ok(Split::Message { dress, body }) => {
                    assert!(body.end >= claimed, "it claimed {claimed} bytes and has {body:?}");
                    let body = start + body.start..start + body.end;
                    start = body.end;
                    claimed = 0;
                    messages.push((dress, stream[body].to_vec()));
                    if start == come {
                        break;
                    }
                }
                Ok(Split::Part { bytes_min }) => {
                    assert!(bytes_min <= BOUNDS.bytes_max + 4 + 1, "{bytes_min} bytes are waited for");
                    claimed = bytes_min;
                    break;
                }
                Err(broken) => return (messages, Some(broken)),
            }
        }
    }
    (messages, None)
}

fn check_call(dress: Dress, message: &[u8]) {
    let protocol = dress.protocol;
    let read = |protocol, message: &[u8]| {
        memory::bounded(message.len(), BYTES_EACH, || {
            read_message(protocol, message, BOUNDS.depth_max, |header, input| Call::read(&header.name, input))
        })
    };
    let Ok(read_call) = read(protocol, message) else { return };
    match read_call {
        Ok(None) => {}
        Ok(Some(call)) => {
            for protocol in BOTH {
                let mut written = Vec::new();
                write(&call, protocol, &mut written);
                assert_eq!(scan(protocol, &written), Ok(Some(written.len())));
                let again =
                    read(protocol, &written).expect("a header that was written").expect("a call that was");
                assert_eq!(again, Some(call.clone()));
            }
        }
        Err((_, refusal)) => {
            let mut out = Vec::new();
            dress.wrap(&mut out, |protocol, out| {
                if let Some(refusal) = refusal {
                    write_reply(protocol, SEQUENCE, &refusal, out);
                }
            });
        }
    }
}

fn scan(protocol: Protocol, bytes: &[u8]) -> Result<Option<usize>, Broken> {
    Scanner::new(protocol, Bounds { bytes_max: 100_000, depth_max: 64 }).end(bytes)
}

/// Where the `thrift` crate, reading without our scanner, finds the end of a message, there the scanner finds it.
fn check_end(protocol: Protocol, bytes: &[u8]) {
    let Some(end) = memory::bounded(bytes.len(), BYTES_EACH, || end_by_the_crate(protocol, bytes)) else {
        return;
    };
    match scan(protocol, bytes) {
        Ok(scanned) => assert_eq!(scanned, Some(end), "{protocol:?}"),
        // What it refuses, and the crate reads: types that are none where no value of them follows, and the like.
        Err(
            Broken::BadType { .. } | Broken::LongVarint { .. } | Broken::BadHeader | Broken::TooDeep { .. },
        ) => {}
        Err(broken) => panic!("{broken:?}, but the crate finds an end at {end}"),
    }
}

fn end_by_the_crate(protocol: Protocol, bytes: &[u8]) -> Option<usize> {
    let limits = TConfiguration::builder()
        .max_message_size(Some(bytes.len()))
        .max_frame_size(Some(bytes.len()))
        .max_string_size(Some(bytes.len()))
        .max_container_size(Some(bytes.len()))
        .build()
        .expect("limits that are none");
    let mut cursor = Cursor::new(bytes);
    let read = |input: &mut dyn TInputProtocol| {
        input.read_message_begin()?;
        input.skip(TType::Struct)
    };
    match protocol {
        Protocol::Binary => read(&mut TBinaryInputProtocol::with_config(&mut cursor, true, limits)),
        Protocol::Compact => read(&mut TCompactInputProtocol::with_config(&mut cursor, limits)),
    }
    .ok()?;
    Some(cursor.position() as usize)
}

fn replies(data: &[u8]) {
    for protocol in BOTH {
        let Ok(sequence) = reply_sequence(protocol, data) else { continue };
        let read = |message| {
            memory::bounded(data.len(), 21 * BYTES_EACH, || read_as_each(protocol, sequence, message))
        };
        for reply in read(data) {
            for protocol in BOTH {
                let mut written = Vec::new();
                write_reply(protocol, SEQUENCE, &reply, &mut written);
                assert_eq!(scan(protocol, &written), Ok(Some(written.len())));
                assert_eq!(read_like(&reply, protocol, &written).as_ref(), Some(&reply));
            }
        }
    }
}

fn call_seeds() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, protocol) in [("binary", Protocol::Binary), ("compact", Protocol::Compact)] {
        let mut all = vec![5];
        for (index, call) in samples::calls().iter().enumerate() {
            let mut one = vec![0];
            write(call, protocol, &mut one);
            all.extend_from_slice(&one[1..]);
            seeds.push((format!("{name}-{index:02}"), one));
        }
        seeds.push((format!("{name}-all"), all));
        let dresses = [("framed", Dress::framed(protocol)), ("header", Dress::header(protocol, 9))];
        for (around, dress) in dresses {
            let mut all = vec![2];
            for call in samples::calls() {
                dress.wrap(&mut all, |protocol, out| write(&call, protocol, out));
            }
            seeds.push((format!("{name}-{around}"), all));
        }
    }
    seeds.push(("http".to_owned(), b"\x01GET / HTTP/1.1\r\n\r\n".to_vec()));
    seeds
}

fn reply_seeds() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, protocol) in [("binary", Protocol::Binary), ("compact", Protocol::Compact)] {
        for (index, reply) in samples::replies().iter().enumerate() {
            let mut one = Vec::new();
            write_reply(protocol, SEQUENCE, reply, &mut one);
            seeds.push((format!("{name}-{index:02}"), one));
        }
        let mut unknown = Vec::new();
        let kind = thrift::ApplicationErrorKind::UnknownMethod;
        write_application_exception(
            protocol,
            "nope",
            SEQUENCE,
            kind,
            "no method 'nope'".to_owned(),
            &mut unknown,
        );
        seeds.push((format!("{name}-unknown"), unknown));
    }
    seeds
}
