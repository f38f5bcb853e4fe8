//! What the fuzzers try: one function per target, from bytes to a panic or none. `tests/fuzz.rs` runs them for a moment
//! with every `cargo test`, on the stable toolchain; `fuzz/` runs them for as long as one likes, with libFuzzer.
//!
//! A target is made once and then given one input after the other. It may keep things between inputs (a directory, a
//! server), but no input may depend on those before it.

mod client;
mod console;
mod encodings;
mod memory;
mod peer;
mod samples;
mod server;
mod store;
mod text_files;
mod thrift;

/// Gives a target one input. It panics if what the target promises does not hold.
pub type Run = Box<dyn FnMut(&[u8])>;

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Of the target, its corpus, its test and its binary.
    pub name: &'static str,
    /// Makes it.
    pub start: fn() -> Run,
    /// Longer inputs are not tried: they are slower and say no more.
    pub input_bytes_max: usize,
    /// Mutated inputs that `cargo test` tries: a second or so, unoptimised.
    pub rounds: u64,
    /// Inputs made from real messages and files, by name; the corpus is written from them.
    pub seeds: fn() -> Seeds,
}

/// Inputs by name.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// Every target.
pub const TARGETS: [Target; 11] = [
    thrift::CALLS,
    thrift::REPLIES,
    peer::PEER,
    client::CLIENT,
    server::SERVER,
    encodings::KEY,
    encodings::MUTATION,
    text_files::NODES,
    text_files::CONFIG,
    console::CONSOLE,
    store::STORE,
];

/// The target of this name.
pub fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target is called {name}"))
}

/// Takes small numbers and pieces off the front of an input; zero and nothing once it is used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> u32 {
        self.take(4).iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// At most this many bytes.
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A piece whose length is its first byte.
    fn piece(&mut self) -> &'a [u8] {
        let length = self.byte();
        self.take(length.into())
    }
}

/// A place for files: in memory where that is possible, for the inputs are many. libFuzzer ends without a chance to
/// delete it, so `tests/fuzz.sh` says where it is to be.
fn scratch() -> tempfile::TempDir {
    let folder = std::env::var_os("TETRACHORD_FUZZ_SCRATCH").unwrap_or_else(|| "/dev/shm".into());
    let made = tempfile::Builder::new().prefix("tetrachord-fuzz").tempdir_in(folder);
    made.or_else(|_| tempfile::tempdir()).expect("a temporary directory can be made")
}
