//! Every fuzz target (`tests/fuzz/targets/`) over its corpus (`tests/fuzz/corpus/`) and a bounded number of changed
//! inputs: the same functions that `fuzz/` gives to libFuzzer, but with any toolchain and in seconds.
//!
//!   cargo test --test fuzz                            every target for a second or so
//!   TETRACHORD_FUZZ_ROUNDS=N cargo test --test fuzz   N changed inputs each
//!   TETRACHORD_FUZZ_SECONDS=N …                       as many as come in N seconds
//!   TETRACHORD_FUZZ_SEED=N …                          from another seed; round r has the seed N + r
//!   TETRACHORD_FUZZ_INPUT=FILE …                      this input alone
//!   cargo test --test fuzz -- --ignored               writes the corpus anew
//!
//! For long runs see `tests/fuzz.sh`. What fails is saved, and the command that repeats it is said.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use targets::{Run, Target, target};

/// An input that takes longer is taken for a hang.
const HANG: Duration = Duration::from_secs(60);
/// Corpora may not grow past this, all together.
const CORPUS_BYTES_MAX: u64 = 300_000;

macro_rules! fuzzed {
    ($($name:ident)+) => { $(
        #[test]
        fn $name() {
            fuzz(target(stringify!($name)));
        }
    )+ };
}
fuzzed!(calls replies peer client server key mutation nodes config console store);

#[test]
fn every_target_has_a_test_a_binary_and_a_corpus() {
    let manifest = fs::read_to_string(top().join("fuzz/Cargo.toml")).expect("the manifest of the fuzzers");
    let tests = include_str!("fuzz.rs");
    let mut bytes = 0;
    for Target { name, .. } in targets::TARGETS {
        assert!(tests.contains(name), "{name} has no test");
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} has no binary");
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name} has no corpus");
        bytes += inputs.iter().map(|(_, input)| input.len() as u64).sum::<u64>();
    }
    assert!(bytes < CORPUS_BYTES_MAX, "the corpora have {bytes} bytes");
}

#[test]
#[ignore = "writes files"]
fn write_corpus() {
    for Target { name, seeds, .. } in targets::TARGETS {
        let folder = top().join("tests/fuzz/corpus").join(name);
        fs::create_dir_all(&folder).expect("a folder");
        for (seed, bytes) in seeds() {
            fs::write(folder.join(seed), bytes).expect("a file");
        }
    }
}

// ------------------------------------------------------------------------------------------------ a run

/// What is being tried, for whoever has to report it.
#[derive(Default)]
struct Trying {
    /// What it is, and since when; `None` before the first and after the last.
    now: Option<(String, Vec<u8>, Instant)>,
    tried: u64,
}

/// Runs a target in a thread of its own, so that one that hangs can be reported.
fn fuzz(target: Target) {
    let trying = Arc::new(Mutex::new(Trying::default()));
    let worker = {
        let trying = trying.clone();
        let thread = std::thread::Builder::new().name(target.name.to_owned());
        thread.spawn(move || all_rounds(target, &trying)).expect("a thread")
    };
    while !worker.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
        if let Some((what, input, since)) = &trying.lock().expect("whole").now
            && since.elapsed() > HANG
        {
            report(target.name, what, input);
            panic!("{} hangs", target.name);
        }
    }
    let failed = worker.join().is_err();
    let trying = trying.lock().expect("the worker panics without it");
    if failed {
        if let Some((what, input, _)) = &trying.now {
            report(target.name, what, input);
        }
        panic!("{} failed, see above", target.name);
    }
    println!("{}: {} inputs", target.name, trying.tried);
}

