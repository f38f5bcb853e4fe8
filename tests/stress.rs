//! `stress` as a program, against real servers: every workload, both services, what it writes, and how it exits.

mod common;

use std::process::{Command, Output};

use common::Cluster;

fn stress(cluster: &Cluster, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stress"));
    command.current_dir(cluster.path()).args(["--quiet", "--warm-up", "0", "--connections", "4"]);
    command.args(line.split_whitespace()).output().expect("stress starts")
}

/// What it printed, if it exited with `code`.
#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8(text).expect("text");
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn workloads_run_and_are_published_with_their_costs() {
    let cluster = Cluster::start(3, "");
    cluster.wait_all_up();
    let filled = said(&stress(&cluster, "--fill --keys 300"), 0);
    assert!(filled.contains("workload fill: every key put once"), "{filled}");
    for workload in ["A", "B", "C", "D", "F"] {
        let line = format!("--workload {workload} --keys 300 --operations 300 --json {workload}.json");
        let text = said(&stress(&cluster, &line), 0);
        assert!(!text.contains("found nothing"), "{text}");
        assert!(text.contains("power-loss"), "{text}");
    }
    let classic = said(&stress(&cluster, "--classic --workload mixed --load --operations 300"), 0);
    assert!(classic.contains("classic service"), "{classic}");

    let line = "--rate 500 --seconds 2 --json rate.json --csv rate.csv --plot rate.html --compare A.json";
    let text = said(&stress(&cluster, line), 0);
    assert!(text.contains("not alike: rate 500 against none"), "{text}");
    let json = std::fs::read_to_string(cluster.path().join("rate.json")).unwrap();
    let run: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(run["all"]["operations"], 1_000);
    if std::path::Path::new("/proc/net/tcp").exists() {
        for id in 0..3 {
            assert_eq!(run["costs"]["servers"][id]["pid"], cluster.pid(id));
            assert!(run["costs"]["servers"][id]["fsyncs"].as_f64().unwrap() > 0.0);
        }
    }
    assert!(std::fs::read_to_string(cluster.path().join("rate.csv")).unwrap().lines().count() >= 3);
    assert!(std::fs::read_to_string(cluster.path().join("rate.html")).unwrap().ends_with("</html>\n"));
}

#[test]
fn errors_and_wrong_use_have_their_exit_codes() {
    let mut cluster = Cluster::start(3, "");
    cluster.wait_all_up();
    cluster.kill(2);
    cluster.wait_seen(0, 2, "down");
    let line = "--level ALL --operations 20 --json all.json";
    let refused = said(&stress(&cluster, line), 1);
    assert!(refused.contains("no numbers are published"), "{refused}");
    assert!(!cluster.path().join("all.json").exists());
    let allowed = said(&stress(&cluster, &format!("{line} --allow-errors")), 0);
    assert!(allowed.contains("unavailable"), "{allowed}");
    let scans = said(&stress(&cluster, "--workload E"), 2);
    assert!(scans.contains("there are no scans yet"), "{scans}");
    cluster.kill_each(&[0, 1]);
    let dead = said(&stress(&cluster, "--operations 1"), 2);
    assert!(dead.contains("no server answers"), "{dead}");
}
