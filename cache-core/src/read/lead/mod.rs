//! Steps *lease*, *fetch* and *store* of the picture: what the leader of a flight does for all who wait.
//!
//! The fetch may borrow its arguments, so the leader runs it inline and renews its lease meanwhile. Wherever this
//! future is dropped, two guards act: the flight hands over to the next waiter, and the lease is released.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use rand::RngExt as _;
use tokio::sync::futures::Notified;

use crate::{
    clock::{Instant, sleep},
    error::Error,
    flight::{Ending, Event, Leader, nesting},
    near::{Cached, Watch, erase},
    read::call::Call,
    remote::{Budget, Lease, Leased, Remote},
    stats::Counters,
    sync::Arc,
    target::Verdict,
    value::{
        codec::{CacheValue, encoded_len},
        envelope::Id,
    },
    write,
};

/// How often a waiting process looks again without a backplane to wake it: jittered, growing from one to the other.
const FIRST_POLL: Duration = Duration::from_millis(4);
const LONGEST_POLL: Duration = Duration::from_millis(40);
/// How often a call that waits for the backplane's word looks whether there still is a link.
const LINK_CHECK: Duration = Duration::from_millis(200);

/// What is to become of the fetched value.
pub(crate) enum Storage {
    /// FILL under this lease.
    Fill(Box<Release>),
    /// The near tier, which is the only one.
    Alone,
    /// The near tier, for the short time that needs no confirmation: Redis is down, holds a newer type, or has not
    /// heard of an invalidation.
    Unconfirmed,
    /// Nothing: a write fence is up, or another process has fetched for too long.
    Nowhere,
}

impl Storage {
    /// The lease to FILL under.
    pub(crate) fn lease(&self) -> Option<&Release> {
        if let Self::Fill(release) = self { Some(release) } else { None }
    }

    /// Whether nothing but the cap bounds how many fetch for it.
    pub(crate) fn is_capped(&self) -> bool {
        matches!(self, Self::Unconfirmed | Self::Nowhere)
    }
}

/// Takes the lease, fetches and stores.
pub(crate) async fn lead<T: CacheValue, E>(
    mut call: Call<'_, T, E>,
    leader: Leader<'_>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
) -> Result<Cached<T>, E> {
    let state = call.state;
    // What this process has invalidated without being heard, Redis may still hold: it is not asked.
    let unconfirmed = call.newer || call.target.must_miss();
    let mut storage = match (&state.remote, unconfirmed) {
        (None, _) => Storage::Alone,
        (Some(_), true) => Storage::Unconfirmed,
        (Some(remote), false) => match take_lease(&mut call, remote, &leader, state.options.lease).await {
            Taking::Found(value, sent) => {
                call.counters.coalesced.increment();
                leader.finish(Ending::Value(erase(&value)), Some(sent));
                return Ok(value);
            }
            Taking::Storage(storage) => storage,
        },
    };
    let begun = begin(&call, &leader, &mut storage);
    let value = match run(&call, Some(&leader), &storage, fetch).await {
        Ok(value) => value,
        // The lease is released by its guard: an error is not held across an await, so it need not be `Send`.
        Err(error) => {
            leader.finish(Ending::Failed(call.share.map(|share| share.erase(&error))), None);
            return Err(error);
        }
    };
    let cost = call.state.clock.now().since(begun.asked_at);
    let accepted = store(&mut call, &leader, storage, &value, begun, cost).await;
    leader.finish(Ending::Value(erase(&value)), accepted);
    Ok(value)
}

/// Fetches for this call alone; nothing is stored.
pub(crate) async fn fetch_alone<T: CacheValue, E>(
    call: &Call<'_, T, E>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
) -> Result<Cached<T>, E> {
    run(call, None, &Storage::Nowhere, fetch).await
}

