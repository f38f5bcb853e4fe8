//! Each rule by hand: a history that just keeps it, and one that just breaks it.

use super::*;
use crate::answer::NodeId;
use crate::cell::Stamp;
use crate::ring::Ring;

fn history(lines: &str) -> History {
    History::parse(lines).expect("a history")
}

fn judged(replicas: usize, lines: &str) -> Judgement {
    judge(&history(lines), &Promises::of(replicas), None).expect("well-formed")
}

/// What the pairwise rules find, on three replicas.
fn broken(lines: &str) -> Vec<Rule> {
    broken_of(3, lines)
}

fn broken_of(replicas: usize, lines: &str) -> Vec<Rule> {
    let found = judged(replicas, lines).found;
    found.into_keys().filter(|rule| *rule != Rule::NotLinearizable).collect()
}

/// `server=value@stamp`, `server=deleted@stamp` or `server=nothing`, of the key `k`.
fn copies(held: &str) -> Settled {
    let mut settled = Settled::default();
    for word in held.split_whitespace() {
        let (node, held) = word.split_once('=').expect("server=what");
        let version = held.split_once('@').map(|(value, stamp)| Version {
            stamp: Stamp(stamp.parse().expect("a stamp")),
            value: (value != "deleted").then(|| Bytes::copy_from_slice(value.as_bytes())),
        });
        settled.note(Bytes::from_static(b"k"), NodeId(node.parse().expect("a server")), version);
    }
    settled
}

fn broken_in_the_end(lines: &str, held: &str) -> Vec<Rule> {
    let judged = judge(&history(lines), &Promises::of(3), Some(&copies(held))).expect("well-formed");
    judged.found.into_keys().collect()
}

const NONE: [Rule; 0] = [];

#[test]
fn a_read_shows_what_was_acknowledged_before_it_began() {
    let puts = "10 20 1 QUORUM put k a written 100\n 30 40 1 QUORUM put k b written 200\n";
    assert_eq!(broken(&format!("{puts} 50 60 2 QUORUM get k found b 200")), NONE);
    assert_eq!(broken(&format!("{puts} 50 60 2 QUORUM get k found a 100")), [Rule::LostWrite]);
    // The second put had not ended: either will do.
    assert_eq!(broken(&format!("{puts} 40 60 2 QUORUM get k found a 100")), NONE);
    // One replica of three need not be among the two that have it.
    assert_eq!(broken(&format!("{puts} 50 60 2 ONE get k found a 100")), NONE);
    assert_eq!(broken(&format!("{puts} 50 60 2 ALL get k found a 100")), [Rule::LostWrite]);
    assert_eq!(broken_of(1, &format!("{puts} 50 60 2 ONE get k found a 100")), [Rule::LostWrite]);
}

#[test]
fn a_later_read_tells_stale_from_lost() {
    let lines = "10 20 1 QUORUM put k a written 100\n 30 40 1 QUORUM put k b written 200\n\
                 50 60 2 QUORUM get k found a 100\n 51 61 3 QUORUM get k found a 100\n";
    let lost = judged(3, lines);
    assert_eq!((lost.lost(), lost.stale()), (1, 1), "{lost}");
    let stale = judged(3, &format!("{lines} 70 80 2 QUORUM get k found b 200"));
    assert_eq!((stale.lost(), stale.stale()), (0, 2), "{stale}");
    let newer =
        judged(3, &format!("{lines} 62 63 1 QUORUM put k c written 300\n70 80 2 ONE get k found c 300"));
    assert_eq!((newer.lost(), newer.stale()), (0, 2), "{newer}");
}

