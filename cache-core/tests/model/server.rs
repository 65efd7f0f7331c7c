//! Redis as the smaller models see it: values, leases and generations of a few keys, and its commands, each atomic.
//!
//! **Versions.** What a value is worth is a set: the writes that its fetch has seen. A write that must be seen and is not
//! in it makes the value stale.
//!
//! **Ids** are random, so all that matters of a noted one is whether it is the current one. Each set of generations is a
//! bit mask.

/// Writes, by number.
pub(crate) type Writes = u8;
/// Generations, by number.
pub(crate) type Generations = u8;

pub(crate) const SCOPE: Generations = 1;
pub(crate) const TAG: Generations = 2;

/// A clause that can be left out, of the server's commands or of who sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    /// FILL: is the lease mine?
    FillComparesToken,
    /// FILL: is the generation of tenant and keyspace as noted?
    FillComparesScope,
    /// FILL: are the tags' generations as noted?
    FillComparesTags,
    /// FILL drops the lease.
    FillDropsLease,
    /// A hit compares the generation of tenant and keyspace.
    HitComparesScope,
    /// A hit compares the tags' generations.
    HitComparesTags,
    /// A hit has as many generations as its reader names.
    HitComparesCount,
    /// A lost generation comes back under another id.
    RandomIds,
    /// LEASE under a write fence is not granted.
    LeaseHonoursFence,
    /// SET under a write fence stores nothing.
    SetHonoursFence,
    /// INVALIDATE and RELEASE leave a write fence alone, and a shorter one does not replace it.
    InvalidateKeepsFence,
    ReleaseComparesToken,
    HoldNeverShortens,
    /// `invalidate_and_hold` puts a fence up: without, it is an invalidation like any other.
    HoldPutsUpFence,
    /// `Storage::Nowhere`: what is fetched under a fence is not kept near.
    FencedKeepsNothing,
    /// `lead::lead`: this process's own fences are looked at, whatever Redis said or failed to say.
    OwnFencesAreKnown,
    /// Without Redis: the fence is looked at after the watch was taken.
    FenceAfterWatch,
    /// Without Redis: the fence is up before the bump.
    FenceBeforeBump,
    /// Without Redis: the bump comes always, not only with a fetch under way.
    HoldBumpsAlways,
    /// `Flights::join`: a flight that does not watch all tags of a call is not joined by it.
    JoinCoversTags,
    /// `Near::is_alive`: nor is such a copy served to it.
    NearHitCoversTags,
    /// `refresh` invalidates before it takes the lease.
    RefreshInvalidates,
    /// `refresh` stores by FILL, not by SET.
    RefreshFills,
    /// `set.lua`: too late by the server's clock is refused.
    SetHasDeadline,
    /// `touch.lua` changes what is there, instead of storing what was read.
    TouchInPlace,
    /// Without Redis: `Near::touch` and what stores a value wait for each other.
    TouchLocks,
    /// Without Redis: TOUCH replaces what is there, and adds nothing.
    TouchOnlyReplaces,
    /// Without Redis: the touched entry keeps its watch.
    TouchKeepsWatch,
    /// `many.rs`: what a batch leads is fetched and stored before it waits for what it does not.
    BatchFetchesFirst,
    /// `take_leases`: a batch that holds leases waits for none.
    BatchWaitsForNoLease,
    /// A batch fetches after all its leases were granted.
    FetchAfterLeases,
    /// RENEW extends what is there, and creates nothing.
    RenewOnlyExtends,
    /// A dropped leader hands over to a follower.
    DropHandsOver,
    /// A leader that fails or is dropped gives its lease back.
    Releases,
    /// A follower takes the place of a leader that is not polled.
    Deposes,
    /// A follower waits for `max_fetch` at most.
    FollowersHavePatience,
    /// A leader waits for other processes one lease period at most.
    LeadersHavePatience,
    /// A lease ends by itself.
    LeasesExpire,
    /// Who may not take an outcome goes round again.
    HandOutLaw,
    /// After two rounds a call fetches for itself.
    TwoRounds,
}

/// The clauses that were taken out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Without(pub(crate) &'static [Clause]);

