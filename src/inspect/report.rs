//! What an inspection has found, and how it looks: as text, as JSON, as an exit code.

use std::fmt::Write;

use serde_json::{Value, json};

use super::walk::{DIFFERENCES_MAX, is_live};
use crate::answer::NodeId;
use crate::client::text;
use crate::key::KV_TABLE;
use crate::thrift::chord::CellRow;

/// Characters of a value that are shown.
const VALUE_CHARS_MAX: usize = 40;

/// The state of a cluster, server by server, and what disagrees.
#[derive(Debug, Default)]
pub struct Report {
    /// Every server of nodes.txt, in order.
    pub servers: Vec<Server>,
    /// Hints waiting.
    pub hints: Vec<Hints>,
    /// Keys that at least one replica shows to a reader.
    pub keys: u64,
    /// Of those, the ones that all replicas asked hold alike.
    pub agreeing: u64,
    /// The first of the keys that differ, deleted and expired ones included.
    pub differences: Vec<Difference>,
    /// All of them.
    pub differing: u64,
    /// Cells on servers that should not have them.
    pub strays: Vec<Stray>,
    /// Owners of ranges of which fewer than two replicas could be asked, with how many could.
    pub uncompared: Vec<(NodeId, usize)>,
    /// Servers that see another ring than the first one asked.
    pub other_rings: Vec<NodeId>,
    /// What the servers say of the ranges, in the order of their owners' numbers.
    pub ranges: Vec<Range>,
}

/// A range, as its replicas see it.
#[derive(Clone, Debug)]
pub struct Range {
    /// Its first replica.
    pub owner: NodeId,
    /// All replicas hold the same up to this stamp; 0: not proven yet.
    pub proven_upto: i64,
    /// When that was proven (µs since 1970).
    pub proven_at: i64,
    /// Why it is not proven now; empty: it is.
    pub why: String,
}

/// One server.
#[derive(Debug)]
pub struct Server {
    /// Its number.
    pub node: NodeId,
    /// Why it could not be asked; `None`: it could.
    pub down: Option<String>,
    /// Cells it holds, tombstones and expired ones included.
    pub cells: u64,
    /// Of those, how many a reader would see.
    pub live: u64,
    /// The first of the live ones.
    pub first: Vec<Entry>,
}

/// A key and its value, as shown.
#[derive(Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value, or its beginning.
    pub value: String,
    /// Microseconds since 1970.
    pub stamp: i64,
}

/// Hints that one server keeps for another.
#[derive(Debug)]
pub struct Hints {
    /// Who keeps them.
    pub keeper: NodeId,
    /// Who is to get them.
    pub absent: NodeId,
    /// How many mutations.
    pub count: u64,
    /// How large they are.
    pub bytes: u64,
    /// No more are kept: the server has been away for too long, or they are too many.
    pub stopped: bool,
}

/// Cells of a range on a server that does not replicate it.
#[derive(Debug)]
pub struct Stray {
    /// Where they are.
    pub node: NodeId,
    /// How many.
    pub cells: u64,
    /// Where they should be.
    pub belongs_on: Vec<NodeId>,
    /// The first of their keys.
    pub example: String,
}

/// One key and the version each replica has of it.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The key, as shown.
    pub key: String,
    /// Each replica that was asked; `None`: it has nothing.
    pub versions: Vec<(NodeId, Option<Version>)>,
}

/// One version of a cell, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Microseconds since 1970.
    pub stamp: i64,
    /// "value", "expiring" or "tombstone".
    pub kind: String,
    /// Seconds since 1970; 0: never.
    pub expires: i64,
    /// Over all that replicas must agree on.
    pub hash: Vec<u8>,
    /// A reader would see it.
    pub live: bool,
}

/// A cell's key as shown: table and column only where they are not those of the plain key-value table.
pub(super) fn label(row: &CellRow) -> String {
    let mut label = String::new();
    let table = row.table.unwrap_or(0);
    if table != i32::from(KV_TABLE.0) {
        let _ = write!(label, "{table}/"); // writing to a string cannot fail
    }
    label += &text::shown_key(row.partition.as_deref().unwrap_or_default());
    if let Some(column) = row.column.as_deref().filter(|column| !column.is_empty()) {
        label.push('/');
        label += &text::value(column);
    }
    label
}

/// The value of a row as shown, cut where it is long.
pub(super) fn value(row: &CellRow) -> String {
    let bytes = row.value.as_deref().unwrap_or_default();
    let whole = row.value_size.is_none_or(|size| size <= bytes.len() as i64);
    if whole {
        return text::cut(&text::value(bytes), VALUE_CHARS_MAX);
    }
    let shown = match std::str::from_utf8(bytes) {
        // The server cut in the middle of a character.
        Err(error) if error.error_len().is_none() => text::value(&bytes[..error.valid_up_to()]),
        _ => text::value(bytes),
    };
    let shown = text::cut(&shown, VALUE_CHARS_MAX);
    if shown.ends_with('…') { shown } else { shown + "…" }
}

