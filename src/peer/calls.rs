//! The calls to one other server: those waiting to be sent and those under way.
//!
//! A call is encoded by whoever makes it, straight into the buffer that the link's task writes next, so what is
//! ready together leaves in one system call and nothing is allocated for a frame. Mutations that follow one another
//! there become one call: it is read, answered and accounted for once. This is plain state behind the link's lock: no
//! await, no socket.
//!
//! What must always be true: a call is in at most one place, so it is answered exactly once; the number of calls,
//! their bytes, and the bytes not yet written are each within their bound.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::frame;
use crate::answer::{AnswerTo, ApplyAnswer, Failure, ReadAnswer};
use crate::thrift::chord::PeerReconciled;

/// Bounds and deadlines of the calls to one server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Calls waiting and under way.
    pub(super) calls_max: usize,
    /// Bytes of those calls, and likewise bytes not yet written.
    pub(super) bytes_max: usize,
    /// Bytes of one call.
    pub(super) call_bytes_max: usize,
    /// Until an apply is given up.
    pub(super) write_timeout: Duration,
    /// Until a read is given up.
    pub(super) read_timeout: Duration,
}

/// What was asked, and where its answer goes.
pub(super) enum Asked {
    /// Mutations of different requests.
    Apply(Vec<AnswerTo<ApplyAnswer>>),
    /// Many mutations.
    ApplyBatch {
        /// How many.
        mutations: usize,
        /// Where the answer goes.
        to: AnswerTo<Result<Vec<ApplyAnswer>, Failure>>,
    },
    /// A slice.
    Read {
        /// When it was asked.
        at: Instant,
        /// Where the answer goes.
        to: AnswerTo<ReadAnswer>,
    },
    /// Something of reconciliation.
    Reconcile(AnswerTo<Result<PeerReconciled, Failure>>),
}

impl Asked {
    /// Answers with a failure.
    pub(super) fn fail(self, failure: Failure) {
        match self {
            Asked::Apply(all) => {
                all.into_iter().for_each(|to| to.send(ApplyAnswer::Failed(failure.clone())));
            }
            Asked::ApplyBatch { to, .. } => to.send(Err(failure)),
            Asked::Read { to, .. } => to.send(ReadAnswer::Failed(failure)),
            Asked::Reconcile(to) => to.send(Err(failure)),
        }
    }

    /// How many answers there are to give.
    pub(super) fn count(&self) -> usize {
        match self {
            Asked::Apply(all) => all.len(),
            Asked::ApplyBatch { .. } | Asked::Read { .. } | Asked::Reconcile(_) => 1,
        }
    }

    fn is_read(&self) -> bool {
        matches!(self, Asked::Read { .. })
    }
}

/// Bytes of a call that further mutations may join: enough to make its own cost small, few enough to be answered soon.
const JOINED_BYTES_MAX: usize = 65_536;

/// Mutations of one such call: its bound when they are tiny.
const JOINED_MAX: usize = 256;

/// How much later than the first of them a mutation may join: its deadline is that of the first.
const JOINED_WITHIN: Duration = Duration::from_millis(5);

/// Sequence numbers on the wire are the low 31 bits of a call's number, so they stay positive.
const SEQUENCE_MASK: u64 = 0x7fff_ffff;

/// The sequence number of greetings and heartbeats, which are no calls.
pub(super) const OWN_SEQUENCE: i32 = 0;

/// See the module head.
pub(super) struct Calls {
    limits: Limits,
    door: Door,
    /// Encoded and waiting for the link's task.
    frames: Vec<u8>,
    /// The last of the frames, if mutations may join it.
    joinable: Option<Joinable>,
    /// Bytes that the link's task has taken and is writing.
    writing: usize,
    /// The number of the next call. Numbers only rise, so each map below is in the order of the deadlines.
    next: u64,
    writes: BTreeMap<u64, Call>,
    reads: BTreeMap<u64, Call>,
    /// Of all calls in the two maps.
    bytes: usize,
    /// Those who wait for them.
    asked: usize,
}

/// An apply that was not taken to be written yet.
#[derive(Clone, Copy)]
struct Joinable {
    number: u64,
    /// Where in the frames it begins.
    start: usize,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// There is a greeted connection.
    Open,
    /// There is none now.
    Closed,
    /// There will be none any more.
    Shut,
}

struct Call {
    asked: Asked,
    deadline: Instant,
    bytes: usize,
}

impl Calls {
    /// None yet, and no connection.
    pub(super) fn new(limits: Limits) -> Calls {
        Calls {
            limits,
            door: Door::Closed,
            frames: Vec::new(),
            joinable: None,
            writing: 0,
            next: 1,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            bytes: 0,
            asked: 0,
        }
    }

