//! What another server sends: whatever it is, every call under way gets one answer, a batch as many as it has
//! mutations, and no more is held than came.

use bytes::Bytes;
use futures_util::FutureExt;
use tetrachord::answer::Failure;
use tetrachord::peer::{check_hello, fuzzed};
use tetrachord::thrift::chord::{PeerApplied, PeerCell, PeerCells, PeerHello, PeerPong, PeerWelcome};
use tetrachord::thrift::codec::{
    Protocol, read_message, read_reply, write_application_exception, write_call, write_reply,
};
use tetrachord::thrift::dress::framed;
use tetrachord::thrift::method::{Call, Greet, Reply};

use super::encodings::mutations;
use super::{Seeds, Target, memory};

pub const PEER: Target = Target {
    name: "peer",
    start: || Box::new(peer),
    input_bytes_max: 4_096,
    rounds: 15_000,
    seeds: peer_seeds,
};

/// Longer than any input, so that the length of a frame may claim too much or too little.
const FRAME_BYTES_MAX: usize = 10_000;

fn peer(data: &[u8]) {
    // A cell of two bytes on the wire is a hundred in memory, once as it came and once as it is answered.
    let heard = memory::bounded(data.len(), 400, || {
        fuzzed::hear(data, FRAME_BYTES_MAX)
            .now_or_never()
            .expect("every call is answered when the connection is lost")
    });
    match heard.batch {
        Ok(answers) => assert_eq!(answers.len(), fuzzed::BATCH_MUTATIONS),
        Err(failure) => {
            assert!(matches!(failure, Failure::ConnectionLost | Failure::Refused(_)), "{failure}")
        }
    }

    let greeting = data.get(4..).unwrap_or_default(); // behind the frame's length
    let hello = read_message(Protocol::Binary, greeting, 64, |header, input| Call::read(&header.name, input));
    if let Ok(Ok(Some(Call::Greet(hello)))) = hello
        && check_hello(&fuzzed::identity(1), 2, &hello).is_ok()
    {
        let same = PeerHello { generation: hello.generation, clock: hello.clock, ..good_hello() };
        assert_eq!(hello, same, "another one was welcomed");
    }
    if let Ok(Ok(welcome)) = read_reply::<Greet>(Protocol::Binary, 0, greeting) {
        let _ = fuzzed::welcomed(&welcome);
    }
}

/// From server 0 to server 1.
fn good_hello() -> PeerHello {
    fuzzed::identity(0).hello(fuzzed::identity(1).id, Default::default())
}

fn peer_seeds() -> Seeds {
    let reply = |sequence: i32, reply: Reply| {
        let mut out = Vec::new();
        framed(&mut out, |out| write_reply(Protocol::Binary, sequence, &reply, out));
        out
    };
    let applied = |answers: &[i64], refused: &str| {
        Reply::Apply(Ok(PeerApplied::new(answers.to_vec(), refused.to_owned(), 77)))
    };
    let cells = |cells: Vec<PeerCell>, refused: &str| {
        Reply::Read(Ok(PeerCells::new(cells, refused.to_owned(), 77, true)))
    };
    let cell = |(_, mutation): (&str, tetrachord::mutation::Mutation)| {
        let (column, cell): &(Bytes, _) = mutation.cells.last().expect("a mutation has cells");
        let mut encoded = Vec::new();
        cell.encode(&mut encoded);
        PeerCell::new(column.to_vec(), encoded)
    };
    let some_cells: Vec<PeerCell> = mutations().into_iter().map(cell).collect();
    let pong = reply(0, Reply::Ping(Ok(PeerPong::new(5, "disk full".to_owned()))));
    let mut hello = Vec::new();
    framed(&mut hello, |out| write_call::<Greet>(Protocol::Binary, 0, &good_hello(), out));
    let mut unknown = Vec::new();
    framed(&mut unknown, |out| {
        let kind = thrift::ApplicationErrorKind::UnknownMethod;
        write_application_exception(Protocol::Binary, "peerRead", 3, kind, "what?".to_owned(), out);
    });
    let welcome: PeerWelcome = fuzzed::identity(1).welcome(String::new(), Default::default());
    [
        (
            "all",
            [
                pong.clone(),
                reply(3, cells(some_cells.clone(), "")),
                reply(1, applied(&[0], "")),
                reply(2, applied(&[0, -1, 9], "no")),
            ]
            .concat(),
        ),
        (
            "refused",
            [reply(1, applied(&[-1], "overloaded")), reply(3, cells(vec![], "another ring"))].concat(),
        ),
        ("too-few", reply(2, applied(&[0, 0], ""))),
        ("no-cell", reply(3, cells(vec![PeerCell::new(b"c".to_vec(), vec![99])], ""))),
        ("unknown", unknown),
        ("welcome", reply(0, Reply::Greet(Ok(welcome)))),
        ("hello", hello),
        ("pong", pong),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}
