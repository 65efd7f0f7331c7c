//! One process of a history: readers, and in some a writer, over one cache.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cache_core::{Cache, Invalidated, Key, Keyspace, Scoped, TtlProfile};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use redis::{AsyncTypedCommands as _, aio::MultiplexedConnection};

use super::{
    record::{Covers, ENTRIES, Event, PROFILES, Recorder, Span, name, now},
    support::child,
};

/// What a fetch makes of a row: its number and its version.
type Row = (usize, u64);

const TTL: Duration = Duration::from_secs(60);
const KEYSPACES: [Keyspace<Row>; 2] = [TtlProfile::new(PROFILES[0], TTL).of(), TtlProfile::new(PROFILES[1], TTL).of()];

/// Calls of a reader for one write of a writer.
const READS_PER_WRITE: usize = 8;

/// What a process does, as it is told in its environment.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) process: usize,
    /// Where it writes down what happens.
    pub(crate) file: PathBuf,
    pub(crate) redis: String,
    pub(crate) database: String,
    pub(crate) near: bool,
    pub(crate) seed: u64,
    pub(crate) readers: usize,
    pub(crate) writer: Option<usize>,
    /// Calls of each reader.
    pub(crate) ops: usize,
}

impl Part {
    pub(crate) fn spawn(&self) -> child::Child {
        let words = |number: usize| number.to_string();
        let env = [
            ("HISTORY_PROCESS", words(self.process)),
            ("HISTORY_FILE", self.file.to_str().unwrap().to_owned()),
            ("HISTORY_REDIS", self.redis.clone()),
            ("HISTORY_DATABASE", self.database.clone()),
            ("HISTORY_NEAR", words(self.near.into())),
            ("HISTORY_SEED", self.seed.to_string()),
            ("HISTORY_READERS", words(self.readers)),
            ("HISTORY_WRITER", self.writer.map_or_else(String::new, words)),
            ("HISTORY_OPS", words(self.ops)),
        ];
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, &**value)).collect();
        child::spawn("process::of_a_history", &env)
    }

    fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).unwrap();
        let number = |name: &str| text(name).parse::<usize>().unwrap();
        Self {
            process: number("HISTORY_PROCESS"),
            file: text("HISTORY_FILE").into(),
            redis: text("HISTORY_REDIS"),
            database: text("HISTORY_DATABASE"),
            near: number("HISTORY_NEAR") == 1,
            seed: text("HISTORY_SEED").parse().unwrap(),
            readers: number("HISTORY_READERS"),
            writer: text("HISTORY_WRITER").parse().ok(),
            ops: number("HISTORY_OPS"),
        }
    }
}

/// The child: works when told `go`, reads everything once more when told `last`.
#[test]
fn of_a_history() {
    if !child::is_child() {
        return;
    }
    let part = Part::from_env();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let actor = Actor::new(&part).await;
        child::report("ready");
        assert_eq!(child::wait_for_parent().as_deref(), Some("go"));
        let readers = (0..part.readers).map(|reader| {
            let (actor, ops) = (actor.clone(), part.ops);
            let random = random(part.seed, part.process, reader);
            tokio::spawn(async move { actor.read_all_day(random, ops).await })
        });
        let writer = part.writer.map(|writer| {
            let (actor, writes) = (actor.clone(), part.ops / READS_PER_WRITE);
            let random = random(part.seed, part.process, part.readers);
            tokio::spawn(async move { actor.write_all_day(random, writer, writes).await })
        });
        for task in readers.chain(writer).collect::<Vec<_>>() {
            task.await.unwrap();
        }
        child::report("done");
        assert_eq!(child::wait_for_parent().as_deref(), Some("last"));
        for entry in 0..ENTRIES {
            actor.read(entry, Duration::ZERO).await;
        }
    });
}

/// Choices of one task of one process.
fn random(seed: u64, process: usize, task: usize) -> StdRng {
    StdRng::seed_from_u64(seed << 16 | (process << 8 | task) as u64)
}

#[derive(Clone)]
struct Actor {
    process: usize,
    scope: Scoped,
    database: MultiplexedConnection,
    recorder: Arc<Recorder>,
}