#[test]
fn without_stamps_time_says_which_is_older() {
    let puts = "10 20 1 QUORUM put k a written\n 30 40 1 QUORUM put k b written\n";
    assert_eq!(broken(&format!("{puts} 50 60 2 QUORUM get k found b")), NONE);
    assert_eq!(broken(&format!("{puts} 50 60 2 QUORUM get k found a")), [Rule::LostWrite]);
    // They overlapped: either may be the newer one.
    let puts = "10 30 1 QUORUM put k a written\n 30 40 3 QUORUM put k b written\n";
    assert_eq!(broken(&format!("{puts} 50 60 2 QUORUM get k found a")), NONE);
    // The stamp that was told is the newer one of the two, whosever it was.
    let puts = "10 20 1 ONE put k a written\n 30 40 1 ONE put k b written\n";
    assert_eq!(broken(&format!("{puts} 50 60 2 ALL get k found a")), NONE);
    // The first may take effect at any later moment.
    let puts = "10 20 1 QUORUM put k a unknown timeout\n 30 40 1 QUORUM put k b written\n";
    assert_eq!(broken(&format!("{puts} 50 60 2 QUORUM get k found a")), NONE);
}

#[test]
fn a_weak_write_may_win_over_a_later_strong_one() {
    // The third replica has the first write, which a late clock cannot beat; two others took the second.
    let pair = |first: &str, second: &str| {
        format!("10 20 1 {first} put k a written 100\n 30 40 1 {second} put k b written 100\n")
    };
    let read = "50 60 2 ALL get k found a 100";
    assert_eq!(broken(&format!("{}{read}", pair("ONE", "ALL"))), NONE);
    assert_eq!(broken(&format!("{}{read}", pair("QUORUM", "ALL"))), [Rule::LostWrite]);
    let nothing = |first: &str| {
        broken(&format!(
            "10 20 1 {first} remove k written 100\n 30 40 1 ALL put k b written 100\n 50 60 2 ALL get k found nothing"
        ))
    };
    assert_eq!(nothing("ONE"), NONE);
    // On two replicas the first is not only shown too late: the second, of the same stamp, loses the tie against it.
    assert_eq!(nothing("QUORUM"), [Rule::LostWrite, Rule::StampsOutOfOrder]);
}

#[test]
fn levels_that_share_a_replica_are_enough() {
    let puts =
        |level: &str| format!("10 20 1 {level} put k a written 100\n 30 40 1 {level} put k b written 200\n");
    let read = |level: &str, found: &str| format!("50 60 2 {level} get k found {found}");
    assert_eq!(broken(&format!("{}{}", puts("ONE"), read("QUORUM", "a 100"))), NONE);
    assert_eq!(broken(&format!("{}{}", puts("ONE"), read("ALL", "a 100"))), [Rule::LostWrite]);
    assert_eq!(broken(&format!("{}{}", puts("ALL"), read("ONE", "a 100"))), [Rule::LostWrite]);
    assert_eq!(broken_of(5, &format!("{}{}", puts("TWO"), read("QUORUM", "a 100"))), NONE);
    assert_eq!(broken_of(4, &format!("{}{}", puts("TWO"), read("QUORUM", "a 100"))), [Rule::LostWrite]);
    // ANY may be but a hint.
    assert_eq!(broken(&format!("{}{}", puts("ANY"), read("ALL", "a 100"))), NONE);
    assert_eq!(broken_of(1, &format!("{}{}", puts("ANY"), read("ALL", "a 100"))), NONE);
}

#[test]
fn a_stamp_told_may_be_another_writes() {
    // `b` was told the stamp of `x`, which one replica had; `a` and `b` overlapped, and `a` won at 150 over `b` at 140.
    let lines = "10 30 1 QUORUM put k a written 150\n 20 40 2 QUORUM put k b written 200\n\
                 15 50 3 QUORUM put k x unknown timeout\n 60 70 1 QUORUM get k found a 150\n";
    assert_eq!(broken(lines), NONE);
    // Nobody else can have made 200.
    let alone = lines.replace("15 50 3 QUORUM put k x unknown timeout\n", "");
    assert_eq!(broken(&alone), [Rule::LostWrite]);
    // It was asked too late, or refused.
    assert_eq!(broken(&lines.replace("15 50 3", "41 50 3")), [Rule::LostWrite]);
    assert_eq!(broken(&lines.replace("unknown timeout", "refused overloaded")), [Rule::LostWrite]);
    // Somebody saw `b` at 200.
    assert_eq!(broken(&format!("{lines} 55 58 4 ONE get k found b 200")), [Rule::LostWrite]);
}

