//! Two processes' caches before one server, or one cache in this process alone, and calls that keep a log.

use std::{
    sync::{
        Arc, Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cache_core::{Cache, Keyspace, Scoped, TtlProfile, cached};
use futures::future::{BoxFuture, join_all};
use tokio::task::JoinHandle;

use super::{
    cut::{Cut, When, soon, until},
    support::{Fault, Proxy, Server},
};

/// Who waits for a lease to run out has waited for too long.
pub(crate) const LEASE: Duration = Duration::from_secs(60);
const REPORT: TtlProfile = TtlProfile::new("report", Duration::from_secs(3_600));
pub(crate) const REPORTS: Keyspace<String> = REPORT.of();

/// What the fetches for one case did.
#[derive(Debug, Default)]
pub(crate) struct Log {
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// Dropped, or panicked, before they ended.
    cut: AtomicUsize,
}

impl Log {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub(crate) fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    pub(crate) fn cut(&self) -> usize {
        self.cut.load(Ordering::SeqCst)
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Running { log: self.clone(), ended: false }
    }
}

/// A fetch under way.
pub(crate) struct Running {
    log: Arc<Log>,
    ended: bool,
}

impl Running {
    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let count = if self.ended { &self.log.ended } else { &self.log.cut };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// A fetch that waits twice.
pub(crate) async fn fetch(log: Arc<Log>) -> Result<String, String> {
    let running = log.begin();
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
    running.end();
    Ok("new".to_owned())
}

/// The annotated function: the same entries as `REPORTS` has.
#[cached(profile = REPORT, key = "{id}", skip(log), cache = cache)]
pub(crate) async fn report(cache: &Cache, tenant_id: &str, id: &str, log: Arc<Log>) -> Result<String, String> {
    let _ = (cache, tenant_id, id);
    fetch(log).await
}

/// Every verb that fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetcher {
    GetOrFetch,
    TryGetOrFetch,
    Shared,
    Many,
    Annotated,
}

impl Fetcher {
    pub(crate) const ALL: [Self; 5] =
        [Self::GetOrFetch, Self::TryGetOrFetch, Self::Shared, Self::Many, Self::Annotated];

    pub(crate) fn call(self, cache: &Cache, tenant: &str, log: &Arc<Log>) -> BoxFuture<'static, String> {
        let (cache, tenant, log) = (cache.clone(), tenant.to_owned(), log.clone());
        Box::pin(async move {
            let (scope, key) = (cache.tenant(&*tenant).unwrap(), REPORTS.key("x"));
            match self {
                Self::GetOrFetch => (*scope.get_or_fetch(&key, || async { fetch(log).await.unwrap() }).await).clone(),
                Self::TryGetOrFetch => (*scope.try_get_or_fetch(&key, || fetch(log)).await.unwrap()).clone(),
                Self::Shared => (*scope.try_get_or_fetch_shared(&key, || fetch(log)).await.unwrap()).clone(),
                Self::Many => {
                    let fetch = async |missing: Vec<cache_core::Key<String>>| {
                        let value = fetch(log.clone()).await?;
                        Ok::<_, String>(missing.into_iter().map(move |key| (key, value.clone())))
                    };
                    let values = scope.try_get_or_fetch_many(std::slice::from_ref(&key), fetch).await.unwrap();
                    (**values[0].as_ref().unwrap()).clone()
                }
                Self::Annotated => report(&cache, &tenant, "x", log).await.unwrap(),
            }
        })
    }
}

/// Where the calls run.
pub(crate) struct World {
    redis: Option<(Server, Proxy)>,
    /// The cache whose calls are dropped; it reaches the server through the proxy, over one connection.
    pub(crate) mine: Cache,
    /// Another process's cache. Without a server the same one.
    pub(crate) other: Cache,
    /// Sees what the server holds: it keeps nothing near. Without a server the same cache.
    pub(crate) observer: Cache,
}

impl World {
    pub(crate) async fn with_redis() -> Self {
        Self::with_redis_and(|builder| builder).await
    }

    pub(crate) async fn with_redis_and(settings: impl Fn(cache_core::Builder) -> cache_core::Builder) -> Self {
        count_panics();
        let server = Server::start();
        let proxy = Proxy::start(&server);
        let builder = |url: &str| {
            let builder = Cache::builder().url(url).op_timeout(Duration::from_secs(20)).lease(LEASE);
            settings(builder.max_fetch(2 * LEASE).pool_size(1).min_idle(1))
        };
        let mine = builder(proxy.url()).connect().await.unwrap();
        let other = builder(&server.url()).connect().await.unwrap();
        let observer = builder(&server.url()).near_bytes(0).connect().await.unwrap();
        Self { redis: Some((server, proxy)), mine, other, observer }
    }

    /// To be called where time is paused: a wait for a lease is then seen at once.
    pub(crate) fn embedded() -> Self {
        count_panics();
        let mine = Cache::builder().tokio_clock().lease(LEASE).max_fetch(2 * LEASE).build().unwrap();
        Self { redis: None, other: mine.clone(), observer: mine.clone(), mine }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.redis.as_ref().unwrap().0
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        &self.redis.as_ref().unwrap().1
    }

    pub(crate) fn whens(&self) -> &'static [When] {
        if self.redis.is_some() { &[When::AtOnce, When::InFlight, When::Woken] } else { &[When::AtOnce, When::Woken] }
    }

    /// The same with others that want what `call` is to fetch, `mine` in its process and `theirs` in another. `call`
    /// is the first to look and to lead. Where it is polled beyond that, `mine`, which miss `keys` keys each, have
    /// joined it, and it has the lease before `theirs` ask for one.
    pub(crate) async fn cut_before<R, O: Send + 'static>(
        &self,
        mut call: Cut<R>,
        (when, polls): (When, usize),
        keys: usize,
        mine: Vec<BoxFuture<'static, O>>,
        theirs: Vec<BoxFuture<'static, O>>,
    ) -> (bool, Vec<JoinHandle<O>>) {
        let missed = self.misses();
        // Its first poll looks near, and in Redis; the one after that begins the flight.
        let leads = if self.redis.is_some() { 2 } else { 1 };
        let has_joined = polls > 2 || (polls > 0 && leads == 1);
        call.poll_to(polls.min(if has_joined { leads } else { 1 })).await;
        if polls > 1 {
            call.wait_until_woken().await;
        }
        let all = ((1 + mine.len()) * keys) as u64;
        let mut others: Vec<_> = mine.into_iter().map(tokio::spawn).collect();
        if has_joined {
            roughly(1_000, || self.misses() - missed >= all).await;
        }
        others.extend(theirs.into_iter().map(tokio::spawn));
        (self.cut(call, when, polls).await, others)
    }

    /// Polls a call until it was polled `polls` times and drops it. Says whether it had ended.
    pub(crate) async fn cut<R>(&self, mut call: Cut<R>, when: When, polls: usize) -> bool {
        if when == When::InFlight {
            let proxy = self.proxy();
            call.poll_to(polls - 1).await;
            if !call.has_ended() {
                call.wait_until_woken().await;
                proxy.reset();
                proxy.set(Fault::HoldReplies);
                call.poll_to(polls).await;
                // It may be where it sends nothing.
                roughly(10, || proxy.round_trips() > 0).await;
            }
        } else {
            call.poll_to(polls).await;
            if when == When::Woken && !call.has_ended() {
                call.wait_until_woken().await;
            }
        }
        let ended = call.has_ended();
        drop(call);
        if let Some((_, proxy)) = &self.redis {
            proxy.set(Fault::None);
        }
        ended
    }

    /// When this returns, whatever calls and tasks of `mine` had sent, or were ready to send, has been executed: there
    /// is one connection.
    pub(crate) async fn executed(&self) {
        if self.redis.is_some() {
            for _ in 0..2 {
                assert!(self.mine.health().await.connected);
            }
        }
    }

    /// A further cache behind the proxy, which connects when it is first used.
    pub(crate) fn unconnected(&self) -> Cache {
        let builder = Cache::builder().url(self.proxy().url()).op_timeout(Duration::from_secs(20)).lease(LEASE);
        builder.max_fetch(2 * LEASE).pool_size(1).min_idle(1).build().unwrap()
    }

    /// How many clients the server has, this question included, once both caches that have a link hold it.
    pub(crate) async fn clients(&self) -> usize {
        let links = || self.server().cli(&["PUBSUB", "NUMSUB", "cache:~n"]);
        until("both links are up", async || links().ends_with("\n2")).await;
        self.server().cli(&["CLIENT", "LIST"]).lines().count()
    }

    pub(crate) async fn until_no_more_clients_than(&self, before: usize, case: &str) {
        let no_more = async || self.server().cli(&["CLIENT", "LIST"]).lines().count() <= before;
        until(&format!("{case}: connections stay"), no_more).await;
    }

    pub(crate) fn leases(&self) -> String {
        self.redis.as_ref().map(|(server, _)| server.cli(&["KEYS", "*~l"])).unwrap_or_default()
    }

    pub(crate) fn misses(&self) -> u64 {
        self.mine.stats().total.misses
    }

    /// Of all caches: fetches begun, and those cut.
    fn fetches(&self) -> (usize, usize) {
        let caches = if self.redis.is_some() { vec![&self.mine, &self.other] } else { vec![&self.mine] };
        let counts = caches.iter().map(|cache| cache.stats().total);
        let (begun, failed) =
            counts.fold((0, 0), |(begun, failed), next| (begun + next.fetches, failed + next.failed_fetches));
        (usize::try_from(begun).unwrap(), usize::try_from(failed).unwrap())
    }

    /// Nothing is left behind: no lease, no fetch, no flight, no panic; counters say what happened.
    pub(crate) async fn check_counters_and_leaks(self, tenants: &[(String, Arc<Log>)]) {
        let sum = |count: fn(&Log) -> usize| tenants.iter().map(|(_, log)| count(log)).sum::<usize>();
        assert_eq!(self.fetches(), (sum(Log::begun), sum(Log::cut)), "fetches begun, and those that were cut");
        self.check_leaks(tenants).await;
    }

    pub(crate) async fn check_leaks(self, tenants: &[(String, Arc<Log>)]) {
        until("a lease is left", async || self.leases().is_empty()).await;
        for (tenant, log) in tenants {
            until("something of a fetch is left", async || Arc::strong_count(log) == 1).await;
            assert_eq!(log.begun(), log.ended() + log.cut(), "{tenant}");
            assert!(soon("invalidating", self.mine(tenant).invalidate_all()).await.is_applied());
        }
        // With nothing stored each key is fetched, at once and once.
        let (again, others) = (Log::new(), Log::new());
        let calls = tenants.iter().flat_map(|(tenant, _)| {
            [(&self.mine, &again), (&self.other, &others)]
                .map(|(cache, log)| Fetcher::TryGetOrFetch.call(cache, tenant, log))
        });
        let values = soon("a new call for every key", join_all(calls)).await;
        assert!(values.iter().all(|value| value == "new"));
        assert_eq!(again.ended() + others.ended(), tenants.len());
        until("a lease is left", async || self.leases().is_empty()).await;
        let near = self.mine.stats().near_entries;
        assert!(near <= 8 * tenants.len() as u64, "{near} entries near, and {} tenants of few keys", tenants.len());
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "something of the library panicked");
    }
}

impl World {
    pub(crate) fn mine(&self, tenant: &str) -> Scoped {
        self.mine.tenant(tenant).unwrap()
    }

    pub(crate) fn other(&self, tenant: &str) -> Scoped {
        self.other.tenant(tenant).unwrap()
    }

    /// What the server holds under `x`.
    pub(crate) async fn held(&self, tenant: &str) -> Option<String> {
        get(&self.observer, tenant).await
    }
}

pub(crate) async fn get(cache: &Cache, tenant: &str) -> Option<String> {
    let value = soon("get", cache.tenant(tenant).unwrap().get(&REPORTS.key("x"))).await.unwrap();
    value.map(|value| (*value).clone())
}

/// Gives others some milliseconds to get where the case wants them. Only shapes the interleaving: what is checked holds
/// for all.
pub(crate) async fn roughly(limit: usize, condition: impl Fn() -> bool) {
    for _ in 0..limit {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics, in whatever task, that no test made on purpose.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.location().is_some_and(|location| location.file().contains("tests/")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            report(info);
        }));
    });
}
