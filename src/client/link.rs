//! One connection to one server, shared by every task of the client.
//!
//! ```text
//!   call ─► frame appended to the outbox ─┐                  ┌─► the oldest waiting call is answered
//!   call ─► frame appended to the outbox ─┴─► one write ··· one read, cut into frames
//! ```
//!
//! Answers come in the order of the calls: the n-th frame that arrives belongs to the n-th call. Each caller checks the
//! sequence number in its own frame, and one that does not fit condemns the connection.
//!
//! What is certain when a connection ends: a call whose last byte was never written was not carried out
//! ([`Failed::NotSent`]); of every other one nothing is known ([`Failed::NoAnswer`]).
//!
//! There is one task per connection and one timer per task. All calls have the same timeout, so the oldest one's
//! deadline is the first; when it passes, the server is taken for gone and the connection is closed.
//!
//! Not here: which server to ask, and whether to ask another (`client`).

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::ClientOptions;
use super::ring_view::SharedRing;
use crate::net::TcpStream;
use crate::nodes::Address;
use crate::thrift::codec::{Protocol, ReplyError, read_reply, write_call};
use crate::thrift::dress::{framed, take_frame};
use crate::thrift::method::{Describe, Method};

/// Room made for one read from the socket.
const READ_BYTES: usize = 64 * 1024;

/// A write buffer that a large value has grown past this is given back once it is empty.
const WRITE_BUFFER_KEPT_BYTES: usize = 1024 * 1024;

/// The connection to one server: opened by the first call, opened again by the first call after it was lost.
pub(super) struct Link {
    shared: Arc<Shared>,
}

/// Why a call brought no answer of its method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// Not all of its bytes left this process, so the server did not carry it out.
    NotSent {
        /// Why, in words.
        why: Arc<str>,
        /// True if no attempt was made because the last one failed a moment ago.
        backing_off: bool,
    },
    /// It was sent, and nothing came back. It may or may not have been carried out.
    NoAnswer(Arc<str>),
    /// It was sent, and what came back cannot be read or belongs to another call. As [`Failed::NoAnswer`].
    Garbled(String),
    /// The server does not know the method or could not read its argument. It was not carried out.
    Declined(String),
}

/// What a call does while the server is left alone after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackOff {
    /// Fail at once: there are other servers to ask.
    Skip,
    /// Wait for its end, then try.
    Wait,
}

/// Why a call is not sent to a server that has not answered since an attempt failed.
const UNPROVEN: &str = "not heard from since the last failure";

struct Shared {
    address: Address,
    options: ClientOptions,
    ring: Arc<SharedRing>,
    state: Mutex<State>,
    /// There are frames in the outbox, or the connection is to end.
    news: Notify,
    /// One for each call that may be under way.
    slots: Semaphore,
}

struct State {
    phase: Phase,
    /// Frames in the order of `waiting`, not yet handed to the connection.
    outbox: Vec<u8>,
    /// How many bytes of frames this connection was given, those in the outbox included.
    given_bytes: u64,
    /// Calls without an answer, the oldest first.
    waiting: VecDeque<Waiting>,
    /// Of the last call.
    sequence: i32,
    /// Counts the connections.
    connection: u64,
    /// The connection that a caller found out to be unusable.
    condemned: u64,
    /// This connection has brought an answer.
    answered: bool,
    /// Connections since the last answer that ended without one.
    failures: u32,
    /// Nobody holds the link any more.
    closed: bool,
}

enum Phase {
    /// No connection; the next call opens one.
    Idle,
    /// A task is connecting or connected.
    Running,
    /// The last attempt failed; none is made before `until`.
    BackingOff { until: Instant, why: Arc<str> },
}

struct Waiting {
    /// Where its frame ends in the stream of this connection's bytes.
    frame_end: u64,
    deadline: Instant,
    asker: Asker,
}

enum Asker {
    /// A call of the application.
    Call(oneshot::Sender<Result<Bytes, Failed>>),
    /// The link itself: `describe`, the first call of each connection, so that the client knows the ring.
    Link { sequence: i32 },
}

