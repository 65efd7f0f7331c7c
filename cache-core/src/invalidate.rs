//! Invalidation: of keys, patterns, keyspaces and tenants.
//!
//! The near tier is bumped before the command is sent and again after the reply: a read of this process that was
//! sent in between may have been answered with the old value.

use crate::{
    error::Error,
    key::{FullKey, Prefix, keyspace_generation, pattern::Coverage, pattern::Glob, scope_generation},
    notice::Notice,
    remote::{Budget, Remote},
    state::State,
    sync::Arc,
};

/// What became of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`Pending` means that other processes may still serve the old value"]
pub enum Invalidated {
    /// Done: no call that begins now gets an older value from Redis, and near tiers follow within three seconds.
    Applied,
    /// Redis could not be reached. This process no longer serves the value from memory; Redis and other processes
    /// may, until the entry's TTL ends. Invalidate again once Redis answers.
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
    let bump = || {
        for key in keys {
            state.near.stripes.bump(key.as_str());
            state.near.remove(key.as_str());
        }
    };
    bump();
    let Some(remote) = remote(state).filter(|_| !keys.is_empty()) else { return Invalidated::Applied };
    let sent = remote.invalidate(&mut budget(state), keys).await;
    bump();
    outcome(state, sent)
}

/// Invalidates a whole tenant, or all keys of no tenant, in one round trip.
pub(crate) async fn scope(state: &Arc<State>, scope: &Prefix) -> Invalidated {
    state.near.stripes.bump(scope);
    let Some(remote) = remote(state) else { return Invalidated::Applied };
    let sent = remote.invalidate_generation(&mut budget(state), &scope_generation(scope), Notice::Scope(scope)).await;
    state.near.stripes.bump(scope);
    outcome(state, sent)
}

/// Invalidates one keyspace of a tenant, in one round trip.
pub(crate) async fn keyspace(state: &Arc<State>, scope: &Prefix, profile: &str) -> Invalidated {
    let keyspace = format!("{scope}{profile}");
    state.near.stripes.bump(&keyspace);
    let Some(remote) = remote(state) else { return Invalidated::Applied };
    let generation = keyspace_generation(&keyspace);
    let sent = remote.invalidate_generation(&mut budget(state), &generation, Notice::Keyspace(&keyspace)).await;
    state.near.stripes.bump(&keyspace);
    outcome(state, sent)
}

/// Invalidates what a pattern covers.
pub(crate) async fn pattern(state: &Arc<State>, scope: &Prefix, coverage: Coverage) -> Invalidated {
    let glob = match coverage {
        Coverage::Scope => return self::scope(state, scope).await,
        Coverage::Keyspace(profile) => return keyspace(state, scope, &profile).await,
        Coverage::Keys(glob) => glob,
    };
    let Some(remote) = remote(state) else {
        bump_covered(state, scope, &glob);
        return Invalidated::Applied;
    };
    // Which keys other processes hold is not known here, and copies are cheap to fetch again.
    state.near.stripes.bump(scope);
    let swept = remote.sweep(scope, &glob).await;
    state.near.stripes.bump(scope);
    outcome(state, swept.map(drop))
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
        state.near.stripes.bump(&key);
        state.near.remove(&key);
    }
}

fn remote(state: &Arc<State>) -> Option<&Arc<Remote>> {
    state.remote.as_ref().filter(|_| !state.is_off())
}

fn budget(state: &State) -> Budget {
    Budget::new(state.options.op_timeout)
}

fn outcome(state: &State, sent: Result<(), Error>) -> Invalidated {
    match sent {
        Ok(()) => Invalidated::Applied,
        Err(error) => {
            state.sink.report("invalidate", &error);
            Invalidated::Pending
        }
    }
}