impl Version {
    pub(super) fn of(row: &CellRow) -> Version {
        Version {
            stamp: row.stamp.unwrap_or(0),
            kind: row.kind.clone().unwrap_or_default(),
            expires: row.expires.unwrap_or(0),
            hash: row.hash.clone().unwrap_or_default(),
            live: is_live(row, super::now_s()),
        }
    }

    /// The order of `cell::merge` as far as it can be told without the value.
    fn rank(&self) -> (i64, u8, i64) {
        let kind = match self.kind.as_str() {
            "tombstone" => 2,
            "expiring" => 1,
            _ => 0,
        };
        (self.stamp, kind, self.expires)
    }
}

impl Difference {
    pub(super) fn of(row: &CellRow, replicas: &[NodeId]) -> Difference {
        Difference { key: label(row), versions: replicas.iter().map(|node| (*node, None)).collect() }
    }

    pub(super) fn note(&mut self, node: NodeId, version: Version) {
        if let Some((_, known)) = self.versions.iter_mut().find(|(replica, _)| *replica == node) {
            *known = Some(version);
        }
    }

    /// True if the replicas do not all have the same.
    pub(super) fn differs(&self) -> bool {
        let hash = |version: &Option<Version>| version.as_ref().map(|version| version.hash.clone());
        self.versions.windows(2).any(|pair| hash(&pair[0].1) != hash(&pair[1].1))
    }

    /// True if a replica would show a value to a reader.
    pub(super) fn is_live(&self) -> bool {
        self.versions.iter().any(|(_, version)| version.as_ref().is_some_and(|version| version.live))
    }

    /// The version that wins, or one of those that may.
    fn newest(&self) -> Option<&Version> {
        let held = || self.versions.iter().filter_map(|(_, version)| version.as_ref());
        let holders = |hash: &[u8]| held().filter(|version| version.hash == hash).count();
        held().max_by_key(|version| (version.rank(), holders(&version.hash), version.hash.clone()))
    }

    /// The replicas that do not have the newest version, and what they have.
    pub(super) fn losers(&self) -> Vec<(NodeId, Option<&Version>)> {
        let newest = self.newest();
        let lost = |version: &Option<Version>| {
            version.as_ref().map(|version| &version.hash) != newest.map(|newest| &newest.hash)
        };
        let losers = self.versions.iter().filter(|(_, version)| lost(version));
        losers.map(|(node, version)| (*node, version.as_ref())).collect()
    }

