//! G4, G5: an upstream that has nothing, or fails, is not asked by everybody at once; and what a batch may cost.

mod support;

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use cache_core::{Cache, Keyspace, Scoped, TtlProfile};
use futures::future::{join, join_all};
use support::{Server, until_linked};
use tokio::time::Instant;

const ROWS: Keyspace<String> = TtlProfile::new("row", Duration::from_secs(600)).of();

async fn beside(server: &Server, near_bytes: u64) -> Cache {
    let builder = Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(20)).near_bytes(near_bytes);
    builder.connect().await.unwrap()
}

/// How often an upstream was asked, and by how many at a time.
#[derive(Default)]
struct Upstream {
    asked: AtomicUsize,
    at_once: AtomicUsize,
    most: AtomicUsize,
}

impl Upstream {
    async fn ask<R>(&self, answer: impl Future<Output = R>) -> R {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(self.at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let answer = answer.await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// Two hundred calls ask for the same twenty ids, of which none exists. The answer lasts until all of them wait for it.
async fn absent(cache: Cache, strict: bool) {
    let acme = cache.tenant("acme").unwrap();
    let acme = if strict { acme.strict() } else { acme };
    let keys: Vec<_> = (0..20).map(|id| ROWS.key(id)).collect();
    let upstream = Upstream::default();
    let missed = cache.stats().total.misses;
    let call = || async {
        let fetch = async |_| {
            let all_wait = async {
                while cache.stats().total.misses < missed + 200 * 20 {
                    tokio::task::yield_now().await;
                }
            };
            upstream.ask(all_wait).await;
            Ok::<_, ()>(Vec::<(_, String)>::new())
        };
        acme.try_get_or_fetch_many(&keys, fetch).await.unwrap()
    };
    for values in join_all((0..200).map(|_| call())).await {
        assert!(values.iter().all(Option::is_none));
    }
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn absent_ids_are_an_answer_for_all_who_wait() {
    let server = Server::start();
    for strict in [false, true] {
        let cache = beside(&server, 64 << 20).await;
        // As it comes up the link dooms what is under way.
        until_linked(&cache).await;
        absent(cache, strict).await;
    }
    absent(beside(&server, 0).await, false).await;
    absent(Cache::in_memory(), false).await;
}

/// The answer that nothing is there is as old as any other: an invalidation during the fetch takes it back from all who
/// came after it.
#[tokio::test]
async fn an_absent_id_that_is_created_meanwhile_is_found() {
    let server = Server::start();
    for near_bytes in [0, 64 << 20] {
        let (mine, other) = (beside(&server, near_bytes).await, beside(&server, near_bytes).await);
        let (mine, other) = (mine.tenant("acme").unwrap(), other.tenant("acme").unwrap());
        let key = ROWS.key("new");
        let (begun, go) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let slow = async |_| {
            begun.notify_one();
            go.notified().await;
            Ok::<_, ()>(Vec::<(_, String)>::new())
        };
        // 1. A fetch finds nothing. 2. The row is created, and its key and keyspace invalidated by another process.
        // 3. A second call comes and waits for the fetch. 4. The fetch ends.
        let keys = std::slice::from_ref(&key);
        let first = mine.try_get_or_fetch_many(keys, slow);
        let second = async {
            begun.notified().await;
            assert!(other.invalidate_keyspace(&ROWS).await.is_applied());
            let second = mine.try_get_or_fetch(&key, || async { Ok::<_, ()>("row".to_owned()) });
            tokio::pin!(second);
            let waits = std::future::poll_fn(|context| Poll::Ready(second.as_mut().poll(context).is_pending())).await;
            assert!(waits);
            go.notify_one();
            assert_eq!(*second.await.unwrap(), "row");
        };
        let (first, ()) = join(first, second).await;
        assert_eq!(first, Ok(vec![None]));
        assert!(mine.invalidate(&key).await.is_applied());
    }
}

/// A hundred calls of a source that fails, with an error that cannot be cloned: one at a time.
async fn failing(cache: Cache) {
    struct Down;
    let acme = cache.tenant("acme").unwrap();
    let (key, upstream) = (ROWS.key("x"), Upstream::default());
    let call = || async {
        let fetch = || {
            upstream.ask(async {
                tokio::time::sleep(Duration::from_millis(2)).await;
                Err::<String, _>(Down)
            })
        };
        assert!(acme.try_get_or_fetch(&key, fetch).await.is_err());
    };
    join_all((0..100).map(|_| call())).await;
    assert_eq!((upstream.most(), upstream.asked()), (1, 100));
}

#[tokio::test]
async fn calls_of_a_failing_source_take_turns() {
    let server = Server::start();
    for near_bytes in [0, 64 << 20] {
        let builder = Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(20)).near_bytes(near_bytes);
        failing(builder.lease(Duration::from_secs(60)).build().unwrap()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_failing_source_take_turns_without_redis() {
    failing(Cache::builder().tokio_clock().build().unwrap()).await;
}

/// A source that recovers is asked by one, whose value is everybody's.
#[tokio::test(start_paused = true)]
async fn the_first_value_after_errors_is_shared() {
    let acme = Cache::builder().tokio_clock().build().unwrap().tenant("acme").unwrap();
    let (key, upstream) = (ROWS.key("x"), Upstream::default());
    let call = || async {
        let fetch = || {
            upstream.ask(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if upstream.asked() < 4 { Err(()) } else { Ok("up".to_owned()) }
            })
        };
        acme.try_get_or_fetch(&key, fetch).await
    };
    let results = join_all((0..100).map(|_| call())).await;
    assert_eq!((upstream.asked(), upstream.most()), (4, 1));
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 97);
}

/// Polls once, with nobody to wake.
fn poll<R>(call: &mut Pin<Box<dyn Future<Output = R> + '_>>) -> Poll<R> {
    call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// 1. A leader is parked.
/// 2. Three more calls are polled once in a while, each time just before the live one looks after its leader: whichever of
///    them takes the lead is parked, too.
/// 3. The live call has its value after one period in all.
#[tokio::test(start_paused = true)]
async fn parked_calls_hold_up_a_live_one_for_one_period_in_all() {
    for once_in in [PERIOD * 4 / 5, PERIOD] {
        parked(once_in).await;
    }
}

const PERIOD: Duration = Duration::from_secs(5);

async fn parked(once_in: Duration) {
    let cache = Cache::builder().tokio_clock().lease(PERIOD).build().unwrap();
    let acme: Scoped = cache.tenant("acme").unwrap();
    let key = ROWS.key("x");
    let parked = || -> Pin<Box<dyn Future<Output = _> + '_>> {
        Box::pin(acme.try_get_or_fetch(&key, || async {
            pending::<()>().await;
            Ok::<String, ()>(String::new())
        }))
    };
    let mut parked: Vec<_> = (0..4).map(|_| parked()).collect();
    for call in &mut parked {
        assert!(poll(call).is_pending());
    }
    let begun = Instant::now();
    let polls = async {
        for turn in 1.. {
            tokio::time::sleep_until(begun + once_in * turn).await;
            assert!(poll(&mut parked[1 + turn as usize % 3]).is_pending());
        }
    };
    let live = async {
        // After the others' timers at each turn.
        tokio::task::yield_now().await;
        acme.try_get_or_fetch(&key, || async { Ok::<_, ()>("live".to_owned()) }).await
    };
    let value = tokio::select! {
        biased;
        () = polls => unreachable!(),
        value = live => value,
    };
    assert_eq!(*value.unwrap(), "live");
    assert!(begun.elapsed() <= PERIOD + Duration::from_millis(50), "{:?}", begun.elapsed());
}

/// Two keys of one text in one batch: the one with the tag must not be given what was stored without it.
async fn two_of_one_text(cache: Cache) {
    let acme = cache.tenant("acme").unwrap();
    let plain = ROWS.key("x");
    let tagged = plain.clone().with_tags(["t"]);
    acme.set(&plain, "untagged".to_owned()).await.unwrap();
    assert!(acme.invalidate_tag("t").await.is_applied());
    let both = [plain.clone(), tagged.clone()];
    let got = acme.get_many(&both).await.unwrap();
    assert_eq!((got[0].as_deref().map(|row| &**row), &got[1]), (Some("untagged"), &None));
    let asked = std::sync::Mutex::new(Vec::new());
    let values = acme
        .try_get_or_fetch_many(&both, async |missing| {
            asked.lock().unwrap().push(missing.len());
            Ok::<_, ()>(missing.into_iter().map(|key| (key, "row".to_owned())).collect::<Vec<_>>())
        })
        .await
        .unwrap();
    assert_eq!(values.iter().map(|value| value.as_deref().unwrap().as_str()).collect::<Vec<_>>(), ["untagged", "row"]);
    assert_eq!(*asked.lock().unwrap(), [1]);
    // Both missing: one row, asked for once.
    assert!(acme.invalidate(&plain).await.is_applied());
    asked.lock().unwrap().clear();
    let values = acme
        .try_get_or_fetch_many(&[tagged, plain.clone(), plain], async |missing| {
            asked.lock().unwrap().push(missing.len());
            Ok::<_, ()>(missing.into_iter().map(|key| (key, "row".to_owned())).collect::<Vec<_>>())
        })
        .await
        .unwrap();
    assert!(values.iter().all(|value| value.as_deref().is_some_and(|row| row == "row")));
    assert!(asked.lock().unwrap().iter().all(|missing| *missing == 1), "a key is asked for once at a time");
}

#[tokio::test]
async fn keys_of_a_batch_that_differ_in_their_tags_are_never_taken_for_each_other() {
    two_of_one_text(Cache::in_memory()).await;
    let server = Server::start();
    two_of_one_text(beside(&server, 64 << 20).await).await;
    two_of_one_text(beside(&server, 0).await).await;
}

/// G7: whoever fetches them, the keys of a batch share one time limit for Redis.
#[tokio::test]
async fn a_batch_pays_one_time_limit_while_redis_hangs() {
    const LIMIT: Duration = Duration::from_millis(600);
    let server = Server::start();
    for near_bytes in [0, 64 << 20] {
        let builder = Cache::builder().url(&server.url()).op_timeout(LIMIT).near_bytes(near_bytes);
        let acme = builder.connect().await.unwrap().tenant("acme").unwrap();
        acme.set(&ROWS.key("warm"), "v".to_owned()).await.unwrap();
        server.pause();
        let keys = |ids: [u32; 2]| ids.map(|id| ROWS.key(id));
        let call = |keys: [_; 2]| {
            let acme = acme.clone();
            async move {
                let begun = Instant::now();
                let fetch = async |missing: Vec<cache_core::Key<String>>| {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok::<_, ()>(missing.into_iter().map(|key| (key, "row".to_owned())).collect::<Vec<_>>())
                };
                let values = acme.try_get_or_fetch_many(&keys, fetch).await.unwrap();
                assert!(values.iter().all(Option::is_some));
                begun.elapsed()
            }
        };
        let (first, second) = join(call(keys([1, 2])), call(keys([2, 1]))).await;
        server.resume();
        let longest = first.max(second);
        assert!(longest < LIMIT * 3 / 2, "{longest:?}");
    }
}

fn rows(keys: Vec<cache_core::Key<String>>) -> Vec<(cache_core::Key<String>, String)> {
    keys.into_iter().map(|key| (key, "row".to_owned())).collect()
}

/// G5. Callers lose their patience one after the other, each while it leads. A patient one waits for the first of them, and for
/// one lease period behind all others.
#[tokio::test(start_paused = true)]
async fn leaders_that_are_cancelled_in_a_row_delay_a_call_by_one_period_in_all() {
    let cache = Cache::builder().tokio_clock().lease(Duration::from_millis(500)).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let impatient = (1..=10).map(|n| {
        let acme = acme.clone();
        async move {
            let slow = || async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok::<_, ()>("slow".to_owned())
            };
            let key = ROWS.key("x");
            let call = acme.try_get_or_fetch(&key, slow);
            let _ = tokio::time::timeout(Duration::from_millis(300 * n), call).await;
        }
    });
    let patient = async {
        tokio::task::yield_now().await;
        let begun = Instant::now();
        acme.try_get_or_fetch(&ROWS.key("x"), || async { Ok::<_, ()>("row".to_owned()) }).await.unwrap();
        begun.elapsed()
    };
    let (_, waited) = join(join_all(impatient), patient).await;
    assert!(waited <= Duration::from_millis(300 + 500 + 300), "{waited:?}");
}

/// G4, G9: what a batch does before it returns its future is done under the permit, too.
#[tokio::test(start_paused = true)]
async fn the_cap_holds_for_what_the_closure_of_a_batch_begins() {
    let acme = Cache::builder().tokio_clock().fetch_cap(1).build().unwrap().tenant("acme").unwrap();
    let upstream = Arc::new(Upstream::default());
    let calls = (0..8).map(|id| {
        let (acme, upstream) = (acme.clone(), upstream.clone());
        async move {
            let key = ROWS.key(id);
            // Fetches under a write fence have no lease, and are capped.
            assert!(acme.invalidate_and_hold(&key, Duration::from_secs(60)).await.is_applied());
            let fetch = |missing| {
                let upstream = upstream.clone();
                let query = tokio::spawn(async move {
                    upstream.ask(tokio::time::sleep(Duration::from_millis(100))).await;
                    rows(missing)
                });
                async move { Ok::<_, ()>(query.await.unwrap()) }
            };
            acme.try_get_or_fetch_many(&[key], fetch).await.unwrap();
        }
    });
    join_all(calls).await;
    assert_eq!(upstream.most(), 1);
}

/// G4, without Redis.
///
/// 1. A call leads, another waits.
/// 2. The key is invalidated.
/// 3. A third call leads a flight of its own.
/// 4. The first one is lost: the second one joins the third, and does not fetch beside it.
#[tokio::test(start_paused = true)]
async fn who_waits_behind_an_invalidated_fetch_joins_the_newer_one() {
    for fails in [true, false] {
        let acme = Cache::builder().tokio_clock().build().unwrap().tenant("acme").unwrap();
        let upstream = Arc::new(Upstream::default());
        let good = || {
            let (acme, upstream) = (acme.clone(), upstream.clone());
            tokio::spawn(async move {
                let fetch = || async {
                    upstream.ask(tokio::time::sleep(Duration::from_millis(300))).await;
                    Ok::<_, ()>("row".to_owned())
                };
                acme.try_get_or_fetch(&ROWS.key("x"), fetch).await.unwrap()
            })
        };
        let first = tokio::spawn({
            let acme = acme.clone();
            async move {
                let fetch = || async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Err::<String, ()>(())
                };
                acme.try_get_or_fetch(&ROWS.key("x"), fetch).await
            }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let waiting = good();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(acme.invalidate(&ROWS.key("x")).await.is_applied());
        let newer = good();
        tokio::time::sleep(Duration::from_millis(10)).await;
        if !fails {
            first.abort();
        }
        let _ = first.await;
        waiting.await.unwrap();
        newer.await.unwrap();
        assert_eq!(upstream.most(), 1, "the first one fails: {fails}");
    }
}

/// However many keys there are: no recursion, and each chunk of commands has its time.
#[tokio::test]
async fn a_batch_of_many_keys_is_fetched_and_stored() {
    let keys: Vec<_> = (0..50_000).map(|id| ROWS.key(id)).collect();
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let values = acme.try_get_or_fetch_many(&keys, async |missing| Ok::<_, ()>(rows(missing))).await.unwrap();
    assert!(values.iter().all(Option::is_some));

    let (server, keys) = (Server::start(), &keys[..5_000]);
    let cache = Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(2)).near_bytes(0).connect().await;
    let acme = cache.unwrap().tenant("acme").unwrap();
    let values = acme.try_get_or_fetch_many(keys, async |missing| Ok::<_, ()>(rows(missing))).await.unwrap();
    assert!(values.iter().all(Option::is_some));
    assert!(acme.get_many(keys).await.unwrap().iter().all(Option::is_some), "all of it is stored");
}

/// A runtime that shuts down during a fetch which goes on elsewhere leaves the call its value.
#[test]
fn a_runtime_that_is_shut_down_during_a_fetch_hangs_no_call() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let acme = Cache::builder().lease(Duration::from_millis(500)).build().unwrap().tenant("acme").unwrap();
    let (answer, answered) = std::sync::mpsc::channel();
    let (begin, begun) = std::sync::mpsc::channel();
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let calling = std::thread::spawn(move || {
        let value = handle.block_on(async {
            let fetch = || async {
                begin.send(()).unwrap();
                gone.await.unwrap();
                Ok::<_, ()>("row".to_owned())
            };
            acme.try_get_or_fetch(&ROWS.key("x"), fetch).await.unwrap()
        });
        answer.send(value).unwrap();
    });
    begun.recv().unwrap();
    runtime.shutdown_timeout(Duration::from_secs(1));
    // The fetch is pending, and whatever ticks beside it has lost its timer.
    assert!(answered.recv_timeout(Duration::from_millis(100)).is_err());
    go.send(()).unwrap();
    assert_eq!(*answered.recv_timeout(Duration::from_secs(10)).unwrap(), "row");
    calling.join().unwrap();
}
