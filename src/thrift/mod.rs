//! Bytes become calls, and answers become bytes.
//!
//!   bytes ─► split (where does a message end?) ─► codec (which method, what arguments?) ─► Call ─► … ─► Reply ─► bytes
//!
//! The structs and their readers and writers are generated from `chord.thrift` (`chord.rs`, by `generate.sh`); the
//! `thrift` crate supplies the protocols. Its server is not used: it holds a thread for each connection. What the
//! generated readers leave out is added here: wire types are checked (`strict`), absent fields are absent, and sizes
//! are bounded before anything is reserved.
//!
//! Not here: what a call means (`service`).

pub mod codec;
pub mod connection;
pub mod dress;
pub mod method;
pub mod scan;
pub mod strict;

/// Structs of `chord.thrift`, written by the Thrift compiler.
#[allow(missing_docs, rustdoc::all, clippy::all)]
pub mod chord;
