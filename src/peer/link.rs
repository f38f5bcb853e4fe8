//! One task for each other server: dial, greet, then many calls over one connection, for ever.
//!
//! ```text
//!   dial ──► greet ──► converse: ◄─ answers │ frames ─► │ every tick: heartbeat, deadlines, is it silent?
//!     ▲        │           │
//!     │        ▼ refused   ▼ connection lost, silent, damaged
//!     └── wait a little ◄──┘ every call under way is answered `connection lost`
//! ```
//!
//! Callers on any thread leave encoded frames in [`Calls`] and wake the task; it writes all there are at once.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Standpoint;
use super::calls::{Asked, Calls, Limits, OWN_SEQUENCE};
use super::frame::{self, Inbox};
use super::greeting::{Identity, check_welcome};
use super::reply::{self, Damaged};
use crate::answer::{AnswerTo, ApplyAnswer, Failure, NodeId};
use crate::cell::Stamp;
use crate::clock::Clock;
use crate::config::Config;
use crate::cut::Cut;
use crate::membership::{Event, Members, State, liveness};
use crate::net::TcpStream;
use crate::stats::Stats;
use crate::thrift::chord::PeerPing;
use crate::thrift::codec::{self, Protocol, ReplyError};
use crate::thrift::method::{Greet, Ping};

/// Until a server that said no, or sent what makes no sense, is dialled again: it takes a person to change that.
const RETRY_REFUSED: Duration = Duration::from_secs(1);

/// Bytes by which a frame that comes may exceed `message_bytes_max`: headers around what was within it.
const FRAME_SLACK_BYTES: usize = 65_536;

/// The way to one other server. Shared by its task and by all who call.
pub(super) struct Link {
    pub(super) me: Arc<Identity>,
    pub(super) node: NodeId,
    /// host:port.
    pub(super) address: String,
    pub(super) timing: Timing,
    /// Bytes of one frame that may come.
    pub(super) frame_bytes_max: usize,
    pub(super) clock: Arc<Clock>,
    pub(super) members: Arc<Members>,
    pub(super) stats: Arc<Stats>,
    /// Whether the other server can be heard.
    pub(super) cut: Cut,
    pub(super) calls: Mutex<Calls>,
    /// Frames wait to be written.
    pub(super) ready: Notify,
    /// The other server has greeted: it can be reached now.
    pub(super) greeted: Notify,
    /// The first attempt to reach it has ended, well or not.
    pub(super) attempted: AtomicBool,
    /// Of reads, smoothed; 0: not known. Written by the task alone.
    pub(super) latency_us: AtomicU64,
}

/// The link's times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Between two heartbeats.
    pub(super) heartbeat: Duration,
    /// Between two looks at deadlines and silence.
    pub(super) tick: Duration,
    /// To open a connection and greet.
    pub(super) connect_timeout: Duration,
    /// Between two attempts to do so.
    pub(super) reconnect: Duration,
}

/// Why there is no connection, and when to try again.
struct NotConnected {
    why: String,
    retry: Duration,
}

/// Why a connection ended.
pub(super) enum Ended {
    /// It broke.
    Lost(String),
    /// The other server is Down by its silence; `Members` knows.
    Silent,
    /// What came makes no sense.
    Damaged(String),
}

impl From<Damaged> for Ended {
    fn from(damaged: Damaged) -> Ended {
        Ended::Damaged(damaged.to_string())
    }
}

impl Link {
    /// The way to `node`, on which nothing has been tried yet.
    pub(super) fn new(standpoint: &Standpoint, node: NodeId, address: String, config: &Config) -> Link {
        let Standpoint { identity, members, clock, stats, cut } = standpoint;
        Link {
            me: identity.clone(),
            node,
            address,
            timing: timing(config),
            frame_bytes_max: config.message_bytes_max + FRAME_SLACK_BYTES,
            clock: clock.clone(),
            members: members.clone(),
            stats: stats.clone(),
            cut: cut.clone(),
            calls: Mutex::new(Calls::new(limits(config))),
            ready: Notify::new(),
            greeted: Notify::new(),
            attempted: AtomicBool::new(false),
            latency_us: AtomicU64::new(0),
        }
    }

    /// Queues a call of at most `bytes` encoded bytes, or answers at once why not.
    pub(super) fn ask(&self, asked: Asked, bytes: usize, encode: impl FnOnce(i32, &mut Vec<u8>)) {
        let pushed = self.calls().push(Instant::now(), asked, bytes, encode);
        self.pushed(pushed);
    }

    /// Queues one mutation, or answers at once why not.
    pub(super) fn ask_to_apply(&self, to: AnswerTo<ApplyAnswer>, epoch: u64, mutation: &Bytes) {
        let pushed = self.calls().push_apply(Instant::now(), to, epoch, mutation);
        self.pushed(pushed);
    }

    fn pushed(&self, pushed: Result<bool, (Asked, Failure)>) {
        match pushed {
            Ok(true) => self.ready.notify_one(),
            Ok(false) => {} // the task has been woken for the frame before this one
            Err((asked, failure)) => self.fail([asked], failure),
        }
    }

