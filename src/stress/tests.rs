//! The tool against fake servers on real sockets of this machine, and the arithmetic of its reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Parser;
use tokio::sync::Semaphore;

use super::report::{BINS_PER_DECADE, Seen, Timeline};
use super::run::Stretch;
use super::servers::{Cluster, Process, State};
use super::tally::{Class, Failed, Window};
use super::*;
use crate::client::fake::{self, Fake, Manner};

fn options(line: &str) -> Options {
    let words = ["stress", "--quiet", "--warm-up", "0"].into_iter().chain(line.split_whitespace());
    Options::try_parse_from(words).unwrap()
}

fn at(nodes: &Nodes) -> String {
    let addresses: Vec<String> = nodes.addresses().iter().map(ToString::to_string).collect();
    format!("--server {}", addresses.join(","))
}

// ------------------------------------------------------------------------------------------------ stalls

const OPERATIONS: u64 = 50;
const RATE: u64 = 1_000;

/// A load of [`OPERATIONS`] while the only server stalls on the first one until all others are due. Returns the run and
/// how long the last one due has waited at least.
async fn stalled(line: &str) -> (Run, Duration) {
    let (mut fakes, nodes) = fake::cluster(1).await;
    let fake = fakes.remove(0);
    let gate = Arc::new(Semaphore::new(0));
    fake.behave(Manner::Hold(gate.clone()));
    let options = options(&format!("{} --connections 1 --operations {OPERATIONS} {line}", at(&nodes)));
    let release = async {
        while !fake.calls().contains(&"put") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let last_due = Instant::now() + Duration::from_millis(1_000 / RATE * OPERATIONS);
        tokio::time::sleep_until(last_due + Duration::from_millis(50)).await;
        let waited = last_due.elapsed();
        gate.add_permits(1);
        waited
    };
    let (run, waited) = tokio::join!(measure(&options), release);
    (run.unwrap().unwrap(), waited)
}

#[tokio::test]
async fn at_a_fixed_rate_a_stall_shows_in_every_operation_that_fell_due_meanwhile() {
    let (run, waited) = stalled(&format!("--rate {RATE}")).await;
    assert_eq!((run.all.operations, run.never_begun), (OPERATIONS, 0));
    let (_, least_us) = run.all.curve[0];
    assert!(u128::from(least_us) >= waited.as_micros() * 99 / 100, "{least_us} µs, {waited:?}");
    assert!(run.all.max_us > least_us, "the first has waited longest");
}

#[tokio::test]
async fn as_fast_as_possible_a_stall_shows_only_in_what_was_under_way() {
    let (run, waited) = stalled("").await;
    assert_eq!(run.all.operations, OPERATIONS);
    assert!(u128::from(run.all.max_us) >= waited.as_micros());
    assert!(u128::from(run.all.p50_us) < waited.as_micros(), "{} µs, {waited:?}", run.all.p50_us);
}

// ------------------------------------------------------------------------------------------------ errors

fn refusing(fakes: &[Fake]) {
    use crate::thrift::chord::Overloaded;
    use crate::thrift::method::Refusal;
    let refusal = Refusal::Overloaded(Overloaded { message: Some("too much".to_owned()) });
    fakes.iter().for_each(|fake| fake.behave(Manner::Refuse(refusal.clone())));
}

#[tokio::test]
async fn a_run_with_errors_is_not_published_unless_that_is_allowed() {
    let (fakes, nodes) = fake::cluster(2).await;
    refusing(&fakes);
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("run.json");
    let line = format!("{} --connections 2 --operations 20 --json {}", at(&nodes), json.display());
    assert_eq!(super::run(&options(&line)).await, 1);
    assert!(!json.exists());
    assert_eq!(super::run(&options(&format!("{line} --load --keys 10"))).await, 1);
    assert!(!json.exists());

    assert_eq!(super::run(&options(&format!("{line} --allow-errors"))).await, 0);
    let run = read_run(&json).unwrap();
    assert_eq!((run.all.operations, run.failures()), (0, 20));
    let [error] = &run.errors[..] else { panic!("{:?}", run.errors) };
    assert_eq!((error.kind.as_str(), error.class.as_str(), error.times), ("write", "overloaded", 20));
    assert!(error.example.contains("too much"), "{error}");
    assert_eq!(
        super::run(&options(&format!("--from {}", json.display()))).await,
        1,
        "it is refused later, too"
    );
}

