//! Whole inspections of fake servers that hold chosen cells.

use std::path::Path;

use super::*;
use crate::cell::{Cell, Content, Stamp};
use crate::client::fake::{self, Fake, Manner, tombstone, value};

async fn cluster(count: usize) -> (Vec<Fake>, Client) {
    let (fakes, nodes) = fake::cluster(count).await;
    let options = ClientOptions { back_off_max: Duration::from_millis(20), ..ClientOptions::default() };
    (fakes, Client::new(nodes, options.with_call_timeout(Duration::from_millis(300))))
}

async fn inspected(client: &Client) -> Report {
    inspect(client, &AtomicU64::new(0)).await
}

/// Has `cell` under the classic `key` on these servers.
fn hold(fakes: &[Fake], on: &[usize], key: u8, cell: &Cell) {
    for id in on {
        fakes[*id].hold(&[key], cell.clone());
    }
}

fn expiring(stamp: i64, expires_at_s: i64) -> Cell {
    let content = Content::Expiring { value: "v".into(), expires_at_s };
    Cell { stamp: Stamp(stamp), content }
}

#[tokio::test]
async fn a_healthy_cluster() {
    let (fakes, client) = cluster(4).await;
    hold(&fakes, &[0, 1, 2], 0, &value(1_795_227_328_999_280, "value0"));
    hold(&fakes, &[2, 3, 0], 137, &value(1_795_227_328_999_281, "a b"));
    let report = inspected(&client).await;
    assert_eq!(
        report.text(),
        "\
server 0  up    2 keys   0 → value0 @2026-11-21 02:15:28.999280   137 → 'a b' @2026-11-21 02:15:28.999281
server 1  up    1 key    0 → value0 @2026-11-21 02:15:28.999280
server 2  up    2 keys   0 → value0 @2026-11-21 02:15:28.999280   137 → 'a b' @2026-11-21 02:15:28.999281
server 3  up    1 key    137 → 'a b' @2026-11-21 02:15:28.999281
hints: none
consistent: 2 of 2 keys
"
    );
    assert_eq!(report.exit_code(), 0);
}

#[tokio::test]
async fn a_dead_server_a_hint_and_a_replica_that_is_behind() {
    let (mut fakes, client) = cluster(4).await;
    hold(&fakes, &[0, 1], 0, &value(10, "value0"));
    hold(&fakes, &[0], 137, &value(456, "value137"));
    hold(&fakes, &[3], 137, &value(123, "older"));
    hold(&fakes, &[0], 255, &value(11, "last"));
    hold(&fakes, &[1, 3], 255, &value(11, "last"));
    fakes[1].describing(|description| {
        let member = &mut description.members.as_mut().unwrap()[2];
        member.hints = Some(2);
        member.hint_bytes = Some(90);
    });
    fakes[2].stop().await;
    let report = inspected(&client).await;
    assert_eq!(
        report.text(),
        "\
server 0  up    3 keys   0 → value0 @10   137 → value137 @456   255 → last @11
server 1  up    2 keys   0 → value0 @10   255 → last @11
server 2  DOWN  connection refused
server 3  up    2 keys   137 → older @123   255 → last @11
hints: server 1 holds 2 for server 2
consistent: 2 of 3 keys; key 137: server 3 is behind (stamp 123 < 456)
"
    );
    assert_eq!(report.exit_code(), 1);
    hold(&fakes, &[3], 137, &value(456, "value137"));
    assert_eq!(inspected(&client).await.exit_code(), 2);
}

#[tokio::test]
async fn every_way_to_differ_is_named() {
    let (fakes, client) = cluster(3).await;
    hold(&fakes, &[0, 1], 1, &value(5, "v"));
    hold(&fakes, &[0, 1], 2, &tombstone(5));
    hold(&fakes, &[0, 1, 2], 3, &value(4, "v"));
    hold(&fakes, &[0], 3, &tombstone(5));
    hold(&fakes, &[0, 1], 4, &value(5, "one"));
    hold(&fakes, &[2], 4, &value(5, "other"));
    hold(&fakes, &[0, 1, 2], 5, &tombstone(9)); // nothing to see and nothing wrong
    hold(&fakes, &[0, 1, 2], 6, &expiring(9, 10));
    hold(&fakes, &[0], 7, &value(7, "v"));
    let report = inspected(&client).await;
    let text = report.text();
    let consistency = &text[text.find("consistent").unwrap()..];
    assert_eq!(
        consistency,
        "\
consistent: 0 of 4 keys; 5 differ
  key 1: server 2 lacks it
  key 2: server 2 lacks the deletion
  key 3: server 1 is behind (stamp 4 < 5, a deletion), server 2 is behind (stamp 4 < 5, a deletion)
  key 4: server 2 has something else under the same stamp 5
  key 7: server 1 lacks it, server 2 lacks it
"
    );
    assert!(
        text.starts_with(
            "server 0  up    3 keys   1 → v @5   4 → one @5   7 → v @7   4 deleted or expired\n"
        )
    );
    assert_eq!(report.exit_code(), 1);
}

