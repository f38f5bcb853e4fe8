//! A link without a connection, for fuzzers: whatever another server sends, what becomes of the calls under way?
//!
//! Everything but the socket is the real thing. Not for use in a server.

use std::sync::Arc;

use bytes::Bytes;

use super::calls::Asked;
use super::frame::{self, Inbox};
use super::greeting::check_welcome;
use super::link::{Ended, Link};
use super::{Identity, Standpoint, read_request};
use crate::answer::{Answer, Answers, ApplyAnswer, Failure, NodeId, ReadAnswer};
use crate::clock::Clock;
use crate::config::Config;
use crate::cut::Cut;
use crate::key::KV_TABLE;
use crate::membership::Members;
use crate::slice::Slice;
use crate::thrift::chord::PeerWelcome;
use crate::thrift::method::Read;

/// What was made of the bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// Answer to the call with sequence number 1.
    pub apply: ApplyAnswer,
    /// To number 2.
    pub batch: Result<Vec<ApplyAnswer>, Failure>,
    /// To number 3.
    pub read: ReadAnswer,
    /// The link took the bytes for damaged, and why.
    pub damaged: Option<String>,
}

/// Mutations of call number 2.
pub const BATCH_MUTATIONS: usize = 3;

/// A link with three calls under way hears `stream`, and loses the connection at its end.
pub async fn hear(mut stream: &[u8], frame_bytes_max: usize) -> Heard {
    let link = link();
    let (mut applies, mut batches, mut reads) = (Answers::default(), Answers::default(), Answers::default());
    link.calls().open();
    let mutations = vec![Bytes::from_static(b"m"); BATCH_MUTATIONS];
    ask(&link, Asked::Apply(vec![applies.expect(link.node)]), |sequence, out| {
        frame::write_apply(sequence, link.me.epoch, &mutations[..1], out);
    });
    let to = batches.expect(link.node);
    ask(&link, Asked::ApplyBatch { mutations: BATCH_MUTATIONS, to }, |sequence, out| {
        frame::write_apply(sequence, link.me.epoch, &mutations, out);
    });
    let to = reads.expect(link.node);
    ask(&link, Asked::Read { at: tokio::time::Instant::now(), to }, |sequence, out| {
        let slice = Slice::single(KV_TABLE, Bytes::from_static(b"k"));
        frame::write_call::<Read>(sequence, &read_request(link.me.epoch, &slice), out);
    });

    let mut inbox = Inbox::new(frame_bytes_max);
    let mut damaged = None;
    while damaged.is_none() && inbox.fill(&mut stream).await.expect("memory can be read") > 0 {
        damaged = match link.take_in(&mut inbox) {
            Ok(()) => None,
            Err(Ended::Damaged(why) | Ended::Lost(why)) => Some(why),
            Err(Ended::Silent) => unreachable!("it has just been heard"),
        };
    }
    let under_way = link.calls().close();
    link.fail(under_way, Failure::ConnectionLost);
    Heard { apply: only(applies).await, batch: only(batches).await, read: only(reads).await, damaged }
}

/// What a link thinks of a welcome.
pub fn welcomed(welcome: &PeerWelcome) -> Result<i64, String> {
    check_welcome(&identity(0), NodeId(1), welcome)
}

/// Who the link's own server is; the other one is number 1.
pub fn identity(id: u32) -> Identity {
    Identity { cluster: "c".to_owned(), id: NodeId(id), generation: 1, epoch: 1, ring_digest: [3; 16] }
}

fn link() -> Link {
    let config = Config::default();
    let members = Arc::new(Members::new(NodeId(0), 2, 1, &config));
    let clock = Arc::new(Clock::with_wall(|| 1_000_000));
    let (identity, stats, cut) = (Arc::new(identity(0)), Arc::default(), Cut::default());
    let standpoint = Standpoint { identity, members, clock, stats, cut };
    Link::new(&standpoint, NodeId(1), String::new(), &config)
}

fn ask(link: &Link, asked: Asked, encode: impl FnOnce(i32, &mut Vec<u8>)) {
    link.ask(asked, 0, encode);
    assert!(link.calls().unwritten() > 0);
}

/// Every call is answered exactly once.
async fn only<T: Answer>(mut answers: Answers<T>) -> T {
    let (_, answer) = answers.next().await.expect("one is due");
    assert_eq!(answers.due(), 0);
    answer
}
