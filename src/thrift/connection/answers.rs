//! Answers, from the call that they belong to until their bytes have left.
//!
//!   call ─► [`Waiting`] ─► [`Output`], as bytes ─► socket
//!
//! Not here: when they are fetched and sent (the connection).

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{FuturesUnordered, StreamExt};
use thrift::ApplicationErrorKind;

use super::super::codec;
use super::super::dress::Dress;
use super::super::method::Reply;
use super::{Held, ReplyFuture};

/// Unsent answers past which no call is taken and no answer fetched from the service.
pub(super) const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// What an answer needs to know about its call.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub dress: Dress,
    pub sequence: i32,
    /// Nobody waits for an answer.
    pub oneway: bool,
}

/// An answer of the service, or of the connection in its place.
pub(super) enum Outcome {
    Reply(Reply, Held),
    Refused { name: String, kind: ApplicationErrorKind, why: String },
}

/// Calls under way, each with where its answer has to go.
#[derive(Default)]
pub(super) struct Waiting {
    running: FuturesUnordered<Running>,
    /// Answers that leave in the order of their calls, the next first. `None`: that call is running.
    pub line: VecDeque<Option<Next>>,
    /// Bytes of the answers in the line that were known at once: nothing else bounds them.
    pub known_bytes: usize,
    /// How many have left the line.
    left: u64,
    /// Running calls that have no place in the line.
    unordered: usize,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.line.len() + self.unordered
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lines up an answer behind those of earlier calls.
    pub fn line_up(&mut self, asked: Asked, outcome: Outcome) {
        let mut bytes = Vec::new();
        let held = write_answer(asked, outcome, &mut bytes);
        self.known_bytes += bytes.len();
        self.line.push_back(Some(Next::Known(bytes, held)));
    }

    /// Runs a call; its answer leaves in the order of the calls, or as it comes.
    pub fn run(&mut self, asked: Asked, future: ReplyFuture, in_order: bool) {
        let place = in_order.then(|| self.left + self.line.len() as u64);
        match in_order {
            true => self.line.push_back(None),
            false => self.unordered += 1,
        }
        self.running.push(Running { asked, place, future });
    }

    /// The next answer that may leave; `None` if no call is under way.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Next>> {
        loop {
            if let Some(Some(_)) = self.line.front() {
                self.left += 1;
                let next = self.line.pop_front().flatten();
                if let Some(Next::Known(bytes, _)) = &next {
                    self.known_bytes -= bytes.len();
                }
                return Poll::Ready(next);
            }
            let Some((place, asked, outcome)) = ready!(self.running.poll_next_unpin(cx)) else {
                return Poll::Ready(None);
            };
            match place {
                Some(place) => self.line[(place - self.left) as usize] = Some(Next::Come(asked, outcome)),
                None => {
                    self.unordered -= 1;
                    return Poll::Ready(Some(Next::Come(asked, outcome)));
                }
            }
        }
    }
}

/// An answer whose turn has come.
pub(super) enum Next {
    /// It was known when the call was taken, and waited as bytes.
    Known(Vec<u8>, Held),
    /// The service has given it.
    Come(Asked, Outcome),
}

/// One call that the service is answering.
pub(super) struct Running {
    asked: Asked,
    /// Its place in the line, counted from the first that ever was in it; `None`: its answer leaves as it comes.
    place: Option<u64>,
    future: ReplyFuture,
}

impl Future for Running {
    type Output = (Option<u64>, Asked, Outcome);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (reply, held) = ready!(self.future.as_mut().poll(cx));
        Poll::Ready((self.place, self.asked, Outcome::Reply(reply, held)))
    }
}

