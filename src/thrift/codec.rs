//! One whole message: header, argument or result, in the binary or the compact protocol.
//!
//! Works on complete messages in memory (`scan` finds their ends), so every limit given to the `thrift` crate is the
//! message's own length: exact, whatever a length field claims. Only containers have a bound of their own.
//!
//! Not here: frames and THeader around the message (`dress`).

use thrift::protocol::{
    TBinaryInputProtocol, TBinaryOutputProtocol, TCompactInputProtocol, TCompactOutputProtocol,
    TFieldIdentifier, TInputProtocol, TMessageIdentifier, TMessageType, TOutputProtocol, TStructIdentifier,
    TType,
};
use thrift::{ApplicationError, ApplicationErrorKind, ProtocolError, ProtocolErrorKind, TConfiguration};

use super::method::{Method, Payload, Reply, Thrown};
use super::strict::Strict;

/// How values become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TBinaryProtocol, strict form.
    Binary,
    /// TCompactProtocol.
    Compact,
}

/// Items of one list, set or map. An empty struct is one byte on the wire and hundreds in memory, so the length of the
/// message alone would not bound what reading it takes.
pub const CONTAINER_ITEMS_MAX: usize = 100_000;

/// The name of what is written: neither protocol carries names of fields and structs, and the crate would allocate
/// each.
pub const UNNAMED: &str = "";

/// Nested structs and containers of a reply that a client reads.
const DEPTH_MAX: usize = 64;

/// Why a reply brought no result of its method.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The bytes are no reply. The connection cannot be used further.
    #[error("the server's reply cannot be read: {0}")]
    Malformed(String),
    /// The reply belongs to another call. The connection cannot be used further.
    #[error("the server answered another call: sequence {got}, not {expected}")]
    OutOfSequence {
        /// Of the call.
        expected: i32,
        /// Of the reply.
        got: i32,
    },
    /// The server does not know the method or could not read its argument. The connection lives on.
    #[error("the server refused the call: {0}")]
    Application(String),
}

/// Appends a call to `out`.
pub fn write_call<M: Method>(protocol: Protocol, sequence: i32, request: &M::Request, out: &mut Vec<u8>) {
    with_output(protocol, out, |output| {
        output.write_message_begin(&TMessageIdentifier::new(M::NAME, TMessageType::Call, sequence))?;
        output.write_struct_begin(&TStructIdentifier::new(UNNAMED))?;
        if M::Request::KIND != TType::Void {
            output.write_field_begin(&TFieldIdentifier::new(UNNAMED, M::Request::KIND, 1))?;
            request.write(output)?;
            output.write_field_end()?;
        }
        output.write_field_stop()?;
        output.write_struct_end()?;
        output.write_message_end()
    });
}

/// Appends a reply to `out`.
pub fn write_reply(protocol: Protocol, sequence: i32, reply: &Reply, out: &mut Vec<u8>) {
    with_output(protocol, out, |output| {
        output.write_message_begin(&TMessageIdentifier::new(
            reply.method(),
            TMessageType::Reply,
            sequence,
        ))?;
        reply.write(output)?;
        output.write_message_end()
    });
}

/// Appends Thrift's own exception to `out`: the method is unknown, or its argument cannot be read.
pub fn write_application_exception(
    protocol: Protocol,
    name: &str,
    sequence: i32,
    kind: ApplicationErrorKind,
    message: String,
    out: &mut Vec<u8>,
) {
    with_output(protocol, out, |output| {
        output.write_message_begin(&TMessageIdentifier::new(name, TMessageType::Exception, sequence))?;
        thrift::Error::write_application_error_to_out_protocol(
            &ApplicationError::new(kind, message),
            output,
        )?;
        output.write_message_end()
    });
}