#[tokio::test]
async fn dead_servers_are_errors_and_a_dead_cluster_is_said_at_once() {
    let (mut fakes, nodes) = fake::cluster(2).await;
    fakes[1].stop().await;
    let line = format!("{} --connections 2 --operations 200 --allow-errors", at(&nodes));
    let run = measure(&options(&line)).await.unwrap().unwrap();
    assert_eq!(run.all.operations + run.failures(), 200);
    assert!(run.errors.iter().any(|error| error.class == "unreachable"), "{:?}", run.errors);
    assert!(run.costs.servers[1].fsyncs.is_none());

    fakes[0].stop().await;
    let error = measure(&options(&line)).await.unwrap_err();
    assert!(error.to_string().contains("no server answers"), "{error}");
    assert_eq!(super::run(&options(&line)).await, 2);
}

#[tokio::test]
async fn what_is_filled_is_found() {
    let (_fakes, nodes) = fake::cluster(1).await;
    let line = format!("{} --keys 100 --connections 3 --outstanding 4", at(&nodes));
    let filled = measure(&options(&format!("{line} --fill"))).await.unwrap().unwrap();
    assert_eq!((filled.all.operations, filled.load.workload.as_str()), (100, "fill"));
    for workload in ["A", "b", "C", "D", "F", "read", "mixed"] {
        let line = format!("{line} --workload {workload} --operations 300 --threads 2");
        let run = measure(&options(&line)).await.unwrap().unwrap();
        assert_eq!(run.all.operations, 300, "{workload}");
        assert_eq!(run.found_nothing, 0, "{workload}");
        assert_eq!(run.kinds.iter().map(|figures| figures.operations).sum::<u64>(), 300, "{workload}");
    }
}

// ------------------------------------------------------------------------------------------------ options

fn refused(line: &str) -> String {
    options(line).plan().unwrap_err().to_string()
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    assert!(refused("--workload E").contains("there are no scans yet"));
    assert!(refused("--classic --outstanding 2").contains("raise --connections"));
    assert!(refused("--classic --workload D").contains("0 to 255"));
    assert!(refused("--classic --workload remove --keys 256").contains("no removal"));
    assert!(refused("--workload read --level ANY").contains("--read-level"));
    assert!(refused("--level SOME").contains("SOME"));
    assert!(refused("--reads 10").contains("--workload mixed"));
    assert!(refused("--key-bytes 3").contains("8 to"));
    assert!(refused("--value-bytes 100000000").contains("1 GiB"));
    for line in ["--fill --workload A", "--rate 0", "--value-bytes 5-2", "--keys 0", "--foreign"] {
        let words = ["stress"].into_iter().chain(line.split_whitespace());
        assert!(Options::try_parse_from(words).is_err(), "{line}");
    }
}

#[test]
fn levels_and_mixes_are_as_asked() {
    let plan = options("--workload mixed --reads 80 --level ONE --write-level ANY").plan().unwrap();
    assert_eq!((plan.read_level.name(), plan.write_level.name()), ("ONE", "ANY"));
    assert_eq!(plan.mix, Mix::new(80, 20, 0, 0));
    assert_eq!(options("--workload d").plan().unwrap().order, Order::Latest);
    assert_eq!(options("--workload A --order uniform").plan().unwrap().order, Order::Uniform);
    assert_eq!(options("--classic").plan().unwrap().keys, 256);
}

// ------------------------------------------------------------------------------------------------ reports

