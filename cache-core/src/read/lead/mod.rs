//! Steps *lease*, *fetch* and *store* of the picture: what the leader of a flight does for all who wait. A batch leads many
//! flights at once: a lease each, one fetch, a store each.
//!
//! The fetch may borrow its arguments, so the leader runs it inline and renews its lease meanwhile. Wherever this
//! future is dropped, two guards act: the flight hands over to the next waiter, and the lease is released.

mod fetch;
mod lease;
mod store;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use futures_util::future::join_all;

use self::lease::{Release, Taking};
use super::call::{Asked, Call};
use crate::{
    clock::sleep,
    flight::{BEATS, Ending, Leader, share::Share},
    near::{Cached, erase},
    remote::Budget,
    stats::Edge,
    value::{codec::CacheValue, envelope::Id},
};

/// A missing key that this call fetches for all who wait.
pub(crate) struct Led<'c, 'a, T> {
    /// Its place in the batch.
    pub(crate) at: usize,
    pub(crate) call: &'c mut Call<'a, T>,
    pub(crate) leader: Leader<'a>,
}

/// A key whose fetch may begin, and what is to become of the value.
struct Ready<'c, 'a, T> {
    at: usize,
    call: &'c mut Call<'a, T>,
    leader: &'c Leader<'a>,
    storage: Storage,
    /// Of right before the fetch.
    asked: Asked,
}

/// Most keys of a batch whose leases are asked for, or whose values are stored, at a time: what a slow server does within a
/// short `op_timeout`.
const CHUNK: usize = 128;

/// The time for commands of a batch. Chunks that Redis answers in time take none of it from the next one; once a chunk has
/// used it up, the others go on without Redis.
struct Time {
    op_timeout: Duration,
    least: Budget,
}

impl Time {
    fn new(op_timeout: Duration) -> Self {
        Self { op_timeout, least: Budget::new(op_timeout) }
    }

    /// Gives a call of the next chunk what is left for it.
    fn give<T>(&self, call: &mut Call<'_, T>) {
        call.budget = if self.is_over() { self.least } else { call.budget };
    }

    fn spend(&mut self, left: Budget) {
        self.least = self.least.min(left);
    }

    fn is_over(&self) -> bool {
        self.least.left().is_zero()
    }

    fn left(&self) -> Budget {
        if self.is_over() { self.least } else { Budget::new(self.op_timeout) }
    }
}

/// What is to become of the fetched value.
enum Storage {
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
    fn lease(&self) -> Option<&Release> {
        if let Self::Fill(release) = self { Some(release) } else { None }
    }

    fn token(&self) -> Id {
        self.lease().map_or([0; 16], Release::token)
    }

    /// Whether nothing but the cap bounds how many fetch for it.
    fn is_capped(&self) -> bool {
        matches!(self, Self::Unconfirmed | Self::Nowhere)
    }
}

/// Takes the lease, fetches and stores, for one call.
pub(crate) async fn lead_one<'a, T: CacheValue, E>(
    call: &mut Call<'a, T>,
    leader: Leader<'a>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
    share: Option<Share<E>>,
) -> Result<Cached<T>, E> {
    let patience = call.state.options.lease;
    let led = vec![Led { at: 0, call: &mut *call, leader }];
    lead(led, patience, share, |_| async { fetch.await.map(|value| vec![value]) }).await?;
    let Some(value) = call.found.take() else { unreachable!("a leader with patience fetches") };
    Ok(value)
}

