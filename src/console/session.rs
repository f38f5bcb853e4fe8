//! One conversation with the cluster: a line in, its answer out, and the server at the other end.
//!
//! Answers go to one stream and remarks about the conversation (connected, went away, wrong use) to another, so that a
//! pipe carries answers only.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::command::{Command, help, parse};
use crate::answer::NodeId;
use crate::client::text::{self, Key};
use crate::client::{Attempt, Client, ClientError, RingView};
use crate::coordinator::level::quorum;
use crate::thrift::chord::{
    Description, GetRequest, GetResult, Member, PutRequest, RangeState, RemoveRequest, WriteResult,
};
use crate::thrift::method::Refusal;

/// How a command, or a whole conversation, came out; the worst counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Came {
    /// As asked.
    #[default]
    Done = 0,
    /// The cluster said no, or said nothing.
    Refused = 1,
    /// The line was wrong; nothing was asked.
    WrongUse = 2,
}

/// What follows a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another line.
    Line,
    /// The end of the conversation.
    Leave,
}

/// Where a conversation is written.
pub struct Screen<'a> {
    /// Answers, and nothing else.
    pub answers: &'a mut dyn Write,
    /// Everything else.
    pub remarks: &'a mut dyn Write,
    /// One JSON object per answer, refusals included.
    pub json: bool,
    /// Say which server answers, even if it is the one that was asked for.
    pub greet: bool,
}

/// A conversation with the cluster through one of its servers.
pub struct Session<'a> {
    client: Client,
    current: NodeId,
    trace: bool,
    worst: Came,
    screen: Screen<'a>,
}

