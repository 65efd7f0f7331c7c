//! A server that throws its clients out: another password, no more connections, a subscriber that is killed, commands
//! that are forbidden, scripts that are forgotten. Calls go on, and everything is used again without a restart.

mod support;

use std::{
    future::{Future, ready},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use cache_core::{Cache, ErrorKind, Invalidated, Key, Keyspace, Scoped, Status, TtlProfile};
use support::{Server, until_linked};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// Time for a loaded machine: what is waited for comes within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// What G3 promises.
const BOUND: Duration = Duration::from_secs(3);

fn builder(url: &str) -> cache_core::Builder {
    Cache::builder().url(url).op_timeout(Duration::from_secs(2)).near_bytes(0).min_idle(1)
}

fn fetched(row: &str) -> std::future::Ready<Result<String, ()>> {
    ready(Ok(row.to_owned()))
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Calls fetch, and an invalidation waits.
async fn goes_without(acme: &Scoped, key: &Key<String>) {
    for n in 0..100 {
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key(("without", n)), || fetched("v")).await.unwrap(), "v");
    }
    assert_eq!(acme.invalidate(key).await, Invalidated::Pending);
    assert_eq!(*acme.try_get_or_fetch(key, || fetched("new")).await.unwrap(), "new");
}

/// The invalidation has arrived, and values are stored again.
async fn is_used_again(acme: &Scoped, key: &Key<String>) {
    until("Redis is used again", || async {
        let value = acme.try_get_or_fetch(key, || fetched("new")).await.unwrap();
        assert_eq!(*value, "new");
        acme.exists(key).await.is_ok_and(|exists| exists)
    })
    .await;
}

/// G7 with another password, of the default user and of a named one: connections that are open stay in use; when they
/// are gone nobody gets in, health says why, and the old password makes it all good again.
#[tokio::test]
async fn a_changed_password_is_no_error_of_a_call_and_works_again_when_it_is_changed_back() {
    for named in [false, true] {
        let server = if named {
            Server::with_args(&["--user", "app", "on", ">right", "~*", "&*", "+@all"])
        } else {
            Server::with_args(&["--requirepass", "right"])
        };
        let user = if named { "app" } else { "" };
        let cache = builder(&format!("redis://{user}:right@127.0.0.1:{}/", server.port())).connect().await.unwrap();
        let acme = cache.tenant("acme").unwrap();
        let key = REPORTS.key("x");
        // Let in before the change, so it may change everything back.
        let mut control = server.connect().unwrap();
        let mut tell = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).exec(&mut control).unwrap();
        acme.set(&key, "old".to_owned()).await.unwrap();
        let change = |password: &'static str, other: &'static str| {
            if named {
                vec!["ACL", "SETUSER", "app", password, other]
            } else {
                vec!["CONFIG", "SET", "requirepass", password.trim_start_matches('>')]
            }
        };
        tell(&change(">wrong", "<right"));
        assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "old", "an open connection stays");
        tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        goes_without(&acme, &key).await;
        let health = cache.health().await;
        let error = health.error.unwrap();
        assert_eq!((health.status, error.kind()), (Status::Degraded, ErrorKind::Authentication), "{error}");
        assert!(!error.to_string().contains("right"));
        tell(&change(">right", "<wrong"));
        is_used_again(&acme, &key).await;
        assert_eq!(cache.health().await.status, Status::Healthy);
    }
}

/// G7 when the server takes no more clients: its refusal opens the breaker, so that not every call knocks.
#[tokio::test]
async fn a_server_that_takes_no_more_clients_is_done_without_until_it_does() {
    let server = Server::start();
    let acme = builder(&server.url()).connect().await.unwrap().tenant("acme").unwrap();
    let key = REPORTS.key("x");
    acme.set(&key, "old".to_owned()).await.unwrap();
    let mut control = server.connect().unwrap();
    let mut tell =
        |words: &[&str]| -> redis::Value { redis::cmd(words[0]).arg(&words[1..]).query(&mut control).unwrap() };
    tell(&["CONFIG", "SET", "maxclients", "1"]);
    assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "old", "an open connection stays");
    tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    goes_without(&acme, &key).await;
    tell(&["CONFIG", "SET", "maxclients", "1000"]);
    let knocked = server.info("rejected_connections");
    assert!(knocked < 40, "{knocked} connections for 100 calls");
    is_used_again(&acme, &key).await;
}

