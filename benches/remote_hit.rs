//! Hits in Redis by 1 to 256 tasks at once, beside the client library alone and bb8-redis as everybody writes it.
//!
//! Each `get` of ours reads the value and both generations, verifies, decodes and counts; the others fetch the bytes
//! of the same entry and do nothing with them. On a runtime of several threads a client that writes each command by
//! itself spends half its time in system calls, which is why a whole `get` can be faster than a bare GET.
//!
//! Contenders take turns within each round, because machines have moods; printed are medians over the rounds, and
//! ratios of medians.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bb8_redis::{RedisConnectionManager, bb8};
use cache_benches::{REPORTS, RedisServer, Report, TENANT, cpu_time, is_smoke_run, median, value};
use cache_core::{Cache, Key, Scoped};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::runtime;

const IDS: usize = 1_000;
const TASKS: [usize; 4] = [1, 16, 64, 256];

/// Somebody who gets entries, as one task has it.
trait Contender: Clone + Send + 'static {
    fn get(&mut self, id: usize) -> impl Future<Output = ()> + Send;
}

#[derive(Clone)]
struct Ours {
    scoped: Scoped,
    keys: Arc<[Key<Report>]>,
}

impl Contender for Ours {
    async fn get(&mut self, id: usize) {
        self.scoped.get(&self.keys[id]).await.expect("a reply").expect("a hit");
    }
}

#[derive(Clone)]
struct RedisRs {
    connection: MultiplexedConnection,
    names: Arc<[String]>,
}

impl Contender for RedisRs {
    async fn get(&mut self, id: usize) {
        let bytes: Vec<u8> = self.connection.get(&self.names[id]).await.expect("a reply");
        assert!(!bytes.is_empty());
    }
}

#[derive(Clone)]
struct Bb8 {
    pool: bb8::Pool<RedisConnectionManager>,
    names: Arc<[String]>,
}

impl Contender for Bb8 {
    async fn get(&mut self, id: usize) {
        let mut connection = self.pool.get().await.expect("a connection");
        let bytes: Vec<u8> = connection.get(&self.names[id]).await.expect("a reply");
        assert!(!bytes.is_empty());
    }
}

/// What one contender did in one turn.
struct Turn {
    /// Operations per second, in thousands.
    rate: f64,
    /// Processor seconds of this process per 100 000 operations.
    cpu: f64,
}

/// The turns of one contender, by number of tasks.
type Turns = [Vec<Turn>; TASKS.len()];

fn main() {
    let (rounds, turn) = if is_smoke_run() { (1, Duration::from_millis(20)) } else { (9, Duration::from_millis(250)) };
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let server = RedisServer::start();
    let [ours, redis_rs, bb8] = runtime.block_on(measure(&server, rounds, turn));

    println!("\nRedis hits, thousand per second, and processor seconds of the client per 100 000 (in brackets)\n");
    println!("{:24}{}", "", TASKS.map(|tasks| format!("{tasks:>9} task(s)")).concat());
    for (name, turns) in [("cache-core get", &ours), ("redis-rs GET", &redis_rs), ("bb8-redis GET", &bb8)] {
        let cell = |turns: &Vec<Turn>| format!("{:>10.1} ({:.2})", rate(turns), cpu(turns));
        println!("{name:24}{}", turns.each_ref().map(cell).concat());
    }
    for (name, other) in [("times redis-rs", &redis_rs), ("times bb8-redis", &bb8)] {
        let cell = |at: usize| {
            let (rate, cpu) = (rate(&ours[at]) / rate(&other[at]), cpu(&ours[at]) / cpu(&other[at]));
            format!("{rate:>10.2} ({cpu:.2})")
        };
        println!("{name:24}{}", std::array::from_fn::<_, { TASKS.len() }, _>(cell).concat());
    }
}

fn rate(turns: &[Turn]) -> f64 {
    median(turns.iter().map(|turn| turn.rate).collect())
}

fn cpu(turns: &[Turn]) -> f64 {
    median(turns.iter().map(|turn| turn.cpu).collect())
}

async fn measure(server: &RedisServer, rounds: usize, turn: Duration) -> [Turns; 3] {
    // On a slow machine calls must not time out: those are fast.
    let builder = Cache::builder().url(&server.url()).near_bytes(0).op_timeout(Duration::from_secs(5));
    let scoped = builder.connect().await.expect("a cache").tenant(TENANT).expect("a tenant");
    let keys: Arc<[_]> = (0..IDS as u64).map(|id| REPORTS.key(id)).collect();
    for (id, key) in keys.iter().enumerate() {
        scoped.set(key, value(id as u64)).await.expect("a set");
    }
    let ours = Ours { scoped, keys };

    let names: Arc<[_]> = (0..IDS).map(|id| format!("cache:tenant:{TENANT}:direct:{id}")).collect();
    let client = redis::Client::open(server.url()).expect("a client");
    let connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let redis_rs = RedisRs { connection, names: names.clone() };

    let manager = RedisConnectionManager::new(server.url()).expect("a manager");
    let bb8 = Bb8 { pool: bb8::Pool::builder().build(manager).await.expect("a pool"), names };

    let mut turns = <[Turns; 3]>::default();
    for _ in 0..rounds {
        for (at, tasks) in TASKS.into_iter().enumerate() {
            turns[0][at].push(load(tasks, turn, &ours).await);
            turns[1][at].push(load(tasks, turn, &redis_rs).await);
            turns[2][at].push(load(tasks, turn, &bb8).await);
        }
    }
    turns
}

/// Lets so many tasks get entries for the length of a turn.
async fn load(tasks: usize, turn: Duration, contender: &impl Contender) -> Turn {
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, cpu) = (Instant::now(), cpu_time());
    let work = |task: usize| {
        let (mut contender, stop) = (contender.clone(), stop.clone());
        tokio::spawn(async move {
            let mut gets = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                contender.get((task * 37 + gets) % IDS).await;
                gets += 1;
            }
            gets
        })
    };
    let running: Vec<_> = (0..tasks).map(work).collect();
    tokio::time::sleep(turn).await;
    stop.store(true, Ordering::Relaxed);
    let mut gets = 0;
    for task in running {
        gets += task.await.expect("no panic");
    }
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let gets = gets as f64;
    Turn { rate: gets / begun.elapsed().as_secs_f64() / 1e3, cpu: (cpu_time() - cpu).as_secs_f64() / gets * 1e5 }
}