/// What comes right before a fetch: its watch, a look at this process's write fences, and the word to all who join.
pub(crate) fn begin<T: CacheValue, E>(call: &Call<'_, T, E>, leader: &Leader<'_>, storage: &mut Storage) -> Asked {
    let (asked_at, watch) = (call.state.clock.now(), call.target.watch());
    // After the watch: a fence that comes later bumps what is watched. Whatever Redis said: it may not have been asked.
    if call.target.is_fenced() {
        *storage = Storage::Nowhere;
    }
    let near = call.state.options.near_bytes > 0;
    if matches!(storage, Storage::Nowhere) || (matches!(storage, Storage::Unconfirmed) && !near) {
        // No command will accept the value, so who joins later could not take it, and would find nothing near either.
        leader.close();
    }
    leader.fetch_begins(watch);
    Asked { asked_at, watch }
}

pub(crate) enum Taking<T> {
    /// A value, and when the LEASE was sent that accepted it.
    Found(Cached<T>, Event),
    Storage(Storage),
}

/// LEASE, again and again while another process fetches, for `patience` in all.
pub(crate) async fn take_lease<T: CacheValue, E>(
    call: &mut Call<'_, T, E>,
    remote: &Arc<Remote>,
    leader: &Leader<'_>,
    patience: Duration,
) -> Taking<T> {
    let period = call.state.options.lease;
    // A little more than a period, so that a lease which nobody renews has ended by then, and is taken over.
    let patience = if patience.is_zero() { patience } else { patience + LONGEST_POLL };
    // Generations and fence must outlive the fetch, or FILL is refused.
    let ttl = call.target.fresh_ttl(false).unwrap_or(period).max(call.state.options.max_fetch + period);
    let mut lease = Lease::new(&call.target.key, rand::random());
    let waiter = call.state.waiters.register(call.target.key.as_str());
    let (mut waited, mut pause) = (Duration::ZERO, FIRST_POLL);
    loop {
        // Before the lease is asked for: a release right after the answer is then not missed.
        let mut released = pin!(waiter.released());
        released.as_mut().enable();
        let (asked_at, watch) = (call.state.clock.now(), call.target.watch());
        leader.polled(asked_at);
        if call.target.must_miss() {
            return Taking::Storage(Storage::Unconfirmed);
        }
        if let Err(error) = remote.connect(&mut call.budget, &mut lease).await {
            call.state.remote_failed("lease", call.counters, &error);
            return Taking::Storage(Storage::Unconfirmed);
        }
        let sent = leader.sending();
        // From here on the lease may be ours, whatever becomes of this call.
        let mut release = Release::new(remote, &lease, call.state.options.op_timeout);
        let leased = remote.lease(&mut call.budget, &mut lease, period, ttl, call.seen.as_deref()).await;
        if leased.is_ok() {
            release.lease = None;
        } else if release.token() != lease.token {
            // Sent under two tokens: both are given back.
            drop(Release::new(remote, &lease, call.state.options.op_timeout));
        }
        match leased {
            Ok(Leased::Granted) => {
                release.lease = Some(lease);
                return Taking::Storage(Storage::Fill(Box::new(release)));
            }
            Ok(Leased::Found(read)) => match call.target.accept(&read, asked_at, watch, call.slot) {
                Verdict::Hit(value) => return Taking::Found(value, sent),
                Verdict::Miss { seen } => call.seen = seen,
                Verdict::Newer => return Taking::Storage(Storage::Unconfirmed),
            },
            Ok(Leased::Fenced) => return Taking::Storage(Storage::Nowhere),
            Ok(Leased::Taken { holder, left }) => {
                // Redis answered in time; how often it is asked while waiting is no delay of its making.
                call.budget = Budget::new(call.state.options.op_timeout);
                if waited >= patience || nesting::holds(&holder) {
                    return Taking::Storage(Storage::Nowhere);
                }
                let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                // One period in all, however many leaders follow one another.
                let left = left.min(patience.saturating_sub(waited));
                let turn = jittered.min(left).max(Duration::from_millis(1));
                pause = (pause * 5 / 4).min(LONGEST_POLL);
                let begun = call.state.clock.now();
                wait_for_release(call, leader, released, turn, left).await;
                waited += call.state.clock.now().since(begun).max(Duration::from_millis(1));
            }
            Err(error) => {
                call.state.remote_failed("lease", call.counters, &error);
                return Taking::Storage(Storage::Unconfirmed);
            }
        }
    }
}

