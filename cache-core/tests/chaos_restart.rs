//! A server that restarts, loads, hangs or is demoted under its clients: what it lost, brought back or executes late
//! is never served as if nothing had happened.
//!
//! The limit: what a snapshot brings back is removed again if it was invalidated or `set` in the last ten seconds of the
//! server's life. What was invalidated earlier and is missing in the snapshot stays until its TTL ends.

mod support;

use std::{
    future::{Future, ready},
    sync::Arc,
    time::{Duration, Instant},
};

use cache_core::{Cache, ErrorKind, Invalidated, Key, Keyspace, Scoped, Status, TtlProfile};
use support::{Proxy, Server, until_linked};
use tokio::{sync::Semaphore, task::JoinHandle};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// Time for a loaded machine: what is waited for comes within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// What G3 promises.
const BOUND: Duration = Duration::from_secs(3);

fn strict(url: &str, op_timeout: Duration) -> Scoped {
    let builder = Cache::builder().url(url).near_bytes(0).op_timeout(op_timeout).pool_size(1).min_idle(1);
    builder.build().unwrap().tenant("acme").unwrap()
}

/// Stores a value and forgets that it did: a process that has one in its journal removes it after a restart.
async fn set_by_another(url: &str, keys: &[Key<String>], value: &str) {
    let cache = Cache::builder().url(url).near_bytes(0).op_timeout(PATIENCE).build().unwrap();
    let scope = cache.tenant("acme").unwrap();
    for key in keys {
        scope.set(key, value.to_owned()).await.unwrap();
    }
    cache.close().await;
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

#[derive(Clone, Copy, Debug)]
enum How {
    Key,
    Many,
    Pattern,
    Keyspace,
    Tenant,
}

const ALL: [How; 5] = [How::Key, How::Many, How::Pattern, How::Keyspace, How::Tenant];

async fn invalidate(scope: &Scoped, how: How) -> Invalidated {
    match how {
        How::Key => scope.invalidate(&REPORTS.key("x-1")).await,
        How::Many => scope.invalidate_many(&[REPORTS.key("x-1"), REPORTS.key("x-2")]).await,
        How::Pattern => scope.invalidate_pattern("report:x*").await,
        How::Keyspace => scope.invalidate_keyspace(&REPORTS).await,
        How::Tenant => scope.invalidate_all().await,
    }
}

/// A fetch under way, which has read `row` and ends when told.
struct Fetch {
    gate: Arc<Semaphore>,
    call: JoinHandle<String>,
}

impl Fetch {
    async fn begin(scope: &Scoped, key: Key<String>, row: &'static str) -> Self {
        let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (scope, opened, begun) = (scope.clone(), gate.clone(), began.clone());
        let call = tokio::spawn(async move {
            let fetch = || async {
                begun.add_permits(1);
                opened.acquire().await.unwrap().forget();
                fetched(row).await
            };
            (*scope.try_get_or_fetch(&key, fetch).await.unwrap()).clone()
        });
        began.acquire().await.unwrap().forget();
        Self { gate, call }
    }

    async fn end(self) -> String {
        self.gate.add_permits(1);
        self.call.await.unwrap()
    }
}

/// G1: a fetch reads the old row; the server is killed and restarted empty; somebody invalidates there, and somebody
/// else's value is stored or not; the fetch ends.
#[tokio::test]
async fn a_fetch_from_before_a_restart_stores_nothing_after_it() {
    let server = Server::start();
    let one = strict(&server.url(), PATIENCE);
    let key = REPORTS.key("x-1");
    for stored in [false, true] {
        let old = Fetch::begin(&one, key.clone(), "old").await;
        server.kill();
        server.restart();
        let two = strict(&server.url(), PATIENCE);
        assert!(two.invalidate(&key).await.is_applied());
        if stored {
            assert_eq!(*two.try_get_or_fetch(&key, || fetched("new")).await.unwrap(), "new");
        }
        assert_eq!(old.end().await, "old", "its own call began before");
        let value = two.get(&key).await.unwrap();
        assert_eq!(value.as_deref().map(String::as_str), stored.then_some("new"), "stored meanwhile: {stored}");
    }
}

/// G2 after a restart from an older snapshot: the snapshot holds the value, this process invalidates it, the server is
/// killed and comes back with it. The call that finds the connection broken makes the new one, and its own command is
/// the first that the new server answers: with the old value.
#[tokio::test]
async fn the_first_call_after_a_restart_from_a_snapshot_serves_nothing_it_had_invalidated() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, observer) = (strict(proxy.url(), PATIENCE), strict(&server.url(), PATIENCE));
    let key = REPORTS.key("x-1");
    set_by_another(&server.url(), std::slice::from_ref(&key), "old").await;
    server.snapshot();
    for verb in ["get", "fetch", "get_many", "fetch_many", "ttl", "exists"] {
        assert!(mine.invalidate(&key).await.is_applied());
        // Nor does the task that looks at the server come first.
        proxy.refuse_connections();
        server.kill();
        server.restart();
        assert_eq!(observer.get(&key).await.unwrap().as_deref().map(String::as_str), Some("old"), "it is back");
        proxy.accept_connections();
        let keys = [key.clone()];
        let served = match verb {
            "get" => mine.get(&key).await.unwrap(),
            "fetch" => Some(mine.try_get_or_fetch(&key, || fetched("new")).await.unwrap()),
            "get_many" => mine.get_many(&keys).await.unwrap().remove(0),
            "fetch_many" => {
                let fetch = |keys: Vec<Key<String>>| {
                    ready(Ok::<_, ()>(keys.into_iter().map(|key| (key, "new".to_owned())).collect::<Vec<_>>()))
                };
                mine.try_get_or_fetch_many(&keys, fetch).await.unwrap().remove(0)
            }
            "ttl" => mine.ttl(&key).await.unwrap().map(|_| Arc::new("old".to_owned())),
            _ => mine.exists(&key).await.unwrap().then(|| Arc::new("old".to_owned())),
        };
        assert_ne!(served.as_deref().map(String::as_str), Some("old"), "{verb}");
    }
}