#[tokio::test]
async fn stores_larger_than_a_step_are_compared_in_steps_whatever_each_servers_bound() {
    let (fakes, client) = cluster(4).await;
    for (fake, cells_max) in fakes.iter().zip([7, 3, 1024, 10]) {
        fake.limit_cells(cells_max);
    }
    for key in 0..=255u8 {
        let first = usize::from(key) / 64;
        hold(&fakes, &[first, (first + 1) % 4, (first + 2) % 4], key, &value(i64::from(key) + 1, "v"));
    }
    let report = inspected(&client).await;
    assert_eq!((report.keys, report.agreeing, report.differing), (256, 256, 0));
    assert_eq!(report.exit_code(), 0);
    assert_eq!(report.servers.iter().map(|server| server.live).collect::<Vec<_>>(), [192; 4]);
    assert!(report.text().starts_with("server 0  up    192 keys   0 → v @1   1 → v @2"));
    assert!(report.text().contains("7 → v @8   … and 184 more\n"), "{}", report.text());

    hold(&fakes, &[2], 100, &value(1, "older"));
    let report = inspected(&client).await;
    assert_eq!((report.keys, report.agreeing, report.differing), (256, 255, 1));
    assert_eq!(report.differences[0].text(), "server 2 is behind (stamp 1 < 101)");
}

#[tokio::test]
async fn many_differences_are_counted_and_the_first_ones_listed() {
    let (fakes, client) = cluster(3).await;
    for key in 0..=255u8 {
        hold(&fakes, &[0, 1], key, &value(5, "v"));
    }
    let report = inspected(&client).await;
    assert_eq!((report.differing, report.differences.len()), (256, walk::DIFFERENCES_MAX));
    assert!(report.text().ends_with("  key 19: server 2 lacks it\n  … and 236 more\n"));
}

#[tokio::test]
async fn keys_past_the_last_token_belong_to_the_first_range() {
    let (fakes, client) = cluster(4).await;
    for id in [0, 1] {
        fakes[id].hold(&[0xff; 17], value(5, "v"));
    }
    let report = inspected(&client).await;
    let key = text::hex(&[0xff; 17]);
    assert!(report.text().ends_with(&format!("consistent: 0 of 1 key; key {key}: server 2 lacks it\n")));
}

#[tokio::test]
async fn a_key_on_a_server_that_should_not_have_it_is_a_stray() {
    let (fakes, client) = cluster(4).await;
    fakes[1].limit_cells(1);
    hold(&fakes, &[0, 1, 2, 3], 137, &value(5, "v"));
    hold(&fakes, &[0, 1, 2, 3], 138, &value(5, "v"));
    let report = inspected(&client).await;
    assert!(
        report.text().ends_with(
            "\
stray: server 1 holds 2 cells that belong on servers 2, 3, 0, such as key 137
consistent: 2 of 2 keys
"
        ),
        "{}",
        report.text()
    );
    assert_eq!(report.exit_code(), 1);
}

#[tokio::test]
async fn every_table_is_compared() {
    let (fakes, client) = cluster(3).await;
    for fake in &fakes {
        fake.hold_at(0, b"row", b"name", value(5, "v"));
        fake.hold_at(7, b"row", b"name", value(5, "v"));
        fake.hold_at(u16::MAX, b"row", b"", value(5, "v"));
    }
    fakes[2].hold_at(7, b"row", b"name", value(6, "v"));
    let report = inspected(&client).await;
    assert_eq!((report.keys, report.agreeing), (3, 2));
    let text = report.text();
    assert!(
        text.ends_with(
            "key 7/row/name: server 1 is behind (stamp 5 < 6), server 0 is behind (stamp 5 < 6)\n"
        ),
        "{text}"
    );
}

