//! What waits for the commit log: bounded in number and bytes, taken once it was released, and closed when the store
//! ends.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Arc, Mutex};

use crate::answer::{AnswerTo, ApplyAnswer, Failure, NodeId};
use crate::config::Config;
use crate::mutation::Mutation;

use super::ranges::Origin;

/// Something for the log's writer to do.
pub(super) enum Request {
    Apply {
        origin: Origin,
        mutation: Arc<Mutation>,
        to: AnswerTo<ApplyAnswer>,
    },
    Hint {
        target: NodeId,
        mutation: Arc<Mutation>,
        now_s: i64,
        to: AnswerTo<Result<(), Failure>>,
    },
    ForgetHints {
        target: NodeId,
        sequences: Vec<i64>,
        to: AnswerTo<Result<(), Failure>>,
    },
    /// Nothing but an answer once all before it is done.
    Barrier {
        to: AnswerTo<Result<(), Failure>>,
    },
    /// Lets a test do something to the log's connection inside a transaction.
    #[cfg(test)]
    Meddle(Mutex<Option<Meddle>>),
}

#[cfg(test)]
pub(super) type Meddle = Box<dyn FnOnce(&rusqlite::Connection) + Send>;

impl Request {
    /// Bytes it takes while it waits, about.
    fn bytes(&self) -> usize {
        let of_kind = match self {
            Request::Apply { mutation, .. } | Request::Hint { mutation, .. } => mutation.encoded_len(),
            Request::ForgetHints { sequences, .. } => sequences.len() * size_of::<i64>(),
            Request::Barrier { .. } => 0,
            #[cfg(test)]
            Request::Meddle(_) => 0,
        };
        size_of::<Request>() + of_kind
    }

    /// Answers that it was not done, and certainly will not be.
    pub fn refuse(self, failure: Failure) {
        match self {
            Request::Apply { to, .. } => to.send(ApplyAnswer::Failed(failure)),
            Request::Hint { to, .. } | Request::ForgetHints { to, .. } | Request::Barrier { to } => {
                to.send(Err(failure))
            }
            #[cfg(test)]
            Request::Meddle(_) => {}
        }
    }
}

/// What waits, in order.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    mutations_max: usize,
    bytes_max: usize,
    batch_mutations_max: usize,
    batch_bytes_max: usize,
}

#[derive(Default)]
struct Waiting {
    /// Requests with their bytes.
    requests: VecDeque<(Request, usize)>,
    bytes: usize,
    /// How many of them, the first, may be taken.
    released: usize,
    /// The taker is not to be woken for fewer.
    enough: usize,
    /// Nobody takes any more.
    closed: bool,
}

impl Queue {
    pub fn new(config: &Config) -> Queue {
        Queue {
            waiting: Mutex::default(),
            mutations_max: config.log_queue_mutations_max,
            bytes_max: config.log_queue_bytes_max,
            batch_mutations_max: config.commit_batch_mutations_max,
            // A transaction is merged as a whole before a memtable is frozen.
            batch_bytes_max: config.commit_batch_bytes_max.min(config.memtable_bytes_max),
        }
    }

    /// Queues a request. Gives it back if there is no room; drops it, which answers it, if the queue is closed.
    pub fn push(&self, request: Request) -> Result<(), Request> {
        let bytes = request.bytes();
        let mut waiting = self.waiting.lock().expect("no panic while it is held");
        if waiting.closed {
            drop(waiting);
            return Ok(()); // dropping the request answers that the store is shutting down
        }
        let full = waiting.requests.len() >= self.mutations_max || waiting.bytes + bytes > self.bytes_max;
        // A mutation larger than the whole bound passes when it is alone, or it never could.
        if full && !waiting.requests.is_empty() {
            return Err(request);
        }
        waiting.bytes += bytes;
        waiting.requests.push_back((request, bytes));
        Ok(())
    }

    /// What waits now may be taken ([`Arrivals`](super::drive::Arrivals) says when and why). True if the taker is to
    /// be woken.
    pub fn release(&self) -> bool {
        let mut waiting = self.waiting.lock().expect("no panic while it is held");
        waiting.released = waiting.requests.len();
        self.has_enough(&waiting)
    }

