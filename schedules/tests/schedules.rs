//! Each law of `cache_schedules::laws` under many schedules, new ones in each run: over 100 000 in all.
//!
//! A failure prints its schedule; `REPLAY=<schedule> cargo test -p cache-schedules <test>` runs that one alone.

use cache_schedules::{explore, laws};

#[test]
fn what_was_invalidated_is_never_read() {
    explore(20_000, laws::read::what_was_invalidated_is_never_read);
}

#[test]
fn no_leader_holds_anybody_for_ever() {
    explore(20_000, laws::read::no_leader_holds_anybody_for_ever);
}

#[test]
fn a_cold_key_is_fetched_once() {
    explore(10_000, laws::read::a_cold_key_is_fetched_once);
}

#[test]
fn nobody_is_handed_what_was_invalidated_before() {
    explore(25_000, laws::flight::nobody_is_handed_what_was_invalidated_before);
}

#[test]
fn a_bump_outlives_every_store_and_touch() {
    explore(10_000, laws::near::a_bump_outlives_every_store_and_touch);
}

#[test]
fn a_touch_never_brings_anything_back() {
    explore(5_000, laws::near::a_touch_never_brings_anything_back);
}

#[test]
fn a_value_may_ask_when_it_is_dropped() {
    explore(3_000, laws::near::a_value_may_ask_when_it_is_dropped);
}

#[test]
fn no_more_than_the_cap_in_the_order_of_asking() {
    explore(5_000, laws::cap::no_more_than_the_cap_in_the_order_of_asking);
}

#[test]
fn a_holder_may_wait_for_a_task_that_wants_a_permit() {
    explore(2_000, laws::cap::a_holder_may_wait_for_a_task_that_wants_a_permit);
}

#[test]
fn a_release_wakes_everybody_who_waits() {
    explore(10_000, laws::waiters::a_release_wakes_everybody_who_waits);
}

#[test]
fn what_is_recorded_is_missed_until_acknowledged() {
    explore(10_000, laws::journal::what_is_recorded_is_missed_until_acknowledged);
}

#[test]
fn there_is_one_task_and_it_is_never_missed() {
    explore(10_000, laws::task::there_is_one_task_and_it_is_never_missed);
}