#[test]
fn nothing_is_found_only_before_a_put_or_after_a_removal() {
    let put = "10 20 1 QUORUM put k a written 100\n";
    assert_eq!(broken("10 20 1 QUORUM get k found nothing"), NONE);
    assert_eq!(broken(&format!("{put} 20 40 2 QUORUM get k found nothing")), NONE);
    assert_eq!(broken(&format!("{put} 30 40 2 QUORUM get k found nothing")), [Rule::LostWrite]);
    let removed = |told: &str, at: &str, read: &str| {
        format!("{put} {at} 3 QUORUM remove k {told}\n {read} 2 QUORUM get k found nothing")
    };
    assert_eq!(broken(&removed("written 200", "21 22", "30 40")), NONE);
    assert_eq!(broken(&removed("unknown timeout", "21 22", "30 40")), NONE);
    assert_eq!(broken(&removed("unknown timeout", "1 2", "30 40")), NONE);
    assert_eq!(broken(&removed("written 200", "40 50", "30 40")), NONE);
    assert_eq!(broken(&removed("written 200", "41 50", "30 40")), [Rule::LostWrite]);
    assert_eq!(broken(&removed("refused overloaded", "21 22", "30 40")), [Rule::LostWrite]);
    assert_eq!(broken(&removed("written 50", "10 22", "30 40")), NONE);
    assert_eq!(broken(&removed("written 50", "1 2", "30 40")), [Rule::LostWrite]);
}

#[test]
fn a_removal_is_a_write() {
    let lines = "10 20 1 QUORUM put k a written 100\n 30 40 1 QUORUM remove k written 200\n";
    assert_eq!(broken(&format!("{lines} 50 60 2 QUORUM get k found nothing 200")), NONE);
    assert_eq!(broken(&format!("{lines} 50 60 2 QUORUM get k found nothing")), NONE);
    assert_eq!(broken(&format!("{lines} 50 60 2 QUORUM get k found a 100")), [Rule::LostWrite]);
    assert_eq!(broken(&format!("{lines} 50 60 2 QUORUM get k found a")), [Rule::LostWrite]);
}

#[test]
fn what_is_left_of_a_collected_deletion_may_be_older() {
    let lines = "10 20 1 QUORUM put k a written 100\n 30 40 1 QUORUM remove k written 200\n";
    assert_eq!(broken_in_the_end(lines, "0=deleted@100 1=nothing 2=nothing"), NONE);
    assert_eq!(broken_in_the_end(lines, "0=deleted@200 1=nothing 2=nothing"), NONE);
    // All have it still, so none was collected.
    assert_eq!(broken_in_the_end(lines, "0=deleted@100 1=deleted@100 2=deleted@100"), [Rule::LostWrite]);
    let put = format!("{lines} 50 60 1 QUORUM put k b written 300\n");
    assert_eq!(broken_in_the_end(&put, "0=deleted@100 1=nothing 2=nothing"), [Rule::LostWrite]);
    assert!(broken_in_the_end(lines, "0=a@100 1=nothing 2=nothing").contains(&Rule::LostWrite));
}

#[test]
fn reads_do_not_go_back() {
    // Both puts are still under way, or unknown: the reads alone are the witnesses.
    let puts = "10 99 1 QUORUM put k a written 100\n 10 99 4 QUORUM put k b unknown timeout\n";
    let reads = |first: &str, second: &str| format!("{puts} 20 30 2 {first}\n {second}");
    let (new, old) = ("QUORUM get k found b 200", "QUORUM get k found a 100");
    assert_eq!(broken(&reads(old, &format!("40 50 3 {new}"))), NONE);
    assert_eq!(broken(&reads(new, &format!("40 50 3 {old}"))), [Rule::WentBack]);
    assert_eq!(broken(&reads(new, &format!("30 50 3 {old}"))), NONE);
    assert_eq!(broken(&reads(new, "40 50 3 ONE get k found a 100")), NONE);
    assert_eq!(broken(&reads("ONE get k found b 200", "40 50 3 ALL get k found a 100")), [Rule::WentBack]);
    assert_eq!(broken(&reads(new, "40 50 3 QUORUM get k found nothing")), [Rule::WentBack]);
    // The larger value wins a tie.
    let tie = |first: &str, second: &str| reads(first, &format!("40 50 3 {second}"));
    assert_eq!(broken(&tie("QUORUM get k found a 100", "QUORUM get k found b 100")), NONE);
    assert_eq!(broken(&tie("QUORUM get k found b 100", "QUORUM get k found a 100")), [Rule::WentBack]);
}

