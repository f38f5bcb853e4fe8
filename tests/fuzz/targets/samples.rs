//! One call and one reply of every method: what the corpora are made from.

use tetrachord::thrift::chord::*;
use tetrachord::thrift::method::{Call, Refusal, Reply};

use super::encodings::mutations;

pub fn calls() -> Vec<Call> {
    let classic = || ClientRequest::new("QUORUM".to_owned(), KV::new(137, "value137".to_owned(), None));
    let put = PutRequest::new(vec![137], b"value".to_vec(), Level::ONE, 60, 1_795_227_328_999_280, true);
    let get = GetRequest::new(b"do re mi".to_vec(), Level::QUORUM, true);
    let remove = RemoveRequest::new(vec![0, 1, 0], Level::ANY, None, None);
    let operations = vec![
        Operation::new(put.clone(), None, None),
        Operation::new(None, get.clone(), None),
        Operation::new(None, None, remove.clone()),
    ];
    let encoded: Vec<Vec<u8>> = mutations().iter().map(|(_, mutation)| mutation.encode().to_vec()).collect();
    vec![
        Call::ClientPut(classic()),
        Call::ClientGet(classic()),
        Call::ServerGet(KV::new(137, None, None)),
        Call::ServerPut(KV::new(137, "v".to_owned(), 1)),
        Call::ServerDelete(KV::new(137, None, 2)),
        Call::ResendHints(1),
        Call::Hello(()),
        Call::GetServerId(()),
        Call::GetInfo(()),
        Call::Put(put),
        Call::Get(get),
        Call::Remove(remove),
        Call::Batch(BatchRequest::new(operations)),
        Call::Describe(()),
        Call::GetStats(()),
        Call::InspectDigest(DigestRequest::new(vec![], vec![], 100)),
        Call::InspectPage(PageRequest::new(vec![], vec![0xff], 100, 10)),
        Call::Greet(PeerHello::new(1, "tetrachord".to_owned(), 1, 0, 1, 1, vec![7; 16], 5)),
        Call::Ping(PeerPing::new(5)),
        Call::Apply(PeerApply::new(1, encoded)),
        Call::Read(PeerRead::new(1, 1, vec![137], vec![], vec![], true, 1)),
        Call::Reconcile(Box::new(reconcile())),
    ]
}

fn held() -> Vec<PeerHeld> {
    vec![PeerHeld::new(vec![0, 1, 137, 0, 0], vec![1, 0, 0, 0, 0, 0, 0, 0, 7])]
}

fn cut() -> PeerCut {
    PeerCut::new(1_795_227_328_999_280, 0, 5, 1_795_227_328)
}

fn reconcile() -> PeerReconcile {
    let spans = vec![PeerSpan::new(vec![0, 1, 200], 3, vec![7; 16]), PeerSpan::new(vec![], 0, vec![0; 16])];
    PeerReconcile::new(
        1,
        PeerAsks::COMPARE,
        2,
        cut(),
        vec![],
        vec![0xff],
        spans,
        true,
        vec![vec![0, 1, 137, 0, 0]],
        held(),
        9,
        String::new(),
        PeerMemory::new(1, 2),
        PeerMemory::new(3, 4),
        true,
        5,
    )
}

pub fn replies() -> Vec<Reply> {
    let kv = || KV::new(137, "value137".to_owned(), 1_795_227_328_999_280);
    let trace = || vec!["a step".to_owned(), "another \u{202e}".to_owned()];
    let written = || WriteResult::new(1_795_227_328_999_280, 3, trace());
    let got = || GetResult::new(b"value".to_vec(), 7, 1_800_000_000, trace());
    let unavailable = || Unavailable::new(Level::QUORUM, 2, 1, String::new());
    let timeout = || Timeout::new(Level(99), 2, 1, "late".to_owned());
    let outcomes = vec![
        Outcome::new(written(), None, None, None, None, None),
        Outcome::new(None, got(), None, None, None, None),
        Outcome::new(None, None, unavailable(), None, None, None),
        Outcome::new(None, None, None, timeout(), None, None),
    ];
    let members = (0..4)
        .map(|id| {
            let address = format!("127.0.0.1:{}", 9000 + id);
            Member::new(id, address, "up".to_owned(), vec![64 * id as u8 + 63], String::new(), 2, 99, true)
        })
        .collect::<Vec<_>>();
    let about = || "tetrachord".to_owned();
    let stats = [("get_p99_us".to_owned(), 1_234), ("log_file_bytes".to_owned(), -1)];
    let row = CellRow::new(
        vec![0, 1, 137, 0, 0],
        1,
        vec![137],
        vec![],
        7,
        "value".to_owned(),
        b"v".to_vec(),
        1,
        0,
        vec![9; 16],
    );
    let system = || SystemException::new("no".to_owned());
    let ranges = vec![RangeState::new(1, 5, 6, String::new(), 7, 0, 1, 30, about(), 4, String::new())];
    let versions = vec![PeerVersion::new(vec![0, 1, 137, 0, 0], 7, vec![9; 16])];
    let reconciled = PeerReconciled::new(
        String::new(),
        5,
        100,
        4,
        String::new(),
        9,
        vec![1],
        cut(),
        vec![0, 1, 2],
        versions,
        vec![0xff],
        held(),
        1,
        PeerMemory::new(1, 2),
        PeerMemory::new(3, 4),
        true,
    );
    vec![
        Reply::ClientGet(Ok(ServerResponse::new("SUCCESS".to_owned(), kv()))),
        Reply::ClientPut(Err(system())),
        Reply::ServerGet(Ok(ServerResponse::new("FAIL".to_owned(), None))),
        Reply::ServerPut(Ok(ServerResponse::new("SUCCESS".to_owned(), kv()))),
        Reply::ServerDelete(Ok(())),
        Reply::ResendHints(Err(system())),
        Reply::Hello(Ok("0".to_owned())),
        Reply::GetServerId(Ok(3)),
        Reply::GetInfo(Ok("{}".to_owned())),
        Reply::Put(Ok(written())),
        Reply::Get(Ok(got())),
        Reply::Remove(Err(Refusal::Unavailable(unavailable()))),
        Reply::Put(Err(Refusal::Timeout(timeout()))),
        Reply::Get(Err(Refusal::Overloaded(Overloaded::new("later".to_owned())))),
        Reply::Remove(Err(Refusal::InvalidRequest(InvalidRequest::new("no key".to_owned())))),
        Reply::Batch(Ok(BatchResult::new(outcomes))),
        Reply::Describe(Ok(Description::new(
            about(),
            2,
            3,
            1,
            members,
            about(),
            "power-loss".to_owned(),
            ranges,
        ))),
        Reply::GetStats(Ok(Stats::new(std::collections::BTreeMap::from(stats)))),
        Reply::InspectDigest(Ok(DigestResult::new(2, vec![7; 16], vec![1], true, 1))),
        Reply::InspectPage(Ok(PageResult::new(vec![row], vec![1], false))),
        Reply::Greet(Ok(PeerWelcome::new(1, String::new(), 1, 1, 1, 5))),
        Reply::Ping(Ok(PeerPong::new(5, String::new()))),
        Reply::Apply(Ok(PeerApplied::new(vec![0, -1, 9], "no".to_owned(), 5))),
        Reply::Read(Ok(PeerCells::new(vec![PeerCell::new(vec![], vec![1; 9])], String::new(), 5, true))),
        Reply::Reconcile(Ok(Box::new(reconciled))),
    ]
}
