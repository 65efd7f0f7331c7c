//! Servers that forbid scripts: every step is a transaction, with the guarantees of the scripts.
//!
//! `Server::start` of this binary starts servers that know no EVAL, also for the tests borrowed from other files. A
//! *scriptless* user of a server that runs scripts stands for an ACL that forbids them.

#![expect(clippy::duplicate_mod, reason = "the borrowed tests bring the support that they use")]

// Deploys, guards, tags and the journal as they are over scripts.
#[path = "deploys.rs"]
mod deploys;
#[path = "guards.rs"]
mod guards;
#[path = "journal.rs"]
mod journal;
mod support;
#[path = "tags.rs"]
mod tags;

use std::{
    future::{Future, pending, ready},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use cache_core::{Cache, ErrorKind, Key, Keyspace, Scoped, TtlProfile, cached};
use support::{Fault, Hold, Proxy, Server, child};
use tokio::{sync::Semaphore, task::JoinHandle};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0).of();
const PATIENT: Duration = Duration::from_secs(20);

/// A server that runs scripts, but not for the user of [`scriptless`].
fn server_with_acl() -> Server {
    let user = ["--user", "scriptless", "on", ">pw", "~*", "&*", "+@all", "-@scripting"];
    Server::with_args(&user)
}

/// The URL with the user that may not run scripts.
fn scriptless(url: &str) -> String {
    url.replace("redis://", "redis://scriptless:pw@")
}

/// No near tier: nothing but the server's answers stands between a caller and an old row.
fn builder(url: &str) -> cache_core::Builder {
    Cache::builder().url(url).near_bytes(0).op_timeout(PATIENT).min_idle(1)
}

async fn strict(url: &str) -> Scoped {
    builder(url).connect().await.unwrap().tenant("acme").unwrap()
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    ready(Ok(value.to_owned()))
}

