//! How the writer and the flusher are driven: the same turns, by a thread of their own or by a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::courtesy::Courtesy;

/// How the writer and the flusher are driven.
#[derive(Clone)]
pub enum Drive {
    /// Threads of their own, which block in fsync. For life.
    Thread,
    /// Tasks of the current tokio runtime, which do their work inline. For simulations: the runtime alone decides
    /// what happens when. Before each piece of work a task sleeps for what is given here: a disk takes its time.
    Task(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl Drive {
    /// Tasks that take no time.
    pub fn task() -> Drive {
        Drive::Task(Arc::new(|| Duration::ZERO))
    }
}

/// What a turn of work leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more to do.
    Again,
    /// Nothing to do until the bell rings, or this much time has passed.
    Wait(Option<Duration>),
    /// No turn follows.
    Ended,
}

/// Work done in turns.
pub(super) trait Worker: Send + 'static {
    /// Does one piece of work. Never waits for anything but the disk.
    fn turn(&mut self) -> Turn;

    /// True if other threads that are ready to run are likely to have more work for it: they go first after a wait.
    fn gives_way(&self) -> bool {
        false
    }
}

/// Wakes a worker that waits. Ringing while it works makes it look again.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<BellState>,
    thread: Condvar,
    task: Notify,
}

#[derive(Default)]
struct BellState {
    rung: bool,
    /// Waking a thread costs a system call, even one that does not sleep.
    asleep: bool,
}

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        let mut state = self.state.lock().expect("no panic while it is held");
        if state.rung {
            return;
        }
        state.rung = true;
        if state.asleep {
            self.thread.notify_one();
        }
        drop(state);
        self.task.notify_one();
    }

    fn wait(&self, timeout: Option<Duration>) {
        let mut state = self.state.lock().expect("no panic while it is held");
        state.asleep = true;
        state = match timeout {
            None => self.thread.wait_while(state, |state| !state.rung).expect("no panic while it is held"),
            Some(timeout) => {
                let waited = self.thread.wait_timeout_while(state, timeout, |state| !state.rung);
                waited.expect("no panic while it is held").0
            }
        };
        *state = BellState::default();
    }

    async fn wait_in_task(&self, timeout: Option<Duration>) {
        match timeout {
            None => self.task.notified().await,
            Some(timeout) => {
                let _ = tokio::time::timeout(timeout, self.task.notified()).await; // either is a reason to look
            }
        }
        self.state.lock().expect("no panic while it is held").rung = false;
    }
}

/// Tells a worker that something was queued, but not each time: once all tasks that are ready have had their turn, so
/// that what arrived together is committed together. Without this the writer would take the first of many requests, and
/// sync a batch of one while the others are still being read.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Something was queued since the worker was last notified.
    any: AtomicBool,
    noted: Notify,
}

impl Arrivals {
    /// Something was queued.
    pub fn note(&self) {
        if !self.any.swap(true, Ordering::AcqRel) {
            self.noted.notify_one();
        }
    }

    /// Calls `tell` a moment after each arrival. Never ends by itself.
    pub async fn tell_of_all(self: Arc<Self>, tell: impl Fn()) {
        loop {
            self.noted.notified().await;
            tokio::task::yield_now().await; // to the end of the line, behind the sockets that are ready
            self.any.store(false, Ordering::Release);
            tell();
        }
    }
}

/// A worker under way.
pub(super) struct Driven {
    thread: Option<thread::JoinHandle<()>>,
    /// Closed when the worker is gone.
    gone: Option<oneshot::Receiver<()>>,
}

impl Driven {
    /// Waits until the worker has ended by itself.
    pub async fn ended(&mut self) {
        if let Some(gone) = self.gone.take() {
            let _ = gone.await; // an error is the sender dropped: that is the sign
        }
        self.join();
    }

    /// Waits for the thread, if there is one.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic was reported by the thread itself
        }
    }
}

/// Starts a worker.
pub(super) fn start(
    name: &str,
    mut worker: impl Worker,
    bell: Arc<Bell>,
    drive: &Drive,
) -> std::io::Result<Driven> {
    let (here, gone) = oneshot::channel::<()>();
    let thread = match drive.clone() {
        Drive::Thread => Some(thread::Builder::new().name(name.to_owned()).spawn(move || {
            turns(&mut worker, &bell);
            drop(worker);
            drop(here);
        })?),
        Drive::Task(pace) => {
            tokio::spawn(async move {
                turns_in_task(&mut worker, &bell, &*pace).await;
                drop(worker);
                drop(here);
            });
            None
        }
    };
    Ok(Driven { thread, gone: Some(gone) })
}

fn turns(worker: &mut impl Worker, bell: &Bell) {
    let mut courtesy = Courtesy::default();
    loop {
        match worker.turn() {
            Turn::Again => {}
            Turn::Wait(timeout) => {
                bell.wait(timeout);
                if worker.gives_way() {
                    courtesy.give_way();
                }
            }
            Turn::Ended => return,
        }
    }
}

async fn turns_in_task(worker: &mut impl Worker, bell: &Bell, pace: &(dyn Fn() -> Duration + Send + Sync)) {
    loop {
        let pause = pace();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        match worker.turn() {
            Turn::Again => tokio::task::yield_now().await,
            Turn::Wait(timeout) => bell.wait_in_task(timeout).await,
            Turn::Ended => return,
        }
    }
}
