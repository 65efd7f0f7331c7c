//! Write fences of this process: keys under which nothing may be stored for a while. Without Redis there are no others;
//! beside Redis they count where it was not asked, or did not answer.

use std::collections::HashMap;

use crate::{
    clock::Instant,
    sync::{AtomicUsize, Mutex, Ordering},
};

/// Most fences at a time.
const CAP: usize = 65_536;

#[derive(Debug, Default)]
pub(crate) struct Fences {
    /// How many there may be: all that is looked at while there is none.
    count: AtomicUsize,
    until: Mutex<HashMap<Box<str>, Instant>>,
}

impl Fences {
    /// Puts a fence up; one that lasts longer stays. False when there are too many.
    pub(crate) fn put_up(&self, key: &str, until: Instant, now: Instant) -> bool {
        let mut fences = self.until.lock();
        if fences.len() >= CAP || fences.len() == fences.capacity() {
            fences.retain(|_, until| now < *until);
        }
        let is_room = fences.len() < CAP || fences.contains_key(key);
        if is_room {
            let fence = fences.entry(key.into()).or_insert(until);
            *fence = until.max(*fence);
        }
        self.count.store(fences.len(), Ordering::SeqCst);
        is_room
    }

    /// Whether a fence is up.
    pub(crate) fn is_up(&self, key: &str, now: Instant) -> bool {
        self.count.load(Ordering::SeqCst) > 0 && self.until.lock().get(key).is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_fence_ends_by_itself_is_never_shortened_and_their_number_is_bounded() {
        let (fences, now) = (Fences::default(), Clock::Coarse.now());
        let at = |ms| now.saturating_add(Duration::from_millis(ms));
        assert!(!fences.is_up("k", now));
        assert!(fences.put_up("k", at(100), now) && fences.put_up("k", at(50), now));
        assert!(fences.is_up("k", at(99)) && !fences.is_up("k", at(100)) && !fences.is_up("other", now));
        let put_up = (0..CAP + 10).filter(|n| fences.put_up(&n.to_string(), at(1_000), at(200))).count();
        assert_eq!(put_up, CAP);
        assert!(fences.put_up("later", at(2_000), at(1_000)), "those that ended make room");
    }
}
