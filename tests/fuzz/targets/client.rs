//! A client, and the console on top of it, whose server sends whatever the input says: every line is answered, and no
//! more is held than came.
//!
//! The server takes one frame of the input for each call it is asked, whatever the call, and puts the call's sequence
//! number into it unless the frame's own is negative. When the input is used up it hangs up.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tetrachord::answer::NodeId;
use tetrachord::client::{Client, ClientOptions, RingView, text};
use tetrachord::console::{Screen, Session};
use tetrachord::nodes::{Address, Nodes};
use tetrachord::thrift::codec::{Protocol, reply_sequence, write_reply};
use tetrachord::thrift::dress::{framed, take_frame};
use tetrachord::thrift::method::Reply;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::thrift::{BYTES_EACH, read_as_each};
use super::{Input, Run, Seeds, Target, memory, samples};

pub const CLIENT: Target =
    Target { name: "client", start, input_bytes_max: 4_096, rounds: 600, seeds: client_seeds };

/// What is typed. Each is one call at least.
const LINES: [&str; 7] =
    ["status", "get 137", "put 137 v", "trace on", "get k one", "del k stamp 5", "stats"];

const OPTIONS: ClientOptions = ClientOptions {
    connect_timeout: Duration::from_secs(5),
    call_timeout: Duration::from_secs(5),
    calls_per_server_max: 4,
    reply_bytes_max: 5_000,
    back_off_min: Duration::ZERO,
    back_off_max: Duration::ZERO,
};

fn start() -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    Box::new(move |data| {
        let mut input = Input(data);
        let json = input.byte() % 2 == 1;
        let stream = input.0;
        check_replies(stream);
        // One frame is read by the link, the client and the console, and the longest reply becomes JSON.
        memory::bounded(stream.len(), 4 * BYTES_EACH, || converse(&runtime, &listener, stream, json));
    })
}

/// Every frame as the reply of every method, and what is made of it.
fn check_replies(stream: &[u8]) {
    let mut inbox = BytesMut::from(stream);
    while let Ok(Some(frame)) = take_frame(&mut inbox, OPTIONS.reply_bytes_max) {
        let Ok(sequence) = reply_sequence(Protocol::Binary, &frame) else { continue };
        for reply in read_as_each(Protocol::Binary, sequence, &frame) {
            match reply {
                Reply::Describe(Ok(description)) => {
                    let view = memory::bounded(frame.len(), BYTES_EACH, || RingView::of(&description));
                    let Some(view) = view else { continue };
                    assert!(view.ranges().is_sorted_by_key(|range| &range.token));
                    for key in [&b""[..], b"k", &[0xff; 20]] {
                        assert_eq!(view.replicas(key).len(), view.copies());
                    }
                }
                Reply::Put(Err(refusal)) => assert!(!text::refusal(&refusal).is_empty()),
                _ => {}
            }
        }
    }
}

fn converse(runtime: &Runtime, listener: &TcpListener, stream: &[u8], json: bool) {
    let port = listener.local_addr().expect("it is bound").port();
    let nodes = Nodes::new(vec![Address { host: "127.0.0.1".to_owned(), port }]);
    runtime.block_on(async {
        let client = Client::new(nodes, OPTIONS);
        let (mut answers, mut remarks) = (Vec::new(), Vec::new());
        let screen = Screen { answers: &mut answers, remarks: &mut remarks, json, greet: true };
        let typed = async {
            let Some(mut session) = Session::connect(client, Some(NodeId(0)), screen).await.expect("memory")
            else {
                return;
            };
            for line in LINES {
                session.line(line).await.expect("memory can be written to");
            }
        };
        tokio::select! {
            biased;
            () = typed => {}
            () = play(listener, stream) => unreachable!("it plays for ever"),
        }
        assert!(!answers.is_empty() || !remarks.is_empty(), "nothing was said");
        assert!(std::str::from_utf8(&answers).is_ok());
    });
}

/// One connection after the other, each from the first frame on.
async fn play(listener: &TcpListener, stream: &[u8]) {
    loop {
        let (connection, _) = listener.accept().await.expect("a connection");
        let _ = answer(connection, BytesMut::from(stream)).await; // the client may hang up
    }
}

async fn answer(mut connection: TcpStream, mut replies: BytesMut) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut inbox = BytesMut::new();
    while connection.read_buf(&mut inbox).await? > 0 {
        while let Ok(Some(call)) = take_frame(&mut inbox, 100_000) {
            let sequence = reply_sequence(Protocol::Binary, &call).expect("a client sends calls");
            let Ok(Some(mut reply)) = take_frame(&mut replies, 100_000) else {
                return connection.write_all(&replies).await;
            };
            renumber(&mut reply, sequence);
            let mut framed = BytesMut::new();
            framed.put_u32(reply.len() as u32);
            framed.extend_from_slice(&reply);
            connection.write_all(&framed).await?;
        }
    }
    Ok(())
}

/// Puts a sequence number into a message in the place where a binary one has it.
fn renumber(message: &mut [u8], sequence: i32) {
    let Some(name) = message.get(4..8) else { return };
    let name_bytes = u32::from_be_bytes(name.try_into().expect("four bytes")) as usize;
    let Some(number) = name_bytes.checked_add(8).and_then(|at| message.get_mut(at..at + 4)) else { return };
    if number[0] < 0x80 {
        number.copy_from_slice(&sequence.to_be_bytes());
    }
}

fn client_seeds() -> Seeds {
    let framed_reply = |reply: &Reply, out: &mut Vec<u8>| {
        framed(out, |out| write_reply(Protocol::Binary, 1, reply, out));
    };
    let replies = samples::replies();
    let find = |is: fn(&Reply) -> bool| replies.iter().find(|reply| is(reply)).expect("a sample of each");
    let description = find(|reply| matches!(reply, Reply::Describe(_)));
    let got = find(|reply| matches!(reply, Reply::Get(Ok(_))));
    let refused = find(|reply| matches!(reply, Reply::Get(Err(_))));
    let written = find(|reply| matches!(reply, Reply::Put(Ok(_))));
    let late = find(|reply| matches!(reply, Reply::Put(Err(_))));
    let removed = find(|reply| matches!(reply, Reply::Remove(Err(_))));
    let stats = find(|reply| matches!(reply, Reply::GetStats(_)));
    // The link asks for the ring first, then the session, then each line.
    let good = [description, description, description, got, written, got, written, stats];
    let bad = [description, description, description, refused, late, refused, removed, stats];
    let mut seeds = Seeds::new();
    for (name, replies) in [("good", good), ("bad", bad)] {
        for json in [0, 1] {
            let mut stream = vec![json];
            replies.iter().for_each(|reply| framed_reply(reply, &mut stream));
            seeds.push((format!("{name}-{json}"), stream));
        }
    }
    for (index, reply) in replies.iter().enumerate() {
        let mut stream = vec![index as u8];
        for reply in [description, description, reply, reply, reply] {
            framed_reply(reply, &mut stream);
        }
        seeds.push((format!("each-{index:02}"), stream));
    }
    seeds
}