    /// From now on the taker is to be woken for no fewer than `enough`, unless those there fill a transaction or half
    /// of the queue. True if they are there.
    pub fn tell_of(&self, enough: usize) -> bool {
        let mut waiting = self.waiting.lock().expect("no panic while it is held");
        waiting.enough = enough;
        self.has_enough(&waiting)
    }

    fn has_enough(&self, waiting: &Waiting) -> bool {
        let Waiting { released, enough, bytes, .. } = *waiting;
        released >= enough.min(self.batch_mutations_max).min(self.mutations_max.div_ceil(2))
            || (released > 0 && bytes >= self.batch_bytes_max.min(self.bytes_max / 2))
    }

    /// The next batch: all that was released, up to the bounds of a transaction, and at least one of it, if there is
    /// any.
    pub fn take(&self) -> Vec<Request> {
        let mut waiting = self.waiting.lock().expect("no panic while it is held");
        let most = waiting.released.min(self.batch_mutations_max);
        let mut batch = Vec::with_capacity(most);
        let mut batch_bytes = 0;
        while batch.len() < most
            && let Some((_, bytes)) = waiting.requests.front()
        {
            if !batch.is_empty() && batch_bytes + bytes > self.batch_bytes_max {
                break;
            }
            batch_bytes += bytes;
            batch.extend(waiting.requests.pop_front().map(|(request, _)| request));
        }
        waiting.released -= batch.len();
        waiting.bytes -= batch_bytes;
        batch
    }

    /// How many requests wait, and their bytes.
    pub fn depth(&self) -> (usize, usize) {
        let waiting = self.waiting.lock().expect("no panic while it is held");
        (waiting.requests.len(), waiting.bytes)
    }

    /// Takes nothing more. What waits is dropped, which answers it.
    pub fn close(&self) {
        let mut waiting = self.waiting.lock().expect("no panic while it is held");
        waiting.closed = true;
        waiting.released = 0;
        let dropped = std::mem::take(&mut waiting.requests);
        waiting.bytes = 0;
        drop(waiting); // answers wake others, so not under the lock
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Answers, NodeId};

    #[test]
    fn what_fills_a_transaction_or_half_of_the_queue_is_enough() {
        let config = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config
        };
        let default = Config::default();
        let batch = config(|config| config.commit_batch_mutations_max = 3);
        let queue = config(|config| config.log_queue_mutations_max = 5);
        let bytes = config(|config| config.commit_batch_bytes_max = 3 * size_of::<Request>());
        let room = config(|config| config.log_queue_bytes_max = 6 * size_of::<Request>());
        for (config, enough) in [(default, 8), (batch, 3), (queue, 3), (bytes, 3), (room, 3)] {
            let queue = Queue::new(&config);
            let mut answers = Answers::default();
            assert!(!queue.tell_of(8), "there are none");
            for number in 1..=4 {
                assert!(queue.push(Request::Barrier { to: answers.expect(NodeId(0)) }).is_ok());
                assert_eq!(queue.release(), number >= enough);
                assert_eq!(queue.tell_of(8), number >= enough);
            }
            assert!(queue.tell_of(1));
        }
    }

    #[test]
    fn only_what_was_released_is_taken() {
        let queue = Queue::new(&Config { commit_batch_mutations_max: 2, ..Config::default() });
        let mut answers = Answers::default();
        let mut push = || assert!(queue.push(Request::Barrier { to: answers.expect(NodeId(0)) }).is_ok());
        push();
        assert_eq!(queue.take().len(), 0);
        push();
        push();
        queue.release();
        push();
        assert_eq!([queue.take().len(), queue.take().len(), queue.take().len()], [2, 1, 0]);
        assert_eq!(queue.depth().0, 1, "it came after the others were released");
        queue.release();
        queue.close();
        assert_eq!((queue.take().len(), queue.depth().0), (0, 0));
    }
}
