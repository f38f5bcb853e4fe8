// The wire of Tetrachord. Four services answer on one port, told apart by the names of their methods:
//
//   KVStore      the classic service: integer keys 0 to 255, text values. Wire-identical since its first release.
//   Tetrachord   for applications: binary keys and values, every level, time to live, batches.
//   Inspect      what one server itself holds, page by page or as digests. For the inspector.
//   Peer         between servers.
//
// Unframed, framed and THeader transports and the binary and compact protocols are told apart by the first bytes.

// ---------------------------------------------------------------------------------------------- the classic service

exception SystemException {
  1: optional string message
}

struct KV {
  1: i32 key
  2: optional string value
  3: optional i64 time        // microseconds since 1970 (UTC)
}

struct ClientRequest {
  1: string constLevel        // "ONE", "QUORUM", also "TWO", "THREE", "ALL", "ANY"; any case
  2: KV kv
}

struct ServerResponse {
  1: string status            // "SUCCESS", or "FAIL" when no replica has the key
  2: optional KV kv
}

service KVStore {
  ServerResponse clientGet(1: ClientRequest request) throws (1: SystemException systemException)
  ServerResponse clientPut(1: ClientRequest request) throws (1: SystemException systemException)
  ServerResponse serverGet(1: KV kv) throws (1: SystemException systemException)
  ServerResponse serverPut(1: KV kv) throws (1: SystemException systemException)
  void serverDelete(1: KV kv) throws (1: SystemException systemException)
  void resendHints(1: i32 recoveredServerID) throws (1: SystemException systemException)
  string hello() throws (1: SystemException systemException)
  i32 getServerID() throws (1: SystemException systemException)
  string getInfo() throws (1: SystemException systemException)
}

// ---------------------------------------------------------------------------------------------- for applications

// Cassandra's numbers.
enum Level {
  ONE = 1
  QUORUM = 2
  ALL = 5
  ANY = 6
  TWO = 7
  THREE = 8
}

// Fewer replicas were up than the level needs. A promise: nothing was written anywhere, no hint either.
exception Unavailable {
  1: Level level
  2: i32 needed
  3: i32 alive
  4: string message
}

// The level was not met in time. Outcome unknown: the write may be on some replicas and may yet surface on all.
exception Timeout {
  1: Level level
  2: i32 needed
  3: i32 acknowledged
  4: string message
}

// The server has too much under way, or every replica refused to store it. Nothing was written; try again later.
exception Overloaded {
  1: string message
}

// The request itself is wrong; sending it again will not help. Nothing was written.
exception InvalidRequest {
  1: string why
}

struct PutRequest {
  1: binary key               // 1 to 65,535 bytes; the classic integer key k is the one byte k
  2: binary value
  3: Level level              // QUORUM when left out
  4: optional i32 ttl         // seconds to live
  5: optional i64 stamp       // microseconds since 1970; the server's clock when left out
  6: optional bool trace      // return what happened, step by step
}

struct RemoveRequest {
  1: binary key
  2: Level level
  3: optional i64 stamp
  4: optional bool trace
}

struct WriteResult {
  1: i64 stamp                // the stamp that won: a newer one than the request's if the key already had one
  2: i32 replicas             // how many are known to have it at the time of the answer
  3: optional list<string> trace
}

struct GetRequest {
  1: binary key
  2: Level level
  3: optional bool trace
}

// Neither value nor stamp: no replica asked has the key.
struct GetResult {
  1: optional binary value
  2: optional i64 stamp
  3: optional i64 expires     // seconds since 1970, for a value with a time to live
  4: optional list<string> trace
}

// Exactly one is set.
struct Operation {
  1: optional PutRequest put
  2: optional GetRequest get
  3: optional RemoveRequest remove
}

struct BatchRequest {
  1: list<Operation> operations
}

// Exactly one is set.
struct Outcome {
  1: optional WriteResult written
  2: optional GetResult got
  3: optional Unavailable unavailable
  4: optional Timeout timeout
  5: optional Overloaded overloaded
  6: optional InvalidRequest invalid
}

struct BatchResult {
  1: list<Outcome> outcomes
}

struct Member {
  1: i32 id
  2: string address           // host:port
  3: string state             // "up", "suspect", "down"
  4: binary token             // owns (previous token, token]
  5: string detail            // why it is not up, or empty
  6: i64 hints                // how many mutations the answering server keeps for it
  7: i64 hintBytes
  8: bool hinting             // false: absent past the window or over the cap, so new writes leave no hint
}