/// Waits until the server has executed `command` so many times more than `before`.
async fn executed(server: &Server, command: &str, before: u64) {
    let begun = Instant::now();
    while calls_of(server, command) <= before {
        assert!(begun.elapsed() < PATIENT, "{command} is not executed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// How often the server has executed `command`.
fn calls_of(server: &Server, command: &str) -> u64 {
    let stats = server.cli(&["INFO", "commandstats"]);
    let line =
        stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")).map(str::to_owned));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// No lease is left on the server, without waiting for one to run out.
async fn no_lease_is_left(server: &Server) {
    let begun = Instant::now();
    loop {
        let left = server.cli(&["KEYS", "*~l"]);
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "left: {left}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A fetch under way, which has read `row` and ends when told.
struct Fetch {
    gate: Arc<Semaphore>,
    call: JoinHandle<Result<String, String>>,
}

impl Fetch {
    async fn begin(scope: &Scoped, id: &'static str, row: Result<&'static str, &'static str>) -> Self {
        let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (scope, opened, begun) = (scope.clone(), gate.clone(), began.clone());
        let call = tokio::spawn(async move {
            let fetch = || async {
                begun.add_permits(1);
                opened.acquire().await.unwrap().forget();
                row.map(str::to_owned).map_err(str::to_owned)
            };
            Ok((*scope.try_get_or_fetch(&REPORTS.key(id), fetch).await?).clone())
        });
        began.acquire().await.unwrap().forget();
        Self { gate, call }
    }

    fn let_end(&self) {
        self.gate.add_permits(1);
    }

    async fn end(self) -> Result<String, String> {
        self.let_end();
        self.call.await.unwrap()
    }
}

/// One cache behind a proxy, whose steps stop between WATCH and EXEC, and another one that comes in between.
struct Race {
    server: Server,
    proxy: Proxy,
    held: Scoped,
    free: Scoped,
}

impl Race {
    async fn start() -> Self {
        let server = Server::start();
        let proxy = Proxy::start(&server);
        let (held, free) = (strict(proxy.url()).await, strict(&server.url()).await);
        // Both have their connections, and the generations exist.
        for scope in [&held, &free] {
            for id in 0..16 {
                scope.set(&REPORTS.key(("warm", id)), "up".to_owned()).await.unwrap();
            }
        }
        Self { server, proxy, held, free }
    }

    /// From here on the server executes what the held cache watches and reads, and its EXEC is not sent.
    fn stop_before_exec(&self) -> u64 {
        let before = calls_of(&self.server, "watch");
        self.proxy.set(Fault::HoldRepliesTo("UNWATCH"));
        before
    }

    async fn until_watching(&self, before: u64) {
        executed(&self.server, "watch", before).await;
    }

    fn go_on(&self) {
        self.proxy.set(Fault::None);
    }
}

#[cached(ttl = 60, key_prefix = "rows", cache = cache, skip(cache, rows))]
async fn row(cache: &Cache, rows: &AtomicU64, id: u32) -> u64 {
    let _ = id;
    rows.fetch_add(1, Ordering::SeqCst)
}

/// All verbs do what they say, without one call being refused first.
#[tokio::test]
async fn every_verb_does_what_it_says() {
    let (renamed, acl) = (Server::start(), server_with_acl());
    for (server, is_acl) in [(&renamed, false), (&acl, true)] {
        let proxy = Proxy::start(server);
        let url = if is_acl { scriptless(proxy.url()) } else { proxy.url().to_owned() };
        let cache = builder(&url).connect().await.unwrap();
        let acme = cache.tenant("acme").unwrap();
        let key = REPORTS.key("abc-456");
        proxy.until("EVAL", 1).await;
        assert_eq!(acme.get(&key).await.unwrap(), None);
        assert!(!acme.exists(&key).await.unwrap());
        assert!(!acme.touch(&key).await.unwrap());
        acme.set(&key, "v1".to_owned()).await.unwrap();
        assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "v1");
        assert!(acme.exists(&key).await.unwrap());
        let ttl = acme.ttl(&key).await.unwrap().unwrap();
        assert!(ttl <= Duration::from_secs(60) && ttl > Duration::from_secs(50), "{ttl:?}");
        server.cli(&["PEXPIRE", "cache:tenant:acme:report:abc-456", "5000"]);
        assert!(acme.touch(&key).await.unwrap());
        assert!(acme.ttl(&key).await.unwrap().unwrap() > Duration::from_secs(50));
        assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "v1", "a touched entry verifies");
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v2")).await.unwrap(), "v1");
        assert!(acme.invalidate(&key).await.is_applied());
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v2")).await.unwrap(), "v2");
        assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "v2");
        assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
        assert_eq!(acme.get(&key).await.unwrap(), None);
        acme.set(&key, "v3".to_owned()).await.unwrap();
        assert!(acme.invalidate_all().await.is_applied());
        assert!(!acme.exists(&key).await.unwrap());
        acme.set(&key, "v4".to_owned()).await.unwrap();
        assert!(acme.invalidate_pattern("report:abc*").await.is_applied());
        assert_eq!(acme.get(&key).await.unwrap(), None);

        // A batch of leases and fills, and their invalidation in one transaction.
        let keys: Vec<_> = (0..100).map(|id| REPORTS.key(id)).collect();
        let fetch = async |missing: Vec<Key<String>>| {
            assert_eq!(missing.len(), 100);
            Ok::<_, ()>(missing.into_iter().map(|key| (key, "v".to_owned())).collect::<Vec<_>>())
        };
        assert!(acme.try_get_or_fetch_many(&keys, fetch).await.unwrap().iter().all(Option::is_some));
        assert!(acme.get_many(&keys).await.unwrap().iter().all(Option::is_some));
        proxy.reset();
        assert!(acme.invalidate_many(&keys).await.is_applied());
        assert_eq!(proxy.round_trips(), 2, "{:?}", proxy.trips());
        assert!(acme.get_many(&keys).await.unwrap().iter().all(Option::is_none));

        // Bytes that are not ours are overwritten, whatever their type.
        for plant in [&["SET"][..], &["RPUSH"]] {
            for (name, call) in [("report:planted", true), ("report:planted~l", true), ("report:~g", false)] {
                let name = format!("cache:tenant:acme:{name}");
                server.cli(&["DEL", &name]);
                server.cli(&[plant[0], &name, "garbage"]);
                let planted = REPORTS.key("planted");
                if call {
                    assert_eq!(*acme.try_get_or_fetch(&planted, || fetched("w")).await.unwrap(), "w");
                } else {
                    acme.set(&planted, "w".to_owned()).await.unwrap();
                }
                assert_eq!(*acme.get(&planted).await.unwrap().unwrap(), "w", "{plant:?} {name}");
                assert!(acme.invalidate(&planted).await.is_applied());
            }
        }

        let rows = AtomicU64::new(0);
        assert_eq!((row(&cache, &rows, 1).await, row(&cache, &rows, 1).await), (0, 0));
        assert_eq!(row::refresh(&cache, &rows, 1).await, 1);
        assert_eq!(row(&cache, &rows, 1).await, 1);

        no_lease_is_left(server).await;
        for name in server.cli(&["KEYS", "*"]).lines() {
            assert_ne!(server.cli(&["PTTL", name]), "-1", "{name} never ends");
        }
        assert_eq!(proxy.count("EVALSHA"), 0, "no call finds out by being refused");
        let health = cache.health().await;
        assert!(health.connected && health.scripts_forbidden);
        assert_eq!(cache.stats().total.remote_errors, 0);
    }
    // The same server runs them for others.
    assert!(!builder(&acl.url()).connect().await.unwrap().health().await.scripts_forbidden);
}

/// A hit is one round trip, as ever. A miss is READ, and two trips each for LEASE and FILL; other writes are two.
#[tokio::test]
async fn a_step_is_two_round_trips() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = strict(proxy.url()).await;
    let key = REPORTS.key("x");
    acme.set(&key, "v".to_owned()).await.unwrap();
    // The connections are there.
    for id in 0..32 {
        acme.touch(&REPORTS.key(id)).await.unwrap();
    }
    acme.touch(&key).await.unwrap();
    proxy.reset();
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched("other")).await.unwrap(), "v");
    assert_eq!(proxy.round_trips(), 1, "{:?}", proxy.trips());
    for write in 0..3 {
        proxy.reset();
        match write {
            0 => acme.set(&key, "w".to_owned()).await.unwrap(),
            1 => assert!(acme.touch(&key).await.unwrap()),
            _ => assert!(acme.invalidate(&key).await.is_applied()),
        }
        assert_eq!(proxy.round_trips(), 2, "{:?}", proxy.trips());
    }
    proxy.reset();
    acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap();
    assert_eq!(proxy.round_trips(), 5, "{:?}", proxy.trips());
}

