//! The first exchange on a connection between two servers: who are you, and do we hold the same ring?
//!
//! Both sides check. The caller names itself and whom it believes to be calling; the called server compares
//! ([`check_hello`]) and says welcome or why not; the caller looks at who welcomes it. Texts name both servers by
//! number, since either side's log shows them, and say what to do.

use crate::answer::NodeId;
use crate::cell::Stamp;
use crate::thrift::chord::{PeerHello, PeerWelcome};

/// Of service Peer. Servers of different versions refuse each other.
pub const PEER_PROTOCOL_VERSION: i32 = 2;

/// Characters of another cluster's name that are said: anybody may greet, and it is logged.
const CLUSTER_NAME_SHOWN: usize = 100;

/// What a server says of itself to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// Which server.
    pub id: NodeId,
    /// Rises with every start.
    pub generation: i64,
    /// The ring's number.
    pub epoch: u64,
    /// [`crate::ring::Ring::digest`].
    pub ring_digest: [u8; 16],
}

impl Identity {
    /// The greeting to `callee`.
    pub fn hello(&self, callee: NodeId, clock: Stamp) -> PeerHello {
        PeerHello {
            version: Some(PEER_PROTOCOL_VERSION),
            cluster: Some(self.cluster.clone()),
            caller: Some(self.id.0 as i32),
            callee: Some(callee.0 as i32),
            generation: Some(self.generation),
            epoch: Some(self.epoch as i64),
            ring_digest: Some(self.ring_digest.to_vec()),
            clock: Some(clock.0),
        }
    }

    /// The answer to a greeting; `refused` is empty or what [`check_hello`] said.
    pub fn welcome(&self, refused: String, clock: Stamp) -> PeerWelcome {
        PeerWelcome {
            version: Some(PEER_PROTOCOL_VERSION),
            refused: Some(refused),
            id: Some(self.id.0 as i32),
            generation: Some(self.generation),
            epoch: Some(self.epoch as i64),
            clock: Some(clock.0),
        }
    }
}

/// The called server's side: may this caller stay, one of `nodes` servers? Returns who it is; `Err` is the text to
/// refuse it with.
pub fn check_hello(me: &Identity, nodes: usize, hello: &PeerHello) -> Result<NodeId, String> {
    let me_id = me.id;
    let version = hello.version.ok_or_else(|| lacks("version"))?;
    let caller = hello.caller.ok_or_else(|| lacks("caller"))?;
    check_version(caller, version, me_id.0 as i32)?;

    let cluster = hello.cluster.as_ref().ok_or_else(|| lacks("cluster"))?;
    if *cluster != me.cluster {
        let theirs: String = cluster.chars().take(CLUSTER_NAME_SHOWN).collect();
        return Err(format!(
            "server {caller} belongs to cluster {theirs:?}, server {me_id} to cluster {:?}; \
             check cluster_name on both and the addresses in nodes.txt",
            me.cluster
        ));
    }
    let callee = hello.callee.ok_or_else(|| lacks("callee"))?;
    if callee != me_id.0 as i32 {
        return Err(format!(
            "server {caller} looks for server {callee} at the address of server {me_id}; \
             nodes.txt must have the same lines in the same order on every server"
        ));
    }
    if caller == me_id.0 as i32 {
        return Err(format!("two servers say that they are server {me_id}; start each with its own id"));
    }
    let epoch = hello.epoch.ok_or_else(|| lacks("epoch"))?;
    let digest = hello.ring_digest.as_ref().ok_or_else(|| lacks("ringDigest"))?;
    if epoch != me.epoch as i64 || digest[..] != me.ring_digest {
        return Err(other_ring(caller, epoch, me));
    }
    let on_the_list = u32::try_from(caller).ok().filter(|caller| (*caller as usize) < nodes);
    let outsider =
        || format!("there is no server {caller} among the {nodes} of nodes.txt; start it with its own id");
    on_the_list.map(NodeId).ok_or_else(outsider)
}