/// Waits until the lease of another process ends: until the backplane says so or its period is over, or, while there
/// is no link, for one `turn`.
async fn wait_for_release<T, E>(
    call: &Call<'_, T, E>,
    leader: &Leader<'_>,
    mut released: Pin<&mut Notified<'_>>,
    turn: Duration,
    mut left: Duration,
) {
    let is_linked = || call.state.near.is_linked(call.state.clock.now());
    loop {
        let slice = if is_linked() { LINK_CHECK.min(left) } else { turn };
        tokio::select! {
            biased;
            () = released.as_mut() => return,
            () = sleep(slice) => {}
        }
        leader.polled(call.state.clock.now());
        left = left.saturating_sub(slice);
        if left.is_zero() || !is_linked() {
            return;
        }
    }
}

/// Runs the fetch, and beside it whatever shows that this leader is alive.
async fn run<T: CacheValue, E>(
    call: &Call<'_, T, E>,
    leader: Option<&Leader<'_>>,
    storage: &Storage,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
) -> Result<Cached<T>, E> {
    let mut outcome = Outcome { counters: call.counters, failed: true };
    let release = storage.lease();
    let token = release.map_or([0; 16], Release::token);
    let frame = (call.target.key.as_str(), call.target.binding, token);
    // Beside the beat: a leader that waits for a permit is alive.
    let mut fetch = pin!(async {
        let _permit = if storage.is_capped() { call.state.cap.permit(call.state.options.lease).await } else { None };
        call.counters.fetches.increment();
        nesting::within(call.state.id, [frame], fetch).await
    });
    let mut beat = pin!(beat(call, leader, release));
    let result = beside(&mut fetch, &mut beat).await;
    outcome.failed = result.is_err();
    result
}

/// Polls `background`, which never ends, whenever `fetch` is waiting.
pub(crate) async fn beside<R, B>(
    mut fetch: impl Future<Output = R> + Unpin,
    mut background: impl Future<Output = B> + Unpin,
) -> R {
    poll_fn(|context| {
        if let Poll::Ready(result) = Pin::new(&mut fetch).poll(context) {
            return Poll::Ready(result);
        }
        let _ = Pin::new(&mut background).poll(context);
        Poll::Pending
    })
    .await
}

/// Three times per lease period: says that the leader is alive, and renews the lease until the fetch has taken
/// `max_fetch`.
pub(crate) async fn beat<T, E>(call: &Call<'_, T, E>, leader: Option<&Leader<'_>>, release: Option<&Release>) {
    let Some(leader) = leader else { return std::future::pending().await };
    let (period, mut renewals) = (call.state.options.lease, call.state.options.max_fetch);
    let mut renew = release;
    loop {
        sleep(period / 3).await;
        leader.polled(call.state.clock.now());
        renewals = renewals.saturating_sub(period / 3);
        let Some(Release { remote, lease: Some(lease), op_timeout }) = renew.filter(|_| !renewals.is_zero()) else {
            continue;
        };
        match remote.renew(&mut Budget::new(*op_timeout), lease, period).await {
            Ok(true) => {}
            Ok(false) => {
                // Doomed: the value will be refused, so nobody need wait for it.
                leader.close();
                renew = None;
            }
            Err(error) => call.state.remote_failed("renew", call.counters, &error),
        }
    }
}

/// What was known before the fetch began.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) asked_at: Instant,
    pub(crate) watch: Watch,
}

/// Stores a fetched value. Returns the event at which a command was sent that accepted it, if one did.
pub(crate) async fn store<T: CacheValue, E>(
    call: &mut Call<'_, T, E>,
    leader: &Leader<'_>,
    storage: Storage,
    value: &Cached<T>,
    begun: Asked,
    cost: Duration,
) -> Option<Event> {
    let ttl = call.target.fresh_ttl(value.is_none());
    match (storage, ttl) {
        (Storage::Fill(release), Some(ttl)) => fill(call, leader, *release, value, begun, ttl, cost).await,
        (Storage::Fill(release), None) => {
            release.now(&mut call.budget).await;
            None
        }
        (Storage::Alone, ttl) => store_alone(call, leader, value, ttl, begun.watch),
        (Storage::Unconfirmed, Some(ttl)) => {
            keep_unconfirmed(call, value, ttl, &begun);
            None
        }
        (Storage::Unconfirmed, None) | (Storage::Nowhere, _) => None,
    }
}