/// The child of the test below: hundreds of calls for each key the parent names.
#[test]
fn hundreds_of_callers() {
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let url = std::env::var("REDIS_URL").unwrap();
        // With a near tier: without one, who joins after LEASE was sent may not take what it found.
        let cache = async || Cache::builder().url(&url).op_timeout(PATIENT).min_idle(1).connect().await.unwrap();
        let caches = [cache().await.tenant("acme").unwrap(), cache().await.tenant("acme").unwrap()];
        child::report("ready");
        while let Some(id) = child::wait_for_parent() {
            let fetches = Arc::new(AtomicUsize::new(0));
            let calls: Vec<_> = (0..400)
                .map(|n| {
                    let (acme, key, fetches) = (caches[n % 2].clone(), REPORTS.key(&*id), fetches.clone());
                    tokio::spawn(async move {
                        acme.try_get_or_fetch(&key, || async {
                            fetches.fetch_add(1, Ordering::SeqCst);
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            fetched("v").await
                        })
                        .await
                    })
                })
                .collect();
            for call in calls {
                assert_eq!(*call.await.unwrap().unwrap(), "v");
            }
            child::report(&fetches.load(Ordering::SeqCst).to_string());
        }
    });
}

/// G4: two processes, one of which may run scripts and one may not, with two caches each.
#[test]
fn a_cold_key_under_two_processes_is_fetched_once() {
    let server = server_with_acl();
    let (with, without) = (server.url(), scriptless(&server.url()));
    for (fleet, urls) in [[&without, &without], [&without, &with]].into_iter().enumerate() {
        let mut children = urls.map(|url| child::spawn("hundreds_of_callers", &[("REDIS_URL", url)]));
        for child in &mut children {
            assert_eq!(child.next_report(), "ready");
        }
        for round in 0..5 {
            for child in &mut children {
                child.tell(&format!("{fleet}-{round}"));
            }
            let fetches: usize = children.iter_mut().map(|child| child.next_report().parse::<usize>().unwrap()).sum();
            assert_eq!(fetches, 1, "round {round}");
        }
        for child in children {
            child.finish();
        }
    }
    assert_eq!(server.cli(&["KEYS", "*~l"]), "");
}

