//! Invalidation: of keys, patterns, tags, keyspaces and tenants.
//!
//! Written to the journal, then sent by a task of its own, so that dropping the caller's future still invalidates; what
//! fails is sent again (`resend`). The near tier is bumped before the command is sent and again after the reply: a read of
//! this process that was sent in between may have been answered with the old value.

pub(crate) mod backplane;
pub(crate) mod resend;

use std::time::Duration;

use crate::{
    error::{Detail, Error, ErrorKind},
    key::{
        FullKey, Prefix,
        pattern::{Glob, Pattern},
        tag::tag_generation,
    },
    pending::coverage::Coverage,
    state::State,
    sync::Arc,
};

/// The longest write fence.
const LONGEST_HOLD: Duration = Duration::from_secs(600);

/// What became of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`Pending` means that other processes may still serve the old value"]
pub enum Invalidated {
    /// Done: no call that begins now gets an older value from Redis, and near tiers follow within three seconds.
    Applied,
    /// Redis could not be told. This process serves the old value no more. Until Redis has heard of the invalidation, Redis
    /// and other processes may serve it. [`Cache::health`](crate::Cache::health) says why. Where the Redis user may not publish, the value is removed from
    /// Redis, but nobody can be told: other processes keep near copies.
    ///
    /// Some invalidations are never sent, only reported in the log:
    ///
    /// - one by an annotated function where the environment is wrong, so that no Redis is known,
    /// - one by a cache that is closed,
    /// - one whose key cannot be built although there may be an entry: its tenant cannot be used, or the user's own
    ///   `Serialize` or `Display` failed,
    /// - one by a pattern that is too long.
    ///
    /// Any other is sent again until Redis has heard it, also after the last clone of the cache is dropped, as long
    /// as a tokio runtime is driven on which it was called, or on which the cache is used later. It is lost when that
    /// runtime is dropped with the last clone, when the process ends, and when the cache is closed.
    Pending,
}

impl Invalidated {
    /// Whether the invalidation is done.
    #[must_use]
    pub fn is_applied(self) -> bool {
        self == Self::Applied
    }

    /// Of two parts: done when both are.
    pub(crate) fn and(self, other: Self) -> Self {
        if self.is_applied() { other } else { self }
    }
}

/// What becomes of the invalidation of a key that cannot be built. Done only where no entry can be under it: a tenant
/// that cannot be used was meant to be another one, and the user's own code may have done better before.
pub(crate) fn unnamed(state: &State, error: &Error) -> Invalidated {
    state.sink.report("invalidate", error);
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidKey, Detail::None) => Invalidated::Applied,
        _ => Invalidated::Pending,
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
    let is_up = state.fences.put_up(key.as_str(), now.saturating_add(hold), now);
    if state.remote.is_some() {
        return apply(state, vec![Coverage::Key(Box::new(key.clone()))], hold).await;
    }
    // After the fence is up: whoever did not see it took its watch before this, and stores nothing.
    state.near.stripes.bump(key.as_str());
    state.near.remove(key.as_str());
    if is_up && knows_others(state) { Invalidated::Applied } else { Invalidated::Pending }
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
pub(crate) async fn pattern(state: &Arc<State>, scope: &Prefix, pattern: Pattern) -> Invalidated {
    match pattern {
        Pattern::Scope => self::scope(state, scope).await,
        Pattern::Keyspace(profile) => keyspace(state, scope, &profile).await,
        Pattern::Keys(glob) => {
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
        return if knows_others(state) { Invalidated::Applied } else { Invalidated::Pending };
    }
    if state.is_closed() {
        // Nobody is told: the caches of other processes may still serve the old value.
        let message = "the cache is closed: other processes are not told of an invalidation";
        state.sink.report("invalidate", &Error::new(ErrorKind::Closed, message));
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
    let sent = runtime.spawn(async move { resend::send(&sender, &records, hold).await });
    match sent.await {
        Ok(true) => Invalidated::Applied,
        Ok(false) | Err(_) => Invalidated::Pending,
    }
}

/// Whether this process would know of a Redis, and so of other processes; else that is reported.
fn knows_others(state: &State) -> bool {
    if state.cut_off {
        let message =
            "the environment is wrong, so that no Redis is known: other processes are not told of an invalidation";
        state.sink.report("invalidate", &Error::new(ErrorKind::InvalidConfig, message));
    }
    !state.cut_off
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
