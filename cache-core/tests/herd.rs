//! G4, G5: an upstream that has nothing, or fails, is not asked by everybody at once; and what a batch may cost.

mod support;

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
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
