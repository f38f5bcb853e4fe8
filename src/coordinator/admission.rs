//! How much may be under way at once: a count and bytes, taken when a request begins and given back when its last
//! answer has come. Past either bound a request is refused before anything was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
}
