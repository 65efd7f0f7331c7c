//! A network that loses, doubles and reorders replies, goes silent one way, is slow, or breaks ten times a second.
//!
//! What is promised then, besides G1 to G8:
//!
//! - A value is bound to its key, so a reply that belongs to another read is a miss at worst.
//! - Every script repeats the number of its call, and every other reply has a form: an invalidation or a `set` is not
//!   taken as done on the word of another command's reply, and the connection that gave it is dropped. What was
//!   acknowledged in the ten seconds before is then sent again.
//! - A reply that is lost costs its call one `op_timeout`; the connection is dropped with the next script on it, or with
//!   the third call in a row that gets no answer.
//! - Not told apart are two replies of the same kind to commands without a number, UNLINK and PUBLISH of a keyspace or a
//!   tenant, and two reads of the same key.

mod support;

use std::{
    collections::HashSet,
    future::{Future, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{Builder, Cache, Invalidated, Key, Keyspace, Scoped, TtlProfile};
use support::{Class, Fault, Hold, Proxy, Server, Spoil};
use tokio::sync::Semaphore;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// What G3 promises.
const BOUND: Duration = Duration::from_secs(3);
/// Long enough for a loaded machine, short enough to fail a hung test in time.
const PATIENCE: Duration = Duration::from_secs(30);

/// All commands on one connection, so that their replies can be taken for each other.
fn one_connection(url: &str) -> Builder {
    Cache::builder().url(url).pool_size(1).min_idle(1).near_bytes(0).op_timeout(Duration::from_secs(20))
}

async fn acme(builder: Builder) -> Scoped {
    builder.connect().await.unwrap().tenant("acme").unwrap()
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    ready(Ok(value.to_owned()))
}

/// Polls until `done`, which must come about.
async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: never");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What is not done by then hangs.
async fn in_time<R>(what: &str, future: impl Future<Output = R>) -> R {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Asserts that the replies to all `commands` so far came over one connection.
fn over_one_connection(proxy: &Proxy) {
    let connections: HashSet<usize> = proxy.trips().iter().map(|trip| trip.connection).collect();
    assert_eq!(connections.len(), 1, "{:?}", proxy.trips());
}

/// G8, G5. The interleaving: two reads are under way on one connection; their replies change places, or the first
/// arrives twice and so answers the second, too.
#[tokio::test]
async fn replies_of_two_reads_that_are_mixed_up_give_no_key_the_others_value() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, observer) = (acme(one_connection(proxy.url())).await, acme(one_connection(&server.url())).await);
    for (spoil, batches) in
        [(Spoil::Swap, false), (Spoil::Duplicate, false), (Spoil::Swap, true), (Spoil::Duplicate, true)]
    {
        let keys: Vec<Key<String>> = (0..4).map(|id| REPORTS.key((format!("{spoil:?}{batches}"), id))).collect();
        for (id, key) in keys.iter().enumerate() {
            observer.set(key, format!("v{id}")).await.unwrap();
        }
        proxy.reset();
        proxy.set(Fault::HoldRepliesTo("MGET"));
        let reads: [_; 2] = if batches { [vec![0, 1], vec![2, 3]] } else { [vec![0], vec![1]] };
        let mut reading = Vec::new();
        for (at, ids) in reads.into_iter().enumerate() {
            let (mine, keys) = (mine.clone(), keys.clone());
            reading.push(tokio::spawn(async move {
                let wanted: Vec<_> = ids.iter().map(|id| keys[*id].clone()).collect();
                let values = match &wanted[..] {
                    [key] => {
                        let fetch = || fetched(&format!("v{}", ids[0]));
                        vec![Some(mine.try_get_or_fetch(key, fetch).await.unwrap())]
                    }
                    keys => mine.get_many(keys).await.unwrap(),
                };
                (ids, values)
            }));
            proxy.until("MGET", at + 1).await;
        }
        over_one_connection(&proxy);
        proxy.spoil_next("MGET", spoil);
        proxy.set(Fault::None);
        for reading in reading {
            let (ids, values) = in_time("a read", reading).await.unwrap();
            for (id, value) in ids.iter().zip(values) {
                assert!(value.is_none_or(|value| *value == format!("v{id}")), "{spoil:?}, batches: {batches}");
            }
        }
        for (id, key) in keys.iter().enumerate() {
            assert_eq!(*mine.get(key).await.unwrap().unwrap(), format!("v{id}"), "{spoil:?}: read as before");
        }
    }
}

/// G4. The interleaving: another process fetches one key; this one asks for that and for a free one, and the server's
/// two answers, "taken" and "granted", change places.
#[tokio::test]
async fn a_lease_that_was_granted_for_another_key_is_not_believed() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, other) = (acme(one_connection(proxy.url())).await, acme(one_connection(&server.url())).await);
    let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let leading = tokio::spawn({
        let (gate, began) = (gate.clone(), began.clone());
        async move {
            let fetch = || async {
                began.add_permits(1);
                gate.acquire().await.unwrap().forget();
                fetched("other's").await
            };
            other.try_get_or_fetch(&REPORTS.key("taken"), fetch).await.unwrap()
        }
    });
    began.acquire().await.unwrap().forget();
    proxy.reset();
    proxy.set(Fault::HoldRepliesTo("MGET"));
    let mut calls = Vec::new();
    for (at, id) in ["taken", "free"].into_iter().enumerate() {
        let mine = mine.clone();
        calls.push(tokio::spawn(
            async move { mine.try_get_or_fetch(&REPORTS.key(id), || fetched("mine")).await.unwrap() },
        ));
        proxy.until("MGET", at + 1).await;
    }
    proxy.set(Fault::HoldRepliesTo("LEASE"));
    proxy.until("LEASE", 2).await;
    over_one_connection(&proxy);
    proxy.spoil_next("LEASE", Spoil::Swap);
    proxy.set(Fault::None);
    let free = in_time("the free key", calls.pop().unwrap()).await.unwrap();
    assert_eq!(*free, "mine");
    gate.add_permits(1);
    assert_eq!(*in_time("the leader", leading).await.unwrap(), "other's");
    let taken = in_time("the taken key", calls.pop().unwrap()).await.unwrap();
    assert_eq!(*taken, "other's", "it was fetched a second time");
}