fn key(entry: usize) -> Key<Row> {
    KEYSPACES[entry % 2].key(name(entry).1)
}

fn row(entry: usize) -> String {
    format!("row {entry}")
}

impl Actor {
    async fn new(part: &Part) -> Self {
        let mut builder = Cache::builder().url(&part.redis).min_idle(1);
        // A killed leader holds up the others for as long.
        builder = builder.lease(Duration::from_secs(1));
        if !part.near {
            builder = builder.near_bytes(0);
        }
        let client = redis::Client::open(&*part.database).unwrap();
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
        Self {
            process: part.process,
            scope: builder.connect().await.unwrap().tenant("acme").unwrap(),
            database: client.get_multiplexed_async_connection_with_config(&patient).await.unwrap(),
            recorder: Arc::new(Recorder::create(&part.file)),
        }
    }

    async fn read_all_day(&self, mut random: StdRng, ops: usize) {
        for op in 0..ops {
            if op % 500 == 0 {
                child::report("at work");
            }
            let entry = random.random_range(0..ENTRIES);
            let three = || [entry, (entry + 2) % ENTRIES, (entry + 5) % ENTRIES];
            // Some fetches are slow, so that invalidations and faults come while they run.
            let pause = Duration::from_millis(if random.random_ratio(1, 10) { 30 } else { random.random_range(0..3) });
            match random.random_range(0..10) {
                0..5 => self.read(entry, pause).await,
                5..7 => self.get(entry).await,
                7 => self.get_many(&three()).await,
                _ => self.read_many(&three(), pause).await,
            }
            // About as long in all as the troubles take.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..12))).await;
        }
    }

    async fn read(&self, entry: usize, pause: Duration) {
        let fetched = AtomicBool::new(false);
        let begun = now();
        let fetch = || async {
            fetched.store(true, Ordering::Relaxed);
            let rows = self.rows(&[entry], pause).await;
            Ok::<_, ()>(rows[0])
        };
        let read = self.scope.try_get_or_fetch(&key(entry), fetch).await.unwrap();
        self.saw(entry, *read, fetched.into_inner(), begun);
    }

    async fn get(&self, entry: usize) {
        let begun = now();
        if let Ok(Some(read)) = self.scope.get(&key(entry)).await {
            self.saw(entry, *read, false, begun);
        }
    }

    async fn get_many(&self, entries: &[usize]) {
        let keys: Vec<_> = entries.iter().map(|entry| key(*entry)).collect();
        let begun = now();
        let Ok(found) = self.scope.get_many(&keys).await else { return };
        for (entry, read) in entries.iter().zip(found) {
            if let Some(read) = read {
                self.saw(*entry, *read, false, begun);
            }
        }
    }

    async fn read_many(&self, entries: &[usize], pause: Duration) {
        let keys: Vec<_> = entries.iter().map(|entry| key(*entry)).collect();
        let fetched: Vec<_> = entries.iter().map(|_| AtomicBool::new(false)).collect();
        let begun = now();
        let fetch = async |missing: Vec<Key<Row>>| {
            let at = |key: &Key<Row>| keys.iter().position(|asked| asked == key).unwrap();
            let at: Vec<_> = missing.iter().map(at).collect();
            at.iter().for_each(|at| fetched[*at].store(true, Ordering::Relaxed));
            let rows = self.rows(&at.iter().map(|at| entries[*at]).collect::<Vec<_>>(), pause).await;
            Ok::<_, ()>(missing.into_iter().zip(rows).collect::<Vec<_>>())
        };
        let found = self.scope.try_get_or_fetch_many(&keys, fetch).await.unwrap();
        for ((entry, read), fetched) in entries.iter().zip(found).zip(fetched) {
            self.saw(*entry, *read.unwrap(), fetched.into_inner(), begun);
        }
    }

    /// A fetch: what it read is `pause` old when it is stored.
    async fn rows(&self, entries: &[usize], pause: Duration) -> Vec<Row> {
        let names: Vec<_> = entries.iter().map(|entry| row(*entry)).collect();
        let versions = self.database.clone().mget(names).await.unwrap();
        tokio::time::sleep(pause).await;
        entries.iter().zip(versions).map(|(entry, version)| (*entry, version.unwrap().parse().unwrap())).collect()
    }

