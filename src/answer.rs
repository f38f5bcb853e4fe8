//! What a replica says to a request, and where the answers of one request meet.
//!
//! Whoever asks makes one [`Answers`], hands an [`AnswerTo`] to each replica asked, and awaits them one by one.
//! Every `AnswerTo` yields exactly one answer: dropping it unsent answers [`Failure::Abandoned`], so a request never
//! waits for somebody who has gone. Answers that come after the request is done are handed over ([`Late`]).
//! Counting answers is the coordinator's business (`coordinator`).

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

use bytes::Bytes;

use crate::cell::{Cell, Stamp};

/// Which server: the index of its line in `nodes.txt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A replica's answer to a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyAnswer {
    /// Durable in its log, and the newest it has; of what was no client's write perhaps not the newest.
    Applied,
    /// Durable in its log, but for at least one cell it holds one that wins: the largest such stamp.
    Behind(Stamp),
    /// No acknowledgement.
    Failed(Failure),
}

/// A replica's answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadAnswer {
    /// Its cells.
    Cells {
        /// In column order, tombstones and expired ones included.
        cells: Vec<(Bytes, Cell)>,
        /// False: the bound of the slice cut them off; there are more behind the last one.
        complete: bool,
    },
    /// No answer.
    Failed(Failure),
}

/// Why a replica did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection; the request was not sent.
    #[error("unreachable")]
    Unreachable,
    /// The connection broke after the request was sent. It may or may not have been carried out.
    #[error("connection lost")]
    ConnectionLost,
    /// No answer within the deadline. It may yet be carried out.
    #[error("no answer in time")]
    TimedOut,
    /// A queue on the way was full; the request was not sent or not taken. Nothing was stored.
    #[error("overloaded")]
    Overloaded,
    /// The replica said no and why (disk full, another ring …). Nothing was stored.
    #[error("{0}")]
    Refused(Arc<str>),
    /// The mutation's stamp, which a client chose, is older than deletions that were collected or are about to be.
    /// Nothing was stored, and nothing will be however often it is sent.
    #[error(
        "the stamp is older than deletions that were collected, or are about to be; use one above {above}"
    )]
    TooOld {
        /// No stamp up to this one is taken.
        above: Stamp,
    },
    /// Whoever was to answer went away: it is shutting down, or its log failed in the middle of a commit. It may or
    /// may not have been carried out.
    #[error("gone without an answer")]
    Abandoned,
}

impl Failure {
    /// True if the replica may take the mutation another time.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Failure::TooOld { .. })
    }

    /// True if the mutation is certainly not stored on that replica.
    pub fn nothing_stored(&self) -> bool {
        match self {
            Failure::Unreachable | Failure::Overloaded | Failure::Refused(_) | Failure::TooOld { .. } => true,
            Failure::ConnectionLost | Failure::TimedOut | Failure::Abandoned => false,
        }
    }
}

/// Something that can be answered by not answering.
pub trait Answer: Send {
    /// The answer when an [`AnswerTo`] is dropped unsent.
    fn abandoned() -> Self;

    /// True if nothing follows from it but that one answer less is missing: see [`Answers::next_of`].
    fn is_plain(&self) -> bool {
        false
    }
}

impl Answer for ApplyAnswer {
    fn abandoned() -> Self {
        ApplyAnswer::Failed(Failure::Abandoned)
    }

    fn is_plain(&self) -> bool {
        *self == ApplyAnswer::Applied
    }
}

impl Answer for ReadAnswer {
    fn abandoned() -> Self {
        ReadAnswer::Failed(Failure::Abandoned)
    }
}

impl<T: Send, E: From<Failure> + Send> Answer for Result<T, E> {
    fn abandoned() -> Self {
        Err(Failure::Abandoned.into())
    }
}

/// The answers of one request, in the order in which they come.
pub struct Answers<T: Answer> {
    /// Made with the first [`AnswerTo`]: most requests expect no answers of some kind.
    shared: Option<Arc<Shared<T>>>,
    /// How many [`AnswerTo`] were handed out whose answer was not taken yet.
    due: usize,
}

/// The right, and the duty, to give one answer.
pub struct AnswerTo<T: Answer> {
    node: NodeId,
    /// Taken when the answer is given.
    shared: Option<Arc<Shared<T>>>,
}

struct Shared<T> {
    inbox: Mutex<Inbox<T>>,
}

