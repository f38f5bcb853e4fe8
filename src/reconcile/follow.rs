//! The compared side: answers what the leader of a range asks. Every answer is bounded in cells, bytes and work, and
//! says for how long this server wants to be left alone after it.

use std::sync::Arc;

use tokio::time::Instant;

use super::Reconciler;
use super::lead::{Counting, SPANS_MAX, Scanned, Tally, version};
use super::pace::Work;
use super::wire;
use crate::answer::NodeId;
use crate::cell::{Cell, Stamp};
use crate::key;
use crate::store::leaves::behind;
use crate::thrift::chord::{PeerAsks, PeerHeld, PeerReconcile, PeerReconciled};

const SAME: i32 = 0;
const DIFFERS: i32 = 1;
const NOT_KNOWN: i32 = 2;

/// Cells that one answer to `COMPARE` scans, about, and a span more: a few milliseconds, while the leader waits.
const COMPARE_CELLS: usize = 4096;

/// Keys of one `FETCH`, cells of one `GIVE`: more than any leader of this release sends.
const ITEMS_MAX: usize = 100_000;

type Answered = Result<PeerReconciled, String>;

impl Reconciler {
    /// Answers another server of the cluster, which has greeted.
    pub async fn answer(self: &Arc<Self>, caller: NodeId, request: PeerReconcile) -> PeerReconciled {
        let answered = match self.config.reconciliation {
            false => Err("reconciliation is switched off there".to_owned()),
            true => self.answer_one(caller, request).await,
        };
        let answer = answered.unwrap_or_else(|why| PeerReconciled { refused: Some(why), ..nothing() });
        PeerReconciled { clock: Some(self.clock.latest().0), ..answer }
    }

    async fn answer_one(self: &Arc<Self>, caller: NodeId, request: PeerReconcile) -> Answered {
        if request.epoch != Some(self.ring.epoch() as i64) {
            return Err(format!(
                "the request was made under ring epoch {:?}, this server has {}",
                request.epoch,
                self.ring.epoch()
            ));
        }
        if !is_meant(&request, self.generation) {
            return Err("it was meant for another start of this server".to_owned());
        }
        match request.asks {
            Some(PeerAsks::PROMISE) => Ok(self.answer_promise(caller, &request)),
            Some(PeerAsks::COMPARE) => self.answer_compare(self.range_of(&request)?, request).await,
            Some(PeerAsks::VERSIONS) => self.answer_versions(self.range_of(&request)?, &request),
            Some(PeerAsks::FETCH) => self.answer_fetch(self.range_of(&request)?, request),
            Some(PeerAsks::GIVE) => self.answer_give(self.range_of(&request)?, request).await,
            Some(PeerAsks::CLOSE) => self.answer_close(self.range_of(&request)?, &request).await,
            Some(PeerAsks::OUTCOME) => self.answer_outcome(self.range_of(&request)?, &request).await,
            _ => Err(format!("it does not know what {:?} asks for", request.asks)),
        }
    }

    /// The range a request is about, of which this server must be a replica.
    fn range_of(&self, request: &PeerReconcile) -> Result<usize, String> {
        let index = request.range.and_then(|index| usize::try_from(index).ok());
        let range = index.and_then(|index| Some((index, self.ring.ranges().get(index)?)));
        match range {
            Some((index, range)) if range.replicas.contains(&self.me) => Ok(index),
            _ => Err(format!("server {} is no replica of range {:?}", self.me, request.range)),
        }
    }

    async fn answer_compare(&self, index: usize, request: PeerReconcile) -> Answered {
        let mut cut = request.cut.as_ref().map(wire::read_cut).ok_or("the cut is missing")?;
        cut.horizon = cut.horizon.or(self.horizon(index));
        let quick = request.quick == Some(true);
        let mut start = request.start.unwrap_or_default();
        let spans = request.spans.unwrap_or_default();
        if spans.len() > SPANS_MAX {
            return Err(format!("{} spans are more than {SPANS_MAX}", spans.len()));
        }
        if let (true, [span]) = (quick, &spans[..]) {
            self.note_there(
                index,
                &start,
                span.cells.and_then(|cells| u64::try_from(cells).ok()).unwrap_or(0),
            );
        }
        let (mut verdicts, mut scanned) = (Vec::with_capacity(spans.len()), Scanned::default());
        for span in spans {
            let end = span.before.unwrap_or_default();
            if end <= start {
                return Err("the spans do not rise".to_owned());
            }
            let theirs = span.cells.and_then(|cells| u64::try_from(cells).ok()).unwrap_or(0);
            let known = quick || scanned.cells >= COMPARE_CELLS;
            let how = if known { Counting::Known } else { Counting::Within(theirs) };
            let counted = self.count(&start, &end, &cut, how, &mut scanned).await;
            verdicts.push(match counted.map_err(|error| error.to_string())? {
                Tally::NotKnown => NOT_KNOWN,
                // If all the same it does not, lists will say so, a piece at a time.
                Tally::More => DIFFERS,
                Tally::All(counted) => {
                    let cells = span.cells == Some(counted.cells as i64);
                    let digest = span.digest.as_deref() == Some(&counted.digest.to_be_bytes()[..]);
                    if cells && digest { SAME } else { DIFFERS }
                }
            });
            start = end;
        }
        Ok(PeerReconciled {
            verdicts: Some(verdicts),
            cut: Some(wire::of_horizon(self.horizon(index))),
            pause: Some(self.pace.pause_us(scanned.took, self.look_work(index))),
            ..nothing()
        })
    }

