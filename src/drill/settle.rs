//! After the faults: waits for quiet, and compares what the replicas hold.
//!
//!   everybody sees everybody ─► hints delivered ─► equal? ─► if not soon, a read of each key at ALL mends it ─► equal?
//!
//! Hints, writes under way and reconciliation make replicas equal by themselves; where that is switched off or does not
//! come about, a read of the key does, and what it took to get there is said.
//!
//! Not here: whether what they agree on is right (`judge`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::DrillError;
use super::stage::Stage;
use crate::answer::NodeId;
use crate::cell::Stamp;
use crate::check::Version;
use crate::client::{Client, ClientError, text};
use crate::thrift::chord::{CellRow, GetRequest, Level, PageRequest};
use crate::thrift::method::InspectPage;

/// How long replicas may take to become equal without reads, once there are no hints left: reconciliation looks at each
/// range every second or so.
const BY_THEMSELVES_MAX: Duration = Duration::from_secs(10);

/// How long hints, and reads, may take. Only decides between slow and never.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Bytes of a value that are looked at; a drill's values are shorter.
const VALUE_BYTES_MAX: i32 = 1_000;

/// Cells of a page.
const PAGE_CELLS: i32 = 1_000;

/// What each server holds of the keys of a drill, by server.
pub type Contents = Vec<BTreeMap<Bytes, Version>>;

/// How replicas became equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Without anybody reading.
    Themselves,
    /// By a read of every key.
    Reads,
    /// They are not.
    Nothing,
}

/// How and when replicas became equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// By what.
    pub by: By,
    /// From the end of the last fault (µs).
    pub took_us: u64,
    /// Keys whose replicas differed before anybody read.
    pub differed: usize,
    /// Of those, the ones whose replicas still differ.
    pub differ: usize,
}

/// Waits until every server answers and sees the others, and hints are gone.
pub async fn quiet(stage: &mut Stage) -> Result<(), DrillError> {
    stage.all_ready().await?;
    let servers = stage.cluster.len();
    if stage.cluster.is_own() {
        for observer in 0..servers {
            for other in 0..servers {
                stage.wait_seen(observer, other, "up").await?;
            }
        }
    }
    let deadline = Instant::now() + QUIET_MAX;
    while stage.hints().await > 0 && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Waits until replicas are equal, and reads every key if they do not become so by themselves.
pub async fn agree(
    stage: &mut Stage,
    keys: &BTreeSet<Bytes>,
    faults_ended_us: u64,
) -> Result<(Agreement, Contents), DrillError> {
    let took_us = |stage: &Stage| stage.log.now_us().saturating_sub(faults_ended_us);
    let mut deadline = Instant::now() + BY_THEMSELVES_MAX;
    let mut differed = None;
    loop {
        let contents = contents(&stage.client, stage.cluster.len(), keys).await?;
        let differing = differing(&stage.client, keys, &contents);
        if differing.is_empty() {
            let by = if differed.is_none() { By::Themselves } else { By::Reads };
            let differed = differed.unwrap_or(0);
            return Ok((Agreement { by, took_us: took_us(stage), differed, differ: 0 }, contents));
        }
        if Instant::now() >= deadline {
            if let Some(differed) = differed {
                let differ = differing.len();
                let took_us = took_us(stage);
                return Ok((Agreement { by: By::Nothing, took_us, differed, differ }, contents));
            }
            differed = Some(differing.len());
            stage.event(&format!(
                "{} on different versions, which neither hints nor reconciliation mended: each key is read once, which \
                 mends it",
                text::plural(differing.len() as u64, "key has replicas", "keys have replicas")
            ));
            read_each(&stage.client, keys).await;
            deadline = Instant::now() + QUIET_MAX;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Reads every key at ALL: such a read mends every replica before it answers.
pub async fn read_each(client: &Client, keys: &BTreeSet<Bytes>) {
    let reads = keys.iter().map(|key| async {
        let request = GetRequest::new(key.to_vec(), Level::ALL, None);
        // A read that fails mends nothing, and the comparison afterwards shows it.
        let _ = client.get(&request).await;
    });
    join_all(reads).await;
}

/// What every server holds of these keys.
pub async fn contents(
    client: &Client,
    servers: usize,
    keys: &BTreeSet<Bytes>,
) -> Result<Contents, DrillError> {
    let ids = (0..servers).map(|id| NodeId(id as u32));
    let all = join_all(ids.map(|node| held_by(client, node, keys))).await;
    all.into_iter().zip(0..).map(|(held, id)| held.map_err(|error| not_inspected(id, &error))).collect()
}

fn not_inspected(id: usize, error: &ClientError) -> DrillError {
    DrillError::NotInspected { id, why: error.to_string() }
}

async fn held_by(
    client: &Client,
    node: NodeId,
    keys: &BTreeSet<Bytes>,
) -> Result<BTreeMap<Bytes, Version>, ClientError> {
    let mut held = BTreeMap::new();
    let mut after = Vec::new();
    loop {
        let request = PageRequest::new(after, Vec::new(), PAGE_CELLS, VALUE_BYTES_MAX);
        let page = client.call_on::<InspectPage>(node, &request).await?;
        let rows = page.cells.unwrap_or_default().into_iter().filter_map(held_row);
        held.extend(rows.filter(|(key, _)| keys.contains(key)));
        match page.upto {
            Some(upto) if page.complete != Some(true) => after = upto,
            _ => return Ok(held),
        }
    }
}

fn held_row(row: CellRow) -> Option<(Bytes, Version)> {
    let value =
        (row.kind.as_deref() != Some("tombstone")).then(|| Bytes::from(row.value.unwrap_or_default()));
    Some((Bytes::from(row.partition?), Version { stamp: Stamp(row.stamp?), value }))
}

/// The keys whose replicas do not hold the same.
pub fn differing(client: &Client, keys: &BTreeSet<Bytes>, contents: &Contents) -> Vec<Bytes> {
    let ring = client.ring();
    let differs = |key: &&Bytes| {
        let mut held = ring.replicas(key).iter().map(|node| contents[node.0 as usize].get(*key));
        let first = held.next().flatten();
        held.any(|other| other != first)
    };
    keys.iter().filter(differs).cloned().collect()
}