#[test]
fn reads_that_repair_nothing_may_go_back() {
    let lines = "10 99 1 QUORUM put k a written 100\n 10 99 4 QUORUM put k b unknown timeout\n\
                 20 30 2 QUORUM get k found b 200\n 40 50 3 QUORUM get k found a 100";
    let promises = Promises { read_repair: false, ..Promises::of(3) };
    let judged = |lines: &str| judge(&history(lines), &promises, None).unwrap();
    assert!(judged(lines).holds());
    assert_eq!(judged(lines).linear.left_out[&LeftOut::NoReadRepair], 1);
    // All replicas have what the one has.
    assert_eq!(judged(&lines.replace("3 QUORUM", "3 ALL")).of_rule(Rule::WentBack), 1);
}

#[test]
fn without_stamps_strong_reads_do_not_go_back_in_time() {
    // The first put had ended before the second began, but the second had not when the second read began.
    let puts = "10 20 1 QUORUM put k a written\n 30 99 1 QUORUM put k b written\n";
    let reads = |first: &str, second: &str| {
        format!("{puts} 40 50 2 QUORUM get k found {first}\n 60 70 3 QUORUM get k found {second}")
    };
    assert_eq!(broken(&reads("a", "b")), NONE);
    assert_eq!(broken(&reads("b", "a")), [Rule::WentBack]);
    assert_eq!(broken(&reads("b", "a").replace("30 99 1", "20 99 4")), NONE);
    // A weak put has no say over the order.
    assert_eq!(broken(&reads("b", "a").replace("99 1 QUORUM put", "99 1 ONE put")), NONE);
    // Stamps, where both are told, have the last word. (The first read began before the first put was acknowledged.)
    let stamped = |first: &str, second: &str| {
        let lines = reads("b", "a").replace("40 50", "15 50");
        lines.replace("found b", &format!("found b {first}")).replace("found a", &format!("found a {second}"))
    };
    assert_eq!(broken(&stamped("100", "200")), NONE);
    assert_eq!(broken(&stamped("200", "100")), [Rule::WentBack]);
    assert_eq!(broken(&stamped("", "200")), [Rule::WentBack]);
    // The removal had ended before the put began: it is not why nothing is found.
    let removal = "10 20 1 QUORUM remove k written\n 30 99 1 QUORUM put k b written\n\
                   40 50 2 QUORUM get k found b\n 60 70 3 QUORUM get k found nothing";
    assert_eq!(broken(removal), [Rule::WentBack]);
    assert_eq!(broken(&removal.replace("10 20 1", "10 30 4")), NONE);
}

#[test]
fn what_is_shown_was_asked_for() {
    let lines = "10 20 1 ONE put k a written 100\n 10 20 2 ONE put other b written 100\n";
    assert_eq!(broken(&format!("{lines} 5 10 3 ONE get k found a 100")), NONE);
    assert_eq!(broken(&format!("{lines} 5 9 3 ONE get k found a 100")), [Rule::NobodysValue]);
    assert_eq!(broken(&format!("{lines} 30 40 3 ONE get k found b 100")), [Rule::NobodysValue]);
    assert_eq!(broken(&format!("{lines} 30 40 3 ONE get k found nothing 50")), [Rule::NobodysValue]);
    let removal = "35 36 4 ONE remove k unknown timeout\n";
    assert_eq!(broken(&format!("{lines} {removal} 30 40 3 ONE get k found nothing 150")), NONE);
    assert_eq!(
        broken(&format!("{lines} {removal} 30 34 3 ONE get k found nothing 150")),
        [Rule::NobodysValue]
    );
}

