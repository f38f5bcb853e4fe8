//! What clients asked and were told: all that a checker knows of a run.
//!
//! Every put of a history writes a value of its own, so that a value names the put that wrote it. Times are
//! microseconds of one clock that never goes back, the same for every client of the history.

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
        /// Its stamp, if the client was told.
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
