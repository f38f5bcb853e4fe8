//! An error for whoever started a program: what went wrong and why, each cause once.
//!
//! The errors of this project name their cause in their text, for they are also logged and sent alone; a context put
//! around an error (`anyhow`) does not. To print all causes of one says the first kind twice, to print none loses the
//! second.

/// The error, and each of its causes that it has not named.
pub fn text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use anyhow::Context;

    use super::*;
    use crate::config::Config;

    #[test]
    fn each_cause_is_named_once() {
        let unreadable = Config::load(Path::new("/dev/null/absent")).unwrap_err().to_string();
        let error = || Config::load(Path::new("/dev/null/absent"));
        assert_eq!(text(&error().unwrap_err().into()), unreadable);
        assert_eq!(text(&error().context("no start").unwrap_err()), format!("no start: {unreadable}"));
        let plain = Err::<(), _>(io::Error::other("broken")).context("no runtime").context("no start");
        assert_eq!(text(&plain.unwrap_err()), "no start: no runtime: broken");
    }
}
