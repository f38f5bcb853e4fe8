//! A whole server, alone in its cluster, to which a client sends whatever the input says and then no more: what comes
//! back are messages, the connection ends, no task panics, and the server still answers.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tetrachord::answer::NodeId;
use tetrachord::config::{Config, Durability};
use tetrachord::node::{Node, NodeOptions};
use tetrachord::nodes::{Address, Nodes};
use tetrachord::thrift::codec::{Protocol, read_reply, write_call};
use tetrachord::thrift::dress::{Split, Splitter};
use tetrachord::thrift::method::Hello;
use tetrachord::thrift::scan::Bounds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::{Run, Seeds, Target, scratch, thrift};

pub const SERVER: Target =
    Target { name: "server", start, input_bytes_max: 4_096, rounds: 600, seeds: server_seeds };

/// Longer than any deadline of the server's.
const HANG: Duration = Duration::from_secs(20);

/// Panics of the server's threads, of which those of a task are caught by the runtime.
static PANICS: AtomicUsize = AtomicUsize::new(0);

struct Server {
    runtime: Runtime,
    node: Option<Node>,
    port: u16,
    /// Dropped last.
    _directory: tempfile::TempDir,
}

fn start() -> Run {
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let ours = [SERVER.name, "log writer", "flusher"].map(Some).contains(&thread.name());
            PANICS.fetch_add(usize::from(ours), Ordering::SeqCst);
            before(panic);
        }));
    });
    let server = Server::start();
    Box::new(move |data| {
        let panics = PANICS.load(Ordering::SeqCst);
        server.runtime.block_on(converse(server.port, data));
        assert_eq!(PANICS.load(Ordering::SeqCst), panics, "a thread or task of the server panicked");
    })
}

impl Server {
    fn start() -> Server {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let directory = scratch();
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a port").port();
        let config = Config {
            durability: Durability::ProcessCrash,
            memtable_bytes_max: 100_000,
            message_bytes_max: 3_000_000,
            value_bytes_max: 1_000_000,
            message_depth_max: 16,
            ..Config::default()
        };
        let nodes = Nodes::new(vec![Address { host: "127.0.0.1".to_owned(), port }]);
        let options = NodeOptions { config, nodes, id: NodeId(0), data: directory.path().join("0") };
        let node = runtime.block_on(Node::start(options)).expect("a server starts");
        Server { runtime, node: Some(node), port, _directory: directory }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            self.runtime.block_on(node.stop());
        }
    }
}

async fn converse(port: u16, data: &[u8]) {
    let answers = ask(port, data).await;
    let mut splitter = Splitter::new(Bounds { bytes_max: 10_000_000, depth_max: 64 });
    let mut rest = &answers[..];
    while !rest.is_empty() {
        match splitter.split(rest) {
            Ok(Split::Message { body, .. }) => rest = &rest[body.end..],
            other => panic!("{other:?} at the end of its answers: {rest:02x?}"),
        }
    }

    let mut hello = Vec::new();
    write_call::<Hello>(Protocol::Binary, 5, &(), &mut hello);
    let answer = ask(port, &hello).await;
    assert_eq!(read_reply::<Hello>(Protocol::Binary, 5, &answer).expect("an answer"), Ok("0".to_owned()));
}

/// Sends bytes and says that no more will come; everything that is answered.
async fn ask(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a server that listens");
        // It may hang up before it has read all.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut answers).await;
    };
    tokio::time::timeout(HANG, exchange).await.expect("the connection ends");
    answers
}

fn server_seeds() -> Seeds {
    // Without the byte that says how they are cut.
    let streams = (thrift::CALLS.seeds)().into_iter().map(|(name, stream)| (name, stream[1..].to_vec()));
    let one_each = streams.filter(|(name, _)| !name.starts_with("compact-") || name.ends_with("all"));
    one_each.collect()
}