/// What an invalidation is, and its first command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Key,
    Many,
    Keyspace,
    Tenant,
    Pattern,
    Set,
}

impl How {
    const ALL: [Self; 6] = [Self::Key, Self::Many, Self::Keyspace, Self::Tenant, Self::Pattern, Self::Set];

    fn command(self) -> &'static str {
        match self {
            Self::Key | Self::Many => "INVALIDATE",
            Self::Keyspace | Self::Tenant | Self::Pattern => "UNLINK",
            Self::Set => "SET",
        }
    }

    async fn invalidate(self, scope: &Scoped, key: &Key<String>) -> Invalidated {
        match self {
            Self::Key => scope.invalidate(key).await,
            Self::Many => scope.invalidate_many(&[REPORTS.key("y"), key.clone()]).await,
            Self::Keyspace => scope.invalidate_keyspace(&REPORTS).await,
            Self::Tenant => scope.invalidate_all().await,
            Self::Pattern => scope.invalidate_pattern("report:x*").await,
            Self::Set => match scope.set(key, "new".to_owned()).await {
                Ok(()) => Invalidated::Applied,
                Err(error) => {
                    assert!(error.is_unavailable(), "{error}");
                    Invalidated::Pending
                }
            },
        }
    }
}

/// G1, G2. The interleaving: a command is under way, its reply in the proxy; an invalidation follows on the same
/// connection and waits in the proxy before it reaches the server; the first reply arrives twice, so the second copy
/// stands where the answer to the invalidation belongs.
#[tokio::test]
async fn an_invalidation_is_not_acknowledged_by_the_reply_to_another_command() {
    let server = Server::start();
    let observer = acme(one_connection(&server.url())).await;
    let cases = How::ALL.into_iter().flat_map(|how| ["MGET", "INVALIDATE"].map(|first| (how, first)));
    // Two invalidations by key cannot be told apart by name, here: one would be held as well.
    for (how, first) in cases.filter(|(how, first)| how.command() != *first) {
        let what = format!("{how:?} after {first}");
        let proxy = Proxy::start(&server);
        let mine = acme(one_connection(proxy.url())).await;
        let key = REPORTS.key("x-1");
        observer.set(&key, "old".to_owned()).await.unwrap();
        proxy.reset();
        proxy.set(Fault::HoldRepliesTo(first));
        proxy.hold(Hold::Command(how.command()));
        let earlier = tokio::spawn({
            let mine = mine.clone();
            async move {
                let other = REPORTS.key("other");
                if first == "MGET" {
                    mine.get(&other).await.unwrap();
                } else {
                    assert!(mine.invalidate(&other).await.is_applied());
                }
            }
        });
        proxy.until(first, 1).await;
        let mut invalidating = tokio::spawn({
            let (mine, key) = (mine.clone(), key.clone());
            async move { how.invalidate(&mine, &key).await }
        });
        proxy.until_arrived(how.command(), 1).await;
        over_one_connection(&proxy);
        proxy.spoil_next(first, Spoil::Duplicate);
        proxy.set(Fault::None);
        in_time("the earlier call", earlier).await.unwrap();
        if how.command() == "UNLINK" {
            // It takes the second copy for the answer to UNLINK and waits for that to PUBLISH.
            tokio::time::sleep(Duration::from_millis(50)).await;
        } else {
            // What was found out is sent again on a new connection, where it is held, too.
            tokio::select! {
                () = proxy.until_arrived(how.command(), 2) => {}
                outcome = &mut invalidating => panic!("{what}: {outcome:?} before the server has it"),
            }
        }
        assert!(!invalidating.is_finished(), "{what}: acknowledged before the server has it");
        assert_eq!(*observer.get(&key).await.unwrap().unwrap(), "old", "{what}");
        proxy.hold(Hold::None);
        assert!(in_time(&what, invalidating).await.unwrap().is_applied(), "{what}");
        let after = observer.get(&key).await.unwrap();
        assert!(after.is_none_or(|value| how == How::Set && *value == "new"), "{what}");
    }
}

