//! Clients that ask without end, and the history of what they were told.
//!
//! Each client asks one thing at a time: mostly QUORUM puts and gets, some removals, and some at ONE and ALL. Every put
//! writes a value that nobody else writes. A client rests a little between two operations, so that a run has an even
//! rate of its own from which a fault can be told, whatever the machine can do. And it keeps to the keys of one
//! server's range: a client that waits for keys that a fault has hit does not hold up the others, and the cost is seen
//! to be a share.
//!
//! What must always be true: an operation stands in the history with what its client was told and nothing better. What
//! may have happened is [`Told::Unknown`].

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::cell::Stamp;
use crate::check::{Asked, History, Operation, Told};
use crate::client::{Client, ClientError, ClientOptions};
use crate::coordinator::Level;
use crate::nodes::Nodes;
use crate::thrift::chord::{self, GetRequest, PutRequest, RemoveRequest};
use crate::thrift::method::Refusal;

/// Between two operations of a client, at most; half of it on average.
const REST_MAX: Duration = Duration::from_millis(24);

/// A client that was refused does not ask again at once.
const REST_AFTER_REFUSAL: Duration = Duration::from_millis(50);

/// One key in this many is also written at ONE.
const WEAK_KEYS_EVERY: usize = 5;

/// Bytes of a value.
const VALUE_BYTES: usize = 100;

/// How the clients of a drill wait: longer than the servers' own deadlines (2 s), and for no server that is gone.
pub fn client_options() -> ClientOptions {
    ClientOptions { back_off_max: Duration::from_millis(200), ..ClientOptions::default() }
        .with_call_timeout(Duration::from_secs(3))
}

/// What is asked of the cluster.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many clients.
    pub clients: usize,
    /// The keys, drawn from at random.
    pub keys: Vec<Bytes>,
    /// Decides what is asked in which order.
    pub seed: u64,
}

/// Keys for a load, spread evenly over the ring; `run` tells those of one run from those of another.
pub fn keys(count: usize, run: u64) -> Vec<Bytes> {
    let key = |index: usize| {
        let mut key = vec![(index * 256 / count.max(1)) as u8];
        key.extend_from_slice(format!("drill-{run}-{index}").as_bytes());
        Bytes::from(key)
    };
    (0..count).map(key).collect()
}

/// What clients have been answered so far, and the clock of these answers.
pub struct Log {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Log {
    /// Begins now.
    pub fn start() -> Arc<Log> {
        Arc::new(Log { began: Instant::now(), operations: Mutex::default() })
    }

    /// Microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// The moment this many milliseconds after the beginning.
    pub fn at(&self, ms: u64) -> Instant {
        self.began + Duration::from_millis(ms)
    }

    /// How many operations have ended.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Looks at the operations that ended from number `first` on.
    pub fn since<T>(&self, first: usize, look: impl FnOnce(&[Operation]) -> T) -> T {
        look(self.all().get(first..).unwrap_or_default())
    }

    /// Everything, at the end.
    pub fn history(&self) -> History {
        History { operations: self.all().clone() }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Operation>> {
        self.operations.lock().expect("no panic while it is held")
    }
}

/// Clients under way.
pub struct Clients {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts the clients.
    pub fn start(&self, nodes: &Nodes, log: &Arc<Log>) -> Clients {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..self.clients {
            let caller = Caller {
                number: number as u32,
                client: Client::new(nodes.clone(), client_options()),
                random: fastrand::Rng::with_seed(
                    self.seed.wrapping_mul(1_000_003).wrapping_add(number as u64),
                ),
                own: self.range(number, nodes.len()),
                keys: self.keys.clone(),
                seed: self.seed,
                log: log.clone(),
                puts: 0,
            };
            tasks.spawn(caller.run(stopped.clone()));
        }
        Clients { stop, tasks }
    }

    /// The keys of client `number`: those of one of `servers` equal parts of the ring, or all if there are too few.
    fn range(&self, number: usize, servers: usize) -> Range<usize> {
        let part = number % servers;
        let own = part * self.keys.len() / servers..(part + 1) * self.keys.len() / servers;
        if own.is_empty() { 0..self.keys.len() } else { own }
    }
}

impl Clients {
    /// Lets every client end what it has asked, and returns when all have.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client does not panic");
        }
    }
}

struct Caller {
    number: u32,
    client: Client,
    random: fastrand::Rng,
    keys: Vec<Bytes>,
    /// Which of the keys are this client's.
    own: Range<usize>,
    seed: u64,
    log: Arc<Log>,
    puts: u64,
}