#[test]
fn what_was_refused_is_not_shown() {
    let read = "30 40 3 ONE get k found a 100";
    assert_eq!(
        broken(&format!("10 20 1 QUORUM put k a refused overloaded\n {read}")),
        [Rule::RefusedYetWritten]
    );
    assert_eq!(broken(&format!("10 20 1 QUORUM put k a unknown timeout\n {read}")), NONE);
    let read = "30 40 3 ONE get k found nothing 100";
    assert_eq!(broken(&format!("10 20 1 ONE remove k refused full\n {read}")), [Rule::RefusedYetWritten]);
    let two = format!("10 20 1 ONE remove k refused full\n 21 22 1 ONE remove k unknown timeout\n {read}");
    assert_eq!(broken(&two), NONE);
}

#[test]
fn stamps_follow_time() {
    let pair = |first: &str, second: &str| format!("10 20 1 {first}\n 30 40 2 {second}");
    let (weak, strong) = ("ONE put k a written 200", "QUORUM put k a written 200");
    assert_eq!(broken(&pair(strong, "QUORUM put k b written 201")), NONE);
    assert_eq!(broken(&pair(strong, "QUORUM put k b written 199")), [Rule::StampsOutOfOrder]);
    // A tie is won by the larger value.
    assert_eq!(broken(&pair(strong, "QUORUM put k b written 200")), NONE);
    assert_eq!(broken(&pair(strong, "QUORUM put k A written 200")), [Rule::StampsOutOfOrder]);
    assert_eq!(broken(&pair(strong, "QUORUM remove k written 199")), [Rule::StampsOutOfOrder]);
    assert_eq!(broken(&pair(strong, "ONE put k b written 199")), NONE);
    assert_eq!(broken(&pair(weak, "QUORUM put k b written 199")), NONE);
    assert_eq!(broken(&pair(weak, "ALL put k b written 199")), [Rule::StampsOutOfOrder]);
    // One replica was behind, a quorum applied it: the stamp told is the one that won.
    assert_eq!(broken(&pair(weak, "ALL put k A written 200")), NONE);
    // They overlapped.
    assert_eq!(broken(&pair(strong, "QUORUM put k b written 199").replace("30 40", "20 40")), NONE);
    // Shown above the stamp that won.
    let shown = |stamp: &str| format!("10 20 1 ONE put k a written 200\n 30 40 2 ONE get k found a {stamp}");
    assert_eq!(broken(&shown("200")), NONE);
    assert_eq!(broken(&shown("201")), [Rule::StampsOutOfOrder]);
}

#[test]
fn two_values_of_one_stamp_are_counted_where_that_is_promised() {
    let lines = "10 20 1 ONE put k a written 100\n 10 20 2 ONE put k b written 100\n\
                 30 40 3 ONE get k found a 100\n 50 60 3 ONE get k found b 100";
    assert_eq!(broken(lines), NONE);
    let unique = Promises { unique_stamps: true, ..Promises::of(3) };
    let found = |lines: &str| judge(&history(lines), &unique, None).unwrap().found;
    assert_eq!(found(lines)[&Rule::SharedStamp], 1);
    assert!(
        found(&lines.replace("found b 100", "found b 101").replace("b written 100", "b written 101"))
            .is_empty()
    );
}

#[test]
fn in_the_end_replicas_hold_the_same() {
    let lines = "10 20 1 ONE put k a written 100\n 30 40 1 QUORUM put k b unknown timeout";
    assert_eq!(broken_in_the_end(lines, "0=a@100 1=a@100 2=a@100"), NONE);
    assert_eq!(broken_in_the_end(lines, "0=b@200 1=b@200 2=b@200"), NONE);
    assert_eq!(broken_in_the_end(lines, "0=b@200 1=a@100 2=b@200"), [Rule::ReplicasDiffer]);
    assert_eq!(broken_in_the_end(lines, "0=b@200 1=nothing 2=b@200"), [Rule::ReplicasDiffer]);
}

