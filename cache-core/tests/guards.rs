//! One interleaving for each guard of the protocol that other tests reach only together with another guard.
//! `scripts/guards.sh` takes the guards out one at a time and expects red.

mod support;

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{Cache, Keyspace, Scoped, TtlProfile};
use support::{Fault, Proxy, Server, until_linked};
use tokio::{sync::Semaphore, task::JoinHandle};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();

/// No near tier and so no link: nothing but the server's scripts and the flight stand between a caller and an old row.
async fn strict(url: &str) -> Scoped {
    let builder = Cache::builder().url(url).near_bytes(0).op_timeout(Duration::from_secs(20)).min_idle(1);
    builder.connect().await.unwrap().tenant("acme").unwrap()
}

/// A fetch under way, which has read `row` and ends when told.
struct Fetch {
    gate: Arc<Semaphore>,
    call: JoinHandle<String>,
}

impl Fetch {
    async fn begin(scope: &Scoped, id: &'static str, row: &'static str) -> Self {
        let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (scope, opened, begun) = (scope.clone(), gate.clone(), began.clone());
        let call = tokio::spawn(async move {
            let fetch = || async {
                begun.add_permits(1);
                opened.acquire().await.unwrap().forget();
                Ok::<_, ()>(row.to_owned())
            };
            (*scope.try_get_or_fetch(&REPORTS.key(id), fetch).await.unwrap()).clone()
        });
        began.acquire().await.unwrap().forget();
        Self { gate, call }
    }

    async fn end(self) -> String {
        self.gate.add_permits(1);
        self.call.await.unwrap()
    }
}

/// G1, token: the old fetch ends while a newer one holds the lease.
#[tokio::test]
async fn a_fill_under_somebody_elses_lease_is_refused() {
    let server = Server::start();
    let (one, two) = (strict(&server.url()).await, strict(&server.url()).await);
    let old = Fetch::begin(&one, "x", "old").await;
    assert!(two.invalidate(&REPORTS.key("x")).await.is_applied());
    let new = Fetch::begin(&two, "x", "new").await;
    assert_eq!(old.end().await, "old");
    assert_eq!(two.get(&REPORTS.key("x")).await.unwrap(), None, "the old row is stored");
    assert_eq!(new.end().await, "new");
    assert_eq!(*one.get(&REPORTS.key("x")).await.unwrap().unwrap(), "new");
}

/// G1, generations: the keyspace is invalidated and written to again while the old fetch runs.
#[tokio::test]
async fn a_fill_under_an_older_generation_is_refused() {
    let server = Server::start();
    let (one, two) = (strict(&server.url()).await, strict(&server.url()).await);
    for whole_tenant in [false, true] {
        let old = Fetch::begin(&one, "x", "old").await;
        let invalidated =
            if whole_tenant { two.invalidate_all().await } else { two.invalidate_keyspace(&REPORTS).await };
        assert!(invalidated.is_applied());
        // Creates the generations anew and leaves the lease of the other key alone.
        two.set(&REPORTS.key("y"), "other".to_owned()).await.unwrap();
        assert_eq!(old.end().await, "old");
        assert_eq!(two.get(&REPORTS.key("x")).await.unwrap(), None, "whole tenant: {whole_tenant}");
    }
}

/// G1, random generations: a generation that is created anew is never an older one.
#[tokio::test]
async fn an_invalidated_keyspace_stays_so_when_it_is_written_to_again() {
    let server = Server::start();
    let acme = strict(&server.url()).await;
    acme.set(&REPORTS.key("x"), "old".to_owned()).await.unwrap();
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    acme.set(&REPORTS.key("y"), "other".to_owned()).await.unwrap();
    assert_eq!(acme.get(&REPORTS.key("x")).await.unwrap(), None);
    assert!(acme.invalidate_all().await.is_applied());
    acme.try_get_or_fetch(&REPORTS.key("z"), || ready(Ok::<_, ()>("other".to_owned()))).await.unwrap();
    assert_eq!(acme.get(&REPORTS.key("y")).await.unwrap(), None);
}