// How equal the replicas of a range are, as the answering server, one of them, knows.
struct RangeState {
  1: i32 owner                // the first replica
  2: i64 provenUpto           // all replicas hold the same up to this stamp; 0: that was not proven yet
  3: i64 provenAt             // when it was proven (microseconds since 1970)
  4: string notNow            // why it is not proven just now; empty: it is
  5: i64 cells                // it holds here, as far as its leaves are summed up
  6: i64 leavesPending        // leaves to be summed up again
  7: i64 deadCells            // deletions and expiring values that are not collected yet
  8: i64 deadBytes
  9: string uncollected       // why they stay; empty: none, or they are about to go
  10: i64 collectedUpto       // deletions up to this stamp were collected
  11: string refilling        // how far this server is with getting back what it lost; empty: it lacks nothing
}

struct Description {
  1: string cluster
  2: i32 id                   // of the answering server
  3: i32 replicationFactor
  4: i64 epoch                // of the ring
  5: list<Member> members     // in ring order; index is not id
  6: string version
  7: string durability        // "power-loss" or "process-crash"
  8: list<RangeState> ranges  // those of which the answering server is a replica
}

struct Stats {
  1: map<string, i64> values  // name to count, or to microseconds where the name ends in _us
}

service Tetrachord {
  WriteResult put(1: PutRequest request) throws (1: Unavailable unavailable, 2: Timeout timeout, 3: Overloaded overloaded, 4: InvalidRequest invalid)
  GetResult get(1: GetRequest request) throws (1: Unavailable unavailable, 2: Timeout timeout, 3: Overloaded overloaded, 4: InvalidRequest invalid)
  WriteResult remove(1: RemoveRequest request) throws (1: Unavailable unavailable, 2: Timeout timeout, 3: Overloaded overloaded, 4: InvalidRequest invalid)
  BatchResult batch(1: BatchRequest request) throws (1: Unavailable unavailable, 2: Timeout timeout, 3: Overloaded overloaded, 4: InvalidRequest invalid)
  Description describe()
  Stats stats()
}

// ---------------------------------------------------------------------------------------------- what one server holds

// A stretch of the engine's key order, (after, upto]. Engine keys are opaque here: pass back what was given.
struct DigestRequest {
  1: binary after             // empty: from the first
  2: binary upto              // empty: to the last
  3: i32 cells                // stop after this many; the server has its own bound too
}

// Order-independent digest of the cells in (after, upto]. Expired cells and tombstones count like any other.
struct DigestResult {
  1: i64 cells
  2: binary digest            // 16 bytes
  3: binary upto              // where it stopped
  4: bool complete            // it stopped because the stretch ended
  5: i64 live                 // of `cells`, those a reader would see
}

struct PageRequest {
  1: binary after
  2: binary upto
  3: i32 cells
  4: i32 valueBytes           // values are cut to this; 0: keys and stamps only
}

struct CellRow {
  1: binary engineKey
  2: i32 table
  3: binary partition
  4: binary column
  5: i64 stamp
  6: string kind              // "value", "expiring", "tombstone"
  7: binary value             // cut to valueBytes
  8: i64 valueSize
  9: i64 expires              // seconds since 1970; 0: never
  10: binary hash             // 16 bytes over everything above that replicas must agree on
}

struct PageResult {
  1: list<CellRow> cells
  2: binary upto
  3: bool complete
}

service Inspect {
  DigestResult inspectDigest(1: DigestRequest request) throws (1: InvalidRequest invalid)
  PageResult inspectPage(1: PageRequest request) throws (1: InvalidRequest invalid)
}

// ---------------------------------------------------------------------------------------------- between servers

struct PeerHello {
  1: i32 version              // of this service
  2: string cluster
  3: i32 caller               // the id of the calling server
  4: i32 callee               // the id the caller believes it is talking to
  5: i64 generation           // rises with every start of the caller
  6: i64 epoch
  7: binary ringDigest        // of tokens and replication factor
  8: i64 clock                // the caller's stamp
}

struct PeerWelcome {
  1: i32 version
  2: string refused           // empty: welcome
  3: i32 id
  4: i64 generation
  5: i64 epoch
  6: i64 clock
}

struct PeerPing {
  1: i64 clock
}

struct PeerPong {
  1: i64 clock
  2: string notWritable       // why this server takes no writes; empty when it does
}

// Mutations travel in the one encoding that hints use too (mutation.rs).
struct PeerApply {
  1: i64 epoch
  2: list<binary> mutations
}