impl<'a> Session<'a> {
    /// Finds a server: the preferred one, or else the first that answers, and says which it is. `Err`: none answers,
    /// which has been said.
    pub async fn connect(
        client: Client,
        preferred: Option<NodeId>,
        screen: Screen<'a>,
    ) -> io::Result<Option<Session<'a>>> {
        let current = preferred.unwrap_or(NodeId(0));
        let mut session = Session { client, current, trace: false, worst: Came::Done, screen };
        match session.find(async |client: Client| client.describe().await).await {
            (Ok(_), lost) => {
                let instead = match lost.first() {
                    Some(attempt) if preferred.is_some() => format!("{attempt}; "),
                    _ => String::new(),
                };
                if session.screen.greet || !instead.is_empty() {
                    let (current, address) = (session.current, session.address());
                    session.remark(&format!("{instead}connected to server {current} at {address}"))?;
                }
                Ok(Some(session))
            }
            (Err(error), _) => {
                session.refused("connect", None, &error, false)?;
                Ok(None)
            }
        }
    }

    /// The server at the other end.
    pub fn current(&self) -> NodeId {
        self.current
    }

    /// How the worst line so far came out, even if its answer could not be shown.
    pub fn worst(&self) -> Came {
        self.worst
    }

    /// Carries out one line.
    pub async fn line(&mut self, line: &str) -> io::Result<Next> {
        let command = match parse(line) {
            Ok(command) => command,
            Err(why) => {
                self.wrong_use(&why)?;
                return Ok(Next::Line);
            }
        };
        match command {
            Command::Nothing => {}
            Command::Exit => return Ok(Next::Leave),
            Command::Help => self.answer(&help(), json!({"command": "help", "text": help()}))?,
            Command::Trace(on) => self.set_trace(on)?,
            Command::Put { key, value, level, ttl_s, stamp } => {
                let trace = self.trace.then_some(true);
                let request = PutRequest::new(key.bytes.clone(), value, level, ttl_s, stamp, trace);
                let result = self.ask(async |client: Client| client.put(&request).await).await?;
                self.written("put", &key, stamp, result)?
            }
            Command::Delete { key, level, stamp } => {
                let trace = self.trace.then_some(true);
                let request = RemoveRequest::new(key.bytes.clone(), level, stamp, trace);
                let result = self.ask(async |client: Client| client.remove(&request).await).await?;
                self.written("del", &key, stamp, result)?
            }
            Command::Get { key, level } => {
                let request = GetRequest::new(key.bytes.clone(), level, self.trace.then_some(true));
                let result = self.ask(async |client: Client| client.get(&request).await).await?;
                self.got(&key, result)?
            }
            Command::Status => match self.ask(async |client: Client| client.describe().await).await? {
                Ok(description) => self.answer(&status(&description), status_json(&description))?,
                Err(error) => self.refused("status", None, &error, false)?,
            },
            Command::Ring { key } => match self.ask(async |client: Client| client.describe().await).await? {
                Ok(description) => {
                    self.answer(&ring_of(&key, &description), ring_json(&key, &description))?
                }
                Err(error) => self.refused("ring", Some(&key), &error, false)?,
            },
            Command::Stats => match self.ask(async |client: Client| client.stats().await).await? {
                Ok(stats) => {
                    let values = stats.values.unwrap_or_default();
                    let shown = json!({"command": "stats", "server": self.current.0, "values": values});
                    self.answer(&stats_table(&values), shown)?
                }
                Err(error) => self.refused("stats", None, &error, false)?,
            },
        }
        Ok(Next::Line)
    }

    /// Carries out one request on the current server, or on another one if it has gone, which is then current.
    async fn ask<T>(
        &mut self,
        request: impl AsyncFn(Client) -> Result<T, ClientError>,
    ) -> io::Result<Result<T, ClientError>> {
        let (result, lost) = self.find(request).await;
        if let Some(Attempt { node, address, why }) = lost.first()
            && *node != self.current
        {
            let now = format!("connected to server {} at {}", self.current, self.address());
            self.remark(&format!("server {node} at {address} went away ({why}); {now}"))?;
        }
        Ok(result)
    }

    /// Tries the current server, then the others, until one can be asked; that one is current from then on. Also
    /// returns what was tried in vain.
    async fn find<T>(
        &mut self,
        request: impl AsyncFn(Client) -> Result<T, ClientError>,
    ) -> (Result<T, ClientError>, Vec<Attempt>) {
        let mut lost = Vec::new();
        let mut sent = false;
        let others = self.client.nodes().ids().filter(|id| *id != self.current);
        for node in [self.current].into_iter().chain(others) {
            match request(self.client.pin(node)).await {
                Err(ClientError::Unreachable { tried }) => lost.extend(tried),
                Err(ClientError::NoAnswer { tried }) => {
                    sent = true;
                    lost.extend(tried);
                }
                result => {
                    // An unknown server number is no reason to move.
                    if !matches!(result, Err(ClientError::NoSuchServer { .. })) {
                        self.current = node;
                    }
                    return (result, lost);
                }
            }
        }
        let tried = lost.clone();
        let error = if sent { ClientError::NoAnswer { tried } } else { ClientError::Unreachable { tried } };
        (Err(error), lost)
    }

    fn address(&self) -> String {
        self.client.nodes().address(self.current).map(ToString::to_string).unwrap_or_default()
    }

    fn set_trace(&mut self, on: bool) -> io::Result<()> {
        self.trace = on;
        let text = format!("trace is {}\n", if on { "on" } else { "off" });
        self.answer(&text, json!({"command": "trace", "on": on}))
    }

    fn written(
        &mut self,
        command: &str,
        key: &Key,
        asked: Option<i64>,
        result: Result<WriteResult, ClientError>,
    ) -> io::Result<()> {
        let result = match result {
            Ok(result) => result,
            Err(error) => return self.refused(command, Some(key), &error, may_have_happened(&error)),
        };
        let newer = result.stamp.filter(|won| asked.is_some_and(|asked| asked < *won));
        let mut shown = json!({"command": command, "key": key_json(key), "result": "SUCCESS",
            "stamp": result.stamp, "replicas": result.replicas});
        let text = match newer {
            None => "SUCCESS\n".to_owned(),
            Some(won) => format!("SUCCESS, but a newer version stays: {}\n", text::stamp_utc(won)),
        };
        add_trace(&mut shown, result.trace.as_deref());
        self.answer(&(text + &steps(result.trace.as_deref())), shown)
    }

    fn got(&mut self, key: &Key, result: Result<GetResult, ClientError>) -> io::Result<()> {
        let result = match result {
            Ok(result) => result,
            Err(error) => return self.refused("get", Some(key), &error, false),
        };
        let mut shown = json!({"command": "get", "key": key_json(key), "found": result.value.is_some()});
        let text = match &result.value {
            None => format!("{} not found\n", key.shown),
            Some(value) => {
                let stamp = result.stamp.unwrap_or(0);
                add(&mut shown, bytes_name("value", value), bytes_json(value));
                add(&mut shown, "stamp", json!(stamp));
                add(&mut shown, "time", json!(text::stamp_utc(stamp)));
                let mut text = format!("{} = {}   {}", key.shown, text::value(value), text::stamp_utc(stamp));
                if let Some(expires) = result.expires {
                    add(&mut shown, "expires", json!(expires));
                    text += &format!("   expires {}", text::second_utc(expires));
                }
                text + "\n"
            }
        };
        add_trace(&mut shown, result.trace.as_deref());
        self.answer(&(text + &steps(result.trace.as_deref())), shown)
    }

    fn answer(&mut self, text: &str, shown: Value) -> io::Result<()> {
        if self.screen.json {
            writeln!(self.screen.answers, "{shown}")?;
        } else {
            self.screen.answers.write_all(text.as_bytes())?;
        }
        self.screen.answers.flush()
    }

    /// `unknown`: it was a write, and it may have happened.
    fn refused(
        &mut self,
        command: &str,
        key: Option<&Key>,
        error: &ClientError,
        unknown: bool,
    ) -> io::Result<()> {
        self.worst = self.worst.max(Came::Refused);
        if self.screen.json {
            let mut shown = json!({"command": command, "error": kind(error), "message": error.to_string(),
                "outcome": if unknown { "unknown" } else { "nothing changed" }});
            if let Some(key) = key {
                add(&mut shown, "key", key_json(key));
            }
            return self.answer("", shown);
        }
        let verdict = if unknown { "UNKNOWN" } else { "FAILED" };
        self.remark(&format!("{verdict}  {error}"))
    }

    /// Says what is wrong with a line that cannot be carried out.
    pub(super) fn wrong_use(&mut self, why: &str) -> io::Result<()> {
        self.worst = Came::WrongUse;
        if self.screen.json {
            return self.answer("", json!({"error": "usage", "message": why, "outcome": "nothing changed"}));
        }
        self.remark(why)
    }

    fn remark(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.screen.remarks, "{text}")?;
        self.screen.remarks.flush()
    }
}