/// Two servers, one of them elsewhere, before and after 100 reads of 1 ms, 99 writes of 2 ms and one of 1 s in 2 s.
fn sample(name: &str) -> Run {
    let mut timeline = Timeline::new(1);
    let stretch = |second, ms, window| Stretch { second, length: Duration::from_millis(ms), window };
    let window = |reads: u32, writes: u32, slow: u32| {
        let mut window = Window::default();
        (0..reads).for_each(|_| window.succeeded(Kind::Read, Duration::from_millis(1), true));
        (0..writes).for_each(|_| window.succeeded(Kind::Write, Duration::from_millis(2), true));
        (0..slow).for_each(|_| window.succeeded(Kind::Write, Duration::from_secs(1), true));
        window
    };
    let mut warm_up = Window::default();
    warm_up.uncounted = 7;
    timeline.add(stretch(0, 1_000, warm_up));
    timeline.add(stretch(1, 1_000, window(60, 40, 0)));
    timeline.add(stretch(2, 1_000, window(40, 59, 0)));
    timeline.add(stretch(3, 10, window(0, 0, 1)));
    let (total, series) = timeline.finish();

    let counters = |commits: i64| {
        let names = [
            ("commits", commits),
            ("mutations_applied", 4 * commits),
            ("flush_commits", 1),
            ("checkpoints", commits / 50),
        ];
        let named: BTreeMap<String, i64> =
            names.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Some(named)
    };
    let process = |cpu_us, written| {
        Some(Process { pid: 5, cpu_us, resident_bytes: 3 << 20, written_bytes: Some(written) })
    };
    let before = vec![State { process: process(1_000, 0), counters: counters(100) }, State::default()];
    let after = vec![State { process: process(21_000, 40_000), counters: counters(200) }, State::default()];
    Run::new(Seen {
        plan: &options("--workload A").plan().unwrap(),
        fill: false,
        nodes: &Nodes::parse("127.0.0.1:1\n127.0.0.1:2", Path::new("")).unwrap(),
        asked: &Nodes::parse("127.0.0.1:1\n127.0.0.1:2", Path::new("")).unwrap(),
        cluster: &Cluster { durability: "power-loss".to_owned(), copies: Some(3), ..Cluster::default() },
        name: name.to_owned(),
        began: "2026-11-21 06:30:00 UTC".to_owned(),
        interrupted: false,
        elapsed: Duration::from_secs(2),
        total: &total,
        series,
        before: (before, process(0, 0)),
        after: (after, process(400, 0)),
    })
}

#[test]
fn a_report_adds_up() {
    let run = sample("a");
    assert_eq!((run.all.operations, run.all.per_second), (200, 100.0));
    let kinds: Vec<_> = run.kinds.iter().map(|kind| (kind.kind.as_str(), kind.operations)).collect();
    assert_eq!(kinds, [("read", 100), ("write", 100)]);
    let about = |us: u64, expected: u64| us.abs_diff(expected) <= expected / 500;
    assert!(about(run.kinds[0].p999_us, 1_000) && about(run.kinds[0].mean_us as u64, 1_000));
    assert!(about(run.kinds[1].p99_us, 2_000) && about(run.kinds[1].p999_us, 1_000_000));
    assert!(about(run.kinds[1].mean_us as u64, 11_980));
    assert!(about(run.all.p50_us, 1_000) && about(run.all.max_us, 1_000_000));
    assert!(run.kinds.iter().all(|kind| kind.durability == "power-loss"));
    assert_eq!(run.all.bins.iter().map(|bin| bin.1).sum::<u64>(), 200);
    assert!(
        run.all.bins.iter().any(|&(bin, count)| bin == 6 * BINS_PER_DECADE && count == 1),
        "{:?}",
        run.all.bins
    );
    assert!(run.all.curve.is_sorted(), "{:?}", run.all.curve);

    let rates: Vec<_> = run.series.iter().map(|second| (second.second, second.per_second.round())).collect();
    assert_eq!(
        rates,
        [(0, 100.0), (1, 99.0)],
        "warm-up is left out, the short rest belongs to the last second"
    );
    assert!(run.series[1].max_us > 900_000);

    let server = &run.costs.servers[0];
    assert_eq!((server.cpu_us, server.written_bytes), (Some(100.0), Some(200.0)));
    assert_eq!(server.fsyncs, Some((100 + 2 * 2) as f64 / 200.0));
    assert_eq!(run.costs.servers[1].cpu_us, None);
    assert_eq!((run.costs.cpu_us, run.costs.tool_cpu_us), (None, Some(2.0)), "of one server it is not known");
    let text = run.to_text();
    for said in ["not local", "power-loss", "3 copies"] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
}

