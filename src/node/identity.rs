//! What a data directory remembers: whose it is. `identity.json`, written before anything else is stored.
//!
//! A directory belongs to one server of one ring of one cluster. Serving it as another server, or under a `nodes.txt`
//! that would place keys elsewhere, would lose sight of data, so that is refused; a server that merely moved to another
//! address is welcome. The generation rises with every start, so that others can tell a restarted server from its
//! former self.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::answer::NodeId;
use crate::config::Config;
use crate::nodes::Nodes;

const FILE: &str = "identity.json";
const FORMAT: u32 = 1;

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remembered {
    format: u32,
    cluster: String,
    node: u32,
    replication_factor: usize,
    /// The servers' addresses, in ring order, at the last start.
    addresses: Vec<String>,
    /// Of the last start.
    pub(super) generation: i64,
}

/// Why a data directory is refused. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is another server's, another cluster's, or its keys would move.
    #[error("{dir} is refused: {why}", dir = dir.display())]
    Foreign {
        /// The data directory.
        dir: PathBuf,
        /// What does not fit, and what to do.
        why: String,
    },
    /// It holds data but does not say whose.
    #[error(
        "{dir} holds data but no readable {FILE} ({why}); restore that file from a copy, or move the directory away \
         and start with an empty one: the other replicas have what they acknowledged and give it back, and \
         the hints it kept for others are lost",
        dir = dir.display()
    )]
    Unreadable {
        /// The data directory.
        dir: PathBuf,
        /// What is wrong with the file.
        why: String,
    },
    /// It cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Checks that `dir` is this server's, and remembers this start. `wall_us` is the wall clock.
pub(super) fn claim(
    dir: &Path,
    config: &Config,
    nodes: &Nodes,
    me: NodeId,
    wall_us: i64,
) -> Result<Remembered, IdentityError> {
    let mut claimed = Remembered {
        format: FORMAT,
        cluster: config.cluster_name.clone(),
        node: me.0,
        replication_factor: config.replication_factor,
        addresses: nodes.addresses().iter().map(ToString::to_string).collect(),
        generation: wall_us,
    };
    if let Some(former) = load(dir)? {
        if let Some(why) = conflict(&former, &claimed) {
            return Err(IdentityError::Foreign { dir: dir.to_owned(), why });
        }
        claimed.generation = wall_us.max(former.generation + 1);
    }
    let path = dir.join(FILE);
    save(dir, &path, &claimed).map_err(|source| IdentityError::Unwritable { path, source })?;
    Ok(claimed)
}

fn load(dir: &Path) -> Result<Option<Remembered>, IdentityError> {
    let unreadable = |why: String| IdentityError::Unreadable { dir: dir.to_owned(), why };
    match fs::read(dir.join(FILE)) {
        Ok(bytes) => parse(dir, &bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if dir.join("log.db").exists() || dir.join("data.db").exists() {
                return Err(unreadable("it is missing".to_owned()));
            }
            Ok(None)
        }
        Err(error) => Err(unreadable(error.to_string())),
    }
}

fn parse(dir: &Path, bytes: &[u8]) -> Result<Option<Remembered>, IdentityError> {
    #[derive(Deserialize)]
    struct OfAnyFormat {
        format: u32,
    }
    let unreadable =
        |error: serde_json::Error| IdentityError::Unreadable { dir: dir.to_owned(), why: error.to_string() };
    let OfAnyFormat { format } = serde_json::from_slice(bytes).map_err(unreadable)?;
    if format != FORMAT {
        let why =
            format!("it has format {format}, this program knows {FORMAT}; use the program that wrote it");
        return Err(IdentityError::Foreign { dir: dir.to_owned(), why });
    }
    serde_json::from_slice(bytes).map(Some).map_err(unreadable)
}

