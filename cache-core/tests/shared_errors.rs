//! Errors that are not `Clone`, given to the calls that waited for the fetch that failed.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use cache_core::{Cache, Keyspace, TtlProfile, cached};
use futures::future::join_all;

const REPORTS: Keyspace<u32> = TtlProfile::new("report", Duration::from_secs(60)).of();
const CALLS: u32 = 20;

fn copied(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// A fetch that lets all other calls join it, and fails.
async fn failing<T>(runs: &AtomicU32) -> io::Result<T> {
    let run = runs.fetch_add(1, SeqCst);
    tokio::task::yield_now().await;
    Err(io::Error::new(io::ErrorKind::NotFound, format!("run {run}")))
}

fn texts<T: std::fmt::Debug>(results: impl IntoIterator<Item = io::Result<T>>) -> Vec<String> {
    results.into_iter().map(|result| result.unwrap_err().to_string()).collect()
}

#[tokio::test]
async fn errors_are_shared_by_a_function_whatever_the_shape() {
    type Alias<T> = io::Result<Option<T>>;

    #[cached(ttl = 60, cache = cache, skip(cache, runs), share_error = copied)]
    async fn plain(cache: &Cache, runs: &AtomicU32) -> io::Result<u32> {
        failing(runs).await
    }
    #[cached(ttl = 60, cache = cache, skip(cache, runs), share_error = crate::copied)]
    async fn shared(cache: &Cache, runs: &AtomicU32) -> Result<Arc<u32>, io::Error> {
        failing(runs).await
    }
    #[cached(ttl = 60, cache = cache, skip(cache, runs), share_error = |error| io::Error::other(error.to_string()))]
    async fn optional(cache: &Cache, runs: &AtomicU32) -> Alias<u32> {
        failing(runs).await
    }
    let cache = Cache::in_memory();
    let runs = [const { AtomicU32::new(0) }; 3];
    let expected = vec!["run 0"; CALLS as usize];
    assert_eq!(texts(join_all((0..CALLS).map(|_| plain(&cache, &runs[0]))).await), expected);
    assert_eq!(texts(join_all((0..CALLS).map(|_| shared(&cache, &runs[1]))).await), expected);
    assert_eq!(texts(join_all((0..CALLS).map(|_| optional(&cache, &runs[2]))).await), expected);
    assert_eq!(runs.map(AtomicU32::into_inner), [1, 1, 1]);
}

/// A panic while an error is copied ends neither the call that fetched nor those that waited: the error is not shared.
#[tokio::test(start_paused = true)]
async fn an_error_whose_copy_panics_is_not_shared() {
    static COPIES: AtomicU32 = AtomicU32::new(0);

    fn never(_: &io::Error) -> io::Error {
        panic!("it cannot be copied")
    }
    fn once(error: &io::Error) -> io::Error {
        // The first copy is the leader's, for all.
        assert_eq!(COPIES.fetch_add(1, SeqCst) % 2, 0, "it cannot be copied twice");
        copied(error)
    }
    #[cached(ttl = 60, cache = cache, skip(cache, runs), share_error = never)]
    async fn by_nobody(cache: &Cache, runs: &AtomicU32) -> io::Result<u32> {
        failing(runs).await
    }
    #[cached(ttl = 60, cache = cache, skip(cache, runs), share_error = once)]
    async fn by_the_leader(cache: &Cache, runs: &AtomicU32) -> io::Result<u32> {
        failing(runs).await
    }
    let cache = Cache::builder().tokio_clock().build().unwrap();
    let runs = [const { AtomicU32::new(0) }; 2];
    // Each call has the error of a fetch of its own, or of one it waited for.
    let first = texts(join_all((0..CALLS).map(|_| by_nobody(&cache, &runs[0]))).await);
    let second = texts(join_all((0..CALLS).map(|_| by_the_leader(&cache, &runs[1]))).await);
    assert_eq!((first.len(), runs[0].load(SeqCst)), (CALLS as usize, CALLS));
    assert_eq!(second.len(), CALLS as usize);
    assert!((2..=CALLS).contains(&runs[1].load(SeqCst)), "{runs:?}");
}

#[tokio::test]
async fn any_error_is_shared_behind_an_arc() {
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let runs = AtomicU32::new(0);
    let key = REPORTS.key("x");
    let calls = (0..CALLS).map(|_| acme.try_get_or_fetch_arc(&key, || failing::<u32>(&runs)));
    let errors: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap_err).collect();
    assert_eq!(runs.load(SeqCst), 1);
    assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])), "{errors:?}");
    // An error is not stored.
    let value = acme.try_get_or_fetch_arc(&key, || async { Ok::<_, io::Error>(7_u32) }).await;
    assert_eq!(*value.unwrap(), 7);
}
