//! Invalidation: of keys, patterns, tags, keyspaces and tenants.
//!
//! Written to the journal, then sent by a task of its own, so that dropping the caller's future still invalidates.
//! The near tier is bumped before the command is sent and again after the reply: a read of this process that was
//! sent in between may have been answered with the old value.

pub(crate) mod backplane;

use std::time::Duration;

use rand::RngExt as _;

use crate::{
    error::{Error, ErrorKind},
    key::{
        FullKey, Prefix, keyspace_generation,
        pattern::{self, Glob},
        scope_generation,
        tag::tag_generation,
    },
    pending::journal::{Coverage, Record},
    remote::{Budget, LATE, Reconnect, Remote, notice::Notice},
    state::State,
    sync::{Arc, Ordering},
};

/// Pauses between attempts to send what Redis has not heard, jittered, growing from one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Keys of one round trip: what a slow server does within a short `op_timeout`.
const CHUNK: usize = 128;
/// The longest write fence.
const LONGEST_HOLD: Duration = Duration::from_secs(600);

/// What became of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`Pending` means that other processes may still serve the old value"]
pub enum Invalidated {
    /// Done: no call that begins now gets an older value from Redis, and near tiers follow within three seconds.
    Applied,
    /// Redis could not be reached or denies its user a right, or the cache is closed. This process serves the old
    /// value no more, and sends the invalidation again until Redis has heard it or the process ends; until then Redis and
    /// other processes may serve the old value. [`Cache::health`](crate::Cache::health) says why. Where the Redis user may
    /// not publish, the value is removed from Redis, but nobody can be told: other processes keep near copies.
    Pending,
}

impl Invalidated {
    /// Whether the invalidation is done.
    #[must_use]
    pub fn is_applied(self) -> bool {
        self == Self::Applied
    }
}

/// Invalidates keys, in one round trip.
pub(crate) async fn keys(state: &Arc<State>, keys: &[FullKey]) -> Invalidated {
    apply(state, keys.iter().map(|key| Coverage::Key(Box::new(key.clone()))).collect(), Duration::ZERO).await
}

/// Invalidates a key and lets nobody store under it for a while, in one round trip.
pub(crate) async fn hold(state: &Arc<State>, key: &FullKey, hold: Duration) -> Invalidated {
    if hold > LONGEST_HOLD {
        let message = format!("a write fence for {hold:?} is put up for {LONGEST_HOLD:?}, the longest there is");
        state.sink.report("hold", &Error::new(ErrorKind::InvalidConfig, message));
    }
    let hold = hold.min(LONGEST_HOLD);
    let now = state.clock.now();
    // Beside Redis too: what this process fetches without having asked there must not be kept near.
    let held = state.holds.hold(key.as_str(), now.saturating_add(hold), now);
    if state.remote.is_some() {
        return apply(state, vec![Coverage::Key(Box::new(key.clone()))], hold).await;
    }
    // After the fence is up: whoever did not see it took its watch before this, and stores nothing.
    state.near.stripes.bump(key.as_str());
    state.near.remove(key.as_str());
    if held { Invalidated::Applied } else { Invalidated::Pending }
}

/// Invalidates a whole tenant, or all keys of no tenant, in one round trip.
pub(crate) async fn scope(state: &Arc<State>, scope: &Prefix) -> Invalidated {
    apply(state, vec![Coverage::Scope(scope.to_string())], Duration::ZERO).await
}

/// Invalidates one keyspace of a tenant, in one round trip.
pub(crate) async fn keyspace(state: &Arc<State>, scope: &Prefix, profile: &str) -> Invalidated {
    apply(state, vec![Coverage::Keyspace(format!("{scope}{profile}"))], Duration::ZERO).await
}

/// Invalidates what names a tag of a tenant, in one round trip. `tag` is percent-encoded.
pub(crate) async fn tag(state: &Arc<State>, scope: &Prefix, tag: &str) -> Invalidated {
    apply(state, vec![Coverage::Tag(tag_generation(scope, tag))], Duration::ZERO).await
}

/// Invalidates what a pattern covers.
pub(crate) async fn pattern(state: &Arc<State>, scope: &Prefix, covers: pattern::Coverage) -> Invalidated {
    match covers {
        pattern::Coverage::Scope => self::scope(state, scope).await,
        pattern::Coverage::Keyspace(profile) => keyspace(state, scope, &profile).await,
        pattern::Coverage::Keys(glob) => {
            apply(state, vec![Coverage::Pattern { scope: scope.to_string(), glob }], Duration::ZERO).await
        }
    }
}

async fn apply(state: &Arc<State>, coverages: Vec<Coverage>, hold: Duration) -> Invalidated {
    if coverages.is_empty() {
        return Invalidated::Applied;
    }
    if state.remote.is_none() {
        coverages.iter().for_each(|coverage| bump(state, coverage));
        return Invalidated::Applied;
    }
    if state.is_closed() {
        // Nobody is told: the caches of other processes may still serve the old value.
        return Invalidated::Pending;
    }
    let records = coverages.into_iter().map(|coverage| state.journal.record(coverage)).collect::<Vec<_>>();
    // After it was written down: whoever still saw nothing in the journal took its watch before this.
    records.iter().for_each(|record| bump(state, &record.coverage));
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        let message = "an invalidation outside of a tokio runtime waits in the journal for a call from within one";
        state.sink.report("invalidate", &Error::new(ErrorKind::Unavailable, message));
        return Invalidated::Pending;
    };
    let sender = state.clone();
    let sent = runtime.spawn(async move { send(&sender, &records, hold).await });
    match sent.await {
        Ok(true) => Invalidated::Applied,
        Ok(false) | Err(_) => Invalidated::Pending,
    }
}