/// G1, sweep fence: the old fetch ends after the sweep has passed its key.
#[tokio::test]
async fn a_fill_after_a_sweep_that_began_later_is_refused() {
    let server = Server::start();
    let (one, two) = (strict(&server.url()).await, strict(&server.url()).await);
    let old = Fetch::begin(&one, "x-1", "old").await;
    assert!(two.invalidate_pattern("report:x*").await.is_applied());
    assert_eq!(old.end().await, "old");
    assert_eq!(two.get(&REPORTS.key("x-1")).await.unwrap(), None, "the old row is stored");
}

/// G1, SET drops the lease: the old fetch ends after a newer value was set.
#[tokio::test]
async fn a_fill_after_a_set_is_refused() {
    let server = Server::start();
    let (one, two) = (strict(&server.url()).await, strict(&server.url()).await);
    let old = Fetch::begin(&one, "x", "old").await;
    two.set(&REPORTS.key("x"), "new".to_owned()).await.unwrap();
    assert_eq!(old.end().await, "old");
    assert_eq!(*two.get(&REPORTS.key("x")).await.unwrap().unwrap(), "new");
}

/// G2, hand-out law (a): a caller that joins after the fetch began may not take what FILL refused.
#[tokio::test]
async fn a_refused_value_is_not_handed_to_who_joined_after_its_fetch_began() {
    let server = Server::start();
    let (one, two) = (strict(&server.url()).await, strict(&server.url()).await);
    let old = Fetch::begin(&one, "x", "old").await;
    assert!(two.invalidate(&REPORTS.key("x")).await.is_applied());
    let key = REPORTS.key("x");
    let mut later = Box::pin(one.try_get_or_fetch(&key, || ready(Ok::<_, ()>("new".to_owned()))));
    // It reads, misses and joins the flight of this process, which has not heard of the invalidation.
    assert!(tokio::time::timeout(Duration::from_millis(200), later.as_mut()).await.is_err());
    assert_eq!(old.end().await, "old");
    assert_eq!(*later.await.unwrap(), "new");
}

/// A cache with a near tier whose link vouches: a copy older than three seconds is served.
async fn linked(proxy: &Proxy) -> Scoped {
    let cache =
        Cache::builder().url(proxy.url()).op_timeout(Duration::from_secs(20)).min_idle(1).connect().await.unwrap();
    until_linked(&cache).await;
    cache.tenant("acme").unwrap()
}

/// G3, snapshot before send: the old value is read, another process writes, its notice is heard, and then the answer
/// to the read arrives.
#[tokio::test]
async fn an_answer_older_than_a_notice_heard_before_it_is_not_kept() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (reader, writer) = (linked(&proxy).await, strict(&server.url()).await);
    let key = REPORTS.key("x");
    writer.set(&key, "old".to_owned()).await.unwrap();
    proxy.reset();
    proxy.set(Fault::HoldRepliesTo("MGET"));
    let reading = tokio::spawn({
        let (reader, key) = (reader.clone(), key.clone());
        async move { reader.get(&key).await.unwrap().unwrap() }
    });
    proxy.until("MGET", 1).await;
    writer.set(&key, "new".to_owned()).await.unwrap();
    // The notice takes a hop, on the subscriber's own connection.
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.set(Fault::None);
    assert_eq!(*reading.await.unwrap(), "old", "it began before");
    assert_eq!(*reader.get(&key).await.unwrap().unwrap(), "new");
}

/// G3, role: a primary that was demoted with sockets left open answers, and vouches for nothing.
#[tokio::test]
async fn a_demoted_primary_vouches_for_nothing() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = linked(&proxy).await;
    let fetched = AtomicBool::new(false);
    let fetch = || {
        fetched.store(true, Ordering::SeqCst);
        ready(Ok::<_, ()>("v".to_owned()))
    };
    let read = async || acme.try_get_or_fetch(&REPORTS.key("link"), fetch).await.unwrap();
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let demoted = Instant::now();
    proxy.reset();
    // Whoever is asked then, Redis or, as a replica is not, the database.
    while proxy.count("MGET") == 0 && !fetched.load(Ordering::SeqCst) {
        assert!(demoted.elapsed() < Duration::from_millis(3_500), "copies are still served");
        read().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