    /// How many requests are waiting or under way.
    pub(super) fn len(&self) -> usize {
        self.asked
    }

    /// Bytes not yet written.
    pub(super) fn unwritten(&self) -> usize {
        self.frames.len() + self.writing
    }

    /// There is a connection from now on.
    pub(super) fn open(&mut self) {
        assert_eq!(self.len(), 0);
        if self.door == Door::Closed {
            self.door = Door::Open;
        }
    }

    /// There is no connection any more. Returns all calls: they must be answered.
    pub(super) fn close(&mut self) -> Vec<Asked> {
        if self.door == Door::Open {
            self.door = Door::Closed;
        }
        self.frames = Vec::new();
        self.joinable = None;
        self.writing = 0;
        (self.bytes, self.asked) = (0, 0);
        let writes = std::mem::take(&mut self.writes).into_values();
        let reads = std::mem::take(&mut self.reads).into_values();
        writes.chain(reads).map(|call| call.asked).collect()
    }

    /// There will be no connection any more. Returns all calls: they must be answered.
    pub(super) fn shut(&mut self) -> Vec<Asked> {
        self.door = Door::Shut;
        self.close()
    }

    /// Takes a call of at most `bytes` encoded bytes, which `encode` appends to the frames. `Ok(true)`: the link's
    /// task must be woken. `Err`: not taken, and why.
    pub(super) fn push(
        &mut self,
        now: Instant,
        asked: Asked,
        bytes: usize,
        encode: impl FnOnce(i32, &mut Vec<u8>),
    ) -> Result<bool, (Asked, Failure)> {
        if let Some(failure) = self.refusal(bytes) {
            return Err((asked, failure));
        }
        if self.next & SEQUENCE_MASK == OWN_SEQUENCE as u64 {
            self.next += 1;
        }
        let number = self.next;
        self.next += 1;
        self.joinable = None;
        let wake = self.frames.is_empty();
        encode((number & SEQUENCE_MASK) as i32, &mut self.frames);
        let (calls, timeout) = if asked.is_read() {
            (&mut self.reads, self.limits.read_timeout)
        } else {
            (&mut self.writes, self.limits.write_timeout)
        };
        self.bytes += bytes;
        self.asked += asked.count();
        calls.insert(number, Call { asked, deadline: now + timeout, bytes });
        assert!(self.len() <= self.limits.calls_max);
        assert!(self.bytes <= self.limits.bytes_max);
        Ok(wake)
    }

    /// As `push`, of one mutation: into the apply before it, if it may join that, or as a call of its own.
    pub(super) fn push_apply(
        &mut self,
        now: Instant,
        to: AnswerTo<ApplyAnswer>,
        epoch: u64,
        mutation: &Bytes,
    ) -> Result<bool, (Asked, Failure)> {
        let mutations = std::slice::from_ref(mutation);
        let Some(joinable) = self.joinable.filter(|call| self.may_join(call, now, mutation)) else {
            let start = self.frames.len();
            let wake =
                self.push(now, Asked::Apply(vec![to]), frame::apply_bytes(mutations), |sequence, out| {
                    frame::write_apply(sequence, epoch, mutations, out);
                })?;
            self.joinable = Some(Joinable { number: self.next - 1, start, since: now });
            return Ok(wake);
        };
        let call = self.writes.get_mut(&joinable.number).expect("it is not being written yet");
        let Asked::Apply(all) = &mut call.asked else { unreachable!("only applies are joined") };
        all.push(to);
        let before = self.frames.len();
        frame::join_apply(joinable.start, mutation, &mut self.frames);
        let more = self.frames.len() - before;
        call.bytes += more;
        self.bytes += more;
        self.asked += 1;
        Ok(false)
    }

    fn may_join(&self, call: &Joinable, now: Instant, mutation: &Bytes) -> bool {
        let bytes = frame::joined_bytes(mutation);
        let Some(Call { asked: Asked::Apply(all), .. }) = self.writes.get(&call.number) else {
            return false; // its deadline has passed
        };
        self.refusal(bytes).is_none()
            && all.len() < JOINED_MAX
            && self.frames.len() - call.start + bytes <= JOINED_BYTES_MAX.min(self.limits.call_bytes_max)
            && now.duration_since(call.since) <= JOINED_WITHIN
    }

    fn refusal(&self, bytes: usize) -> Option<Failure> {
        let limits = &self.limits;
        if self.door != Door::Open {
            return Some(Failure::Unreachable);
        }
        if bytes > limits.call_bytes_max {
            let why = format!("a message of {bytes} bytes is more than message_bytes_max");
            return Some(Failure::Refused(why.into()));
        }
        let full = self.len() >= limits.calls_max
            || self.bytes + bytes > limits.bytes_max
            || self.unwritten() + bytes > limits.bytes_max;
        full.then_some(Failure::Overloaded)
    }

