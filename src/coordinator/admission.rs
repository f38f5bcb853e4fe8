//! How much may be under way at once: a count and bytes, taken when a request begins and given back when its last
//! answer has come. Past either bound a request is refused before anything was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers below this size are not counted: what a slow reader leaves of them is bounded where they are sent.
const UNCOUNTED_BYTES_MAX: usize = 65_536;

/// How often a stop looks whether all is done.
const DRAIN_LOOK: std::time::Duration = std::time::Duration::from_millis(2);

/// The bounds and what is taken of them.
pub struct Admission {
    requests_max: usize,
    bytes_max: usize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// One admitted request; dropping it gives its share back.
pub struct Admitted {
    admission: Arc<Admission>,
    bytes: usize,
}

impl Admission {
    /// At most `requests_max` requests of together at most `bytes_max` bytes.
    pub fn new(requests_max: usize, bytes_max: usize) -> Arc<Admission> {
        Arc::new(Admission {
            requests_max,
            bytes_max,
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }

    /// Admits a request of `bytes` bytes, or says no.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Option<Admitted> {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let admitted = Admitted { admission: self.clone(), bytes };
        (requests <= self.requests_max && held <= self.bytes_max).then_some(admitted)
    }

    /// Admits an answer of `bytes` bytes that is to be sent, or says no. `Some(None)`: it is short and takes no share.
    pub fn admit_answer(self: &Arc<Self>, bytes: usize) -> Option<Option<Admitted>> {
        if bytes < UNCOUNTED_BYTES_MAX { Some(None) } else { self.admit(bytes).map(Some) }
    }

    /// Waits until nothing is under way.
    pub async fn drained(&self) {
        while self.under_way().0 > 0 {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }

    /// Requests and bytes under way now.
    pub fn under_way(&self) -> (usize, usize) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Admitted {
    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let given_back = self.bytes.saturating_sub(bytes);
        self.admission.bytes.fetch_sub(given_back, Ordering::Relaxed);
        self.bytes -= given_back;
    }

    /// The share of a request of which only an answer of `bytes` bytes is left: none if that is short.
    pub fn for_answer(mut self, bytes: usize) -> Option<Admitted> {
        self.shrink_to(bytes);
        (bytes >= UNCOUNTED_BYTES_MAX).then_some(self)
    }

    /// Takes `more` bytes, or says no and takes none.
    pub fn grow(&mut self, more: usize) -> bool {
        let held = self.admission.bytes.fetch_add(more, Ordering::Relaxed) + more;
        if held > self.admission.bytes_max {
            self.admission.bytes.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.requests.fetch_sub(1, Ordering::Relaxed);
        self.admission.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_hold_and_what_is_given_back_can_be_taken_again() {
        let admission = Admission::new(2, 100);
        let first = admission.admit(60).unwrap();
        assert!(admission.admit(60).is_none());
        let second = admission.admit(40).unwrap();
        assert!(admission.admit(0).is_none());
        drop(first);
        let third = admission.admit(60).unwrap();
        assert_eq!(admission.under_way(), (2, 100));
        let mut third = third;
        assert!(!third.grow(1));
        drop(second);
        assert!(third.grow(40));
        assert_eq!(admission.under_way(), (1, 100));
        third.shrink_to(10);
        assert_eq!(admission.under_way(), (1, 10));
        drop(third);
        assert_eq!(admission.under_way(), (0, 0));
    }

    #[test]
    fn only_long_answers_take_a_share() {
        let admission = Admission::new(2, 100_000);
        assert!(admission.admit_answer(UNCOUNTED_BYTES_MAX - 1).unwrap().is_none());
        let asked = admission.admit(90_000).unwrap();
        assert!(admission.admit_answer(UNCOUNTED_BYTES_MAX).is_none(), "there is no room");
        let answer = asked.for_answer(UNCOUNTED_BYTES_MAX).unwrap();
        assert_eq!(admission.under_way(), (1, UNCOUNTED_BYTES_MAX));
        assert!(answer.for_answer(10).is_none());
        assert_eq!(admission.under_way(), (0, 0));
    }
}