#[test]
fn in_the_end_no_acknowledged_write_is_missing() {
    for level in ["ANY", "ONE", "QUORUM"] {
        let lines = format!("10 20 1 {level} put k a written 100\n 10 20 2 {level} put k b written 200");
        assert_eq!(broken_in_the_end(&lines, "0=b@200 1=b@200"), NONE);
        assert_eq!(broken_in_the_end(&lines, "0=a@100 1=a@100"), [Rule::LostWrite]);
        assert_eq!(broken_in_the_end(&lines, "0=nothing 1=nothing"), [Rule::LostWrite]);
        assert_eq!(broken_in_the_end(&lines, ""), [Rule::LostWrite]);
    }
    let unstamped = "10 20 1 QUORUM put k a written\n 30 40 2 QUORUM put k b written";
    assert_eq!(broken_in_the_end(unstamped, "0=b@200"), NONE);
    assert_eq!(broken_in_the_end(unstamped, "0=a@100"), [Rule::LostWrite]);
    let removed = "10 20 1 QUORUM put k a written 100\n 30 40 2 ONE remove k written 200";
    assert_eq!(broken_in_the_end(removed, "0=deleted@200"), NONE);
    assert_eq!(broken_in_the_end(removed, "0=a@100"), [Rule::LostWrite]);
    assert_eq!(broken_in_the_end("10 20 1 ONE put k a unknown timeout", "0=nothing"), NONE);
}

#[test]
fn in_the_end_only_what_was_asked_for_is_there() {
    let put = |told: &str| format!("10 20 1 ONE put k a {told}");
    assert_eq!(broken_in_the_end(&put("unknown timeout"), "0=a@100"), NONE);
    assert_eq!(broken_in_the_end(&put("refused overloaded"), "0=a@100"), [Rule::RefusedYetWritten]);
    assert_eq!(broken_in_the_end(&put("unknown timeout"), "0=x@100"), [Rule::NobodysValue]);
    assert_eq!(broken_in_the_end(&put("unknown timeout"), "0=deleted@100"), [Rule::NobodysValue]);
    assert_eq!(broken_in_the_end("", "0=x@100"), [Rule::NobodysValue]);
    let removal = |told: &str| format!("10 20 1 ONE remove k {told}");
    assert_eq!(broken_in_the_end(&removal("unknown timeout"), "0=deleted@100"), NONE);
    assert_eq!(broken_in_the_end(&removal("refused full"), "0=deleted@100"), [Rule::RefusedYetWritten]);
}

#[test]
fn in_the_end_only_its_replicas_hold_a_key() {
    let lines = "10 20 1 ONE put k a written 100";
    let found = |held: &str| {
        let ring = Ring::even(4, 2);
        assert_eq!(ring.replicas(b"k"), [NodeId(1), NodeId(2)]);
        let settled = Settled { ring: Some(ring), ..copies(held) };
        let judged = judge(&history(lines), &Promises::of(2), Some(&settled)).unwrap();
        judged.found.into_keys().collect::<Vec<Rule>>()
    };
    assert_eq!(found("1=a@100 2=a@100"), NONE);
    assert_eq!(found("0=nothing 1=a@100 2=a@100"), NONE);
    assert_eq!(found("1=a@100"), [Rule::ReplicasDiffer]);
    assert_eq!(found("1=a@100 2=a@100 3=a@100"), [Rule::StrayCopy]);
}

#[test]
fn what_replicas_hold_in_the_end_tells_stale_from_lost() {
    let lines = "10 20 1 QUORUM put k a written 100\n 30 40 1 QUORUM put k b written 200\n\
                 50 60 2 QUORUM get k found a 100";
    let judged = |held: &str| judge(&history(lines), &Promises::of(3), Some(&copies(held))).unwrap();
    let (stale, lost) = (judged("0=b@200"), judged("0=a@100"));
    assert_eq!((stale.lost(), stale.stale()), (0, 1));
    assert_eq!((lost.lost(), lost.stale()), (1, 1)); // one write, and the read that missed it
}