#[test]
fn nothing_at_all_is_reported_as_nothing() {
    let run = Run::new(Seen {
        plan: &options("").plan().unwrap(),
        fill: false,
        nodes: &Nodes::parse("127.0.0.1:1", Path::new("")).unwrap(),
        asked: &Nodes::parse("127.0.0.1:1", Path::new("")).unwrap(),
        cluster: &Cluster::default(),
        name: String::new(),
        began: String::new(),
        interrupted: true,
        elapsed: Duration::ZERO,
        total: &Window::default(),
        series: Vec::new(),
        before: Default::default(),
        after: Default::default(),
    });
    assert_eq!((run.all.operations, run.all.per_second, run.all.max_us), (0, 0.0, 0));
    assert!(run.to_text().contains("ended early"));
    assert!(page(&run, Some(&run)).contains("</html>"));
    assert_eq!(Run::from_json(&run.to_json()).unwrap(), run);
}

#[test]
fn a_run_is_the_same_after_a_round_trip() {
    let mut run = sample("näme \"quoted\"");
    run.errors.push(ErrorCount {
        kind: "read".into(),
        class: "timeout".into(),
        times: 1,
        example: "<x>".into(),
    });
    assert_eq!(Run::from_json(&run.to_json()).unwrap(), run);
    assert!(Run::from_json("{}").unwrap_err().contains("--json"));
    let csv = run.to_csv();
    assert_eq!(csv.lines().count(), 3);
    assert!(csv.lines().all(|line| line.split(',').count() == 8), "{csv}");
}

#[test]
fn ratios_are_of_kinds_that_both_have_and_what_differs_is_said() {
    let (one, mut two) = (sample("one"), sample("two"));
    two.all.per_second /= 2.0;
    two.kinds.remove(0);
    two.durability = "process-crash".to_owned();
    two.load.connections = 1;
    let found: Vec<_> =
        ratios(&one, &two).into_iter().map(|ratio| (ratio.kind, ratio.per_second, ratio.p99)).collect();
    assert_eq!(found, [("write".to_owned(), 1.0, 1.0), ("all".to_owned(), 2.0, 1.0)]);
    let text = compare::to_text(&one, &two);
    assert!(text.contains("not alike: durability power-loss against process-crash"), "{text}");
    assert!(text.contains("not alike: connections 64 against 1"), "{text}");
}

#[test]
fn a_page_needs_nothing_beside_itself() {
    let mut run = sample("<script>alert(1)</script>");
    run.errors.push(ErrorCount {
        kind: "read".into(),
        class: "timeout".into(),
        times: 1,
        example: "<b>".into(),
    });
    for page in [page(&run, None), page(&run, Some(&sample("other")))] {
        for outside in [
            "http",
            "src=",
            "href",
            "<script",
            "@import",
            "url(",
            "<link",
            "NaN",
            "inf",
            "<b>.",
            "first: <b>",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.matches("power-loss").count() >= 6, "beside every picture and figure");
    }
}

#[test]
fn errors_and_failed_operations_are_counted_by_second() {
    let mut window = Window::default();
    window.failed(Kind::Read, Failed { class: Class::Timeout, text: String::new() });
    let mut timeline = Timeline::new(0);
    timeline.add(Stretch { second: 0, length: Duration::from_secs(1), window });
    let (total, series) = timeline.finish();
    assert_eq!((total.failures(), series[0].errors, series[0].per_second), (1, 1, 0.0));
}
