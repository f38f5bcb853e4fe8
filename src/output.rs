//! Standard output of a program. `program | head` closes it early, and `print!` would end that in a panic.

use std::io::{self, Write};

/// Prints what is ready. False if nobody reads any more, which is no failure.
pub fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true),
    }
}
