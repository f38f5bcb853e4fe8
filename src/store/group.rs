//! When the log's writer takes its next batch: at once, unless several requests are written at the same time.
//!
//! A commit costs about the same whatever is in it: an fsync, whole pages, wake-ups on each replica. If it begins as
//! soon as the last one ended it carries only those who were answered before the others, and the others go with the
//! next. So after a commit of several requests the next begins a window later, in which the rest comes. A client that
//! writes one after the other is not delayed. Cassandra calls that `commitlog_sync: group`, PostgreSQL `commit_delay`
//! with `commit_siblings`.
//!
//! Not here: what fills a transaction or the queue, and is not kept waiting either (`queue`).

use std::time::Duration;

use tokio::time::Instant;

/// After a commit of fewer requests than this the next may follow at once.
pub(super) const SEVERAL: usize = 6;

/// This many waiting requests are worth a commit, however soon after the last.
pub(super) const ENOUGH: usize = 32;

/// Keeps the commits of a log apart.
pub(super) struct Group {
    window: Duration,
    /// When the last commit began that carried several.
    began: Option<Instant>,
}

impl Group {
    /// After a commit of [`SEVERAL`] requests the next begins `window` later, unless [`ENOUGH`] wait.
    pub fn new(window: Duration) -> Group {
        Group { window, began: None }
    }

    /// A commit of this many requests begins.
    pub fn begins(&mut self, requests: usize) {
        self.began = (requests >= SEVERAL && !self.window.is_zero()).then(Instant::now);
    }

    /// True if the next commit is kept apart from the last, which carried several; never without a window.
    pub fn keeps_apart(&self) -> bool {
        self.began.is_some()
    }

    /// What is left of the window.
    pub fn rest(&self) -> Option<Duration> {
        let rest = self.window.saturating_sub(self.began?.elapsed());
        (!rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_help_text_of_the_window_names_these_numbers() {
        let settings = Config::default().to_toml();
        let entry = settings.split("\n\n").find(|entry| entry.contains("\ncommit_group_window_us = "));
        let help = entry.expect("it is a setting").replace("\n# ", " ");
        assert!(help.contains(&format!("commit of {SEVERAL} or more requests")), "{help}");
        assert!(help.contains(&format!("unless {ENOUGH} are queued")), "{help}");
    }

    #[tokio::test(start_paused = true)]
    async fn commits_of_several_are_kept_apart_and_others_are_not() {
        let window = Duration::from_millis(10);
        let mut group = Group::new(window);
        assert_eq!(group.rest(), None);
        group.begins(SEVERAL - 1);
        assert_eq!((group.rest(), group.keeps_apart()), (None, false));
        group.begins(SEVERAL);
        assert_eq!((group.rest(), group.keeps_apart()), (Some(window), true));
        tokio::time::advance(Duration::from_millis(4)).await;
        assert_eq!(group.rest(), Some(Duration::from_millis(6)));
        tokio::time::advance(Duration::from_millis(6)).await;
        assert_eq!(group.rest(), None);
        group.begins(SEVERAL);
        group.begins(1);
        assert_eq!(group.rest(), None, "now somebody writes alone");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_window_nothing_waits() {
        let mut group = Group::new(Duration::ZERO);
        group.begins(1_000);
        assert_eq!((group.rest(), group.keeps_apart()), (None, false));
    }
}
