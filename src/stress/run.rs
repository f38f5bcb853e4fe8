//! One phase of a load: threads, connections, callers, and what they saw second by second.
//!
//! ```text
//!   thread ─┬─ caller: next due? ─► draw kind and key ─► operate ─► window    (as many as outstanding × connections)
//!           └─ each second: the window is taken away ─► collector: merged over threads ─► progress, series, total
//! ```
//!
//! A thread's callers share its window, its generator of keys and its buffers without locks: they are tasks of one
//! single-threaded runtime. Threads meet only in the pace, which is a few atomics, and in the collector, once a second.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::keys::{Chooser, KeySpace};
use super::options::{End, Fill, Plan};
use super::pace::{Next, Pace};
use super::tally::Window;
use super::target::{Target, Values};
use super::workload::{Kind, Mix};
use crate::answer::NodeId;
use crate::client::{Client, ClientOptions};
use crate::nodes::Nodes;

/// What one phase does.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Kinds of operations.
    pub mix: Mix,
    /// Which keys.
    pub chooser: Chooser,
    /// The same keys, for inserts.
    pub space: Arc<KeySpace>,
    /// When its operations are due and when it ends.
    pub pace: Arc<Pace>,
}

impl Phase {
    /// The plan's workload. Takes a moment to prepare if there are many keys.
    pub fn workload(plan: &Plan) -> impl FnOnce() -> Phase {
        let space = KeySpace::new(plan.keys);
        let chooser = Chooser::new(space.clone(), plan.order);
        let (mix, rate, warm_up, end) = (plan.mix, plan.rate, plan.warm_up, plan.end);
        let callers = plan.callers() as usize;
        move || Phase { mix, chooser, space, pace: Pace::new(rate, warm_up, end, callers) }
    }

    /// Every key once, in order. The plan's rate is its workload's, or the fill's if there is nothing else.
    pub fn fill(plan: &Plan) -> Phase {
        let space = KeySpace::new(plan.keys);
        let chooser = Chooser::new(space.clone(), super::keys::Order::Sequential);
        let rate = if plan.fill == Fill::Only { plan.rate } else { None };
        let pace = Pace::new(rate, Duration::ZERO, End::Operations(plan.keys), plan.callers() as usize);
        Phase { mix: Mix::new(0, 100, 0, 0), chooser, space, pace }
    }
}

/// A second, or what there was of it.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// Counted from the start of the phase, warm-up included.
    pub second: u64,
    /// How long it was; less than a second at the end.
    pub length: Duration,
    /// What happened.
    pub window: Window,
}

/// What a thread tells the collector.
struct Told {
    thread: usize,
    stretch: Stretch,
    last: bool,
}

/// Runs a phase to its end, shows each second to `each`, and returns when the last operation was answered.
pub async fn run(
    plan: &Plan,
    phase: &Phase,
    nodes: &Nodes,
    mut each: impl FnMut(Stretch),
) -> io::Result<Instant> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut threads = Vec::new();
    for number in 0..plan.threads as usize {
        let driver = Driver {
            number,
            plan: plan.clone(),
            phase: phase.clone(),
            nodes: nodes.clone(),
            tell: tell.clone(),
        };
        let thread = thread::Builder::new().name(format!("load {number}"));
        threads.push(thread.spawn(move || driver.run())?);
    }
    drop(tell);
    phase.pace.start_releasing()?;
    let mut collector = Collector::new(threads.len());
    while let Some(told) = told.recv().await {
        collector.take(told, &mut each);
    }
    collector.end(&mut each);
    let mut end = phase.pace.measure_from();
    for thread in threads {
        end = end.max(thread.join().map_err(|_| io::Error::other("a thread of the load failed"))??);
    }
    Ok(end)
}

/// Merges what the threads tell, and passes each second on once all have told it.
struct Collector {
    /// For each thread the second it tells next; the largest number once it has ended.
    next: Vec<u64>,
    waiting: BTreeMap<u64, Stretch>,
}

impl Collector {
    fn new(threads: usize) -> Collector {
        Collector { next: vec![0; threads], waiting: BTreeMap::new() }
    }

    fn take(&mut self, told: Told, each: &mut impl FnMut(Stretch)) {
        let second = told.stretch.second;
        self.next[told.thread] = if told.last { u64::MAX } else { second + 1 };
        let known = self.waiting.entry(second).or_insert_with(|| Stretch { second, ..Stretch::default() });
        known.length = known.length.max(told.stretch.length);
        known.window.add(&told.stretch.window);
        let complete = self.next.iter().copied().min().unwrap_or(u64::MAX);
        if complete == u64::MAX {
            return; // the rest is passed on at the end
        }
        let later = self.waiting.split_off(&complete);
        std::mem::replace(&mut self.waiting, later).into_values().for_each(each);
    }

    fn end(self, each: &mut impl FnMut(Stretch)) {
        self.waiting.into_values().for_each(each);
    }
}