/// What was collected and is not dropped yet is looked at and not shown: a page may be empty and not the last.
#[tokio::test]
async fn servers_whose_first_cells_were_collected_are_compared_like_others() {
    let (fakes, client) = cluster(4).await;
    for fake in &fakes {
        fake.collect_upto(9);
    }
    fakes[3].limit_cells(2);
    for key in 128..=150 {
        hold(&fakes, &[2, 3], key, &tombstone(9));
    }
    for key in 140..=145 {
        hold(&fakes, &[0], key, &tombstone(8));
    }
    for key in 0..=5 {
        hold(&fakes, &[0, 1, 2, 3], key, &tombstone(7));
    }
    hold(&fakes, &[2, 3, 0], 149, &value(10, "v"));
    hold(&fakes, &[2, 0], 152, &value(11, "w"));
    hold(&fakes, &[3], 6, &value(12, "x"));
    for fake in &fakes[..3] {
        fake.hold_at(2, &[0], b"", tombstone(9));
        fake.hold_at(7, &[0], b"c", value(13, "other"));
    }
    let report = inspected(&client).await;
    let text = report.text();
    let stray = "stray: server 3 holds 1 cell that belongs on servers 0, 1, 2, such as key 6\n";
    assert!(text.contains(stray), "{text}");
    assert!(text.ends_with("consistent: 2 of 3 keys; key 152: server 3 lacks it\n"), "{text}");
    assert_eq!(report.exit_code(), 1);
}