/// True if a write that met this error may have happened.
fn may_have_happened(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Refused(Refusal::Timeout(_)) | ClientError::Classic(_) | ClientError::Unknown { .. }
    )
}

/// The error's name in JSON.
fn kind(error: &ClientError) -> &'static str {
    match error {
        ClientError::Refused(Refusal::Unavailable(_)) => "unavailable",
        ClientError::Refused(Refusal::Timeout(_)) => "timeout",
        ClientError::Refused(Refusal::Overloaded(_)) => "overloaded",
        ClientError::Refused(Refusal::InvalidRequest(_)) => "invalid",
        ClientError::Classic(_) => "classic",
        ClientError::Unreachable { .. } => "unreachable",
        ClientError::Unknown { .. } => "unknown",
        ClientError::NoAnswer { .. } => "no answer",
        ClientError::Declined(_) => "declined",
        ClientError::NoSuchServer { .. } => "no such server",
    }
}

fn steps(trace: Option<&[String]>) -> String {
    trace.unwrap_or_default().iter().map(|step| format!("  {step}\n")).collect()
}

fn add_trace(shown: &mut Value, trace: Option<&[String]>) {
    if let Some(trace) = trace {
        add(shown, "trace", json!(trace));
    }
}

fn add(shown: &mut Value, name: &str, value: Value) {
    shown.as_object_mut().expect("every answer is an object").insert(name.to_owned(), value);
}