/// Reads the header of a whole message and hands the protocol, at the argument or result, to `read`.
pub fn read_message<T>(
    protocol: Protocol,
    message: &[u8],
    depth_max: usize,
    read: impl FnOnce(TMessageIdentifier, &mut dyn TInputProtocol) -> T,
) -> thrift::Result<T> {
    let limits = TConfiguration::builder()
        .max_message_size(Some(message.len()))
        .max_frame_size(Some(message.len()))
        .max_string_size(Some(message.len()))
        .max_container_size(Some(message.len().min(CONTAINER_ITEMS_MAX)))
        .max_recursion_depth(Some(depth_max))
        .build()?;
    match protocol {
        Protocol::Binary => read_with(TBinaryInputProtocol::with_config(message, true, limits), read),
        Protocol::Compact => read_with(TCompactInputProtocol::with_config(message, limits), read),
    }
}

fn read_with<T>(
    protocol: impl TInputProtocol,
    read: impl FnOnce(TMessageIdentifier, &mut dyn TInputProtocol) -> T,
) -> thrift::Result<T> {
    let mut input = Strict::new(protocol);
    let header = input.read_message_begin()?;
    Ok(read(header, &mut input))
}

/// Reads the whole reply to a call of `M` with this sequence number: its result, or what it threw.
pub fn read_reply<M: Method>(
    protocol: Protocol,
    sequence: i32,
    message: &[u8],
) -> Result<Result<M::Response, M::Thrown>, ReplyError> {
    let malformed = |error: thrift::Error| ReplyError::Malformed(describe_error(&error));
    read_message(protocol, message, DEPTH_MAX, |header, input| {
        if header.sequence_number != sequence {
            return Err(ReplyError::OutOfSequence { expected: sequence, got: header.sequence_number });
        }
        match header.message_type {
            TMessageType::Reply => read_result::<M>(input).map_err(malformed),
            TMessageType::Exception => {
                let error =
                    thrift::Error::read_application_error_from_in_protocol(input).map_err(malformed)?;
                Err(ReplyError::Application(error.message))
            }
            TMessageType::Call | TMessageType::OneWay => {
                Err(ReplyError::Malformed("a call, not a reply".to_owned()))
            }
        }
    })
    .map_err(malformed)?
}

/// The sequence number of a whole reply, for whoever has many calls under way.
pub fn reply_sequence(protocol: Protocol, message: &[u8]) -> thrift::Result<i32> {
    read_message(protocol, message, DEPTH_MAX, |header, _| header.sequence_number)
}

/// Reads the arguments struct of `M`. A missing argument is an error; fields missing inside it are `None`.
pub(super) fn read_arguments<M: Method>(input: &mut dyn TInputProtocol) -> thrift::Result<M::Request> {
    let mut request = None;
    read_fields(input, |id, kind, input| {
        if id == 1 && M::Request::KIND != TType::Void {
            request = Some(<M::Request>::read(input)?);
            return Ok(());
        }
        input.skip(kind)
    })?;
    match request {
        Some(request) => Ok(request),
        None if M::Request::KIND == TType::Void => <M::Request>::read(input),
        None => Err(invalid(format!("the argument '{}' is missing", M::ARGUMENT))),
    }
}

/// Writes the result struct of `M`.
pub(super) fn write_result<M: Method>(
    result: Result<&M::Response, &M::Thrown>,
    output: &mut dyn TOutputProtocol,
) -> thrift::Result<()> {
    output.write_struct_begin(&TStructIdentifier::new(UNNAMED))?;
    match result {
        Ok(_) if M::Response::KIND == TType::Void => {}
        Ok(response) => {
            output.write_field_begin(&TFieldIdentifier::new(UNNAMED, M::Response::KIND, 0))?;
            response.write(output)?;
            output.write_field_end()?;
        }
        Err(thrown) => {
            output.write_field_begin(&thrown.field())?;
            thrown.write(output)?;
            output.write_field_end()?;
        }
    }
    output.write_field_stop()?;
    output.write_struct_end()
}

fn read_result<M: Method>(input: &mut dyn TInputProtocol) -> thrift::Result<Result<M::Response, M::Thrown>> {
    let mut result = None;
    read_fields(input, |id, kind, input| {
        if id == 0 {
            result = Some(Ok(<M::Response>::read(input)?));
            return Ok(());
        }
        match <M::Thrown>::read(id, input)? {
            Some(thrown) => result = Some(Err(thrown)),
            None => input.skip(kind)?,
        }
        Ok(())
    })?;
    match result {
        Some(result) => Ok(result),
        None if M::Response::KIND == TType::Void => <M::Response>::read(input).map(Ok),
        None => Err(invalid(format!("{} returned nothing", M::NAME))),
    }
}