    /// Ends the link: no call is taken any more, and those under way are abandoned.
    pub(super) fn shut(&self) {
        let asked = self.calls().shut();
        self.fail(asked, Failure::Abandoned);
    }

    /// The task. Never ends by itself.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let dialled = self.ticking(self.dial()).await;
            match dialled {
                Ok((stream, inbox)) => {
                    let wait = self.live(stream, inbox).await;
                    self.ticking(sleep(wait)).await;
                }
                Err(NotConnected { why, retry }) => {
                    self.members.note(self.node, Event::Refused { why });
                    self.attempted.store(true, Ordering::Release);
                    self.ticking(self.until_greeted(retry)).await;
                }
            }
        }
    }

    /// Waits, but not once the other server has greeted: then it is there.
    async fn until_greeted(&self, wait: Duration) {
        tokio::select! {
            biased; // a server that has just greeted is there
            () = self.greeted.notified() => {}
            () = sleep(wait) => {}
        }
    }

    /// Awaits `work`, while time passes for `Members`.
    async fn ticking<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(self.timing.tick) => {
                    self.members.note(self.node, Event::Tick);
                }
            }
        }
    }

    /// Opens a connection and greets.
    async fn dial(&self) -> Result<(TcpStream, Inbox), NotConnected> {
        let within_ms = self.timing.connect_timeout.as_millis();
        let deadline = Instant::now() + self.timing.connect_timeout;
        let late = |what: &str| self.soon(format!("no {what} within {within_ms} ms"));
        let mut stream = timeout_at(deadline, TcpStream::connect(self.address.as_str()))
            .await
            .map_err(|_| late("connection"))?
            .map_err(|error| self.soon(in_words(&error)))?;
        let mut inbox = Inbox::new(self.frame_bytes_max);
        let generation = timeout_at(deadline, self.greet(&mut stream, &mut inbox))
            .await
            .map_err(|_| late("answer to the greeting"))??;

        self.stats.peer_connections.count();
        self.latency_us.store(0, Ordering::Relaxed);
        self.calls().open(); // before it is Up: whoever sees it Up can ask
        self.members.note(self.node, Event::Connected { generation });
        self.attempted.store(true, Ordering::Release);
        Ok((stream, inbox))
    }

    /// Returns the other server's generation.
    async fn greet(&self, stream: &mut TcpStream, inbox: &mut Inbox) -> Result<i64, NotConnected> {
        stream.set_nodelay(true).map_err(|error| self.soon(in_words(&error)))?;
        let mut hello = Vec::new();
        let request = self.me.hello(self.node, self.clock.latest());
        frame::write_call::<Greet>(OWN_SEQUENCE, &request, &mut hello);
        stream.write_all(&hello).await.map_err(|error| self.soon(in_words(&error)))?;

        let no_server = |why: String| NotConnected {
            why: format!(
                "what answers at {} is no server of this kind ({why}); check nodes.txt",
                self.address
            ),
            retry: RETRY_REFUSED,
        };
        self.cut.whole(self.node).await;
        let message = loop {
            if let Some(message) = inbox.next().map_err(|error| no_server(error.to_string()))? {
                break message;
            }
            match inbox.fill(stream).await {
                Ok(0) => return Err(self.soon("connection closed instead of a welcome".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(self.soon(in_words(&error))),
            }
        };
        let welcome = match codec::read_reply::<Greet>(Protocol::Binary, OWN_SEQUENCE, &message) {
            Ok(Ok(welcome)) => welcome,
            Ok(Err(nothing)) => match nothing {},
            Err(error) => return Err(no_server(error.to_string())),
        };
        let generation = check_welcome(&self.me, self.node, &welcome)
            .map_err(|why| NotConnected { why, retry: RETRY_REFUSED })?;
        self.observe(welcome.clock.map(Stamp));
        Ok(generation)
    }

    fn soon(&self, why: String) -> NotConnected {
        NotConnected { why, retry: self.timing.reconnect }
    }

    /// Serves a greeted connection until it ends. Returns how long to wait before the next.
    async fn live(&self, stream: TcpStream, inbox: Inbox) -> Duration {
        let opened = Instant::now();
        let ended = self.converse(stream, inbox).await;
        let asked = self.calls().close();
        let wait = match ended {
            Ended::Lost(why) => {
                self.members.note(self.node, Event::Lost { why });
                // At once, unless it breaks as often as it is opened.
                if opened.elapsed() < self.timing.reconnect { self.timing.reconnect } else { Duration::ZERO }
            }
            Ended::Silent => Duration::ZERO,
            Ended::Damaged(why) => {
                self.members.note(self.node, Event::Refused { why });
                RETRY_REFUSED
            }
        };
        self.fail(asked, Failure::ConnectionLost);
        wait
    }

    async fn converse(&self, stream: TcpStream, mut inbox: Inbox) -> Ended {
        let (mut reader, mut writer) = stream.into_split();
        let mut out = Vec::new();
        let mut written = 0;
        let mut heartbeat_at = Instant::now();
        let mut tick = pin!(sleep_until(heartbeat_at));
        loop {
            if written == out.len() {
                written = 0;
                self.calls().take_frames(&mut out);
            }
            // Reading comes first, so that an answer that is there is not overtaken by its deadline.
            tokio::select! {
                biased;
                read = inbox.fill(&mut reader), if !self.cut.holds(self.node) => match read {
                    Ok(0) => return Ended::Lost("connection closed".to_owned()),
                    Ok(_) => if let Err(ended) = self.take_in(&mut inbox) { return ended },
                    Err(error) => return Ended::Lost(in_words(&error)),
                },
                wrote = writer.write(&out[written..]), if written < out.len() => match wrote {
                    Ok(0) => return Ended::Lost("connection closed".to_owned()),
                    Ok(bytes) => written += bytes,
                    Err(error) => return Ended::Lost(in_words(&error)),
                },
                () = self.ready.notified(), if written == out.len() => {}
                () = &mut tick => {}
            }
            // By the time and not by the branch taken, so that no flood of answers can hold up deadlines.
            let now = Instant::now();
            if now >= tick.deadline() {
                tick.as_mut().reset(now + self.timing.tick);
                if self.tick(now, &mut heartbeat_at) == State::Down {
                    return Ended::Silent;
                }
            }
        }
    }

    /// Bytes have come: a sign of life, and perhaps replies.
    pub(super) fn take_in(&self, inbox: &mut Inbox) -> Result<(), Ended> {
        self.members.note(self.node, Event::Heard);
        while let Some(message) = inbox.next().map_err(|error| Ended::Damaged(error.to_string()))? {
            self.reply(&message)?;
        }
        Ok(())
    }

    fn reply(&self, message: &[u8]) -> Result<(), Damaged> {
        let sequence = codec::reply_sequence(Protocol::Binary, message)
            .map_err(|error| Damaged(codec::describe_error(&error)))?;
        if sequence == OWN_SEQUENCE {
            return self.pong(message);
        }
        let answered = self.calls().answered(sequence);
        let Some(asked) = answered else { return Ok(()) }; // too late: its deadline has passed
        if let Asked::Read { at, .. } = asked {
            self.note_latency(at.elapsed());
        }
        let asked_for = asked.count();
        let aside = reply::answer(asked, sequence, message).inspect_err(|_| self.count_failed(asked_for))?;
        self.observe(aside.clock);
        self.count_failed(aside.failed);
        Ok(())
    }

    fn pong(&self, message: &[u8]) -> Result<(), Damaged> {
        match codec::read_reply::<Ping>(Protocol::Binary, OWN_SEQUENCE, message) {
            Ok(Ok(pong)) => {
                self.observe(pong.clock.map(Stamp));
                self.members.note_writable(self.node, pong.not_writable.as_deref().unwrap_or_default());
                Ok(())
            }
            Ok(Err(nothing)) => match nothing {},
            Err(ReplyError::Application(_)) => Ok(()), // it refuses to be pinged, but it lives
            Err(error) => Err(Damaged(error.to_string())),
        }
    }

    /// Deadlines, heartbeat, silence. Returns the state of the other server.
    fn tick(&self, now: Instant, heartbeat_at: &mut Instant) -> State {
        let overdue = self.calls().overdue(now);
        for asked in &overdue {
            if let Asked::Read { at, .. } = asked {
                self.note_latency(now - *at); // or a server that answers nothing would look fast
            }
        }
        self.fail(overdue, Failure::TimedOut);
        if now >= *heartbeat_at {
            *heartbeat_at = now + self.timing.heartbeat;
            let ping = PeerPing::new(self.clock.latest().0);
            self.calls().push_own(|sequence, out| frame::write_call::<Ping>(sequence, &ping, out));
        }
        self.members.note(self.node, Event::Tick)
    }

    fn observe(&self, clock: Option<Stamp>) {
        if let Some(clock) = clock {
            self.clock.observe_told(clock);
        }
    }

    fn note_latency(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX));
        let smoothed = match self.latency_us.load(Ordering::Relaxed) {
            0 => took_us,
            known => (known * 7 + took_us).div_ceil(8),
        };
        self.latency_us.store(smoothed, Ordering::Relaxed);
    }

    /// Answers outside the lock: answering wakes others.
    pub(super) fn fail(&self, asked: impl IntoIterator<Item = Asked>, failure: Failure) {
        for asked in asked {
            self.count_failed(asked.count());
            asked.fail(failure.clone());
        }
    }

    fn count_failed(&self, more: usize) {
        if more > 0 {
            self.stats.peer_calls_failed.add(more as u64);
        }
    }

    pub(super) fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("no panic while it is held")
    }
}

fn timing(config: &Config) -> Timing {
    Timing {
        heartbeat: config.heartbeat(),
        tick: liveness::Settings::of(config).tick,
        connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        reconnect: Duration::from_millis(config.reconnect_ms),
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        calls_max: config.peer_calls_max,
        bytes_max: config.peer_queue_bytes_max,
        call_bytes_max: config.message_bytes_max,
        write_timeout: config.write_timeout(),
        read_timeout: config.read_timeout(),
    }
}

/// "connection refused", not "Connection refused (os error 111)".
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::BrokenPipe => "connection closed".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => error.to_string(),
    }
}
