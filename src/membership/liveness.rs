//! When another server counts as up. A pure state machine: (now, event) → change.
//!
//! ```text
//!                             while Up     while Suspect   while Down
//! Connected (greeted)         Up           Up              Up
//! Heard                       Up           Up*             Down: only a greeting brings it back
//! Lost (will be redialled)    Suspect      Suspect         Down
//! Refused (the redial failed) Down         Down            Down
//! silent for a while          Suspect      Suspect         Down
//! silent for longer           Down         Down            Down
//!
//! * if there is a connection
//! ```
//!
//! Silence is measured in heartbeat intervals as lately smoothed, never less than the configured one: the exponential
//! form of the phi accrual detector (Hayashibara et al., 2004; Cassandra's FailureDetector), where phi is the time
//! since the last sign of life over the mean time between two of them.
//!
//! If this server itself was frozen or starved, its own events come late, and the time it slept convicts nobody: it
//! is taken off the silence.
//!
//! Times are counted from any fixed moment. Not here: clocks, sockets, the log (`Members`, `peer`).

use std::fmt;
use std::time::Duration;

use crate::config::Config;

/// Whether a server can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Up,
    /// It has been silent for a while, or its connection broke and is being dialled again. Asked last.
    Suspect,
    /// It cannot be asked.
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Up => "up",
            State::Suspect => "suspect",
            State::Down => "down",
        })
    }
}

/// What happened on the link to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection was opened and its greeting was answered by the process of this generation.
    Connected {
        /// Rises with every start of that server.
        generation: i64,
    },
    /// Bytes came from it.
    Heard,
    /// The connection broke.
    Lost {
        /// In words, for people.
        why: String,
    },
    /// A connection could not be opened, or its greeting was refused or not answered.
    Refused {
        /// In words, for people.
        why: String,
    },
    /// Time passed. Must come every [`Settings::tick`] or so.
    Tick,
}

/// What an event changed. The default is: nothing worth a line in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// A server known before came back as another process.
    pub restarted: bool,
    /// From and to, if the state changed.
    pub turned: Option<(State, State)>,
    /// Why it is not Up, if that is news: the state changed, or it is Down for a reason not yet given.
    pub why: Option<(State, String)>,
}

impl Change {
    /// True if it turned Up.
    pub fn is_return(&self) -> bool {
        matches!(self.turned, Some((_, State::Up)))
    }

    /// What to tell people, to be read after "server 2".
    pub fn lines(&self) -> Vec<String> {
        let restarted = self.restarted.then(|| "restarted".to_owned());
        let up = self.is_return().then(|| "is Up".to_owned());
        let not_up = self.why.as_ref().map(|(state, why)| format!("is {state:?}: {why}"));
        restarted.into_iter().chain(up).chain(not_up).collect()
    }
}

/// By what the state machine judges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Time between two heartbeats; the least that a smoothed interval can be.
    pub heartbeat: Duration,
    /// Silent for this many intervals: Suspect.
    pub suspect_after_intervals: f64,
    /// Silent for this many intervals: Down.
    pub down_after_intervals: f64,
    /// Time between two [`Event::Tick`]. A longer pause between two events is the observer's own.
    pub tick: Duration,
}

impl Settings {
    /// As configured. The tick is a quarter of a heartbeat, but not above 50 ms, so that deadlines hold well enough,
    /// and not below 5 ms, so that an idle server sleeps.
    pub fn of(config: &Config) -> Settings {
        let tick_ms = config.heartbeat_ms.min(config.write_timeout_ms).min(config.read_timeout_ms) / 4;
        Settings {
            heartbeat: config.heartbeat(),
            suspect_after_intervals: config.suspect_after_intervals,
            down_after_intervals: config.down_after_intervals,
            tick: Duration::from_millis(tick_ms.clamp(5, 50)),
        }
    }
}

/// Weight of the newest interval in the smoothed one: 1/8, so that a single late answer moves it little.
const SMOOTHING: u32 = 8;

/// Reasons remembered as already logged while Down; beyond this many they are logged again.
const REASONS_MAX: usize = 8;

/// What is known of one other server.
#[derive(Clone, Debug)]
pub struct Liveness {
    settings: Settings,
    state: State,
    why: Why,
    /// There is a connection whose greeting was answered.
    connected: bool,
    generation: Option<i64>,
    /// The last sign of life, moved forward by our own pauses.
    heard_at: Duration,
    /// The smoothed time between two signs of life; never below a heartbeat.
    interval: Duration,
    /// The last event of any kind: until then we were surely awake.
    awake_at: Duration,
    /// When it last turned Down. Meaningless in other states.
    down_since: Duration,
    /// Reasons told since it was last Up.
    told: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// It is Up.
    Nothing,
    /// Silence; how long is a question of when one asks.
    Silent,
    /// In words.
    Because(String),
}