#[test]
fn a_malformed_history_is_an_error() {
    let error = |lines: &str| judge(&history(lines), &Promises::of(3), None).map(drop).unwrap_err();
    let same = error("10 20 1 ONE put k a written\n 10 20 2 ONE put j a written");
    assert!(matches!(same, Malformed::SameValue { .. }), "{same}");
    let two = error("10 20 1 ONE put k a written\n 19 30 1 ONE get k found a");
    assert!(matches!(two, Malformed::TwoAtOnce { client: 1, .. }), "{two}");
    let back = error("10 9 1 ONE get k found a");
    assert!(matches!(back, Malformed::EndedBeforeItBegan { .. }), "{back}");
    let kind = error("10 20 1 ONE get k written 10");
    assert!(matches!(kind, Malformed::AnswerOfAnotherKind { .. }), "{kind}");
    assert!(
        judge(&history("10 20 1 ONE put k a written\n20 30 1 ONE get k found a"), &Promises::of(3), None)
            .is_ok()
    );
}

#[test]
fn the_page_tells_what_happened() {
    let lines = "1000000 1200000 1 QUORUM put k a written 100\n\
                 1300000 1400000 1 QUORUM put k b written 200\n\
                 1500000 1600000 2 QUORUM get k found a 100\n\
                 1700000 1800000 2 QUORUM get k found b 200\n\
                 1000000 1200000 3 ONE put j c unknown timeout\n\
                 1500000 1600000 3 QUORUM get j refused 'Not enough replicas alive'";
    let page = judged(3, lines).to_string();
    let expected = "\
6 operations of 3 clients on 2 keys within 0.800 s
              acknowledged       refused       unknown
  puts                   2             0             1
  removals               0             0             0
  reads                  2             1             0
linearizability: 1 key with 4 operations searched, 1 without an order
  not searched: 1 key with writes below a quorum
lost writes: 0, stale reads: 1
broken promises: stale read 1, not linearizable 1
  stale read, key k
    1.000000 to 1.200000 s: client 1 put a at QUORUM: written, stamp 100
    1.300000 to 1.400000 s: client 1 put b at QUORUM: written, stamp 200
    1.500000 to 1.600000 s: client 2 read at QUORUM: found a, stamp 100
    it is shown again at 1.800000 s
  not linearizable, key k
    no order explains the first 3 operations on this key; these 3 are enough to see it:
    1.000000 to 1.200000 s: client 1 put a at QUORUM: written, stamp 100
    1.300000 to 1.400000 s: client 1 put b at QUORUM: written, stamp 200
    1.500000 to 1.600000 s: client 2 read at QUORUM: found a, stamp 100";
    assert_eq!(page, expected, "\n{page}");
    let fine = judged(3, "10 20 1 QUORUM put k a written 100\n 30 40 1 QUORUM get k found a 100").to_string();
    assert!(fine.ends_with("lost writes: 0, stale reads: 0\nevery promise holds"), "{fine}");
}

#[test]
fn every_finding_is_counted_and_the_first_are_told() {
    let mut lines = "10 20 1 QUORUM put k a written 100\n 30 40 1 QUORUM put k b written 200\n".to_owned();
    for at in 0..50 {
        lines += &format!("{0} {0} 2 QUORUM get k found a 100\n", 50 + at);
    }
    let judged = judged(3, &lines);
    assert_eq!((judged.lost(), judged.stale()), (1, 49));
    assert_eq!(judged.findings.len(), 1 + finding::STORIES_MAX + 1);
    assert!(judged.to_string().ends_with("and 41 more"), "{judged}");
}

#[test]
fn a_recorder_stops_before_an_operation_is_asked() {
    let recorder = Recorder::new(2);
    let operation = history("1 2 3 ONE get k found nothing").operations.remove(0);
    let mut asked = 0;
    while recorder.may_ask() {
        recorder.record(operation.clone());
        asked += 1;
    }
    assert_eq!(asked, 2);
    assert!(recorder.is_full());
    assert_eq!(recorder.take().operations.len(), 2);
    assert!(!recorder.may_ask());
}