/// G1 and G2 over a fleet of which half may run scripts: whoever reads after an invalidation returned sees at least
/// the row that was there when it was called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_the_last_invalidation_in_a_mixed_fleet() {
    const KEYS: usize = 3;
    const LEDGERS: Keyspace<u64> = TtlProfile::new("ledger", Duration::from_secs(60)).of();
    let server = server_with_acl();
    let scripted = server.url();
    let urls = [scriptless(&scripted), scriptless(&scripted), scripted];
    let rows: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let floor: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let mut tasks = Vec::new();
    for (member, url) in urls.into_iter().enumerate() {
        let acme = builder(&url).connect().await.unwrap().tenant("acme").unwrap();
        for task in 0..4 {
            let (acme, rows, floor) = (acme.clone(), rows.clone(), floor.clone());
            tasks.push(tokio::spawn(async move {
                for step in 0..120_usize {
                    let at = (step * 7 + task + member) % KEYS;
                    let key = LEDGERS.key(at);
                    if (step + 3 * task + member) % 5 == 0 {
                        let row = rows[at].fetch_add(1, Ordering::SeqCst) + 1;
                        let applied = match step % 4 {
                            0 => acme.invalidate_keyspace(&LEDGERS).await,
                            1 => acme.invalidate_pattern("ledger:*").await,
                            2 => acme.invalidate_many(&[key, LEDGERS.key("other")]).await,
                            _ => acme.invalidate(&key).await,
                        };
                        assert!(applied.is_applied());
                        floor[at].fetch_max(row, Ordering::SeqCst);
                    } else {
                        let oldest = floor[at].load(Ordering::SeqCst);
                        let fetch = || async {
                            let row = rows[at].load(Ordering::SeqCst);
                            tokio::time::sleep(Duration::from_millis(step as u64 % 3)).await;
                            Ok::<_, ()>(row)
                        };
                        let read = *acme.try_get_or_fetch(&key, fetch).await.unwrap();
                        assert!(read >= oldest, "{read} is older than {oldest}");
                    }
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    no_lease_is_left(&server).await;
}

/// G1. FILL has read that the lease is its own and the generations are as noted; then, before its EXEC, the value is
/// invalidated in each way there is, or a newer one is set. EXEC must store nothing.
#[tokio::test]
async fn a_fill_between_watch_and_exec_is_doomed_by_every_invalidation() {
    let race = Race::start().await;
    let key = REPORTS.key("x");
    for way in 0..6 {
        let old = Fetch::begin(&race.held, "x", Ok("old")).await;
        let before = race.stop_before_exec();
        old.let_end();
        race.until_watching(before).await;
        let applied = match way {
            0 => race.free.invalidate(&key).await,
            1 => race.free.invalidate_many(&[REPORTS.key("y"), key.clone()]).await,
            2 => race.free.invalidate_keyspace(&REPORTS).await,
            3 => race.free.invalidate_all().await,
            4 => race.free.invalidate_pattern("report:x*").await,
            _ => {
                race.free.set(&key, "new".to_owned()).await.unwrap();
                cache_core::Invalidated::Applied
            }
        };
        assert!(applied.is_applied(), "{way}");
        race.go_on();
        assert_eq!(old.end().await.unwrap(), "old");
        let stored = race.free.get(&key).await.unwrap();
        assert_eq!(stored.as_deref().map(String::as_str), (way == 5).then_some("new"), "{way}");
        race.free.invalidate(&key).await.is_applied().then_some(()).unwrap();
    }
    no_lease_is_left(&race.server).await;
}

/// G1. FILL has read its lease, which then runs out before EXEC: somebody else might have taken it and given it back.
/// Redis ends a WATCH when what is watched expires.
#[tokio::test]
async fn a_fill_whose_lease_runs_out_between_watch_and_exec_stores_nothing() {
    let race = Race::start().await;
    let cache = builder(race.proxy.url()).lease(Duration::from_millis(1_500)).connect().await.unwrap();
    let brief = cache.tenant("acme").unwrap();
    let fetch = Fetch::begin(&brief, "x", Ok("old")).await;
    let before = race.stop_before_exec();
    fetch.let_end();
    race.until_watching(before).await;
    // Nobody looks at the lease meanwhile, so that it is not removed by the look.
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    race.go_on();
    assert_eq!(fetch.end().await.unwrap(), "old");
    assert_eq!(race.free.get(&REPORTS.key("x")).await.unwrap(), None);
    assert_eq!(cache.stats().total.refused, 1);
}

/// G1. Neither value nor lease exist, so an invalidation changes nothing that a SET watches. SET is sent and given up,
/// the key is invalidated, that is acknowledged, and then EXEC arrives, after the time until which the SET counts.
#[tokio::test]
async fn a_set_that_arrives_too_late_is_not_stored() {
    const OP_TIMEOUT: Duration = Duration::from_millis(300);
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let cache = builder(proxy.url()).op_timeout(OP_TIMEOUT).connect().await.unwrap();
    let (acme, free) = (cache.tenant("acme").unwrap(), strict(&server.url()).await);
    let (key, name) = (REPORTS.key("x"), "cache:tenant:acme:report:x");
    free.set(&REPORTS.key("y"), "makes the generations".to_owned()).await.unwrap();
    // In time, and the connection is there.
    acme.set(&key, "in time".to_owned()).await.unwrap();
    assert!(free.invalidate(&key).await.is_applied());
    proxy.reset();
    let exec = calls_of(&server, "exec");
    proxy.hold(Hold::Command("SET"));
    let begun = Instant::now();
    let error = acme.set(&key, "late".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(proxy.count("WATCH"), 1, "{:?}", proxy.trips());
    // Its own invalidation, which follows a SET without an answer, must not hide what becomes of the SET.
    cache.close().await;
    drop((acme, cache));
    assert!(free.invalidate(&key).await.is_applied());
    tokio::time::sleep((OP_TIMEOUT + Duration::from_millis(300)).saturating_sub(begun.elapsed())).await;
    let others = calls_of(&server, "exec") - exec;
    proxy.hold(Hold::None);
    executed(&server, "exec", exec + others).await;
    assert_eq!(server.cli(&["EXISTS", name]), "0");
    assert_eq!(free.get(&key).await.unwrap(), None);
}

/// A write fence that goes up between WATCH and EXEC is honoured by SET, LEASE and FILL, and removed by no
/// invalidation.
#[tokio::test]
async fn a_write_fence_that_goes_up_between_watch_and_exec_is_honoured() {
    let race = Race::start().await;
    let (key, lease) = (REPORTS.key("x"), "cache:tenant:acme:report:x~l");
    for step in 0..3 {
        let fetch = if step == 2 { Some(Fetch::begin(&race.held, "x", Ok("fetched")).await) } else { None };
        let before = race.stop_before_exec();
        let writing = tokio::spawn({
            let (held, key) = (race.held.clone(), key.clone());
            async move {
                match (step, fetch) {
                    (0, _) => held.set(&key, "set".to_owned()).await.unwrap(),
                    (_, Some(fetch)) => assert_eq!(fetch.end().await.unwrap(), "fetched"),
                    _ => assert_eq!(*held.try_get_or_fetch(&key, || fetched("fetched")).await.unwrap(), "fetched"),
                }
            }
        });
        race.until_watching(before).await;
        race.server.cli(&["SET", lease, "W", "PX", "60000"]);
        race.go_on();
        writing.await.unwrap();
        assert_eq!(race.free.get(&key).await.unwrap(), None, "{step}");
        assert!(race.free.invalidate(&key).await.is_applied());
        assert_eq!(race.server.cli(&["GET", lease]), "W", "{step}");
        race.server.cli(&["DEL", lease]);
    }
}

/// G1. INVALIDATE has read that there is a lease, or none; a fence goes up before its EXEC. It must stand.
#[tokio::test]
async fn an_invalidation_between_watch_and_exec_removes_no_fence() {
    let race = Race::start().await;
    let (key, lease) = (REPORTS.key("x"), "cache:tenant:acme:report:x~l");
    let before = race.stop_before_exec();
    let invalidating = tokio::spawn({
        let (held, key) = (race.held.clone(), key.clone());
        async move { held.invalidate(&key).await }
    });
    race.until_watching(before).await;
    race.server.cli(&["SET", lease, "W", "PX", "60000"]);
    race.go_on();
    assert!(invalidating.await.unwrap().is_applied());
    assert_eq!(race.server.cli(&["GET", lease]), "W");
}

/// G4. LEASE has read that nobody fetches; another process takes the lease before its EXEC. It waits for that one.
#[tokio::test]
async fn a_lease_taken_between_watch_and_exec_is_waited_for() {
    let race = Race::start().await;
    let key = REPORTS.key("x");
    let before = race.stop_before_exec();
    let waiting = tokio::spawn({
        let (held, key) = (race.held.clone(), key.clone());
        async move { held.try_get_or_fetch(&key, || fetched("second")).await }
    });
    race.until_watching(before).await;
    let first = Fetch::begin(&race.free, "x", Ok("first")).await;
    race.go_on();
    // It has seen the lease and marked it.
    let lease = "cache:tenant:acme:report:x~l";
    let begun = Instant::now();
    while server_byte(&race.server, lease, 1) != "1" {
        assert!(begun.elapsed() < PATIENT, "nobody waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(first.end().await.unwrap(), "first");
    assert_eq!(*waiting.await.unwrap().unwrap(), "first");
}

fn server_byte(server: &Server, name: &str, at: u32) -> String {
    server.cli(&["GETRANGE", name, &at.to_string(), &at.to_string()])
}

/// G4. LEASE has read that there is no value; one is set before its EXEC. That one is given, and nothing fetched.
#[tokio::test]
async fn a_value_stored_between_watch_and_exec_is_found() {
    let race = Race::start().await;
    let key = REPORTS.key("x");
    let before = race.stop_before_exec();
    let reading = tokio::spawn({
        let (held, key) = (race.held.clone(), key.clone());
        async move { held.try_get_or_fetch(&key, || fetched("fetched")).await }
    });
    race.until_watching(before).await;
    race.free.set(&key, "set".to_owned()).await.unwrap();
    race.go_on();
    assert_eq!(*reading.await.unwrap().unwrap(), "set");
}

/// G1. TOUCH has read a valid value; it is invalidated, or another one set, before its EXEC. Nothing comes back, and
/// the newer value keeps its own life.
#[tokio::test]
async fn a_touch_between_watch_and_exec_brings_nothing_back() {
    let race = Race::start().await;
    let (key, name) = (REPORTS.key("x"), "cache:tenant:acme:report:x");
    for way in 0..3 {
        race.free.set(&key, "old".to_owned()).await.unwrap();
        let before = race.stop_before_exec();
        let touching = tokio::spawn({
            let (held, key) = (race.held.clone(), key.clone());
            async move { held.touch(&key).await.unwrap() }
        });
        race.until_watching(before).await;
        let applied = match way {
            0 => race.free.invalidate(&key).await,
            1 => race.free.invalidate_keyspace(&REPORTS).await,
            _ => race.free.invalidate_pattern("report:x*").await,
        };
        assert!(applied.is_applied());
        race.go_on();
        assert!(!touching.await.unwrap(), "{way}");
        assert_eq!(race.free.get(&key).await.unwrap(), None, "{way}");
        assert!(way == 1 || race.server.cli(&["EXISTS", name]) == "0", "{way}");
    }
}

/// G1 and G4. RELEASE of a failed fetch has read its own lease; the key is invalidated and another process takes the
/// lease before its EXEC. That lease must stand.
#[tokio::test]
async fn a_release_between_watch_and_exec_leaves_the_next_lease_alone() {
    let race = Race::start().await;
    let key = REPORTS.key("x");
    let failing = Fetch::begin(&race.held, "x", Err("no row")).await;
    let before = race.stop_before_exec();
    assert_eq!(failing.end().await.unwrap_err(), "no row");
    race.until_watching(before).await;
    assert!(race.free.invalidate(&key).await.is_applied());
    let next = Fetch::begin(&race.free, "x", Ok("next")).await;
    let before = calls_of(&race.server, "exec");
    race.go_on();
    executed(&race.server, "exec", before).await;
    assert_eq!(next.end().await.unwrap(), "next");
    assert_eq!(*race.held.get(&key).await.unwrap().unwrap(), "next", "its lease was gone");
    no_lease_is_left(&race.server).await;
}

/// G5. A call dropped after any number of polls, between WATCH and EXEC too, leaves no lease behind and does no harm to
/// whoever uses the connection next: neither does its EXEC fail, nor does it run under the other's WATCH.
#[tokio::test]
async fn a_call_dropped_at_any_point_harms_nobody() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = strict(proxy.url()).await;
    for polls in 1..80 {
        let key = REPORTS.key(polls);
        let mut ended = false;
        {
            let mut call = Box::pin(acme.try_get_or_fetch(&key, || async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                fetched("v").await
            }));
            for _ in 0..polls {
                if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    ended = true;
                    break;
                }
                // Lets the reply it waits for arrive.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        no_lease_is_left(&server).await;
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap(), "v", "{polls}");
        assert!(acme.exists(&key).await.unwrap(), "{polls}");
        if ended {
            return;
        }
    }
    panic!("the call never ended: the polls above did not reach every point");
}

/// G1 and G5. Connections are cut again and again while transactions are under way: calls get their value, what was
/// invalidated stays so, and no lease is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_in_the_middle_of_transactions_cost_retries_only() {
    const LEDGERS: Keyspace<u64> = TtlProfile::new("ledger", Duration::from_secs(60)).of();
    const CUTS: usize = 25;
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = strict(proxy.url()).await;
    let rows: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..rows.len())
        .map(|at| {
            let (acme, rows, done) = (acme.clone(), rows.clone(), done.clone());
            tokio::spawn(async move {
                let key = LEDGERS.key(at);
                while done.load(Ordering::SeqCst) < CUTS {
                    let row = rows[at].fetch_add(1, Ordering::SeqCst) + 1;
                    // Pending is a miss here, and applied is one everywhere: either way the next read is a new one.
                    let _ = acme.invalidate(&key).await;
                    let fetch = || async {
                        tokio::task::yield_now().await;
                        Ok::<_, ()>(rows[at].load(Ordering::SeqCst))
                    };
                    assert!(*acme.try_get_or_fetch(&key, fetch).await.unwrap() >= row);
                }
            })
        })
        .collect();
    for cut in 1..=CUTS {
        // Transactions are under way again: the breaker has let calls through.
        let sent = proxy.count("WATCH");
        let begun = Instant::now();
        while proxy.count("WATCH") < sent + 10 {
            assert!(begun.elapsed() < PATIENT, "no transaction any more");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.drop_connections();
        done.store(cut, Ordering::SeqCst);
    }
    for task in tasks {
        task.await.unwrap();
    }
    // At worst a lease whose every release was cut off runs out.
    let begun = Instant::now();
    while !server.cli(&["KEYS", "*~l"]).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(6), "{}", server.cli(&["KEYS", "*~l"]));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("after"), || fetched("v")).await.unwrap(), "v");
}

/// The right to run scripts is taken away and given back in the middle: no call notices, and it is used again with the
/// next connections.
#[tokio::test]
async fn rights_taken_away_and_given_back_cost_no_call_its_value() {
    let server = server_with_acl();
    server.cli(&["ACL", "SETUSER", "scriptless", "+@scripting"]);
    let proxy = Proxy::start(&server);
    let cache = builder(&scriptless(proxy.url())).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let use_it = async |time: &str| {
        let (key, other) = (REPORTS.key((time, "x")), REPORTS.key((time, "y")));
        acme.set(&key, time.to_owned()).await.unwrap();
        assert_eq!(*acme.get(&key).await.unwrap().unwrap(), time);
        // Several keys at once go another way.
        assert!(acme.invalidate_many(&[other, key.clone()]).await.is_applied());
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched(time)).await.unwrap(), time);
        assert!(acme.exists(&key).await.unwrap());
        assert!(acme.invalidate(&key).await.is_applied());
    };
    for (many, [before, without, with, after]) in
        [(false, ["a", "b", "c", "d"]), (true, ["e", "f", "g", "h"]), (false, ["i", "j", "k", "l"])]
    {
        use_it(before).await;
        assert!(!cache.health().await.scripts_forbidden);
        // The fetch begins under scripts and ends under transactions.
        let fetch = Fetch::begin(&acme, without, Ok("mid")).await;
        server.cli(&["ACL", "SETUSER", "scriptless", "-@scripting"]);
        if many {
            // It is found out by several keys at once.
            assert!(acme.invalidate_many(&[REPORTS.key((many, 1)), REPORTS.key((many, 2))]).await.is_applied());
        }
        assert_eq!(fetch.end().await.unwrap(), "mid");
        assert!(acme.exists(&REPORTS.key(without)).await.unwrap());
        use_it(without).await;
        assert!(cache.health().await.scripts_forbidden);
        // And the other way round.
        let fetch = Fetch::begin(&acme, with, Ok("mid")).await;
        server.cli(&["ACL", "SETUSER", "scriptless", "+@scripting"]);
        proxy.reset();
        proxy.drop_connections();
        acme.get(&REPORTS.key(after)).await.unwrap();
        assert_eq!(fetch.end().await.unwrap(), "mid");
        assert!(acme.exists(&REPORTS.key(with)).await.unwrap());
        // What was cut off has been sent again, as the transaction it was.
        proxy.reset();
        use_it(after).await;
        assert_eq!((proxy.count("WATCH"), proxy.count("EVALSHA") > 0), (0, true), "{:?}", proxy.trips());
    }
    no_lease_is_left(&server).await;
}

