//! Building a key, beside the `format!` that a hand-written cache would use.
//!
//! A near hit through an annotated function builds its key each time, so this is the largest part of it. `annotated`
//! goes from the arguments to the whole key as a `String`, as `format!` does; a call leaves it on the stack.
//! `identifier` is what `Keyspace::key` makes, which a scope completes with its tenant.

use std::hint::black_box;
use std::time::Duration;

use cache_benches::{REPORTS, TENANT, report};
use cache_core::Cache;
use criterion::{Criterion, criterion_group, criterion_main};

fn key(criterion: &mut Criterion) {
    Cache::in_memory().install().expect("the first cache of this process");
    let mut group = criterion.benchmark_group("key");
    group.bench_function("format!", |bencher| {
        bencher.iter(|| {
            let (tenant, id) = black_box((TENANT, 123_456_u64));
            format!("cache:tenant:{tenant}:report:report:{id}")
        });
    });
    group.bench_function("annotated, as String", |bencher| {
        bencher.iter(|| {
            let (tenant, id) = black_box((TENANT, 123_456_u64));
            report::key(tenant, id)
        });
    });
    group.bench_function("identifier", |bencher| bencher.iter(|| REPORTS.key(black_box(123_456_u64))));
    group.bench_function("identifier of three segments", |bencher| {
        bencher.iter(|| REPORTS.key(black_box(("scan", 123_456_u64, true))));
    });
    group.bench_function("identifier to be encoded", |bencher| {
        bencher.iter(|| REPORTS.key(black_box("https://example.com/a path?q=1")));
    });
    let long = "x".repeat(400);
    group.bench_function("identifier to be hashed", |bencher| bencher.iter(|| REPORTS.key(black_box(long.as_str()))));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .sample_size(30);
    targets = key
}
criterion_main!(benches);