    /// What is wrong, in words: `server 3 is behind (stamp 123 < 456), server 0 lacks it`.
    pub fn text(&self) -> String {
        let Some(newest) = self.newest() else { return String::new() };
        let deleted = newest.kind == "tombstone";
        let one = |(node, version): (NodeId, Option<&Version>)| match version {
            None if deleted => format!("server {node} lacks the deletion"),
            None => format!("server {node} lacks it"),
            Some(version) if version.stamp < newest.stamp => {
                let what = if deleted { ", a deletion" } else { "" };
                let (has, lacks) = (text::stamp(version.stamp), text::stamp(newest.stamp));
                format!("server {node} is behind (stamp {has} < {lacks}{what})")
            }
            Some(version) => {
                let stamp = text::stamp(version.stamp);
                format!("server {node} has something else under the same stamp {stamp}")
            }
        };
        self.losers().into_iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

impl Report {
    /// 0: all reachable replicas agree. 1: some do not. 2: they do, but a server could not be asked.
    pub fn exit_code(&self) -> u8 {
        if self.differing > 0 || !self.strays.is_empty() || !self.other_rings.is_empty() {
            1
        } else if self.servers.iter().any(|server| server.down.is_some()) {
            2
        } else {
            0
        }
    }

    fn ranges_text(&self) -> String {
        let Some(least) = self.ranges.iter().map(|range| range.proven_upto).min() else {
            return String::new();
        };
        if self.ranges.iter().all(|range| range.why.is_empty()) {
            return format!("proven equal: every range, up to {}\n", text::stamp_utc(least));
        }
        let mut out = String::new();
        for range in self.ranges.iter().filter(|range| !range.why.is_empty()) {
            let before = match range.proven_upto {
                0 => String::new(),
                upto => format!(" (it was, up to {})", text::stamp_utc(upto)),
            };
            out += &format!("range of server {}: not proven equal now: {}{before}\n", range.owner, range.why);
        }
        out
    }

    /// As a person reads it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let width = self.servers.iter().map(|server| text::count(server.live).len()).max().unwrap_or(1);
        let id_width = self.servers.len().saturating_sub(1).to_string().len();
        for server in &self.servers {
            out += server.text(id_width, width).trim_end();
            out.push('\n');
        }
        out += &self.hints_text();
        out += &self.ranges_text();
        for node in &self.other_rings {
            out += &format!("ring: server {node} sees another ring than the others\n");
        }
        for stray in &self.strays {
            let Stray { node, cells, belongs_on, example } = stray;
            let cells = text::plural(*cells, "cell that belongs", "cells that belong");
            out += &format!(
                "stray: server {node} holds {cells} on {}, such as key {example}\n",
                servers(belongs_on)
            );
        }
        for (owner, reachable) in &self.uncompared {
            let why = if *reachable == 0 { "no replica" } else { "only one replica" };
            out += &format!("not compared: the keys that server {owner} owns, {why} could be asked\n");
        }
        out += &self.consistency_text();
        out
    }

    fn hints_text(&self) -> String {
        if self.hints.is_empty() {
            return "hints: none\n".to_owned();
        }
        let line = |hints: &Hints| {
            let Hints { keeper, absent, count, stopped, .. } = hints;
            let stopped = if *stopped { "; no more are kept" } else { "" };
            format!("hints: server {keeper} holds {} for server {absent}{stopped}\n", text::count(*count))
        };
        self.hints.iter().map(line).collect()
    }

    fn consistency_text(&self) -> String {
        if self.servers.iter().all(|server| server.down.is_some()) {
            return "consistent: no server could be asked\n".to_owned();
        }
        let mut out = format!(
            "consistent: {} of {}",
            text::count(self.agreeing),
            text::plural(self.keys, "key", "keys")
        );
        let line = |difference: &Difference| format!("key {}: {}", difference.key, difference.text());
        match self.differences.as_slice() {
            [] => out.push('\n'),
            [only] if self.differing == 1 => out += &format!("; {}\n", line(only)),
            several => {
                out += &format!("; {} differ\n", text::count(self.differing));
                for difference in several {
                    out += &format!("  {}\n", line(difference));
                }
                if self.differing > several.len() as u64 {
                    out += &format!("  … and {} more\n", text::count(self.differing - several.len() as u64));
                }
            }
        }
        assert!(self.differences.len() <= DIFFERENCES_MAX);
        out
    }

    /// As a program reads it.
    pub fn json(&self) -> Value {
        let difference = |difference: &Difference| {
            let version = |(node, version): &(NodeId, Option<Version>)| match version {
                None => json!({"server": node.0, "has": false}),
                Some(version) => json!({"server": node.0, "has": true, "stamp": version.stamp,
                    "kind": version.kind, "expires": version.expires, "hash": text::hex(&version.hash)}),
            };
            json!({"key": difference.key, "text": difference.text(),
                "versions": difference.versions.iter().map(version).collect::<Vec<_>>()})
        };
        let server = |server: &Server| {
            let entry = |entry: &Entry| json!({"key": entry.key, "value": entry.value, "stamp": entry.stamp});
            match &server.down {
                Some(why) => json!({"server": server.node.0, "up": false, "why": why}),
                None => {
                    json!({"server": server.node.0, "up": true, "keys": server.live, "cells": server.cells,
                    "first": server.first.iter().map(entry).collect::<Vec<_>>()})
                }
            }
        };
        let hints = |hints: &Hints| {
            json!({"keeper": hints.keeper.0, "for": hints.absent.0, "count": hints.count, "bytes": hints.bytes,
                "stopped": hints.stopped})
        };
        let stray = |stray: &Stray| {
            let belongs_on: Vec<u32> = stray.belongs_on.iter().map(|node| node.0).collect();
            json!({"server": stray.node.0, "cells": stray.cells, "belongsOn": belongs_on, "example": stray.example})
        };
        let range = |range: &Range| {
            json!({"owner": range.owner.0, "provenUpto": range.proven_upto, "provenAt": range.proven_at,
                "notNow": range.why})
        };
        let uncompared =
            |(owner, reachable): &(NodeId, usize)| json!({"owner": owner.0, "reachable": reachable});
        json!({
            "servers": self.servers.iter().map(server).collect::<Vec<_>>(),
            "hints": self.hints.iter().map(hints).collect::<Vec<_>>(),
            "keys": self.keys,
            "agreeing": self.agreeing,
            "differing": self.differing,
            "differences": self.differences.iter().map(difference).collect::<Vec<_>>(),
            "strays": self.strays.iter().map(stray).collect::<Vec<_>>(),
            "uncompared": self.uncompared.iter().map(uncompared).collect::<Vec<_>>(),
            "ranges": self.ranges.iter().map(range).collect::<Vec<_>>(),
            "otherRings": self.other_rings.iter().map(|node| node.0).collect::<Vec<_>>(),
            "exit": self.exit_code(),
        })
    }
}

impl Server {
    fn text(&self, id_width: usize, count_width: usize) -> String {
        let node = format!("server {:<id_width$}", self.node.0);
        if let Some(why) = &self.down {
            return format!("{node}  DOWN  {why}");
        }
        let keys = if self.live == 1 { "key" } else { "keys" };
        let mut line = format!("{node}  up    {:>count_width$} {keys:<4}", text::count(self.live));
        for Entry { key, value, stamp } in &self.first {
            line += &format!("   {key} → {value} @{}", text::stamp(*stamp));
        }
        let more = self.live.saturating_sub(self.first.len() as u64);
        if more > 0 {
            line += &format!("   … and {} more", text::count(more));
        }
        if self.cells > self.live {
            line += &format!("   {} deleted or expired", text::count(self.cells - self.live));
        }
        line
    }
}

/// `servers 2, 3, 0`.
pub(super) fn servers(nodes: &[NodeId]) -> String {
    let ids: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
    format!("{} {}", if ids.len() == 1 { "server" } else { "servers" }, ids.join(", "))
}
