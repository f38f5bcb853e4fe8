//! What clients asked and were told: all that a checker knows of a run.
//!
//! Every put of a history writes a value of its own, so that a value names the put that wrote it. Times are
//! microseconds of one clock that never goes back, the same for every client of the history. Keys are empty when the
//! history begins, and it leaves out no write: what is not in it did not happen.
//!
//! Not here: whether the answers were right (`register`, `linear`), how a history is written down (`text`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::cell::Stamp;
use crate::coordinator::Level;

/// Every operation of a run, in any order.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
}

/// One operation of one client on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked. A client asks one thing at a time.
    pub client: u32,
    /// Of what.
    pub key: Bytes,
    /// At which level.
    pub level: Level,
    /// What was asked.
    pub asked: Asked,
    /// When it was asked (µs).
    pub began_us: u64,
    /// When the answer was there, or was given up (µs).
    pub ended_us: u64,
    /// What came of it.
    pub told: Told,
}

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To write this value, which nobody else writes.
    Put(Bytes),
    /// To delete.
    Remove,
    /// To read.
    Get,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The put or removal met its level.
    Written {
        /// The stamp that won, if the client was told: its own, or a newer one that some replica already held.
        stamp: Option<Stamp>,
    },
    /// The read met its level.
    Found {
        /// The value; `None`: there is none.
        value: Option<Bytes>,
        /// Of the value, or of the tombstone in its place, if the client was told.
        stamp: Option<Stamp>,
    },
    /// The store promised that nothing was written: Unavailable, overloaded, not valid. Of a read: no answer.
    Refused(String),
    /// A timeout, a lost connection: a write may have happened, or may yet happen at any later moment.
    Unknown(String),
}

/// A history that contradicts itself: whoever wrote it down was wrong, so it says nothing of the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A value that does not name its put.
    #[error("two puts wrote the same value:\n  {first}\n  {second}")]
    SameValue {
        /// The put that began first.
        first: String,
        /// The other.
        second: String,
    },
    /// A client asked before it had its answer.
    #[error("client {client} asked two things at once:\n  {first}\n  {second}")]
    TwoAtOnce {
        /// The client.
        client: u32,
        /// What it asked first.
        first: String,
        /// What it asked before that had ended.
        second: String,
    },
    /// The clock of the history went back.
    #[error("an operation ended before it began: {operation}")]
    EndedBeforeItBegan {
        /// The operation.
        operation: String,
    },
    /// A read was told "written", or a write was told "found".
    #[error("the answer does not fit what was asked: {operation}")]
    AnswerOfAnotherKind {
        /// The operation.
        operation: String,
    },
}

impl Operation {
    /// What a write left if it happened, `None` inside for a removal; `None` for a read.
    pub fn written(&self) -> Option<Option<&Bytes>> {
        match &self.asked {
            Asked::Put(value) => Some(Some(value)),
            Asked::Remove => Some(None),
            Asked::Get => None,
        }
    }

    /// What a read was shown; `None` for a write, and for a read that had no answer.
    pub fn found(&self) -> Option<Option<&Bytes>> {
        match &self.told {
            Told::Found { value, .. } => Some(value.as_ref()),
            Told::Written { .. } | Told::Refused(_) | Told::Unknown(_) => None,
        }
    }

    /// The stamp the client was told.
    pub fn stamp(&self) -> Option<Stamp> {
        match &self.told {
            Told::Written { stamp } | Told::Found { stamp, .. } => *stamp,
            Told::Refused(_) | Told::Unknown(_) => None,
        }
    }

    fn answer_fits(&self) -> bool {
        match &self.told {
            Told::Written { .. } => self.written().is_some(),
            Told::Found { .. } => self.written().is_none(),
            Told::Refused(_) | Told::Unknown(_) => true,
        }
    }
}

impl History {
    /// The operations of each key, in the order in which they began.
    pub fn by_key(&self) -> BTreeMap<&Bytes, Vec<&Operation>> {
        let mut keys: HashMap<&Bytes, Vec<&Operation>> = HashMap::new();
        for operation in &self.operations {
            keys.entry(&operation.key).or_default().push(operation);
        }
        for operations in keys.values_mut() {
            operations.sort_by_key(|operation| (operation.began_us, operation.ended_us, operation.client));
        }
        keys.into_iter().collect()
    }

    /// Says whether the history can be judged at all.
    pub fn check(&self) -> Result<(), Malformed> {
        for operation in &self.operations {
            if operation.ended_us < operation.began_us {
                return Err(Malformed::EndedBeforeItBegan { operation: operation.to_string() });
            }
            if !operation.answer_fits() {
                return Err(Malformed::AnswerOfAnotherKind { operation: operation.to_string() });
            }
        }
        self.check_values()?;
        self.check_clients()
    }

    fn check_values(&self) -> Result<(), Malformed> {
        let mut puts: HashMap<&Bytes, &Operation> = HashMap::new();
        for operation in &self.operations {
            let Asked::Put(value) = &operation.asked else { continue };
            if let Some(other) = puts.insert(value, operation) {
                let other_first = other.began_us <= operation.began_us;
                let (first, second) = if other_first { (other, operation) } else { (operation, other) };
                return Err(Malformed::SameValue { first: first.to_string(), second: second.to_string() });
            }
        }
        Ok(())
    }

    fn check_clients(&self) -> Result<(), Malformed> {
        let mut order: Vec<&Operation> = self.operations.iter().collect();
        order.sort_by_key(|operation| (operation.client, operation.began_us, operation.ended_us));
        for pair in order.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            if first.client == second.client && second.began_us < first.ended_us {
                let (client, first, second) = (first.client, first.to_string(), second.to_string());
                return Err(Malformed::TwoAtOnce { client, first, second });
            }
        }
        Ok(())
    }
}

/// Where clients that run side by side write down what they asked and were told.
///
/// It is bounded, and the bound is met before an operation is asked, not after: a write that was asked and is missing
/// from the history would look like a value from nowhere.
#[derive(Debug)]
pub struct Recorder {
    operations_max: usize,
    /// How many were let through, asked or about to be.
    admitted: AtomicUsize,
    operations: Mutex<Vec<Operation>>,
}

impl Recorder {
    /// Lets `operations_max` operations through.
    pub fn new(operations_max: usize) -> Recorder {
        Recorder { operations_max, admitted: AtomicUsize::new(0), operations: Mutex::new(Vec::new()) }
    }

    /// True: one more operation may be asked, and must then be recorded, whatever comes of it. False: the history is
    /// full, the client is to stop.
    pub fn may_ask(&self) -> bool {
        let more = |admitted: usize| (admitted < self.operations_max).then_some(admitted + 1);
        self.admitted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// True once every operation that there is room for has been let through.
    pub fn is_full(&self) -> bool {
        self.admitted.load(Ordering::Relaxed) >= self.operations_max
    }

    /// Writes an operation down.
    pub fn record(&self, operation: Operation) {
        self.operations.lock().expect("no panic while it is held").push(operation);
    }

    /// What was recorded so far; the recorder starts over with nothing, but the room that was used stays used.
    pub fn take(&self) -> History {
        History {
            operations: std::mem::take(&mut *self.operations.lock().expect("no panic while it is held")),
        }
    }
}
