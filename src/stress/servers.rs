//! What a load costs the servers: their counters before and after, and what the system says of their processes.
//!
//! Counters come over the wire. Processor time, memory and bytes written come from `/proc`, where the server runs on
//! this machine: its process is the one that listens on its port. Of a server elsewhere only what it tells itself is
//! known.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;

use crate::answer::NodeId;
use crate::client::{Client, ClientOptions};
use crate::net::TcpListener;
use crate::nodes::{Address, Nodes};
use crate::thrift::method::{Describe, GetStats};

/// How long servers are asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// Microseconds of one clock tick of `/proc/PID/stat`: Linux shows 100 a second to programs on every machine.
const CLOCK_TICK_US: u64 = 10_000;

/// Asks the servers of a load about themselves.
pub struct Servers {
    client: Client,
    /// Not asked: they know the classic service alone.
    foreign: bool,
    pids: Vec<Option<u32>>,
}

/// What the cluster says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// "power-loss", "process-crash", several of them, or why it is not known.
    pub durability: String,
    /// Copies of each key, if known.
    pub copies: Option<i32>,
    /// Every server there is, if one that was asked has named them.
    pub members: Option<Nodes>,
    /// Servers that could not be asked, and why.
    pub unreachable: Vec<(NodeId, String)>,
}

/// What is known of one server at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Its process, if it runs here.
    pub process: Option<Process>,
    /// Its counters, if it told them.
    pub counters: Option<BTreeMap<String, i64>>,
}

/// What the system says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Processor time so far, in user code and in the kernel.
    pub cpu_us: u64,
    /// Memory in use.
    pub resident_bytes: u64,
    /// Bytes it has sent towards a disk; `None` where the system does not tell.
    pub written_bytes: Option<u64>,
}

/// What the cluster keeps of what it acknowledged, when it does not say so.
const UNKNOWN_DURABILITY: &str = "unknown durability";

impl Servers {
    /// Finds the processes of those that run here.
    pub async fn new(nodes: &Nodes, foreign: bool) -> Servers {
        let client = Client::new(nodes.clone(), ClientOptions::default().with_call_timeout(PATIENCE));
        let pids = join_all(nodes.addresses().iter().map(pid_of)).await;
        Servers { client, foreign, pids }
    }

    /// The servers asked.
    pub fn nodes(&self) -> &Nodes {
        self.client.nodes()
    }

    /// Asks every server what it promises.
    pub async fn describe(&self) -> Cluster {
        if self.foreign {
            return Cluster { durability: UNKNOWN_DURABILITY.to_owned(), ..Cluster::default() };
        }
        let mut cluster = Cluster::default();
        let mut durabilities: Vec<String> = Vec::new();
        let nodes: Vec<NodeId> = self.client.nodes().ids().collect();
        let answers = join_all(nodes.iter().map(|node| self.client.call_on::<Describe>(*node, &()))).await;
        for (node, answer) in nodes.into_iter().zip(answers) {
            match answer {
                Ok(described) => {
                    cluster.copies = cluster.copies.or(described.replication_factor);
                    let mut members = described.members.unwrap_or_default();
                    members.sort_by_key(|member| member.id); // they come in ring order
                    let named: Vec<String> =
                        members.into_iter().filter_map(|member| member.address).collect();
                    let known = Nodes::parse(&named.join("\n"), Path::new("members")).ok();
                    cluster.members = cluster.members.or(known);
                    let durability = described.durability.unwrap_or(UNKNOWN_DURABILITY.to_owned());
                    if !durabilities.contains(&durability) {
                        durabilities.push(durability);
                    }
                }
                Err(error) => cluster.unreachable.push((node, error.to_string())),
            }
        }
        cluster.durability = match durabilities.as_slice() {
            [] => UNKNOWN_DURABILITY.to_owned(),
            [one] => one.clone(),
            several => format!("mixed: {}", several.join(" and ")),
        };
        cluster
    }