#[tokio::test]
async fn what_settles_while_it_is_looked_at_is_no_difference() {
    let (fakes, client) = cluster(3).await;
    hold(&fakes, &[0, 1, 2], 1, &value(5, "v"));
    hold(&fakes, &[2], 1, &value(4, "older"));
    hold(&fakes, &[0, 1, 2], 2, &value(100, "busy"));
    let arriving = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        hold(&fakes, &[2], 1, &value(5, "v"));
        // A key that is written all the time: its replicas are never seen alike, and never stuck either.
        for stamp in 101.. {
            hold(&fakes, &[(stamp % 3) as usize], 2, &value(stamp, "busy"));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let report = tokio::select! {
        biased;
        report = inspected(&client) => report,
        () = arriving => unreachable!("it never ends"),
    };
    assert_eq!(report.differing, 0, "{}", report.text());
}

#[tokio::test]
async fn a_server_that_goes_silent_is_down_and_the_others_are_compared() {
    let (fakes, client) = cluster(4).await;
    hold(&fakes, &[0, 1, 2], 0, &value(5, "v"));
    fakes[1].behave(Manner::Silent);
    let report = inspected(&client).await;
    let text = report.text();
    assert!(
        text.contains("server 1  DOWN  went away while it was asked: no answer within 300 ms\n"),
        "{text}"
    );
    assert!(text.ends_with("consistent: 1 of 1 key\n"), "{text}");
    assert_eq!(report.exit_code(), 2);
}

#[tokio::test]
async fn what_could_not_be_compared_is_said() {
    let (mut fakes, client) = cluster(4).await;
    hold(&fakes, &[0, 1, 2], 0, &value(5, "v"));
    fakes[1].stop().await;
    fakes[2].stop().await;
    let report = inspected(&client).await;
    assert_eq!(
        report.text(),
        "\
server 0  up    1 key    0 → v @5
server 1  DOWN  connection refused
server 2  DOWN  connection refused
server 3  up    0 keys
hints: none
not compared: the keys that server 0 owns, only one replica could be asked
not compared: the keys that server 1 owns, only one replica could be asked
consistent: 1 of 1 key
"
    );
    assert_eq!(report.exit_code(), 2);
    fakes[0].stop().await;
    fakes[3].stop().await;
    let report = inspected(&client).await;
    assert!(report.text().ends_with("consistent: no server could be asked\n"));
    assert_eq!(report.exit_code(), 2);
}

#[tokio::test]
async fn a_server_of_another_ring_or_another_number_is_reported() {
    let (fakes, client) = cluster(4).await;
    fakes[3].describing(|description| description.replication_factor = Some(2));
    fakes[2].describing(|description| description.id = Some(0));
    let report = inspected(&client).await;
    let text = report.text();
    assert!(text.contains("server 2  DOWN  it says that it is server 0: another nodes.txt?\n"), "{text}");
    assert!(text.contains("ring: server 3 sees another ring than the others\n"), "{text}");
    assert_eq!(report.exit_code(), 1);
}

#[tokio::test]
async fn one_key_is_shown_as_each_server_has_it() {
    let (mut fakes, client) = cluster(4).await;
    let key = parse_key("137").unwrap();
    hold(&fakes, &[2], 137, &value(456, "value137"));
    hold(&fakes, &[3], 137, &tombstone(789));
    hold(&fakes, &[1], 137, &value(1, "left over"));
    fakes[2].hold(&[137, 0], value(1, "another key"));
    fakes[2].hold(&[136, 0xff], value(1, "another key"));
    let report = inspect_key(&client, &key).await;
    assert_eq!(
        report.text(),
        "\
key 137 belongs on servers 2, 3, 0
server 0  up    nothing
server 1  up    'left over' @1   stray
server 2  up    value137 @456
server 3  up    deleted @789
key 137: server 0 lacks the deletion, server 2 is behind (stamp 456 < 789, a deletion)
stray: server 1 should not have it
"
    );
    assert_eq!(report.exit_code(), 1);

    let key = parse_key("'a key'").unwrap();
    for id in [1, 2, 3] {
        fakes[id].hold(b"a key", expiring(5, 2_000_000_000 * 2));
    }
    let report = inspect_key(&client, &key).await;
    assert_eq!(
        report.text(),
        "\
key 'a key' belongs on servers 1, 2, 3
server 0  up    nothing, as it should be
server 1  up    v @5   expires 2096-10-02 07:06:40 UTC
server 2  up    v @5   expires 2096-10-02 07:06:40 UTC
server 3  up    v @5   expires 2096-10-02 07:06:40 UTC
its replicas agree
"
    );
    assert_eq!(report.exit_code(), 0);
    fakes[1].stop().await;
    fakes[2].stop().await;
    let report = inspect_key(&client, &key).await;
    assert!(report.text().contains("server 1  DOWN  connection refused\n"));
    assert!(report.text().ends_with("only one of its replicas could be asked\n"));
    assert_eq!(report.exit_code(), 2);
    assert!(parse_key("a b").unwrap_err().contains("--key takes one key"));
}

#[tokio::test]
async fn stats_stand_side_by_side() {
    let (mut fakes, client) = cluster(3).await;
    fakes[0].count_stat("writes_ok", 12_345);
    fakes[1].count_stat("writes_ok", 0);
    fakes[1].count_stat("log_queue_bytes", -1);
    fakes[0].count_stat("reads_ok", 0);
    fakes[1].describing(|description| description.durability = Some("process-crash".to_owned()));
    fakes[2].stop().await;
    let report = stats_table::gather(&client).await;
    assert_eq!(
        report.text(),
        "\
\x20                  server 0       server 1
durability       power-loss  process-crash
log_queue_bytes           0             -1
writes_ok            12,345              0
server 2  DOWN  connection refused
"
    );
    assert_eq!(report.exit_code(), 2);
    assert_eq!(report.json()["servers"][0]["values"]["writes_ok"], 12_345);
}

#[tokio::test]
async fn json_says_the_same() {
    let (mut fakes, client) = cluster(4).await;
    hold(&fakes, &[0], 137, &value(456, "value137"));
    hold(&fakes, &[3], 137, &value(123, "older"));
    fakes[2].stop().await;
    let json = inspected(&client).await.json();
    assert_eq!(json["exit"], 1);
    assert_eq!(json["servers"][2]["why"], "connection refused");
    assert_eq!(json["servers"][0]["first"][0]["value"], "value137");
    assert_eq!(json["differences"][0]["text"], "server 3 is behind (stamp 123 < 456)");
    assert_eq!(json["differences"][0]["versions"][0]["stamp"], 123);
    let key = inspect_key(&client, &parse_key("137").unwrap()).await.json();
    assert_eq!(key["replicas"], serde_json::json!([2, 3, 0]));
    assert_eq!(key["exit"], 1);
}

#[tokio::test]
async fn long_values_are_cut_and_shown_as_text() {
    let (fakes, client) = cluster(1).await;
    fakes[0].hold(b"long", value(1, &"ü".repeat(300)));
    fakes[0].hold(b"bytes", value(2, "a\nb"));
    let text = inspected(&client).await.text();
    let cut = "ü".repeat(40);
    assert!(
        text.starts_with(&format!("server 0  up    2 keys   bytes → 0x610a62 @2   long → {cut}… @1\n")),
        "{text}"
    );
}

#[tokio::test]
async fn wrong_use_is_exit_code_2() {
    for arguments in [
        vec!["inspector", "--nodes", "/no/such/nodes.txt"],
        vec!["inspector", "--key", "256"],
        vec!["inspector", "--offline", "/no/such/directory"],
    ] {
        assert_eq!(run(&Options::parse_from(arguments)).await, WRONG_USE);
    }
    assert!(!Path::new("/no/such/nodes.txt").exists());
}
