//! What every server has counted, side by side.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::walk::why;
use crate::answer::NodeId;
use crate::client::{Client, text};
use crate::thrift::method::{Describe, GetStats};

/// Every server's counters, or why it could not be asked.
#[derive(Debug)]
pub struct StatsReport {
    servers: Vec<(NodeId, Result<Counted, String>)>,
}

#[derive(Debug)]
struct Counted {
    durability: String,
    values: BTreeMap<String, i64>,
}

/// Asks every server.
pub(super) async fn gather(client: &Client) -> StatsReport {
    let servers = join_all(client.nodes().ids().map(|node| async move {
        let counted = async {
            let description = client.call_on::<Describe>(node, &()).await?;
            let stats = client.call_on::<GetStats>(node, &()).await?;
            let durability = description.durability.unwrap_or_default();
            Ok(Counted { durability, values: stats.values.unwrap_or_default() })
        };
        (node, counted.await.map_err(|error| why(&error)))
    }))
    .await;
    StatsReport { servers }
}

impl StatsReport {
    /// 0, or 2 if a server could not be asked.
    pub fn exit_code(&self) -> u8 {
        if self.servers.iter().all(|(_, counted)| counted.is_ok()) { 0 } else { 2 }
    }

    /// A row for each name that some server has counted, a column for each server.
    pub fn text(&self) -> String {
        let counted = || self.servers.iter().filter_map(|(_, counted)| counted.as_ref().ok());
        let nonzero = |counted: &Counted| {
            let names = counted.values.iter().filter(|(_, value)| **value != 0);
            names.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        let names: BTreeSet<String> = counted().flat_map(nonzero).collect();
        let mut rows = vec![
            self.row("", |node, _| format!("server {node}")),
            self.row("durability", |_, counted| counted.durability.clone()),
        ];
        for name in &names {
            rows.push(
                self.row(name, |_, counted| text::signed(counted.values.get(name).copied().unwrap_or(0))),
            );
        }
        let mut out = text::columns(&rows);
        for (node, counted) in &self.servers {
            if let Err(why) = counted {
                out += &format!("server {node}  DOWN  {why}\n");
            }
        }
        out
    }

    fn row(&self, name: &str, cell: impl Fn(NodeId, &Counted) -> String) -> Vec<String> {
        let columns = self.servers.iter().filter_map(|(node, counted)| Some((*node, counted.as_ref().ok()?)));
        [name.to_owned()].into_iter().chain(columns.map(|(node, counted)| cell(node, counted))).collect()
    }

    /// As a program reads it.
    pub fn json(&self) -> Value {
        let server = |(node, counted): &(NodeId, Result<Counted, String>)| match counted {
            Err(why) => json!({"server": node.0, "up": false, "why": why}),
            Ok(counted) => json!({"server": node.0, "up": true, "durability": counted.durability,
                "values": counted.values}),
        };
        json!({"servers": self.servers.iter().map(server).collect::<Vec<_>>(), "exit": self.exit_code()})
    }
}
