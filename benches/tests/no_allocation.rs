//! A hit in the near tier allocates nothing, neither through an annotated function nor through the direct verbs.
//!
//! Each test polls on its own thread: allocations are counted by thread.

use cache_benches::{REPORTS, TENANT, report, value};
use cache_core::Cache;
use futures::executor::block_on;

/// Allocations of `work` once everything that is made on first use is made.
fn allocations(work: impl AsyncFn()) -> u64 {
    block_on(async {
        work().await;
        work().await;
    });
    allocation_counter::measure(|| block_on(work())).count_total
}

#[test]
fn a_hit_through_an_annotated_function_allocates_nothing() {
    Cache::in_memory().install().unwrap();
    let calls = async || {
        for id in 0..100 {
            assert_eq!(report(TENANT, id).await, value(id));
        }
    };
    assert_eq!(allocations(calls), 0);
}

#[test]
fn a_hit_through_a_scope_allocates_nothing() {
    let cache = Cache::in_memory();
    let scoped = cache.tenant(TENANT).unwrap();
    block_on(scoped.set(&REPORTS.key(7_u64), value(7))).unwrap();
    let calls = async || assert!(scoped.get(&REPORTS.key(7_u64)).await.unwrap().is_some());
    assert_eq!(allocations(calls), 0);
    let calls = async || assert_eq!(scoped.get_or_fetch(&REPORTS.key(7_u64), async || value(8)).await, value(7));
    assert_eq!(allocations(calls), 0);
}