fn read_fields(
    input: &mut dyn TInputProtocol,
    mut field: impl FnMut(i16, TType, &mut dyn TInputProtocol) -> thrift::Result<()>,
) -> thrift::Result<()> {
    input.read_struct_begin()?;
    loop {
        let header = input.read_field_begin()?;
        if header.field_type == TType::Stop {
            return input.read_struct_end();
        }
        field(header.id.unwrap_or(-1), header.field_type, input)?;
        input.read_field_end()?;
    }
}

/// What went wrong, in words; the crate's own `Display` says only "bad data".
pub fn describe_error(error: &thrift::Error) -> String {
    match error {
        thrift::Error::Transport(error) => error.message.clone(),
        thrift::Error::Protocol(error) => error.message.clone(),
        thrift::Error::Application(error) => error.message.clone(),
        thrift::Error::User(error) => error.to_string(),
    }
}

fn invalid(message: String) -> thrift::Error {
    thrift::Error::Protocol(ProtocolError { kind: ProtocolErrorKind::InvalidData, message })
}

fn with_output(
    protocol: Protocol,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut dyn TOutputProtocol) -> thrift::Result<()>,
) {
    let written = match protocol {
        Protocol::Binary => write(&mut TBinaryOutputProtocol::new(out, true)),
        Protocol::Compact => write(&mut TCompactOutputProtocol::new(out)),
    };
    written.expect("writing to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::super::chord::*;
    use super::super::method::*;
    use super::*;

    const BOTH: [Protocol; 2] = [Protocol::Binary, Protocol::Compact];

    fn read_call(protocol: Protocol, bytes: &[u8]) -> Result<Option<Call>, Option<Box<Reply>>> {
        read_message(protocol, bytes, 64, |header, input| {
            Call::read(&header.name, input).map_err(|(_, reply)| reply)
        })
        .unwrap()
    }

    fn put_request() -> ClientRequest {
        ClientRequest::new("QUORUM".to_owned(), KV::new(137, "value137".to_owned(), None))
    }

    #[test]
    fn a_call_is_read_as_it_was_written() {
        for protocol in BOTH {
            let mut bytes = Vec::new();
            write_call::<ClientPut>(protocol, 7, &put_request(), &mut bytes);
            assert_eq!(read_call(protocol, &bytes), Ok(Some(Call::ClientPut(put_request()))));
            bytes.clear();
            write_call::<Hello>(protocol, 7, &(), &mut bytes);
            assert_eq!(read_call(protocol, &bytes), Ok(Some(Call::Hello(()))));
        }
    }

    #[test]
    fn a_reply_is_read_as_it_was_written() {
        for protocol in BOTH {
            let mut bytes = Vec::new();
            write_reply(protocol, 3, &Reply::Hello(Ok("2".to_owned())), &mut bytes);
            assert_eq!(read_reply::<Hello>(protocol, 3, &bytes).unwrap().unwrap(), "2");
            assert!(matches!(
                read_reply::<Hello>(protocol, 4, &bytes),
                Err(ReplyError::OutOfSequence { .. })
            ));
            let thrown = Refusal::InvalidRequest(InvalidRequest { why: Some("no key".to_owned()) });
            bytes.clear();
            write_reply(protocol, 3, &Reply::Put(Err(thrown.clone())), &mut bytes);
            assert_eq!(read_reply::<Put>(protocol, 3, &bytes).unwrap(), Err(thrown));
            bytes.clear();
            write_reply(protocol, 3, &Reply::ServerDelete(Ok(())), &mut bytes);
            assert_eq!(read_reply::<ServerDelete>(protocol, 3, &bytes).unwrap(), Ok(()));
        }
    }

    #[test]
    fn an_unknown_method_is_told_apart_and_answered() {
        for protocol in BOTH {
            let mut bytes = Vec::new();
            let kind = ApplicationErrorKind::UnknownMethod;
            write_application_exception(protocol, "nope", 9, kind, "no method 'nope'".to_owned(), &mut bytes);
            match read_reply::<Hello>(protocol, 9, &bytes) {
                Err(ReplyError::Application(message)) => assert_eq!(message, "no method 'nope'"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A serverGet whose KV has one field of the given number and type.
    fn server_get_with(
        protocol: Protocol,
        write: impl Fn(&mut dyn TOutputProtocol) -> thrift::Result<()>,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        with_output(protocol, &mut bytes, |output| {
            output.write_message_begin(&TMessageIdentifier::new("serverGet", TMessageType::Call, 1))?;
            output.write_struct_begin(&TStructIdentifier::new("args"))?;
            output.write_field_begin(&TFieldIdentifier::new("kv", TType::Struct, 1))?;
            output.write_struct_begin(&TStructIdentifier::new("KV"))?;
            write(output)?;
            output.write_field_stop()?;
            output.write_struct_end()?;
            output.write_field_end()?;
            output.write_field_stop()?;
            output.write_struct_end()?;
            output.write_message_end()
        });
        bytes
    }

    #[test]
    fn a_mistyped_field_is_an_error_and_not_another_value() {
        for protocol in BOTH {
            let key_as_i64 = server_get_with(protocol, |output| {
                output.write_field_begin(&TFieldIdentifier::new("key", TType::I64, 1))?;
                output.write_i64(5)?;
                output.write_field_end()
            });
            let time_as_double = server_get_with(protocol, |output| {
                output.write_field_begin(&TFieldIdentifier::new("time", TType::Double, 3))?;
                output.write_double(5.0)?;
                output.write_field_end()
            });
            for bytes in [key_as_i64, time_as_double] {
                let refused =
                    read_call(protocol, &bytes).unwrap_err().expect("the method declares an exception");
                match *refused {
                    Reply::ServerGet(Err(SystemException { message: Some(message) })) => {
                        assert!(message.contains("expected"), "{message}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_missing_field_is_absent_and_an_unknown_one_is_skipped() {
        for protocol in BOTH {
            let unknown = server_get_with(protocol, |output| {
                output.write_field_begin(&TFieldIdentifier::new("later", TType::String, 90))?;
                output.write_string("x")?;
                output.write_field_end()
            });
            assert_eq!(read_call(protocol, &unknown), Ok(Some(Call::ServerGet(KV::new(None, None, None)))));
        }
    }

    #[test]
    fn a_missing_argument_is_an_error() {
        let mut bytes = Vec::new();
        write_call::<Hello>(Protocol::Binary, 1, &(), &mut bytes);
        let renamed: Vec<u8> = {
            let mut renamed = bytes[..4].to_vec();
            renamed.extend_from_slice(&9u32.to_be_bytes());
            renamed.extend_from_slice(b"serverGet");
            renamed.extend_from_slice(&bytes[8 + 5..]);
            renamed
        };
        let refused =
            read_call(Protocol::Binary, &renamed).unwrap_err().expect("the method declares an exception");
        assert!(matches!(*refused, Reply::ServerGet(Err(_))));
    }

    #[test]
    fn a_header_that_is_none_has_no_sequence_number() {
        for protocol in BOTH {
            let mut bytes = Vec::new();
            write_reply(protocol, 3, &Reply::Hello(Ok("2".to_owned())), &mut bytes);
            assert_eq!(reply_sequence(protocol, &bytes).unwrap(), 3);
            bytes[0] ^= 0x40;
            assert!(reply_sequence(protocol, &bytes).is_err());
        }
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for protocol in BOTH {
            let mut bytes = Vec::new();
            write_call::<ClientPut>(protocol, 7, &put_request(), &mut bytes);
            for at in 0..bytes.len() {
                for flip in [1u8, 0x80, 0xff] {
                    let mut broken = bytes.clone();
                    broken[at] ^= flip;
                    let _ =
                        read_message(protocol, &broken, 64, |header, input| Call::read(&header.name, input));
                }
                let _ =
                    read_message(protocol, &bytes[..at], 64, |header, input| Call::read(&header.name, input));
            }
        }
    }
}
