//! A hit in the near tier, beside what else one could keep an `Arc` in.
//!
//! What a service pays on almost every call, so it must cost about what a bare concurrent map costs, although it
//! comes with expiry, statistics, a tenant in the key and invalidation. `annotated` builds its key from the
//! arguments at each call; the others are given keys that were built before. The floor is an async function that
//! clones an `Arc`.
//!
//! Figures are nanoseconds per hit of one thread, with one thread and with two at work at the same time.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use cache_benches::{KEYS, REPORTS, Report, TENANT, VALUES, next, report, value};
use cache_core::Cache;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use futures::executor::block_on;
use rapidhash::fast::RandomState;

fn near_hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("near_hit");
    let names: Vec<String> = (0..KEYS).map(|id| format!("tenant:{TENANT}:report:{id}")).collect();

    measure(&mut group, "floor", async |place| floor(place).await);

    let cache = Cache::in_memory();
    cache.install().expect("the first cache of this process");
    fill(async |place| drop(report(TENANT, place as u64).await));
    measure(&mut group, "annotated", async |place| report(TENANT, place as u64).await);

    assert_all_hit(&cache);

    let cache = Cache::in_memory();
    let scoped = cache.tenant(TENANT).expect("a tenant");
    let keys: Vec<_> = (0..KEYS as u64).map(|id| REPORTS.key(id)).collect();
    fill(async |place| drop(scoped.get_or_fetch(&keys[place], async || value(place as u64)).await));
    measure(&mut group, "direct get", async |place| scoped.get(&keys[place]).await);
    assert_all_hit(&cache);

    let quick = quick_cache::sync::Cache::<String, Arc<Report>, _, _>::with(
        2 * KEYS,
        2 * KEYS as u64,
        quick_cache::UnitWeighter,
        RandomState::new(),
        Default::default(),
    );
    fill(async |place| quick.insert(names[place].clone(), value(place as u64)));
    measure(&mut group, "quick_cache, text key", async |place| quick.get(names[place].as_str()));

    let quick = quick_cache::sync::Cache::<u64, Arc<Report>, _, _>::with(
        2 * KEYS,
        2 * KEYS as u64,
        quick_cache::UnitWeighter,
        RandomState::new(),
        Default::default(),
    );
    fill(async |place| quick.insert(place as u64, value(place as u64)));
    measure(&mut group, "quick_cache, u64 key", async |place| quick.get(&(place as u64)));

    let moka = moka::future::Cache::<String, Arc<Report>>::builder()
        .max_capacity(2 * KEYS as u64)
        .time_to_live(Duration::from_secs(3600))
        .build();
    fill(async |place| moka.insert(names[place].clone(), value(place as u64)).await);
    measure(&mut group, "moka get", async |place| moka.get(names[place].as_str()).await);
    measure(&mut group, "moka try_get_with", async |place| {
        let fetch = async { Ok::<_, Infallible>(value(place as u64)) };
        moka.try_get_with_by_ref(names[place].as_str(), fetch).await
    });
}

/// Only the calls that filled the cache missed: anything else would have been measured as a hit.
fn assert_all_hit(cache: &Cache) {
    let total = cache.stats().total;
    assert_eq!((total.fetches, total.misses), (KEYS as u64, KEYS as u64));
}

#[expect(clippy::unused_async, reason = "what an async function costs is the question")]
async fn floor(place: usize) -> Arc<Report> {
    VALUES[place].clone()
}

fn fill(store: impl AsyncFn(usize)) {
    block_on(async {
        for place in 0..KEYS {
            store(place).await;
        }
    });
}

fn measure<R>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, hit: impl AsyncFn(usize) -> R + Sync) {
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new(name, threads), |bencher| {
            bencher.iter_custom(|hits| at_once(threads, |thread| block_on(walk(hits, thread * KEYS / 2, &hit))));
        });
    }
}

async fn walk<R>(hits: u64, start: usize, hit: &impl AsyncFn(usize) -> R) {
    let mut place = start;
    for _ in 0..hits {
        black_box(hit(black_box(place)).await);
        place = next(place);
    }
}

/// How long `work` takes where so many threads do it at the same time.
fn at_once(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let timed = |thread| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                let begun = Instant::now();
                work(thread);
                begun.elapsed()
            })
        };
        let running: Vec<_> = (0..threads).map(timed).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).max().unwrap_or_default()
    })
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_500))
        .sample_size(30);
    targets = near_hit
}
criterion_main!(benches);
