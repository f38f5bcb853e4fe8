//! One connection: bytes in, calls to the service, answers out. One task each.
//!
//!   socket ─► scratch ─► split ─► codec ─► Service::call ─┬─ Now ───────────────┐
//!                │ half a message                         └─ Later ─► waiting ─► output ─► socket
//!                └─► input, until the rest has come
//!
//! A turn of the task goes once round this picture and on until nothing moves: one read brings many calls, all answers
//! that are ready leave in one write. What must always be true:
//!
//! - Answers leave in the order of the calls, unless the service said that the other side goes by sequence numbers.
//! - A connection at rest holds no buffer. Scratch and output belong to the thread and are borrowed for a turn.
//! - Whatever a sender does or a reader does not do, it costs a bounded amount of memory: calls under way, bytes of
//!   one message, unsent answers, and over all connections [`Limits::buffered`]. Past a bound nothing more is read.
//! - And a bounded amount of time: one heavy answer a turn, however many calls one read brought.
//! - A call that was handed to the service is run to its end, even if nobody is left to hear the answer.
//! - Broken bytes end this connection, after the calls before them have been answered, and nothing else.
//!
//! `limits` are the bounds, `answers` what waits and leaves, `clock` what takes too long.
//!
//! Not here: accepting connections (`server`), what a call means (`service`).

mod answers;
mod clock;
mod limits;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use thrift::ApplicationErrorKind;
use thrift::protocol::{TMessageIdentifier, TMessageType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use self::answers::{Asked, Next, Outcome, Output, UNSENT_BYTES_MAX, Waiting};
use self::clock::{Clock, Late};
use self::limits::Charge;
pub use self::limits::{Budget, Limits};
use super::codec;
use super::dress::{Dress, Split, Splitter};
use super::method::{Call, Reply};
use super::scan::{Bounds, Broken};
use crate::answer::NodeId;
use crate::net::TcpStream;
use crate::stats::Stats;

/// What answers calls.
pub trait Service: Send + Sync + 'static {
    /// Answers a call, or begins to. Must not block: every connection of the thread waits meanwhile. A future that is
    /// returned is polled to its end, unless the server is stopped hard.
    fn call(self: &Arc<Self>, session: &Arc<Session>, call: Call) -> Answering;
}

/// An answer that is there, or will be.
pub enum Answering {
    /// Known at once; the cheapest.
    Now(Reply),
    /// Known at once, but it took long to find, or is large: the other connections of the thread have their turn before
    /// the next call of this one.
    Heavy(Reply, Held),
    /// Known later.
    Later(ReplyFuture),
}

/// Becomes an answer.
pub type ReplyFuture = Pin<Box<dyn Future<Output = (Reply, Held)> + Send>>;

/// What the service holds on to until the answer is bytes: its share of a bound on answers in memory, say.
pub type Held = Option<Box<dyn Send>>;

/// A connection as the service sees it.
#[derive(Debug)]
pub struct Session {
    remote: SocketAddr,
    out_of_order: AtomicBool,
    /// The node that greeted here; `NO_PEER` before.
    peer: AtomicU64,
}

const NO_PEER: u64 = u64::MAX;

impl Session {
    /// A session with whoever is at `remote`. Public so that a service can be called without a connection.
    pub fn new(remote: SocketAddr) -> Session {
        Session { remote, out_of_order: AtomicBool::new(false), peer: AtomicU64::new(NO_PEER) }
    }

    /// Where the other side is.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// From now on answers leave as they come and the larger bound on calls under way holds: the other side tells
    /// answers apart by their sequence numbers.
    pub fn answer_out_of_order(&self) {
        self.out_of_order.store(true, Ordering::Relaxed);
    }

    /// Remembers which node has greeted on this connection.
    pub fn set_peer(&self, node: NodeId) {
        self.peer.store(u64::from(node.0), Ordering::Relaxed);
    }

    /// The node that greeted on this connection; `None` for a client.
    pub fn peer(&self) -> Option<NodeId> {
        u32::try_from(self.peer.load(Ordering::Relaxed)).ok().map(NodeId)
    }

    fn is_out_of_order(&self) -> bool {
        self.out_of_order.load(Ordering::Relaxed)
    }
}

