//! The methods of `chord.thrift`: for each its name, its one argument, its result and what it throws.
//!
//! Every method has the same form (at most one argument, field 1), so one generic reader and writer serve all of
//! them, on both sides of the wire. The table below is the one place that lists them; [`Call`] and [`Reply`] are
//! what the server sees, the unit structs (`ClientPut` …) what a client names.

use thrift::protocol::{TFieldIdentifier, TInputProtocol, TOutputProtocol, TSerializable, TType};

use super::chord::*;
use super::codec::UNNAMED;

/// One method. Implemented by a unit struct for each.
pub trait Method {
    /// On the wire.
    const NAME: &'static str;
    /// The argument's name; binary and compact do not carry it.
    const ARGUMENT: &'static str;
    /// The argument; `()` for none.
    type Request: Payload;
    /// The result; `()` for void.
    type Response: Payload;
    /// What it throws; [`Nothing`] for methods that declare no exception.
    type Thrown: Thrown;
}

/// An argument or a result.
pub trait Payload: Sized {
    /// Its wire type; `Void` if there is no such field.
    const KIND: TType;
    /// Reads the value whose field header has been read.
    fn read(input: &mut dyn TInputProtocol) -> thrift::Result<Self>;
    /// Writes the value, its field header having been written.
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()>;
}

/// The exceptions a method declares.
pub trait Thrown: Sized {
    /// The field that carries it.
    fn field(&self) -> TFieldIdentifier;
    /// Writes the exception, its field header having been written.
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()>;
    /// Reads the exception in field `id`; `None` if the method declares no such field.
    fn read(id: i16, input: &mut dyn TInputProtocol) -> thrift::Result<Option<Self>>;
    /// The exception that says a request was wrong, and why. `None`: only Thrift's own application exception is left.
    fn wrong_request(why: String) -> Option<Self>;
}

/// What a method of `Tetrachord` throws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Field 1: nothing was written.
    Unavailable(Unavailable),
    /// Field 2: outcome unknown.
    Timeout(Timeout),
    /// Field 3: nothing was written.
    Overloaded(Overloaded),
    /// Field 4: the request is wrong.
    InvalidRequest(InvalidRequest),
}

/// No exception is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {}

impl Thrown for SystemException {
    fn field(&self) -> TFieldIdentifier {
        TFieldIdentifier::new(UNNAMED, TType::Struct, 1)
    }
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        self.write_to_out_protocol(output)
    }
    fn read(id: i16, input: &mut dyn TInputProtocol) -> thrift::Result<Option<Self>> {
        (id == 1).then(|| SystemException::read_from_in_protocol(input)).transpose()
    }
    fn wrong_request(why: String) -> Option<Self> {
        Some(SystemException { message: Some(why) })
    }
}

impl Thrown for InvalidRequest {
    fn field(&self) -> TFieldIdentifier {
        TFieldIdentifier::new(UNNAMED, TType::Struct, 1)
    }
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        self.write_to_out_protocol(output)
    }
    fn read(id: i16, input: &mut dyn TInputProtocol) -> thrift::Result<Option<Self>> {
        (id == 1).then(|| InvalidRequest::read_from_in_protocol(input)).transpose()
    }
    fn wrong_request(why: String) -> Option<Self> {
        Some(InvalidRequest { why: Some(why) })
    }
}

impl Thrown for Refusal {
    fn field(&self) -> TFieldIdentifier {
        let id = match self {
            Refusal::Unavailable(_) => 1,
            Refusal::Timeout(_) => 2,
            Refusal::Overloaded(_) => 3,
            Refusal::InvalidRequest(_) => 4,
        };
        TFieldIdentifier::new(UNNAMED, TType::Struct, id)
    }
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        match self {
            Refusal::Unavailable(thrown) => thrown.write_to_out_protocol(output),
            Refusal::Timeout(thrown) => thrown.write_to_out_protocol(output),
            Refusal::Overloaded(thrown) => thrown.write_to_out_protocol(output),
            Refusal::InvalidRequest(thrown) => thrown.write_to_out_protocol(output),
        }
    }
    fn read(id: i16, input: &mut dyn TInputProtocol) -> thrift::Result<Option<Self>> {
        Ok(Some(match id {
            1 => Refusal::Unavailable(Unavailable::read_from_in_protocol(input)?),
            2 => Refusal::Timeout(Timeout::read_from_in_protocol(input)?),
            3 => Refusal::Overloaded(Overloaded::read_from_in_protocol(input)?),
            4 => Refusal::InvalidRequest(InvalidRequest::read_from_in_protocol(input)?),
            _ => return Ok(None),
        }))
    }
    fn wrong_request(why: String) -> Option<Self> {
        Some(Refusal::InvalidRequest(InvalidRequest { why: Some(why) }))
    }
}

impl Thrown for Nothing {
    fn field(&self) -> TFieldIdentifier {
        match *self {}
    }
    fn write(&self, _: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        match *self {}
    }
    fn read(_: i16, _: &mut dyn TInputProtocol) -> thrift::Result<Option<Self>> {
        Ok(None)
    }
    fn wrong_request(_: String) -> Option<Self> {
        None
    }
}

impl Payload for () {
    const KIND: TType = TType::Void;
    fn read(_: &mut dyn TInputProtocol) -> thrift::Result<Self> {
        Ok(())
    }
    fn write(&self, _: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        Ok(())
    }
}

