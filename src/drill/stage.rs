//! Where a drill happens: the servers, the clients' log, the story, and the clock by which the plan is carried out.
//!
//! Not here: what the plan is (`faults`, `scenario`), what the run came to (`settle`, `report`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::DrillError;
use super::cluster::{Change, Cluster};
use super::faults::{Fault, Shape, Strike};
use super::load::{self, Log};
use super::scenario::Scenario;
use super::story::Story;
use super::timeline::{Kind, Mark};
use crate::answer::NodeId;
use crate::check::{Asked, Told};
use crate::client::{Client, text};
use crate::coordinator::Level;

/// How often the servers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long somebody may wait for a server to see another one go or come. Only decides between slow and never.
const SEEN_MAX: Duration = Duration::from_secs(20);

/// How long a server of others may take to describe itself before it counts as gone.
const DESCRIBE_MAX: Duration = Duration::from_millis(500);

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// The client of a scenario's own operations, in the history.
pub const SCRIPT_CLIENT: u32 = 1_000_000;

/// Everything a drill works with.
pub struct Stage {
    /// The servers.
    pub cluster: Cluster,
    /// A client of them all.
    pub client: Client,
    /// What clients were told.
    pub log: Arc<Log>,
    /// What a person is told.
    pub story: Story,
    /// What was wrong with whom.
    pub marks: Vec<Mark>,
    /// What a scenario has measured on its way.
    pub notes: BTreeMap<&'static str, i64>,
    /// Operations that the last status line has counted.
    counted: usize,
    /// Servers of others that went or came, if they are watched.
    watched: Option<mpsc::Receiver<(usize, bool)>>,
}

enum Step {
    Begin(usize),
    End(usize),
    /// What the scenario does in the middle of its fault.
    Act,
    Finish,
}

impl Stage {
    /// A stage with these servers, which run.
    pub fn new(cluster: Cluster, story: Story) -> Stage {
        let client = Client::new(cluster.nodes().clone(), load::client_options());
        let (marks, notes) = (Vec::new(), BTreeMap::new());
        Stage { cluster, client, log: Log::start(), story, marks, notes, counted: 0, watched: None }
    }

    /// Carries out a plan until `until_ms`, telling what happens; every fault has then ended.
    pub async fn carry_out(
        &mut self,
        plan: &[Strike],
        until_ms: u64,
        scenario: Option<&Scenario>,
    ) -> Result<(), DrillError> {
        let mut status_ms = 1_000;
        for (at_ms, step) in steps(plan, until_ms, scenario) {
            loop {
                let now = Instant::now();
                if now >= self.log.at(status_ms) {
                    self.status();
                    status_ms += 1_000;
                }
                self.look()?;
                if now >= self.log.at(at_ms) {
                    break;
                }
                sleep_until(self.log.at(at_ms).min(now + LOOK_EVERY)).await;
            }
            match (step, scenario) {
                (Step::Begin(index), _) => self.begin(&plan[index].fault)?,
                (Step::End(index), _) => self.end(&plan[index].fault)?,
                (Step::Act, Some(scenario)) => scenario.act_during(self).await?,
                (Step::Act, None) | (Step::Finish, _) => {}
            }
        }
        Ok(())
    }

    /// From now on servers of others are asked all the time whether they are there.
    pub fn watch(&mut self) {
        let (tell, told) = mpsc::channel(64);
        for (id, node) in self.cluster.nodes().ids().enumerate() {
            let (client, tell) = (self.client.pin(node), tell.clone());
            tokio::spawn(async move {
                let mut answered = true;
                loop {
                    let answers = tokio::time::timeout(DESCRIBE_MAX, client.describe()).await;
                    let answers = answers.is_ok_and(|answer| answer.is_ok());
                    if answers != answered && tell.send((id, answers)).await.is_err() {
                        return;
                    }
                    answered = answers;
                    sleep(ASK_EVERY).await;
                }
            });
        }
        self.watched = Some(told);
    }

    fn note_answer(&mut self, id: usize, answers: bool) {
        let known_down = self.is_marked(id, Kind::Down);
        if answers && known_down {
            self.close(id, Kind::Down, "no answer");
            self.event(&format!("server {id} answers again"));
        } else if !answers && !known_down && !self.is_marked(id, Kind::Frozen) {
            self.open(id, Kind::Down, "no answer");
            self.event(&format!("server {id} does not answer"));
        }
    }