    /// Appends a frame that is no call: a heartbeat. It is not counted against the bounds.
    pub(super) fn push_own(&mut self, encode: impl FnOnce(i32, &mut Vec<u8>)) {
        self.joinable = None;
        encode(OWN_SEQUENCE, &mut self.frames);
    }

    /// Moves the waiting frames into `out`, which must have been written to its end.
    pub(super) fn take_frames(&mut self, out: &mut Vec<u8>) {
        out.clear();
        if out.capacity() > super::frame::KEPT_BYTES_MAX {
            *out = Vec::new();
        }
        self.joinable = None;
        std::mem::swap(&mut self.frames, out);
        self.writing = out.len();
    }

    /// The call whose reply has this sequence number; `None`: it was given up, or never made.
    pub(super) fn answered(&mut self, sequence: i32) -> Option<Asked> {
        let number = number_of(self.next, sequence)?;
        let call = self.writes.remove(&number).or_else(|| self.reads.remove(&number))?;
        self.bytes -= call.bytes;
        self.asked -= call.asked.count();
        Some(call.asked)
    }

    /// Takes out the calls whose deadline has passed.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Asked> {
        let mut overdue = Vec::new();
        for calls in [&mut self.writes, &mut self.reads] {
            while let Some(first) = calls.first_entry()
                && first.get().deadline <= now
            {
                let call = first.remove();
                self.bytes -= call.bytes;
                self.asked -= call.asked.count();
                overdue.push(call.asked);
            }
        }
        overdue
    }
}

