//! Sees when a server is back that calls go past. In the background, so that also the first call after a long pause finds
//! it in use.

use std::time::Duration;

use rand::RngExt as _;

use super::{
    Wire, failure,
    send::{Budget, Tries, is_int, open},
};
use crate::{
    clock::sleep,
    error::Error,
    sync::{Arc, Weak},
    task::Term,
};

/// Pauses between attempts, jittered, growing from one to the other: how late it is seen at worst.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Wire {
    /// Sees to it that a task looks for the server. Costs a load and a look at the clock where there is one.
    pub(super) fn ensure_recovery(self: &Arc<Self>) {
        let wire = Arc::downgrade(self);
        self.recovery.ensure(|term| recover(wire, term));
    }

    /// Whether the server is there, also past an open breaker, which is closed then. Where it is not open its count of
    /// failures stays: another connection may be dead while this one is not.
    pub(crate) async fn check(self: &Arc<Self>) -> Result<(), Error> {
        if self.breaker.is_open() {
            self.look().await;
            return if self.breaker.is_open() { Err(open()) } else { Ok(()) };
        }
        let probed = self.attempt(None, &self.probe, is_int, Tries::Two);
        match Budget::new(self.op_timeout).limit(probed).await {
            Err(error) if failure::opens_breaker(&error) => {
                self.note_failure();
                Err(error)
            }
            // An answer, be it an error.
            _ => Ok(()),
        }
    }

    /// Closes the breaker if the server takes writes: a replica answers reads, and would open and close it in turns.
    async fn look(&self) {
        let is_back = async || !self.ping(self.op_timeout).await.is_err_and(|error| failure::opens_breaker(&error));
        if is_back().await || (!self.pool.reset() && self.pool.overtake().await && is_back().await) {
            self.breaker.succeeded();
        }
    }
}

/// Looks again and again until the breaker is closed, by this task or a call that was under way.
async fn recover(wire: Weak<Wire>, term: Arc<Term>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        sleep(jittered).await;
        let Some(wire) = wire.upgrade() else { return };
        if wire.breaker.is_open() {
            wire.look().await;
        }
        if !wire.breaker.is_open() {
            term.end();
            // Opened while this task was ending: whoever did so took it for running.
            if wire.breaker.is_open() {
                wire.ensure_recovery();
            }
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