fn all_rounds(target: Target, trying: &Mutex<Trying>) {
    let mut run = (target.start)();
    if let Some(path) = std::env::var_os("TETRACHORD_FUZZ_INPUT") {
        return attempt(
            &mut run,
            trying,
            path.to_string_lossy().into_owned(),
            fs::read(&path).expect("an input"),
        );
    }
    let corpus = corpus(target.name);
    for (name, input) in &corpus {
        attempt(&mut run, trying, format!("tests/fuzz/corpus/{}/{name}", target.name), input.clone());
    }
    let began = Instant::now();
    let (seed, rounds) = (number("TETRACHORD_FUZZ_SEED").unwrap_or(0), number("TETRACHORD_FUZZ_ROUNDS"));
    let rounds = rounds.unwrap_or(target.rounds);
    let seconds = number("TETRACHORD_FUZZ_SECONDS").map(Duration::from_secs);
    let goes_on = |round| seconds.map_or(round < rounds, |seconds| began.elapsed() < seconds);
    for seed in (0..).take_while(|round| goes_on(*round)).map(|round| seed.wrapping_add(round)) {
        let input = changed(&corpus, &mut fastrand::Rng::with_seed(seed), target.input_bytes_max);
        attempt(&mut run, trying, format!("seed {seed}"), input);
    }
}

fn attempt(run: &mut Run, trying: &Mutex<Trying>, what: String, input: Vec<u8>) {
    trying.lock().expect("whole").now = Some((what, input.clone(), Instant::now()));
    run(&input);
    let mut trying = trying.lock().expect("whole");
    trying.now = None;
    trying.tried += 1;
}

/// Saves an input that failed and says how to try it again.
fn report(name: &str, what: &str, input: &[u8]) {
    let folder = top().join("target/fuzz-failed");
    let path = folder.join(format!("{name}-{}", what.replace(['/', ' '], "-")));
    let saved = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, input));
    let told = saved.map_or_else(|error| format!("could not be saved: {error}"), |()| {
        format!("was saved; to try it again:\n  TETRACHORD_FUZZ_INPUT={} cargo test --test fuzz -- --exact {name}", path.display())
    });
    eprintln!("{name}: {what} failed. The input ({} bytes) {told}", input.len());
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Name and bytes of each file, in the order of the names.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = top().join("tests/fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a listed entry").path()).collect();
    files.sort();
    let file = |path: PathBuf| {
        let name = path.file_name().expect("a file of a folder").to_string_lossy().into_owned();
        (name, fs::read(path).expect("a file of the corpus"))
    };
    files.into_iter().map(file).collect()
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// ------------------------------------------------------------------------------------------------ changed inputs

/// Numbers at which something happens: signs, bounds, lengths.
const TELLING: [u64; 12] =
    [0, 1, 2, 7, 0x7f, 0x80, 0xff, 0x7fff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x7fff_ffff_ffff_ffff];

/// An input of the corpus after a few changes.
fn changed(corpus: &[(String, Vec<u8>)], rng: &mut fastrand::Rng, bytes_max: usize) -> Vec<u8> {
    let pick =
        |rng: &mut fastrand::Rng| rng.choice(corpus).map(|(_, input)| input.clone()).unwrap_or_default();
    let mut input = pick(rng);
    for _ in 0..rng.u32(1..=5) {
        change(&mut input, rng, &pick);
        input.truncate(bytes_max);
    }
    input
}

fn change(input: &mut Vec<u8>, rng: &mut fastrand::Rng, pick: &impl Fn(&mut fastrand::Rng) -> Vec<u8>) {
    let at = rng.usize(0..=input.len());
    let reach = rng.choice([1, 4, 16, 256]).unwrap_or(1);
    let end = (at + rng.usize(0..=reach)).min(input.len());
    match rng.u32(0..9) {
        0 if at < input.len() => input[at] ^= 1 << rng.u32(0..8),
        1 if at < input.len() => input[at] = rng.u8(..),
        2 => {
            let number = TELLING[rng.usize(0..TELLING.len())].wrapping_add(rng.u64(0..3)).wrapping_sub(1);
            let bytes = number.to_be_bytes();
            let bytes = &bytes[8 - rng.choice([1, 2, 4, 8]).unwrap_or(1)..];
            let end = (at + bytes.len()).min(input.len());
            input.splice(at..end, bytes.iter().copied());
        }
        3 => drop(input.drain(at..end)),
        4 => {
            let piece = input[at..end].to_vec();
            let to = rng.usize(0..=input.len());
            input.splice(to..to, piece);
        }
        5 => {
            let piece: Vec<u8> = (0..rng.usize(1..16)).map(|_| rng.u8(..)).collect();
            input.splice(at..at, piece);
        }
        6 => input.truncate(at),
        7 => {
            let other = pick(rng);
            let from = rng.usize(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input[at..end].reverse(),
    }
}