impl Without {
    pub(crate) fn has(self, clause: Clause) -> bool {
        !self.0.contains(&clause)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Value {
    pub(crate) seen: Writes,
    names: Generations,
    /// Those of `names` that were lost since.
    lost: Generations,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lease {
    Free,
    Held {
        holder: u8,
        names: Generations,
        lost: Generations,
    },
    /// A write fence, and until which writes are committed it lasts at least.
    Fence(Writes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Server<const KEYS: usize> {
    pub(crate) values: [Option<Value>; KEYS],
    pub(crate) leases: [Lease; KEYS],
    /// Generations that do not exist.
    missing: Generations,
}

/// The answer to LEASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leased {
    Found(Writes),
    Fenced,
    Taken,
    Granted,
}

impl<const KEYS: usize> Server<KEYS> {
    pub(crate) fn new() -> Self {
        Self { values: [None; KEYS], leases: [Lease::Free; KEYS], missing: 0 }
    }

    /// What READ by someone who names these generations returns now.
    pub(crate) fn hit(&self, without: Without, key: usize, names: Generations) -> Option<Writes> {
        let value = self.values[key]?;
        let mut compared = names & value.names;
        if without.has(Clause::HitComparesCount) && value.names != names {
            return None;
        }
        for (clause, generation) in [(Clause::HitComparesScope, SCOPE), (Clause::HitComparesTags, TAG)] {
            if !without.has(clause) {
                compared &= !generation;
            }
        }
        (compared & (value.lost | self.missing) == 0).then_some(value.seen)
    }

    fn create(&mut self, without: Without, names: Generations) {
        let created = self.missing & names;
        self.missing &= !names;
        if !without.has(Clause::RandomIds) {
            self.values.iter_mut().flatten().for_each(|value| value.lost &= !created);
            for lease in &mut self.leases {
                if let Lease::Held { lost, .. } = lease {
                    *lost &= !created;
                }
            }
        }
    }

    /// `lease.lua`.
    pub(crate) fn lease(&mut self, without: Without, key: usize, holder: u8, names: Generations) -> Leased {
        self.create(without, names);
        if let Some(seen) = self.hit(without, key, names) {
            return Leased::Found(seen);
        }
        match self.leases[key] {
            Lease::Fence(_) if without.has(Clause::LeaseHonoursFence) => return Leased::Fenced,
            Lease::Held { holder: other, names: noted, lost: 0 } if other != holder && noted == names => {
                return Leased::Taken;
            }
            _ => {}
        }
        self.leases[key] = Lease::Held { holder, names, lost: 0 };
        Leased::Granted
    }

    /// `fill.lua`. Returns whether the value was stored.
    pub(crate) fn fill(&mut self, without: Without, key: usize, by: u8, names: Generations, seen: Writes) -> bool {
        let lease = self.leases[key];
        let mine = matches!(lease, Lease::Held { holder, .. } if holder == by);
        if lease == Lease::Free || !mine && without.has(Clause::FillComparesToken) {
            return false;
        }
        if without.has(Clause::FillDropsLease) {
            self.leases[key] = Lease::Free;
        }
        let mut compared = names;
        for (clause, generation) in [(Clause::FillComparesScope, SCOPE), (Clause::FillComparesTags, TAG)] {
            if !without.has(clause) {
                compared &= !generation;
            }
        }
        let lost = if let Lease::Held { lost, .. } = lease { lost } else { 0 };
        let accepted = compared & (lost | self.missing) == 0;
        if accepted {
            self.values[key] = Some(Value { seen, names, lost: names & self.missing });
        }
        accepted
    }

    /// `release.lua`.
    pub(crate) fn release(&mut self, without: Without, key: usize, by: u8) {
        let mine = matches!(self.leases[key], Lease::Held { holder, .. } if holder == by);
        if mine || !without.has(Clause::ReleaseComparesToken) {
            self.leases[key] = Lease::Free;
        }
    }

    /// `set.lua`. Returns whether the value was stored.
    pub(crate) fn set(&mut self, without: Without, key: usize, names: Generations, seen: Writes) -> bool {
        if matches!(self.leases[key], Lease::Fence(_)) && without.has(Clause::SetHonoursFence) {
            return false;
        }
        self.create(without, names);
        self.leases[key] = Lease::Free;
        self.values[key] = Some(Value { seen, names, lost: 0 });
        true
    }

    /// `invalidate.lua` without a fence.
    pub(crate) fn invalidate(&mut self, without: Without, key: usize) {
        self.values[key] = None;
        if !matches!(self.leases[key], Lease::Fence(_)) || !without.has(Clause::InvalidateKeepsFence) {
            self.leases[key] = Lease::Free;
        }
    }

    /// `invalidate.lua` with a fence that lasts until this write is committed.
    pub(crate) fn hold(&mut self, without: Without, key: usize, write: Writes) {
        let up = if let Lease::Fence(lasts) = self.leases[key] { lasts } else { 0 };
        self.invalidate(without, key);
        if without.has(Clause::HoldPutsUpFence) {
            let kept = if without.has(Clause::HoldNeverShortens) { up } else { 0 };
            self.leases[key] = Lease::Fence(write | kept);
        }
    }

    /// `Remote::invalidate_generation`, and what eviction does to a generation.
    pub(crate) fn unlink(&mut self, generation: Generations) {
        self.missing |= generation;
        self.values.iter_mut().flatten().for_each(|value| value.lost |= value.names & generation);
        for lease in &mut self.leases {
            if let Lease::Held { names, lost, .. } = lease {
                *lost |= *names & generation;
            }
        }
    }
}