impl Liveness {
    /// A server not reached yet: Down.
    pub fn new(settings: Settings, now: Duration) -> Liveness {
        assert!(settings.suspect_after_intervals < settings.down_after_intervals);
        assert!(settings.heartbeat > Duration::ZERO);
        assert!(settings.tick > Duration::ZERO);
        Liveness {
            settings,
            state: State::Down,
            why: Why::Because("not reached yet".to_owned()),
            connected: false,
            generation: None,
            heard_at: now,
            interval: settings.heartbeat,
            awake_at: now,
            down_since: now,
            told: Vec::new(),
        }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// The generation of the process last talked to.
    pub fn generation(&self) -> Option<i64> {
        self.generation
    }

    /// Since when it is Down; `None` if it is not.
    pub fn down_since(&self) -> Option<Duration> {
        (self.state == State::Down).then_some(self.down_since)
    }

    /// Why it is not Up; empty if it is.
    pub fn detail(&self, now: Duration) -> String {
        match &self.why {
            Why::Nothing => String::new(),
            Why::Silent => format!("silent for {:.1} s", self.silence(now).as_secs_f64()),
            Why::Because(why) => why.clone(),
        }
    }

    /// Takes note of `event`.
    pub fn note(&mut self, now: Duration, event: Event) -> Change {
        self.excuse_own_pause(now);
        match event {
            Event::Connected { generation } => self.connected(now, generation),
            Event::Heard => self.heard(now),
            Event::Lost { why } if self.connected => {
                self.connected = false;
                self.turn(now, State::Suspect, Why::Because(why))
            }
            Event::Lost { .. } => Change::default(), // we hung up ourselves, and the reason is known
            Event::Refused { why } => {
                self.connected = false;
                self.turn(now, State::Down, Why::Because(why))
            }
            Event::Tick => self.tick(now),
        }
    }

    /// Two events further apart than two ticks: the observer slept, and what exceeds one tick is no one's silence.
    fn excuse_own_pause(&mut self, now: Duration) {
        let pause = now.saturating_sub(self.awake_at);
        self.awake_at = self.awake_at.max(now);
        if pause > self.settings.tick * 2 {
            self.heard_at = (self.heard_at + pause - self.settings.tick).min(now);
        }
    }

    fn connected(&mut self, now: Duration, generation: i64) -> Change {
        let restarted = self.generation.is_some_and(|known| known != generation);
        self.generation = Some(generation);
        self.connected = true;
        self.heard_at = now;
        self.interval = self.settings.heartbeat;
        Change { restarted, ..self.turn(now, State::Up, Why::Nothing) }
    }

    fn heard(&mut self, now: Duration) -> Change {
        if !self.connected {
            return Change::default();
        }
        let interval = self.silence(now).max(self.settings.heartbeat);
        let smoothed = (self.interval * (SMOOTHING - 1) + interval) / SMOOTHING;
        self.interval = smoothed.max(self.settings.heartbeat); // the division rounds down
        self.heard_at = now;
        self.turn(now, State::Up, Why::Nothing)
    }

    fn tick(&mut self, now: Duration) -> Change {
        let silence = self.silence(now);
        let longer_than = |intervals: f64| silence >= self.interval.mul_f64(intervals);
        match self.state {
            State::Up | State::Suspect if longer_than(self.settings.down_after_intervals) => {
                self.connected = false;
                self.turn(now, State::Down, Why::Silent)
            }
            State::Up if longer_than(self.settings.suspect_after_intervals) => {
                self.turn(now, State::Suspect, Why::Silent)
            }
            State::Up | State::Suspect | State::Down => Change::default(),
        }
    }

    fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard_at)
    }

    fn turn(&mut self, now: Duration, to: State, why: Why) -> Change {
        let from = std::mem::replace(&mut self.state, to);
        self.why = why;
        if to == State::Down && from != State::Down {
            self.down_since = now;
        }
        if to == State::Up {
            self.told.clear();
        }
        let turned = (from != to).then_some((from, to));
        Change { restarted: false, turned, why: self.news(now, turned.is_some()) }
    }

    /// The reason, if the state changed or the reason is new since the server was last Up.
    fn news(&mut self, now: Duration, turned: bool) -> Option<(State, String)> {
        let known = match &self.why {
            Why::Nothing => return None,
            Why::Silent => !turned,
            Why::Because(why) => self.told.contains(why),
        };
        if known && !turned {
            return None;
        }
        let detail = self.detail(now);
        if self.told.len() == REASONS_MAX {
            self.told.clear();
        }
        self.told.push(detail.clone());
        Some((self.state, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn settings() -> Settings {
        Settings::of(&Config::default())
    }

    /// Runs one script. A line is a command; the lines below it that begin with `>` are what it must say.
    ///
    /// ```text
    /// at MS EVENT     connected GENERATION, heard, lost WHY, refused WHY; or show, which says state and detail
    /// tick MS         ticks as they would come, every 50 ms, up to that time; `at` has them too
    /// sleep MS        nothing happens, not even ticks, up to that time: this server was frozen
    /// ```
    fn run(script: &str) -> String {
        let mut liveness = Liveness::new(settings(), Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut out = String::new();
        for line in script.lines().filter(|line| !line.starts_with('>')) {
            out.push_str(line);
            out.push('\n');
            let command = line.split('#').next().unwrap().trim();
            if command.is_empty() {
                continue;
            }
            for said in step(&mut liveness, &mut now, command) {
                out.push_str(&format!("> {said}\n"));
            }
        }
        out
    }

    fn step(liveness: &mut Liveness, now: &mut Duration, command: &str) -> Vec<String> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let (time, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let until = Duration::from_millis(time.parse().unwrap_or_else(|_| panic!("no time in '{command}'")));
        assert!(until >= *now, "time runs backwards in '{command}'");
        let mut said = Vec::new();
        if verb != "sleep" {
            ticks(liveness, now, until, &mut said);
        }
        *now = until;
        if verb != "at" {
            return said;
        }
        let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let change = match verb {
            "connected" => liveness.note(until, Event::Connected { generation: rest.parse().unwrap() }),
            "heard" => liveness.note(until, Event::Heard),
            "lost" => liveness.note(until, Event::Lost { why: rest.to_owned() }),
            "refused" => liveness.note(until, Event::Refused { why: rest.to_owned() }),
            "show" => {
                said.push(format!("{} '{}'", liveness.state(), liveness.detail(until)));
                return said;
            }
            _ => panic!("what is '{command}'?"),
        };
        said.extend(change.lines());
        said
    }

    fn ticks(liveness: &mut Liveness, now: &mut Duration, until: Duration, said: &mut Vec<String>) {
        let tick = settings().tick;
        let mut at = *now;
        while at + tick <= until {
            at += tick;
            let lines = liveness.note(at, Event::Tick).lines();
            said.extend(lines.into_iter().map(|line| format!("{} {line}", at.as_millis())));
        }
    }

    /// With `UPDATE_SCRIPTS=1` the scripts are rewritten with what happened; read the difference before keeping it.
    #[test]
    fn scripts_say_what_happens() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/liveness");
        let mut paths: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty());
        for path in paths {
            let script = std::fs::read_to_string(&path).unwrap();
            let happened = run(&script);
            if std::env::var_os("UPDATE_SCRIPTS").is_some() {
                std::fs::write(&path, happened).unwrap();
            } else {
                assert_eq!(happened, script, "{}", path.display());
            }
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0i64..3).prop_map(|generation| Event::Connected { generation }),
            Just(Event::Heard),
            "[ab]".prop_map(|why| Event::Lost { why }),
            "[ab]".prop_map(|why| Event::Refused { why }),
            Just(Event::Tick),
            Just(Event::Tick),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_the_answers_agree(events in prop::collection::vec((0u64..3_000, any_event()), 1..60)) {
            let mut liveness = Liveness::new(settings(), Duration::ZERO);
            let mut now = Duration::ZERO;
            for (later_ms, event) in events {
                now += Duration::from_millis(later_ms);
                let before = liveness.state();
                let change = liveness.note(now, event.clone());
                let after = liveness.state();
                prop_assert_eq!(change.turned, (before != after).then_some((before, after)));
                prop_assert_eq!(liveness.down_since().is_some(), after == State::Down);
                prop_assert_eq!(liveness.detail(now).is_empty(), after == State::Up);
                match event {
                    Event::Connected { .. } => prop_assert_eq!(after, State::Up),
                    Event::Refused { .. } => prop_assert_eq!(after, State::Down),
                    // Only a greeting brings back what is Down.
                    _ => prop_assert!(before != State::Down || after == State::Down),
                }
            }
        }

        #[test]
        fn a_server_that_answers_every_heartbeat_stays_up_and_a_silent_one_is_down_within_two_seconds(
            jitters_ms in prop::collection::vec(0u64..40, 1..50)
        ) {
            let mut liveness = Liveness::new(settings(), Duration::ZERO);
            liveness.note(Duration::ZERO, Event::Connected { generation: 1 });
            let mut now_ms = 0;
            for jitter_ms in jitters_ms {
                let heard_ms = now_ms + 200 + jitter_ms;
                while now_ms + 50 < heard_ms {
                    now_ms += 50;
                    prop_assert_eq!(liveness.note(Duration::from_millis(now_ms), Event::Tick), Change::default());
                }
                now_ms = heard_ms;
                prop_assert_eq!(liveness.note(Duration::from_millis(now_ms), Event::Heard), Change::default());
            }
            for _ in 0..40 {
                now_ms += 50;
                liveness.note(Duration::from_millis(now_ms), Event::Tick);
            }
            prop_assert_eq!(liveness.state(), State::Down);
        }
    }
}
