//! No server outlives the drill that started it, however the drill ends.
//!
//! The drill starts itself once more with the words below; that process asks the system to be killed when its parent
//! ends, and becomes the server, with the same process number. An orderly end, a panic and an error kill the servers
//! before that (`cluster`); this is for `kill -9`. Only Linux can do it; elsewhere a killed drill leaves its servers.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The first argument of a drill that is to become a server.
const WORD: &str = "become-a-server-that-ends-with";

/// A command that runs `program` and ends it with this process.
pub fn command(program: &Path) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(WORD).arg(std::process::id().to_string()).arg(program);
    command.process_group(0); // Ctrl-C is for the drill, which has a say in how its servers end
    Ok(command)
}

/// If the program was called by [`command`]: becomes what it is to become, and returns only why it cannot.
pub fn intercept(mut arguments: impl Iterator<Item = OsString>) -> Option<io::Error> {
    if arguments.next()? != WORD {
        return None;
    }
    let parent: i32 = arguments.next()?.to_str()?.parse().ok()?;
    let program = arguments.next()?;
    if let Err(error) = end_with(parent) {
        return Some(error);
    }
    Some(Command::new(program).args(arguments).exec())
}

#[cfg(target_os = "linux")]
fn end_with(parent: i32) -> io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before it was asked for.
    match getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent) {
        true => Ok(()),
        false => Err(io::Error::other("the drill has ended")),
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with(_: i32) -> io::Result<()> {
    Ok(())
}