impl Caller {
    async fn run(mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let (key, level, asked) = self.draw();
            let told = record(&self.log, &self.client, self.number, &key, level, asked).await;
            let rest = Duration::from_micros(self.random.u64(..REST_MAX.as_micros() as u64));
            sleep(if matches!(told, Told::Refused(_)) { REST_AFTER_REFUSAL } else { rest }).await;
        }
    }

    fn draw(&mut self) -> (Bytes, Level, Asked) {
        let index = self.random.usize(self.own.clone());
        let asked = match self.random.u8(..100) {
            0..45 => Asked::Put(self.value()),
            45..50 => Asked::Remove,
            _ => Asked::Get,
        };
        // Of a key that is written at ONE no order is promised, so few keys are.
        let weak = asked == Asked::Get || index % WEAK_KEYS_EVERY == WEAK_KEYS_EVERY - 1;
        let level = match self.random.u8(..100) {
            0..10 if weak => Level::One,
            97.. => Level::All,
            _ => Level::Quorum,
        };
        (self.keys[index].clone(), level, asked)
    }

    /// One that nobody else writes.
    fn value(&mut self) -> Bytes {
        self.puts += 1;
        let mut value = format!("seed {} client {} put {} ", self.seed, self.number, self.puts).into_bytes();
        value.resize(VALUE_BYTES.max(value.len()), b'.');
        Bytes::from(value)
    }
}

/// Asks once and writes down what came of it.
pub async fn record(
    log: &Log,
    client: &Client,
    number: u32,
    key: &Bytes,
    level: Level,
    asked: Asked,
) -> Told {
    let began_us = log.now_us();
    let told = ask(client, key, level, &asked).await;
    let ended_us = log.now_us();
    let operation =
        Operation { client: number, key: key.clone(), level, asked, began_us, ended_us, told: told.clone() };
    log.all().push(operation);
    told
}

async fn ask(client: &Client, key: &Bytes, level: Level, asked: &Asked) -> Told {
    let (key, level) = (key.to_vec(), chord::Level(level.number()));
    let written = |result: chord::WriteResult| Told::Written { stamp: result.stamp.map(Stamp) };
    match asked {
        Asked::Put(value) => {
            let request = PutRequest::new(key, value.to_vec(), level, None, None, None);
            client.put(&request).await.map_or_else(|error| failed(&error, Written::Perhaps), written)
        }
        Asked::Remove => {
            let request = RemoveRequest::new(key, level, None, None);
            client.remove(&request).await.map_or_else(|error| failed(&error, Written::Perhaps), written)
        }
        Asked::Get => match client.get(&GetRequest::new(key, level, None)).await {
            Ok(got) => Told::Found { value: got.value.map(Bytes::from), stamp: got.stamp.map(Stamp) },
            Err(error) => failed(&error, Written::Nothing),
        },
    }
}

/// What an operation without an answer may have done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Nothing,
    Perhaps,
}

/// In one or two words, so that equal failures count together.
fn failed(error: &ClientError, written: Written) -> Told {
    let (text, certain) = match error {
        ClientError::Refused(Refusal::Unavailable(_)) => ("unavailable", true),
        ClientError::Refused(Refusal::Overloaded(_)) => ("overloaded", true),
        ClientError::Refused(Refusal::InvalidRequest(_)) => ("invalid", true),
        ClientError::Refused(Refusal::Timeout(_)) => ("timeout", false),
        ClientError::Unreachable { .. } => ("no server reached", true),
        ClientError::Unknown { .. } | ClientError::NoAnswer { .. } => ("no answer", false),
        ClientError::Classic(_) => ("refused", false),
        ClientError::Declined(_) | ClientError::NoSuchServer { .. } => ("declined", true),
    };
    if certain || written == Written::Nothing {
        Told::Refused(text.to_owned())
    } else {
        Told::Unknown(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Ring;

    #[test]
    fn keys_are_spread_over_every_server_and_differ() {
        let ring = Ring::even(4, 3);
        let mut keys = keys(100, 7);
        let owned = |id: u32| keys.iter().filter(|key| ring.replicas(key)[0].0 == id).count();
        assert_eq!([0, 1, 2, 3].map(owned), [25; 4]);
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 100);
    }

    #[test]
    fn a_client_keeps_to_the_keys_of_one_server_and_together_they_use_all() {
        let load = Load { clients: 8, keys: keys(100, 7), seed: 1 };
        let ring = Ring::even(4, 3);
        for number in 0..8 {
            let own = load.range(number, 4);
            assert!(load.keys[own].iter().all(|key| ring.replicas(key)[0].0 as usize == number % 4));
        }
        let few = Load { keys: keys(2, 7), ..load };
        assert_eq!([0, 1, 2, 3].map(|number| few.range(number, 4)), [0..2, 0..1, 0..2, 1..2]);
    }

    #[test]
    fn only_what_the_store_promised_counts_as_refused() {
        let error = ClientError::Unknown { tried: Vec::new() };
        assert_eq!(failed(&error, Written::Perhaps), Told::Unknown("no answer".to_owned()));
        assert_eq!(failed(&error, Written::Nothing), Told::Refused("no answer".to_owned()));
        let error = ClientError::Unreachable { tried: Vec::new() };
        assert_eq!(failed(&error, Written::Perhaps), Told::Refused("no server reached".to_owned()));
    }
}
