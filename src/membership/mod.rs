//! Which servers are up, as this one sees it.
//!
//! One [`liveness::Liveness`] for each other server, fed by whoever talks to it (`peer`, or a simulator), and beside it
//! the state in one atomic byte, which is all that a request reads. State changes are logged here, once each.
//!
//! A server that turns Up is announced to handoff. The announcements wait in a bounded queue; one that finds it full
//! stays owed and is made at a later tick, so none is lost, and several of one server may become one.
//!
//! Not here: who holds what (`ring`), connections (`peer`).

pub mod liveness;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::NodeId;
use crate::config::Config;
pub use liveness::{Event, State};
use liveness::{Liveness, Settings};

/// Every server of the cluster and whether it can be asked. Shared by `Arc`.
pub struct Members {
    me: NodeId,
    generation: i64,
    /// Times of the state machines are counted from here.
    started: Instant,
    /// By id. The entry of this server itself is never fed.
    members: Vec<Member>,
    returns: mpsc::Sender<NodeId>,
    /// Until handoff takes it.
    returns_taken: Mutex<Option<mpsc::Receiver<NodeId>>>,
}

struct Member {
    /// [`Liveness::state`] for whoever has no time for the lock.
    state: AtomicU8,
    /// It turned Up and nobody has been told yet.
    return_owed: AtomicBool,
    known: Mutex<Known>,
}

struct Known {
    liveness: Liveness,
    /// Why it takes no writes; empty if it does.
    not_writable: String,
}

/// One server as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Which.
    pub id: NodeId,
    /// Whether it can be asked.
    pub state: State,
    /// Why it is not Up, or why it takes no writes; else empty.
    pub detail: String,
    /// Of its last known process; `None`: never reached.
    pub generation: Option<i64>,
}

impl Members {
    /// `nodes` servers, of which this one, `me`, is Up and the others are Down, not being reached yet.
    pub fn new(me: NodeId, nodes: usize, generation: i64, config: &Config) -> Members {
        assert!((me.0 as usize) < nodes);
        let settings = Settings::of(config);
        let member = |id: usize| Member {
            state: AtomicU8::new(to_byte(if id == me.0 as usize { State::Up } else { State::Down })),
            return_owed: AtomicBool::new(false),
            known: Mutex::new(Known {
                liveness: Liveness::new(settings, Duration::ZERO),
                not_writable: String::new(),
            }),
        };
        let (returns, taken) = mpsc::channel(nodes.max(16));
        Members {
            me,
            generation,
            started: Instant::now(),
            members: (0..nodes).map(member).collect(),
            returns,
            returns_taken: Mutex::new(Some(taken)),
        }
    }

    /// This server.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// The state of `node`; this server itself is Up. Panics if there is no such server.
    pub fn state(&self, node: NodeId) -> State {
        from_byte(self.member(node).state.load(Ordering::Acquire))
    }

    /// True if `node` may be asked: Up or Suspect.
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.state(node) != State::Down
    }

    /// Every server, in the order of their ids.
    pub fn view(&self) -> Vec<MemberView> {
        (0..self.members.len() as u32).map(|id| self.view_of(NodeId(id))).collect()
    }

    /// How long `node` has been Down; `None` if it is not.
    pub fn absent_for(&self, node: NodeId) -> Option<Duration> {
        if self.is_alive(node) {
            return None;
        }
        let since = self.known(node).liveness.down_since()?;
        Some(self.now().saturating_sub(since))
    }

    /// Every server that turns Up from now on and those that did before. For handoff; panics if taken twice.
    pub fn take_returns(&self) -> mpsc::Receiver<NodeId> {
        let taken = self.returns_taken.lock().expect("no panic while it is held").take();
        taken.expect("the returns are taken once")
    }

    /// Takes note of what happened on the link to `node`, another server, and says what state it is in now.
    pub fn note(&self, node: NodeId, event: Event) -> State {
        assert_ne!(node, self.me);
        let member = self.member(node);
        let (change, state, reached) = {
            let mut known = self.known(node);
            let change = known.liveness.note(self.now(), event);
            let state = known.liveness.state();
            if state == State::Down {
                known.not_writable.clear();
            }
            member.state.store(to_byte(state), Ordering::Release);
            (change, state, known.liveness.generation().is_some())
        };
        // While a cluster starts, servers that are not there yet are no cause for worry.
        let level = if state == State::Up || !reached { log::Level::Info } else { log::Level::Warn };
        for line in change.lines() {
            log::log!(level, "server {node} {line}");
        }
        if change.is_return() {
            member.return_owed.store(true, Ordering::Release);
        }
        self.announce(node);
        state
    }

    /// Takes note of why `node` takes no writes; empty: it does.
    pub fn note_writable(&self, node: NodeId, not_writable: &str) {
        let mut known = self.known(node);
        if known.not_writable == not_writable {
            return;
        }
        known.not_writable = not_writable.to_owned();
        drop(known);
        if not_writable.is_empty() {
            log::info!("server {node} takes writes again");
        } else {
            log::warn!("server {node} takes no writes: {not_writable}");
        }
    }

    /// Tells handoff of a return that is owed, if there is room.
    fn announce(&self, node: NodeId) {
        let owed = &self.member(node).return_owed;
        if owed.load(Ordering::Acquire)
            && let Ok(permit) = self.returns.try_reserve()
            && owed.swap(false, Ordering::AcqRel)
        {
            permit.send(node);
        }
    }

    /// The start of another server that answered the greeting of the last connection to it; `None`: none did yet.
    pub fn generation(&self, node: NodeId) -> Option<i64> {
        self.known(node).liveness.generation()
    }

    fn view_of(&self, id: NodeId) -> MemberView {
        let known = self.known(id);
        let (state, generation, mut detail) = if id == self.me {
            (State::Up, Some(self.generation), String::new())
        } else {
            let liveness = &known.liveness;
            (liveness.state(), liveness.generation(), liveness.detail(self.now()))
        };
        if detail.is_empty() && !known.not_writable.is_empty() {
            detail = format!("takes no writes: {}", known.not_writable);
        }
        MemberView { id, state, detail, generation }
    }

    fn member(&self, node: NodeId) -> &Member {
        &self.members[node.0 as usize]
    }

    fn known(&self, node: NodeId) -> std::sync::MutexGuard<'_, Known> {
        self.member(node).known.lock().expect("no panic while it is held")
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

