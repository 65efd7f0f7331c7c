//! The protocol of `DESIGN.md`, explored exhaustively: every order in which its steps can happen, with two processes, three
//! callers, two writes and one fault of each kind. Each model says what it holds and what it leaves out.
//!
//! For each clause of a step there is a variant without it. Either a shortest trace to a broken guarantee is found,
//! which `--nocapture` prints, or the clause stands in `HOUSEKEEPING` with the reason why it is there nevertheless.

#[path = "model/alone.rs"]
mod alone;
#[path = "model/batch.rs"]
mod batch;
#[path = "model/check.rs"]
mod check;
#[path = "model/ends.rs"]
mod ends;
#[path = "model/fence.rs"]
mod fence;
#[path = "model/journal.rs"]
mod journal;
#[path = "model/lease.rs"]
mod lease;
#[path = "model/near.rs"]
mod near;
#[path = "model/scopes.rs"]
mod scopes;
#[path = "model/server.rs"]
mod server;
#[path = "model/writers.rs"]
mod writers;

use check::{breaks, exhaust, holds, is_needed, is_not_needed, stays_whole};
use server::{Clause, Without};

const COMPLETE: Without = Without(&[]);

mod redis {
    use super::{
        lease::{
            Clause, Faults,
            Mode::{self, Key, Keyspace, Pattern, Set},
            Protocol,
        },
        *,
    };

    const TWO_PROCESSES: [u8; 3] = [0, 0, 1];
    const ONE_PROCESS: [u8; 3] = [0, 0, 0];
    const ALL_FAULTS: Faults = Faults { expiry: 1, eviction: 1, leader: 1 };
    const NO_EVICTION: Faults = Faults { expiry: 1, eviction: 0, leader: 1 };

    /// No counterexample is known. Asserted with lost leases and leaders.
    const HOUSEKEEPING: [Clause; 3] = [
        // A lease left behind is taken for a running fetch: callers wait for it in vain until it expires. Its holder
        // is gone, so nothing is stored under it that the comparison of generations would not refuse.
        Clause::FillDropsLease,
        // FILL under an outdated lease is refused, so waiting for it is in vain; but it is only waiting.
        Clause::LeaseTakesOverOutdated,
        // Who joins too late is refused by the hand-out law; but has waited for that.
        Clause::ClosesWithoutVerdict,
    ];

    fn explore(writes: &'static [Mode], processes: [u8; 3], faults: Faults) {
        let name = format!("{writes:?} in {processes:?} with {faults:?}");
        exhaust(&name, Protocol { writes, processes, faults, without: None });
    }

    #[test]
    fn one_write_of_each_kind_is_safe_with_every_fault() {
        for writes in [&[Key][..], &[Keyspace], &[Pattern], &[Set]] {
            explore(writes, TWO_PROCESSES, ALL_FAULTS);
            explore(writes, ONE_PROCESS, NO_EVICTION);
        }
    }

    #[test]
    fn two_writes_are_safe_when_a_lease_expires() {
        let faults = Faults { expiry: 1, eviction: 0, leader: 0 };
        for writes in [&[Key, Pattern][..], &[Keyspace, Key], &[Pattern, Keyspace], &[Set, Key], &[Key, Set]] {
            explore(writes, TWO_PROCESSES, faults);
        }
    }

    #[test]
    fn two_writes_are_safe_when_a_key_is_evicted() {
        let faults = Faults { expiry: 0, eviction: 1, leader: 0 };
        for writes in [&[Keyspace, Pattern][..], &[Set, Keyspace], &[Pattern, Set]] {
            explore(writes, TWO_PROCESSES, faults);
        }
    }