/// 1. The server allows scripts again, and all connections break. 2. While the new ones are made, what was acknowledged
/// lately is to be sent again. 3. The new connections say that scripts are allowed. 4. It is sent: as a script.
#[tokio::test]
async fn a_step_taken_while_connections_are_made_is_taken_as_they_allow() {
    let server = server_with_acl();
    let proxy = Proxy::start(&server);
    let acme = strict(&scriptless(proxy.url())).await;
    let keys = [REPORTS.key("x"), REPORTS.key("y")];
    assert!(acme.invalidate(&keys[0]).await.is_applied());
    server.cli(&["ACL", "SETUSER", "scriptless", "+@scripting"]);
    proxy.set(Fault::HoldRepliesTo("EVAL"));
    proxy.reset();
    proxy.drop_connections();
    let asking = tokio::spawn({
        let (acme, key) = (acme.clone(), keys[1].clone());
        async move { acme.get(&key).await }
    });
    proxy.until("EVAL", 1).await;
    let invalidating = tokio::spawn({
        let (acme, key) = (acme.clone(), keys[0].clone());
        async move { acme.invalidate(&key).await }
    });
    // It has begun, and waits for the connection.
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.reset();
    proxy.set(Fault::None);
    assert_eq!(asking.await.unwrap().unwrap(), None);
    assert!(invalidating.await.unwrap().is_applied());
    assert!(acme.invalidate_many(&keys).await.is_applied());
    proxy.until("INVALIDATE", 3).await;
    assert_eq!(proxy.count("WATCH"), 0, "{:?}", proxy.trips());
}

