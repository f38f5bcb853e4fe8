//! The line editor: prompt, history that outlives the console, completion of commands and levels.

use std::path::PathBuf;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Context, Editor, Helper, Highlighter, Hinter, Validator};

use super::command::COMMANDS;
use crate::client::text::LEVELS;

/// Lines remembered across runs.
const HISTORY_LINES_MAX: usize = 10_000;

/// Lines from the terminal.
pub(super) struct Lines {
    editor: Editor<Words, FileHistory>,
    /// Where lines are remembered; `None`: nowhere to put them.
    history: Option<PathBuf>,
}

impl Lines {
    /// The terminal, with the history of earlier runs.
    pub(super) fn open() -> Lines {
        let config = Config::builder()
            .max_history_size(HISTORY_LINES_MAX)
            .and_then(|config| config.history_ignore_dups(true))
            .map(|config| config.history_ignore_space(true).build())
            .unwrap_or_default();
        let mut editor = Editor::with_config(config).expect("standard input is a terminal");
        editor.set_helper(Some(Words));
        let history = history_file();
        if let Some(history) = &history {
            let _ = editor.load_history(history); // there is none before the first line
        }
        Lines { editor, history }
    }

    /// The next line, remembered at once, so that a closed terminal loses none.
    pub(super) fn next(&mut self) -> Result<String, ReadlineError> {
        let line = self.editor.readline("> ")?;
        if !line.trim().is_empty()
            && self.editor.add_history_entry(&line).unwrap_or(false)
            && let Some(history) = &self.history
        {
            let _ = self.editor.append_history(history); // a console without history is still a console
        }
        Ok(line)
    }
}

/// `$XDG_STATE_HOME/tetrachord/history`, or `~/.tetrachord_history`.
fn history_file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(state) = set("XDG_STATE_HOME") {
        let folder = state.join("tetrachord");
        if std::fs::create_dir_all(&folder).is_ok() {
            return Some(folder.join("history"));
        }
    }
    set("HOME").map(|home| home.join(".tetrachord_history"))
}

#[derive(Helper, Highlighter, Hinter, Validator)]
struct Words;

impl Completer for Words {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, candidates) = complete(&line[..position]);
        let pair = |word: &&str| Pair { display: (*word).to_owned(), replacement: format!("{word} ") };
        Ok((start, candidates.iter().map(pair).collect()))
    }
}

/// Where the last word of `typed` starts, and the words it may become.
fn complete(typed: &str) -> (usize, Vec<&'static str>) {
    let start = typed.trim_end_matches(|typed: char| !typed.is_whitespace()).len();
    let (before, begun) = (typed[..start].to_ascii_lowercase(), typed[start..].to_ascii_lowercase());
    let before: Vec<&str> = before.split_whitespace().collect();
    let possible: Vec<&str> = match before.as_slice() {
        [] => COMMANDS.iter().map(|(name, ..)| *name).collect(),
        ["put", _, _, ..] => LEVELS.into_iter().chain(["ttl", "stamp"]).collect(),
        ["get", _] => LEVELS.to_vec(),
        ["del" | "delete" | "remove", _, ..] => LEVELS.into_iter().chain(["stamp"]).collect(),
        ["trace"] => vec!["on", "off"],
        _ => Vec::new(),
    };
    (start, possible.into_iter().filter(|word| word.starts_with(&begun)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_levels_are_completed_where_they_may_stand() {
        for (typed, start, words) in [
            ("p", 0, vec!["put"]),
            ("ST", 0, vec!["status", "stats"]),
            ("put 1 q", 6, vec![]),
            ("put 1 v q", 8, vec!["quorum"]),
            ("put 1 v one t", 12, vec!["two", "three", "ttl"]),
            ("get 1 t", 6, vec!["two", "three"]),
            ("get ", 4, vec![]),
            ("del 1 st", 6, vec!["stamp"]),
            ("trace o", 6, vec!["on", "off"]),
            ("größe p", 8, vec![]),
            ("get\u{a0}1\u{3000}t", 9, vec!["two", "three"]),
        ] {
            assert_eq!(complete(typed), (start, words), "{typed}");
        }
    }
}
