//! Service `KVStore`: integer keys 0 to 255, text values, levels by name.
//!
//! The integer key k is the one-byte partition key [k] of the plain key-value table, so both services see the same
//! data. A value that is not UTF-8, put through the other service, is an error here rather than damaged text.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::{ApplyAnswer, Failure, NodeId, ask_one};
use crate::cell::{Cell, Content, Stamp};
use crate::coordinator::{Level, Refused, Stamping, Trace, turn};
use crate::handoff::HandoffError;
use crate::key::KV_TABLE;
use crate::mutation::Mutation;
use crate::reconcile::RangeView;
use crate::thrift::chord::{ClientRequest, KV, ServerResponse, SystemException};
use crate::thrift::connection::Held;

use super::{Service, Wrong, check_read_level, held, kv_slice};

const SUCCESS: &str = "SUCCESS";
/// No replica has the key. An answer, not an error.
const FAIL: &str = "FAIL";

/// What `getInfo` says of a range.
fn range_entry(range: &RangeView) -> Value {
    let (upto, at_us) = range.proven.unwrap_or_default();
    json!({"owner": range.owner.0, "provenUpto": upto.0, "provenAt": at_us, "notNow": range.why})
}

impl Service {
    pub(super) async fn client_get(
        self: Arc<Self>,
        request: ClientRequest,
    ) -> Result<(ServerResponse, Held), SystemException> {
        let (level, kv) = self.check_client_request(request)?;
        let level = check_read_level(level).map_err(|wrong| self.refuse(wrong))?;
        let key = self.check_classic_key(&kv)?;
        if kv.value.is_some() {
            return Err(self.refuse(Wrong("a get takes no value".to_owned())));
        }
        let found = self.coordinator.read(kv_slice(partition(key)), level, &mut Trace::new(false)).await;
        let found = found.map_err(|refused| exception(refused.to_string()))?;
        let answer = self.classic_answer(key, found.cells.into_iter().next().map(|(_, cell)| cell))?;
        Ok((answer, held(found.held)))
    }

    pub(super) async fn client_put(
        self: Arc<Self>,
        request: ClientRequest,
    ) -> Result<ServerResponse, SystemException> {
        let (level, kv) = self.check_client_request(request)?;
        let key = self.check_classic_key(&kv)?;
        let value = self.check_value(kv.value.map(String::into_bytes)).map_err(|wrong| self.refuse(wrong))?;
        let cell = Cell { stamp: Stamp(0), content: Content::Value(value) };
        let mutation = Mutation::single(KV_TABLE, partition(key), cell);
        let written = self.coordinator.write(mutation, Stamping::Clock, level, &mut Trace::new(false)).await;
        written.map_err(|refused| exception(refused.to_string()))?;
        Ok(response(SUCCESS, None))
    }

    pub(super) fn server_get(&self, kv: &KV) -> Result<(ServerResponse, Held), SystemException> {
        let key = self.check_classic_key(kv)?;
        if kv.value.is_some() {
            return Err(self.refuse(Wrong("a get takes no value".to_owned())));
        }
        let cell = self.own_cell(key)?;
        let bytes = cell.as_ref().map_or(0, |cell| cell.value_bytes().len());
        let share = self.coordinator.admit_answer(bytes).map_err(|refused| exception(refused.to_string()))?;
        Ok((self.classic_answer(key, cell)?, held(share)))
    }

    pub(super) async fn server_put(self: Arc<Self>, kv: KV) -> Result<ServerResponse, SystemException> {
        let key = self.check_classic_key(&kv)?;
        let stamp = self.check_classic_time(&kv)?;
        let value = self.check_value(kv.value.map(String::into_bytes)).map_err(|wrong| self.refuse(wrong))?;
        self.store_here(key, Cell { stamp, content: Content::Value(value) }).await?;
        Ok(response(SUCCESS, None))
    }

    /// Shadows exactly the version stamped `kv.time`: a tombstone with that stamp beats that version and no newer one.
    /// Where another version is current there is nothing to shadow, and an older one must stay visible.
    pub(super) async fn server_delete(self: Arc<Self>, kv: KV) -> Result<(), SystemException> {
        let key = self.check_classic_key(&kv)?;
        let stamp = self.check_classic_time(&kv)?;
        match self.own_cell(key)? {
            Some(cell) if cell.stamp == stamp => {
                self.store_here(key, Cell { stamp, content: Content::Tombstone }).await
            }
            _ => Ok(()),
        }
    }

