//! The protocol of `DESIGN.md`, explored exhaustively: every order in which its steps can happen, with two processes, three
//! callers, two writes and one fault of each kind. Each model says what it holds and what it leaves out.
//!
//! For each clause of a step there is a variant without it. Either a shortest trace to a broken guarantee is found,
//! which `--nocapture` prints, or the clause stands in `HOUSEKEEPING` with the reason why it is there nevertheless.

#[path = "model/alone.rs"]
mod alone;
#[path = "model/check.rs"]
mod check;
#[path = "model/journal.rs"]
mod journal;
#[path = "model/lease.rs"]
mod lease;
#[path = "model/near.rs"]
mod near;

use check::{exhaust, is_needed, is_not_needed};

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
        exhaust("journal, two writes", Journal { writes: 2, failover: false, without: None });
        exhaust("journal, one write and a failover", Journal { writes: 1, failover: true, without: None });
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
        ] {
            is_needed(&format!("{clause:?}"), Journal { writes, failover, without: Some(clause) });
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