async fn fill<T: CacheValue, E>(
    call: &mut Call<'_, T, E>,
    leader: &Leader<'_>,
    mut release: Release,
    value: &Cached<T>,
    begun: Asked,
    ttl: Duration,
    cost: Duration,
) -> Option<Event> {
    let encoded = match write::encode(call.target, &release.remote, value, ttl, cost) {
        Ok(encoded) => encoded,
        Err(error) => {
            call.target.not_stored(call.slot, &error);
            release.now(&mut call.budget).await;
            return None;
        }
    };
    let (sent, asked_at, len) = (leader.sending(), call.state.clock.now(), encoded.len());
    // FILL drops the lease, in a task that outlives this call.
    let lease = release.lease.take()?;
    match write::fill(&release.remote, &mut call.budget, release.op_timeout, lease, encoded).await {
        Ok(true) => {
            call.counters.stored.increment();
            call.target.keep_confirmed(value, ttl, asked_at, begun.watch, call.slot, len);
            Some(sent)
        }
        Ok(false) => {
            call.counters.refused.increment();
            None
        }
        Err(error) => {
            call.target.not_stored(call.slot, &error);
            keep_unconfirmed(call, value, ttl, &begun);
            None
        }
    }
}

/// Without Redis the check of the stripes is the verdict: made after everybody in the flight has joined.
fn store_alone<T: CacheValue, E>(
    call: &Call<'_, T, E>,
    leader: &Leader<'_>,
    value: &Cached<T>,
    ttl: Option<Duration>,
    watch: Watch,
) -> Option<Event> {
    let checked = leader.sending();
    if !call.state.near.stripes.unchanged(&watch) {
        call.counters.refused.increment();
        return None;
    }
    if let Some(ttl) = ttl {
        match call.target.keep_alone(value, ttl, watch, call.slot) {
            Ok(()) => call.counters.stored.increment(),
            Err(error) => call.target.not_stored(call.slot, &error),
        }
    }
    Some(checked)
}

/// Keeps a value that no command accepted for as long as that is safe, counted from before its fetch.
fn keep_unconfirmed<T: CacheValue, E>(call: &Call<'_, T, E>, value: &Cached<T>, ttl: Duration, begun: &Asked) {
    let Ok(len) = value.as_deref().map_or(Ok(0), encoded_len) else { return };
    if call.target.check_len(len).is_ok() {
        call.target.keep_unconfirmed(value, ttl, begun.asked_at, begun.watch, call.slot, len);
    }
}

/// Counts a fetch that fails, panics or is dropped.
pub(crate) struct Outcome<'a> {
    pub(crate) counters: &'a Counters,
    pub(crate) failed: bool,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        if self.failed {
            self.counters.failed_fetches.increment();
        }
    }
}

/// The duty to give the lease back. Dropped with it, that is done in the background.
pub(crate) struct Release {
    remote: Arc<Remote>,
    lease: Option<Lease>,
    op_timeout: Duration,
}

impl Release {
    fn new(remote: &Arc<Remote>, lease: &Lease, op_timeout: Duration) -> Self {
        Self { remote: remote.clone(), lease: Some(lease.clone()), op_timeout }
    }

    pub(crate) fn token(&self) -> Id {
        self.lease.as_ref().map_or([0; 16], |lease| lease.token)
    }

    /// Gives the lease back. Stays responsible until that is done.
    async fn now(mut self, budget: &mut Budget) {
        if let Some(lease) = &self.lease
            && self.remote.release(budget, lease).await.is_ok()
        {
            self.lease = None;
        }
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        // Without a runtime the lease ends by itself after its period.
        if let Some(lease) = self.lease.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (remote, op_timeout) = (self.remote.clone(), self.op_timeout);
            runtime.spawn(async move {
                let released: Result<(), Error> = remote.release(&mut Budget::new(op_timeout), &lease).await;
                drop(released);
            });
        }
    }
}
