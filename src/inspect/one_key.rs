//! One key: what each server itself has of it, deletions included, and which servers should.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::report::{Difference, Version, label, servers, value};
use super::walk::{page_request, why};
use super::{VALUE_BYTES, walk::STEP_CELLS};
use crate::answer::NodeId;
use crate::client::text::{self, Key};
use crate::client::{Client, ClientError, RingView};
use crate::key::{KV_TABLE, after_partition, partition_prefix};
use crate::thrift::chord::CellRow;
use crate::thrift::method::InspectPage;

/// What every server has of one key.
#[derive(Debug)]
pub struct KeyReport {
    /// As it was typed.
    key: String,
    /// The servers that should hold it, its owner first.
    replicas: Vec<NodeId>,
    /// Every server's cells of the key, or why it could not be asked.
    copies: Vec<(NodeId, Result<Vec<CellRow>, String>)>,
}

/// Asks every server for its own copy of a key. `down`: those already known not to answer, and why.
pub(super) async fn look(
    client: &Client,
    ring: &RingView,
    down: &[(NodeId, String)],
    key: &Key,
) -> KeyReport {
    let copies = join_all(client.nodes().ids().map(|node| async move {
        if let Some((_, why)) = down.iter().find(|(known, _)| *known == node) {
            return (node, Err(why.clone()));
        }
        (node, cells_of(client, node, &key.bytes).await.map_err(|error| why(&error)))
    }))
    .await;
    KeyReport { key: key.shown.clone(), replicas: ring.replicas(&key.bytes).to_vec(), copies }
}

/// (after, upto] holds the engine keys of this partition of the key-value table, and no others.
pub(super) fn bounds(partition: &[u8]) -> (Vec<u8>, Vec<u8>) {
    // The least engine key of the partition is the prefix itself. What is one byte shorter is the string right before
    // it: the prefix ends with a zero byte.
    let mut before = partition_prefix(KV_TABLE, partition);
    before.pop();
    (before, after_partition(KV_TABLE, partition))
}

/// The cells of one partition on one server, at most one step of them.
async fn cells_of(client: &Client, node: NodeId, partition: &[u8]) -> Result<Vec<CellRow>, ClientError> {
    let (after, upto) = bounds(partition);
    let request = page_request(&after, &upto, STEP_CELLS, VALUE_BYTES);
    Ok(client.call_on::<InspectPage>(node, &request).await?.cells.unwrap_or_default())
}

impl KeyReport {
    /// 0: all reachable replicas have the same and nobody else has anything. 1: not so. 2: so, but a server could not
    /// be asked.
    pub fn exit_code(&self) -> u8 {
        if !self.differences().is_empty() || !self.strays().is_empty() {
            1
        } else if self.copies.iter().any(|(_, copy)| copy.is_err()) {
            2
        } else {
            0
        }
    }

    /// The cells of the key whose versions differ among the replicas that could be asked.
    fn differences(&self) -> Vec<Difference> {
        let held = self.copies.iter().filter(|(node, _)| self.replicas.contains(node));
        let held: Vec<(NodeId, &Vec<CellRow>)> =
            held.filter_map(|(node, copy)| Some((*node, copy.as_ref().ok()?))).collect();
        let nodes: Vec<NodeId> = held.iter().map(|(node, _)| *node).collect();
        let mut cells = std::collections::BTreeMap::new();
        for (node, rows) in held {
            for row in rows {
                let known = cells.entry(&row.engine_key).or_insert_with(|| Difference::of(row, &nodes));
                known.note(node, Version::of(row));
            }
        }
        cells.into_values().filter(Difference::differs).collect()
    }

    /// Servers that have something and should not.
    fn strays(&self) -> Vec<NodeId> {
        let has = |copy: &Result<Vec<CellRow>, String>| copy.as_ref().is_ok_and(|rows| !rows.is_empty());
        let strays = self.copies.iter().filter(|(node, copy)| !self.replicas.contains(node) && has(copy));
        strays.map(|(node, _)| *node).collect()
    }

    /// As a person reads it.
    pub fn text(&self) -> String {
        let mut out = format!("key {} belongs on {}\n", self.key, servers(&self.replicas));
        for (node, copy) in &self.copies {
            match copy {
                Err(why) => out += &format!("server {node}  DOWN  {why}\n"),
                Ok(rows) if rows.is_empty() => {
                    let expected = if self.replicas.contains(node) { "" } else { ", as it should be" };
                    out += &format!("server {node}  up    nothing{expected}\n");
                }
                Ok(rows) => {
                    let stray = if self.replicas.contains(node) { "" } else { "   stray" };
                    for row in rows {
                        out += &format!("server {node}  up    {}{stray}\n", self.cell_text(row));
                    }
                }
            }
        }
        out += &self.verdict();
        out
    }

    fn cell_text(&self, row: &CellRow) -> String {
        let column = match row.column.as_deref() {
            Some(column) if !column.is_empty() => format!("{}: ", text::value(column)),
            _ => String::new(),
        };
        let stamp = text::stamp(row.stamp.unwrap_or(0));
        match row.kind.as_deref() {
            Some("tombstone") => format!("{column}deleted @{stamp}"),
            Some("expiring") => {
                let live = super::walk::is_live(row, super::now_s());
                let expires = text::second_utc(row.expires.unwrap_or(0));
                let verb = if live { "expires" } else { "expired" };
                format!("{column}{} @{stamp}   {verb} {expires}", value(row))
            }
            _ => format!("{column}{} @{stamp}", value(row)),
        }
    }

    fn verdict(&self) -> String {
        let mut out = String::new();
        for difference in self.differences() {
            out += &format!("key {}: {}\n", difference.key, difference.text());
        }
        let strays = self.strays();
        if !strays.is_empty() {
            out += &format!("stray: {} should not have it\n", servers(&strays));
        }
        let asked = |node: &&NodeId| self.copies.iter().any(|(asked, copy)| asked == *node && copy.is_ok());
        let reachable = self.replicas.iter().filter(asked).count();
        if out.is_empty() {
            out = match reachable {
                0 => "none of its replicas could be asked\n".to_owned(),
                1 => "only one of its replicas could be asked\n".to_owned(),
                _ => "its replicas agree\n".to_owned(),
            };
        }
        out
    }

    /// As a program reads it.
    pub fn json(&self) -> Value {
        let cell = |row: &CellRow| {
            json!({"key": label(row), "kind": row.kind, "stamp": row.stamp, "expires": row.expires,
                "value": value(row), "valueSize": row.value_size, "hash": row.hash.as_deref().map(text::hex)})
        };
        let copy = |(node, copy): &(NodeId, Result<Vec<CellRow>, String>)| match copy {
            Err(why) => json!({"server": node.0, "up": false, "why": why}),
            Ok(rows) => json!({"server": node.0, "up": true, "replica": self.replicas.contains(node),
                "cells": rows.iter().map(cell).collect::<Vec<_>>()}),
        };
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
        let differences = self.differences();
        json!({"key": self.key, "replicas": ids(&self.replicas),
            "servers": self.copies.iter().map(copy).collect::<Vec<_>>(),
            "differences": differences.iter().map(Difference::text).collect::<Vec<_>>(),
            "strays": ids(&self.strays()), "exit": self.exit_code()})
    }
}