/// Invalidates as soon as Redis can be reached, without waiting for it.
pub(crate) fn later(state: &Arc<State>, coverage: Coverage) {
    bump(state, &coverage);
    state.journal.record(coverage);
    replay(state);
}

/// Invalidates a key when the server takes no SET any more that was sent before.
pub(crate) fn when_late(state: &Arc<State>, key: &FullKey) {
    let coverage = Coverage::Key(Box::new(key.clone()));
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (state, arrived) = (Arc::downgrade(state), state.options.op_timeout + 2 * LATE);
        runtime.spawn(async move {
            tokio::time::sleep(arrived).await;
            if let Some(state) = state.upgrade() {
                later(&state, coverage);
            }
        });
    }
}

/// Sees to it that a task sends what the journal holds: for records made outside of a runtime, widened ones, and those
/// whose task ended with its runtime. Costs one load where there is nothing.
pub(crate) fn ensure(state: &Arc<State>) {
    if state.journal.has_pending() && !state.replaying.load(Ordering::Acquire) && !state.is_closed() {
        replay(state);
    }
}

/// What follows a reconnect: the server may have lost what it acknowledged lately.
pub(crate) fn reconnected(state: &Arc<State>, why: Reconnect) {
    if why == Reconnect::Moved {
        // Others have been heard of, and have spoken, at the new primary for a while.
        state.near.stripes.bump_everything();
    }
    state.journal.doubt();
    if state.journal.has_pending() {
        replay(state);
    }
}

/// Sends what was recorded; what fails is sent again in the background. Returns whether all of it was acknowledged.
async fn send(state: &Arc<State>, records: &[Record], hold: Duration) -> bool {
    let Some(remote) = &state.remote else { return true };
    match send_once(state, remote, records, hold).await {
        Ok(()) => {
            ensure(state);
            true
        }
        Err(error) => {
            state.sink.report("invalidate", &error);
            replay(state);
            false
        }
    }
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

/// Sends again what the journal holds until Redis has heard all of it. One task at a time.
fn replay(state: &Arc<State>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    if state.replaying.swap(true, Ordering::SeqCst) {
        return;
    }
    let turn = Turn(Arc::downgrade(state));
    runtime.spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::time::sleep(jittered).await;
            let Some(state) = turn.0.upgrade().filter(|state| !state.is_closed()) else { return };
            let Some(remote) = &state.remote else { return };
            let pending = state.journal.pending();
            if pending.is_empty() {
                drop(turn);
                // Recorded while this task was ending: whoever did so took it for running.
                if state.journal.has_pending() {
                    replay(&state);
                }
                return;
            }
            // A fence that was not put up in time is of no use any more.
            match send_once(&state, remote, &pending, Duration::ZERO).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    state.sink.report("replay", &error);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    });
}

/// The turn of the replaying task. Given back when it ends, also with its runtime.
struct Turn(std::sync::Weak<State>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(state) = self.0.upgrade() {
            state.replaying.store(false, Ordering::SeqCst);
        }
    }
}

/// Makes the near tier and running fetches forget what an invalidation covers.
fn bump(state: &State, coverage: &Coverage) {
    let stripes = &state.near.stripes;
    match coverage {
        Coverage::Key(key) => bump_key(state, key.as_str()),
        Coverage::Keyspace(name) | Coverage::Scope(name) | Coverage::Tag(name) => stripes.bump(name),
        // Which keys other processes hold is not known here, and copies are cheap to fetch again.
        Coverage::Pattern { scope, .. } if state.remote.is_some() => stripes.bump(scope),
        Coverage::Pattern { scope, glob } => bump_covered(state, scope, glob),
    }
}

/// Forgets one key, and dooms the fetches of it.
///
/// A stripe is shared by many keys, so a bump costs them a round trip each; without Redis it would lose them. There a
/// fetch that stores is always in a flight, and leaves it only after its entry is in the near tier: with no flight
/// under way, removing the entry is all there is to do, and exact.
pub(crate) fn bump_key(state: &State, key: &str) {
    if state.remote.is_some() || state.flights.is_under_way(key) {
        state.near.stripes.bump(key);
    }
    state.near.remove(key);
}

/// Without Redis the near tier is the only one, so a pattern spares what it does not cover. Flights first: a fetch
/// that ends in between leaves its flight after its entry is in the near tier, where the second look finds it. One
/// that begins later began after this invalidation was called.
fn bump_covered(state: &State, scope: &str, glob: &Glob) {
    let covers = |key: &str| key.strip_prefix(scope).is_some_and(|key| glob.covers(key));
    for key in state.flights.keys(covers) {
        state.near.stripes.bump(&key);
    }
    for key in state.near.keys(covers) {
        bump_key(state, &key);
    }
}