/// The journal's replay: for every way to invalidate, what comes back with a snapshot is never served by the process
/// that invalidated it, and by no other once the replay has been heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_snapshot_brings_back_is_removed_again() {
    for how in ALL {
        let server = Server::start();
        let proxy = Proxy::start(&server);
        let mine = Cache::builder().url(proxy.url()).op_timeout(Duration::from_secs(1)).min_idle(1);
        let mine = mine.connect().await.unwrap().tenant("acme").unwrap();
        let observer = strict(&server.url(), PATIENCE);
        let key = REPORTS.key("x-1");
        set_by_another(&server.url(), std::slice::from_ref(&key), "old").await;
        server.snapshot();
        assert_eq!(*mine.try_get_or_fetch(&key, || fetched("other")).await.unwrap(), "old");
        assert!(invalidate(&mine, how).await.is_applied());
        proxy.refuse_connections();
        server.kill();
        server.restart();
        assert_eq!(observer.get(&key).await.unwrap().as_deref().map(String::as_str), Some("old"), "it is back");
        let done = Arc::new(Semaphore::new(0));
        let reading = tokio::spawn({
            let (mine, key, done) = (mine.clone(), key.clone(), done.clone());
            async move {
                while done.available_permits() == 0 {
                    let value = mine.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
                    assert_eq!(*value, "new", "{how:?}: served by the process that invalidated it");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        proxy.accept_connections();
        let served = || async { observer.get(&key).await.unwrap().map(|value| (*value).clone()) };
        until("the replay is heard", || async { served().await.as_deref() != Some("old") }).await;
        for _ in 0..200 {
            assert_ne!(served().await.as_deref(), Some("old"), "{how:?}: after the replay");
        }
        done.add_permits(1);
        reading.await.unwrap();
    }
}

/// G2, nobody calls: a process without near tier has no link that would notice, and what it invalidated or replaced comes
/// back with a snapshot. Within a second after the server answers again it is gone.
#[tokio::test]
async fn an_idle_process_removes_what_a_snapshot_brings_back() {
    const MANY: usize = 20_000;
    #[derive(Debug)]
    enum Write {
        One,
        Many,
        Set,
    }
    for write in [Write::One, Write::Many, Write::Set] {
        let server = Server::start();
        let (mine, observer) = (strict(&server.url(), PATIENCE), strict(&server.url(), PATIENCE));
        let keys = [REPORTS.key(0), REPORTS.key(MANY / 2), REPORTS.key(MANY - 1)];
        let keys = if let Write::Many = write { &keys[..] } else { &keys[..1] };
        set_by_another(&server.url(), keys, "old").await;
        server.snapshot();
        match write {
            Write::One => assert!(mine.invalidate(&keys[0]).await.is_applied()),
            Write::Many => {
                let all: Vec<_> = (0..MANY).map(|id| REPORTS.key(id)).collect();
                assert!(mine.invalidate_many(&all).await.is_applied());
            }
            Write::Set => mine.set(&keys[0], "new".to_owned()).await.unwrap(),
        }
        server.kill();
        server.restart();
        let answered = Instant::now();
        let is_old = |value: &Option<Arc<String>>| value.as_deref().is_some_and(|value| value == "old");
        while observer.get_many(keys).await.unwrap().iter().any(is_old) {
            assert!(answered.elapsed() < Duration::from_secs(1), "{write:?}: an idle process has not noticed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..50 {
            assert!(!observer.get_many(keys).await.unwrap().iter().any(is_old), "{write:?}: it came back");
        }
        // A busy keyspace is no must-miss for longer than that.
        until("values are kept again", || async {
            mine.try_get_or_fetch(&keys[0], || fetched("new")).await.unwrap();
            observer.get(&keys[0]).await.unwrap().is_some()
        })
        .await;
    }
}

/// Connections are lost and made anew, and the server is the same: it has lost nothing, so nothing is sent again and
/// nothing is a must-miss.
#[tokio::test]
async fn a_new_connection_to_the_same_run_sends_nothing_again() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let mine = strict(proxy.url(), PATIENCE);
    let (invalidated, replaced) = (REPORTS.key("x-1"), REPORTS.key("x-2"));
    assert!(mine.invalidate(&invalidated).await.is_applied());
    assert!(mine.invalidate_keyspace(&REPORTS).await.is_applied());
    mine.set(&replaced, "new".to_owned()).await.unwrap();
    for _ in 0..5 {
        proxy.reset();
        let made = proxy.accepted();
        proxy.drop_connections();
        assert_eq!(mine.get(&replaced).await.unwrap().as_deref().map(String::as_str), Some("new"));
        assert!(proxy.accepted() > made, "no new connection");
        // By now the task has looked at the server.
        proxy.until("PEXPIRE", 3).await;
        assert_eq!(["UNLINK", "PUBLISH"].map(|command| proxy.count(command)), [0; 2]);
        // Each new connection tries whether scripts run, by both commands.
        assert_eq!(proxy.count("EVALSHA"), proxy.count("EVAL"));
    }
    server.kill();
    server.restart();
    proxy.until("UNLINK", 1).await;
}

/// A user that may not ask for INFO: each new connection may lead to another run, so it is sent again each time.
#[tokio::test]
async fn a_server_that_tells_no_run_is_told_again_with_each_connection() {
    let server = Server::start();
    server.cli(&["ACL", "SETUSER", "default", "-info"]);
    let proxy = Proxy::start(&server);
    let mine = strict(proxy.url(), PATIENCE);
    assert!(mine.invalidate(&REPORTS.key("x-1")).await.is_applied());
    for _ in 0..3 {
        proxy.reset();
        proxy.drop_connections();
        proxy.until("EVALSHA", 1).await;
    }
}

/// A server that loads for seconds: calls fetch, the breaker spares them the question, invalidations stay pending and
/// are applied when it is ready, before this process reads what it loaded.
#[tokio::test]
async fn a_server_that_loads_is_done_without_and_hears_of_every_invalidation_later() {
    let server = Server::with_args(&["--rdbcompression", "no"]);
    let proxy = Proxy::start(&server);
    let observer = |n: usize| {
        let cache = Cache::builder().url(&server.url()).near_bytes(0).op_timeout(PATIENCE).min_idle(1).build().unwrap();
        cache.tenant(n).unwrap()
    };
    let key = REPORTS.key("x-1");
    for n in 0..ALL.len() {
        observer(n).set(&key, "old".to_owned()).await.unwrap();
    }
    let mut filler = redis::pipe();
    for n in 0..1_000 {
        filler.set(format!("filler:{n}"), vec![b'x'; 1_024]).ignore();
    }
    filler.exec(&mut server.connect().unwrap()).unwrap();
    server.snapshot();
    let cache = Cache::builder().url(proxy.url()).op_timeout(Duration::from_secs(2)).near_bytes(0).min_idle(1);
    let cache = cache.connect().await.unwrap();
    let scopes: Vec<_> = (0..ALL.len()).map(|n| cache.tenant(n).unwrap()).collect();
    server.restart_loading(Duration::from_millis(20));
    for (scope, how) in scopes.iter().zip(ALL) {
        assert_eq!(invalidate(scope, how).await, Invalidated::Pending, "{how:?}");
        assert_eq!(scope.get(&key).await.ok().flatten(), None, "{how:?}");
    }
    let health = cache.health().await;
    assert_eq!((health.status, health.error.unwrap().kind()), (Status::Degraded, ErrorKind::Loading));
    let asked = proxy.count("MGET");
    for n in 0..200 {
        assert_eq!(*scopes[0].try_get_or_fetch(&REPORTS.key(n), || fetched("v")).await.unwrap(), "v");
    }
    assert!(proxy.count("MGET") - asked < 20, "the breaker is not open");
    assert!(server.cli(&["EXISTS", "x"]).contains("loading the dataset"), "the test outlived the loading");
    server.cli(&["CONFIG", "SET", "key-load-delay", "0"]);
    for (n, (scope, how)) in scopes.iter().zip(ALL).enumerate() {
        until("the invalidation is applied", || async {
            assert_ne!(scope.get(&key).await.ok().flatten().as_deref().map(String::as_str), Some("old"), "{how:?}");
            observer(n).get(&key).await.is_ok_and(|value| value.is_none())
        })
        .await;
    }
    until("values are stored again", || async {
        scopes[0].try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        observer(0).get(&key).await.unwrap().is_some()
    })
    .await;
}

/// G1, commands given up while the server hung and executed when it goes on. One process gives up SET, FILL, the FILLs
/// of a batch, TOUCH and INVALIDATE. The other one's socket has become readable before theirs, so its invalidation of
/// all of them, sent last, is executed first; what comes after it is late.
#[tokio::test]
async fn what_was_given_up_while_the_server_hung_undoes_no_later_invalidation() {
    const OP_TIMEOUT: Duration = Duration::from_millis(300);
    for round in 0..3 {
        let server = Server::start();
        let proxy = Proxy::start(&server);
        let (mine, observer) = (strict(&server.url(), OP_TIMEOUT), strict(proxy.url(), PATIENCE));
        let key = |id: &'static str| REPORTS.key((id, round));
        let (set, fill, touch, other) = (key("set"), key("fill"), key("touch"), key("other"));
        let batch = [key("batch-1"), key("batch-2"), key("batch-3")];
        observer.set(&touch, "old".to_owned()).await.unwrap();
        assert!(mine.get(&touch).await.unwrap().is_some());
        let filling = Fetch::begin(&mine, fill.clone(), "old").await;
        let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let batching = tokio::spawn({
            let (mine, batch, gate, began) = (mine.clone(), batch.clone(), gate.clone(), began.clone());
            async move {
                let fetch = |keys: Vec<Key<String>>| async {
                    began.add_permits(1);
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, ()>(keys.into_iter().map(|key| (key, "old".to_owned())).collect::<Vec<_>>())
                };
                mine.try_get_or_fetch_many(&batch, fetch).await.unwrap()
            }
        });
        began.acquire().await.unwrap().forget();
        proxy.reset();
        server.pause();
        let first = tokio::spawn({
            let (observer, key) = (observer.clone(), key("first"));
            async move { observer.get(&key).await.unwrap() }
        });
        proxy.until("MGET", 1).await;
        let given_up = Instant::now();
        gate.add_permits(1);
        let (stored, touched, invalidated, filled, batched) = tokio::join!(
            mine.set(&set, "old".to_owned()),
            mine.touch(&touch),
            mine.invalidate(&other),
            filling.end(),
            batching,
        );
        assert!(stored.unwrap_err().is_timeout() && touched.unwrap_err().is_timeout());
        assert_eq!((invalidated, &*filled), (Invalidated::Pending, "old"));
        assert!(batched.unwrap().into_iter().all(|value| *value.unwrap() == "old"));
        // A SET says until when it counts: a tenth of a second after it was given up.
        tokio::time::sleep((OP_TIMEOUT + Duration::from_millis(200)).saturating_sub(given_up.elapsed())).await;
        let all: Vec<_> = [set, fill, touch].into_iter().chain(batch).collect();
        let invalidating = tokio::spawn({
            let (observer, all) = (observer.clone(), all.clone());
            async move { observer.invalidate_many(&all).await }
        });
        proxy.until("EVALSHA", all.len()).await;
        server.resume();
        assert!(invalidating.await.unwrap().is_applied());
        assert_eq!(first.await.unwrap(), None);
        // Right after it, when the late ones are executed, and until the other process has been heard as well.
        for n in 0..200 {
            for (at, value) in observer.get_many(&all).await.unwrap().into_iter().enumerate() {
                assert_eq!(value, None, "round {round}, look {n}: key {at} is back");
            }
        }
        until("the hung server is used again", || async { mine.get(&all[0]).await.is_ok() }).await;
        for key in &all {
            assert_eq!(*mine.try_get_or_fetch(key, || fetched("new")).await.unwrap(), "new");
        }
    }
}

/// A cache with a near tier whose link vouches: a copy older than three seconds is served.
async fn linked(url: &str) -> (Cache, Scoped) {
    let cache = Cache::builder().url(url).op_timeout(Duration::from_secs(2)).min_idle(1).connect().await.unwrap();
    let scope = cache.tenant("acme").unwrap();
    until_linked(&cache).await;
    (cache, scope)
}

/// G3, demotion with sockets left open. The other primary, whose data the demoted one takes over, still has the old
/// value: it is what the old address answers from then on. One process invalidates, in vain; the other reads.
#[tokio::test]
async fn a_demoted_primary_loses_its_clients_and_hears_of_the_invalidation_when_it_is_primary_again() {
    let (server, other) = (Server::start(), Server::start());
    let key = REPORTS.key("x");
    let elsewhere = strict(&other.url(), PATIENCE);
    elsewhere.set(&key, "theirs".to_owned()).await.unwrap();
    let url = server.url();
    let ((cache, invalidating), (_, reading)) = tokio::join!(linked(&url), linked(&url));
    for scope in [&invalidating, &reading] {
        assert_eq!(*scope.try_get_or_fetch(&key, || fetched("ours")).await.unwrap(), "ours");
    }
    let clients = || {
        let list = server.cli(&["CLIENT", "LIST", "TYPE", "normal"]);
        let ids = list.lines().filter(|line| !line.contains("cmd=client"));
        ids.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect::<Vec<_>>()
    };
    let before = clients();
    assert!(before.len() >= 2, "{before:?}");
    server.cli(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
    let demoted = Instant::now();
    assert_eq!(invalidating.invalidate(&key).await, Invalidated::Pending);
    until("health says so", || async {
        let health = cache.health().await;
        // While it copies the other's data it loads.
        let kind = health.error.map(|error| error.kind());
        assert!(health.status == Status::Degraded && kind.is_some(), "{kind:?}");
        kind == Some(ErrorKind::ReadOnly)
    })
    .await;
    until("connections from before are given up", || async {
        reading.try_get_or_fetch(&REPORTS.key("any"), || fetched("v")).await.unwrap();
        !clients().iter().any(|id| before.contains(id))
    })
    .await;
    until("the replica has the other's data", || async {
        server.cli(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    // Copies from before end within the bound, and what the replica holds is served by nobody.
    until("copies from before have ended", || async {
        let value = invalidating.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        assert_eq!(*value, "new", "served by the process that invalidated it");
        let began = demoted.elapsed();
        let value = reading.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        assert!(*value == "new" || began <= BOUND, "{value} is served {began:?} after the demotion");
        assert_ne!(*value, "theirs", "a replica is asked");
        began > BOUND
    })
    .await;
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    until("the invalidation is applied", || async {
        let value = invalidating.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        assert_eq!(*value, "new", "served by the process that invalidated it");
        let stored = strict(&url, PATIENCE).get(&key).await.unwrap();
        stored.as_deref().map(String::as_str) != Some("theirs")
    })
    .await;
    let applied = Instant::now();
    assert!(elsewhere.exists(&key).await.unwrap(), "the other primary was not asked to forget");
    while applied.elapsed() < BOUND + Duration::from_millis(500) {
        let began = applied.elapsed();
        let value = reading.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        assert!(*value == "new" || began <= BOUND, "{began:?} after it was applied: {value}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
