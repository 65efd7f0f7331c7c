//! Step *lease*: the right to fetch and store, one for all processes.

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use rand::RngExt as _;
use tokio::sync::futures::Notified;

use super::Storage;
use crate::{
    clock::sleep,
    error::Error,
    flight::{Event, Leader, nesting},
    near::Cached,
    read::call::Call,
    remote::{Budget, Lease, Leased, Remote},
    sync::Arc,
    target::Verdict,
    value::{codec::CacheValue, envelope::Id},
};

/// How often a waiting process looks again without a backplane to wake it: jittered, growing from one to the other.
const FIRST_POLL: Duration = Duration::from_millis(4);
const LONGEST_POLL: Duration = Duration::from_millis(40);
/// How often a call that waits for the backplane's word looks whether there still is a link.
const LINK_CHECK: Duration = Duration::from_millis(200);

pub(super) enum Taking<T> {
    /// A value, and when the LEASE was sent that accepted it.
    Found(Cached<T>, Event),
    /// The fetch may begin.
    Ready(Storage),
    /// Another process fetches, and there was no patience to wait for it.
    Elsewhere,
}

/// The right to fetch the key of this call.
pub(super) async fn take<T: CacheValue>(call: &mut Call<'_, T>, leader: &Leader<'_>, patience: Duration) -> Taking<T> {
    match &call.state.remote {
        None => Taking::Ready(Storage::Alone),
        // A newer binary's entry is left alone.
        Some(_) if call.newer => Taking::Ready(Storage::Unconfirmed),
        // Boxed: kilobytes of state, which a miss without Redis does not need.
        Some(remote) => Box::pin(ask(call, remote, leader, patience)).await,
    }
}

/// LEASE, again and again while another process fetches, for `patience` in all.
async fn ask<T: CacheValue>(
    call: &mut Call<'_, T>,
    remote: &Arc<Remote>,
    leader: &Leader<'_>,
    patience: Duration,
) -> Taking<T> {
    let period = call.state.options.lease;
    // A little more than a period, so that a lease which nobody renews has ended by then, and is taken over.
    let longest = if patience.is_zero() { patience } else { patience + LONGEST_POLL };
    // Generations and fence must outlive the fetch, or FILL is refused.
    let ttl = call.target.fresh_ttl(false).unwrap_or(period).max(call.state.options.max_fetch + period);
    let mut lease = Lease::new(&call.target.key, rand::random());
    let waiter = call.state.waiters.register(call.target.key.as_str());
    let (mut waited, mut pause) = (Duration::ZERO, FIRST_POLL);
    loop {
        // Before the lease is asked for: a release right after the answer is then not missed.
        let mut released = pin!(waiter.released());
        released.as_mut().enable();
        let asked = call.ask();
        // What this process has invalidated without being heard, Redis may still hold: it is not asked.
        if call.target.must_miss() {
            return Taking::Ready(Storage::Unconfirmed);
        }
        if let Err(error) = remote.connect(&mut call.budget, &mut lease).await {
            call.state.remote_failed("lease", call.counters, &error);
            return Taking::Ready(Storage::Unconfirmed);
        }
        let sent = leader.sending();
        // From here on the lease may be ours, whatever becomes of this call.
        let mut release = Release::new(remote, &lease, call.state.options.op_timeout);
        let purpose = call.target.purpose::<T>();
        let leased = remote.lease(&mut call.budget, &mut lease, period, ttl, &purpose, call.seen.as_deref()).await;
        if leased.is_ok() {
            release.lease = None;
        } else if release.token() != lease.token {
            // Sent under two tokens: both are given back.
            drop(Release::new(remote, &lease, call.state.options.op_timeout));
        }
        match leased {
            Ok(Leased::Granted) => {
                release.lease = Some(lease);
                return Taking::Ready(Storage::Fill(Box::new(release)));
            }
            Ok(Leased::Found(read)) => match call.target.accept(&read, asked.at, asked.watch, call.slot) {
                Verdict::Hit(value) => return Taking::Found(value, sent),
                Verdict::Miss { seen } => call.seen = seen,
                Verdict::Newer => return Taking::Ready(Storage::Unconfirmed),
            },
            Ok(Leased::Fenced) => return Taking::Ready(Storage::Nowhere),
            Ok(Leased::Taken { holder, left }) => {
                // Redis answered in time; how often it is asked while waiting is no delay of its making.
                call.budget = Budget::new(call.state.options.op_timeout);
                if nesting::holds(&holder) {
                    return Taking::Ready(Storage::Nowhere);
                }
                if waited >= longest {
                    return if patience.is_zero() { Taking::Elsewhere } else { Taking::Ready(Storage::Nowhere) };
                }
                let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                // One period in all, however many leaders follow one another.
                let left = left.min(longest.saturating_sub(waited));
                let turn = jittered.min(left).max(Duration::from_millis(1));
                pause = (pause * 5 / 4).min(LONGEST_POLL);
                let begun = call.state.clock.now();
                wait_for_release(call, released, turn, left).await;
                waited += call.state.clock.now().since(begun).max(Duration::from_millis(1));
            }
            Err(error) => {
                call.state.remote_failed("lease", call.counters, &error);
                return Taking::Ready(Storage::Unconfirmed);
            }
        }
    }
}

/// Waits until the lease of another process ends: until the backplane says so or its period is over, or, while there
/// is no link, for one `turn`.
async fn wait_for_release<T>(
    call: &Call<'_, T>,
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
            _ = sleep(slice) => {}
        }
        left = left.saturating_sub(slice);
        if left.is_zero() || !is_linked() {
            return;
        }
    }
}

/// The duty to give the lease back. Dropped with it, that is done in the background.
pub(super) struct Release {
    pub(super) remote: Arc<Remote>,
    pub(super) lease: Option<Lease>,
    pub(super) op_timeout: Duration,
}

impl Release {
    fn new(remote: &Arc<Remote>, lease: &Lease, op_timeout: Duration) -> Self {
        Self { remote: remote.clone(), lease: Some(lease.clone()), op_timeout }
    }

    pub(super) fn token(&self) -> Id {
        self.lease.as_ref().map_or([0; 16], |lease| lease.token)
    }

    /// Gives the lease back. Stays responsible until that is done.
    pub(super) async fn now(mut self, budget: &mut Budget) {
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
