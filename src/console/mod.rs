//! The console: lines from a person, a pipe or `-e`, carried out one after the other.
//!
//! ```text
//!   line ─► command::parse ─► session ─► client ─► one server; another one where it went away
//! ```
//!
//! A person gets a prompt, history and completion. A pipe gets answers on standard output and remarks on standard
//! error, goes on after a refused or wrong line, and its exit code tells the worst: 0 done, 1 refused by the cluster,
//! 2 wrong use. Where nobody reads the answers any more the rest is not carried out: that is no better than refused.
//!
//! Not here: what the commands mean (`command`), how answers look (`session`, `client::text`).

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use crate::answer::NodeId;
use crate::client::{Client, ClientOptions};
use crate::nodes::{Address, Nodes};
use crate::thrift::chord::Description;

mod command;
mod editor;
mod session;

pub use command::{Command, parse};
pub use session::{Came, Next, Screen, Session};

/// Put, get and delete values of a Tetrachord cluster.
///
/// Without -e, commands come from the terminal or a pipe; `help` lists them. Exit code: 0 done, 1 refused by the
/// cluster, 2 wrong use.
#[derive(Debug, Parser)]
#[command(name = "client", version)]
pub struct Options {
    /// The server to talk to: its number in nodes.txt, its port, or HOST:PORT. The first that answers when left out.
    pub server: Option<String>,
    /// Who is in the cluster, one host:port per line.
    #[arg(long, value_name = "FILE", default_value = "nodes.txt")]
    pub nodes: PathBuf,
    /// Carry out this command and end; may be given several times.
    #[arg(short = 'e', long = "execute", value_name = "COMMAND", value_parser = one_line)]
    pub execute: Vec<String>,
    /// Print one JSON object per answer.
    #[arg(long)]
    pub json: bool,
    /// Milliseconds to wait for an answer.
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout_ms: u64,
}

/// A command is a line. What a script puts into one must not begin another.
fn one_line(command: &str) -> Result<String, String> {
    if command.trim().contains('\n') {
        return Err("one command is one line; in a quoted value a line break is written \\n".to_owned());
    }
    Ok(command.to_owned())
}

/// Runs the console to its end and returns the exit code.
pub fn run(options: &Options) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime without threads needs nothing but a few file descriptors");
    let (client, preferred) = match runtime.block_on(choose(options)) {
        Ok(chosen) => chosen,
        Err(why) => {
            eprintln!("client: {why}");
            return Came::WrongUse as u8;
        }
    };
    let result = match options.execute.as_slice() {
        [] if io::stdin().is_terminal() => converse(&runtime, client, preferred, options.json),
        [] => {
            let lines = Lines { from: &mut io::stdin().lock(), all_there: stdin_is_a_file() };
            carry_out(&runtime, client, preferred, options, lines)
        }
        commands => {
            let commands = commands.join("\n");
            let lines = Lines { from: &mut commands.as_bytes(), all_there: true };
            carry_out(&runtime, client, preferred, options, lines)
        }
    };
    match result {
        Ok(came) => came as u8,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Came::Refused as u8, // nobody is told what came of it
        Err(error) => {
            eprintln!("client: {error}");
            Came::WrongUse as u8
        }
    }
}

/// The cluster's servers, and which of them was asked for.
async fn choose(options: &Options) -> Result<(Client, Option<NodeId>), String> {
    let client_options =
        ClientOptions::default().with_call_timeout(Duration::from_millis(options.timeout_ms));
    if let Some(address) = options.server.as_deref().filter(|server| server.contains(':')) {
        let nodes =
            Nodes::parse(address, Path::new("the command line")).map_err(|error| error.to_string())?;
        let address = nodes.addresses()[0].clone();
        let lone = Client::new(nodes, client_options);
        let others = lone.describe().await.ok().and_then(|description| cluster_of(&description, address));
        return Ok(match others {
            Some((nodes, id)) => (Client::new(nodes, client_options), Some(id)),
            None => (lone, None),
        });
    }
    let nodes = Nodes::load(&options.nodes).map_err(|error| error.to_string())?;
    let preferred = options.server.as_deref().map(|server| server_named(server, &nodes)).transpose()?;
    Ok((Client::new(nodes, client_options), preferred))
}

/// The server of that number, or else the one with that port.
fn server_named(server: &str, nodes: &Nodes) -> Result<NodeId, String> {
    let last = nodes.len() - 1;
    let unknown = || format!("{server} is no server: write a number from 0 to {last}, a port, or HOST:PORT");
    let number: u32 = server.parse().map_err(|_| unknown())?;
    if (number as usize) < nodes.len() {
        return Ok(NodeId(number));
    }
    match u16::try_from(number).map(|port| nodes.with_port(port)).as_deref() {
        Ok([only]) => Ok(*only),
        _ => Err(unknown()),
    }
}