/// Takes the leases, fetches once and stores, for all keys led by a batch of at least one. What is found or fetched is
/// what the calls found.
///
/// A lease that another process holds is waited for, for `patience` in all. Without patience its key is left to a later
/// attempt, and nothing is found. Returns what is left of the time for commands.
pub(crate) async fn lead<'a, T: CacheValue, E, F: Future<Output = Result<Vec<Cached<T>>, E>>>(
    led: Vec<Led<'_, 'a, T>>,
    patience: Duration,
    share: Option<Share<E>>,
    fetch: impl FnOnce(Vec<usize>) -> F,
) -> Result<Budget, E> {
    let (leaders, led): (Vec<Leader<'a>>, Vec<_>) = led.into_iter().map(|led| (led.leader, (led.at, led.call))).unzip();
    let Some(state) = led.first().map(|(_, call)| call.state) else { return Ok(Budget::new(Duration::ZERO)) };
    let steps = async {
        let mut time = Time::new(state.options.op_timeout);
        let mut ready = Vec::with_capacity(led.len());
        let mut led = led.into_iter().zip(&leaders);
        while led.len() > 0 {
            let taking = led.by_ref().take(CHUNK).map(|((at, call), leader)| {
                time.give(call);
                take(at, call, leader, patience)
            });
            let taking: Vec<_> = taking.collect();
            for (taken, left) in all(taking.into_iter()).await {
                time.spend(left);
                ready.extend(taken);
            }
        }
        let left = time.left();
        if ready.is_empty() {
            return Ok(left);
        }
        for ready in &mut ready {
            ready.begin();
        }
        let values = match fetch::run(&ready, fetch(ready.iter().map(|ready| ready.at).collect())).await {
            Ok(values) => values,
            // The leases are released by their guards: an error is not held across an await, so it need not be `Send`.
            Err(error) => {
                for ready in &ready {
                    match share.and_then(|share| share.erase(&error)) {
                        Some(error) => ready.leader.finish(Ending::Failed(error), None),
                        None => ready.leader.hand_over(),
                    }
                }
                return Err(error);
            }
        };
        let mut storing = ready.into_iter().zip(values);
        while storing.len() > 0 {
            let stores = storing.by_ref().take(CHUNK).map(|(ready, value)| {
                time.give(ready.call);
                ready.store(value)
            });
            let stores: Vec<_> = stores.collect();
            for left in all(stores.into_iter()).await {
                time.spend(left);
            }
        }
        Ok(time.left())
    };
    // Whoever waits looks whether its leader is still polled, at any of these steps.
    let mut alive = pin!(async {
        while sleep(state.options.lease / BEATS).await {
            leaders.iter().for_each(|leader| leader.polled(state.clock.now()));
        }
        std::future::pending::<()>().await;
    });
    beside(pin!(steps), alive.as_mut()).await
}

/// Fetches for this call alone; nothing is stored.
pub(crate) async fn fetch_alone<T: CacheValue, E>(
    call: &Call<'_, T>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
) -> Result<Cached<T>, E> {
    let frame = (call.target.key.as_str(), call.target.binding, [0; 16]);
    fetch::counted(call, [frame], true, fetch).await
}

/// The lease of one key, and what is left of its time for commands. `None` where nothing is left to fetch: the value was
/// found, or another process fetches it.
async fn take<'c, 'a, T: CacheValue>(
    at: usize,
    call: &'c mut Call<'a, T>,
    leader: &'c Leader<'a>,
    patience: Duration,
) -> (Option<Ready<'c, 'a, T>>, Budget) {
    let taken = lease::take(call, leader, patience).await;
    let (left, asked) = (call.budget, call.ask());
    let ready = match taken {
        Taking::Ready(storage) => Some(Ready { at, call, leader, storage, asked }),
        Taking::Found(value, sent) => {
            call.counters.note(Edge::Coalesced);
            leader.finish(Ending::Value(erase(&value)), Some(sent));
            call.found = Some(value);
            None
        }
        Taking::Elsewhere => {
            leader.hand_over();
            None
        }
    };
    (ready, left)
}

impl<T: CacheValue> Ready<'_, '_, T> {
    /// What comes right before a fetch: its watch, a look at this process's write fences, and the word to all who join.
    fn begin(&mut self) {
        self.asked = self.call.ask();
        // After the watch: a fence that comes later bumps what is watched. Whatever Redis said: it may not have been asked.
        if self.call.target.is_fenced() {
            self.storage = Storage::Nowhere;
        }
        let near = self.call.state.options.near_bytes > 0;
        if matches!(self.storage, Storage::Nowhere) || (matches!(self.storage, Storage::Unconfirmed) && !near) {
            // No command will accept the value, so who joins later could not take it, and would find nothing near either.
            self.leader.close();
        }
        self.leader.fetch_begins(self.asked.watch);
    }

    /// Stores what was fetched, and gives it to all who wait. Returns what is left of the time for commands.
    async fn store(self, value: Cached<T>) -> Budget {
        let Self { call, leader, storage, asked, .. } = self;
        let accepted = store::store(call, leader, storage, &value, asked).await;
        leader.finish(Ending::Value(erase(&value)), accepted);
        call.found = Some(value);
        call.budget
    }
}

/// The outputs of all, which run at once. One alone, as it is outside of batches, is run without a box for it.
async fn all<F: Future>(mut futures: impl ExactSizeIterator<Item = F>) -> Vec<F::Output> {
    if futures.len() == 1
        && let Some(one) = futures.next()
    {
        return vec![one.await];
    }
    join_all(futures).await
}

/// Polls `background`, which never ends, whenever `steps` wait.
async fn beside<R>(mut steps: Pin<&mut impl Future<Output = R>>, mut background: Pin<&mut impl Future>) -> R {
    poll_fn(|context| {
        if let Poll::Ready(result) = steps.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        let _ = background.as_mut().poll(context);
        Poll::Pending
    })
    .await
}