/// A classic key as its number, others as text, or as 0xHEX where they are none.
fn key_json(key: &Key) -> Value {
    match key.shown.parse::<u8>() {
        Ok(classic) => json!(classic),
        Err(_) => bytes_json(&key.bytes),
    }
}

/// `valueHex` where the bytes are no text, so that text that looks like 0xHEX is not mistaken for it.
fn bytes_name(name: &'static str, bytes: &[u8]) -> &'static str {
    match (name, std::str::from_utf8(bytes)) {
        ("value", Err(_)) => "valueHex",
        _ => name,
    }
}

fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!(text::hex(bytes)),
    }
}

/// The table of `status`.
fn status(description: &Description) -> String {
    let members = description.members.as_deref().unwrap_or_default();
    let mut shown = format!(
        "cluster {}: {}, {} of each key, durability {}; as server {} (version {}) sees it\n",
        description.cluster.as_deref().unwrap_or("?"),
        text::plural(members.len() as u64, "server", "servers"),
        text::plural(description.replication_factor.unwrap_or(0) as u64, "copy", "copies"),
        description.durability.as_deref().unwrap_or("?"),
        description.id.unwrap_or(-1),
        description.version.as_deref().unwrap_or("?"),
    );
    let width =
        members.iter().map(|member| member.address.as_deref().unwrap_or("?").len()).max().unwrap_or(0);
    let view = RingView::of(description);
    for member in members {
        let owned = view.as_ref().map_or(String::new(), |view| classic_keys(view, member));
        let line = format!(
            "server {}  {:<7}  {:<width$}  token {:<11}  {owned:<21}{}{}",
            member.id.unwrap_or(-1),
            state(member),
            member.address.as_deref().unwrap_or("?"),
            short_token(member.token.as_deref().unwrap_or_default()),
            waiting(member),
            member
                .detail
                .as_deref()
                .filter(|detail| !detail.is_empty())
                .map_or(String::new(), |detail| { format!("  {detail}") }),
        );
        shown += line.trim_end();
        shown.push('\n');
    }
    for range in description.ranges.as_deref().unwrap_or_default() {
        shown += &range_line(range);
    }
    shown
}

/// How equal the replicas of a range are, what is dead there, what is missing here.
fn range_line(range: &RangeState) -> String {
    let owner = range.owner.unwrap_or(-1);
    let upto = range.proven_upto.unwrap_or(0);
    let proven = format!("equal up to {}", text::stamp_utc(upto));
    let mut line = match (range.not_now.as_deref().unwrap_or_default(), upto) {
        ("", _) => {
            let at = text::second_utc(range.proven_at.unwrap_or(0).div_euclid(1_000_000));
            format!("range of server {owner}: proven {proven}, at {at}")
        }
        (why, 0) => format!("range of server {owner}: not proven equal: {why}"),
        (why, _) => format!("range of server {owner}: not proven equal now: {why}; it was {proven}"),
    };
    if let Some(pending @ 1..) = range.leaves_pending {
        line += &format!("; {} to be summed up", text::plural(pending as u64, "leaf", "leaves"));
    }
    if let Some(dead @ 1..) = range.dead_cells {
        let dead = text::plural(dead as u64, "deleted or expiring cell", "deleted or expiring cells");
        line += &format!("; {dead} of {} bytes kept", range.dead_bytes.unwrap_or(0));
        match range.uncollected.as_deref().unwrap_or_default() {
            "" => {}
            why => line += &format!(", because {why}"),
        }
    }
    match range.refilling.as_deref().unwrap_or_default() {
        "" => {}
        refilling => line += &format!("; refilling: {refilling}"),
    }
    line + "\n"
}

fn range_json(range: &RangeState) -> Value {
    json!({"owner": range.owner, "provenUpto": range.proven_upto, "provenAt": range.proven_at,
        "notNow": range.not_now, "cells": range.cells, "leavesPending": range.leaves_pending,
        "deadCells": range.dead_cells, "deadBytes": range.dead_bytes, "uncollected": range.uncollected,
        "collectedUpto": range.collected_upto, "refilling": range.refilling})
}