    #[test]
    fn no_step_of_redis_can_do_without_its_clauses() {
        for (clause, writes) in [
            (Clause::FillComparesToken, &[Key][..]),
            (Clause::FillComparesGenerations, &[Keyspace]),
            (Clause::FillComparesFence, &[Pattern]),
            (Clause::HitComparesGenerations, &[Keyspace]),
            (Clause::LeaseIsExclusive, &[Key]),
            (Clause::RandomIds, &[Keyspace]),
            (Clause::SetDropsLease, &[Set]),
            (Clause::InvalidateDropsLease, &[Key]),
            (Clause::LawA, &[Key]),
            (Clause::LawB, &[Key]),
            (Clause::NothingIsJudged, &[Key]),
            (Clause::ReleaseComparesToken, &[Key]),
        ] {
            assert!(!HOUSEKEEPING.contains(&clause));
            let model = Protocol { writes, processes: TWO_PROCESSES, faults: ALL_FAULTS, without: Some(clause) };
            is_needed(&format!("{clause:?}"), model);
        }
    }

    #[test]
    fn what_is_called_housekeeping_in_redis_is() {
        for clause in HOUSEKEEPING {
            for writes in [&[Key][..], &[Pattern]] {
                let faults = NO_EVICTION;
                let model = Protocol { writes, processes: TWO_PROCESSES, faults, without: Some(clause) };
                is_not_needed(&format!("{clause:?} with {writes:?}"), model);
            }
        }
    }
}

mod near_tier {
    use super::{
        near::{Clause, Near},
        *,
    };

    /// No counterexample is known, whoever writes.
    const HOUSEKEEPING: [Clause; 3] = [
        // The bump after the reply comes before the call returns. What the first one is for is `Pending`: see the
        // journal's model, where it is needed.
        Clause::FirstBump,
        // What no command accepted is as new as its fetch, and whatever comes later is heard or bumped on a new
        // subscription. That the link does not vouch for it guards against what is no part of this model: a server
        // that vouches and is not the one that others write to.
        Clause::LinkVouchesForConfirmed,
        // The word that was given was given before the link failed, and runs out before a missed notice is due.
        Clause::FailedLinkIsDown,
    ];

    #[test]
    fn near_copies_are_safe_when_the_link_is_lost() {
        for own in [[true, false], [false, true]] {
            exhaust(&format!("near tier, own writes {own:?}"), Near { own, without: None });
        }
    }

    #[test]
    fn the_near_tier_cannot_do_without_its_clauses() {
        for clause in [
            Clause::HitChecksStripes,
            Clause::SnapshotBeforeSending,
            Clause::TimeBound,
            Clause::BoundFromAsking,
            Clause::BumpOnResubscribe,
            Clause::BumpAfterSubscribed,
            Clause::NonceFromSending,
            Clause::SecondBump,
            Clause::SetKeepsNothing,
        ] {
            assert!(!HOUSEKEEPING.contains(&clause));
            is_needed(&format!("{clause:?}"), Near { own: [true, false], without: Some(clause) });
        }
    }

    #[test]
    fn what_is_called_housekeeping_in_the_near_tier_is() {
        for clause in HOUSEKEEPING {
            is_not_needed(&format!("{clause:?}"), Near { own: [false, true], without: Some(clause) });
        }
    }
}

mod pending {
    use super::{
        journal::{Clause, Journal},
        *,
    };

    #[test]
    fn pending_invalidations_are_safe_at_home_and_reach_redis() {
        exhaust("journal, two writes", Journal { writes: 2, failover: false, set: false, without: None });
        exhaust("journal, one write and a failover", Journal { writes: 1, failover: true, set: false, without: None });
        exhaust("journal, one `set` and a failover", Journal { writes: 1, failover: true, set: true, without: None });
    }