    /// Delivers the hints kept for that server and returns when they are delivered, or with an error after
    /// `handoff_call_ms`, while the delivery goes on; at once if one is under way already.
    pub(super) async fn resend_hints(self: Arc<Self>, id: i32) -> Result<(), SystemException> {
        let unknown = || Wrong(format!("there is no server {id}; ids are 0 to {}", self.nodes.len() - 1));
        let target = self.node(id).ok_or_else(|| self.refuse(unknown()))?;
        if target == self.identity.id {
            return Ok(());
        }
        match self.handoff.deliver_in_time(target).await {
            Ok(_) => Ok(()),
            Err(HandoffError::NotUp(_)) if self.store.hint_total(target).count == 0 => Ok(()),
            Err(error) => Err(exception(error.to_string())),
        }
    }

    /// This server's state as JSON. `kvMem` holds the classic keys only: there are at most 256 of them.
    pub(super) async fn get_info(self: Arc<Self>) -> Result<(String, Held), SystemException> {
        let overloaded = |refused: Refused| exception(refused.to_string());
        let mut admitted = self.coordinator.admit_waiting(0).map_err(overloaded)?;
        let mut kv_mem = serde_json::Map::new();
        for key in 0..=u8::MAX {
            turn::next_of_many().await;
            let Some(cell) = self.own_cell(key)? else { continue };
            if let Some(value) = cell.live_value(self.clock.wall_s()) {
                let shown = Shown::of(value);
                if !admitted.grow(shown.bytes()) {
                    let why = "the answers under way here take too much memory".to_owned();
                    return Err(overloaded(Refused::Overloaded { why, nothing: "nothing was read" }));
                }
                kv_mem.insert(key.to_string(), shown.entry(key, cell.stamp));
            }
            turn::spend(cell.value_bytes().len()).await;
        }
        let hints: serde_json::Map<String, Value> = self
            .store
            .hint_totals()
            .into_iter()
            .map(|(node, held)| (node.to_string(), json!({"count": held.count, "bytes": held.bytes})))
            .collect();
        let members: Vec<Value> =
            self.members.view().iter().map(|member| self.member_entry(member.id)).collect();
        let info = json!({
            "serverID": self.identity.id.0,
            "kvMem": kv_mem,
            "hints": hints,
            "cluster": self.config.cluster_name,
            "replicationFactor": self.ring.replication_factor(),
            "members": members,
            "ranges": self.reconciler.ranges().iter().map(range_entry).collect::<Vec<_>>(),
        });
        let info = info.to_string();
        let share = held(admitted.for_answer(info.len()));
        Ok((info, share))
    }

    fn member_entry(&self, id: NodeId) -> Value {
        let range = self.ring.ranges().iter().find(|range| range.owner() == id);
        let token: String =
            range.iter().flat_map(|range| range.token.iter()).map(|byte| format!("{byte:02x}")).collect();
        json!({
            "id": id.0,
            "address": self.nodes.address(id).map(ToString::to_string),
            "state": self.members.state(id).to_string(),
            "token": token,
        })
    }

    fn check_client_request(&self, request: ClientRequest) -> Result<(Level, KV), SystemException> {
        let missing = |field: &str| self.refuse(Wrong(format!("{field} is missing")));
        let name = request.const_level.ok_or_else(|| missing("constLevel"))?;
        let level = Level::parse(&name).ok_or_else(|| {
            let name: String = name.chars().take(40).collect();
            self.refuse(Wrong(format!(
                "unknown level '{name}'; known are ONE, TWO, THREE, QUORUM, ALL and ANY"
            )))
        })?;
        let kv = request.kv.ok_or_else(|| missing("kv"))?;
        Ok((level, kv))
    }

    fn check_classic_key(&self, kv: &KV) -> Result<u8, SystemException> {
        let key = kv.key.ok_or_else(|| self.refuse(Wrong("the key is missing".to_owned())))?;
        u8::try_from(key).map_err(|_| self.refuse(Wrong(format!("the key {key} is outside 0 to 255"))))
    }

