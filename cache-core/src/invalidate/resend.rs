//! Sending what the journal holds, and sending it again until Redis has heard it.
//!
//! One task does so for all. While the journal holds acknowledged invalidations it also looks whether the server is there:
//! a process may stand idle when the server comes back without them, and would learn of it with its next command only. The
//! new connection tells that it is another run of the server, and what was acknowledged is pending again.
//!
//! The task keeps the cache's state alive for as long as anything is pending, whoever drops the last clone. It ends when
//! Redis has heard everything and the journal is empty, when the cache is closed, or with its runtime; then the next call
//! on any runtime begins another one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use rand::RngExt as _;

use super::bump;
use crate::{
    clock::{Instant, sleep},
    error::Error,
    key::{FullKey, keyspace_generation, scope_generation},
    pending::{coverage::Coverage, journal::Record},
    remote::{Budget, LATE, Reconnect, Remote, notice::Notice},
    state::State,
    sync::Arc,
    task::Term,
};

/// Pauses between attempts to send what Redis has not heard, jittered, growing from one to the other. The longest is also
/// the pause between two looks at the server: at most half a second with what the look takes.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// Keys of one round trip: what a slow server does within a short `op_timeout`.
const CHUNK: usize = 128;

/// Invalidates as soon as Redis can be reached, without waiting for it.
pub(crate) fn later(state: &Arc<State>, coverage: Coverage) {
    bump(state, &coverage);
    state.journal.record(coverage);
    ensure(state);
}

/// Invalidates a key when the server takes no SET any more that was sent before.
pub(crate) fn when_late(state: &Arc<State>, key: &FullKey) {
    let coverage = Coverage::Key(Box::new(key.clone()));
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (state, arrived) = (state.clone(), state.options.op_timeout + 2 * LATE);
        runtime.spawn(async move {
            sleep(arrived).await;
            later(&state, coverage);
        });
    }
}

/// Notes that Redis has executed what invalidates and was not written down before it was sent, at `sent_at`.
pub(crate) fn executed(state: &Arc<State>, coverage: Coverage, sent_at: Instant) {
    state.journal.record_acknowledged(coverage, sent_at);
    ensure(state);
}

/// Sees to it that a task minds the journal. Costs two loads where it is empty.
pub(crate) fn ensure(state: &Arc<State>) {
    if (state.journal.has_pending() || state.journal.has_acknowledged()) && !state.is_closed() {
        state.resending.ensure(|term| resend(state.clone(), term));
    }
}

/// What follows when the server may have lost what it acknowledged lately.
pub(crate) fn reconnected(state: &Arc<State>, why: Reconnect) {
    if why == Reconnect::Moved {
        // Others have been heard of, and have spoken, at the new primary for a while.
        state.near.stripes.bump_everything();
    }
    state.journal.doubt();
    ensure(state);
}

/// Sends what was recorded; what fails is sent again in the background. Returns whether all of it was acknowledged.
pub(super) async fn send(state: &Arc<State>, records: &[Record], hold: Duration) -> bool {
    let Some(remote) = &state.remote else { return true };
    let sent = send_once(state, remote, records, hold).await;
    // Widened meanwhile, or not heard.
    ensure(state);
    sent.inspect_err(|error| state.sink.report("invalidate", error)).is_ok()
}

/// Sends again what the journal holds until Redis has heard all of it, and looks at the server until it has forgotten.
async fn resend(state: Arc<State>, term: Arc<Term>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        sleep(jittered).await;
        let Some(remote) = state.remote.as_ref().filter(|_| !state.is_closed()) else { return };
        let is_dropped = Arc::strong_count(&state) == 1;
        if is_dropped {
            // Nobody has the cache any more. Dropping a value runs the user's code, which may panic.
            let _ = catch_unwind(AssertUnwindSafe(|| state.near.clear()));
        }
        let is_done = || !state.journal.has_pending() && (is_dropped || !state.journal.has_acknowledged());
        if is_done() {
            term.end();
            // Recorded while this task was ending: whoever did so took it for running.
            if !is_done() {
                ensure(&state);
            }
            return;
        }
        match mind(&state, remote).await {
            Ok(()) => pause = if state.journal.has_pending() { FIRST_PAUSE } else { LONGEST_PAUSE },
            Err(error) => {
                state.sink.report("resend", &error);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Looks whether the server is there, and sends what is pending.
async fn mind(state: &Arc<State>, remote: &Arc<Remote>) -> Result<(), Error> {
    let asked_at = state.clock.now();
    // On a new connection to another run of the server, this puts in doubt what is acknowledged.
    remote.check().await?;
    state.journal.alive(asked_at);
    // A fence that was not put up in time is of no use any more.
    send_once(state, remote, &state.journal.pending(), Duration::ZERO).await
}

/// Keys go in one round trip, everything else in its own.
async fn send_once(state: &Arc<State>, remote: &Arc<Remote>, records: &[Record], hold: Duration) -> Result<(), Error> {
    let budget = || Budget::new(state.options.op_timeout);
    let done = |record: &Record| {
        bump(state, &record.coverage);
        state.journal.acknowledge(record);
    };
    let is_key = |record: &&Record| matches!(record.coverage, Coverage::Key(_));
    let keys: Vec<FullKey> = records
        .iter()
        .filter_map(|record| if let Coverage::Key(key) = &record.coverage { Some((**key).clone()) } else { None })
        .collect();
    let mut failed = None;
    let keyed: Vec<&Record> = records.iter().filter(is_key).collect();
    for (keys, keyed) in keys.chunks(CHUNK).zip(keyed.chunks(CHUNK)) {
        match remote.invalidate(&mut budget(), keys, hold).await {
            Ok(()) => keyed.iter().copied().for_each(done),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => failed = Some(error),
        }
    }
    for record in records.iter().filter(|record| !is_key(record)) {
        let sent = match &record.coverage {
            Coverage::Keyspace(keyspace) => {
                let (generation, notice) = (keyspace_generation(keyspace), Notice::Keyspace(keyspace));
                remote.invalidate_generation(&mut budget(), &generation, notice).await
            }
            Coverage::Scope(scope) => {
                let (generation, notice) = (scope_generation(scope), Notice::Scope(scope));
                remote.invalidate_generation(&mut budget(), &generation, notice).await
            }
            Coverage::Tag(generation) => {
                remote.invalidate_generation(&mut budget(), generation, Notice::Tag(generation)).await
            }
            Coverage::Pattern { scope, glob } => remote.sweep(scope, glob).await.map(drop),
            Coverage::Key(_) => Ok(()),
        };
        match sent {
            Ok(()) => done(record),
            // One that the server refuses holds up no other, nor does a sweep, which takes long.
            Err(error) if error.is_unavailable() && !matches!(record.coverage, Coverage::Pattern { .. }) => {
                return Err(error);
            }
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}
