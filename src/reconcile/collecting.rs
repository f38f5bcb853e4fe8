//! Dead cells go: once all replicas of a range are proven equal, and every server has promised to send nothing older.
//!
//! The range is closed first (whatever older write comes then is refused), compared once more, and then each replica
//! remembers how far it is collected: its horizon. The store drops what is behind it.
//!
//! Not here: what a horizon means for a write that comes late (`store::ranges`), how cells are dropped
//! (`store::collect`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lead::Follower;
use super::stretch::stretches;
use super::{Reconciler, follow, wire};
use crate::answer::ask_one;
use crate::cell::Stamp;
use crate::store::leaves::{Cut, Horizon, Sum, table_end, table_start};
use crate::thrift::chord::{PeerAsks, PeerReconcile, PeerReconciled};

impl Reconciler {
    /// All replicas are equal, and every server has promised: what is dead may go. Closes the range, compares once
    /// more, and has this server remember the new horizon; the others are told it with the outcome. Returns the
    /// horizon.
    pub(super) async fn collect(
        self: &Arc<Self>,
        index: usize,
        followers: &[Follower],
        agreed: Horizon,
    ) -> Result<Horizon, String> {
        self.adopt(index, agreed).await?;
        let wanted = self.collectable(index).or(agreed);
        if !self.config.collection || !self.is_collection_due(index, wanted) {
            return Ok(agreed);
        }
        // Whatever older write arrives from now on is refused, or was counted before.
        self.close(index, wanted.stamp).await?;
        for &follower in followers {
            let request = PeerReconcile {
                asks: Some(PeerAsks::CLOSE),
                range: Some(index as i32),
                cut: Some(wire::of_horizon(wanted)),
                ..PeerReconcile::default()
            };
            self.ask(follower, request).await.map_err(|stopped| stopped.to_string())?;
        }
        let cut = Cut { upto: wanted.stamp, beyond: self.beyond(wanted.stamp), horizon: agreed };
        let compared = self.pass(index, followers, cut).await.map_err(|stopped| stopped.to_string())?;
        if compared.moved > 0 || !compared.why.is_empty() {
            return Err("differences came up while it was closed".to_owned());
        }
        self.adopt(index, wanted).await?;
        self.stats.reconcile_collections.count();
        Ok(wanted)
    }

    /// Takes no more writes up to this stamp in a range; returns when all that were taken before are visible.
    async fn close(&self, index: usize, upto: Stamp) -> Result<(), String> {
        let closed = ask_one(self.me, |to| self.store.close_range(index, upto, to)).await;
        closed.map_err(|failure| failure.to_string())
    }

    pub(super) async fn answer_close(
        &self,
        index: usize,
        request: &PeerReconcile,
    ) -> Result<PeerReconciled, String> {
        let upto = request.cut.as_ref().map(wire::horizon).ok_or("the horizon is missing")?.stamp;
        if upto > self.clock.latest() {
            return Err("it is not to be closed in the future".to_owned());
        }
        self.close(index, upto).await?;
        Ok(follow::nothing())
    }

    /// Remembers that a range is collected so far; nothing to do if it was already.
    pub(super) async fn adopt(&self, index: usize, horizon: Horizon) -> Result<(), String> {
        let own = self.horizon(index);
        if own.or(horizon) == own {
            return Ok(());
        }
        self.close(index, horizon.stamp).await?;
        let kept = ask_one(self.me, |to| self.store.collect_range(index, horizon, to)).await;
        kept.map_err(|failure| failure.to_string())
    }

    /// Up to where dead cells could go now, by the promises and clocks of all servers. A while behind the newest, so
    /// that stamps which clients choose by their own clocks are not refused.
    fn collectable(&self, index: usize) -> Horizon {
        let promised = self.promised();
        if !promised.missing.is_empty() {
            return self.horizon(index);
        }
        let mut known = self.known();
        let wall_us = known.heard.values().map(|heard| heard.wall_us).min().unwrap_or(i64::MAX);
        let expired_s = wall_us.min(self.clock.wall_us()).div_euclid(1_000_000);
        let stamp = known.collected.before(Instant::now());
        let proven = known.ranges[index].proven.map_or(stamp, |(upto, _)| stamp.min(upto));
        drop(known);
        Horizon { stamp: proven.min(promised.upto), expired_s }
    }

    /// True if something is dead behind the horizon and the last collection was a while ago.
    fn is_collection_due(&self, index: usize, wanted: Horizon) -> bool {
        let mut dead = false;
        for stretch in stretches(&self.ring, index, &self.store.tables()) {
            let find = |_: &[u8], sum: Option<&Sum>| dead |= sum.is_some_and(|sum| sum.has_dead(wanted));
            self.store.each_leaf(&stretch.start, &stretch.end, find);
        }
        let pause = Duration::from_millis(self.config.collection_pause_ms);
        let mut known = self.known();
        let range = &mut known.ranges[index];
        range.uncollected.clear();
        let due = dead && range.collected_at.is_none_or(|at| at.elapsed() >= pause);
        if due {
            range.collected_at = Some(Instant::now());
        }
        due
    }

    /// A crash in the middle of dropping leaves cells that count as gone: they are dropped now and then.
    pub(super) fn drop_leftovers(&self) {
        let mut gone = 0;
        for table in self.store.tables() {
            let (start, end) = (table_start(table), table_end(table));
            self.store.each_leaf(&start, &end, |_, sum| gone += sum.map_or(0, |sum| sum.gone));
        }
        if gone > 0 {
            self.store.drop_collected();
        }
    }
}