    fn check_classic_time(&self, kv: &KV) -> Result<Stamp, SystemException> {
        let time = kv.time.ok_or_else(|| self.refuse(Wrong("the time is missing".to_owned())))?;
        self.check_stamp(time).map_err(|wrong| self.refuse(wrong))
    }

    fn own_cell(&self, key: u8) -> Result<Option<Cell>, SystemException> {
        let read =
            self.store.read(&kv_slice(partition(key))).map_err(|error| exception(error.to_string()))?;
        Ok(read.cells.into_iter().next().map(|(_, cell)| cell))
    }

    async fn store_here(&self, key: u8, cell: Cell) -> Result<(), SystemException> {
        if !self.is_replica(&[key]) {
            let replicas: Vec<String> = self.ring.replicas(&[key]).iter().map(NodeId::to_string).collect();
            let text = format!(
                "server {} is no replica of key {key}; servers {} are",
                self.identity.id,
                replicas.join(", ")
            );
            return Err(self.refuse(Wrong(text)));
        }
        self.clock.observe(cell.stamp);
        let mutation = Arc::new(Mutation::single(KV_TABLE, partition(key), cell));
        let answer = tokio::time::timeout(
            self.config.write_timeout(),
            ask_one(self.identity.id, |to| self.store.apply(mutation, to)),
        );
        match answer.await.unwrap_or(ApplyAnswer::Failed(Failure::TimedOut)) {
            ApplyAnswer::Applied | ApplyAnswer::Behind(_) => Ok(()),
            ApplyAnswer::Failed(failure) if failure.nothing_stored() => Err(exception(failure.to_string())),
            ApplyAnswer::Failed(failure) => {
                Err(exception(format!("{failure}; it may or may not be stored on this server")))
            }
        }
    }

    fn classic_answer(&self, key: u8, cell: Option<Cell>) -> Result<ServerResponse, SystemException> {
        let now_s = self.clock.wall_s();
        let Some((value, stamp)) = cell.as_ref().and_then(|cell| Some((cell.live_value(now_s)?, cell.stamp)))
        else {
            return Ok(response(FAIL, None));
        };
        let text = std::str::from_utf8(value).map_err(|_| {
            let size = value.len();
            exception(format!(
                "the value of key {key} is not text ({size} bytes); read it through the Tetrachord service"
            ))
        })?;
        Ok(response(SUCCESS, Some(KV::new(i32::from(key), text.to_owned(), stamp.0))))
    }

    fn refuse(&self, wrong: Wrong) -> SystemException {
        exception(self.wrong(wrong))
    }
}

/// Bytes that one value takes in `getInfo`, as it is written there; of longer ones it tells the size.
const INFO_VALUE_BYTES_MAX: usize = 65_536;

/// How `getInfo` shows a value.
enum Shown<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Size(usize),
}

impl Shown<'_> {
    fn of(value: &[u8]) -> Shown<'_> {
        let shown = std::str::from_utf8(value).map_or(Shown::Bytes(value), Shown::Text);
        if shown.bytes() > INFO_VALUE_BYTES_MAX { Shown::Size(value.len()) } else { shown }
    }

    /// Bytes of it as it is written.
    fn bytes(&self) -> usize {
        match self {
            Shown::Text(text) => text.bytes().map(json_bytes).sum(),
            Shown::Bytes(bytes) => 2 * bytes.len(),
            Shown::Size(_) => 0,
        }
    }

    fn entry(&self, key: u8, stamp: Stamp) -> Value {
        match self {
            Shown::Text(text) => json!({"key": key, "value": text, "time": stamp.0}),
            Shown::Bytes(bytes) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({"key": key, "value": null, "valueHex": hex, "time": stamp.0})
            }
            Shown::Size(bytes) => json!({"key": key, "value": null, "valueBytes": bytes, "time": stamp.0}),
        }
    }
}

/// Bytes that a byte of text takes in JSON.
fn json_bytes(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6, // \u0001
        _ => 1,
    }
}

fn partition(key: u8) -> Bytes {
    Bytes::copy_from_slice(&[key])
}

fn response(status: &str, kv: Option<KV>) -> ServerResponse {
    ServerResponse::new(status.to_owned(), kv)
}

fn exception(message: String) -> SystemException {
    SystemException { message: Some(message) }
}