    #[test]
    fn the_journal_cannot_do_without_its_clauses() {
        for (clause, writes, failover) in [
            (Clause::Written, 1, false),
            (Clause::WrittenBeforeBump, 1, false),
            (Clause::MustMiss, 1, false),
            (Clause::MustMissOnEveryAsk, 1, false),
            (Clause::WatchBeforeMustMiss, 1, false),
            (Clause::FirstBump, 1, false),
            (Clause::SecondBump, 1, true),
            (Clause::RecordNumbers, 2, false),
            (Clause::DoomedFlightsAreLeft, 1, false),
            (Clause::ReplayAfterReconnect, 1, true),
            (Clause::DoubtRenumbers, 1, true),
            (Clause::EveryHandshake, 1, true),
            (Clause::AgesWithTheServer, 1, true),
            (Clause::Widened, 1, true),
        ] {
            is_needed(&format!("{clause:?}"), Journal { writes, failover, set: false, without: Some(clause) });
        }
        for clause in [Clause::SetIsRecorded, Clause::SetBeforeDoubtIsPending] {
            is_needed(&format!("{clause:?}"), Journal { writes: 1, failover: true, set: true, without: Some(clause) });
        }
    }
}

mod without_redis {
    use super::{
        alone::{Alone, Clause},
        *,
    };

    /// Each is backed up by another: a call that comes after an invalidation does not join a flight that it dooms, so
    /// neither law nor verdict has anything to refuse; and where it did join, they would refuse. Two of them together
    /// are needed, as asserted below.
    const HOUSEKEEPING: [Clause; 4] =
        [Clause::StripesAreTheVerdict, Clause::LawA, Clause::LawB, Clause::DoomedFlightsAreLeft];

    #[test]
    fn a_cache_without_redis_is_safe() {
        exhaust("without Redis", Alone { at_once: false, without: &[] });
    }

    #[test]
    fn a_cache_without_redis_cannot_do_without_its_clauses() {
        for without in [
            &[Clause::HitChecksStripes][..],
            &[Clause::WatchBeforeFetch],
            &[Clause::FlightsFirst],
            &[Clause::FindsEveryLeader],
            &[Clause::DoomedFlightsAreLeft, Clause::StripesAreTheVerdict],
            &[Clause::DoomedFlightsAreLeft, Clause::LawA],
            &[Clause::DoomedFlightsAreLeft, Clause::LawB],
        ] {
            is_needed(&format!("{without:?}"), Alone { at_once: true, without });
        }
    }

    #[test]
    fn what_is_called_housekeeping_without_redis_is() {
        for without in [&[HOUSEKEEPING[0]], &[HOUSEKEEPING[1]], &[HOUSEKEEPING[2]], &[HOUSEKEEPING[3]]] {
            is_not_needed(&format!("{without:?}"), Alone { at_once: false, without });
        }
    }
}

mod write_fence {
    use super::{
        fence::{Embedded, Fence, Other},
        *,
    };

    #[test]
    fn a_row_read_before_a_fenced_commit_is_nowhere_after_it() {
        for other in [Other::Hold, Other::Invalidate, Other::Set] {
            holds(&format!("write fence beside {other:?}"), Fence { other, without: COMPLETE });
        }
        holds("write fence without Redis", Embedded { without: COMPLETE });
    }

    #[test]
    fn the_write_fence_cannot_do_without_its_clauses() {
        for (other, without) in [
            (Other::Invalidate, &[Clause::HoldPutsUpFence][..]),
            (Other::Invalidate, &[Clause::LeaseHonoursFence]),
            (Other::Set, &[Clause::SetHonoursFence]),
            (Other::Invalidate, &[Clause::InvalidateKeepsFence]),
            (Other::Hold, &[Clause::HoldNeverShortens]),
            (Other::Invalidate, &[Clause::FillComparesToken]),
            (Other::Invalidate, &[Clause::ReleaseComparesToken]),
            (Other::Invalidate, &[Clause::FencedKeepsNothing]),
            (Other::Invalidate, &[Clause::OwnFencesAreKnown]),
        ] {
            breaks(&without, Fence { other, without: Without(without) });
        }
        for without in [
            &[Clause::FenceAfterWatch][..],
            &[Clause::FenceBeforeBump],
            &[Clause::HoldBumpsAlways],
            &[Clause::HoldNeverShortens],
        ] {
            breaks(&format!("{without:?}, without Redis"), Embedded { without: Without(without) });
        }
    }
}