/// All servers that a description names, and the number of the describing one, which is where it was found. `None` if
/// they are not numbered from 0.
fn cluster_of(description: &Description, found_at: Address) -> Option<(Nodes, NodeId)> {
    let mut members: Vec<_> = description.members.as_ref()?.iter().collect();
    members.sort_by_key(|member| member.id);
    if !members.iter().enumerate().all(|(index, member)| member.id == Some(index as i32)) {
        return None;
    }
    let lines: Vec<&str> =
        members.iter().map(|member| member.address.as_deref().unwrap_or_default()).collect();
    let nodes = Nodes::parse(&lines.join("\n"), Path::new("the ring")).ok()?;
    let id = usize::try_from(description.id?).ok().filter(|id| *id < nodes.len())?;
    let mut addresses = nodes.addresses().to_vec();
    addresses[id] = found_at;
    Some((Nodes::new(addresses), NodeId(id as u32)))
}

/// Lines of commands.
struct Lines<'a> {
    from: &'a mut dyn BufRead,
    /// None of them is still to be written by somebody.
    all_there: bool,
}

fn stdin_is_a_file() -> bool {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    stdin.and_then(|stdin| stdin.metadata()).is_ok_and(|stdin| stdin.is_file())
}

/// Lines from a pipe or the command line, to their end.
fn carry_out(
    runtime: &Runtime,
    client: Client,
    preferred: Option<NodeId>,
    options: &Options,
    lines: Lines<'_>,
) -> io::Result<Came> {
    let (mut answers, mut remarks) = (io::stdout(), io::stderr());
    let greet = options.execute.is_empty();
    let screen = Screen { answers: &mut answers, remarks: &mut remarks, json: options.json, greet };
    runtime.block_on(async {
        match Session::connect(client, preferred, screen).await? {
            None => Ok(Came::Refused),
            Some(mut session) => carry_out_in(&mut session, lines).await,
        }
    })
}

async fn carry_out_in(session: &mut Session<'_>, lines: Lines<'_>) -> io::Result<Came> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.from.read_until(b'\n', &mut line)? == 0 {
            return Ok(session.worst());
        }
        let next = match std::str::from_utf8(&line) {
            Ok(text) => session.line(text).await,
            Err(_) => {
                let why = "a line is not UTF-8; write such bytes as 0x and hexadecimal digits";
                session.wrong_use(why).map(|()| Next::Line)
            }
        };
        match next {
            Ok(Next::Line) => {}
            Ok(Next::Leave) => return Ok(session.worst()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                let rest = if is_anything_left(lines)? { Came::Refused } else { Came::Done };
                return Ok(session.worst().max(rest));
            }
            Err(error) => return Err(error),
        }
    }
}

/// True if a line follows that asks for something, or may follow: somebody who writes them is not waited for.
fn is_anything_left(lines: Lines<'_>) -> io::Result<bool> {
    if !lines.all_there {
        return Ok(true);
    }
    let mut line = Vec::new();
    while lines.from.read_until(b'\n', &mut line)? > 0 {
        match std::str::from_utf8(&line).map(parse) {
            Ok(Ok(Command::Nothing)) => line.clear(),
            Ok(Ok(Command::Exit)) => return Ok(false),
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Lines from a person.
fn converse(runtime: &Runtime, client: Client, preferred: Option<NodeId>, json: bool) -> io::Result<Came> {
    let (mut answers, mut remarks) = (io::stdout(), io::stdout());
    let screen = Screen { answers: &mut answers, remarks: &mut remarks, json, greet: true };
    let Some(mut session) = runtime.block_on(Session::connect(client, preferred, screen))? else {
        return Ok(Came::Refused);
    };
    let mut editor = editor::Lines::open();
    loop {
        let line = match editor.next() {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue, // Ctrl-C clears the line
            Err(ReadlineError::Eof) => return Ok(Came::Done),
            Err(error) => return Err(io::Error::other(error)),
        };
        let next = runtime.block_on(async {
            tokio::select! {
                biased;
                next = session.line(&line) => Some(next),
                _ = tokio::signal::ctrl_c() => None,
            }
        });
        match next.transpose()? {
            Some(Next::Line) => {}
            Some(Next::Leave) => return Ok(Came::Done),
            None => writeln!(io::stdout(), "not waited for; a write may or may not have happened")?,
        }
    }
}

#[cfg(test)]
mod tests;