/// Bytes that one read may bring, and half a message beside them.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Half a message up to this goes back into the scratch for the next read; a longer one gets its own buffer, and room
/// in the budget.
const SMALL_HALF_BYTES: usize = 16 * 1024;
/// How much a long half message's buffer grows at once, at least.
const GROWTH_BYTES: usize = 64 * 1024;
/// What [`UNSENT_BYTES_MAX`] is while the budget is spent.
const UNSENT_BYTES_MAX_SPENT: usize = 32 * 1024;
/// Rounds of one turn; then other connections of the thread have theirs.
const ROUNDS_MAX: usize = 4;
/// A longer name is no method's, and would come back in the refusal.
const METHOD_NAME_BYTES_MAX: usize = 256;

/// Whose a connection may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admits {
    /// A client or another server.
    Anybody,
    /// Another server, which greets before it calls.
    Servers,
}

thread_local! {
    /// What connections of this thread read into; empty while one of them does.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Serves one connection until it ends. When `shutdown` becomes true, or its sender is gone, no further call is
/// taken; those under way are answered.
pub async fn serve_connection<S: Service>(
    stream: TcpStream,
    admits: Admits,
    service: Arc<S>,
    limits: Arc<Limits>,
    stats: Arc<Stats>,
    shutdown: watch::Receiver<bool>,
) {
    let Ok(remote) = stream.peer_addr() else { return }; // it has gone again
    let _ = stream.set_nodelay(true); // without it answers are only slower
    let mut connection = Connection::new(stream, remote, admits, service, limits, stats);
    let mut timer = pin!(sleep_until(connection.arm()));
    let mut stopped = pin!(stopped(shutdown));
    loop {
        tokio::select! {
            biased;
            turn = poll_fn(|cx| connection.turn(cx)) => match turn {
                Turn::Closed => break,
                Turn::Rearm => {}
            },
            () = &mut stopped, if !connection.ending => connection.end(),
            () = &mut timer => connection.close_if_late(),
        }
        timer.as_mut().reset(connection.arm());
    }
    connection.finish().await;
}

/// Returns when `shutdown` becomes true, or its sender is gone. Each waiter needs a receiver of its own.
pub(crate) async fn stopped(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Why a turn returned.
enum Turn {
    /// The connection is over.
    Closed,
    /// It waits for something with an earlier deadline than the timer's.
    Rearm,
}

struct Connection<S> {
    stream: TcpStream,
    session: Arc<Session>,
    service: Arc<S>,
    limits: Arc<Limits>,
    stats: Arc<Stats>,
    splitter: Splitter,
    /// What was read and is not a whole message, or may not be taken yet.
    input: BytesMut,
    /// How many bytes the first message of `input` has at least.
    message_bytes_min: usize,
    /// `input` was not looked through to its end, because a bound was met.
    unlooked: bool,
    /// The budget had no room for more of a long message.
    starved: bool,
    /// An answer was heavy: nothing more is taken or fetched in this turn.
    gives_way: bool,
    waiting: Waiting,
    output: Output,
    charge: Charge,
    clock: Clock,
    /// No further call is taken; it closes once all answers are sent.
    ending: bool,
    /// The other side can no longer be read from or written to.
    gone: bool,
}

impl<S: Service> Connection<S> {
    fn new(
        stream: TcpStream,
        remote: SocketAddr,
        admits: Admits,
        service: Arc<S>,
        limits: Arc<Limits>,
        stats: Arc<Stats>,
    ) -> Connection<S> {
        let bounds = Bounds { bytes_max: limits.message_bytes_max, depth_max: limits.message_depth_max };
        let now = Instant::now();
        let mut clock = Clock::new(now, limits.idle_timeout, limits.half_message_timeout);
        clock.greet_by = (admits == Admits::Servers).then(|| now + limits.greeting_timeout);
        Connection {
            stream,
            session: Arc::new(Session::new(remote)),
            service,
            stats,
            splitter: Splitter::new(bounds),
            input: BytesMut::new(),
            message_bytes_min: 0,
            unlooked: false,
            starved: false,
            gives_way: false,
            waiting: Waiting::default(),
            output: Output::default(),
            charge: Charge { limits: limits.clone(), bytes: 0, overdraws: false },
            clock,
            limits,
            ending: false,
            gone: false,
        }
    }

    /// Goes round until nothing moves. Each of the three steps has then either left its waker with what it waits for,
    /// or waits for another of the three.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let mut rounds = 0;
        loop {
            let moved = self.take_calls(cx) | self.gather(cx) | self.send(cx);
            if self.gone || (self.ending && self.waiting.is_empty() && self.output.is_empty()) {
                return Poll::Ready(Turn::Closed);
            }
            if !moved {
                return self.rest(rounds > 0);
            }
            if std::mem::take(&mut self.gives_way) {
                // Not simply woken: a task that wakes itself has its next turn before the sockets are looked at.
                let next_turn = pin!(yield_now()).poll(cx);
                assert!(next_turn.is_pending());
                return self.rest(true);
            }
            rounds += 1;
            if rounds == ROUNDS_MAX {
                cx.waker().wake_by_ref();
                return self.rest(true);
            }
        }
    }

    /// Before the task sleeps: gives the thread's buffers back and notes what is waited for, and since when.
    fn rest(&mut self, moved: bool) -> Poll<Turn> {
        self.output.give_back();
        self.charge_now();
        let now = Instant::now();
        if moved {
            let half = !self.input.is_empty() && !self.unlooked && !self.ending && !self.starved;
            let idle = self.input.is_empty() && self.waiting.is_empty() && self.output.is_empty();
            self.clock.note(now, half, self.output.unsent(), idle);
        }
        if self.clock.wake_at(now, self.starved) < self.clock.armed {
            return Poll::Ready(Turn::Rearm);
        }
        Poll::Pending
    }

    /// Counts what it holds against the budget.
    fn charge_now(&mut self) {
        self.charge.set(self.input.capacity() + self.output.capacity() + self.waiting.known_bytes);
    }

    /// When the timer has to go off next.
    fn arm(&mut self) -> Instant {
        self.clock.armed = self.clock.wake_at(Instant::now(), self.starved);
        self.clock.armed
    }

    fn close_if_late(&mut self) {
        match self.clock.late(Instant::now()) {
            None => {}
            Some(Late::Ungreeted) => self.refuse(),
            Some(Late::Idle) => {
                self.stats.connections_broken.count();
                log::info!("closing the connection from {}: {}", self.session.remote, Late::Idle);
                self.end();
            }
            Some(late) => {
                self.warn(&late);
                self.end();
                self.gone = true;
            }
        }
    }

    fn warn(&self, why: &dyn std::fmt::Display) {
        self.stats.connections_broken.count();
        log::warn!("closing the connection from {}: {why}", self.session.remote);
    }

    /// It is not what it is to be.
    fn refuse(&mut self) {
        self.stats.connections_refused.count();
        self.end();
        self.gone = true;
    }

    /// Takes no further call.
    fn end(&mut self) {
        self.ending = true;
        self.clock.message_ended();
        self.unlooked = false;
        self.starved = false;
        self.input = BytesMut::new();
        self.charge.let_others_overdraw();
    }

    /// Runs what is under way to its end, though nobody hears the answers.
    async fn finish(self) {
        let Connection { stream, mut waiting, charge, input, output, .. } = self;
        drop((stream, input, output, charge));
        while poll_fn(|cx| waiting.poll_next(cx)).await.is_some() {}
    }
}

/// From bytes to calls.
impl<S: Service> Connection<S> {
    /// Takes the calls that are there, reading once if none are; says whether anything came.
    fn take_calls(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ending || self.is_full() {
            return false;
        }
        (self.unlooked && self.look_through_input()) || self.read(cx)
    }

    /// No further call may be taken until answers have left.
    fn is_full(&self) -> bool {
        let calls_max = match self.session.is_out_of_order() {
            true => self.limits.peer_calls_max,
            false => self.limits.calls_per_connection_max,
        };
        let unsent = self.output.unsent() + self.waiting.known_bytes;
        self.waiting.len() >= calls_max
            || unsent >= UNSENT_BYTES_MAX
            || (unsent >= UNSENT_BYTES_MAX_SPENT && !self.limits.buffered.has_room_for(1))
    }

    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let long = self.input.len() > SMALL_HALF_BYTES || self.message_bytes_min > SCRATCH_BYTES;
        let read = if long { self.read_into_input(cx) } else { self.read_into_scratch(cx) };
        match read {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => self.end(),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => {
                log::debug!("the connection from {} broke: {error}", self.session.remote);
                self.gone = true;
            }
        }
        true
    }

    /// The common way: whole messages are taken where they were read, and only the rest is kept.
    fn read_into_scratch(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let mut scratch = SCRATCH.take();
        scratch.resize(SCRATCH_BYTES, 0); // the first time
        let half = self.input.len();
        // While the budget is spent no more is read than may be kept without asking it; then the way of a long message
        // asks.
        let has_room = self.limits.buffered.has_room_for(SCRATCH_BYTES);
        let most = if has_room { SCRATCH_BYTES } else { SMALL_HALF_BYTES + 1 };
        let mut buffer = ReadBuf::new(&mut scratch[half..most]);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
        let came = buffer.filled().len();
        if came > 0 {
            scratch[..half].copy_from_slice(&self.input);
            let taken = self.look_through(&scratch[..half + came]);
            self.input.clear();
            self.keep(&scratch[taken..half + came]);
        }
        SCRATCH.set(scratch);
        read.map_ok(|()| came)
    }

    fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() || self.ending {
            self.input = BytesMut::new();
        } else {
            self.input.extend_from_slice(rest);
        }
    }

    /// The way of a long message: it is read where it stays.
    fn read_into_input(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if self.input.capacity() == self.input.len() && !self.grow_input() {
            return Poll::Pending; // the timer will look again
        }
        let came = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx))?;
        self.look_through_input();
        Poll::Ready(Ok(came))
    }

    /// Doubles the buffer, up to what the message is known to need; so that claiming a long message costs nothing as
    /// long as it is not sent. False: the budget has no room.
    fn grow_input(&mut self) -> bool {
        let missing = self.message_bytes_min.saturating_sub(self.input.len());
        let more = missing.min(self.input.len()).max(GROWTH_BYTES);
        self.starved = !self.charge.may_grow(more);
        if self.starved {
            return false;
        }
        self.input.reserve(more);
        self.charge_now();
        true
    }

    /// Takes the whole messages of `input`; says whether there were any.
    fn look_through_input(&mut self) -> bool {
        let mut input = std::mem::take(&mut self.input);
        let taken = self.look_through(&input);
        if taken > 0 {
            self.charge.let_others_overdraw();
        }
        input.advance(taken);
        if taken >= input.len() {
            self.keep(&input); // a copy, so that a long message's buffer does not outlive it
        } else if !self.ending {
            self.input = input;
        }
        taken > 0
    }

    /// Takes whole messages off `bytes` until none is left or no more may be taken; returns how many bytes they were.
    fn look_through(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        self.unlooked = false;
        self.message_bytes_min = 0;
        while at < bytes.len() && !self.gone {
            if self.gives_way || self.is_full() {
                self.unlooked = true;
                break;
            }
            let taken = match self.splitter.split(&bytes[at..]) {
                Ok(Split::Part { bytes_min }) => {
                    self.message_bytes_min = bytes_min;
                    break;
                }
                Ok(Split::Message { dress, body }) => {
                    let end = body.end;
                    self.clock.message_ended();
                    self.take_message(dress, &bytes[at..][body]).map(|()| end)
                }
                Err(broken) => Err(broken),
            };
            match taken {
                Ok(bytes) => at += bytes,
                Err(broken) => {
                    self.break_off(broken);
                    break;
                }
            }
        }
        at
    }

    fn take_message(&mut self, dress: Dress, message: &[u8]) -> Result<(), Broken> {
        let depth_max = self.limits.message_depth_max;
        let (header, call) = codec::read_message(dress.protocol, message, depth_max, |header, input| {
            let call = Call::read(&header.name, input);
            (header, call)
        })
        .map_err(|error| Broken::NoCall(codec::describe_error(&error)))?;
        check_header(&header)?;
        if self.clock.greet_by.is_some() && !matches!(call, Ok(Some(Call::Greet(_)))) {
            self.refuse();
            return Ok(());
        }
        let oneway = header.message_type == TMessageType::OneWay;
        let asked = Asked { dress, sequence: header.sequence_number, oneway };
        match call {
            Ok(Some(call)) => match self.service.call(&self.session, call) {
                Answering::Now(reply) => self.answer(asked, Outcome::Reply(reply, None)),
                Answering::Heavy(reply, held) => {
                    self.answer(asked, Outcome::Reply(reply, held));
                    self.gives_way = true;
                }
                Answering::Later(future) => self.waiting.run(asked, future, !self.session.is_out_of_order()),
            },
            Ok(None) => self.answer(asked, unknown_method(header.name)),
            Err((_, Some(reply))) => {
                self.stats.requests_invalid.count();
                self.answer(asked, Outcome::Reply(*reply, None));
            }
            Err((error, None)) => {
                self.stats.requests_invalid.count();
                self.answer(asked, unreadable(header.name, &error));
            }
        }
        if self.session.peer().is_some() {
            self.clock.greet_by = None;
        }
        Ok(())
    }

    /// Where the next message starts is not known, so there is none; but the sender is told why, if it can be.
    fn break_off(&mut self, broken: Broken) {
        self.warn(&broken);
        if let Some(dress) = self.splitter.dress() {
            let asked = Asked { dress, sequence: 0, oneway: false };
            let kind = match broken {
                Broken::Transforms => ApplicationErrorKind::InvalidTransform,
                _ => ApplicationErrorKind::ProtocolError,
            };
            self.answer(asked, Outcome::Refused { name: String::new(), kind, why: broken.to_string() });
        }
        self.end();
    }
}