/// One thread of the tool.
struct Driver {
    number: usize,
    plan: Plan,
    phase: Phase,
    nodes: Nodes,
    tell: mpsc::UnboundedSender<Told>,
}

/// What the callers of one thread share.
struct Shared {
    phase: Phase,
    chooser: RefCell<Chooser>,
    window: RefCell<Window>,
}

impl Driver {
    /// Returns when its last operation was answered.
    fn run(self) -> io::Result<Instant> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        Ok(local.block_on(&runtime, self.drive()))
    }

    async fn drive(self) -> Instant {
        let shared = Rc::new(Shared {
            chooser: RefCell::new(self.phase.chooser.clone()),
            window: RefCell::default(),
            phase: self.phase.clone(),
        });
        let callers: Vec<_> = self
            .targets()
            .into_iter()
            .map(|(number, target)| {
                let random = fastrand::Rng::with_seed(self.plan.seed.wrapping_add(number));
                tokio::task::spawn_local(call(shared.clone(), target, random))
            })
            .collect();
        let start = self.phase.pace.start();
        let mut ticks = start;
        let mut second = 0;
        let mut all = std::pin::pin!(futures_util::future::join_all(callers));
        let ended = loop {
            let next = start + Duration::from_secs(second + 1);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next) => {
                    ticks = Instant::now();
                    self.tell(second, Duration::from_secs(1), &shared, false);
                    second += 1;
                }
                ended = &mut all => break ended,
            }
        };
        let last = ended.into_iter().flatten().max().unwrap_or(ticks);
        self.tell(second, last.saturating_duration_since(start + Duration::from_secs(second)), &shared, true);
        last
    }

    fn tell(&self, second: u64, length: Duration, shared: &Shared, last: bool) {
        let stretch = Stretch { second, length, window: shared.window.take() };
        let _ = self.tell.send(Told { thread: self.number, stretch, last }); // the collector waits for all
    }

    /// The callers of every connection that falls to this thread, numbered over all threads.
    fn targets(&self) -> Vec<(u64, Target)> {
        let plan = &self.plan;
        let mut random = fastrand::Rng::with_seed(plan.seed ^ self.number as u64);
        let values = Rc::new(Values::new(plan.value_bytes, &mut random));
        let own = |connection: u32| connection as usize % plan.threads as usize == self.number;
        let mut targets = Vec::new();
        for connection in (0..plan.connections).filter(|&connection| own(connection)) {
            let node = NodeId(connection % self.nodes.len() as u32);
            let options = ClientOptions::default().with_call_timeout(plan.timeout);
            let client = Client::new(self.nodes.clone(), options).pin(node);
            for caller in 0..plan.outstanding {
                let number = u64::from(connection) * u64::from(plan.outstanding) + u64::from(caller);
                let target = if plan.classic {
                    let address = self.nodes.address(node).expect("connections go to known servers");
                    Target::classic(address.clone(), plan, values.clone())
                } else {
                    Target::own(client.clone(), plan, values.clone())
                };
                targets.push((number, target));
            }
        }
        targets
    }
}

/// One caller: one operation after the other until the end. Returns when its last one was answered.
async fn call(shared: Rc<Shared>, mut target: Target, mut random: fastrand::Rng) -> Instant {
    let Phase { mix, space, pace, .. } = &shared.phase;
    let mut now = Instant::now();
    loop {
        let (due, counted) = match pace.next(now).await {
            Next::Begin { due, counted } => (due, counted),
            Next::NeverBegun { waited } => {
                shared.window.borrow_mut().never_began(waited);
                continue;
            }
            Next::Done => return now,
        };
        let kind = mix.draw(&mut random);
        let key = match kind {
            Kind::Insert => space.insert(),
            _ => shared.chooser.borrow_mut().draw(&mut random),
        };
        let outcome = target.operate(kind, key, &mut random).await;
        now = Instant::now();
        if kind == Kind::Insert {
            space.inserted(key);
        }
        let mut window = shared.window.borrow_mut();
        match outcome {
            _ if !counted => window.uncounted += 1,
            Ok(found) => window.succeeded(kind, now.saturating_duration_since(due), found),
            Err(failed) => window.failed(kind, failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_passed_on_when_every_thread_has_told_it() {
        let told = |thread, second, last| {
            let mut window = Window::default();
            window.succeeded(Kind::Read, Duration::from_millis(1), true);
            let length = Duration::from_millis(1_000 / (1 + u64::from(last)));
            Told { thread, stretch: Stretch { second, length, window }, last }
        };
        let mut passed = Vec::new();
        let mut each = |stretch: Stretch| passed.push((stretch.second, stretch.window.operations()));
        let mut collector = Collector::new(2);
        collector.take(told(0, 0, false), &mut each);
        collector.take(told(0, 1, false), &mut each);
        collector.take(told(1, 0, false), &mut each);
        collector.take(told(1, 1, true), &mut each);
        collector.take(told(0, 2, true), &mut each);
        collector.end(&mut each);
        assert_eq!(passed, [(0, 2), (1, 2), (2, 1)]);
    }
}