    fn status(&mut self) {
        let (now_us, first) = (self.log.now_us(), self.counted);
        let servers = self.cluster.sketch();
        self.log.since(first, |operations| self.story.status(now_us, operations, &servers));
        self.counted = self.log.len();
    }

    /// Looks at servers that start or stop, and tells what has become of them.
    pub fn look(&mut self) -> Result<(), DrillError> {
        while let Some(Ok((id, answers))) = self.watched.as_mut().map(mpsc::Receiver::try_recv) {
            self.note_answer(id, answers);
        }
        for change in self.cluster.look()? {
            self.note(change);
        }
        Ok(())
    }

    /// Returns when every server answers.
    pub async fn all_ready(&mut self) -> Result<(), DrillError> {
        for change in self.cluster.all_ready().await? {
            self.note(change);
        }
        Ok(())
    }

    fn note(&mut self, change: Change) {
        match change {
            Change::Stopped { id } => self.event(&format!("server {id} has stopped by itself")),
            Change::Ready { id, took, replayed } => {
                self.close(id, Kind::Down, "");
                *self.notes.entry("returns").or_default() += 1;
                let took = took.as_secs_f64();
                self.event(&format!(
                    "server {id} is back {took:.2} s after its start: {replayed} of its log replayed"
                ));
            }
        }
    }

    /// Tells an event that happens now.
    pub fn event(&mut self, text: &str) {
        self.story.event(self.log.now_us(), text);
    }

    // ------------------------------------------------------------------------------------------ faults

    fn begin(&mut self, fault: &Fault) -> Result<(), DrillError> {
        match fault {
            Fault::Kill(ids) => {
                self.cluster.kill(ids);
                self.open_each(ids, Kind::Down, "");
                self.event(&format!("kill -9 {}", self.name(ids)));
            }
            Fault::Restart(id) => {
                self.cluster.restart(*id);
                self.open(*id, Kind::Down, "");
                self.event(&format!("tell server {id} to stop, to be started again"));
            }
            Fault::Freeze(ids) => {
                let could: Vec<usize> = ids.iter().copied().filter(|id| self.cluster.freeze(*id)).collect();
                self.open_each(&could, Kind::Frozen, "");
                self.event(&format!("freeze {}", self.name(&could)));
            }
            Fault::Cut { links, shape } => {
                for (from, to) in links {
                    self.cluster.cut(*from, *to)?;
                }
                self.mark_cuts(links, Stage::open);
                if let Some(text) = cut_in_words(links, *shape) {
                    self.event(&text);
                }
            }
            Fault::Skew(offsets) => {
                let ids: Vec<usize> = offsets.iter().map(|(id, _)| *id).collect();
                self.restart_with_clocks(offsets)?;
                for (id, offset_ms) in offsets {
                    self.open(*id, Kind::Skew, &offset_in_words(*offset_ms));
                }
                let clocks: Vec<String> = offsets
                    .iter()
                    .map(|(id, ms)| format!("server {id}'s clock is {} now", offset_in_words(*ms)))
                    .collect();
                self.event(&format!("kill and start {}: {}", self.name(&ids), clocks.join(", ")));
            }
            Fault::DiskFull(id) => {
                self.cluster.fill_disk();
                self.open(*id, Kind::DiskFull, "");
                self.event(&format!("fill the disk of server {id}"));
            }
        }
        Ok(())
    }

    fn end(&mut self, fault: &Fault) -> Result<(), DrillError> {
        match fault {
            Fault::Kill(ids) => {
                self.cluster.start(ids)?;
                self.event(&format!("start {} again", self.name(ids)));
            }
            Fault::Restart(_) => {}
            Fault::Freeze(ids) => {
                for id in ids {
                    self.cluster.thaw(*id);
                    self.close(*id, Kind::Frozen, "");
                }
                self.event(&format!("let {} go on", self.name(ids)));
            }
            Fault::Cut { links, shape } => {
                for (from, to) in links {
                    self.cluster.mend(*from, *to)?;
                }
                self.mark_cuts(links, Stage::close);
                if !matches!(shape, Shape::Flapping { .. }) {
                    self.event("what was cut is whole again");
                }
            }
            Fault::Skew(offsets) => {
                let true_clocks: Vec<(usize, i64)> = offsets.iter().map(|(id, _)| (*id, 0)).collect();
                for (id, offset_ms) in offsets {
                    self.close(*id, Kind::Skew, &offset_in_words(*offset_ms));
                }
                self.restart_with_clocks(&true_clocks)?;
                let ids: Vec<usize> = offsets.iter().map(|(id, _)| *id).collect();
                self.event(&format!("kill and start {}: true clocks again", self.name(&ids)));
            }
            Fault::DiskFull(id) => {
                self.cluster.free_disk();
                self.close(*id, Kind::DiskFull, "");
                self.event(&format!("there is room on the disk of server {id} again"));
            }
        }
        Ok(())
    }

