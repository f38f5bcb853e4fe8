//! How one operation travels: over the project's own client, or over the classic service.
//!
//! A [`Target`] belongs to one caller and keeps its request from one operation to the next, so that an operation
//! changes bytes in place instead of allocating them.

use std::rc::Rc;

use super::classic::Classic;
use super::keys::write_key;
use super::options::{Plan, Sizes, on_wire};
use super::tally::{Class, Failed};
use super::workload::Kind;
use crate::client::{Client, ClientError};
use crate::nodes::Address;
use crate::thrift::chord::{GetRequest, PutRequest, RemoveRequest};
use crate::thrift::method::Refusal;

/// Values of any size in the plan: a stretch of random letters, whose first bytes change with each.
#[derive(Debug)]
pub struct Values {
    letters: Vec<u8>,
    sizes: Sizes,
}

/// Bytes that differ from one value to the next.
const HEAD_BYTES: usize = 8;

impl Values {
    /// For one thread's callers.
    pub fn new(sizes: Sizes, random: &mut fastrand::Rng) -> Values {
        Values { letters: (0..sizes.most).map(|_| random.alphanumeric() as u8).collect(), sizes }
    }

    /// Puts the next value into `out`, which keeps its memory.
    pub fn fill(&self, random: &mut fastrand::Rng, out: &mut Vec<u8>) {
        let len = random.usize(self.sizes.least..=self.sizes.most);
        out.clear();
        out.extend_from_slice(&self.letters[..len]);
        let mut word = random.u64(..);
        for byte in out.iter_mut().take(HEAD_BYTES) {
            *byte = b'a' + (word % 16) as u8;
            word >>= 4;
        }
    }
}

/// The way of one caller to its server.
pub enum Target {
    /// Service `Tetrachord`, over a connection shared with other callers.
    Own(Box<Own>),
    /// Service `KVStore`, over a connection of its own.
    Classic(Box<Classic>),
}

impl Target {
    /// Over `client`, which asks one server.
    pub fn own(client: Client, plan: &Plan, values: Rc<Values>) -> Target {
        let key = || vec![0; plan.key_bytes];
        Target::Own(Box::new(Own {
            client,
            values,
            put: PutRequest::new(key(), Vec::new(), on_wire(plan.write_level), None, None, None),
            get: GetRequest::new(key(), on_wire(plan.read_level), None),
            remove: RemoveRequest::new(key(), on_wire(plan.write_level), None, None),
        }))
    }

    /// Over a classic connection to the server at `address`.
    pub fn classic(address: Address, plan: &Plan, values: Rc<Values>) -> Target {
        Target::Classic(Box::new(Classic::new(address, plan, values)))
    }

    /// Carries out one operation. True unless it read and found nothing.
    pub async fn operate(
        &mut self,
        kind: Kind,
        key: u64,
        random: &mut fastrand::Rng,
    ) -> Result<bool, Failed> {
        match kind {
            Kind::Read => self.read(key).await,
            Kind::Write | Kind::Insert => self.write(key, random).await.map(|()| true),
            Kind::ReadModifyWrite => {
                let found = self.read(key).await?;
                self.write(key, random).await.map(|()| found)
            }
            Kind::Remove => self.remove(key).await.map(|()| true),
        }
    }

    async fn read(&mut self, key: u64) -> Result<bool, Failed> {
        match self {
            Target::Own(own) => own.read(key).await,
            Target::Classic(classic) => classic.read(key).await,
        }
    }

    async fn write(&mut self, key: u64, random: &mut fastrand::Rng) -> Result<(), Failed> {
        match self {
            Target::Own(own) => own.write(key, random).await,
            Target::Classic(classic) => classic.write(key, random).await,
        }
    }

    async fn remove(&mut self, key: u64) -> Result<(), Failed> {
        match self {
            Target::Own(own) => own.remove(key).await,
            Target::Classic(_) => unreachable!("the options refuse it: the classic service has no removal"),
        }
    }
}

/// Requests of one caller.
pub struct Own {
    client: Client,
    values: Rc<Values>,
    put: PutRequest,
    get: GetRequest,
    remove: RemoveRequest,
}

impl Own {
    async fn read(&mut self, key: u64) -> Result<bool, Failed> {
        write_key(key, self.get.key.as_mut().expect("set when it was made"));
        match self.client.get(&self.get).await {
            Ok(got) => Ok(got.value.is_some()),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn write(&mut self, key: u64, random: &mut fastrand::Rng) -> Result<(), Failed> {
        write_key(key, self.put.key.as_mut().expect("set when it was made"));
        self.values.fill(random, self.put.value.as_mut().expect("set when it was made"));
        match self.client.put(&self.put).await {
            Ok(_) => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn remove(&mut self, key: u64) -> Result<(), Failed> {
        write_key(key, self.remove.key.as_mut().expect("set when it was made"));
        self.client.remove(&self.remove).await.map(|_| ()).map_err(|error| failed(&error))
    }
}

fn failed(error: &ClientError) -> Failed {
    let class = match error {
        ClientError::Refused(Refusal::Unavailable(_)) => Class::Unavailable,
        ClientError::Refused(Refusal::Timeout(_)) => Class::Timeout,
        ClientError::Refused(Refusal::Overloaded(_)) => Class::Overloaded,
        ClientError::Refused(Refusal::InvalidRequest(_)) => Class::Invalid,
        ClientError::Classic(_) => Class::Classic,
        ClientError::Unreachable { .. } => Class::Unreachable,
        ClientError::Unknown { .. } | ClientError::NoAnswer { .. } => Class::NoAnswer,
        ClientError::Declined(_) | ClientError::NoSuchServer { .. } => Class::Declined,
    };
    Failed { class, text: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_sizes_and_differ() {
        let mut random = fastrand::Rng::with_seed(1);
        let sizes = Sizes { least: 3, most: 40 };
        let values = Values::new(sizes, &mut random);
        let mut seen = std::collections::BTreeSet::new();
        let mut value = Vec::new();
        for _ in 0..1_000 {
            values.fill(&mut random, &mut value);
            assert!((3..=40).contains(&value.len()));
            assert!(value.iter().all(u8::is_ascii_alphanumeric), "text, for the classic service");
            seen.insert(value.len());
        }
        assert_eq!(seen.len(), 38);
        let mut empty = vec![1];
        Values::new(Sizes { least: 0, most: 0 }, &mut random).fill(&mut random, &mut empty);
        assert!(empty.is_empty());
    }
}
