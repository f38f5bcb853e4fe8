//! The store against a map: whatever is written, flushed and reopened, it answers, pages and sums as the map does.

use proptest::prelude::*;

use super::*;
use crate::cell::merge;
use crate::key;

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Mutation>),
    /// Opened again: closed before, or just dropped.
    Reopen(bool),
    /// Waits until what is frozen is flushed and forgotten.
    Quiet,
}

/// A generated value of this length stands for one of [`LARGE_BYTES`], so that a failing case can be read.
const MARK_OF_LARGE: usize = 2;
const LARGE_BYTES: usize = 12_000;

fn enlarge(mutation: &mut Mutation) {
    for (_, cell) in &mut mutation.cells {
        if let Content::Value(value) = &mut cell.content
            && value.len() == MARK_OF_LARGE
        {
            *value = Bytes::from(vec![value[0]; LARGE_BYTES]);
        }
    }
}

/// Few keys and stamps, so that versions meet; some values so large that a memtable is soon full.
fn mutation() -> impl Strategy<Value = Mutation> {
    let content = (0..8u8, 0..3i64).prop_map(|(kind, number)| match kind {
        0 => Content::Tombstone,
        1 => Content::Expiring { value: Bytes::from(vec![number as u8]), expires_at_s: number },
        2..=4 => Content::Value(Bytes::from(vec![number as u8; MARK_OF_LARGE])),
        _ => Content::Value(Bytes::from(vec![number as u8])),
    });
    let cell = (0..6i64, content).prop_map(|(stamp, content)| Cell { stamp: Stamp(stamp), content });
    let byte = || prop::sample::select(vec![0u8, 1, 7, 0xff]);
    let name = || prop::collection::vec(byte(), 0..3).prop_map(Bytes::from);
    let cells = prop::collection::vec((name(), cell), 1..4);
    (1..3u16, name(), cells).prop_map(|(table, partition, cells)| Mutation {
        table: TableId(table),
        partition,
        cells,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(mutation(), 1..6).prop_map(Step::Apply),
        1 => any::<bool>().prop_map(Step::Reopen),
        2 => Just(Step::Quiet),
    ]
}

type Model = BTreeMap<Vec<u8>, Cell>;

/// What the store must answer, and what it holds then.
fn apply_to(model: &mut Model, mutation: &Mutation) -> ApplyAnswer {
    let mut behind = None;
    for (column, cell) in &mutation.cells {
        let key = key::encode(mutation.table, &mutation.partition, column);
        let held = model.get(&key).cloned().unwrap_or_else(|| cell.clone());
        let merged = merge(held, cell.clone());
        if merged != *cell {
            behind = behind.max(Some(merged.stamp));
        }
        model.insert(key, merged);
    }
    behind.map_or(ApplyAnswer::Applied, ApplyAnswer::Behind)
}

async fn run(steps: Vec<Step>, looks: Vec<(Vec<u8>, Vec<u8>, usize)>) {
    let dir = directory();
    let (mut store, _) = open(dir.path(), &tiny());
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Apply(mutations) => {
                let mut answers = Answers::default();
                let mut expected = BTreeMap::new();
                for (index, mut mutation) in mutations.into_iter().enumerate() {
                    enlarge(&mut mutation);
                    let node = NodeId(index as u32);
                    expected.insert(node, apply_to(&mut model, &mutation));
                    store.apply(Arc::new(mutation), answers.expect(node));
                }
                while let Some((node, answer)) = answers.next().await {
                    assert_eq!(Some(&answer), expected.get(&node));
                }
            }
            Step::Reopen(close) => {
                if close {
                    store.close().await;
                }
                drop(store);
                store = open(dir.path(), &tiny()).0;
            }
            Step::Quiet => quiet(&store).await,
        }
    }
    for (after, upto, cells_max) in looks {
        look(&store, &model, &after, &upto, cells_max);
    }
    look(&store, &model, &[], &[], 1000);
    for (engine_key, cell) in &model {
        let at = key::decode(engine_key).unwrap();
        let slice = Slice {
            table: at.table,
            partition: at.partition,
            first: at.column.clone(),
            last: Some(at.column.clone()),
            cells_max: 1,
        };
        assert_eq!(store.read(&slice).unwrap().cells, [(at.column, cell.clone())]);
    }
}

fn look(store: &Store, model: &Model, after: &[u8], upto: &[u8], cells_max: usize) {
    let wanted = |key: &[u8]| (after.is_empty() || key > after) && (upto.is_empty() || key <= upto);
    let all: Vec<_> = model.iter().filter(|(key, _)| wanted(key)).collect();
    let expected: Vec<(Vec<u8>, Cell)> =
        all.iter().take(cells_max).map(|(key, cell)| ((*key).clone(), (*cell).clone())).collect();
    let complete = all.len() <= cells_max;
    let end = if complete { upto.to_vec() } else { expected.last().unwrap().0.clone() };

    let now_s = 1;
    let sum = expected.iter().map(|(key, cell)| cell_hash(key, cell)).fold(0, u128::wrapping_add);
    let live = expected.iter().filter(|(_, cell)| cell.live_value(now_s).is_some()).count();
    let digest = store.digest(after, upto, cells_max, now_s).unwrap();
    let cells = expected.len() as u64;
    assert_eq!(digest, Digest { cells, live: live as u64, digest: sum, upto: end.clone(), complete });

    let page = store.page(after, upto, cells_max).unwrap();
    assert_eq!(page, Page { cells: expected, upto: end, complete });
}

fn bound() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(vec![0u8, 1, 2, 7, 0xff]);
    prop::collection::vec(byte, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_a_map_that_survives(
        steps in prop::collection::vec(step(), 1..30),
        looks in prop::collection::vec((bound(), bound(), 1..12usize), 0..10),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(run(steps, looks));
    }
}
