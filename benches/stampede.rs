//! One cold key, a thousand tasks in each of four caches, and a fetch of 50 ms: how many fetches, and how long until
//! the last task of the slowest cache has its value.
//!
//! Four caches with a runtime and a thread of their own stand in for four processes that share one Redis. Beside
//! them the usual hand-written code: GET, and on a miss fetch and SET. The best possible is one fetch and 50 ms.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use cache_benches::{REPORTS, RedisServer, Report, TENANT, is_smoke_run, median, value};
use cache_core::{Cache, Scoped};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::runtime;

const CACHES: usize = 4;
const FETCH: Duration = Duration::from_millis(50);

/// What answers the calls of one process.
trait Contender: Clone + Send + 'static {
    fn connect(url: &str) -> impl Future<Output = Self>;
    fn get(self, id: u64, fetches: Arc<AtomicUsize>) -> impl Future<Output = Arc<Report>> + Send;
}

#[derive(Clone)]
struct Ours(Scoped);

impl Contender for Ours {
    async fn connect(url: &str) -> Self {
        let cache = Cache::builder().url(url).op_timeout(Duration::from_secs(5)).connect().await.expect("a cache");
        Self(cache.tenant(TENANT).expect("a tenant"))
    }

    async fn get(self, id: u64, fetches: Arc<AtomicUsize>) -> Arc<Report> {
        let key = REPORTS.key(id);
        let Ok(report) = self.0.try_get_or_fetch(&key, async || Ok::<_, Infallible>(fetch(&fetches).await)).await;
        report
    }
}

#[derive(Clone)]
struct Naive(MultiplexedConnection);

impl Contender for Naive {
    async fn connect(url: &str) -> Self {
        let client = redis::Client::open(url).expect("a client");
        // A thousand replies take their time.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        Self(connection.expect("a connection"))
    }

    async fn get(mut self, id: u64, fetches: Arc<AtomicUsize>) -> Arc<Report> {
        let name = format!("naive:{id}");
        let stored: Option<Vec<u8>> = self.0.get(&name).await.expect("a reply");
        if let Some(bytes) = stored {
            return Arc::new(rmp_serde::from_slice(&bytes).expect("a report"));
        }
        let report = fetch(&fetches).await;
        let bytes = rmp_serde::to_vec_named(&*report).expect("bytes");
        self.0.set_ex::<_, _, ()>(&name, bytes, 3600).await.expect("a reply");
        report
    }
}

async fn fetch(fetches: &AtomicUsize) -> Arc<Report> {
    fetches.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(FETCH).await;
    value(7)
}

fn main() {
    let (rounds, tasks) = if is_smoke_run() { (1, 10) } else { (50, 1_000) };
    let server = RedisServer::start();
    println!("\n{CACHES} caches × {tasks} tasks, one cold key, a fetch of {FETCH:?}, {rounds} rounds\n");
    println!(
        "{:16}{:>16}{:>16}{:>20}{:>20}",
        "", "fetches, median", "fetches, most", "slowest, median ms", "slowest, most ms"
    );
    report::<Ours>("cache-core", &server, rounds, tasks);
    report::<Naive>("hand-written", &server, rounds, tasks);
}

fn report<C: Contender>(name: &str, server: &RedisServer, rounds: u64, tasks: usize) {
    let (mut fetches, mut slowest) = (Vec::new(), Vec::new());
    let (counts, times) = stampedes::<C>(&server.url(), rounds, tasks);
    for round in 0..times[0].len() {
        #[expect(clippy::cast_precision_loss, reason = "at most 4000")]
        fetches.push(counts[round].load(Ordering::Relaxed) as f64);
        let of_round = times.iter().map(|times| times[round]).max().unwrap_or_default();
        slowest.push(of_round.as_secs_f64() * 1e3);
    }
    let most = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
    let (most_fetches, most_ms) = (most(&fetches), most(&slowest));
    println!("{name:16}{:>16}{most_fetches:>16}{:>20.1}{most_ms:>20.1}", median(fetches), median(slowest));
}

/// Fetches by round, and how long each cache took by round.
fn stampedes<C: Contender>(url: &str, rounds: u64, tasks: usize) -> (Vec<Arc<AtomicUsize>>, Vec<Vec<Duration>>) {
    let counts: Vec<_> = (0..rounds).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let barrier = Barrier::new(CACHES);
    let cache = || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let contender = runtime.block_on(C::connect(url));
        let stampede = |(round, fetches): (u64, &Arc<AtomicUsize>)| {
            barrier.wait();
            let begun = Instant::now();
            runtime.block_on(async {
                let call = |_| tokio::spawn(contender.clone().get(round, fetches.clone()));
                for call in (0..tasks).map(call).collect::<Vec<_>>() {
                    call.await.expect("no panic");
                }
            });
            begun.elapsed()
        };
        (0..rounds).zip(&counts).map(stampede).collect::<Vec<_>>()
    };
    let times = thread::scope(|scope| {
        let running: Vec<_> = (0..CACHES).map(|_| scope.spawn(cache)).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    (counts, times)
}