    fn restart_with_clocks(&mut self, offsets: &[(usize, i64)]) -> Result<(), DrillError> {
        let ids: Vec<usize> = offsets.iter().map(|(id, _)| *id).collect();
        self.cluster.kill(&ids);
        self.open_each(&ids, Kind::Down, "");
        for (id, offset_ms) in offsets {
            self.cluster.set_clock(*id, *offset_ms);
        }
        self.cluster.start(&ids)
    }

    fn mark_cuts(&mut self, links: &[(usize, usize)], mark: impl Fn(&mut Stage, usize, Kind, &str)) {
        let mut unheard: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (from, to) in links {
            unheard.entry(*to).or_default().push(from.to_string());
        }
        for (id, mut from) in unheard {
            from.sort();
            mark(self, id, Kind::Cut, &format!("hears nothing from {}", from.join(", ")));
        }
    }

    fn open_each(&mut self, ids: &[usize], kind: Kind, text: &str) {
        for id in ids {
            self.open(*id, kind, text);
        }
    }

    /// Something is wrong with a server from now on; twice at once is once.
    fn open(&mut self, server: usize, kind: Kind, text: &str) {
        if kind == Kind::Down {
            self.close(server, Kind::Frozen, ""); // a process that is gone is not frozen
            if self.is_marked(server, Kind::Down) {
                return;
            }
        }
        let from_us = self.log.now_us();
        self.marks.push(Mark { server, kind, from_us, until_us: None, text: text.to_owned() });
    }

    fn close(&mut self, server: usize, kind: Kind, text: &str) {
        let now_us = self.log.now_us();
        let open = |mark: &&mut Mark| {
            mark.server == server && mark.kind == kind && mark.text == text && mark.until_us.is_none()
        };
        if let Some(mark) = self.marks.iter_mut().find(open) {
            mark.until_us = Some(now_us);
        }
    }

    fn is_marked(&self, server: usize, kind: Kind) -> bool {
        self.marks.iter().any(|mark| mark.server == server && mark.kind == kind && mark.until_us.is_none())
    }

    fn name(&self, ids: &[usize]) -> String {
        match ids {
            [] => "nobody".to_owned(),
            [id] => format!("server {id}"),
            all if all.len() == self.cluster.len() => format!("all {} servers at once", all.len()),
            some => {
                let mut some = some.to_vec();
                some.sort_unstable();
                format!(
                    "servers {} at once",
                    some.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
                )
            }
        }
    }

    // ------------------------------------------------------------------------------------------ a scenario's own steps

    /// Asks through one server, writes it into the history, and tells what came of it.
    pub async fn ask(&mut self, through: usize, key: u8, level: Level, asked: Asked) -> Told {
        let client = self.client.pin(NodeId(through as u32));
        let shown = match &asked {
            Asked::Put(value) => format!("put {key} {}", text::value(value)),
            Asked::Remove => format!("del {key}"),
            Asked::Get => format!("get {key}"),
        };
        let key = Bytes::from(vec![key]);
        let told = load::record(&self.log, &client, SCRIPT_CLIENT, &key, level, asked).await;
        let came = match &told {
            Told::Written { .. } => "SUCCESS".to_owned(),
            Told::Found { value: Some(value), .. } => text::value(value),
            Told::Found { value: None, .. } => "not found".to_owned(),
            Told::Refused(why) | Told::Unknown(why) => why.clone(),
        };
        self.event(&format!("through server {through}: {shown} {}  →  {came}", level.name().to_lowercase()));
        told
    }

