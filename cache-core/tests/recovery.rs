//! After an outage Redis gives hits again within two seconds, also in a process that nobody calls meanwhile.

mod support;

use std::time::{Duration, Instant};

use cache_core::{Cache, Keyspace, TtlProfile};
use support::{Fault, Proxy, Server};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0).of();
/// Longer than any pause between two attempts.
const OUTAGE: Duration = Duration::from_secs(7);
const BACK: Duration = Duration::from_secs(2);

/// What is wrong with the server, or the way to it.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Killed,
    Paused,
    /// All connections break every 100 ms.
    Resets,
    /// No byte arrives any more, and no socket closes.
    HalfOpen,
}

/// What the process does in the outage.
#[derive(Clone, Copy, Debug)]
enum Process {
    /// Nothing.
    Idle,
    /// Calls until Redis is not asked any more.
    CalledAtFirst,
}

async fn hits_come_back(outage: Outage, process: Process, near_bytes: u64) {
    let what = format!("{outage:?}, {process:?}, near tier of {near_bytes}");
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let cache = Cache::builder().url(proxy.url()).near_bytes(near_bytes).connect().await.unwrap();
    let mine = cache.tenant("acme").unwrap();
    mine.try_get_or_fetch(&REPORTS.key("warm"), || fetched("v")).await.unwrap();

    let resets = match outage {
        Outage::Killed => {
            server.kill();
            None
        }
        Outage::Paused => {
            server.pause();
            None
        }
        Outage::Resets => Some(proxy.drop_connections_every(Duration::from_millis(100))),
        Outage::HalfOpen => {
            proxy.set(Fault::Swallow);
            None
        }
    };
    let begun = Instant::now();
    if matches!(process, Process::CalledAtFirst) {
        for n in 0..20 {
            assert_eq!(*mine.try_get_or_fetch(&REPORTS.key(n), || fetched("v")).await.unwrap(), "v");
        }
    }
    tokio::time::sleep(OUTAGE.saturating_sub(begun.elapsed())).await;
    match outage {
        Outage::Killed => server.restart(),
        Outage::Paused => server.resume(),
        Outage::Resets => drop(resets.map(support::Resets::end)),
        Outage::HalfOpen => proxy.set(Fault::None),
    }
    let back = Instant::now();

    let other = Cache::connect(&server.url()).await.unwrap().tenant("acme").unwrap();
    other.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
    tokio::time::sleep(BACK.saturating_sub(back.elapsed())).await;
    let found = mine.get(&REPORTS.key("x")).await;
    assert_eq!(
        found.as_ref().ok().and_then(|value| value.as_ref().map(|value| &***value)),
        Some("v"),
        "{what}: {found:?}"
    );
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    std::future::ready(Ok(value.to_owned()))
}

async fn all_hits_come_back(outage: Outage) {
    let cases = [Process::Idle, Process::CalledAtFirst]
        .into_iter()
        .flat_map(|process| [0, 64 << 20].map(|near_bytes| tokio::spawn(hits_come_back(outage, process, near_bytes))));
    for case in cases.collect::<Vec<_>>() {
        case.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_come_back_after_a_server_was_killed() {
    all_hits_come_back(Outage::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_come_back_after_a_server_was_paused() {
    all_hits_come_back(Outage::Paused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_come_back_after_connections_broke_again_and_again() {
    all_hits_come_back(Outage::Resets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_come_back_after_a_link_was_half_open() {
    all_hits_come_back(Outage::HalfOpen).await;
}