/// A user who may run scripts, or not, but may not touch the keys, is told so: it is not taken for the one nor repeated
/// for the other.
#[tokio::test]
async fn a_key_that_may_not_be_touched_is_a_clear_error() {
    for scripting in ["+@scripting", "-@scripting"] {
        let server =
            Server::with_args(&["--user", "scriptless", "on", ">pw", "~cache:tenant:acme:*", "&*", "+@all", scripting]);
        let proxy = Proxy::start(&server);
        let cache = builder(&scriptless(proxy.url())).connect().await.unwrap();
        cache.tenant("acme").unwrap().set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
        proxy.reset();
        let other = cache.tenant("other").unwrap();
        let error = other.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
        assert!(error.to_string().contains("keys"), "{error}");
        assert_eq!(cache.health().await.scripts_forbidden, scripting == "-@scripting");
        assert_eq!(*other.try_get_or_fetch(&REPORTS.key("x"), || fetched("v")).await.unwrap(), "v");
        assert_eq!(
            cache.tenant("acme").unwrap().get(&REPORTS.key("x")).await.unwrap().as_deref(),
            Some(&"v".to_owned())
        );
    }
}

/// Deletions work on a full server, and a full server is named.
#[tokio::test]
async fn invalidations_work_on_a_full_server() {
    let server = Server::start();
    let acme = strict(&server.url()).await;
    let keys = [REPORTS.key("x"), REPORTS.key("y")];
    for key in &keys {
        acme.set(key, "v".to_owned()).await.unwrap();
    }
    let fetch = Fetch::begin(&acme, "z", Ok("old")).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = acme.set(&keys[0], "w".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(acme.invalidate_many(&keys).await.is_applied());
    assert!(acme.invalidate(&REPORTS.key("z")).await.is_applied());
    assert_eq!(server.cli(&["EXISTS", "cache:tenant:acme:report:x", "cache:tenant:acme:report:z~l"]), "0");
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    assert_eq!(*acme.try_get_or_fetch(&keys[0], || fetched("v")).await.unwrap(), "v");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(fetch.end().await.unwrap(), "old");
    assert_eq!(acme.get(&REPORTS.key("z")).await.unwrap(), None);
}

/// G5. A killed process holds up others for its lease at most, and a leader that is dropped for no time at all.
#[tokio::test]
async fn a_dropped_fetch_gives_its_lease_back() {
    let server = Server::start();
    let (mine, others) = (strict(&server.url()).await, strict(&server.url()).await);
    let key = REPORTS.key("x");
    let call = mine.try_get_or_fetch(&key, pending::<Result<String, ()>>);
    assert!(tokio::time::timeout(Duration::from_millis(200), call).await.is_err());
    no_lease_is_left(&server).await;
    assert_eq!(*others.try_get_or_fetch(&key, || fetched("v")).await.unwrap(), "v");
    assert!(others.exists(&key).await.unwrap(), "it was stored, so the lease was free");
}

/// G4. A fetch longer than its lease keeps it.
#[tokio::test]
async fn a_fetch_longer_than_its_lease_is_still_the_only_one() {
    let server = Server::start();
    let cache = async || {
        let builder = builder(&server.url()).lease(Duration::from_millis(2_400));
        builder.connect().await.unwrap().tenant("acme").unwrap()
    };
    let (first, second) = (cache().await, cache().await);
    let key = REPORTS.key("x");
    let fetches = AtomicUsize::new(0);
    let slow = || async {
        fetches.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(4_000)).await;
        fetched("v").await
    };
    let late = async {
        tokio::time::sleep(Duration::from_millis(2_600)).await;
        second.try_get_or_fetch(&key, slow).await
    };
    let (a, b) = tokio::join!(first.try_get_or_fetch(&key, slow), late);
    assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("v", "v"));
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
}