    /// Waits until server `observer` sees `other` in this state ("up", "down").
    pub async fn wait_seen(&self, observer: usize, other: usize, state: &str) -> Result<(), DrillError> {
        let deadline = Instant::now() + SEEN_MAX;
        loop {
            let described = self.client.pin(NodeId(observer as u32)).describe().await;
            let members = described.ok().and_then(|described| described.members).unwrap_or_default();
            let seen = members.into_iter().find(|member| member.id == Some(other as i32));
            if seen.is_some_and(|member| member.state.as_deref() == Some(state)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(DrillError::NotSeen { observer, other, state: state.to_owned() });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Hints that the servers which answer keep, for whomever.
    pub async fn hints(&self) -> i64 {
        let mut hints = 0;
        for node in self.cluster.nodes().ids() {
            let described =
                tokio::time::timeout(DESCRIBE_MAX, self.client.pin(node).describe()).await.map(Result::ok);
            let members =
                described.ok().flatten().and_then(|described| described.members).unwrap_or_default();
            hints += members.iter().filter_map(|member| member.hints).sum::<i64>();
        }
        hints
    }
}

/// Beginnings and ends in the order of time.
fn steps(plan: &[Strike], until_ms: u64, scenario: Option<&Scenario>) -> Vec<(u64, Step)> {
    let mut steps: Vec<(u64, Step)> = Vec::new();
    for (index, strike) in plan.iter().enumerate() {
        steps.push((strike.from_ms, Step::Begin(index)));
        steps.push((strike.until_ms, Step::End(index)));
    }
    if let (Some(_), Some(first)) = (scenario, plan.first()) {
        steps.push((first.from_ms + (first.until_ms - first.from_ms) * 6 / 10, Step::Act));
    }
    steps.push((until_ms, Step::Finish));
    steps.sort_by_key(|(at_ms, _)| *at_ms);
    steps
}

/// One side of each cut link, in words; `None`: said before.
fn cut_in_words(links: &[(usize, usize)], shape: Shape) -> Option<String> {
    let (from, to) = *links.first()?;
    Some(match shape {
        Shape::OneWay => format!("cut the link {from} → {to}: server {to} hears nothing from server {from}"),
        Shape::BothWays => format!("cut the link {from} ↔ {to}"),
        Shape::Alone => format!("cut server {from} off from all others"),
        Shape::Halves => {
            let side = |of: usize| {
                let others: Vec<usize> = links.iter().filter(|(a, _)| *a == of).map(|(_, b)| *b).collect();
                others.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
            };
            format!("split the cluster: {} │ {}", side(to), side(from))
        }
        Shape::Flapping { first: true } => format!("the link {from} ↔ {to} fails again and again"),
        Shape::Flapping { first: false } => return None,
    })
}

fn offset_in_words(offset_ms: i64) -> String {
    let direction = if offset_ms < 0 { "slow" } else { "fast" };
    let amount = match offset_ms.unsigned_abs() {
        ms if ms >= 3_600_000 => format!("{} h", ms / 3_600_000),
        ms if ms >= 60_000 => format!("{} min", ms / 60_000),
        ms => format!("{} s", ms as f64 / 1e3),
    };
    format!("{amount} {direction}")
}

#[cfg(test)]
mod tests {
    use super::super::faults::both_ways;
    use super::*;

    #[test]
    fn faults_are_told_in_words() {
        let halves = both_ways(&[0, 1], &[2, 3]);
        assert_eq!(cut_in_words(&halves, Shape::Halves).unwrap(), "split the cluster: 0, 1 │ 2, 3");
        assert_eq!(
            cut_in_words(&[(1, 2)], Shape::OneWay).unwrap(),
            "cut the link 1 → 2: server 2 hears nothing from server 1"
        );
        assert_eq!(offset_in_words(-3_600_000), "1 h slow");
        assert_eq!(offset_in_words(500), "0.5 s fast");
    }

    #[test]
    fn steps_come_in_the_order_of_time() {
        let strike = |from_ms, until_ms| Strike { from_ms, until_ms, fault: Fault::Restart(0) };
        let steps = steps(&[strike(10, 30), strike(20, 25)], 40, None);
        assert_eq!(steps.iter().map(|(at_ms, _)| *at_ms).collect::<Vec<_>>(), [10, 20, 25, 30, 40]);
    }
}
