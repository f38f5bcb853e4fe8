//! A history as text, one operation a line, so that one that failed can be kept, read by a person, and judged again.
//!
//! ```text
//! began ended client level asked key [value] told
//! 1000 1500 3 QUORUM put k7 v12 written 1718000000000001
//! 1600 1900 4 QUORUM get k7 found v12 1718000000000001
//! 1950 1990 4 ONE get k8 found nothing
//! 2000 2600 3 ALL remove k7 refused 'Not enough replicas alive'
//! 3000 8000 3 QUORUM put k7 v13 unknown timeout
//! ```
//!
//! Times are microseconds; the stamp behind `written` and `found` may be missing. Keys, values and reasons are written
//! as the console writes values (`client::text`); a value that reads "nothing" is quoted. Lines that are empty or begin
//! with `#` are skipped.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;

use super::history::{Asked, History, Operation, Told};
use crate::cell::Stamp;
use crate::client::text::{Word, value, words};
use crate::coordinator::Level;

/// How a read says that there is no value.
const NOTHING: &str = "nothing";

const HEAD: &str =
    "# began_us ended_us client level put|get|remove key [value] written|found|refused|unknown ...";

/// A line that is no operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl History {
    /// Writes the history, one operation a line.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{HEAD}")?;
        self.operations.iter().try_for_each(|operation| writeln!(out, "{operation}"))
    }

    /// Reads what [`History::write_to`] wrote.
    pub fn parse(text: &str) -> Result<History, ParseError> {
        let mut history = History::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let operation = parse_operation(line).map_err(|why| ParseError { line: index + 1, why })?;
            history.operations.push(operation);
        }
        Ok(history)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {} ", self.began_us, self.ended_us, self.client, self.level)?;
        let key = value(&self.key);
        match &self.asked {
            Asked::Put(put) => write!(f, "put {key} {} ", shown(put)),
            Asked::Remove => write!(f, "remove {key} "),
            Asked::Get => write!(f, "get {key} "),
        }?;
        match &self.told {
            Told::Written { .. } => f.write_str("written"),
            Told::Found { value: None, .. } => write!(f, "found {NOTHING}"),
            Told::Found { value: Some(found), .. } => write!(f, "found {}", shown(found)),
            Told::Refused(why) => write!(f, "refused {}", value(why.as_bytes())),
            Told::Unknown(why) => write!(f, "unknown {}", value(why.as_bytes())),
        }?;
        self.stamp().map_or(Ok(()), |stamp| write!(f, " {stamp}"))
    }
}

fn shown(bytes: &[u8]) -> String {
    if bytes == NOTHING.as_bytes() { format!("'{NOTHING}'") } else { value(bytes) }
}

fn parse_operation(line: &str) -> Result<Operation, String> {
    let mut rest = Rest { words: words(line)?.into_iter() };
    let began_us = rest.number("when it began, in microseconds")?;
    let ended_us = rest.number("when it ended, in microseconds")?;
    let client = rest.number("the client's number")?;
    let level = rest.bare("the level")?;
    let level = Level::parse(&level).ok_or_else(|| format!("{level} is no level"))?;
    let asked = rest.bare("put, get or remove")?;
    let key = rest.bytes("the key")?;
    let asked = match asked.as_str() {
        "put" => Asked::Put(rest.bytes("the value that was put")?),
        "remove" => Asked::Remove,
        "get" => Asked::Get,
        other => return Err(format!("{other} is none of put, get and remove")),
    };
    let told = parse_told(&mut rest)?;
    rest.end()?;
    Ok(Operation { client, key, level, asked, began_us, ended_us, told })
}

fn parse_told(rest: &mut Rest) -> Result<Told, String> {
    let told = rest.bare("written, found, refused or unknown")?;
    match told.as_str() {
        "written" => Ok(Told::Written { stamp: rest.stamp()? }),
        "found" => {
            let found = rest.word("the value that was found, or nothing")?;
            let value = (found.bare() != Some(NOTHING)).then(|| Bytes::from(found.bytes));
            Ok(Told::Found { value, stamp: rest.stamp()? })
        }
        "refused" => Ok(Told::Refused(rest.text("why it was refused")?)),
        "unknown" => Ok(Told::Unknown(rest.text("why it is unknown")?)),
        other => Err(format!("{other} is none of written, found, refused and unknown")),
    }
}

/// The words of a line that were not read yet.
struct Rest {
    words: std::vec::IntoIter<Word>,
}

