//! A reply from another server becomes the answer of a replica.

use bytes::Bytes;

use super::calls::Asked;
use crate::answer::{ApplyAnswer, Failure, ReadAnswer};
use crate::cell::{Cell, Stamp};
use crate::thrift::chord::{PeerApplied, PeerCell, PeerCells};
use crate::thrift::codec::{self, Protocol, ReplyError};
use crate::thrift::method::{Apply, Method, Nothing, Read, Reconcile};

/// What a reply said beside its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aside {
    /// The other server's clock, if it was told.
    pub(super) clock: Option<Stamp>,
    /// How many of the answers were failures.
    pub(super) failed: usize,
}

/// Bytes that are no reply. Whatever they answered has been answered *connection lost*, since nobody can know what
/// was done; the connection cannot be used further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged answer: {0}")]
pub(super) struct Damaged(pub(super) String);

/// Reads the reply to `asked` and gives the answer.
pub(super) fn answer(asked: Asked, sequence: i32, message: &[u8]) -> Result<Aside, Damaged> {
    match asked {
        Asked::Apply(all) => {
            let (answers, clock) = applied(sequence, message, all.len());
            let failed = failures(&answers);
            all.into_iter().zip(answers).for_each(|(to, answer)| to.send(answer));
            Ok(Aside { clock: clock?, failed })
        }
        Asked::ApplyBatch { mutations, to } => {
            let (answers, clock) = applied(sequence, message, mutations);
            let failed = failures(&answers);
            // A batch of which nothing is known failed as a whole.
            match &clock {
                Ok(_) => to.send(Ok(answers)),
                Err(_) => to.send(Err(Failure::ConnectionLost)),
            }
            Ok(Aside { clock: clock?, failed })
        }
        Asked::Reconcile(to) => {
            let (answer, clock) = match read::<Reconcile>(sequence, message) {
                Ok(answer) => {
                    let clock = answer.as_ref().ok().and_then(|answer| answer.clock).map(Stamp);
                    (answer.map(|answer| *answer), Ok(clock))
                }
                Err(error) => (Err(Failure::ConnectionLost), Err(error)),
            };
            let failed = usize::from(answer.is_err());
            to.send(answer);
            Ok(Aside { clock: clock?, failed })
        }
        Asked::Read { to, .. } => {
            let (answer, clock) = cells(sequence, message);
            let failed = usize::from(matches!(answer, ReadAnswer::Failed(_)));
            to.send(answer);
            Ok(Aside { clock: clock?, failed })
        }
    }
}

fn failures(answers: &[ApplyAnswer]) -> usize {
    answers.iter().filter(|answer| matches!(answer, ApplyAnswer::Failed(_))).count()
}

type Clock = Result<Option<Stamp>, Damaged>;

/// One answer for each of a number of mutations.
fn applied(sequence: i32, message: &[u8], mutations: usize) -> (Vec<ApplyAnswer>, Clock) {
    let all = |failure: Failure| vec![ApplyAnswer::Failed(failure); mutations];
    let damaged = |damaged| (all(Failure::ConnectionLost), Err(damaged));
    let PeerApplied { answers, refused, clock } = match read::<Apply>(sequence, message) {
        Ok(Ok(applied)) => applied,
        Ok(Err(failure)) => return (all(failure), Ok(None)),
        Err(error) => return damaged(error),
    };
    let answers = answers.unwrap_or_default();
    if answers.len() != mutations {
        return damaged(Damaged(format!("{} answers to {mutations} mutations", answers.len())));
    }
    (apply_answers(answers, &refused.unwrap_or_default()), Ok(clock.map(Stamp)))
}

/// In the place of a stamp: the mutation was applied and is the newest.
const APPLIED: i64 = 0;
/// In the place of a stamp: the mutation was not stored, for a reason that is told once for all of them.
pub const REFUSED: i64 = -1;

/// The number that stands for an answer in [`PeerApplied`].
pub fn number_of(answer: &ApplyAnswer) -> i64 {
    match answer {
        ApplyAnswer::Applied => APPLIED,
        ApplyAnswer::Behind(stamp) => stamp.0,
        ApplyAnswer::Failed(Failure::TooOld { above }) => REFUSED - above.0, // stamps are positive
        ApplyAnswer::Failed(_) => REFUSED,
    }
}

