//! What a line of the console means. A pure function, [`parse`].

use crate::client::text::{self, Key, LEVELS, Word};
use crate::thrift::chord::Level;

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// An empty line or a comment.
    Nothing,
    /// Write a value.
    Put {
        /// Under this key.
        key: Key,
        /// Any bytes.
        value: Vec<u8>,
        /// How many replicas must have it.
        level: Level,
        /// Seconds to live.
        ttl_s: Option<i32>,
        /// Microseconds since 1970; the server's clock when left out.
        stamp: Option<i64>,
    },
    /// Read a value.
    Get {
        /// Of this key.
        key: Key,
        /// How many replicas must answer.
        level: Level,
    },
    /// Delete a value.
    Delete {
        /// Of this key.
        key: Key,
        /// How many replicas must have it.
        level: Level,
        /// Microseconds since 1970; the server's clock when left out.
        stamp: Option<i64>,
    },
    /// Who is up, hints waiting, up to when replicas are equal.
    Status,
    /// Which servers hold a key.
    Ring {
        /// The key.
        key: Key,
    },
    /// Show what each request does, step by step, from now on or no longer.
    Trace(bool),
    /// What the server has counted.
    Stats,
    /// The grammar.
    Help,
    /// Leave.
    Exit,
}

/// Name, grammar and meaning of each command, in the order of `help`.
pub(super) const COMMANDS: [(&str, &str, &str); 9] = [
    ("put", "put KEY VALUE [LEVEL] [ttl SECONDS] [stamp MICROSECONDS]", "write a value"),
    ("get", "get KEY [LEVEL]", "read it"),
    ("del", "del KEY [LEVEL] [stamp MICROSECONDS]", "delete it"),
    ("status", "status", "who is up, hints waiting, up to when replicas are equal"),
    ("ring", "ring KEY", "which servers hold a key"),
    ("trace", "trace on|off", "show what each request does, step by step"),
    ("stats", "stats", "what this server has counted"),
    ("help", "help", "this text"),
    ("exit", "exit", "leave (quit and Ctrl-D do, too)"),
];

/// Beneath the commands in `help`.
const WORDS: &str = "\
LEVEL: one, two, three, quorum, all or any, in any case; quorum when left out.
KEY: a number from 0 to 255, or any other word, 'quoted text' or 0xHEX. VALUE: a word, 'quoted text' or 0xHEX.
";

/// What `help` prints.
pub fn help() -> String {
    let commands = COMMANDS.iter().map(|(_, grammar, meaning)| format!("{grammar:<58}{meaning}\n"));
    commands.chain([WORDS.to_owned()]).collect()
}

/// Reads a line. `Err`: what is wrong with it, with the grammar of the command.
pub fn parse(line: &str) -> Result<Command, String> {
    if line.trim_start().starts_with('#') {
        return Ok(Command::Nothing);
    }
    let words = text::words(line)?;
    let Some((first, arguments)) = words.split_first() else {
        return Ok(Command::Nothing);
    };
    let name = canonical(first.bare().unwrap_or_default());
    let Some((name, grammar, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<&str> = COMMANDS.iter().map(|(name, ..)| *name).collect();
        let typed = text::value(&first.bytes);
        return Err(format!("{typed} is no command; there are {}", known.join(", ")));
    };
    command(name, arguments).map_err(|why| format!("{why}: {grammar}"))
}

fn canonical(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "delete" | "remove" => "del".to_owned(),
        "quit" => "exit".to_owned(),
        name => name.to_owned(),
    }
}

fn command(name: &str, arguments: &[Word]) -> Result<Command, String> {
    match (name, arguments) {
        ("put", [key, value, rest @ ..]) => {
            let key = text::key(key)?;
            let Rest { level, ttl_s, stamp } = rest_of(rest, &["ttl", "stamp"])?;
            Ok(Command::Put { key, value: value.bytes.clone(), level, ttl_s, stamp })
        }
        ("put", _) => Err("a key and a value are needed".to_owned()),
        ("get", [key, rest @ ..]) => {
            Ok(Command::Get { key: text::key(key)?, level: rest_of(rest, &[])?.level })
        }
        ("del", [key, rest @ ..]) => {
            let key = text::key(key)?;
            let Rest { level, stamp, .. } = rest_of(rest, &["stamp"])?;
            Ok(Command::Delete { key, level, stamp })
        }
        ("ring", [key]) => Ok(Command::Ring { key: text::key(key)? }),
        ("get" | "del", _) => Err("a key is needed".to_owned()),
        ("ring", _) => Err("one key is needed".to_owned()),
        ("trace", [word]) => match word.bare().map(str::to_ascii_lowercase).as_deref() {
            Some("on") => Ok(Command::Trace(true)),
            Some("off") => Ok(Command::Trace(false)),
            _ => Err("on or off is needed".to_owned()),
        },
        ("trace", _) => Err("on or off is needed".to_owned()),
        (_, [extra, ..]) => Err(format!("nothing may follow, not {}", text::value(&extra.bytes))),
        ("status", []) => Ok(Command::Status),
        ("stats", []) => Ok(Command::Stats),
        ("help", []) => Ok(Command::Help),
        ("exit", []) => Ok(Command::Exit),
        (name, _) => unreachable!("{name} is in the table of commands and not here"),
    }
}

/// What may follow keys and values, in any order.
struct Rest {
    level: Level,
    ttl_s: Option<i32>,
    stamp: Option<i64>,
}