/// The caller's side: is this the server that was called, and are we welcome? Returns its generation; `Err` is why
/// it is Down.
pub fn check_welcome(me: &Identity, callee: NodeId, welcome: &PeerWelcome) -> Result<i64, String> {
    if let Some(refused) = welcome.refused.as_ref().filter(|refused| !refused.is_empty()) {
        return Err(format!("refused: {refused}"));
    }
    let version = welcome.version.ok_or_else(|| lacks("version"))?;
    let id = welcome.id.ok_or_else(|| lacks("id"))?;
    check_version(id, version, me.id.0 as i32)?;
    if id != callee.0 as i32 {
        return Err(format!(
            "server {id} answers at the address of server {callee}; \
             nodes.txt must have the same lines in the same order on every server"
        ));
    }
    let epoch = welcome.epoch.ok_or_else(|| lacks("epoch"))?;
    if epoch != me.epoch as i64 {
        return Err(other_ring(id, epoch, me));
    }
    welcome.generation.ok_or_else(|| lacks("generation"))
}

fn check_version(theirs_id: i32, theirs: i32, my_id: i32) -> Result<(), String> {
    if theirs == PEER_PROTOCOL_VERSION {
        return Ok(());
    }
    Err(format!(
        "server {theirs_id} speaks version {theirs} of the protocol between servers, server {my_id} version \
         {PEER_PROTOCOL_VERSION}; run the same release on both"
    ))
}

fn other_ring(theirs_id: i32, epoch: i64, me: &Identity) -> String {
    format!(
        "server {theirs_id} (ring epoch {epoch}) and server {} (ring epoch {}) have different rings; \
         nodes.txt and replication_factor must be the same on every server",
        me.id, me.epoch
    )
}

fn lacks(field: &str) -> String {
    format!("the greeting lacks '{field}'; run the same release on every server")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: u32) -> Identity {
        Identity { cluster: "a".to_owned(), id: NodeId(id), generation: 5, epoch: 1, ring_digest: [9; 16] }
    }

    #[test]
    fn two_servers_of_one_cluster_greet_each_other() {
        let hello = identity(1).hello(NodeId(2), Stamp(3));
        assert_eq!(check_hello(&identity(2), 3, &hello), Ok(NodeId(1)));
        let welcome = identity(2).welcome(String::new(), Stamp(3));
        assert_eq!(check_welcome(&identity(1), NodeId(2), &welcome), Ok(5));
    }

    #[test]
    fn a_wrong_caller_is_told_why() {
        let good = identity(1).hello(NodeId(2), Stamp(3));
        for (hello, said) in [
            (
                PeerHello { cluster: Some("b".to_owned()), ..good.clone() },
                "server 1 belongs to cluster \"b\", server 2 to cluster \"a\"",
            ),
            (PeerHello { version: Some(1), ..good.clone() }, "server 1 speaks version 1"),
            (PeerHello { callee: Some(3), ..good.clone() }, "server 1 looks for server 3 at the address of"),
            (PeerHello { caller: Some(2), ..good.clone() }, "two servers say that they are server 2"),
            (PeerHello { epoch: Some(2), ..good.clone() }, "have different rings"),
            (PeerHello { ring_digest: Some(vec![1; 16]), ..good.clone() }, "have different rings"),
            (PeerHello { ring_digest: Some(vec![]), ..good.clone() }, "have different rings"),
            (PeerHello { caller: Some(3), ..good.clone() }, "there is no server 3 among the 3 of nodes.txt"),
            (PeerHello { caller: Some(-1), ..good.clone() }, "there is no server -1"),
            (PeerHello { version: None, ..good.clone() }, "lacks 'version'"),
            (PeerHello { cluster: None, ..good.clone() }, "lacks 'cluster'"),
            (PeerHello { caller: None, ..good.clone() }, "lacks 'caller'"),
            (PeerHello { callee: None, ..good.clone() }, "lacks 'callee'"),
            (PeerHello { epoch: None, ..good.clone() }, "lacks 'epoch'"),
            (PeerHello { ring_digest: None, ..good.clone() }, "lacks 'ringDigest'"),
        ] {
            let why = check_hello(&identity(2), 3, &hello).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }

    #[test]
    fn a_wrong_welcome_is_not_believed() {
        let good = identity(2).welcome(String::new(), Stamp(3));
        for (welcome, said) in [
            (PeerWelcome { refused: Some("no".to_owned()), ..good.clone() }, "refused: no"),
            (PeerWelcome { version: Some(7), ..good.clone() }, "server 2 speaks version 7"),
            (PeerWelcome { id: Some(3), ..good.clone() }, "server 3 answers at the address of server 2"),
            (PeerWelcome { epoch: Some(9), ..good.clone() }, "have different rings"),
            (PeerWelcome { generation: None, ..good.clone() }, "lacks 'generation'"),
        ] {
            let why = check_welcome(&identity(1), NodeId(2), &welcome).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }
}
