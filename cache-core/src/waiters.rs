//! Calls that wait for the lease of another process, by key, so that a notice wakes the right ones.

use std::collections::HashMap;

use tokio::sync::{Notify, futures::Notified};

use crate::sync::{Arc, Mutex};

#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<HashMap<Box<str>, Arc<Notify>>>);

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
        let notify = self.0.lock().entry(key.clone()).or_default().clone();
        Waiter { waiters: self, key, notify }
    }

    /// Wakes all that wait for the lease of `key`.
    pub(crate) fn wake(&self, key: &str) {
        if let Some(notify) = self.0.lock().get(key) {
            notify.notify_waiters();
        }
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
        // The map's and this one's: nobody else waits.
        if Arc::strong_count(&self.notify) == 2 {
            waiters.remove(&self.key);
        }
    }
}
