//! Sentinel: the primary is found, and followed to where it goes; and what a demoted primary does to a cache.

mod support;

use std::{
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{Cache, ErrorKind, Invalidated, Key, Keyspace, Scoped, Status, TtlProfile};
use support::{Proxy, Sentinel, Server, Service};
use tokio::task::JoinHandle;

const REPORTS: Keyspace<u64> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// What G3 promises.
const BOUND: Duration = Duration::from_secs(3);
/// Long enough for a loaded machine, short enough to fail a hung test in time.
const PATIENCE: Duration = Duration::from_secs(30);

fn builder(url: &str) -> cache_core::Builder {
    Cache::builder().url(url).op_timeout(Duration::from_millis(300)).min_idle(1)
}

async fn acme(url: &str) -> Scoped {
    builder(url).connect().await.unwrap().tenant("acme").unwrap()
}

/// Waits for a condition that this test brought about.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until this many caches listen at a server.
async fn until_linked(server: &Server, caches: usize) {
    let linked = || server.cli(&["PUBSUB", "NUMSUB", "cache:~n"]).lines().last() == Some(&caches.to_string());
    until("the caches listen at the server", linked).await;
}

async fn until_applied(scope: &Scoped, key: &Key<u64>) {
    let begun = Instant::now();
    while !scope.invalidate(key).await.is_applied() {
        assert!(begun.elapsed() < PATIENCE, "no primary is found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A row of a database that counts up, cached under one key, and what is known of its invalidations.
#[derive(Default)]
struct Row {
    number: AtomicU64,
    /// The numbers whose invalidation returned `Applied`, and when.
    applied: Mutex<Vec<(u64, Instant)>>,
    pending: AtomicU64,
    reads: AtomicU64,
    stop: AtomicBool,
}

impl Row {
    fn key() -> Key<u64> {
        REPORTS.key("row")
    }

    async fn change(&self, scope: &Scoped) -> Invalidated {
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        let outcome = scope.invalidate(&Self::key()).await;
        match outcome {
            Invalidated::Applied => self.applied.lock().unwrap().push((number, Instant::now())),
            _ => drop(self.pending.fetch_add(1, Ordering::SeqCst)),
        }
        outcome
    }

    /// Reads, and holds the cache to G3.
    async fn read(&self, scope: &Scoped, who: &str) -> u64 {
        let begun = Instant::now();
        let fetch = || ready(Ok::<_, ()>(self.number.load(Ordering::SeqCst)));
        let read = *scope.try_get_or_fetch(&Self::key(), fetch).await.unwrap();
        let applied = self.applied.lock().unwrap();
        for (number, at) in applied.iter().rev() {
            let late = begun.saturating_duration_since(*at);
            assert!(late <= BOUND || read >= *number, "{who} got {read}, {late:?} after {number} was applied");
        }
        self.reads.fetch_add(1, Ordering::SeqCst);
        read
    }

    /// Reads again and again, until stopped.
    fn watched_by(self: &Arc<Self>, scope: &Scoped, who: &'static str) -> JoinHandle<()> {
        let (row, scope) = (self.clone(), scope.clone());
        tokio::spawn(async move {
            while !row.stop.load(Ordering::SeqCst) {
                row.read(&scope, who).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }
}

/// G1, G3: the primary is killed. What is invalidated meanwhile is pending and a miss here at once, is applied at the
/// server that takes over, and then no near copy outlives the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_dies_is_replaced_and_hears_what_was_invalidated_meanwhile() {
    let service = Service::start(3);
    let [primary, replica] = &service.servers;
    let (writer, reader) = (acme(&service.url()).await, acme(&service.url()).await);
    let row = Arc::new(Row::default());
    let once = REPORTS.key("once");
    writer.set(&once, 0).await.unwrap();
    for scope in [&writer, &reader] {
        row.read(scope, "somebody").await;
        assert_eq!(*scope.get(&once).await.unwrap().unwrap(), 0);
    }
    until_linked(primary, 2).await;
    assert!(row.change(&writer).await.is_applied());
    // What was written before this has reached the replica, too: losing it is another limit.
    primary.cli(&["SET", "marker", "1"]);
    until("the replica follows", || replica.cli(&["GET", "marker"]) == "1").await;
    let readers = [row.watched_by(&writer, "the writer"), row.watched_by(&reader, "the reader")];
    primary.kill();
    assert_eq!(writer.invalidate(&once).await, Invalidated::Pending);
    assert_eq!(writer.get(&once).await.unwrap(), None, "a miss here at once");
    let killed = Instant::now();
    while !row.change(&writer).await.is_applied() {
        assert!(killed.elapsed() < PATIENCE, "no primary is found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(service.named(), Some(1));
    assert!(row.pending.load(Ordering::SeqCst) > 0);
    until_linked(replica, 2).await;
    let applied = Instant::now();
    while applied.elapsed() < BOUND + Duration::from_millis(500) {
        let _ = row.change(&writer).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Invalidated once while there was no primary, and never since.
    until("what was pending is applied", || replica.cli(&["EXISTS", "cache:tenant:acme:report:once"]) == "0").await;
    assert_eq!(reader.get(&once).await.unwrap(), None);
    row.stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(row.reads.load(Ordering::SeqCst) > 100);
}

/// G3: a failover while the old primary lives. For about ten seconds it goes on as if nothing had happened, with all
/// connections open, and acknowledges what the new primary never hears of.
///
/// Interleaving: the replica is promoted; a third process starts and finds the new primary; the first two are still
/// at the old one, where the first invalidates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_stays_with_a_primary_that_was_given_up_while_it_lives() {
    let service = Service::start(1);
    let [old, new] = &service.servers;
    let (writer, reader) = (acme(&service.url()).await, acme(&service.url()).await);
    let row = Arc::new(Row::default());
    until_linked(old, 2).await;
    let mut readers = vec![row.watched_by(&writer, "the writer"), row.watched_by(&reader, "the reader")];
    assert!(row.change(&writer).await.is_applied());
    service.fail_over();
    let begun = Instant::now();
    while service.named() != Some(1) {
        assert!(begun.elapsed() < PATIENCE, "no failover");
        let _ = row.change(&writer).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let third = acme(&service.url()).await;
    readers.push(row.watched_by(&third, "the third"));
    let switched = Instant::now();
    while switched.elapsed() < BOUND + Duration::from_secs(2) {
        let _ = row.change(&writer).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until_linked(new, 3).await;
    until_applied(&writer, &Row::key()).await;
    row.stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(new.cli(&["ROLE"]).lines().next(), Some("master"));
}

/// A Sentinel that is gone, one that hangs and one that names a replica hold nobody up for long: what they say is
/// seen not to be true, and the next one is asked.
#[tokio::test]
async fn sentinels_that_are_gone_hang_or_are_wrong_are_passed_over() {
    let service = Service::start(1);
    let [primary, replica] = &service.servers;
    let gone = Server::start();
    gone.kill();
    let hung = Sentinel::start(Service::NAME, primary.port(), 9, "");
    hung.pause();
    let wrong = Sentinel::start(Service::NAME, replica.port(), 9, "");
    let ports = [gone.port(), hung.port(), wrong.port(), service.sentinels[0].port()];
    let hosts = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
    let acme = acme(&format!("redis+sentinel://{hosts}/{}", Service::NAME)).await;
    let begun = Instant::now();
    while acme.set(&REPORTS.key("x"), 7).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "the primary is not found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(primary.cli(&["EXISTS", "cache:tenant:acme:report:x"]), "1");
    // Wrong as ever, and no longer asked.
    let named = wrong.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Service::NAME]);
    assert_eq!(named, format!("127.0.0.1\n{}", replica.port()));
}

/// G3: the Sentinel that a cache asks falls silent just when the others give up the primary, which lives. The next one is asked
/// at once, not with the next look or the one after.
#[tokio::test]
async fn a_sentinel_that_falls_silent_when_the_primary_is_given_up_costs_no_time() {
    let [old, new] = [Server::start(), Server::start()];
    let [silent, other] = [(); 2].map(|()| Sentinel::start(Service::NAME, old.port(), 9, ""));
    let hosts = [&silent, &other].map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).join(",");
    let acme = acme(&format!("redis+sentinel://{hosts}/{}", Service::NAME)).await;
    acme.set(&REPORTS.key("x"), 1).await.unwrap();
    // It has looked at least once, and keeps the connection.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    silent.pause();
    assert_eq!(other.cli(&["SENTINEL", "REMOVE", Service::NAME]), "OK");
    let given_up = Instant::now();
    let port = new.port().to_string();
    assert_eq!(other.cli(&["SENTINEL", "MONITOR", Service::NAME, "127.0.0.1", &port, "9"]), "OK");
    while new.cli(&["EXISTS", "cache:tenant:acme:report:x"]) == "0" {
        // A second until the next look, and a little.
        assert!(given_up.elapsed() < Duration::from_millis(1_800), "still at the old primary");
        let _ = acme.set(&REPORTS.key("x"), 2).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// G7: with every Sentinel hung connecting takes its `connect_timeout`, and calls fetch.
#[tokio::test]
async fn hung_sentinels_cost_no_more_than_the_connect_timeout() {
    let server = Server::start();
    let sentinels = [1, 2].map(|_| Sentinel::start("svc", server.port(), 9, ""));
    sentinels.iter().for_each(Sentinel::pause);
    let [one, two] = sentinels.each_ref().map(Sentinel::port);
    // A call would wait longer than it should.
    let builder = Cache::builder().op_timeout(Duration::from_secs(60)).connect_timeout(Duration::from_millis(300));
    let begun = Instant::now();
    let url = format!("redis+sentinel://127.0.0.1:{one},127.0.0.1:{two}/svc");
    let cache = builder.url(&url).min_idle(1).connect().await.unwrap();
    let error = cache.health().await.error.unwrap();
    assert!(error.to_string().contains("no Sentinel answers"), "{error}");
    let acme = cache.tenant("acme").unwrap();
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || ready(Ok::<_, ()>(7))).await.unwrap(), 7);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_wrong_with_sentinels_is_said_and_no_password_shown() {
    let server = Server::with_args(&["--requirepass", "hunter2"]);
    let more = "sentinel auth-pass svc hunter2\nrequirepass s3cret";
    let sentinel = Sentinel::start("svc", server.port(), 1, more);
    let gone = Server::start();
    gone.kill();
    let at = |user: &str, port: u16, rest: &str| format!("redis+sentinel://{user}127.0.0.1:{port}/{rest}");
    let right = at(":hunter2@", sentinel.port(), "svc?sentinel_password=s3cret");
    let own = server.url().replacen("redis://", "redis+sentinel://", 1);
    for (url, kind, says) in [
        (at(":hunter2@", sentinel.port(), "svc"), ErrorKind::Authentication, "sentinel_password"),
        (
            at(":hunter2@", sentinel.port(), "svc?sentinel_password=wr0ng"),
            ErrorKind::Authentication,
            "sentinel_password",
        ),
        (at(":wr0ng@", sentinel.port(), "svc?sentinel_password=s3cret"), ErrorKind::Authentication, "REDIS_PASSWORD"),
        (at(":hunter2@", sentinel.port(), "other?sentinel_password=s3cret"), ErrorKind::Unavailable, "\"other\""),
        (at(":hunter2@", gone.port(), "svc"), ErrorKind::Unavailable, "no Sentinel answers"),
        (format!("{own}svc?sentinel_password=hunter2"), ErrorKind::Unavailable, "is no Sentinel"),
    ] {
        let cache = builder(&url).build().unwrap();
        let error = cache.health().await.error.unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        let shown = format!("{error} {error:?} {cache:?} {:?}", builder(&url));
        assert!(["hunter2", "s3cret", "wr0ng"].iter().all(|secret| !shown.contains(secret)), "{shown}");
        // A cache that cannot use Redis fetches.
        let acme = cache.tenant("acme").unwrap();
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || ready(Ok::<_, ()>(7))).await.unwrap(), 7);
        assert_eq!(builder(&url).connect().await.is_err(), kind == ErrorKind::Authentication);
    }
    assert_eq!(builder(&right).connect().await.unwrap().health().await.status, Status::Healthy);
    let without = at("", sentinel.port(), "svc?sentinel_password=s3cret");
    let cache = builder(&without).password("hunter2").connect().await.unwrap();
    assert_eq!(cache.health().await.status, Status::Healthy);
}

/// G1, G7: a primary that is demoted with its connections left open is left alone until it takes writes again: it
/// answers reads, and what answers reads is not back. What was invalidated meanwhile is then applied.
#[tokio::test]
async fn a_demoted_primary_is_not_used_until_it_takes_writes_again() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let cache = builder(proxy.url()).near_bytes(0).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    acme.set(&key, 1).await.unwrap();
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(acme.invalidate(&key).await, Invalidated::Pending);
    let read = async |id: u32| {
        let fetch = || ready(Ok::<_, ()>(2));
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key(("other", id)), fetch).await.unwrap(), 2);
    };
    let begun = Instant::now();
    // Some fail, and then the breaker is open.
    for id in 0..20 {
        read(id).await;
    }
    proxy.reset();
    let mut id = 20;
    while proxy.count("PEXPIRE") < 4 {
        assert!(begun.elapsed() < PATIENCE, "nobody looks whether the primary is back");
        read(id).await;
        id += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A new connection tries EVAL and EVALSHA, before it is known to lead to a replica.
    assert_eq!((proxy.count("MGET"), proxy.count("EVALSHA")), (0, proxy.count("EVAL")), "a replica is asked");
    assert_eq!(acme.get(&key).await.unwrap(), None, "a miss here meanwhile");
    assert_eq!(server.cli(&["EXISTS", "cache:tenant:acme:report:x"]), "1");
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    until("what was pending is applied", || server.cli(&["EXISTS", "cache:tenant:acme:report:x"]) == "0").await;
    until_applied(&acme, &key).await;
}
