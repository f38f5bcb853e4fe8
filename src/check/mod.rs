//! Judges a store by what its clients saw, and by what its replicas hold in the end. Whoever ran the load, a simulation
//! or clients of real servers, wrote down a [`History`]; nothing here knows where it came from.
//!
//!   history   what each client asked, when, and what it was told; `text`: the same as lines
//!   register  the promises of the levels, pair by pair of operations on one key
//!   linear    is there one order of all operations on a key that explains every answer? (a search)
//!   settled   what the replicas hold once faults have ended
//!
//! Not here: making faults and load.

pub mod history;
mod text;

pub use history::{Asked, History, Malformed, Operation, Recorder, Told};
pub use text::ParseError;