/// The answers that [`PeerApplied`] says in numbers; `refused` is its reason for those that are refusals.
pub fn apply_answers(answers: Vec<i64>, refused: &str) -> Vec<ApplyAnswer> {
    let answer = |answer| match answer {
        APPLIED => ApplyAnswer::Applied,
        REFUSED => ApplyAnswer::Failed(failure(refused)),
        stamp if stamp > APPLIED => ApplyAnswer::Behind(Stamp(stamp)),
        above => ApplyAnswer::Failed(Failure::TooOld { above: Stamp(REFUSED.saturating_sub(above)) }),
    };
    answers.into_iter().map(answer).collect()
}

fn cells(sequence: i32, message: &[u8]) -> (ReadAnswer, Clock) {
    match read::<Read>(sequence, message) {
        Ok(Ok(cells)) => {
            let clock = cells.clock.map(Stamp);
            (read_answer(cells), Ok(clock))
        }
        Ok(Err(failure)) => (ReadAnswer::Failed(failure), Ok(None)),
        Err(error) => (ReadAnswer::Failed(Failure::ConnectionLost), Err(error)),
    }
}

/// The answer that [`PeerCells`] says.
pub fn read_answer(cells: PeerCells) -> ReadAnswer {
    let PeerCells { cells, refused, complete, .. } = cells;
    match (cells, refused.filter(|refused| !refused.is_empty())) {
        (_, Some(refused)) => ReadAnswer::Failed(failure(&refused)),
        (None, None) => damaged_cells("no cells and no reason"),
        (Some(cells), None) => match cells.into_iter().map(cell).collect() {
            Some(cells) => ReadAnswer::Cells { cells, complete: complete.unwrap_or(true) },
            None => damaged_cells("what it sent are no cells"),
        },
    }
}

/// The message itself was whole, so the connection is good; only this read has no answer.
fn damaged_cells(what: &str) -> ReadAnswer {
    ReadAnswer::Failed(Failure::Refused(format!("damaged answer: {what}").into()))
}

/// Column and cell; the value is not copied.
fn cell(cell: PeerCell) -> Option<(Bytes, Cell)> {
    let bytes = Bytes::from(cell.cell?);
    let decoded = Cell::decode(&bytes).ok()?.share(&bytes);
    Some((Bytes::from(cell.column?), decoded))
}

/// The result, or why the other server refused the call, or that the bytes are no reply.
fn read<M: Method<Thrown = Nothing>>(
    sequence: i32,
    message: &[u8],
) -> Result<Result<M::Response, Failure>, Damaged> {
    match codec::read_reply::<M>(Protocol::Binary, sequence, message) {
        Ok(Ok(response)) => Ok(Ok(response)),
        Ok(Err(nothing)) => match nothing {},
        Err(ReplyError::Application(why)) => Ok(Err(Failure::Refused(why.into()))),
        Err(error @ (ReplyError::Malformed(_) | ReplyError::OutOfSequence { .. })) => {
            Err(Damaged(error.to_string()))
        }
    }
}