    /// Every server, as it is now, in the order of the ids.
    pub async fn look(&self) -> Vec<State> {
        let nodes = self.client.nodes().ids();
        join_all(nodes.zip(&self.pids).map(|(node, pid)| async move {
            let counters = async { self.client.call_on::<GetStats>(node, &()).await.ok()?.values };
            State {
                counters: if self.foreign { None } else { counters.await },
                process: pid.and_then(look_at),
            }
        }))
        .await
    }
}

/// What the system says of this tool.
pub fn own_process() -> Option<Process> {
    look_at(std::process::id())
}

/// What the system says of a process; `None` if there is none, or no `/proc`.
pub fn look_at(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    Some(Process {
        pid,
        cpu_us: cpu_ticks(&stat)? * CLOCK_TICK_US,
        resident_bytes: named(&status, "VmRSS:")? * 1024,
        written_bytes: named(&io, "write_bytes:"),
    })
}

/// User and system time of `/proc/PID/stat`, whose second field may hold blanks and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// The number behind a name at the start of a line.
fn named(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The process that listens at an address of this machine.
async fn pid_of(address: &Address) -> Option<u32> {
    let host = address.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    // Only an address of this machine can be listened on.
    let probe = TcpListener::bind((host, 0)).await.ok()?;
    let ip = probe.local_addr().ok()?.ip();
    let sockets =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let socket = sockets.iter().find_map(|table| listening(table, ip, address.port))?;
    owner_of(&format!("socket:[{socket}]"))
}

/// The inode of the socket that listens on a port, at this address or at all, in a table of `/proc/net`.
fn listening(table: &str, ip: IpAddr, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (at, at_port) = fields.get(1)?.split_once(':')?;
        let here = u16::from_str_radix(at_port, 16) == Ok(port) && *fields.get(3)? == LISTEN;
        let every_address = at.bytes().all(|digit| digit == b'0');
        if here && (every_address || at == proc_form(ip)) { fields.get(9)?.parse().ok() } else { None }
    })
}

/// An address as `/proc/net` writes it: words of four bytes in the machine's order, in hexadecimal.
fn proc_form(ip: IpAddr) -> String {
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")));
    words.map(|word| format!("{word:08X}")).collect()
}

/// The process that has this open.
fn owner_of(what: &str) -> Option<u32> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue }; // not ours to look into
        let mut links = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        if links.any(|link| link.to_str() == Some(what)) {
            return Some(pid);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_read() {
        let stat = "12 (a ) b) S 1 12 12 0 -1 4194304 100 0 0 0 70 30 0 0 20 0 4 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("nonsense"), None);
        assert_eq!(named("VmPeak: 5 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
    }

    #[test]
    fn listening_sockets_are_told_from_others() {
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let at = proc_form(ip);
        let row = |at: &str, port: u16, state: &str, inode: u32| {
            format!(
                "   0: {at}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
            )
        };
        let table = [
            "  sl  local_address\n".to_owned(),
            row(&at, 9000, "01", 1),
            row(&at, 9000, "0A", 2),
            row("00000000", 9001, "0A", 3),
            row("0202A8C0", 9002, "0A", 4),
        ]
        .concat();
        assert_eq!(listening(&table, ip, 9000), Some(2));
        assert_eq!(listening(&table, ip, 9001), Some(3), "it listens on every address");
        assert_eq!(listening(&table, ip, 9002), None, "it listens on another address");
        assert_eq!(listening(&table, ip, 9003), None);
    }

    #[tokio::test]
    async fn this_process_is_found_by_the_port_it_listens_on() {
        if !std::path::Path::new("/proc/net/tcp").exists() {
            return; // a system without /proc
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = Address { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        assert_eq!(pid_of(&address).await, Some(std::process::id()));
        assert!(own_process().unwrap().resident_bytes > 0);
        let elsewhere = Address { host: "192.0.2.1".to_owned(), ..address };
        assert_eq!(pid_of(&elsewhere).await, None);
    }
}
