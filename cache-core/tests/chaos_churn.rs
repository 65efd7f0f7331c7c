//! Readers and writers against a database with versions, while the server does its worst: it evicts, is flushed, is
//! killed, hangs. Whatever of our keys is lost, and whatever is executed late, no read is older than what was
//! invalidated before it began.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{Cache, Invalidated, Keyspace, Scoped, TtlProfile};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use support::Server;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// Time for a loaded machine: what is waited for comes within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// What G3 promises, and a little.
const BOUND: Duration = Duration::from_millis(3_050);

/// The database, as far as a cache can be wrong about it: the version of each row, and the one that every cache must
/// have forgotten everything before.
struct Database {
    rows: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
    /// The same for what one of the two writing processes has invalidated without being heard: binding for itself.
    own: [Vec<AtomicU64>; 2],
    /// Writes of each process that were acknowledged.
    written: [AtomicUsize; 2],
    /// Whether the server loses what it has acknowledged.
    forgetful: bool,
}

impl Database {
    fn new(rows: usize, forgetful: bool) -> Self {
        let zeros = || (0..rows).map(|_| AtomicU64::new(0)).collect();
        Self { rows: zeros(), acknowledged: zeros(), own: [zeros(), zeros()], written: Default::default(), forgetful }
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

    /// No older version may be given to a read of this process that begins now.
    fn floor(&self, process: usize, row: usize) -> u64 {
        let own = self.own[process][row].load(Ordering::SeqCst);
        if self.forgetful { own } else { own.max(self.acknowledged[row].load(Ordering::SeqCst)) }
    }

    /// Waits until both processes have had so many more writes acknowledged.
    async fn until_written(&self, more: usize) {
        let (begun, written) = (Instant::now(), || self.written.each_ref().map(|count| count.load(Ordering::SeqCst)));
        let before = written();
        while written().iter().zip(before).any(|(now, before)| *now < before + more) {
            assert!(begun.elapsed() < PATIENCE, "the server is not used again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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
/// Enough for each of our keys to be lost many times.
const WRITES: usize = 1_000;
/// How often the server is killed or stopped.
const ROUNDS: usize = 8;

/// Mostly one of a few rows that everybody wants, so that steps of different calls meet.
fn pick(random: &mut StdRng) -> usize {
    if random.random_bool(0.7) { random.random_range(2..8) } else { random.random_range(0..ROWS) }
}

/// Writes rows and invalidates them, each process its own, as two `set`s of one row may overtake each other.
///
/// What got no answer binds this process only; the journal sends it again.
async fn write(database: &Database, scope: &Scoped, process: usize, done: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(process as u64);
    while !done.load(Ordering::SeqCst) {
        let row = pick(&mut random) / 2 * 2 + process;
        let version = database.write(row);
        let how = random.random_range(0..30);
        let before = if how < 3 { database.versions() } else { Vec::new() };
        let outcome = match how {
            0 => scope.invalidate_keyspace(&REPORTS).await,
            1 => scope.invalidate_all().await,
            2 => scope.invalidate_pattern("report:*").await,
            3..7 => match scope.set(&REPORTS.key(row), database.row(row)).await {
                Ok(()) => Invalidated::Applied,
                // For another tenth of a second the server may still execute it, and undo the next invalidation.
                Err(error) if error.is_timeout() => {
                    tokio::time::sleep(Duration::from_millis(150)).await;
                    Invalidated::Pending
                }
                Err(_) => Invalidated::Pending,
            },
            _ => scope.invalidate(&REPORTS.key(row)).await,
        };
        database.own[process][row].fetch_max(version, Ordering::SeqCst);
        if outcome.is_applied() {
            before.into_iter().enumerate().for_each(|(row, version)| database.acknowledge(row, version));
            database.acknowledge(row, version);
            database.written[process].fetch_add(1, Ordering::SeqCst);
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::task::yield_now().await;
    }
}

/// Reads rows until told to stop; none may be older than what was acknowledged before the read began.
async fn read(database: &Database, scope: &Scoped, process: usize, seed: u64, done: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    while !done.load(Ordering::SeqCst) {
        let row = pick(&mut random);
        let floor = database.floor(process, row);
        let version = database.read(scope, row, random.random_range(0..8)).await;
        assert!(version >= floor, "row {row}: {version} is served, {floor} was invalidated");
    }
}

/// Writers, readers in two processes without a near tier and in one with, until `disturb` has done its worst.
async fn churn(server: &Server, database: &Database, op_timeout: Duration, disturb: impl AsyncFn(&Database)) {
    let scope = |near_bytes| {
        let builder = Cache::builder().url(&server.url()).op_timeout(op_timeout).min_idle(1).near_bytes(near_bytes);
        // Short, as a lease that is lost is waited for by those who were told of it.
        builder.lease(Duration::from_millis(300)).build().unwrap().tenant("acme").unwrap()
    };
    let (one, two, near) = (&scope(0), &scope(0), &scope(64 << 20));
    let done = &AtomicBool::new(false);
    let disturbing = async {
        disturb(database).await;
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
    let reading = futures::future::join_all((10..20).map(|seed| {
        let process = seed as usize % 2;
        read(database, [one, two][process], process, seed, done)
    }));
    tokio::join!(write(database, one, 0, done), write(database, two, 1, done), reading, glancing, disturbing);
    tokio::time::sleep(BOUND).await;
    for row in 0..ROWS {
        for scope in [one, two, near] {
            let begun = Instant::now();
            let current = database.version(row);
            loop {
                let version = database.read(scope, row, 0).await;
                assert!(version >= database.acknowledged[row].load(Ordering::SeqCst), "row {row}, when all is quiet");
                if version == current {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "row {row}: an invalidation is never sent again");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
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
        let database = Database::new(ROWS, false);
        churn(&server, &database, PATIENCE, async |database| database.until_written(WRITES / 2).await).await;
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
    churn(&server, &Database::new(ROWS, false), PATIENCE, async |database| {
        let flushing = async {
            for command in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FLUSHDB", "ASYNC"]].into_iter().cycle() {
                server.cli(command);
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        };
        tokio::select! {
            () = flushing => {}
            () = database.until_written(WRITES / 2) => {}
        }
    })
    .await;
}

/// Disturbs again and again, each time when both processes have been heard since the last time.
async fn repeatedly(database: &Database, mut disturb: impl AsyncFnMut()) {
    for _ in 0..ROUNDS {
        database.until_written(20).await;
        disturb().await;
    }
    database.until_written(20).await;
}

/// G6 and G1: the server is killed and comes back empty, again and again.
#[tokio::test]
async fn a_server_that_is_killed_again_and_again_makes_misses_and_nothing_stale() {
    let server = Server::start();
    churn(&server, &Database::new(ROWS, false), PATIENCE, async |database| {
        repeatedly(database, async || {
            server.kill();
            tokio::time::sleep(Duration::from_millis(30)).await;
            server.restart();
        })
        .await;
    })
    .await;
}

/// The journal: the server is killed and comes back with what it held some writes ago, again and again. No process
/// serves what it has invalidated itself, and when the journals have been heard nobody does.
#[tokio::test]
async fn a_server_that_comes_back_with_an_older_snapshot_again_and_again_deceives_no_process_that_invalidated() {
    let server = Server::start();
    churn(&server, &Database::new(ROWS, true), PATIENCE, async |database| {
        repeatedly(database, async || {
            server.snapshot();
            database.until_written(20).await;
            server.kill();
            server.restart();
        })
        .await;
    })
    .await;
}

/// G1: the server hangs again and again, for longer than a call waits: all that was given up is executed late.
#[tokio::test]
async fn a_server_that_hangs_again_and_again_makes_misses_and_nothing_stale() {
    const OP_TIMEOUT: Duration = Duration::from_millis(100);
    let server = Server::start();
    churn(&server, &Database::new(ROWS, false), OP_TIMEOUT, async |database| {
        repeatedly(database, async || {
            server.pause();
            tokio::time::sleep(OP_TIMEOUT + Duration::from_millis(30)).await;
            server.resume();
        })
        .await;
    })
    .await;
}