    fn saw(&self, entry: usize, (of, version): Row, fetched: bool, begun: u64) {
        let span = Span::since(begun);
        assert_eq!(of, entry, "the value of another entry");
        self.recorder.record(&Event::Read { process: self.process, entry, version, fetched, span });
    }

    /// Commits, then invalidates or sets.
    async fn write_all_day(&self, mut random: StdRng, writer: usize, writes: usize) {
        for write in 0..writes {
            if write % 50 == 0 {
                child::report("at work");
            }
            let entry = random.random_range(0..ENTRIES);
            // A quarter of the entries is written by this writer alone, another by the other one: of two that race to
            // set the same entry the last to arrive wins, so only an entry's only writer may set it.
            match entry % 4 {
                only if only == writer => {
                    if random.random_ratio(1, 3) {
                        self.set(entry).await;
                    } else {
                        self.invalidate(&[entry], Covers::Entry(entry)).await;
                    }
                }
                0 | 1 => {}
                _ => {
                    let (profile, id) = name(entry);
                    let start = id[..1].to_owned();
                    // The other entries of the same keyspace that anybody may write.
                    let shared: Vec<_> =
                        (0..ENTRIES).filter(|other| other % 4 >= 2 && other % 2 == entry % 2).collect();
                    match random.random_range(0..12) {
                        0 => self.invalidate(&shared, Covers::Start(profile.to_owned(), String::new())).await,
                        1 | 2 => self.invalidate(&[entry], Covers::Start(profile.to_owned(), start)).await,
                        3 => self.invalidate(&shared, Covers::All).await,
                        4 | 5 => self.invalidate_many(&shared).await,
                        _ => self.invalidate(&[entry], Covers::Entry(entry)).await,
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..100))).await;
        }
    }

    async fn commit(&self, entry: usize) -> u64 {
        let begun = now();
        let version = self.database.clone().incr(row(entry), 1).await.unwrap();
        let version = u64::try_from(version).unwrap();
        self.recorder.record(&Event::Committed { entry, version, span: Span::since(begun) });
        version
    }

    async fn invalidate(&self, entries: &[usize], covers: Covers) {
        for entry in entries {
            self.commit(*entry).await;
        }
        let begun = now();
        let outcome = match &covers {
            Covers::Entry(entry) => self.scope.invalidate(&key(*entry)).await,
            Covers::Start(profile, start) if start.is_empty() => {
                let keyspace = PROFILES.iter().position(|name| name == profile).unwrap();
                self.scope.invalidate_keyspace(&KEYSPACES[keyspace]).await
            }
            Covers::Start(profile, start) => self.scope.invalidate_pattern(&format!("{profile}:{start}*")).await,
            Covers::All => self.scope.invalidate_all().await,
        };
        self.invalidated(outcome, covers, begun);
    }

    async fn invalidate_many(&self, entries: &[usize]) {
        for entry in entries {
            self.commit(*entry).await;
        }
        let keys: Vec<_> = entries.iter().map(|entry| key(*entry)).collect();
        let begun = now();
        let outcome = self.scope.invalidate_many(&keys).await;
        for entry in entries {
            self.invalidated(outcome, Covers::Entry(*entry), begun);
        }
    }

    fn invalidated(&self, outcome: Invalidated, covers: Covers, begun: u64) {
        let (process, span) = (self.process, Span::since(begun));
        self.recorder.record(&match outcome {
            Invalidated::Applied => Event::Invalidated { process, covers, span },
            Invalidated::Pending => Event::Pending { process, covers, span },
        });
    }

    async fn set(&self, entry: usize) {
        let version = self.commit(entry).await;
        let begun = now();
        let stored = self.scope.set(&key(entry), (entry, version)).await;
        let span = Span::since(begun);
        self.recorder.record(&match stored {
            Ok(()) => Event::Invalidated { process: self.process, covers: Covers::Entry(entry), span },
            Err(_) => Event::Unknown { entry, version, span },
        });
    }
}
