//! How fast it is: not a check, to be run by hand:
//! `cargo test --release --lib store::tests::speed -- --ignored --nocapture`.

use super::*;

#[tokio::test]
#[ignore = "a measurement"]
async fn rows_a_second_and_replay() {
    const ROWS: u32 = 1_000_000;
    let dir = directory();
    let config = Config { memtable_bytes_max: 1_000_000_000, ..Config::default() };
    let (store, _) = open(dir.path(), &config);
    let scattered = |number: u32| {
        u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes()
    };
    for (in_flight, rows) in [(1, 2_000), (8, 16_000), (64, 100_000), (512, 300_000), (4096, ROWS)] {
        let started = Instant::now();
        let mut answers = Answers::default();
        for number in 0..rows {
            if answers.due() >= in_flight {
                answers.next().await;
            }
            store.apply(kv(scattered(number), value(i64::from(number), [7; 100])), answers.expect(HERE));
        }
        while answers.next().await.is_some() {}
        let took = started.elapsed().as_secs_f64();
        println!("{in_flight} in flight: {:.0} rows/s", f64::from(rows) / took);
    }
    let started = Instant::now();
    for number in 0..ROWS / 10 {
        assert!(get(&store, scattered(number)).is_some());
    }
    println!("reads from memory: {:.1} µs", started.elapsed().as_secs_f64() * 1e7 / f64::from(ROWS));
    drop(store);

    let (store, recovered) = open(dir.path(), &config);
    println!("replay: {} rows in {:?}", recovered.rows_replayed, recovered.took);
    drop(store);

    let started = Instant::now();
    let (store, _) = open(dir.path(), &Config::default());
    println!("replay with a memtable of the usual size, flushing in between: {:?}", started.elapsed());
    let started = Instant::now();
    for number in 0..ROWS / 10 {
        assert!(get(&store, scattered(number)).is_some());
    }
    println!("reads from data.db: {:.1} µs", started.elapsed().as_secs_f64() * 1e7 / f64::from(ROWS));
    let started = Instant::now();
    println!(
        "digest of all: {:?} in {:?}",
        store.digest(&[], &[], usize::MAX, 0).unwrap(),
        started.elapsed()
    );

    for (rows, what) in [(20_000u32, "in order"), (1_000_000, "scattered")] {
        let started = Instant::now();
        let mut answers = Answers::default();
        let mut worst = Duration::ZERO;
        for number in 0..rows {
            let sent = Instant::now();
            if answers.due() >= 64 {
                answers.next().await;
            }
            worst = worst.max(sent.elapsed());
            let key =
                if what == "in order" { u128::from(number).to_be_bytes() } else { scattered(ROWS + number) };
            store.apply(kv(key, value(i64::from(ROWS + number), [7; 100])), answers.expect(HERE));
        }
        while answers.next().await.is_some() {}
        let took = started.elapsed().as_secs_f64();
        println!(
            "{what}, 64 in flight, flushing: {:.0} rows/s, worst wait {worst:?}",
            f64::from(rows) / took
        );
    }
    println!("{:?}", store.gauges());
    let values = store.shared().stats.values();
    for name in
        ["flushes", "commit_p50_us", "commit_p99_us", "commit_max_us", "flush_mean_us", "flush_max_us"]
    {
        println!("{name} {}", values[name]);
    }
}