/// Members that are not up stand out.
fn state(member: &Member) -> String {
    match member.state.as_deref().unwrap_or("?") {
        "down" => "DOWN".to_owned(),
        other => other.to_owned(),
    }
}

fn short_token(token: &[u8]) -> String {
    text::cut(&text::hex(token), 10)
}

/// Which classic keys a member owns: the part of the ring that people look at.
fn classic_keys(view: &RingView, member: &Member) -> String {
    let owns = |key: &u8| view.replicas(&[*key]).first().map(|id| id.0 as i32) == member.id;
    let owned: Vec<u8> = (0..=255).filter(owns).collect();
    match (owned.first(), owned.last()) {
        (Some(first), Some(last)) if usize::from(last - first) + 1 == owned.len() => {
            format!("owns keys {first} to {last}")
        }
        (Some(_), Some(_)) => format!("owns {} keys", owned.len()),
        _ => "owns no classic key".to_owned(),
    }
}

fn waiting(member: &Member) -> String {
    let hints = member.hints.unwrap_or(0).max(0) as u64;
    let stopped = if member.hinting == Some(false) { ", no more are kept" } else { "" };
    match hints {
        0 if stopped.is_empty() => String::new(),
        0 => "  no hints are kept".to_owned(),
        _ => {
            let bytes = text::count(member.hint_bytes.unwrap_or(0).max(0) as u64);
            format!("  {} ({bytes} bytes{stopped})", text::plural(hints, "hint waits", "hints wait"))
        }
    }
}

fn member_json(member: &Member) -> Value {
    json!({"id": member.id, "address": member.address, "state": member.state, "detail": member.detail,
        "token": member.token.as_deref().map(text::hex), "hints": member.hints,
        "hintBytes": member.hint_bytes, "hinting": member.hinting})
}

fn status_json(description: &Description) -> Value {
    let members = description.members.as_deref().unwrap_or_default();
    json!({"command": "status", "cluster": description.cluster, "server": description.id,
        "replicationFactor": description.replication_factor, "epoch": description.epoch,
        "version": description.version, "durability": description.durability,
        "members": members.iter().map(member_json).collect::<Vec<_>>(),
        "ranges": description.ranges.iter().flatten().map(range_json).collect::<Vec<_>>()})
}

/// The replicas of a key among the members, its owner first.
fn replicas<'d>(key: &Key, description: &'d Description) -> Vec<&'d Member> {
    let members = description.members.as_deref().unwrap_or_default();
    let view = RingView::of(description);
    let ids = view.as_ref().map_or(&[][..], |view| view.replicas(&key.bytes));
    ids.iter().filter_map(|id| members.iter().find(|member| member.id == Some(id.0 as i32))).collect()
}

fn ring_of(key: &Key, description: &Description) -> String {
    let replicas = replicas(key, description);
    let ids: Vec<String> = replicas.iter().map(|member| member.id.unwrap_or(-1).to_string()).collect();
    let quorum = quorum(replicas.len());
    let mut shown = format!("{} is on servers {}; a quorum is {quorum}\n", key.shown, ids.join(", "));
    for (index, member) in replicas.iter().enumerate() {
        let line = format!(
            "server {}  {:<7}  {}{}",
            member.id.unwrap_or(-1),
            state(member),
            member.address.as_deref().unwrap_or("?"),
            if index == 0 { "  owner" } else { "" }
        );
        shown += &line;
        shown.push('\n');
    }
    shown
}

fn ring_json(key: &Key, description: &Description) -> Value {
    let members: Vec<Value> = replicas(key, description).into_iter().map(member_json).collect();
    json!({"command": "ring", "key": key_json(key), "replicas": members})
}

/// Names and values in two columns; what is zero is left out.
fn stats_table(values: &std::collections::BTreeMap<String, i64>) -> String {
    let counted: Vec<_> = values.iter().filter(|(_, value)| **value != 0).collect();
    let width = counted.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    if counted.is_empty() {
        return "nothing counted yet\n".to_owned();
    }
    counted.iter().map(|(name, value)| format!("{name:<width$}  {}\n", text::signed(**value))).collect()
}
