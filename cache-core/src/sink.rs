//! Where failures go that no caller sees: into the log, at most once in a while for each kind.

use std::{
    any::TypeId,
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{
    clock::{Clock, Instant},
    error::Error,
    sync::Mutex,
};

/// At most one line per kind and this period.
const QUIET: Duration = Duration::from_secs(10);

/// Reports failures of the background and of degraded calls.
#[derive(Debug)]
pub(crate) struct Sink {
    clock: Clock,
    recent: Mutex<HashMap<&'static str, Recent>>,
    /// What is said once: for which step, profile and type.
    said: Mutex<HashSet<(&'static str, &'static str, TypeId)>>,
}

#[derive(Debug)]
struct Recent {
    reported: Instant,
    suppressed: u64,
}

impl Sink {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, recent: Mutex::default(), said: Mutex::default() }
    }

    /// Logs `error` under the step `what`, unless the same step was logged less than ten seconds ago.
    pub(crate) fn report(&self, what: &'static str, error: &Error) {
        let now = self.clock.now();
        let suppressed = {
            let mut recent = self.recent.lock();
            match recent.get_mut(what) {
                Some(last) if now.since(last.reported) < QUIET => {
                    last.suppressed += 1;
                    return;
                }
                Some(last) => {
                    last.reported = now;
                    std::mem::take(&mut last.suppressed)
                }
                None => {
                    recent.insert(what, Recent { reported: now, suppressed: 0 });
                    0
                }
            }
        };
        tracing::warn!(target: "cache_core", step = what, kind = ?error.kind(), suppressed, "{error}");
    }

    /// Looks into something once for each profile and type, and logs what there is to say.
    pub(crate) fn once<T: 'static>(
        &self,
        what: &'static str,
        profile: &'static str,
        look: impl FnOnce() -> Option<String>,
    ) {
        if !self.said.lock().insert((what, profile, TypeId::of::<T>())) {
            return;
        }
        if let Some(message) = look() {
            tracing::warn!(target: "cache_core", step = what, "{message}");
        }
    }
}