/// One row per key, each change of which is followed by an invalidation, and everything that G1 to G3 and G8 say about
/// what may be read.
struct Database {
    rows: Vec<AtomicU64>,
    /// By key: the newest row whose invalidation has returned, from any cache.
    floors: Vec<AtomicU64>,
    /// The same with the time, for near copies of other caches.
    returned: Vec<Mutex<Vec<(Instant, u64)>>>,
    applied: AtomicUsize,
    fetches: AtomicUsize,
}

/// One cache of a workload.
struct Client {
    scope: Scoped,
    is_near: bool,
    /// As the database's, of invalidations by this cache.
    floors: Vec<AtomicU64>,
}

impl Client {
    async fn new(builder: Builder, is_near: bool, keys: usize) -> Self {
        let builder = if is_near { builder } else { builder.near_bytes(0) };
        Self { scope: acme(builder).await, is_near, floors: (0..keys).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Database {
    fn new(keys: usize) -> Self {
        Self {
            rows: (0..keys).map(|_| AtomicU64::new(1)).collect(),
            floors: (0..keys).map(|_| AtomicU64::new(0)).collect(),
            returned: (0..keys).map(|_| Mutex::default()).collect(),
            applied: AtomicUsize::new(0),
            fetches: AtomicUsize::new(0),
        }
    }

    /// What a read of `key` that begins now may not be older than.
    fn floor(&self, client: &Client, key: usize) -> u64 {
        if !client.is_near {
            return self.floors[key].load(Ordering::SeqCst);
        }
        let now = Instant::now();
        let returned = self.returned[key].lock().unwrap();
        let long_ago = returned.iter().filter(|(at, _)| now - *at > BOUND).map(|(_, row)| *row).max();
        long_ago.unwrap_or(0).max(client.floors[key].load(Ordering::SeqCst))
    }

    fn check(&self, key: usize, floor: u64, value: &str) {
        let (of, row) = value.split_once(':').unwrap();
        assert_eq!(of, key.to_string(), "another key's value");
        let row: u64 = row.parse().unwrap();
        assert!(row >= floor, "key {key}: row {row} was read after the invalidation of what is older than {floor}");
    }

    async fn row(&self, key: usize) -> Result<String, ()> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let row = self.rows[key].load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(format!("{key}:{row}"))
    }

    async fn write(&self, client: &Client, key: usize, how: How) {
        let row = self.rows[key].fetch_add(1, Ordering::SeqCst) + 1;
        if how.invalidate(&client.scope, &REPORTS.key(("x", key))).await.is_applied() {
            client.floors[key].fetch_max(row, Ordering::SeqCst);
            self.returned[key].lock().unwrap().push((Instant::now(), row));
            self.floors[key].fetch_max(row, Ordering::SeqCst);
            self.applied.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn step(&self, client: &Client, random: u64) {
        let keys = self.rows.len();
        let key = (random >> 8) as usize % keys;
        let name = REPORTS.key(("x", key));
        match random % 20 {
            0..=1 => self.write(client, key, How::Key).await,
            2 => self.write(client, key, How::Many).await,
            3 if (random >> 32).is_multiple_of(4) => {
                let all = [How::Keyspace, How::Tenant, How::Pattern];
                self.write(client, key, all[(random >> 40) as usize % 3]).await;
            }
            4..=6 => {
                let wanted: Vec<usize> = (0..4).map(|n| (key + n) % keys).collect();
                let floors: Vec<_> = wanted.iter().map(|key| self.floor(client, *key)).collect();
                let names: Vec<_> = wanted.iter().map(|key| REPORTS.key(("x", *key))).collect();
                let fetch = async |missing: Vec<Key<String>>| {
                    let mut rows = Vec::new();
                    for name in missing {
                        let key = wanted[names.iter().position(|wanted| *wanted == name).unwrap()];
                        rows.push((name, self.row(key).await?));
                    }
                    Ok::<_, ()>(rows)
                };
                let values = client.scope.try_get_or_fetch_many(&names, fetch).await.unwrap();
                for ((key, floor), value) in wanted.iter().zip(floors).zip(values) {
                    self.check(*key, floor, &value.unwrap());
                }
            }
            7..=9 => {
                let floor = self.floor(client, key);
                if let Ok(Some(value)) = client.scope.get(&name).await {
                    self.check(key, floor, &value);
                }
            }
            _ => {
                let floor = self.floor(client, key);
                self.check(key, floor, &client.scope.try_get_or_fetch(&name, || self.row(key)).await.unwrap());
            }
        }
    }

    /// Four tasks per client, each with so many steps and a short pause after each.
    async fn work(&self, clients: &[Client], steps: u64) {
        let tasks = clients.iter().flat_map(|client| [client; 4]).enumerate().map(|(task, client)| async move {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(task as u64 + 1) | 1;
            for _ in 0..steps {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                in_time("a call", self.step(client, random >> 3)).await;
                tokio::time::sleep(Duration::from_millis(random % 8)).await;
            }
        });
        futures::future::join_all(tasks).await;
    }
}

/// Every kind of call works again over this link.
async fn is_used_again(scope: &Scoped) {
    eventually("used again", async || {
        let key = REPORTS.key("again");
        let invalidated = scope.invalidate(&key).await.is_applied();
        let stored = scope.set(&key, "v".to_owned()).await.is_ok();
        invalidated && stored && scope.exists(&key).await.unwrap_or(false)
    })
    .await;
}

/// G1, G2, G3, and progress: all connections break every 100 ms, for longer than near copies may be old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_ten_times_a_second_bring_nothing_old_back() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let builder = |url: &str| Cache::builder().url(url).min_idle(1).op_timeout(Duration::from_secs(1));
    let keys = 12;
    let clients = [
        Client::new(builder(proxy.url()), false, keys).await,
        Client::new(builder(proxy.url()), true, keys).await,
        Client::new(builder(&server.url()), true, keys).await,
    ];
    let database = Database::new(keys);
    let resets = proxy.drop_connections_every(Duration::from_millis(100));
    let begun = Instant::now();
    while begun.elapsed() < BOUND + Duration::from_millis(1_500) {
        database.work(&clients, 100).await;
    }
    assert!(resets.end() > 10);
    let (applied, fetches) = (database.applied.into_inner(), database.fetches.into_inner());
    let hits = clients.iter().map(|client| client.scope.clone());
    assert!(applied > 100 && fetches > 100, "{applied} applied, {fetches} fetches");
    for scope in hits {
        is_used_again(&scope).await;
    }
}

/// G1, G2, G5, G8 under load, with replies to all kinds of commands lost, doubled and swapped, and connections on which
/// one call's reply answers the next until that is found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_lost_doubled_and_swapped_under_load_bring_nothing_wrong() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let keys = 12;
    let builder = || one_connection(proxy.url()).op_timeout(Duration::from_millis(150));
    let clients = [
        Client::new(builder(), false, keys).await,
        Client::new(builder().near_bytes(1 << 20), true, keys).await,
        Client::new(one_connection(&server.url()), false, keys).await,
    ];
    let database = Database::new(keys);
    let done = AtomicBool::new(false);
    let spoiling = async {
        let commands = ["MGET", "LEASE", "FILL", "INVALIDATE", "MGET", "LEASE", "SCAN", "UNLINK", "PUBLISH"];
        let spoils = [Spoil::Swap, Spoil::Duplicate, Spoil::Duplicate, Spoil::Swap, Spoil::Lose];
        let mut spoiled = 0;
        while !done.load(Ordering::SeqCst) {
            proxy.spoil_next(commands[spoiled % commands.len()], spoils[spoiled % spoils.len()]);
            spoiled += 1;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        assert!(spoiled > 50, "{spoiled}");
    };
    let working = async {
        database.work(&clients, 300).await;
        done.store(true, Ordering::SeqCst);
    };
    tokio::join!(working, spoiling);
    proxy.spoil_next("", Spoil::Lose);
    assert!(database.applied.into_inner() > 100);
    for client in &clients {
        is_used_again(&client.scope).await;
    }
}

/// Waits until near copies are vouched for: one that is older than the bound is still served.
async fn until_linked(scope: &Scoped, proxy: &Proxy) {
    let key = REPORTS.key("link");
    eventually("linked", async || {
        scope.try_get_or_fetch(&key, || fetched("v")).await.unwrap();
        proxy.reset();
        tokio::time::sleep(BOUND + Duration::from_millis(100)).await;
        scope.try_get_or_fetch(&key, || fetched("v")).await.unwrap();
        proxy.count("MGET") == 0
    })
    .await;
}

/// G3, G7, with a link that fails one way or for one kind of connection only: a silent subscriber beside commands that
/// pass, silent commands beside a subscriber that hears, and commands or replies that are late.
#[tokio::test]
async fn a_link_that_fails_in_part_serves_nothing_old_for_longer_than_the_bound() {
    let server = Server::start();
    let writer = acme(one_connection(&server.url())).await;
    let fail = |name: &str, proxy: &Proxy| match name {
        "subscriber" => proxy.set_for(Class::Subscriber, Fault::Swallow),
        "commands" => proxy.set_for(Class::Commands, Fault::Swallow),
        "late commands" => proxy.hold(Hold::Delay(Duration::from_secs(8))),
        _ => proxy.set_for(Class::Commands, Fault::Delay(Duration::from_secs(8))),
    };
    let runs = ["subscriber", "commands", "late commands", "late replies"].map(|name| {
        let (server, writer) = (&server, &writer);
        async move {
            let proxy = Proxy::start(server);
            let cache = Cache::builder().url(proxy.url()).op_timeout(Duration::from_millis(100)).min_idle(1);
            let reader = acme(cache).await;
            until_linked(&reader, &proxy).await;
            let key = REPORTS.key(name);
            assert_eq!(*reader.try_get_or_fetch(&key, || fetched("old")).await.unwrap(), "old");
            fail(name, &proxy);
            assert!(writer.invalidate(&key).await.is_applied());
            let returned = Instant::now();
            let mut last = Duration::ZERO;
            loop {
                // When the read began is what counts.
                let begun = returned.elapsed();
                let value = in_time(name, reader.try_get_or_fetch(&key, || fetched("new"))).await.unwrap();
                if *value == "new" {
                    break;
                }
                assert!(begun <= BOUND, "{name}: {begun:?}");
                last = begun;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if name != "subscriber" {
                // The notice was heard; the word of the link would have carried further.
                assert!(last < BOUND / 2, "{name}: {last:?}");
            }
            // Longer than the link's word carries, and calls still get their values.
            let begun = Instant::now();
            while begun.elapsed() < BOUND {
                let key = REPORTS.key((name, begun.elapsed().as_nanos()));
                assert_eq!(*in_time(name, reader.try_get_or_fetch(&key, || fetched("v"))).await.unwrap(), "v");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            proxy.hold(Hold::None);
            proxy.set(Fault::None);
            is_used_again(&reader).await;
            until_linked(&reader, &proxy).await;
        }
    });
    futures::future::join_all(runs).await;
}

/// G1, G4 over a slow link that is within `op_timeout`: hits, one fetch for all, and invalidations that are
/// acknowledged.
#[tokio::test]
async fn a_link_slower_than_usual_and_faster_than_op_timeout_is_used_as_any_other() {
    let server = Server::start();
    let proxies = [Proxy::start(&server), Proxy::start(&server)];
    // One is slow on the way there, the other on the way back.
    proxies[0].hold(Hold::Delay(Duration::from_millis(200)));
    proxies[1].set(Fault::Delay(Duration::from_millis(200)));
    let builder = |url: &str| Cache::builder().url(url).near_bytes(0).min_idle(1).op_timeout(Duration::from_secs(1));
    let mut caches = Vec::new();
    for proxy in &proxies {
        caches.push(in_time("connecting", builder(proxy.url()).connect()).await.unwrap());
    }
    let scopes: Vec<_> = caches.iter().map(|cache| cache.tenant("acme").unwrap()).collect();
    for scope in &scopes {
        // The first call may find the connection still being made.
        eventually("connected", async || scope.get(&REPORTS.key("warm")).await.is_ok()).await;
    }
    let errors = || caches.iter().map(|cache| cache.stats().total.remote_errors).sum::<u64>();
    let before = errors();
    let key = REPORTS.key("x");
    for round in 0..3 {
        let fetches = AtomicUsize::new(0);
        let (fetches_made, value) = (&fetches, &format!("v{round}"));
        let calls = scopes.iter().flat_map(|scope| [scope; 20]).map(|scope| {
            let key = &key;
            scope.try_get_or_fetch(key, move || async move {
                fetches_made.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(100)).await;
                fetched(value).await
            })
        });
        for given in in_time("the calls", futures::future::join_all(calls)).await {
            assert_eq!(*given.unwrap(), *value);
        }
        assert_eq!(fetches.load(Ordering::SeqCst), 1, "round {round}");
        for scope in &scopes {
            assert_eq!(scope.get(&key).await.unwrap().as_deref(), Some(value), "a hit");
        }
        assert!(scopes[round % 2].invalidate(&key).await.is_applied());
        for scope in &scopes {
            assert_eq!(scope.get(&key).await.unwrap(), None);
        }
    }
    assert_eq!(errors(), before);
}

/// G5, G7 over a link slower than `op_timeout`: calls fetch, nothing waits for ever, an invalidation that was sent is
/// heard although its acknowledgement comes too late, and everything is as before once the link is.
#[tokio::test]
async fn a_link_slower_than_op_timeout_leads_to_the_fetch_and_recovers() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let observer = acme(one_connection(&server.url())).await;
    let builder = Cache::builder().url(proxy.url()).near_bytes(0).min_idle(1).op_timeout(Duration::from_millis(100));
    let mine = acme(builder).await;
    let (first, second) = (REPORTS.key("first"), REPORTS.key("second"));
    is_used_again(&mine).await;
    for way in ["there", "back"] {
        for key in [&first, &second] {
            observer.set(key, "old".to_owned()).await.unwrap();
            assert_eq!(*mine.get(key).await.unwrap().unwrap(), "old");
        }
        match way {
            "there" => proxy.hold(Hold::Delay(Duration::from_millis(200))),
            _ => proxy.set(Fault::Delay(Duration::from_millis(200))),
        }
        assert_eq!(in_time("the invalidation", mine.invalidate(&first)).await, Invalidated::Pending);
        assert_eq!(mine.get(&first).await.unwrap(), None, "{way}: a miss here at once");
        eventually("heard", async || observer.get(&first).await.unwrap().is_none()).await;
        let calls = (0..50).map(|id| {
            let mine = &mine;
            async move { mine.try_get_or_fetch(&REPORTS.key((way, id)), || fetched("v")).await.unwrap() }
        });
        for value in in_time("the calls", futures::future::join_all(calls)).await {
            assert_eq!(*value, "v");
        }
        assert_eq!(in_time("the invalidation", mine.invalidate(&second)).await, Invalidated::Pending);
        assert_eq!(mine.get(&second).await.unwrap(), None, "{way}: a miss here at once");
        proxy.hold(Hold::None);
        proxy.set(Fault::None);
        eventually("heard", async || observer.get(&second).await.unwrap().is_none()).await;
        is_used_again(&mine).await;
        eventually("cached", async || {
            mine.try_get_or_fetch(&first, || fetched("new")).await.unwrap();
            observer.get(&first).await.unwrap().is_some()
        })
        .await;
    }
}

/// G7: a trip is well within `op_timeout`, the several trips that make a connection are not. It is made all the same, at
/// the start and after it broke, while calls go on to their fetches.
#[tokio::test]
async fn a_connection_that_takes_longer_to_make_than_op_timeout_is_made() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    proxy.set(Fault::Delay(Duration::from_millis(150)));
    let builder = Cache::builder().url(proxy.url()).near_bytes(0).op_timeout(Duration::from_millis(250));
    let mine = builder.build().unwrap().tenant("acme").unwrap();
    for _ in 0..3 {
        // At once, so that they all give up before the first connection is made, and open the breaker.
        let calls = (0..10).map(|id| {
            let key = REPORTS.key(id);
            let mine = &mine;
            async move { mine.try_get_or_fetch(&key, || fetched("v")).await.unwrap() }
        });
        assert!(futures::future::join_all(calls).await.iter().all(|value| **value == "v"));
        is_used_again(&mine).await;
        proxy.drop_connections();
    }
}

/// One command of the protocol, and a call that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Read,
    ReadMany,
    Ttl,
    Lease,
    Fill,
    Release,
    Renew,
    Touch,
    /// How, and which of its commands.
    Invalidate(How, &'static str),
}

const VERBS: [Verb; 20] = {
    use Verb::*;
    [
        Read,
        ReadMany,
        Ttl,
        Lease,
        Fill,
        Release,
        Renew,
        Touch,
        Invalidate(How::Set, "SET"),
        Invalidate(How::Key, "INVALIDATE"),
        Invalidate(How::Many, "INVALIDATE"),
        Invalidate(How::Keyspace, "UNLINK"),
        Invalidate(How::Keyspace, "PUBLISH"),
        Invalidate(How::Tenant, "UNLINK"),
        Invalidate(How::Tenant, "PUBLISH"),
        Invalidate(How::Pattern, "UNLINK"),
        Invalidate(How::Pattern, "PUBLISH"),
        Invalidate(How::Pattern, "SCAN"),
        // The keys themselves, and the last notice.
        Invalidate(How::Pattern, "second UNLINK"),
        Invalidate(How::Pattern, "second PUBLISH"),
    ]
};

/// A process whose link spoils the reply to one command, and one that sees what came of it.
struct Case {
    proxy: Proxy,
    mine: Scoped,
    observer: Scoped,
    key: Key<String>,
}

impl Case {
    async fn new(server: &Server, tenant: &str) -> Self {
        let proxy = Proxy::start(server);
        let builder = one_connection(proxy.url()).op_timeout(Duration::from_millis(300));
        let mine = builder.lease(Duration::from_millis(600)).connect().await.unwrap().tenant(tenant).unwrap();
        let observer = one_connection(&server.url()).connect().await.unwrap().tenant(tenant).unwrap();
        // Warm: the connection is made.
        eventually("connected", async || mine.get(&REPORTS.key("warm")).await.is_ok()).await;
        Self { proxy, mine, observer, key: REPORTS.key("x-1") }
    }

    async fn run(&self, verb: Verb, spoil: Spoil) {
        let what = format!("{spoil:?} at {verb:?}");
        let Self { proxy, mine, observer, key } = self;
        let fetches = AtomicUsize::new(0);
        let fetch = || async {
            fetches.fetch_add(1, Ordering::SeqCst);
            fetched("fetched").await
        };
        match verb {
            Verb::Read | Verb::ReadMany => {
                observer.set(key, "stored".to_owned()).await.unwrap();
                proxy.spoil_next("MGET", spoil);
                let value = if verb == Verb::Read {
                    mine.try_get_or_fetch(key, fetch).await.unwrap()
                } else {
                    let rows = |missing: Vec<Key<String>>| {
                        fetches.fetch_add(1, Ordering::SeqCst);
                        ready(Ok::<_, ()>(missing.into_iter().map(|key| (key, "fetched".to_owned()))))
                    };
                    mine.try_get_or_fetch_many(&[key.clone(), REPORTS.key("y")], rows).await.unwrap().remove(0).unwrap()
                };
                // One that broke is asked again on another connection; one that is lost leads to the fetch.
                let from = if fetches.load(Ordering::SeqCst) > 0 && verb == Verb::Read { "fetched" } else { "stored" };
                assert!(*value == from || (spoil == Spoil::Lose && *value == "fetched"), "{what}: {value}");
            }
            Verb::Ttl => {
                observer.set(key, "stored".to_owned()).await.unwrap();
                proxy.spoil_next("GETRANGE", spoil);
                match mine.exists(key).await {
                    Ok(exists) => assert!(exists, "{what}"),
                    Err(error) => assert!(error.is_unavailable() && spoil == Spoil::Lose, "{what}: {error}"),
                }
            }
            Verb::Lease | Verb::Fill => {
                proxy.spoil_next(if verb == Verb::Lease { "LEASE" } else { "FILL" }, spoil);
                assert_eq!(*mine.try_get_or_fetch(key, fetch).await.unwrap(), "fetched", "{what}");
                assert_eq!(fetches.load(Ordering::SeqCst), 1, "{what}");
                let seen = observer.try_get_or_fetch(key, || fetched("theirs")).await.unwrap();
                assert!(*seen == "fetched" || *seen == "theirs", "{what}");
            }
            Verb::Release => {
                proxy.spoil_next("RELEASE", spoil);
                let failed = mine.try_get_or_fetch(key, || ready(Err::<String, _>("as a test"))).await;
                assert_eq!(failed.unwrap_err(), "as a test", "{what}");
                // Given back, or run out after its period.
                assert_eq!(*observer.try_get_or_fetch(key, || fetched("theirs")).await.unwrap(), "theirs", "{what}");
            }
            Verb::Renew => {
                proxy.spoil_next("RENEW", spoil);
                let slow = || async {
                    proxy.until("RENEW", 2).await;
                    fetch().await
                };
                assert_eq!(*mine.try_get_or_fetch(key, slow).await.unwrap(), "fetched", "{what}");
            }
            Verb::Touch => {
                observer.set(key, "stored".to_owned()).await.unwrap();
                proxy.spoil_next("TOUCH", spoil);
                match mine.touch(key).await {
                    Ok(touched) => assert!(touched, "{what}"),
                    Err(error) => assert!(error.is_unavailable() && spoil == Spoil::Lose, "{what}: {error}"),
                }
            }
            Verb::Invalidate(how, command) => {
                observer.set(key, "old".to_owned()).await.unwrap();
                let second = command.strip_prefix("second ");
                let wanted = second.unwrap_or(command);
                proxy.reset();
                if second.is_none() {
                    proxy.spoil_next(wanted, spoil);
                } else {
                    proxy.set(Fault::HoldRepliesTo("SCAN"));
                }
                let invalidating = how.invalidate(mine, key);
                let spoiling = async {
                    if second.is_some() {
                        proxy.until("SCAN", 1).await;
                        proxy.spoil_next(wanted, spoil);
                        proxy.set(Fault::None);
                    }
                };
                let (outcome, ()) = tokio::join!(invalidating, spoiling);
                // Where only the connection was lost, the same call tries again; a sweep begins again later.
                let may_pend = spoil == Spoil::Lose || matches!(how, How::Pattern);
                assert!(outcome.is_applied() || may_pend, "{what}: {outcome:?}");
                let is_old = async || observer.get(key).await.unwrap().is_some_and(|value| *value == "old");
                if outcome.is_applied() {
                    assert!(!is_old().await, "{what}: not applied");
                } else {
                    assert_eq!(mine.get(key).await.unwrap(), None, "{what}: a miss here at once");
                    eventually(&what, async || !is_old().await).await;
                }
            }
        }
        is_used_again(mine).await;
    }
}

/// G1, G5, at every command of the protocol: the call gives what it must, an invalidation without an acknowledgement is
/// sent again, and afterwards the link is used as before.
async fn at_every_command(spoil: Spoil) {
    let server = Server::start();
    let runs = VERBS.iter().enumerate().map(|(at, verb)| {
        let server = &server;
        async move {
            let case = Case::new(server, &format!("tenant-{at}")).await;
            in_time(&format!("{spoil:?} at {verb:?}"), case.run(*verb, spoil)).await;
        }
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn a_reply_that_breaks_off_at_any_command_costs_no_correct_answer() {
    at_every_command(Spoil::Truncate).await;
}

#[tokio::test]
async fn a_reply_that_is_no_protocol_at_any_command_costs_no_correct_answer() {
    at_every_command(Spoil::Garble).await;
}

#[tokio::test]
async fn a_reply_that_is_lost_at_any_command_is_made_up_for() {
    at_every_command(Spoil::Lose).await;
}

/// G3: the acknowledgement of the subscription breaks off or never comes; the link is made again.
#[tokio::test]
async fn a_subscription_whose_acknowledgement_is_lost_is_made_again() {
    let server = Server::start();
    let runs = [Spoil::Truncate, Spoil::Lose].map(|spoil| {
        let server = &server;
        async move {
            let proxy = Proxy::start(server);
            proxy.spoil_next("SUBSCRIBE", spoil);
            let builder = Cache::builder().url(proxy.url()).min_idle(1).connect_timeout(Duration::from_secs(1));
            let mine = acme(builder.op_timeout(Duration::from_secs(1))).await;
            until_linked(&mine, &proxy).await;
            assert!(proxy.count("SUBSCRIBE") > 0 || proxy.accepted() > 2, "{spoil:?}: nothing was spoiled");
        }
    });
    futures::future::join_all(runs).await;
}
