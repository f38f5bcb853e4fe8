//! Links that are cut on purpose: from whom this server hears nothing. For drills; `test_fault_switch` in `config`.
//!
//! The setting names a file, and the file names servers by number. What comes from those servers is held back, requests
//! and answers alike; nothing is refused and no connection is closed, so that only silence shows it, as with a cable
//! pulled out. Once the file no longer names them it is heard, late, if the sender has not given up: so does TCP.
//! The file of one server cuts one direction of a link, the files of both cut both.
//!
//! What must always be true: without the setting there is no switch, and nothing that comes over the wire makes one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::answer::NodeId;
use crate::config::Config;

/// How often the file is read.
const READ_EVERY: Duration = Duration::from_millis(20);

/// From whom nothing is heard. Clones share it; the default hears everybody for ever.
#[derive(Clone, Default)]
pub struct Cut(Option<watch::Receiver<BTreeSet<NodeId>>>);

impl Cut {
    /// Follows the file of the setting, if there is one; says so, since nobody wants it in production. Must then be
    /// called inside a tokio runtime.
    pub fn start(config: &Config) -> Cut {
        if config.test_fault_switch.is_empty() {
            return Cut::default();
        }
        let file = PathBuf::from(&config.test_fault_switch);
        log::warn!("test_fault_switch: this server hears nothing from servers named in {}", file.display());
        let (switch, heard) = watch::channel(unheard(&file));
        tokio::spawn(follow(file, switch));
        Cut(Some(heard))
    }

    /// True if what comes from this server is held back now.
    pub fn holds(&self, from: NodeId) -> bool {
        self.0.as_ref().is_some_and(|unheard| unheard.borrow().contains(&from))
    }

    /// Returns once this server may be heard; nearly always at once.
    pub async fn whole(&self, from: NodeId) {
        if let Some(unheard) = &self.0 {
            // An error means that the follower is gone with its runtime: then nothing is heard any more anyway.
            let _ = unheard.clone().wait_for(|unheard| !unheard.contains(&from)).await;
        }
    }
}

/// Ends when nobody asks any more.
async fn follow(file: PathBuf, switch: watch::Sender<BTreeSet<NodeId>>) {
    while !switch.is_closed() {
        tokio::time::sleep(READ_EVERY).await;
        let now = unheard(&file);
        switch.send_if_modified(|before| {
            let news = *before != now;
            if news {
                *before = now;
            }
            news
        });
    }
}

/// The numbers in the file; none if it cannot be read.
fn unheard(file: &Path) -> BTreeSet<NodeId> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).map(NodeId).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_the_setting_everybody_is_heard() {
        let cut = Cut::start(&Config::default());
        assert!(cut.0.is_none());
        assert!(!cut.holds(NodeId(1)));
        cut.whole(NodeId(1)).await;
    }

    #[tokio::test]
    async fn the_file_decides_who_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("unheard");
        let setting = file.to_str().unwrap().to_owned();
        std::fs::write(&file, "1\n3\n").unwrap();
        let cut = Cut::start(&Config { test_fault_switch: setting, ..Config::default() });
        assert_eq!([0, 1, 2, 3].map(|id| cut.holds(NodeId(id))), [false, true, false, true]);
        std::fs::write(&file, "3").unwrap();
        cut.whole(NodeId(1)).await;
        assert!(cut.holds(NodeId(3)));
        std::fs::remove_file(&file).unwrap();
        cut.whole(NodeId(3)).await;
    }
}
