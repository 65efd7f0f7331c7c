//! What the codecs cost, alone and as part of a `set` and a `get`.
//!
//! The codec and its envelope are no public interface, so they are measured where users meet them: a round trip to a
//! Redis on loopback without a near tier, beside raw SET and GET of bytes of the same length. What is left between
//! them is encoding or decoding, envelope, checksum, generations and statistics. The first group is the formats
//! alone.

use std::hint::black_box;
use std::time::Duration;

use cache_benches::{REPORTS, RedisServer, Report, TENANT, value};
use cache_core::{Cache, Codec};
use criterion::{Criterion, criterion_group, criterion_main};
use redis::AsyncCommands as _;
use tokio::runtime;

fn formats(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("format");
    let report = value(7);
    let (packed, json) = (rmp_serde::to_vec_named(&*report).unwrap(), serde_json::to_vec(&*report).unwrap());
    group.bench_function("MessagePack encode", |bencher| {
        bencher.iter(|| rmp_serde::to_vec_named(black_box(&*report)).unwrap());
    });
    group.bench_function("MessagePack decode", |bencher| {
        bencher.iter(|| rmp_serde::from_slice::<Report>(black_box(&packed)).unwrap());
    });
    group.bench_function("JSON encode", |bencher| bencher.iter(|| serde_json::to_vec(black_box(&*report)).unwrap()));
    group.bench_function("JSON decode", |bencher| {
        bencher.iter(|| serde_json::from_slice::<Report>(black_box(&json)).unwrap());
    });
    group.finish();
}

fn round_trips(criterion: &mut Criterion) {
    let server = RedisServer::start();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("round trip");

    let client = redis::Client::open(server.url()).unwrap();
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
    // An entry's head and its two generations are 120 bytes.
    let bytes = vec![b'x'; 120 + rmp_serde::to_vec_named(&*value(7)).unwrap().len()];
    group.bench_function("SET of as many bytes", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            let mut connection = connection.clone();
            connection.set_ex::<_, _, ()>("raw", bytes.as_slice(), 3600).await.unwrap();
        });
    });
    group.bench_function("GET of as many bytes", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            let mut connection = connection.clone();
            connection.get::<_, Vec<u8>>("raw").await.unwrap()
        });
    });

    let cache = Cache::builder().url(&server.url()).near_bytes(0).op_timeout(Duration::from_secs(5)).build().unwrap();
    let scoped = cache.tenant(TENANT).unwrap();
    for codec in [Codec::MessagePack, Codec::Json] {
        let (key, report) = (REPORTS.with_codec(codec).key(7_u64), value(7));
        group.bench_function(format!("set, {codec:?}"), |bencher| {
            bencher.to_async(&runtime).iter(async || scoped.set(&key, report.clone()).await.unwrap());
        });
        runtime.block_on(scoped.set(&key, report)).unwrap();
        group.bench_function(format!("get, {codec:?}"), |bencher| {
            bencher.to_async(&runtime).iter(async || scoped.get(&key).await.unwrap().unwrap());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_500))
        .sample_size(30);
    targets = formats, round_trips
}
criterion_main!(benches);
