//! Write fences of this process: keys under which nothing may be stored for a while. Without Redis there are no others;
//! beside Redis they count where it was not asked, or did not answer.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use crate::{
    clock::Instant,
    sync::{Arc, AtomicUsize, Mutex, Ordering},
};

/// Most fences at a time.
const CAP: usize = 65_536;

#[derive(Debug, Default)]
pub(crate) struct Fences {
    /// How many there may be: all that is looked at while there is none.
    count: AtomicUsize,
    up: Mutex<Up>,
}

#[derive(Debug, Default)]
struct Up {
    until: HashMap<Arc<str>, Instant>,
    /// Each key once, with an end that its fence does not precede: what has ended is found without a look at the rest.
    ends: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
}

impl Up {
    /// Takes down what has ended.
    fn tidy(&mut self, now: Instant) {
        while let Some(Reverse((end, _))) = self.ends.peek()
            && *end <= now
            && let Some(Reverse((_, key))) = self.ends.pop()
        {
            match self.until.get(&key) {
                Some(until) if now < *until => self.ends.push(Reverse((*until, key))),
                _ => drop(self.until.remove(&key)),
            }
        }
    }
}

impl Fences {
    /// Puts a fence up; one that lasts longer stays. False when there are too many. Cost: grows with the logarithm of
    /// their number.
    pub(crate) fn put_up(&self, key: &str, until: Instant, now: Instant) -> bool {
        let mut up = self.up.lock();
        up.tidy(now);
        let is_up = up.until.get_mut(key).map(|end| *end = until.max(*end)).is_some();
        let is_room = is_up || up.until.len() < CAP;
        if is_room && !is_up {
            let key: Arc<str> = key.into();
            up.ends.push(Reverse((until, key.clone())));
            up.until.insert(key, until);
        }
        self.count.store(up.until.len(), Ordering::SeqCst);
        is_room
    }

    /// Whether a fence is up.
    pub(crate) fn is_up(&self, key: &str, now: Instant) -> bool {
        self.count.load(Ordering::SeqCst) > 0 && self.up.lock().until.get(key).is_some_and(|until| now < *until)
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
        let up = fences.up.lock();
        assert_eq!((up.until.len(), up.ends.len()), (1, 1));
    }

    /// Fetches wait for whoever puts one up.
    #[test]
    fn one_too_many_costs_no_look_at_all_the_others() {
        let (fences, now) = (Fences::default(), Clock::Coarse.now());
        let at = |ms| now.saturating_add(Duration::from_millis(ms));
        assert!((0..CAP as u64).all(|n| fences.put_up(&n.to_string(), at(1_000 + n), now)));
        let begun = std::time::Instant::now();
        assert!((0..10_000).all(|n| !fences.put_up(&format!("over {n}"), at(1_000_000), now)));
        // A look at all of them takes three milliseconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // One that was made longer ends when it is said to.
        assert!(fences.put_up("0", at(1_500), now));
        assert!(fences.put_up("over", at(2_000), at(1_100)) && fences.is_up("0", at(1_499)));
        assert!(fences.put_up("over", at(2_000), at(1_500)) && !fences.up.lock().until.contains_key("0"));
    }
}