fn check_header(header: &TMessageIdentifier) -> Result<(), Broken> {
    if !matches!(header.message_type, TMessageType::Call | TMessageType::OneWay) {
        return Err(Broken::NoCall("it is a reply".to_owned()));
    }
    if header.name.len() > METHOD_NAME_BYTES_MAX {
        return Err(Broken::NoCall(format!("its method name has {} bytes", header.name.len())));
    }
    Ok(())
}

fn unknown_method(name: String) -> Outcome {
    let why = format!("unknown method '{name}'");
    Outcome::Refused { name, kind: ApplicationErrorKind::UnknownMethod, why }
}

fn unreadable(name: String, error: &thrift::Error) -> Outcome {
    let why = format!("cannot read the request: {}", codec::describe_error(error));
    Outcome::Refused { name, kind: ApplicationErrorKind::ProtocolError, why }
}

/// From answers to bytes.
impl<S: Service> Connection<S> {
    /// Sends an answer that is known, or lines it up behind those of earlier calls.
    fn answer(&mut self, asked: Asked, outcome: Outcome) {
        if self.waiting.line.is_empty() || self.session.is_out_of_order() {
            self.output.write(asked, outcome);
        } else {
            self.waiting.line_up(asked, outcome);
        }
    }

    /// Fetches the answers whose turn has come. While the other side does not take answers none are fetched, so that
    /// they do not pile up here.
    fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while self.output.unsent() < UNSENT_BYTES_MAX && !self.gives_way {
            match self.waiting.poll_next(cx) {
                Poll::Ready(Some(Next::Known(bytes, held))) => self.output.append(&bytes, held),
                Poll::Ready(Some(Next::Come(asked, outcome))) => {
                    // What holds something was large to the service, even if little of it is sent.
                    self.gives_way = matches!(outcome, Outcome::Reply(_, Some(_)));
                    self.output.write(asked, outcome);
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
            moved = true;
        }
        moved
    }

    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        if self.output.is_empty() {
            return false;
        }
        match Pin::new(&mut self.stream).poll_write(cx, self.output.rest()) {
            Poll::Pending => return false,
            Poll::Ready(Ok(bytes)) if bytes > 0 => {
                self.output.sent(bytes);
                self.clock.bytes_sent += bytes as u64;
            }
            Poll::Ready(_) => self.gone = true,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_remembers_its_peer() {
        let session = Session::new("127.0.0.1:9".parse().unwrap());
        assert_eq!(session.peer(), None);
        session.set_peer(NodeId(0));
        assert_eq!(session.peer(), Some(NodeId(0)));
    }
}