/// The failure that another server told in words: those of [`Failure`], or its own reason for refusing. *Outcome
/// unknown* there is *outcome unknown* here.
fn failure(words: &str) -> Failure {
    let known = [
        Failure::Unreachable,
        Failure::ConnectionLost,
        Failure::TimedOut,
        Failure::Overloaded,
        Failure::Abandoned,
    ];
    let found = known.into_iter().find(|failure| failure.to_string() == words);
    found.unwrap_or_else(|| Failure::Refused(words.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Answer, AnswerTo, Answers, NodeId};
    use crate::cell::Content;
    use crate::thrift::method::Reply;
    use tokio::time::Instant;

    fn message(reply: Reply) -> Vec<u8> {
        let mut message = Vec::new();
        codec::write_reply(Protocol::Binary, 4, &reply, &mut message);
        message
    }

    /// The answer given for `message`, and what was said beside it.
    async fn given<T: Answer>(
        message: &[u8],
        asked: impl FnOnce(AnswerTo<T>) -> Asked,
    ) -> (T, Result<Aside, Damaged>) {
        let mut answers = Answers::default();
        let aside = answer(asked(answers.expect(NodeId(1))), 4, message);
        (answers.next().await.expect("one is due").1, aside)
    }

    fn apply(to: AnswerTo<ApplyAnswer>) -> Asked {
        Asked::Apply(vec![to])
    }

    fn applied_message(answers: &[i64], refused: &str) -> Vec<u8> {
        message(Reply::Apply(Ok(PeerApplied::new(answers.to_vec(), refused.to_owned(), 77))))
    }

    #[tokio::test]
    async fn numbers_mean_applied_refused_or_behind() {
        for (number, refused, meant) in [
            (0, "", ApplyAnswer::Applied),
            (12, "", ApplyAnswer::Behind(Stamp(12))),
            (-13, "", ApplyAnswer::Failed(Failure::TooOld { above: Stamp(12) })),
            (i64::MIN, "", ApplyAnswer::Failed(Failure::TooOld { above: Stamp(i64::MAX) })),
            (-1, "disk full", ApplyAnswer::Failed(Failure::Refused("disk full".into()))),
            (-1, "overloaded", ApplyAnswer::Failed(Failure::Overloaded)),
            (-1, "gone without an answer", ApplyAnswer::Failed(Failure::Abandoned)),
        ] {
            let (answer, aside) = given(&applied_message(&[number], refused), apply).await;
            let failed = usize::from(number < 0);
            assert!(number_of(&meant) == number || number == i64::MIN);
            assert_eq!((answer, aside), (meant, Ok(Aside { clock: Some(Stamp(77)), failed })));
        }
    }

    #[tokio::test]
    async fn a_batch_is_answered_one_by_one_or_not_at_all() {
        let batch = |to| Asked::ApplyBatch { mutations: 3, to };
        let (answer, _) = given(&applied_message(&[0, -1, 5], "no"), batch).await;
        let refused = ApplyAnswer::Failed(Failure::Refused("no".into()));
        assert_eq!(answer, Ok(vec![ApplyAnswer::Applied, refused, ApplyAnswer::Behind(Stamp(5))]));
        let (answer, aside) = given(&applied_message(&[0, 0], ""), batch).await;
        assert_eq!(answer, Err(Failure::ConnectionLost));
        assert_eq!(aside.unwrap_err().to_string(), "damaged answer: 2 answers to 3 mutations");
    }

    #[tokio::test]
    async fn cells_are_read_and_damaged_ones_refused() {
        let read = |to| Asked::Read { at: Instant::now(), to };
        let cell = Cell { stamp: Stamp(9), content: Content::Value(Bytes::from_static(b"v")) };
        let mut encoded = Vec::new();
        cell.encode(&mut encoded);
        let reply = |cell: Vec<u8>, refused: &str| {
            let cells = vec![PeerCell::new(b"c".to_vec(), cell)];
            message(Reply::Read(Ok(PeerCells::new(cells, refused.to_owned(), 77, true))))
        };
        let (answer, _) = given(&reply(encoded.clone(), ""), read).await;
        let cells = vec![(Bytes::from_static(b"c"), cell)];
        assert_eq!(answer, ReadAnswer::Cells { cells, complete: true });
        let (answer, aside) = given(&reply(vec![99], ""), read).await;
        assert!(
            matches!(answer, ReadAnswer::Failed(Failure::Refused(why)) if why.contains("damaged answer"))
        );
        assert_eq!(aside.unwrap().failed, 1);
        let (answer, _) = given(&reply(encoded, "another ring"), read).await;
        assert_eq!(answer, ReadAnswer::Failed(Failure::Refused("another ring".into())));
    }

    #[tokio::test]
    async fn what_is_no_reply_leaves_the_outcome_unknown() {
        let good = applied_message(&[0], "");
        for cut in 0..good.len() {
            let (answer, aside) = given(&good[..cut], apply).await;
            assert_eq!(answer, ApplyAnswer::Failed(Failure::ConnectionLost), "{cut}");
            assert!(aside.is_err());
        }
    }

    #[tokio::test]
    async fn a_call_that_was_not_understood_was_not_carried_out() {
        let mut message = Vec::new();
        let kind = thrift::ApplicationErrorKind::UnknownMethod;
        codec::write_application_exception(
            Protocol::Binary,
            "peerApply",
            4,
            kind,
            "what?".to_owned(),
            &mut message,
        );
        let (answer, aside) = given(&message, apply).await;
        assert_eq!(answer, ApplyAnswer::Failed(Failure::Refused("what?".into())));
        assert_eq!(aside, Ok(Aside { clock: None, failed: 1 }));
    }
}