struct Inbox<T> {
    ready: VecDeque<(NodeId, T)>,
    waiting: Waiting<T>,
}

/// Who is to be notified of an answer.
enum Waiting<T> {
    Nobody,
    /// The task that awaits it; notified once this many answers are there, if they are plain ones.
    Task(Waker, usize),
    /// See [`Answers::hand_over`]; and how many answers are due.
    Late(Box<dyn Late<T>>, usize),
}

/// Takes the answers that nobody awaits any more.
pub trait Late<T>: Send {
    /// One more. Called where it is given: must neither block nor touch these answers.
    fn note(&mut self, node: NodeId, answer: T);
    /// That was the last.
    fn end(self: Box<Self>);
}

impl<T: Answer> Default for Answers<T> {
    fn default() -> Self {
        Answers { shared: None, due: 0 }
    }
}

impl<T: Answer> Answers<T> {
    /// One answer more is due, from `node`.
    pub fn expect(&mut self, node: NodeId) -> AnswerTo<T> {
        self.due += 1;
        let shared = self.shared.get_or_insert_with(|| {
            let inbox = Inbox { ready: VecDeque::new(), waiting: Waiting::Nobody };
            Arc::new(Shared { inbox: Mutex::new(inbox) })
        });
        AnswerTo { node, shared: Some(shared.clone()) }
    }

    /// How many answers are still to be taken.
    pub fn due(&self) -> usize {
        self.due
    }

    /// The next answer; `None` when none is due. Cancel-safe.
    pub async fn next(&mut self) -> Option<(NodeId, T)> {
        self.next_of(1).await
    }

    /// The next answer, for somebody to whom plain ones are of no use before `wanted` of them are there: to be woken
    /// for each would be most of what they cost. `None` when none is due. Cancel-safe.
    pub async fn next_of(&mut self, wanted: usize) -> Option<(NodeId, T)> {
        let shared = self.shared.as_ref().filter(|_| self.due > 0)?;
        let wanted = wanted.min(self.due);
        let answer = poll_fn(|cx| {
            let mut inbox = shared.inbox();
            match inbox.ready.pop_front() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    match &mut inbox.waiting {
                        Waiting::Task(waker, of) => {
                            waker.clone_from(cx.waker());
                            *of = wanted;
                        }
                        waiting => *waiting = Waiting::Task(cx.waker().clone(), wanted),
                    }
                    Poll::Pending
                }
            }
        })
        .await;
        self.due -= 1;
        Some(answer)
    }

    /// Nobody waits for the answers still due: `late` takes them as they are given, without a task of its own. Since
    /// every [`AnswerTo`] yields an answer, it hears of the end.
    pub fn hand_over(self, mut late: Box<dyn Late<T>>) {
        let mut due = self.due;
        if let Some(shared) = self.shared {
            let mut inbox = shared.inbox();
            for (node, answer) in inbox.ready.drain(..) {
                late.note(node, answer);
                due -= 1;
            }
            if due > 0 {
                inbox.waiting = Waiting::Late(late, due);
                return;
            }
        }
        late.end();
    }
}

impl<T: Answer> AnswerTo<T> {
    /// Who answers.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Gives the answer. If nobody waits for it any more, it is dropped.
    pub fn send(mut self, answer: T) {
        self.give(answer);
    }

    fn give(&mut self, answer: T) {
        let Some(shared) = self.shared.take() else { return };
        let mut inbox = shared.inbox();
        if let Waiting::Late(late, due) = &mut inbox.waiting {
            late.note(self.node, answer);
            *due -= 1;
            if *due > 0 {
                return;
            }
        } else {
            let plain = answer.is_plain();
            inbox.ready.push_back((self.node, answer));
            if let Waiting::Task(_, wanted) = inbox.waiting
                && plain
                && inbox.ready.len() < wanted
            {
                return;
            }
        }
        let waiting = std::mem::replace(&mut inbox.waiting, Waiting::Nobody);
        drop(inbox); // whoever is notified may lock others
        match waiting {
            Waiting::Nobody => {}
            Waiting::Task(waker, _) => waker.wake(),
            Waiting::Late(late, _) => late.end(),
        }
    }
}

impl<T> Shared<T> {
    fn inbox(&self) -> MutexGuard<'_, Inbox<T>> {
        self.inbox.lock().expect("no panic while it is held")
    }
}

impl<T: Answer> Drop for AnswerTo<T> {
    fn drop(&mut self) {
        if self.shared.is_some() {
            self.give(T::abandoned());
        }
    }
}

