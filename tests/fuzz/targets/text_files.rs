//! `nodes.txt` and the configuration file: any text is refused with its line or read, and what was read can be written
//! down and read again.

use std::path::Path;

use tetrachord::config::{Config, ConfigError};
use tetrachord::nodes::{Nodes, NodesError};

use super::{Seeds, Target};

pub const NODES: Target = Target {
    name: "nodes",
    start: || Box::new(nodes),
    input_bytes_max: 2_000,
    rounds: 40_000,
    seeds: nodes_seeds,
};

pub const CONFIG: Target = Target {
    name: "config",
    start: || Box::new(config),
    input_bytes_max: 16_000,
    rounds: 2_000,
    seeds: config_seeds,
};

fn nodes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let path = Path::new("nodes.txt");
    let nodes = match Nodes::parse(&text, path) {
        Ok(nodes) => nodes,
        Err(error) => {
            assert!(error.to_string().starts_with("nodes.txt"), "{error}");
            if let NodesError::BadLine { line, .. } | NodesError::Duplicate { line, .. } = error {
                assert!((1..=text.lines().count()).contains(&line), "line {line}");
            }
            return;
        }
    };
    let written: Vec<String> = nodes.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(Nodes::parse(&written.join("\n"), path).expect("what was read can be read again"), nodes);
    let mut distinct = written.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), nodes.len(), "no address twice");
    for id in nodes.ids() {
        let address = nodes.address(id).expect("an id of the list");
        assert!(nodes.with_port(address.port).contains(&id));
    }
}

fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let path = Path::new("server.toml");
    match Config::parse(&text, path) {
        Ok(config) => {
            let again = Config::parse(&config.to_toml(), path).expect("what is printed can be read");
            assert_eq!(again, config);
        }
        Err(error) => {
            assert!(error.to_string().starts_with("server.toml"), "{error}");
            if let ConfigError::Impossible { line, .. } = error {
                assert!((1..=text.lines().count().max(1)).contains(&line), "line {line}");
            }
        }
    }
}

fn nodes_seeds() -> Seeds {
    [
        ("local", "# the ring\n127.0.0.1:9000\n127.0.0.1:9001\n127.0.0.1:9002\n127.0.0.1:9003\n"),
        ("names", "  node-0.example:9000 # first\r\n\r\nnode-1.example:9000\r\n[::1]:9001"),
        ("duplicate", "a:1\n\na:1\n"),
        ("bad", "a:1\n::1:9000\nb:0\nc\n:1\na b:9\n"),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .into()
}

fn config_seeds() -> Seeds {
    let mut seeds: Seeds = [
        ("small", "durability = \"process-crash\"\nread_repair = false\nread_repair_chance = 0.5\n"),
        ("text", "cluster_name = 'a \"b\"'\nlisten_address = \"\\u0001\\n\u{fc}\"\n"),
        ("bounds", "heartbeat_ms = 60_000\nsuspect_after_intervals = 2\ndown_after_intervals = 1e3\n"),
        ("wrong", "[table]\nheartbeat_ms = 0\n"),
        ("at-odds", "value_bytes_max = 500_000_000\nmessage_bytes_max = 0x3e8\n"),
        ("nan", "read_repair_chance = nan\nsuspect_after_intervals = inf\ntest_clock_offset_ms = -1\n"),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .into();
    let settings = Config::default().to_toml();
    let bare: Vec<&str> =
        settings.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    seeds.push(("all".to_owned(), bare.join("\n").into_bytes()));
    seeds
}