fn to_byte(state: State) -> u8 {
    match state {
        State::Up => 0,
        State::Suspect => 1,
        State::Down => 2,
    }
}

fn from_byte(byte: u8) -> State {
    match byte {
        0 => State::Up,
        1 => State::Suspect,
        _ => State::Down,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: NodeId = NodeId(2);

    fn members() -> Members {
        Members::new(NodeId(0), 4, 7, &Config::default())
    }

    #[test]
    fn the_others_start_down_and_this_server_up() {
        let members = members();
        assert_eq!(members.state(NodeId(0)), State::Up);
        assert_eq!(members.absent_for(NodeId(0)), None);
        assert!(!members.is_alive(OTHER));
        assert!(members.absent_for(OTHER).is_some());
        let view = members.view();
        assert_eq!(view.len(), 4);
        assert_eq!(
            view[0],
            MemberView { id: NodeId(0), state: State::Up, detail: String::new(), generation: Some(7) }
        );
        assert_eq!((view[2].detail.as_str(), view[2].generation), ("not reached yet", None));
    }

    #[test]
    fn the_fast_answer_is_that_of_the_state_machine() {
        let members = members();
        for (event, state) in [
            (Event::Connected { generation: 3 }, State::Up),
            (Event::Lost { why: "connection reset".to_owned() }, State::Suspect),
            (Event::Refused { why: "connection refused".to_owned() }, State::Down),
        ] {
            assert_eq!(members.note(OTHER, event), state);
            assert_eq!(members.state(OTHER), state);
            assert_eq!(members.is_alive(OTHER), state != State::Down);
            assert_eq!(members.absent_for(OTHER).is_none(), state != State::Down);
        }
        let view = &members.view()[2];
        assert_eq!((view.detail.as_str(), view.generation), ("connection refused", Some(3)));
    }

    #[test]
    fn a_server_that_takes_no_writes_says_so_while_it_is_up() {
        let members = members();
        members.note(OTHER, Event::Connected { generation: 3 });
        members.note_writable(OTHER, "disk full");
        assert_eq!(members.view()[2].detail, "takes no writes: disk full");
        members.note(OTHER, Event::Refused { why: "connection refused".to_owned() });
        assert_eq!(members.view()[2].detail, "connection refused");
        members.note(OTHER, Event::Connected { generation: 3 });
        assert_eq!(members.view()[2].detail, "");
        members.note_writable(NodeId(0), "disk full");
        assert_eq!(members.view()[0].detail, "takes no writes: disk full");
    }

    #[test]
    fn no_return_is_lost_when_nobody_listens_for_long() {
        let members = members();
        let flap = |node| {
            members.note(node, Event::Refused { why: "connection refused".to_owned() });
            members.note(node, Event::Connected { generation: 1 });
        };
        for _ in 0..100 {
            flap(NodeId(1));
        }
        flap(OTHER); // the queue is full of server 1
        let mut returns = members.take_returns();
        let mut heard = Vec::new();
        while let Ok(node) = returns.try_recv() {
            heard.push(node);
        }
        assert!(!heard.contains(&OTHER));
        members.note(NodeId(1), Event::Tick);
        members.note(OTHER, Event::Tick);
        assert_eq!(returns.try_recv(), Ok(NodeId(1)));
        assert_eq!(returns.try_recv(), Ok(OTHER));
        members.note(OTHER, Event::Tick);
        assert!(returns.try_recv().is_err());
    }
}