/// Asks one node one thing: makes the [`Answers`], hands the [`AnswerTo`] to `ask`, awaits the answer.
pub async fn ask_one<T: Answer>(node: NodeId, ask: impl FnOnce(AnswerTo<T>)) -> T {
    let mut answers = Answers::default();
    ask(answers.expect(node));
    answers.next().await.expect("one answer is due").1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    #[tokio::test]
    async fn answers_come_in_the_order_they_are_given_and_then_end() {
        let mut answers = Answers::default();
        let first = answers.expect(NodeId(1));
        let second = answers.expect(NodeId(2));
        second.send(ApplyAnswer::Applied);
        first.send(ApplyAnswer::Behind(Stamp(7)));
        assert_eq!(answers.next().await, Some((NodeId(2), ApplyAnswer::Applied)));
        assert_eq!(answers.next().await, Some((NodeId(1), ApplyAnswer::Behind(Stamp(7)))));
        assert_eq!(answers.next().await, None);
    }

    struct Noted(std::sync::mpsc::Sender<Option<(NodeId, ApplyAnswer)>>);

    impl Late<ApplyAnswer> for Noted {
        fn note(&mut self, node: NodeId, answer: ApplyAnswer) {
            self.0.send(Some((node, answer))).unwrap();
        }
        fn end(self: Box<Self>) {
            self.0.send(None).unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_handed_over_hears_every_answer_and_then_the_end() {
        for given_before in 0..=2 {
            let mut answers = Answers::default();
            let awaited = answers.expect(NodeId(0));
            let mut due = vec![answers.expect(NodeId(1)), answers.expect(NodeId(2))];
            awaited.send(ApplyAnswer::Applied);
            assert!(answers.next().await.is_some());
            due.drain(..given_before).for_each(|to| to.send(ApplyAnswer::Applied));
            let (sender, heard) = std::sync::mpsc::channel();
            answers.hand_over(Box::new(Noted(sender)));
            drop(due);
            let heard: Vec<_> = heard.iter().collect();
            let answer = |node| {
                let answer = if node <= given_before { ApplyAnswer::Applied } else { Answer::abandoned() };
                Some((NodeId(node as u32), answer))
            };
            assert_eq!(heard, [answer(1), answer(2), None]);
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_wants_two_is_woken_by_the_second_or_by_one_that_is_not_plain() {
        let (plain, behind) = (ApplyAnswer::Applied, ApplyAnswer::Behind(Stamp(7)));
        for (first, wanted, wakes) in [(&plain, 2, [0, 1]), (&plain, 1, [1, 1]), (&behind, 2, [1, 1])] {
            let mut answers = Answers::default();
            let given = [answers.expect(NodeId(1)), answers.expect(NodeId(2)), answers.expect(NodeId(3))];
            let told = Arc::new(Wakes::default());
            let waker = Waker::from(told.clone());
            let next = pin!(answers.next_of(wanted));
            assert!(next.poll(&mut Context::from_waker(&waker)).is_pending());
            for ((to, answer), wakes) in given.into_iter().zip([first, &plain]).zip(wakes) {
                to.send(answer.clone());
                assert_eq!(told.0.load(Ordering::SeqCst), wakes, "{first:?} of {wanted}");
            }
        }
    }

    #[test]
    fn who_wants_more_than_are_due_is_woken_by_the_last() {
        let mut answers = Answers::default();
        let to = answers.expect(NodeId(1));
        let told = Arc::new(Wakes::default());
        let waker = Waker::from(told.clone());
        let next = pin!(answers.next_of(2));
        assert!(next.poll(&mut Context::from_waker(&waker)).is_pending());
        to.send(ApplyAnswer::Applied);
        assert_eq!(told.0.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn dropping_the_right_to_answer_answers() {
        let answer = ask_one(NodeId(0), |to: AnswerTo<ApplyAnswer>| drop(to)).await;
        assert_eq!(answer, ApplyAnswer::Failed(Failure::Abandoned));
    }

    #[tokio::test]
    async fn an_answer_from_another_thread_wakes_the_asker() {
        let answer = ask_one(NodeId(0), |to: AnswerTo<ApplyAnswer>| {
            std::thread::spawn(move || to.send(ApplyAnswer::Applied));
        })
        .await;
        assert_eq!(answer, ApplyAnswer::Applied);
    }
}