/// A cache with a near tier whose link vouches, on a runtime of its own: a copy older than three seconds is served.
fn linked(url: String) -> (tokio::runtime::Runtime, impl Future<Output = Scoped>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let linking = runtime.spawn(async move {
        let cache = Cache::builder().url(&url).min_idle(1).op_timeout(PATIENCE).connect().await.unwrap();
        let scope = cache.tenant("acme").unwrap();
        until_linked(&cache).await;
        scope
    });
    (runtime, async { linking.await.unwrap() })
}

/// G3 when the server drops a subscriber that does not keep up: its runtime stands still, notices pile up until the
/// server has enough, and an invalidation is published to nobody. Then the runtime goes on.
#[tokio::test]
async fn a_subscriber_that_is_thrown_out_for_not_keeping_up_serves_nothing_old() {
    let server = Server::with_args(&["--client-output-buffer-limit", "pubsub", "64kb", "64kb", "1"]);
    let (runtime, reader) = linked(server.url());
    let reader = reader.await;
    let writer = builder(&server.url()).connect().await.unwrap().tenant("acme").unwrap();
    let key = REPORTS.key("x");
    let read = async |row| (*reader.try_get_or_fetch(&key, || fetched(row)).await.unwrap()).clone();
    assert_eq!(read("old").await, "old");
    let subscribers = || server.cli(&["PUBSUB", "NUMSUB", "cache:~n"]).lines().last() != Some("0");
    let (go_on, stop) = mpsc::channel::<()>();
    let (stopped, stands) = mpsc::channel();
    runtime.spawn(async move {
        stopped.send(()).unwrap();
        // The only worker: nobody reads the sockets of this runtime until the test says so.
        stop.recv().ok();
    });
    stands.recv().unwrap();
    let mut flood = server.connect().unwrap();
    // A lease that nobody waits for ended, said at length: understood, and of no consequence.
    let notice = format!("r{}", "x".repeat(1_000_000));
    for _ in 0..100 {
        if !subscribers() {
            break;
        }
        redis::cmd("PUBLISH").arg("cache:~n").arg(&notice).exec(&mut flood).unwrap();
    }
    assert!(!subscribers(), "the subscriber was not thrown out");
    assert!(writer.invalidate(&key).await.is_applied());
    let invalidated = Instant::now();
    go_on.send(()).unwrap();
    while invalidated.elapsed() < BOUND + Duration::from_millis(500) {
        let began = invalidated.elapsed();
        let row = read("new").await;
        assert!(row == "new" || began <= BOUND, "served {began:?} after the invalidation");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until("the link comes back", || ready(subscribers())).await;
    assert!(writer.invalidate(&key).await.is_applied());
    let invalidated = Instant::now();
    while read("newer").await != "newer" {
        assert!(invalidated.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    runtime.shutdown_background();
}

/// Every verb once: what it says, with scripts or without commands that are not needed.
async fn every_verb_works(acme: &Scoped, n: usize) {
    let key = |id: &'static str| REPORTS.key((id, n));
    let (x, y) = (key("x"), key("y"));
    assert_eq!(*acme.try_get_or_fetch(&x, || fetched("v")).await.unwrap(), "v");
    assert_eq!(*acme.get(&x).await.unwrap().unwrap(), "v", "{n}: it was stored");
    acme.set(&x, "w".to_owned()).await.unwrap();
    assert!(acme.touch(&x).await.unwrap() && acme.exists(&x).await.unwrap());
    let fetch = |keys: Vec<Key<String>>| {
        ready(Ok::<_, ()>(keys.into_iter().map(|key| (key, "b".to_owned())).collect::<Vec<_>>()))
    };
    let both = acme.try_get_or_fetch_many(&[x.clone(), y.clone()], fetch).await.unwrap();
    assert_eq!(both.iter().map(|value| value.as_deref().unwrap().as_str()).collect::<Vec<_>>(), ["w", "b"]);
    assert!(acme.invalidate(&x).await.is_applied());
    assert_eq!(acme.get(&x).await.unwrap(), None);
    assert!(acme.invalidate_pattern("report:y*").await.is_applied());
    assert_eq!(acme.get(&y).await.unwrap(), None);
    assert_eq!(*acme.try_get_or_fetch(&x, || fetched("v")).await.unwrap(), "v");
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    assert_eq!(acme.get(&x).await.unwrap(), None);
    acme.set(&x, "w".to_owned()).await.unwrap();
    assert!(acme.invalidate_all().await.is_applied());
    assert_eq!(acme.get(&x).await.unwrap(), None);
}

/// A server hardened by renaming what an application does not need: scripts are all that it needs.
#[tokio::test]
async fn a_hardened_server_serves_every_verb() {
    let forbidden = ["KEYS", "FLUSHALL", "FLUSHDB", "DEBUG", "CONFIG", "MONITOR", "SAVE", "SHUTDOWN", "SCRIPT"];
    let args: Vec<_> = forbidden.iter().flat_map(|command| ["--rename-command", command, ""]).collect();
    let server = Server::with_args(&args);
    assert!(server.cli(&["CONFIG", "GET", "maxmemory"]).contains("unknown command"));
    let cache = builder(&server.url()).connect().await.unwrap();
    for n in 0..3 {
        every_verb_works(&cache.tenant("acme").unwrap(), n).await;
    }
    assert_eq!(cache.health().await.status, Status::Healthy);
}

/// G6, scripts: forgotten between any two steps of any verb, they cost no call its result. A batch of invalidations is
/// one pipeline, in the middle of which they may be forgotten again: it is then sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_are_forgotten_all_the_time_cost_no_call_its_result() {
    let server = Server::start();
    let cache = builder(&server.url()).op_timeout(PATIENCE).lease(PATIENCE).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let done = AtomicBool::new(false);
    let forgotten = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = server.connect().unwrap();
            while !done.load(Ordering::SeqCst) {
                redis::cmd("SCRIPT").arg("FLUSH").exec(&mut connection).unwrap();
                forgotten.fetch_add(1, Ordering::SeqCst);
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let stopping = Stop(&done);
                for n in 0..100 {
                    every_verb_works(&acme, n).await;
                    let keys: Vec<_> = (0..5).map(|at| REPORTS.key(("many", n, at))).collect();
                    for key in &keys {
                        acme.set(key, "old".to_owned()).await.unwrap();
                    }
                    let _ = acme.invalidate_many(&keys).await;
                    assert!(acme.get_many(&keys).await.unwrap().iter().all(Option::is_none), "{n}");
                }
                drop(stopping);
            });
        });
    });
    assert!(forgotten.into_inner() > 500, "the test forgot too rarely");
}

/// Ends the other thread however this one ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One logical call: the fetch runs once and its value is stored, though RENEW, FILL and RELEASE find no script.
#[tokio::test]
async fn scripts_that_are_forgotten_during_a_fetch_do_not_make_it_run_again() {
    let server = Server::start();
    let cache = builder(&server.url()).lease(Duration::from_millis(300)).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let (key, fetches) = (REPORTS.key("x"), AtomicUsize::new(0));
    let fetch = |outcome: Result<&'static str, ()>| {
        let (server, fetches) = (&server, &fetches);
        move || async move {
            fetches.fetch_add(1, Ordering::SeqCst);
            // Longer than the lease, which is renewed.
            for _ in 0..10 {
                server.cli(&["SCRIPT", "FLUSH"]);
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            outcome.map(str::to_owned)
        }
    };
    assert!(acme.try_get_or_fetch(&key, fetch(Err(()))).await.is_err());
    until("the lease of a failed fetch is given back", || {
        ready(server.cli(&["EXISTS", "cache:tenant:acme:report:x~l"]) == "0")
    })
    .await;
    assert_eq!(*acme.try_get_or_fetch(&key, fetch(Ok("v"))).await.unwrap(), "v");
    assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "v", "it was stored under the renewed lease");
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
}