thread_local! {
    /// What connections of this thread write answers into; a connection whose reader is slow keeps it for itself.
    static OUTPUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Appends the answer, unless nobody waits for it; returns what is to be held until it has left.
pub(super) fn write_answer(asked: Asked, outcome: Outcome, out: &mut Vec<u8>) -> Held {
    if asked.oneway {
        return None;
    }
    let mut held = None;
    asked.dress.wrap(out, |protocol, out| match outcome {
        Outcome::Reply(reply, holds) => {
            held = holds;
            codec::write_reply(protocol, asked.sequence, &reply, out);
        }
        Outcome::Refused { name, kind, why } => {
            codec::write_application_exception(protocol, &name, asked.sequence, kind, why, out);
        }
    });
    held
}

/// Answers on their way out.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// How many of them have left.
    gone: usize,
    /// Bytes that have left since the connection began.
    gone_ever: u64,
    /// What answers hold, each given back once so many bytes have left since the connection began.
    held: VecDeque<(u64, Box<dyn Send>)>,
}

impl Output {
    pub fn write(&mut self, asked: Asked, outcome: Outcome) {
        self.borrow();
        let held = write_answer(asked, outcome, &mut self.bytes);
        self.hold(held);
    }

    pub fn append(&mut self, bytes: &[u8], held: Held) {
        self.borrow();
        self.bytes.extend_from_slice(bytes);
        self.hold(held);
    }

    /// Holds it until all that is written by now has left.
    pub fn hold(&mut self, held: Held) {
        if let Some(held) = held {
            self.held.push_back((self.gone_ever + self.unsent() as u64, held));
        }
    }

    /// Takes the thread's buffer.
    pub fn borrow(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes = OUTPUT.take();
        }
    }

    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    pub fn sent(&mut self, bytes: usize) {
        self.gone += bytes;
        self.gone_ever += bytes as u64;
        while self.held.front().is_some_and(|(upto, _)| *upto <= self.gone_ever) {
            self.held.pop_front();
        }
        if self.gone == self.bytes.len() {
            self.bytes.clear();
            self.gone = 0;
        } else if self.gone >= UNSENT_BYTES_MAX {
            self.bytes.drain(..self.gone); // so that a reader that never quite catches up does not grow it
            self.gone = 0;
        }
    }

    pub fn unsent(&self) -> usize {
        self.bytes.len() - self.gone
    }

    pub fn is_empty(&self) -> bool {
        self.unsent() == 0
    }

    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Returns an empty buffer to the thread, unless one long answer has made it too large to keep.
    pub fn give_back(&mut self) {
        if self.is_empty() && self.capacity() > 0 {
            let bytes = std::mem::take(&mut self.bytes);
            if bytes.capacity() <= UNSENT_BYTES_MAX {
                OUTPUT.set(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_slow_readers_output_does_not_keep_what_has_left() {
        let asked = Asked { dress: Dress::unframed(codec::Protocol::Binary), sequence: 1, oneway: false };
        let mut output = Output::default();
        let mut most = 0;
        for _ in 0..200 {
            let long = "x".repeat(100_000);
            output.write(asked, Outcome::Reply(Reply::GetInfo(Ok(long)), None));
            while output.unsent() > 50_000 {
                output.sent(50_000);
            }
            most = most.max(output.capacity());
        }
        assert!(most < 4 * UNSENT_BYTES_MAX, "{most} bytes");
        output.sent(output.unsent());
        output.give_back();
        assert_eq!(output.capacity(), 0);
    }

    #[test]
    fn what_an_answer_holds_is_given_back_when_it_has_left_though_others_have_not() {
        let asked = Asked { dress: Dress::unframed(codec::Protocol::Binary), sequence: 1, oneway: false };
        let held = Arc::new(());
        let holding = || Arc::strong_count(&held) - 1;
        let mut output = Output::default();
        let mut answer_bytes = 0;
        for answers in 1..=200 {
            let long = Reply::GetInfo(Ok("x".repeat(100_000)));
            output.write(asked, Outcome::Reply(long, Some(Box::new(held.clone()))));
            if answers == 1 {
                answer_bytes = output.unsent();
            }
            while output.unsent() > 250_000 {
                output.sent(50_000); // the last of them are always on their way
            }
            assert_eq!(holding(), output.unsent().div_ceil(answer_bytes), "after {answers} answers");
        }
        output.sent(output.unsent() - 1);
        assert_eq!(holding(), 1);
        output.sent(1);
        assert_eq!(holding(), 0);
    }
}