/// What does not fit between what the directory remembers and what is claimed now.
fn conflict(former: &Remembered, claimed: &Remembered) -> Option<String> {
    if former.cluster != claimed.cluster {
        return Some(format!(
            "it belongs to cluster '{}', not '{}'; correct cluster_name, or use another --data directory",
            former.cluster, claimed.cluster
        ));
    }
    if former.node != claimed.node {
        return Some(format!(
            "it belongs to server {}, not server {}; start that server, or use another --data directory",
            former.node, claimed.node
        ));
    }
    if former.addresses.len() != claimed.addresses.len() {
        return Some(format!(
            "it was written in a ring of {} servers, nodes.txt names {}; that would move keys, so restore the former \
             nodes.txt",
            former.addresses.len(),
            claimed.addresses.len()
        ));
    }
    if former.replication_factor != claimed.replication_factor {
        return Some(format!(
            "it was written with replication_factor = {}, not {}; that would move keys, so restore the former setting",
            former.replication_factor, claimed.replication_factor
        ));
    }
    // An address that is now another server's: the lines were reordered, and each server's keys with them.
    for (id, address) in claimed.addresses.iter().enumerate() {
        if let Some(was) =
            former.addresses.iter().position(|former| former == address).filter(|was| *was != id)
        {
            return Some(format!(
                "{address} was server {was} and is server {id} in nodes.txt now; another order would move keys, so \
                 restore the former order"
            ));
        }
    }
    None
}

/// Replaces the file in one step: after a crash it is the former or the new one.
fn save(dir: &Path, path: &Path, remembered: &Remembered) -> std::io::Result<()> {
    let scratch = dir.join("identity.json.new");
    let mut file = File::create(&scratch)?;
    file.write_all(serde_json::to_string_pretty(remembered).expect("plain values").as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&scratch, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ports: &[u16]) -> Nodes {
        let text: String = ports.iter().map(|port| format!("127.0.0.1:{port}\n")).collect();
        Nodes::parse(&text, Path::new("nodes.txt")).unwrap()
    }

    fn claim_as(dir: &Path, config: &Config, ports: &[u16], me: u32, wall_us: i64) -> Result<i64, String> {
        claim(dir, config, &nodes(ports), NodeId(me), wall_us)
            .map(|remembered| remembered.generation)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn generations_rise_even_when_the_clock_falls() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        assert_eq!(claim_as(dir.path(), &config, &[1, 2], 0, 1000), Ok(1000));
        assert_eq!(claim_as(dir.path(), &config, &[1, 2], 0, 10), Ok(1001));
    }

    #[test]
    fn a_changed_address_is_fine_and_moved_keys_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        claim_as(dir.path(), &config, &[1, 2, 3], 0, 1).unwrap();
        claim_as(dir.path(), &config, &[7, 2, 3], 0, 1).unwrap();
        let refused = |ports: &[u16], me| claim_as(dir.path(), &config, ports, me, 1).unwrap_err();
        assert!(refused(&[7, 3, 2], 0).contains("restore the former order"));
        assert!(refused(&[7, 2], 0).contains("ring of 3 servers"));
        assert!(refused(&[7, 2, 3], 1).contains("belongs to server 0"));
        let other = Config { cluster_name: "other".to_owned(), ..Config::default() };
        assert!(
            claim_as(dir.path(), &other, &[7, 2, 3], 0, 1)
                .unwrap_err()
                .contains("belongs to cluster 'tetrachord'")
        );
        let thinner = Config { replication_factor: 2, ..Config::default() };
        assert!(
            claim_as(dir.path(), &thinner, &[7, 2, 3], 0, 1).unwrap_err().contains("replication_factor = 3")
        );
    }

    #[test]
    fn data_without_a_readable_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("log.db"), b"").unwrap();
        let refused = claim_as(dir.path(), &Config::default(), &[1], 0, 1).unwrap_err();
        assert!(refused.contains("it is missing"), "{refused}");
        fs::write(dir.path().join(FILE), b"{").unwrap();
        let refused = claim_as(dir.path(), &Config::default(), &[1], 0, 1).unwrap_err();
        assert!(refused.contains("restore that file"), "{refused}");
    }
}