impl Payload for String {
    const KIND: TType = TType::String;
    fn read(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
        input.read_string()
    }
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        output.write_string(self)
    }
}

impl Payload for i32 {
    const KIND: TType = TType::I32;
    fn read(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
        input.read_i32()
    }
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        output.write_i32(*self)
    }
}

/// A large struct that would make every call as large as itself.
impl<P: Payload> Payload for Box<P> {
    const KIND: TType = P::KIND;
    fn read(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
        P::read(input).map(Box::new)
    }
    fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        (**self).write(output)
    }
}

macro_rules! struct_payloads {
    ($($name:ident),+) => { $(
        impl Payload for $name {
            const KIND: TType = TType::Struct;
            fn read(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
                $name::read_from_in_protocol(input)
            }
            fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
                self.write_to_out_protocol(output)
            }
        }
    )+ };
}
struct_payloads!(
    KV,
    ClientRequest,
    ServerResponse,
    PutRequest,
    RemoveRequest,
    WriteResult,
    GetRequest,
    GetResult,
    BatchRequest,
    BatchResult,
    Description,
    Stats,
    DigestRequest,
    DigestResult,
    PageRequest,
    PageResult,
    PeerHello,
    PeerWelcome,
    PeerPing,
    PeerPong,
    PeerApply,
    PeerApplied,
    PeerRead,
    PeerCells,
    PeerReconcile,
    PeerReconciled
);

macro_rules! methods {
    ($( $method:ident = $name:literal ($argument:literal : $request:ty) -> $response:ty, throws $thrown:ty; )+) => {
        $(
            #[doc = concat!("`", $name, "` of chord.thrift.")]
            pub struct $method;
            impl Method for $method {
                const NAME: &'static str = $name;
                const ARGUMENT: &'static str = $argument;
                type Request = $request;
                type Response = $response;
                type Thrown = $thrown;
            }
        )+

        /// A call of any method, its argument read and its wire types checked. What is missing is `None`.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Call { $( #[doc = concat!("`", $name, "`.")] $method($request), )+ }

        /// The outcome of a call of the method of the same name.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Reply { $( #[doc = concat!("`", $name, "`.")] $method(Result<$response, $thrown>), )+ }

        impl Call {
            /// Reads the argument of the method called `name`. `Ok(None)`: there is no such method. `Err`: the
            /// argument cannot be read, with the reply that says so if the method declares an exception for it.
            pub fn read(
                name: &str, input: &mut dyn TInputProtocol,
            ) -> Result<Option<Call>, (thrift::Error, Option<Box<Reply>>)> {
                match name {
                    $( $name => match super::codec::read_arguments::<$method>(input) {
                        Ok(request) => Ok(Some(Call::$method(request))),
                        Err(error) => {
                            let why = super::codec::describe_error(&error);
                            let refusal = <$thrown>::wrong_request(format!("cannot read the request: {why}"));
                            Err((error, refusal.map(|thrown| Box::new(Reply::$method(Err(thrown))))))
                        }
                    }, )+
                    _ => Ok(None),
                }
            }
        }

        impl Reply {
            /// The method it answers.
            pub fn method(&self) -> &'static str {
                match self { $( Reply::$method(_) => $name, )+ }
            }

            /// Writes the result struct.
            pub fn write(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
                match self {
                    $( Reply::$method(result) => super::codec::write_result::<$method>(result.as_ref(), output), )+
                }
            }
        }
    };
}

methods! {
    ClientGet = "clientGet"("request": ClientRequest) -> ServerResponse, throws SystemException;
    ClientPut = "clientPut"("request": ClientRequest) -> ServerResponse, throws SystemException;
    ServerGet = "serverGet"("kv": KV) -> ServerResponse, throws SystemException;
    ServerPut = "serverPut"("kv": KV) -> ServerResponse, throws SystemException;
    ServerDelete = "serverDelete"("kv": KV) -> (), throws SystemException;
    ResendHints = "resendHints"("recoveredServerID": i32) -> (), throws SystemException;
    Hello = "hello"("": ()) -> String, throws SystemException;
    GetServerId = "getServerID"("": ()) -> i32, throws SystemException;
    GetInfo = "getInfo"("": ()) -> String, throws SystemException;

    Put = "put"("request": PutRequest) -> WriteResult, throws Refusal;
    Get = "get"("request": GetRequest) -> GetResult, throws Refusal;
    Remove = "remove"("request": RemoveRequest) -> WriteResult, throws Refusal;
    Batch = "batch"("request": BatchRequest) -> BatchResult, throws Refusal;
    Describe = "describe"("": ()) -> Description, throws Nothing;
    GetStats = "stats"("": ()) -> Stats, throws Nothing;

    InspectDigest = "inspectDigest"("request": DigestRequest) -> DigestResult, throws InvalidRequest;
    InspectPage = "inspectPage"("request": PageRequest) -> PageResult, throws InvalidRequest;

    Greet = "peerHello"("request": PeerHello) -> PeerWelcome, throws Nothing;
    Ping = "peerPing"("request": PeerPing) -> PeerPong, throws Nothing;
    Apply = "peerApply"("request": PeerApply) -> PeerApplied, throws Nothing;
    Read = "peerRead"("request": PeerRead) -> PeerCells, throws Nothing;
    Reconcile = "peerReconcile"("request": Box<PeerReconcile>) -> Box<PeerReconciled>, throws Nothing;
}
