//! A server that is full, evicts or is flushed under load: reads go on, nothing is stored that it has no room for, and
//! whatever of our keys is lost, only misses follow.

mod support;

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{Cache, ErrorKind, Keyspace, Scoped, TtlProfile};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use support::Server;
use tokio::sync::Semaphore;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// Time for a loaded machine: what is waited for comes within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// What G3 promises, and a little.
const BOUND: Duration = Duration::from_millis(3_050);

fn cache(url: &str, near_bytes: u64, lease: Duration) -> Cache {
    let builder = Cache::builder().url(url).op_timeout(PATIENCE).min_idle(1).near_bytes(near_bytes).lease(lease);
    builder.build().unwrap()
}

fn strict(url: &str) -> Scoped {
    cache(url, 0, PATIENCE).tenant("acme").unwrap()
}

fn fetched(row: &str) -> std::future::Ready<Result<String, ()>> {
    ready(Ok(row.to_owned()))
}

/// G7 and G1 on a full server that evicts nothing: it answers what it holds, calls for other keys fetch and store
/// nothing, every invalidation is applied.
#[tokio::test]
async fn a_full_server_is_read_and_invalidated_and_nothing_is_stored_in_it() {
    let server = Server::with_args(&["--maxmemory-policy", "noeviction"]);
    let (acme, observer) = (strict(&server.url()), strict(&server.url()));
    for id in ["kept", "key", "many", "sweep-1", "set", "all"] {
        acme.set(&REPORTS.key(id), "old".to_owned()).await.unwrap();
    }
    // Generations and fence are there, as on any server in use.
    acme.try_get_or_fetch(&REPORTS.key("fetched"), || fetched("v")).await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let stored = || server.cli(&["DBSIZE"]);
    let before = stored();
    let fetches = AtomicUsize::new(0);
    for n in 0..50 {
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("kept"), || fetched("new")).await.unwrap(), "old");
        let fetch = || {
            fetches.fetch_add(1, Ordering::SeqCst);
            fetched("v")
        };
        // One key again and again, and keys of their own.
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("one"), fetch).await.unwrap(), "v");
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key(n), fetch).await.unwrap(), "v");
    }
    assert_eq!((stored(), fetches.into_inner()), (before, 100), "stored in a full server");
    // Neither the old value nor the new one, here and soon everywhere.
    let error = acme.set(&REPORTS.key("set"), "new".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert_eq!(acme.get(&REPORTS.key("set")).await.unwrap(), None);
    let begun = Instant::now();
    while observer.get(&REPORTS.key("set")).await.unwrap().is_some() {
        assert!(begun.elapsed() < PATIENCE, "the older value stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let gone = async |id: &'static str| assert_eq!(observer.get(&REPORTS.key(id)).await.unwrap(), None, "{id}");
    assert!(acme.invalidate(&REPORTS.key("key")).await.is_applied());
    gone("key").await;
    assert!(acme.invalidate_many(&[REPORTS.key("many"), REPORTS.key("none")]).await.is_applied());
    gone("many").await;
    assert!(acme.invalidate_pattern("report:sweep*").await.is_applied());
    gone("sweep-1").await;
    assert!(observer.get(&REPORTS.key("all")).await.unwrap().is_some());
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    gone("all").await;
    assert!(acme.invalidate_all().await.is_applied());
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    acme.try_get_or_fetch(&REPORTS.key("one"), || fetched("v")).await.unwrap();
    assert!(observer.exists(&REPORTS.key("one")).await.unwrap(), "there is room again");
}

/// G5: the server becomes full while a value is fetched. FILL is refused, and the lease is given back: nobody waits
/// for what is left of it.
#[tokio::test]
async fn a_lease_is_given_back_when_there_is_no_room_for_the_value() {
    let server = Server::with_args(&["--maxmemory-policy", "noeviction"]);
    let key = REPORTS.key("x");
    let (leading, waiting) = (strict(&server.url()), strict(&server.url()));
    waiting.try_get_or_fetch(&REPORTS.key("other"), || fetched("v")).await.unwrap();
    let fetch = || async {
        server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        fetched("v").await
    };
    assert_eq!(*leading.try_get_or_fetch(&key, fetch).await.unwrap(), "v");
    let names = ["cache:tenant:acme:report:x", "cache:tenant:acme:report:x~l"];
    assert_eq!(server.cli(&["EXISTS", names[0]]), "0", "stored in a full server");
    assert_eq!(server.cli(&["EXISTS", names[1]]), "0", "the lease is kept");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let begun = Instant::now();
    assert_eq!(*waiting.try_get_or_fetch(&key, || fetched("w")).await.unwrap(), "w");
    assert!(begun.elapsed() < PATIENCE / 2, "waited for the lease");
}

/// The database, as far as a cache can be wrong about it: the version of each row, and the one that every cache must
/// have forgotten everything before.
struct Database {
    rows: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
}

impl Database {
    fn new(rows: usize) -> Self {
        let zeros = || (0..rows).map(|_| AtomicU64::new(0)).collect();
        Self { rows: zeros(), acknowledged: zeros() }
    }

    fn version(&self, row: usize) -> u64 {
        self.rows[row].load(Ordering::SeqCst)
    }

    fn versions(&self) -> Vec<u64> {
        (0..self.rows.len()).map(|row| self.version(row)).collect()
    }

    fn write(&self, row: usize) -> u64 {
        self.rows[row].fetch_add(1, Ordering::SeqCst) + 1
    }

    fn acknowledge(&self, row: usize, version: u64) {
        self.acknowledged[row].fetch_max(version, Ordering::SeqCst);
    }

    /// A row as it is stored: its version and some kilobytes; a few are larger than what the server has room for.
    fn row(&self, row: usize) -> String {
        let length = if row.is_multiple_of(100) { 1_500_000 } else { 8_000 };
        format!("{} {}", self.version(row), "x".repeat(length))
    }

    async fn read(&self, scope: &Scoped, row: usize, pause: u64) -> u64 {
        let fetch = || async {
            let value = self.row(row);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            Ok::<_, ()>(value)
        };
        let value = scope.try_get_or_fetch(&REPORTS.key(row), fetch).await.unwrap();
        value.split_once(' ').unwrap().0.parse().unwrap()
    }
}

const ROWS: usize = 300;

/// Writes rows and invalidates them, each writer its own, as two `set`s of one row may overtake each other.
async fn write(database: &Database, scope: &Scoped, seed: u64, writers: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..250 {
        let row = random.random_range(0..ROWS / writers) * writers + seed as usize;
        let version = database.write(row);
        let how = random.random_range(0..40);
        if how < 4 {
            // A full server may refuse it, and then nothing was promised.
            if scope.set(&REPORTS.key(row), database.row(row)).await.is_ok() {
                database.acknowledge(row, version);
            }
        } else if how < 7 {
            let before = database.versions();
            let outcome = match how {
                4 => scope.invalidate_keyspace(&REPORTS).await,
                5 => scope.invalidate_all().await,
                _ => scope.invalidate_pattern("report:*").await,
            };
            assert!(outcome.is_applied());
            before.into_iter().enumerate().for_each(|(row, version)| database.acknowledge(row, version));
        } else {
            assert!(scope.invalidate(&REPORTS.key(row)).await.is_applied());
            database.acknowledge(row, version);
        }
        tokio::task::yield_now().await;
    }
}

/// Reads rows until told to stop; none may be older than what was acknowledged before the read began.
async fn read(database: &Database, scope: &Scoped, seed: u64, done: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    while !done.load(Ordering::SeqCst) {
        let row = random.random_range(0..ROWS);
        let floor = database.acknowledged[row].load(Ordering::SeqCst);
        let version = database.read(scope, row, random.random_range(0..3)).await;
        assert!(version >= floor, "row {row}: {version} is served, {floor} was acknowledged");
    }
}

/// Writers, readers in two processes without a near tier and in one with, while `disturb` does its worst.
async fn churn(server: &Server, disturb: impl AsyncFn(&AtomicBool)) {
    let database = &Database::new(ROWS);
    // Short, as a lease that is lost is waited for by those who were told of it.
    let scope = |near_bytes| cache(&server.url(), near_bytes, Duration::from_millis(300)).tenant("acme").unwrap();
    let (one, two, near) = (&scope(0), &scope(0), &scope(64 << 20));
    let done = &AtomicBool::new(false);
    let writing = async {
        tokio::join!(write(database, one, 0, 2), write(database, two, 1, 2));
        done.store(true, Ordering::SeqCst);
    };
    // How old what the near tier serves may be is measured when all is quiet.
    let glancing = async {
        let mut row = 0;
        while !done.load(Ordering::SeqCst) {
            row = (row + 7) % ROWS;
            database.read(near, row, 0).await;
        }
    };
    let reading = futures::future::join_all(
        [one, two, one, two].into_iter().zip(10..).map(|(scope, seed)| read(database, scope, seed, done)),
    );
    tokio::join!(writing, reading, glancing, disturb(done));
    tokio::time::sleep(BOUND).await;
    for row in 0..ROWS {
        for scope in [one, near] {
            let (version, current) = (database.read(scope, row, 0).await, database.version(row));
            assert_eq!(version, current, "row {row}, when all is quiet");
        }
    }
}

/// The keys that a server evicts, by kind.
fn count_evicted(server: &Server) -> Arc<Mutex<BTreeMap<&'static str, usize>>> {
    server.cli(&["CONFIG", "SET", "notify-keyspace-events", "Ee"]);
    let evicted = Arc::new(Mutex::new(BTreeMap::new()));
    let (counts, mut connection) = (evicted.clone(), server.connect().unwrap());
    std::thread::spawn(move || {
        let mut events = connection.as_pubsub();
        events.subscribe("__keyevent@0__:evicted").unwrap();
        // Until the server ends.
        while let Ok(event) = events.get_message() {
            let key: String = event.get_payload().unwrap();
            let kind = match key.rsplit_once('~').map_or("", |(_, end)| end) {
                "" => "value",
                "l" => "lease",
                "f" => "fence",
                "g" => "generation",
                _ => "sentinel",
            };
            *counts.lock().unwrap().entry(kind).or_default() += 1;
        }
    });
    evicted
}

/// G6: less memory than values, and a server that evicts whatever it likes at any time.
#[tokio::test]
async fn a_server_that_evicts_makes_misses_and_nothing_stale() {
    let runs = ["allkeys-lru", "volatile-lru", "allkeys-random"].map(async |policy| {
        let server = Server::with_args(&["--maxmemory-policy", policy, "--maxmemory-samples", "1"]);
        let counts = count_evicted(&server);
        let room = server.info("used_memory") + 2_000_000;
        server.cli(&["CONFIG", "SET", "maxmemory", &room.to_string()]);
        churn(&server, async |_| ()).await;
        std::mem::take(&mut *counts.lock().unwrap())
    });
    let evicted: BTreeMap<_, _> = futures::future::join_all(runs).await.into_iter().flatten().collect();
    for kind in ["value", "generation", "fence", "lease"] {
        assert!(evicted.contains_key(kind), "the test evicted no {kind}: {evicted:?}");
    }
}

/// G6: everything is flushed again and again, scripts and all, in the middle of leases and fills.
#[tokio::test]
async fn a_server_that_is_flushed_makes_misses_and_nothing_stale() {
    let server = Server::start();
    churn(&server, async |done| {
        for command in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FLUSHDB", "ASYNC"]].into_iter().cycle() {
            if done.load(Ordering::SeqCst) {
                break;
            }
            server.cli(command);
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    })
    .await;
}

/// G1 and G5, one interleaving at a time: a value is fetched under a lease and another process waits; the server is
/// flushed; the row is written and invalidated; the fetch ends.
#[tokio::test]
async fn a_flush_in_the_middle_of_a_lease_makes_a_miss() {
    let server = Server::start();
    let lease = Duration::from_secs(2);
    let one = cache(&server.url(), 0, lease).tenant("acme").unwrap();
    let two = cache(&server.url(), 0, lease).tenant("acme").unwrap();
    for (n, command) in ["FLUSHALL", "FLUSHDB"].into_iter().enumerate() {
        let key = REPORTS.key(n);
        let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let leading = one.try_get_or_fetch(&key, || async {
            began.add_permits(1);
            gate.acquire().await.unwrap().forget();
            fetched("old").await
        });
        let rest = async {
            began.acquire().await.unwrap().forget();
            let waiting = two.try_get_or_fetch(&key, || fetched("new"));
            let flush = async {
                // The waiting one has been told of the lease.
                let lease = format!("cache:tenant:acme:report:{n}~l");
                while server.cli(&["GETRANGE", &lease, "0", "1"]) != "L1" {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                server.cli(&[command]);
                assert!(two.invalidate(&key).await.is_applied());
            };
            let (waited, ()) = tokio::join!(waiting, flush);
            assert_eq!(*waited.unwrap(), "new", "{command}");
            gate.add_permits(1);
        };
        let (old, ()) = tokio::join!(leading, rest);
        assert_eq!(*old.unwrap(), "old", "its own call began before");
        let value = two.get(&key).await.unwrap();
        // Stored before the invalidation, the new value is gone, too.
        assert_ne!(value.as_deref().map(String::as_str), Some("old"), "{command}");
    }
}