impl Link {
    pub(super) fn new(address: Address, options: ClientOptions, ring: Arc<SharedRing>) -> Link {
        let state = State {
            phase: Phase::Idle,
            outbox: Vec::new(),
            given_bytes: 0,
            waiting: VecDeque::new(),
            sequence: 0,
            connection: 0,
            condemned: 0,
            answered: false,
            failures: 0,
            closed: false,
        };
        let slots = Semaphore::new(options.calls_per_server_max);
        Link {
            shared: Arc::new(Shared {
                address,
                options,
                ring,
                state: Mutex::new(state),
                news: Notify::new(),
                slots,
            }),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.shared.address
    }

    /// One call. A connection that turns out to have been closed by the server before the call was sent is replaced
    /// once.
    pub(super) async fn call<M: Method>(
        &self,
        request: &M::Request,
        back_off: BackOff,
    ) -> Result<Result<M::Response, M::Thrown>, Failed> {
        let mut was_open = self.is_open();
        loop {
            match self.call_once::<M>(request, back_off).await {
                Err(Failed::NotSent { .. }) if was_open => was_open = false,
                result => return result,
            }
        }
    }

    fn is_open(&self) -> bool {
        let state = self.shared.lock();
        matches!(state.phase, Phase::Running) && state.answered
    }

    async fn call_once<M: Method>(
        &self,
        request: &M::Request,
        back_off: BackOff,
    ) -> Result<Result<M::Response, M::Thrown>, Failed> {
        let (connection, sequence, answer) = self.send::<M>(request, back_off).await?;
        let frame = answer.await.expect("a link answers every call before it ends")?;
        match read_reply::<M>(Protocol::Binary, sequence, &frame) {
            Ok(result) => Ok(result),
            Err(ReplyError::Application(why)) => Err(Failed::Declined(why)),
            Err(error @ (ReplyError::Malformed(_) | ReplyError::OutOfSequence { .. })) => {
                self.shared.condemn(connection);
                Err(Failed::Garbled(error.to_string()))
            }
        }
    }

    async fn send<M: Method>(
        &self,
        request: &M::Request,
        back_off: BackOff,
    ) -> Result<(u64, i32, oneshot::Receiver<Result<Bytes, Failed>>), Failed> {
        let mut waited = false;
        loop {
            let slot = self.shared.slots.acquire().await.expect("the semaphore is never closed");
            let until = {
                let mut state = self.shared.lock();
                match state.backing_off() {
                    None if back_off == BackOff::Skip && state.is_unproven() => {
                        if matches!(state.phase, Phase::Idle) {
                            self.shared.open(&mut state);
                        }
                        return Err(Failed::NotSent { why: UNPROVEN.into(), backing_off: true });
                    }
                    None => {
                        slot.forget(); // given back when the call is answered or has failed
                        if matches!(state.phase, Phase::Idle) {
                            self.shared.open(&mut state);
                        }
                        let (asker, answer) = oneshot::channel();
                        let timeout = self.shared.options.call_timeout;
                        let sequence = state.append::<M>(request, timeout, |_| Asker::Call(asker));
                        let connection = state.connection;
                        drop(state);
                        self.shared.news.notify_one();
                        return Ok((connection, sequence, answer));
                    }
                    Some((_, why)) if back_off == BackOff::Skip || waited => {
                        return Err(Failed::NotSent { why, backing_off: !waited });
                    }
                    Some((until, _)) => until,
                }
            };
            drop(slot);
            sleep_until(until).await;
            waited = true;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.news.notify_one();
    }
}

impl State {
    /// When the next attempt may be made and why the last one failed; `None` if a call can be taken now.
    fn backing_off(&mut self) -> Option<(Instant, Arc<str>)> {
        if let Phase::BackingOff { until, why } = &self.phase {
            if Instant::now() < *until {
                return Some((*until, why.clone()));
            }
            self.phase = Phase::Idle;
        }
        None
    }

    /// The server has not answered since an attempt failed. A new connection alone proves nothing, for that of a frozen
    /// server opens like any other; its first call, the link's own, will.
    fn is_unproven(&self) -> bool {
        self.failures > 0 && !(matches!(self.phase, Phase::Running) && self.answered)
    }

    /// Appends the frame of one call and returns its sequence number.
    fn append<M: Method>(
        &mut self,
        request: &M::Request,
        timeout: Duration,
        asker: impl FnOnce(i32) -> Asker,
    ) -> i32 {
        self.sequence = self.sequence.wrapping_add(1);
        let start = self.outbox.len();
        let sequence = self.sequence;
        framed(&mut self.outbox, |out| write_call::<M>(Protocol::Binary, sequence, request, out));
        self.given_bytes += (self.outbox.len() - start) as u64;
        self.waiting.push_back(Waiting {
            frame_end: self.given_bytes,
            deadline: Instant::now() + timeout,
            asker: asker(self.sequence),
        });
        self.sequence
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    /// Starts the task of a new connection, whose first call asks for the ring.
    fn open(self: &Arc<Self>, state: &mut State) {
        assert!(state.waiting.is_empty());
        assert!(state.outbox.is_empty());
        state.phase = Phase::Running;
        state.connection += 1;
        state.given_bytes = 0;
        state.answered = false;
        state.append::<Describe>(&(), self.options.call_timeout, |sequence| Asker::Link { sequence });
        tokio::spawn(Connection { shared: self.clone(), written_bytes: 0, end: None }.run());
    }

    fn condemn(&self, connection: u64) {
        let mut state = self.lock();
        state.condemned = state.condemned.max(connection);
        drop(state);
        self.news.notify_one();
    }
}

/// What the task of one connection knows. However the task ends, dropping this answers every call.
struct Connection {
    shared: Arc<Shared>,
    /// Bytes of frames that the socket has taken.
    written_bytes: u64,
    end: Option<End>,
}

/// How a connection ended.
struct End {
    why: Arc<str>,
    /// Leave the server alone for a while, even if it has answered before.
    back_off: bool,
}

impl End {
    fn lost(why: &str) -> End {
        End { why: why.into(), back_off: false }
    }

    fn failed(why: &str) -> End {
        End { why: why.into(), back_off: true }
    }
}

impl Connection {
    async fn run(mut self) {
        self.end = match self.connect().await {
            Ok(stream) => Some(self.serve(stream).await),
            Err(end) => Some(end),
        };
    }

    async fn connect(&self) -> Result<TcpStream, End> {
        let Address { host, port } = &self.shared.address;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let patience = self.shared.options.connect_timeout;
        let stream = match timeout(patience, TcpStream::connect((host, *port))).await {
            Err(_) => return Err(End::failed(&format!("no connection within {} ms", patience.as_millis()))),
            Ok(Err(error)) => return Err(End::failed(&describe_io(&error))),
            Ok(Ok(stream)) => stream,
        };
        match stream.set_nodelay(true) {
            Ok(()) => Ok(stream),
            Err(error) => Err(End::failed(&describe_io(&error))),
        }
    }

    /// Writes what callers append and hands them what comes, until the connection ends.
    async fn serve(&mut self, stream: TcpStream) -> End {
        let (mut reader, mut writer) = stream.into_split();
        let mut inbox = BytesMut::new();
        let mut outgoing = Outgoing::default();
        let shared = self.shared.clone();
        let mut alarm = pin!(sleep_until(self.first_deadline().expect("a connection starts with a call")));
        loop {
            if outgoing.is_empty() {
                if self.first_after_silence() {
                    // The server may have closed the connection meanwhile; this lets the runtime look before
                    // anything is written to it.
                    tokio::task::yield_now().await;
                }
                if let Err(end) = self.refill(&mut outgoing) {
                    return end;
                }
            }
            inbox.reserve(READ_BYTES);
            tokio::select! {
                biased;
                read = reader.read_buf(&mut inbox) => match read {
                    Ok(0) => return End::lost("the server closed the connection"),
                    Ok(_) => if let Err(end) = self.deliver(&mut inbox) {
                        return end;
                    },
                    Err(error) => return End::lost(&describe_io(&error)),
                },
                written = writer.write(outgoing.rest()), if !outgoing.is_empty() => match written {
                    Ok(count) => {
                        outgoing.advance(count);
                        self.written_bytes += count as u64;
                    }
                    Err(error) => return End::lost(&describe_io(&error)),
                },
                () = shared.news.notified() => {}
                () = &mut alarm => match self.first_deadline() {
                    Some(deadline) if deadline <= Instant::now() => {
                        let patience = shared.options.call_timeout.as_millis();
                        return End::failed(&format!("no answer within {patience} ms"));
                    }
                    Some(deadline) => alarm.as_mut().reset(deadline),
                    None => alarm.as_mut().reset(Instant::now() + shared.options.call_timeout),
                },
            }
        }
    }

    /// True if there is something to write and every call written before has been answered.
    fn first_after_silence(&self) -> bool {
        self.shared.lock().waiting.front().is_some_and(|oldest| oldest.frame_end > self.written_bytes)
    }

    /// Takes all frames that are ready.
    fn refill(&self, outgoing: &mut Outgoing) -> Result<(), End> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(End::lost("this client was closed"));
        }
        if state.condemned == state.connection {
            return Err(End::failed("the server's answers did not fit the calls"));
        }
        outgoing.take(&mut state.outbox);
        Ok(())
    }

    fn first_deadline(&self) -> Option<Instant> {
        self.shared.lock().waiting.front().map(|oldest| oldest.deadline)
    }

    /// Gives each whole frame in `inbox` to the oldest waiting call.
    fn deliver(&mut self, inbox: &mut BytesMut) -> Result<(), End> {
        let mut freed = 0;
        let mut result = Ok(());
        let mut state = self.shared.lock();
        loop {
            let frame = match take_frame(inbox, self.shared.options.reply_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(too_long) => {
                    result = Err(End::failed(&too_long.to_string()));
                    break;
                }
            };
            let Some(oldest) = state.waiting.pop_front() else {
                result = Err(End::failed("the server sent an answer to no call"));
                break;
            };
            state.answered = true;
            state.failures = 0;
            match oldest.asker {
                Asker::Call(asker) => {
                    freed += 1;
                    let _ = asker.send(Ok(frame.freeze())); // the caller may have stopped waiting
                }
                Asker::Link { sequence } => self.learn_ring(sequence, &frame),
            }
        }
        drop(state);
        self.shared.slots.add_permits(freed);
        result
    }

    fn learn_ring(&self, sequence: i32, frame: &[u8]) {
        if let Ok(Ok(description)) = read_reply::<Describe>(Protocol::Binary, sequence, frame) {
            self.shared.ring.learn(&description);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let end = self.end.take().unwrap_or_else(|| End::failed("this client was shut down"));
        let mut freed = 0;
        let mut state = self.shared.lock();
        state.outbox.clear();
        let unanswered = std::mem::take(&mut state.waiting);
        state.phase = if end.back_off || !state.answered {
            let until = Instant::now() + self.shared.options.back_off(state.failures);
            state.failures += 1;
            Phase::BackingOff { until, why: end.why.clone() }
        } else {
            Phase::Idle
        };
        drop(state);
        for call in unanswered {
            let failed = if call.frame_end <= self.written_bytes {
                Failed::NoAnswer(end.why.clone())
            } else {
                Failed::NotSent { why: end.why.clone(), backing_off: false }
            };
            if let Asker::Call(asker) = call.asker {
                freed += 1;
                let _ = asker.send(Err(failed)); // the caller may have stopped waiting
            }
        }
        self.shared.slots.add_permits(freed);
    }
}

/// Frames on their way into the socket.
#[derive(Default)]
struct Outgoing {
    frames: Vec<u8>,
    written: usize,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.written == self.frames.len()
    }

    fn rest(&self) -> &[u8] {
        &self.frames[self.written..]
    }

    fn advance(&mut self, count: usize) {
        self.written += count;
    }

    /// Swaps buffers with the outbox, so that each is filled while the other empties.
    fn take(&mut self, outbox: &mut Vec<u8>) {
        assert!(self.is_empty());
        self.frames.clear();
        self.written = 0;
        if self.frames.capacity() > WRITE_BUFFER_KEPT_BYTES {
            self.frames = Vec::new();
        }
        std::mem::swap(&mut self.frames, outbox);
    }
}

/// What went wrong with a socket, in words without an error number.
fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection lost".to_owned(),
        io::ErrorKind::TimedOut => "the network gave up".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to that host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "no route to that network".to_owned(),
        _ => error.to_string(),
    }
}
