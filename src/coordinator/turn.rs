//! How long a read may keep its thread: requests are done where the sockets are, and nobody else has a turn meanwhile.
//!
//! tokio allows a task so much in one turn (its cooperative budget of 128 units), and a socket takes one for each look
//! at it. Here reads take theirs, in proportion to what they read, and begin only while something is left: of many that
//! are under way in one task, such as the operations of a batch, the others wait for its next turn.
//!
//! Not here: calls that are answered where their bytes arrived (`thrift::connection`).

use tokio::task::consume_budget;
use tokio::task::coop::has_budget_remaining;

/// Bytes of values that take as much as one look at a socket: some tens of microseconds, if they come from the disk.
const UNIT_BYTES: usize = 65_536;

/// Before a read: waits for the task's next turn if it has done enough in this one. Takes nothing itself: what is read
/// from memory costs less than to count it.
pub async fn begin() {
    if !has_budget_remaining() {
        consume_budget().await;
    }
}

/// After a read of so many bytes.
pub async fn spend(bytes: usize) {
    for _ in 0..bytes / UNIT_BYTES {
        consume_budget().await;
    }
}

/// Before one of many reads that a single request asks for.
pub async fn next_of_many() {
    consume_budget().await;
}