    fn answer_versions(&self, index: usize, request: &PeerReconcile) -> Answered {
        let began = Instant::now();
        let (Some(start), Some(before)) = (&request.start, &request.before) else {
            return Err("the stretch is missing".to_owned());
        };
        let mut cut = request.cut.as_ref().map(wire::read_cut).ok_or("the cut is missing")?;
        // Named as it was before the cells are read: that the list lacks a cell of which the deletion was collected
        // after that proves nothing.
        let horizon = self.horizon(index);
        cut.horizon = cut.horizon.or(horizon);
        let (cells, all) = self
            .store
            .run(start, before, self.config.reconcile_list_cells)
            .map_err(|error| error.to_string())?;
        let reached = match cells.last() {
            Some((key, _)) if !all => behind(key),
            _ => before.clone(),
        };
        let shown = cells.iter().filter(|(_, cell)| !cut.horizon.covers(cell));
        let versions = shown.map(|(key, cell)| wire::peer_version(version(key, cell)));
        Ok(PeerReconciled {
            versions: Some(versions.collect()),
            reached: Some(reached),
            cut: Some(wire::of_horizon(horizon)),
            pause: Some(self.pace.pause_us(began.elapsed(), Work::Mend)),
            ..nothing()
        })
    }

    fn answer_fetch(&self, index: usize, request: PeerReconcile) -> Answered {
        let began = Instant::now();
        let keys = request.keys.unwrap_or_default();
        let (mut cells, mut bytes, mut handled): (Vec<PeerHeld>, usize, i32) = (Vec::new(), 0, 0);
        for key in keys.iter().take(self.config.reconcile_batch_cells) {
            self.check_key(index, key)?;
            let run = self.store.run(key, &behind(key), 1).map_err(|error| error.to_string())?;
            if let Some((key, cell)) = run.0.first() {
                bytes += key.len() + cell.encoded_len();
                if bytes > self.config.reconcile_batch_bytes && !cells.is_empty() {
                    break;
                }
                cells.push(wire::held(key, cell));
            }
            handled += 1;
        }
        self.stats.reconcile_cells_sent.add(cells.len() as u64);
        self.stats.reconcile_bytes_sent.add(bytes as u64);
        Ok(PeerReconciled {
            cells: Some(cells),
            handled: Some(handled),
            pause: Some(self.pace.pause_us(began.elapsed(), Work::Mend)),
            ..nothing()
        })
    }

    async fn answer_give(&self, index: usize, request: PeerReconcile) -> Answered {
        let began = Instant::now();
        let under = request.cut.as_ref().map(wire::horizon).ok_or("the cut is missing")?;
        let cells = request.cells.unwrap_or_default();
        let bytes: usize = cells.iter().map(|held| held.cell.as_ref().map_or(0, Vec::len)).sum();
        let cells = self.check_cells(index, cells)?;
        let worked = began.elapsed();
        self.take_in(&cells, under).await?;
        self.stats.reconcile_cells_received.add(cells.len() as u64);
        self.stats.reconcile_bytes_received.add(bytes as u64);
        Ok(PeerReconciled {
            handled: Some(cells.len() as i32),
            pause: Some(self.pace.pause_us(worked, Work::Mend)),
            ..nothing()
        })
    }

    /// Cells that another server sent, if they are what they should be.
    pub(super) fn check_cells(
        &self,
        index: usize,
        told: Vec<PeerHeld>,
    ) -> Result<Vec<(Vec<u8>, Cell)>, String> {
        if told.len() > ITEMS_MAX {
            return Err(format!("{} cells are more than {ITEMS_MAX}", told.len()));
        }
        let mut cells = Vec::with_capacity(told.len());
        for held in told {
            let (key, cell) = wire::cell(held).ok_or("what was sent is no cell")?;
            self.check_key(index, &key)?;
            if cell.stamp < Stamp(1) {
                return Err("a cell without a stamp".to_owned());
            }
            cells.push((key, cell));
        }
        Ok(cells)
    }

    fn check_key(&self, index: usize, engine_key: &[u8]) -> Result<(), String> {
        let key = key::decode(engine_key).map_err(|error| error.to_string())?;
        if self.ring.range_of(&key.partition) == &self.ring.ranges()[index] {
            Ok(())
        } else {
            Err(format!("a key that is not of range {index}"))
        }
    }
}

/// True if a request is for this start of the server: what a leader found out about another may not be so here. Whoever
/// has no connection to this server yet does not know its start, and asks for a promise all the same.
fn is_meant(request: &PeerReconcile, generation: i64) -> bool {
    let introduction = request.asks == Some(PeerAsks::PROMISE) && request.generation.is_none();
    introduction || request.generation == Some(generation)
}

/// An answer in which nothing is said.
pub(super) fn nothing() -> PeerReconciled {
    PeerReconciled {
        refused: Some(String::new()),
        clock: None,
        pause: None,
        promise: None,
        waits: None,
        wall: None,
        tables: None,
        cut: None,
        verdicts: None,
        versions: None,
        reached: None,
        cells: None,
        handled: None,
        memory: None,
        claim: None,
        whole: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_out_about_another_start_is_not_heard() {
        for (asks, generation, meant) in [
            (PeerAsks::OUTCOME, Some(7), true),
            (PeerAsks::OUTCOME, Some(6), false),
            (PeerAsks::OUTCOME, None, false),
            (PeerAsks::CLOSE, Some(6), false),
            (PeerAsks::PROMISE, Some(6), false),
            (PeerAsks::PROMISE, None, true),
        ] {
            let request = PeerReconcile { asks: Some(asks), generation, ..PeerReconcile::default() };
            assert_eq!(is_meant(&request, 7), meant, "{request:?}");
        }
    }
}