fn rest_of(words: &[Word], options: &[&str]) -> Result<Rest, String> {
    let (mut level, mut ttl_s, mut stamp) = (None, None, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let typed = text::value(&word.bytes);
        let name = word.bare().unwrap_or_default().to_ascii_lowercase();
        let twice = if let Some(named) = text::level(&name) {
            level.replace(named).is_some()
        } else if !options.contains(&name.as_str()) {
            return Err(format!("{typed} is no level; there are {}", LEVELS.join(", ")));
        } else if name == "ttl" {
            let wanted = "ttl takes a number of seconds, 1 or more";
            ttl_s.replace(number::<i32>(words.next()).filter(|ttl_s| *ttl_s > 0).ok_or(wanted)?).is_some()
        } else {
            let wanted = "stamp takes a number of microseconds since 1970";
            stamp.replace(number::<i64>(words.next()).ok_or(wanted)?).is_some()
        };
        if twice {
            return Err(format!("{typed} is one too many"));
        }
    }
    Ok(Rest { level: level.unwrap_or(Level::QUORUM), ttl_s, stamp })
}

fn number<N: std::str::FromStr>(word: Option<&Word>) -> Option<N> {
    word?.bare()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(shown: &str, bytes: &[u8]) -> Key {
        Key { bytes: bytes.to_vec(), shown: shown.to_owned() }
    }

    fn put(shown: &str, bytes: &[u8], value: &[u8], level: Level) -> Command {
        Command::Put { key: key(shown, bytes), value: value.to_vec(), level, ttl_s: None, stamp: None }
    }

    #[test]
    fn every_command_is_read_in_any_case() {
        let classic = key("137", &[137]);
        for (line, command) in [
            ("", Command::Nothing),
            ("   ", Command::Nothing),
            ("# put 1 v", Command::Nothing),
            ("put 137 value137 one", put("137", &[137], b"value137", Level::ONE)),
            ("PUT 137 value137 Quorum", put("137", &[137], b"value137", Level::QUORUM)),
            ("put 137 value137", put("137", &[137], b"value137", Level::QUORUM)),
            ("put 137 quorum", put("137", &[137], b"quorum", Level::QUORUM)),
            ("put 'a b' 'c d' all", put("'a b'", b"a b", b"c d", Level::ALL)),
            ("put 0x8900 0xff any", put("0x8900", &[0x89, 0], &[0xff], Level::ANY)),
            ("put apple ''", put("apple", b"apple", b"", Level::QUORUM)),
            ("put '7' 8", put("'7'", b"7", b"8", Level::QUORUM)),
            ("get 137 two", Command::Get { key: classic.clone(), level: Level::TWO }),
            ("get 137", Command::Get { key: classic.clone(), level: Level::QUORUM }),
            ("del 137 three", Command::Delete { key: classic.clone(), level: Level::THREE, stamp: None }),
            (
                "delete 137 stamp -5",
                Command::Delete { key: classic.clone(), level: Level::QUORUM, stamp: Some(-5) },
            ),
            ("remove 137", Command::Delete { key: classic.clone(), level: Level::QUORUM, stamp: None }),
            ("status", Command::Status),
            ("ring 137", Command::Ring { key: classic.clone() }),
            ("trace on", Command::Trace(true)),
            ("TRACE OFF", Command::Trace(false)),
            ("stats", Command::Stats),
            ("help", Command::Help),
            ("exit", Command::Exit),
            ("Quit", Command::Exit),
        ] {
            assert_eq!(parse(line), Ok(command), "{line}");
        }
        let full = Command::Put {
            key: classic,
            value: b"v".to_vec(),
            level: Level::ONE,
            ttl_s: Some(60),
            stamp: Some(123),
        };
        assert_eq!(parse("put 137 v one ttl 60 stamp 123"), Ok(full.clone()));
        assert_eq!(parse("put 137 v STAMP 123 TTL 60 one"), Ok(full));
    }

    #[test]
    fn wrong_lines_are_answered_with_the_grammar() {
        for (line, said) in [
            ("put", "a key and a value are needed: put KEY VALUE [LEVEL]"),
            ("put 1", "a key and a value are needed: put KEY VALUE [LEVEL]"),
            ("put 256 v", "a classic key is a number from 0 to 255; for the text 256 write '256': put KEY"),
            ("put 1 v most", "most is no level; there are one, two, three, quorum, all, any: put KEY"),
            ("put 1 v 'one'", "one is no level"),
            ("put 1 two words one", "words is no level"),
            ("put 1 v one all", "all is one too many: put"),
            ("put 1 v ttl", "ttl takes a number of seconds, 1 or more: put"),
            ("put 1 v ttl 0", "ttl takes a number of seconds, 1 or more: put"),
            ("put 1 v ttl 5 ttl 6", "ttl is one too many: put"),
            ("put 1 v stamp x", "stamp takes a number of microseconds since 1970: put"),
            ("get", "a key is needed: get KEY [LEVEL]"),
            ("get 1 ttl 5", "ttl is no level"),
            ("del 1 ttl 5", "ttl is no level"),
            ("ring", "one key is needed: ring KEY"),
            ("ring 1 2", "one key is needed: ring KEY"),
            ("trace", "on or off is needed: trace on|off"),
            ("trace maybe", "on or off is needed: trace on|off"),
            ("status now", "nothing may follow, not now: status"),
            ("set 1 v", "set is no command; there are put, get, del, status, ring, trace, stats, help, exit"),
            ("'put' 1 v", "put is no command"),
            ("put 1 'v", "the closing ' is missing"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(said), "{line} gave {error}");
        }
    }

    #[test]
    fn help_shows_every_command() {
        let help = help();
        assert!(help.starts_with("put KEY VALUE [LEVEL]"));
        for (name, grammar, meaning) in COMMANDS {
            assert!(grammar.starts_with(name));
            assert!(help.contains(grammar) && help.contains(meaning));
        }
        for (name, grammar, _) in COMMANDS {
            assert!(parse(name).is_ok() || parse(name).unwrap_err().ends_with(grammar), "{name}");
        }
    }
}