impl Rest {
    fn word(&mut self, what: &str) -> Result<Word, String> {
        self.words.next().ok_or_else(|| format!("the line ends before {what}"))
    }

    fn bytes(&mut self, what: &str) -> Result<Bytes, String> {
        self.word(what).map(|word| Bytes::from(word.bytes))
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        String::from_utf8(self.word(what)?.bytes).map_err(|_| format!("{what} is not text"))
    }

    fn bare(&mut self, what: &str) -> Result<String, String> {
        let word = self.word(what)?;
        word.bare().map(str::to_owned).ok_or_else(|| format!("{what} stands here without quotes"))
    }

    fn number<N: std::str::FromStr>(&mut self, what: &str) -> Result<N, String> {
        let text = self.bare(what)?;
        text.parse().map_err(|_| format!("{text} is not a number: {what} stands here"))
    }

    fn stamp(&mut self) -> Result<Option<Stamp>, String> {
        let more = !self.words.as_slice().is_empty();
        more.then(|| self.number("the stamp").map(Stamp)).transpose()
    }

    fn end(mut self) -> Result<(), String> {
        match self.words.next() {
            Some(word) => Err(format!("{} is one word too many", value(&word.bytes))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        let texts =
            prop::sample::select(vec!["k7", "nothing", "", "#", "-", "a b", "it's", "0x12", "\n", "é"]);
        prop_oneof![
            texts.prop_map(|text| Bytes::from_static(text.as_bytes())),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from),
        ]
    }

    fn any_operation() -> impl Strategy<Value = Operation> {
        let asked = prop_oneof![any_bytes().prop_map(Asked::Put), Just(Asked::Remove), Just(Asked::Get)];
        let stamp = || prop::option::of(any::<i64>().prop_map(Stamp));
        let told = prop_oneof![
            stamp().prop_map(|stamp| Told::Written { stamp }),
            (prop::option::of(any_bytes()), stamp()).prop_map(|(value, stamp)| Told::Found { value, stamp }),
            any::<String>().prop_map(Told::Refused),
            any::<String>().prop_map(Told::Unknown),
        ];
        let level = prop::sample::select(vec![Level::One, Level::Quorum, Level::Any]);
        (any::<u32>(), any_bytes(), level, asked, any::<u64>(), any::<u64>(), told).prop_map(
            |(client, key, level, asked, began_us, ended_us, told)| Operation {
                client,
                key,
                level,
                asked,
                began_us,
                ended_us,
                told,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(operations in prop::collection::vec(any_operation(), 0..6)) {
            let history = History { operations };
            let mut text = Vec::new();
            history.write_to(&mut text).unwrap();
            let back = History::parse(std::str::from_utf8(&text).unwrap()).unwrap();
            prop_assert_eq!(back.operations, history.operations);
        }
    }

    #[test]
    fn the_lines_of_the_module_head_are_operations() {
        let head: Vec<&str> = include_str!("text.rs").lines().skip(3).take(7).collect();
        let lines: String = head[1..6].iter().map(|line| format!("{}\n", &line["//! ".len()..])).collect();
        let history = History::parse(&lines).unwrap();
        assert_eq!(history.operations.len(), 5);
        assert_eq!(history.operations[0].stamp(), Some(Stamp(1_718_000_000_000_001)));
        assert_eq!(history.operations[2].found(), Some(None));
        assert_eq!(history.operations[4].told, Told::Unknown("timeout".to_owned()));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let good = "1 2 3 QUORUM get k found nothing\n";
        for (line, why) in [
            ("1 2 3 QUORUM get k", "the line ends before written, found, refused or unknown"),
            ("1 2 x QUORUM get k", "x is not a number: the client's number stands here"),
            ("1 2 3 SOME get k", "SOME is no level"),
            ("1 2 3 ONE take k", "take is none of put, get and remove"),
            ("1 2 3 ONE get k lost", "lost is none of written, found, refused and unknown"),
            ("1 2 3 ONE get k found v 7 8", "8 is one word too many"),
            ("1 2 3 ONE get k found v seven", "seven is not a number: the stamp stands here"),
            ("1 2 3 ONE put k 'v", "the closing ' is missing"),
        ] {
            let error = History::parse(&format!("# head\n\n{good}{line}\n")).unwrap_err();
            assert_eq!(error, ParseError { line: 4, why: why.to_owned() });
        }
    }
}
