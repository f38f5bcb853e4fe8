//! Golden scripts for the pure decisions: a text file of events, each with what is said after it.
//!
//! `check` runs the events and compares; set `UPDATE_SCRIPTS=1` to write what was said into the file, then read the
//! difference before keeping it.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Runs `tests/scripts/coordinator/<name>.txt`. Lines up to a blank one are one scenario: `run` gets its events and
/// returns each with ` -> ` and what was said.
pub(super) fn check(name: &str, run: impl Fn(&[&str]) -> Vec<String>) {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/scripts/coordinator/{name}.txt"));
    let expected = std::fs::read_to_string(&path).expect("the script is in the repository");
    let mut said = String::new();
    let mut scenario: Vec<&str> = Vec::new();
    for line in expected.lines().chain([""]) {
        if line.is_empty() {
            for line in run(&scenario) {
                writeln!(said, "{line}").expect("writing to memory cannot fail");
            }
            scenario.clear();
            said.push('\n');
        } else if line.starts_with('#') {
            writeln!(said, "{line}").expect("writing to memory cannot fail");
        } else {
            scenario.push(line.split(" -> ").next().expect("split yields at least one part"));
        }
    }
    let said = format!("{}\n", said.trim_end());
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        std::fs::write(&path, &said).expect("the script can be written");
    }
    assert!(said == expected, "{} differs; what was said:\n{said}", path.display());
}
