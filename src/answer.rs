//! What a replica says to a request, and where the answers of one request meet.
//!
//! Whoever asks makes one [`Answers`], hands an [`AnswerTo`] to each replica asked, and awaits them one by one.
//! Every `AnswerTo` yields exactly one answer: dropping it unsent answers [`Failure::Abandoned`], so a request never
//! waits for somebody who has gone. Counting answers is the coordinator's business (`coordinator`).

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
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
    /// Durable in its log, and the newest it has.
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
    /// Whoever was to answer went away: it is shutting down, or its log failed in the middle of a commit. It may or
    /// may not have been carried out.
    #[error("gone without an answer")]
    Abandoned,
}

impl Failure {
    /// True if the mutation is certainly not stored on that replica.
    pub fn nothing_stored(&self) -> bool {
        match self {
            Failure::Unreachable | Failure::Overloaded | Failure::Refused(_) => true,
            Failure::ConnectionLost | Failure::TimedOut | Failure::Abandoned => false,
        }
    }
}

/// Something that can be answered by not answering.
pub trait Answer: Send {
    /// The answer when an [`AnswerTo`] is dropped unsent.
    fn abandoned() -> Self;
}

impl Answer for ApplyAnswer {
    fn abandoned() -> Self {
        ApplyAnswer::Failed(Failure::Abandoned)
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
    shared: Arc<Shared<T>>,
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
    waiting: Option<Waker>,
}

impl<T: Answer> Default for Answers<T> {
    fn default() -> Self {
        let inbox = Inbox { ready: VecDeque::new(), waiting: None };
        Answers { shared: Arc::new(Shared { inbox: Mutex::new(inbox) }), due: 0 }
    }
}

impl<T: Answer> Answers<T> {
    /// One answer more is due, from `node`.
    pub fn expect(&mut self, node: NodeId) -> AnswerTo<T> {
        self.due += 1;
        AnswerTo { node, shared: Some(self.shared.clone()) }
    }

    /// How many answers are still to be taken.
    pub fn due(&self) -> usize {
        self.due
    }

    /// The next answer; `None` when none is due. Cancel-safe.
    pub async fn next(&mut self) -> Option<(NodeId, T)> {
        if self.due == 0 {
            return None;
        }
        let answer = poll_fn(|cx| {
            let mut inbox = self.shared.inbox.lock().expect("no panic while it is held");
            match inbox.ready.pop_front() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    inbox.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        self.due -= 1;
        Some(answer)
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
        if let Some(shared) = self.shared.take() {
            let waiting = {
                let mut inbox = shared.inbox.lock().expect("no panic while it is held");
                inbox.ready.push_back((self.node, answer));
                inbox.waiting.take()
            };
            if let Some(waker) = waiting {
                waker.wake();
            }
        }
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
