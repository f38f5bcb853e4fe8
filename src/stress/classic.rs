//! A connection of a classic client: `clientPut` and `clientGet`, unframed, in the binary protocol, one call at a time.
//!
//! It knows nothing but the classic service, so that any server that speaks it can be put under the same load. A
//! connection that broke is opened again by the next call, after a short pause.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::options::Plan;
use super::tally::{Class, Failed};
use super::target::Values;
use crate::net::TcpStream;
use crate::nodes::Address;
use crate::thrift::chord::{ClientRequest, KV, ServerResponse, SystemException};
use crate::thrift::codec::{Protocol, ReplyError, read_reply, write_call};
use crate::thrift::method::{ClientGet, ClientPut, Method};
use crate::thrift::scan::{Bounds, Scanner};

/// What a reply may be at most.
const BOUNDS: Bounds = Bounds { bytes_max: 64 * 1024 * 1024, depth_max: 64 };

/// After a failed attempt to connect, so that a dead server is not asked in a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// One caller's connection and requests.
pub struct Classic {
    address: Address,
    timeout: Duration,
    stream: Option<TcpStream>,
    sequence: i32,
    outbox: Vec<u8>,
    inbox: BytesMut,
    values: Rc<Values>,
    value: Vec<u8>,
    put: ClientRequest,
    get: ClientRequest,
}

impl Classic {
    /// Connects when it is first used.
    pub fn new(address: Address, plan: &Plan, values: Rc<Values>) -> Classic {
        let request = |level: &str| ClientRequest::new(level.to_owned(), KV::new(0, None, None));
        Classic {
            address,
            timeout: plan.timeout,
            stream: None,
            sequence: 0,
            outbox: Vec::new(),
            inbox: BytesMut::new(),
            values,
            value: Vec::new(),
            put: request(plan.write_level.name()),
            get: request(plan.read_level.name()),
        }
    }

    /// True if the key was found.
    pub async fn read(&mut self, key: u64) -> Result<bool, Failed> {
        let mut request = std::mem::replace(&mut self.get, ClientRequest::new(None, None));
        request.kv.as_mut().expect("set when it was made").key = Some(key as i32);
        let answer = self.call::<ClientGet>(&request).await;
        self.get = request;
        Ok(answer?.kv.is_some_and(|kv| kv.value.is_some()))
    }

    /// Writes the next value.
    pub async fn write(&mut self, key: u64, random: &mut fastrand::Rng) -> Result<(), Failed> {
        self.values.fill(random, &mut self.value);
        let text = std::str::from_utf8(&self.value).expect("values are letters");
        let mut request = std::mem::replace(&mut self.put, ClientRequest::new(None, None));
        let kv = request.kv.as_mut().expect("set when it was made");
        kv.key = Some(key as i32);
        let value = kv.value.get_or_insert_default();
        value.clear();
        value.push_str(text);
        let answer = self.call::<ClientPut>(&request).await;
        self.put = request;
        answer.map(|_| ())
    }

    async fn call<M>(&mut self, request: &M::Request) -> Result<ServerResponse, Failed>
    where
        M: Method<Response = ServerResponse, Thrown = SystemException>,
    {
        self.connect().await?;
        self.sequence = self.sequence.wrapping_add(1);
        self.outbox.clear();
        write_call::<M>(Protocol::Binary, self.sequence, request, &mut self.outbox);
        let within = self.timeout;
        let exchanged = match timeout(within, self.exchange()).await {
            Ok(Ok(len)) => Ok(self.inbox.split_to(len)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", within.as_millis())),
        };
        let message = exchanged.map_err(|why| self.lost(&why))?;
        match read_reply::<M>(Protocol::Binary, self.sequence, &message) {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(thrown)) => {
                let text = thrown.message.unwrap_or_else(|| "refused without a reason".to_owned());
                Err(Failed { class: Class::Classic, text })
            }
            Err(ReplyError::Application(text)) => Err(Failed { class: Class::Declined, text }),
            Err(error) => Err(self.lost(&error.to_string())),
        }
    }

    async fn connect(&mut self) -> Result<(), Failed> {
        if self.stream.is_some() {
            return Ok(());
        }
        let Address { host, port } = &self.address;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let connected = match timeout(self.timeout, TcpStream::connect((host, *port))).await {
            Ok(Ok(stream)) => stream.set_nodelay(true).map(|()| stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        match connected {
            Ok(stream) => {
                self.inbox.clear();
                self.stream = Some(stream);
                Ok(())
            }
            Err(error) => {
                sleep(PAUSE).await;
                Err(Failed { class: Class::Unreachable, text: format!("{}: {error}", self.address) })
            }
        }
    }

    /// Sends the call and reads until the reply is all there; returns its length.
    async fn exchange(&mut self) -> io::Result<usize> {
        let stream = self.stream.as_mut().expect("connected before");
        stream.write_all(&self.outbox).await?;
        let mut scanner = Scanner::new(Protocol::Binary, BOUNDS);
        loop {
            if stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::Error::other("the server closed the connection"));
            }
            match scanner.end(&self.inbox) {
                Ok(Some(len)) => return Ok(len),
                Ok(None) => {}
                Err(broken) => return Err(io::Error::other(broken.to_string())),
            }
        }
    }

    fn lost(&mut self, why: &str) -> Failed {
        self.stream = None;
        Failed { class: Class::NoAnswer, text: format!("{}: {why}", self.address) }
    }
}