// One for each mutation, in order: 0 applied, a stamp: behind that one, -1: refused (see `refused`), -1 - a stamp: refused
// for good, being older than deletions up to that stamp that were collected. Of hints and repairs 0 does not say that nothing
// newer is here.
struct PeerApplied {
  1: list<i64> answers
  2: string refused
  3: i64 clock
}

struct PeerRead {
  1: i64 epoch
  2: i32 table
  3: binary partition
  4: binary firstColumn       // inclusive
  5: binary lastColumn        // inclusive; empty together with `bounded` false: to the end
  6: bool bounded
  7: i32 cells                // at most
}

struct PeerCell {
  1: binary column
  2: binary cell              // encoding of cell.rs
}

struct PeerCells {
  1: list<PeerCell> cells
  2: string refused           // why there is no answer; empty when there is one
  3: i64 clock
  4: bool complete            // false: there are more cells than were asked for
}

// What replicas ask each other in order to become equal (docs/reconciliation.md).
enum PeerAsks {
  PROMISE = 1                 // what may still come from you, and what you remember of me
  COMPARE = 2                 // are your cells in these spans the same?
  VERSIONS = 3                // list the versions of a stretch
  FETCH = 4                   // the cells under these keys
  GIVE = 5                    // take these cells
  CLOSE = 6                   // take no more writes up to this stamp
  OUTCOME = 7                 // how the comparison of a range ended
}

// Which cells are compared: stamps up to `upto` and beyond `beyond`; not dead ones that the horizon covers.
struct PeerCut {
  1: i64 upto
  2: i64 beyond
  3: i64 collected            // the horizon: dead cells up to this stamp count as gone ...
  4: i64 expired              // ... if they are tombstones, or expired by this second
}

// The cells from the end of the span before it, or from the start asked for, up to but without `before`.
struct PeerSpan {
  1: binary before           // an engine key
  2: i64 cells
  3: binary digest            // 16 bytes: the sum of their hashes
}

struct PeerVersion {
  1: binary engineKey
  2: i64 stamp
  3: binary hash              // 16 bytes
}

struct PeerHeld {
  1: binary engineKey
  2: binary cell              // encoding of cell.rs
}

// What one server remembers of another's log: an answer that claims less comes from an older copy of its files.
struct PeerMemory {
  1: i64 incarnation          // of its files; 0: nothing is remembered
  2: i64 logged               // how many rows it had logged
}

// Which fields count depends on `asks`.
struct PeerReconcile {
  1: i64 epoch
  2: PeerAsks asks
  3: i32 range                // index in the ring's order
  4: PeerCut cut
  5: binary start             // an engine key
  6: binary before            // an engine key
  7: list<PeerSpan> spans
  8: bool quick               // do not scan: say that it is not known
  9: list<binary> keys
  10: list<PeerHeld> cells
  11: i64 wall                // microseconds since 1970
  12: string why              // what stands against a proof; empty: it is one
  13: PeerMemory memory       // of the asked server
  14: PeerMemory claim        // of the asking server
  15: bool whole              // the asking server lacks nothing that it once had
  16: i64 generation          // the start of the asked server that is meant: what one holds is not what another does
}

struct PeerReconciled {
  1: string refused           // why there is no answer; empty when there is one
  2: i64 clock
  3: i64 pause                // microseconds for which the answering server wants to be left alone
  4: i64 promise              // it sends no writes below this stamp any more, except with stamps that clients choose
  5: string waits             // what holds its promise back, or empty
  6: i64 wall                 // microseconds since 1970
  7: list<i32> tables         // those with cells
  8: PeerCut cut              // of the range asked about: only the horizon
  9: list<i32> verdicts       // one for each span: 0 the same, 1 not the same, 2 not known yet
  10: list<PeerVersion> versions
  11: binary reached          // all versions below this engine key are listed
  12: list<PeerHeld> cells
  13: i32 handled             // how many of the keys or cells sent were looked at, from the first on
  14: PeerMemory memory       // of the asking server
  15: PeerMemory claim        // of the answering server
  16: bool whole              // the answering server lacks nothing of this range that it once had
}

service Peer {
  PeerWelcome peerHello(1: PeerHello request)
  PeerPong peerPing(1: PeerPing request)
  PeerApplied peerApply(1: PeerApply request)
  PeerCells peerRead(1: PeerRead request)
  PeerReconciled peerReconcile(1: PeerReconcile request)
}