mod many_keys {
    use super::{
        scopes::{
            Covers::{self, Key, Scope, Tag},
            Reader, Scopes,
        },
        server::{SCOPE, TAG},
        *,
    };

    /// The same key with a tag and without, and another key with it.
    const TAGGED: Reader = (0, SCOPE | TAG);
    const PLAIN: Reader = (0, SCOPE);
    const OTHER: Reader = (1, SCOPE | TAG);

    const BOTH_KEYS: &[Reader] = &[TAGGED, OTHER];
    const BOTH_WAYS: &[Reader] = &[TAGGED, PLAIN];
    const TWICE: &[Reader] = &[TAGGED, TAGGED];

    const WRITES: [[Covers; 2]; 4] = [[Scope, Key(0)], [Tag, Key(0)], [Key(1), Scope], [Tag, Scope]];

    #[test]
    fn several_keys_under_one_generation_and_tags_are_safe() {
        for writes in WRITES {
            for (name, readers) in [("both keys", BOTH_KEYS), ("with a tag and without", BOTH_WAYS), ("twice", TWICE)] {
                holds(&format!("{writes:?}, {name}"), Scopes { writes, readers, without: COMPLETE });
            }
        }
    }

    #[test]
    fn no_generation_can_be_left_out() {
        for (without, writes, readers) in [
            (&[Clause::FillComparesScope][..], [Scope, Key(0)], BOTH_KEYS),
            (&[Clause::FillComparesTags], [Tag, Key(0)], BOTH_KEYS),
            (&[Clause::HitComparesScope], [Scope, Key(0)], BOTH_KEYS),
            (&[Clause::HitComparesTags], [Tag, Key(0)], BOTH_KEYS),
            (&[Clause::HitComparesCount], [Tag, Key(0)], BOTH_WAYS),
            (&[Clause::RandomIds], [Scope, Key(0)], BOTH_KEYS),
            (&[Clause::JoinCoversTags], [Tag, Key(0)], BOTH_WAYS),
            (&[Clause::NearHitCoversTags], [Tag, Key(0)], BOTH_WAYS),
        ] {
            breaks(&without, Scopes { writes, readers, without: Without(without) });
        }
    }
}

mod other_writers {
    use super::{
        writers::{
            Actor::{self, Invalidates, Reads, Refreshes, Sets, Touches},
            TouchAlone, Writers,
        },
        *,
    };

    fn explore(actors: &'static [Actor]) {
        holds(&format!("{actors:?}"), Writers { actors, without: COMPLETE });
    }

    #[test]
    fn refresh_set_and_touch_undo_nothing() {
        explore(&[Refreshes, Invalidates, Reads]);
        explore(&[Refreshes, Refreshes, Invalidates]);
        explore(&[Sets, Invalidates, Reads]);
        explore(&[Sets, Refreshes, Reads]);
        explore(&[Touches, Invalidates, Reads, Reads]);
        explore(&[Touches, Sets, Invalidates, Reads]);
        for of_scope in [false, true] {
            holds(&format!("TOUCH without Redis, scope {of_scope}"), TouchAlone { of_scope, without: COMPLETE });
        }
    }

    #[test]
    fn none_of_them_can_do_without_its_clauses() {
        for (without, actors) in [
            (&[Clause::RefreshFills][..], &[Refreshes, Invalidates][..]),
            (&[Clause::RefreshInvalidates], &[Reads, Refreshes]),
            (&[Clause::SetHasDeadline], &[Sets, Invalidates]),
            (&[Clause::TouchInPlace], &[Touches, Invalidates, Reads]),
        ] {
            breaks(&without, Writers { actors, without: Without(without) });
        }
        for (without, of_scope) in [
            (&[Clause::TouchLocks][..], false),
            (&[Clause::TouchOnlyReplaces], false),
            (&[Clause::TouchKeepsWatch], true),
        ] {
            breaks(&format!("{without:?}, without Redis"), TouchAlone { of_scope, without: Without(without) });
        }
    }
}

