//! Tetrachord: a Cassandra-like replicated key-value store that speaks Apache Thrift.
//!
//! Modules in the order data meets them; ARCHITECTURE.md draws the whole. Arrows go one way: a module uses only
//! modules of its own or lower layers (`tests/tidy.rs` checks it).

// The words everything else is said in.
pub mod answer;
pub mod cell;
pub mod key;
pub mod mutation;
pub mod slice;

// What would tie the code to one machine, and every number.
pub mod causes;
pub mod clock;
pub mod config;
pub mod cut;
pub mod net;
pub mod nodes;
pub mod output;
pub mod stats;

// Bytes become calls.
pub mod thrift;

// Where cells are kept, who holds them, who is up.
pub mod membership;
pub mod ring;
pub mod store;

// The other servers, and this one as one of them.
pub mod handoff;
pub mod peer;
pub mod reconcile;
pub mod replica;

// Requests of clients: how many must answer, what each call means.
pub mod coordinator;
pub mod service;

// The whole.
pub mod node;
pub mod server;

// Who uses it, and who judges it.
pub mod check;
pub mod client;
pub mod console;
pub mod drill;
pub mod inspect;
pub mod stress;
