//! `nodes.txt`: who is in the cluster. One `host:port` per line; line i, not counting blank lines and `#` comments, is
//! server i. The order is the order on the ring, so it never changes once there is data.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::answer::NodeId;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Name or IP address; IPv6 in brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The servers of the cluster in the order of their ids. Never empty, no address twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    addresses: Vec<Address>,
}

/// Why `nodes.txt` was refused. Nothing was started or changed.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; ./server.sh writes one for this machine", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not `host:port`.
    #[error("{path} line {line}: '{text}' is not host:port ({why})", path = path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two lines name the same address.
    #[error("{path} line {line}: {address} is already server {id}; every server needs its own line and port",
            path = path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The address.
        address: Address,
        /// The server that has it.
        id: NodeId,
    },
    /// No line names a server.
    #[error("{path} names no server; write one host:port per line", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// More servers than a ring may have.
const NODES_MAX: usize = 10_000;

impl Nodes {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Nodes, NodesError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| NodesError::Unreadable { path: path.to_owned(), source })?;
        Nodes::parse(&text, path)
    }

    /// Reads the text of a file; `path` is for the messages.
    pub fn parse(text: &str, path: &Path) -> Result<Nodes, NodesError> {
        let mut addresses: Vec<Address> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let entry = line.split('#').next().expect("split yields at least one part").trim();
            if entry.is_empty() {
                continue;
            }
            let bad = |why| NodesError::BadLine {
                path: path.to_owned(),
                line: index + 1,
                text: entry.chars().take(80).collect(),
                why,
            };
            let address = parse_address(entry).map_err(bad)?;
            if addresses.len() == NODES_MAX {
                return Err(bad("more servers than a ring may have"));
            }
            if let Some(id) = addresses.iter().position(|known| *known == address) {
                let id = NodeId(id as u32);
                return Err(NodesError::Duplicate { path: path.to_owned(), line: index + 1, address, id });
            }
            addresses.push(address);
        }
        if addresses.is_empty() {
            return Err(NodesError::Empty { path: path.to_owned() });
        }
        Ok(Nodes { addresses })
    }

    /// Servers that are on this list in this order; for tests and embedding.
    pub fn new(addresses: Vec<Address>) -> Nodes {
        assert!(!addresses.is_empty());
        Nodes { addresses }
    }

    /// How many servers there are; at least 1.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Every server's id.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.addresses.len() as u32).map(NodeId)
    }

    /// Every address, in the order of the ids.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where `id` listens; `None` if there is no such server.
    pub fn address(&self, id: NodeId) -> Option<&Address> {
        self.addresses.get(id.0 as usize)
    }

    /// The servers whose line has this port, on whatever host.
    pub fn with_port(&self, port: u16) -> Vec<NodeId> {
        self.ids().filter(|id| self.addresses[id.0 as usize].port == port).collect()
    }
}

fn parse_address(entry: &str) -> Result<Address, &'static str> {
    let (host, port) = entry.rsplit_once(':').ok_or("no colon")?;
    let port: u16 = port.parse().map_err(|_| "the port is not a number from 1 to 65535")?;
    if port == 0 {
        return Err("the port is not a number from 1 to 65535");
    }
    if host.is_empty() {
        return Err("no host");
    }
    if host.contains(char::is_whitespace) || (host.contains(':') && !host.starts_with('[')) {
        return Err("the host is not a name or an address; IPv6 addresses stand in brackets");
    }
    Ok(Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Nodes, String> {
        Nodes::parse(text, Path::new("nodes.txt")).map_err(|error| error.to_string())
    }

    #[test]
    fn blank_lines_and_comments_do_not_count() {
        let nodes = parse("# the ring\n\n127.0.0.1:9000\n  [::1]:9001  # second\n").unwrap();
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes.address(NodeId(1)).unwrap().to_string(), "[::1]:9001");
        assert_eq!(nodes.with_port(9001), vec![NodeId(1)]);
        assert_eq!(nodes.address(NodeId(2)), None);
    }

    #[test]
    fn a_mistake_names_its_line() {
        for (text, said) in [
            ("", "nodes.txt names no server"),
            ("# only this\n", "nodes.txt names no server"),
            ("a:1\nb\n", "line 2: 'b' is not host:port (no colon)"),
            ("a:1\n\na:1\n", "line 3: a:1 is already server 0"),
            ("a:0", "line 1: 'a:0' is not host:port (the port"),
            ("a:65536", "(the port is not a number"),
            (":9000", "(no host)"),
            ("::1:9000", "brackets"),
            ("a b:9000", "not a name"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text:?} gave {error}");
        }
    }
}