mod batches {
    use super::{batch::Batches, *};

    #[test]
    fn batches_in_opposite_order_neither_wait_for_each_other_nor_get_anything_stale() {
        for one_process in [true, false] {
            holds(&format!("two batches, in one process {one_process}"), Batches { one_process, without: COMPLETE });
        }
    }

    #[test]
    fn batches_cannot_do_without_their_clauses() {
        for (without, one_process) in [
            (&[Clause::BatchFetchesFirst][..], true),
            (&[Clause::BatchWaitsForNoLease], false),
            (&[Clause::FetchAfterLeases], false),
            (&[Clause::Releases], false),
        ] {
            breaks(&without, Batches { one_process, without: Without(without) });
        }
    }
}

mod liveness {
    use super::{
        ends::{ALL_FAULTS, Ends, Fault},
        *,
    };

    const TWO_PROCESSES: &[u8] = &[0, 0, 1];
    const ONE_PROCESS: &[u8] = &[0, 0, 0];
    const FOUR_CALLS: &[u8] = &[0; 4];

    /// Each is backed up by another timer; two of them together are needed, as asserted below.
    const HOUSEKEEPING: [Clause; 4] = [
        // Who waits for a lease that never ends gives up after a lease period.
        Clause::LeasesExpire,
        // A lease that nobody renews ends. What this one is for is a fetch that takes longer than callers may wait.
        Clause::LeadersHavePatience,
        // Who follows a leader that hangs waits for `max_fetch` at most.
        Clause::Deposes,
        Clause::FollowersHavePatience,
    ];

    #[test]
    fn every_call_ends_whatever_fails() {
        for (processes, faults) in [(TWO_PROCESSES, 1), (ONE_PROCESS, 1), (&[0, 0], 3), (&[0, 1], 3)] {
            let name = format!("every fault, {faults} at most, in {processes:?}");
            holds(&name, Ends { processes, kinds: &ALL_FAULTS, faults, without: COMPLETE });
        }
    }

    #[test]
    fn no_call_would_end_without_these_clauses() {
        let all = &ALL_FAULTS[..];
        for (without, processes, kinds, faults) in [
            (&[Clause::FillComparesToken][..], &[0, 1][..], all, 1),
            (&[Clause::FillDropsLease], &[0, 1], all, 1),
            (&[Clause::RenewOnlyExtends], &[0, 1], all, 0),
            (&[Clause::DropHandsOver], &[0, 0], all, 1),
            (&[Clause::Releases], &[0, 1], all, 1),
            (&[Clause::HandOutLaw], &[0, 0], all, 0),
            (&[Clause::TwoRounds], FOUR_CALLS, &[Fault::Fails], 2),
            (&[Clause::LeasesExpire, Clause::LeadersHavePatience], &[0, 1], all, 1),
            (&[Clause::Deposes, Clause::FollowersHavePatience], &[0, 0], all, 1),
        ] {
            assert!(without.len() > 1 || !HOUSEKEEPING.contains(&without[0]));
            breaks(&without, Ends { processes, kinds, faults, without: Without(without) });
        }
    }

    #[test]
    fn what_is_called_housekeeping_in_waiting_is() {
        for without in [&[HOUSEKEEPING[0]], &[HOUSEKEEPING[1]], &[HOUSEKEEPING[2]], &[HOUSEKEEPING[3]]] {
            for processes in [&[0, 0][..], &[0, 1]] {
                let story = Ends { processes, kinds: &ALL_FAULTS, faults: 2, without: Without(without) };
                stays_whole(&without, story);
            }
        }
    }
}
