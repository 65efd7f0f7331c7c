//! G1: a sweep is done by one run of one server, in one go over one connection, or it is incomplete and begins again.

mod support;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use cache_core::{Cache, Invalidated, Keyspace, Scoped, TtlProfile};
use support::{Fault, Proxy, Server};
use tokio::task::JoinHandle;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
const PATTERN: &str = "report:x*";
/// Keys that the pattern covers: a page of SCAN is a thousand.
const COVERED: usize = 5_000;

async fn acme(url: &str) -> Scoped {
    let builder = Cache::builder().url(url).op_timeout(Duration::from_secs(20)).near_bytes(0).min_idle(1);
    builder.connect().await.unwrap().tenant("acme").unwrap()
}

/// What must stay: other identifiers, another tenant, no tenant, and a tenant whose name begins alike.
fn others() -> BTreeSet<String> {
    let of = |n: usize| {
        [
            format!("cache:tenant:acme:report:y-{n}"),
            format!("cache:tenant:globex:report:x-{n}"),
            format!("cache:report:x-{n}"),
            format!("cache:tenant:acme2:report:x-{n}"),
        ]
    };
    (0..100).flat_map(of).collect()
}

/// Puts all keys there, straight into the server.
fn fill(server: &Server) {
    let mut pipeline = redis::pipe();
    for n in 0..COVERED {
        pipeline.set(format!("cache:tenant:acme:report:x-{n}"), "old").ignore();
    }
    for key in others() {
        pipeline.set(key, "other").ignore();
    }
    pipeline.query::<()>(&mut server.connect().unwrap()).unwrap();
}

/// Whether all covered keys are gone. Panics if another one is.
fn swept(server: &Server) -> bool {
    let keys: BTreeSet<String> = redis::cmd("KEYS").arg("*").query(&mut server.connect().unwrap()).unwrap();
    let missing: Vec<_> = others().into_iter().filter(|key| !keys.contains(key)).collect();
    assert!(missing.is_empty(), "removed, and not covered: {missing:?}");
    !keys.iter().any(|key| key.starts_with("cache:tenant:acme:report:x"))
}

async fn until_swept(server: &Server) {
    let begun = Instant::now();
    while !swept(server) {
        assert!(begun.elapsed() < Duration::from_secs(30), "the sweep never begins again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A sweep of a new cache that has done this many pages, and whose next SCAN was executed but not yet answered.
async fn stopped_after(pages: usize, acme: &Scoped, proxy: &Proxy) -> JoinHandle<Invalidated> {
    proxy.reset();
    proxy.set(Fault::HoldRepliesTo("SCAN"));
    let acme = acme.clone();
    let sweep = tokio::spawn(async move { acme.invalidate_pattern(PATTERN).await });
    for page in 1..=pages {
        proxy.until("SCAN", page).await;
        proxy.set(Fault::HoldRepliesTo("UNLINK"));
        // One for the fence, and then one a page.
        proxy.until("UNLINK", page + 1).await;
        proxy.set(Fault::HoldRepliesTo("SCAN"));
    }
    proxy.until("SCAN", pages + 1).await;
    sweep
}

/// The connection breaks in the middle, with the reply to SCAN or to UNLINK under way: `Pending`, never a sweep that
/// goes on with a cursor whose page may be lost.
#[tokio::test]
async fn a_sweep_whose_connection_breaks_is_pending_and_begins_again() {
    for pages in 0..4 {
        // A cache of its own: one before would still send again what was acknowledged before the connection broke.
        let server = Server::start();
        let proxy = Proxy::start(&server);
        let acme = acme(proxy.url()).await;
        fill(&server);
        let sweep = stopped_after(pages, &acme, &proxy).await;
        if pages % 2 == 1 {
            proxy.set(Fault::HoldRepliesTo("UNLINK"));
            proxy.until("UNLINK", pages + 2).await;
        }
        proxy.drop_connections();
        proxy.set(Fault::None);
        assert_eq!(sweep.await.unwrap(), Invalidated::Pending, "after {pages} pages");
        assert_eq!(acme.get(&REPORTS.key("x-1")).await.unwrap(), None, "a miss here at once");
        until_swept(&server).await;
        // Undisturbed it is done when it returns.
        fill(&server);
        assert_eq!(acme.invalidate_pattern(PATTERN).await, Invalidated::Applied);
        assert!(swept(&server));
    }
}

/// The server restarts in the middle and comes back with its data, as from a snapshot: the cursor is of the run before.
#[tokio::test]
async fn a_sweep_whose_server_restarts_is_pending_and_begins_again() {
    for pages in [1, 3] {
        let server = Server::start();
        let proxy = Proxy::start(&server);
        let acme = acme(proxy.url()).await;
        fill(&server);
        let sweep = stopped_after(pages, &acme, &proxy).await;
        // New connections wait in vain until the data is there.
        proxy.refuse_connections();
        server.restart();
        fill(&server);
        proxy.accept_connections();
        proxy.set(Fault::None);
        assert_eq!(sweep.await.unwrap(), Invalidated::Pending, "after {pages} pages");
        until_swept(&server).await;
    }
}

/// The sweep's own connection lives, but the pool it is of was given up: the server was demoted for a moment, and who
/// asks now may be sent to another one.
///
/// Interleaving: SCAN is executed; the server is demoted, refuses a write that came over the same connection, and is a
/// primary again; then both replies arrive.
#[tokio::test]
async fn a_sweep_whose_pool_is_replaced_is_pending_and_begins_again() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = acme(proxy.url()).await;
    fill(&server);
    let sweep = stopped_after(1, &acme, &proxy).await;
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let scripts = proxy.count("EVALSHA");
    let set = tokio::spawn({
        let acme = acme.clone();
        async move { acme.set(&REPORTS.key("y"), "v".to_owned()).await }
    });
    proxy.until("EVALSHA", scripts + 1).await;
    // The proxy has sent it; a connection of our own is answered after it.
    while server.cli(&["INFO", "errorstats"]).lines().all(|line| !line.starts_with("errorstat_READONLY")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    proxy.set(Fault::None);
    assert_eq!(sweep.await.unwrap(), Invalidated::Pending);
    set.await.unwrap().unwrap();
    until_swept(&server).await;
}
