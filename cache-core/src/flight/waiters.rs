//! Calls that wait for the lease of another process, by key, so that a notice wakes the right ones.

use std::collections::HashMap;

use tokio::sync::{Notify, futures::Notified};

use crate::sync::{Arc, Mutex};

#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<HashMap<Box<str>, Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    notify: Arc<Notify>,
    calls: usize,
}

/// A registered wait. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    waiters: &'a Waiters,
    key: Box<str>,
    notify: Arc<Notify>,
}

impl Waiters {
    pub(crate) fn register(&self, key: &str) -> Waiter<'_> {
        let key: Box<str> = key.into();
        let mut waiters = self.0.lock();
        let waiting = waiters.entry(key.clone()).or_default();
        waiting.calls += 1;
        Waiter { waiters: self, key, notify: waiting.notify.clone() }
    }

    /// Wakes all that wait for the lease of `key`.
    pub(crate) fn wake(&self, key: &str) {
        let notify = self.0.lock().get(key).map(|waiting| waiting.notify.clone());
        // Under no lock: a waker may drop a call that waits.
        if let Some(notify) = notify {
            notify.notify_waiters();
        }
    }

    /// Wakes all that wait for any lease.
    pub(crate) fn wake_all(&self) {
        let waiting: Vec<_> = self.0.lock().values().map(|waiting| waiting.notify.clone()).collect();
        waiting.into_iter().for_each(|notify| notify.notify_waiters());
    }
}

impl Waiter<'_> {
    /// Ends with the next [`wake`](Waiters::wake) after it was enabled.
    pub(crate) fn released(&self) -> Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiters = self.waiters.0.lock();
        if let Some(waiting) = waiters.get_mut(&self.key) {
            waiting.calls -= 1;
            if waiting.calls == 0 {
                waiters.remove(&self.key);
            }
        }
    }
}