/// The largest number below `next` whose low 31 bits are `sequence`. Calls under way are far fewer than 2^31, so it
/// is the one meant.
fn number_of(next: u64, sequence: i32) -> Option<u64> {
    let sequence = u64::try_from(sequence).ok()?;
    let back = next.wrapping_sub(sequence) & SEQUENCE_MASK;
    let back = if back == 0 { SEQUENCE_MASK + 1 } else { back };
    next.checked_sub(back)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Answers, NodeId};

    const LIMITS: Limits = Limits {
        calls_max: 3,
        bytes_max: 100,
        call_bytes_max: 60,
        write_timeout: Duration::from_millis(20),
        read_timeout: Duration::from_millis(10),
    };

    struct Asker {
        calls: Calls,
        answers: Answers<ApplyAnswer>,
        now: Instant,
    }

    impl Asker {
        fn new() -> Asker {
            let mut calls = Calls::new(LIMITS);
            calls.open();
            Asker { calls, answers: Answers::default(), now: Instant::now() }
        }

        /// The sequence number of a call of `bytes` bytes, or why it was not taken.
        fn push(&mut self, bytes: usize) -> Result<i32, Failure> {
            let asked = Asked::Apply(vec![self.answers.expect(NodeId(1))]);
            let mut given = 0;
            let pushed = self.calls.push(self.now, asked, bytes, |sequence, out| {
                given = sequence;
                out.resize(out.len() + bytes, 0);
            });
            pushed.map(|_| given).map_err(|(_, failure)| failure)
        }
    }

    #[test]
    fn calls_past_a_bound_are_refused_and_answered_ones_make_room() {
        let mut asker = Asker::new();
        assert!(matches!(asker.push(61), Err(Failure::Refused(_))));
        let first = asker.push(60).unwrap();
        assert_eq!(asker.push(41), Err(Failure::Overloaded));
        asker.push(20).unwrap();
        asker.push(20).unwrap();
        assert_eq!(asker.push(0), Err(Failure::Overloaded));
        assert!(asker.calls.answered(first).is_some());
        assert!(asker.calls.answered(first).is_none());
        assert_eq!(asker.push(60), Err(Failure::Overloaded)); // answered, but its bytes are not written yet
        let mut out = Vec::new();
        asker.calls.take_frames(&mut out);
        assert_eq!((out.len(), asker.calls.unwritten()), (100, 100));
        asker.calls.take_frames(&mut out);
        assert_eq!((out.len(), asker.calls.unwritten()), (0, 0));
        asker.push(60).unwrap();
    }

    #[test]
    fn mutations_join_the_call_before_them_while_it_waits_and_there_is_room() {
        let mut asker = Asker::new();
        asker.calls.limits =
            Limits { calls_max: 1_000, bytes_max: 200_000, call_bytes_max: 150_000, ..LIMITS };
        let mutation = Bytes::from_static(b"mutation");
        let push = |asker: &mut Asker, mutation: &Bytes, at| {
            let to = asker.answers.expect(NodeId(1));
            asker.calls.push_apply(at, to, 7, mutation).unwrap_or_else(|(_, failure)| panic!("{failure}"))
        };
        let now = asker.now;
        let wakes = [0; 3].map(|_| push(&mut asker, &mutation, now));
        assert_eq!(wakes, [true, false, false]);
        let mut expected = Vec::new();
        frame::write_apply(1, 7, &[mutation.clone(), mutation.clone(), mutation.clone()], &mut expected);
        assert_eq!(asker.calls.frames, expected);

        let numbers = |asker: &Asker| asker.calls.writes.keys().copied().collect::<Vec<_>>();
        push(&mut asker, &mutation, now + JOINED_WITHIN * 2);
        assert_eq!(numbers(&asker), [1, 2], "too late");
        asker.calls.push_own(|_, out| out.push(0));
        push(&mut asker, &mutation, now);
        assert_eq!(numbers(&asker), [1, 2, 3], "another frame between them");
        asker.calls.take_frames(&mut Vec::new());
        push(&mut asker, &mutation, now);
        assert_eq!(numbers(&asker), [1, 2, 3, 4], "the frame is being written");
        push(&mut asker, &Bytes::from(vec![1; JOINED_BYTES_MAX]), now);
        assert_eq!(numbers(&asker), [1, 2, 3, 4, 5], "too long");
        for _ in 0..JOINED_MAX {
            push(&mut asker, &mutation, now);
        }
        assert_eq!(numbers(&asker), [1, 2, 3, 4, 5, 6]);
        push(&mut asker, &mutation, now);
        assert_eq!(numbers(&asker), [1, 2, 3, 4, 5, 6, 7], "too many");

        assert_eq!(asker.calls.len(), asker.answers.due());
        assert_eq!(asker.calls.answered(1).map(|asked| asked.count()), Some(3));
        assert_eq!(asker.calls.overdue(now + LIMITS.write_timeout * 2).len(), 6);
        assert_eq!((asker.calls.len(), asker.calls.bytes), (0, 0));
    }

    #[test]
    fn only_the_first_frame_of_a_batch_wakes_the_writer() {
        let mut asker = Asker::new();
        let mut answers: Answers<ReadAnswer> = Answers::default();
        let mut wakes = Vec::new();
        for _ in 0..2 {
            let asked = Asked::Read { at: asker.now, to: answers.expect(NodeId(1)) };
            wakes.push(asker.calls.push(asker.now, asked, 1, |_, out| out.push(0)).ok().unwrap());
        }
        assert_eq!(wakes, [true, false]);
    }

    #[tokio::test]
    async fn overdue_calls_are_taken_out_in_time_and_once() {
        let mut asker = Asker::new();
        let mut reads: Answers<ReadAnswer> = Answers::default();
        let write = asker.push(10).unwrap();
        let asked = Asked::Read { at: asker.now, to: reads.expect(NodeId(1)) };
        asker.calls.push(asker.now, asked, 10, |_, out| out.push(0)).ok().unwrap();
        let after = |ms| asker.now + Duration::from_millis(ms);
        assert_eq!(asker.calls.overdue(after(9)).len(), 0);
        assert!(asker.calls.overdue(after(10)).pop().unwrap().is_read());
        assert_eq!(asker.calls.overdue(after(19)).len(), 0);
        assert_eq!(asker.calls.overdue(after(20)).len(), 1);
        assert!(asker.calls.answered(write).is_none());
        assert_eq!((asker.calls.len(), asker.calls.bytes), (0, 0));
    }

    #[test]
    fn without_a_connection_nothing_is_taken_and_after_the_end_none_opens() {
        let mut asker = Asker::new();
        asker.push(10).unwrap();
        assert_eq!(asker.calls.close().len(), 1);
        assert_eq!((asker.calls.len(), asker.calls.unwritten()), (0, 0));
        assert_eq!(asker.push(10), Err(Failure::Unreachable));
        asker.calls.open();
        asker.push(10).unwrap();
        assert_eq!(asker.calls.shut().len(), 1);
        asker.calls.open();
        assert_eq!(asker.push(10), Err(Failure::Unreachable));
    }

    #[test]
    fn sequence_numbers_wrap_and_skip_the_one_of_the_heartbeats() {
        let mut asker = Asker::new();
        asker.calls.next = SEQUENCE_MASK;
        let sequences: Vec<i32> = (0..3).map(|_| asker.push(1).unwrap()).collect();
        assert_eq!(sequences, [i32::MAX, 1, 2]);
        for sequence in [2, i32::MAX, 1] {
            assert!(asker.calls.answered(sequence).is_some(), "{sequence}");
        }
        for never_made in [0, 3, -1, i32::MIN, i32::MAX] {
            assert!(asker.calls.answered(never_made).is_none(), "{never_made}");
        }
    }
}
