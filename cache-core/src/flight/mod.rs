//! Step *single-flight* of the picture: one leader per key and process, and followers that wait for it.
//!
//! The hand-out law is kept here. Events of a flight are numbered: a follower notes the number at which it joined,
//! the leader notes the numbers at which its fetch began and at which the command was sent that accepted the value.
//! A follower may take the outcome if it joined before either. Who may not goes round again.
//!
//! A leader that is dropped, or not polled for a lease period, loses to the next waiter. Nothing here waits for
//! anything but a follower for its flight, and a dropped follower passes a wake-up on.

pub(crate) mod cap;
pub(crate) mod nesting;
pub(crate) mod share;
pub(crate) mod waiters;

use std::{
    collections::HashMap,
    future::Future,
    hash::BuildHasher,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use rapidhash::fast::RandomState;

use crate::{
    clock::Instant,
    near::{Erased, Stripes, Watch},
    sync::{Arc, Mutex},
    value::keyspace::Binding,
};

const SHARDS: usize = 32;

type Map = HashMap<(Box<str>, Binding), Arc<Flight>, RandomState>;

/// All flights of a cache.
#[derive(Debug)]
pub(crate) struct Flights {
    shards: [Mutex<Map>; SHARDS],
    /// How many leaders each key has, those included whose flight was replaced or passed on: each may still store.
    leaders: [Mutex<HashMap<Box<str>, usize, RandomState>>; SHARDS],
    hasher: RandomState,
}

#[derive(Debug)]
struct Flight {
    key: (Box<str>, Binding),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Number of the last event.
    events: u64,
    /// Which leadership is current; a leader of an earlier term is ignored.
    term: u64,
    /// Whether the current term has a leader.
    led: bool,
    /// When the leader was last polled.
    polled: Instant,
    /// What the leader watches; a bump dooms the flight, and nobody joins it any more.
    watch: Watch,
    fetch_began: Option<u64>,
    outcome: Option<Outcome>,
    waiters: Vec<Option<Waker>>,
    /// Places in `waiters` that no follower owns.
    free: Vec<usize>,
    /// Followers not dropped yet.
    followers: usize,
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// A value, or that there is none.
    Value(Erased),
    /// The fetch failed; the error where it can be shared.
    Failed(Option<Erased>),
}

#[derive(Clone, Debug)]
struct Outcome {
    ending: Ending,
    /// Event at which the fetch began, where there was one.
    fetch_began: Option<u64>,
    /// Event at which the command was sent that accepted the value, where one did.
    accepted: Option<u64>,
}

/// The number of an event of a flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event(u64);

pub(crate) enum Joined<'f> {
    Leader(Leader<'f>),
    Follower(Follower<'f>),
}

/// What waiting for a flight gives.
pub(crate) enum Awaited<'f> {
    /// The outcome, which this follower may take.
    Ending(Ending),
    /// There is an outcome, but it may be older than this call allows, or its error cannot be shared.
    GoAround,
    /// The leader is gone; this call leads now.
    Leader(Leader<'f>),
}

impl Flights {
    pub(crate) fn new() -> Self {
        let hasher = RandomState::new();
        let leaders = std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(hasher)));
        Self { shards: std::array::from_fn(|_| Mutex::new(Map::with_hasher(hasher))), leaders, hasher }
    }

    fn place(&self, key: &str) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % SHARDS
    }

    fn shard(&self, key: &str) -> &Mutex<Map> {
        &self.shards[self.place(key)]
    }

    /// Whether any fetch of `key` is under way that may store.
    pub(crate) fn is_under_way(&self, key: &str) -> bool {
        self.leaders[self.place(key)].lock().contains_key(key)
    }

    /// Joins the flight of `key`, or begins one as its leader.
    ///
    /// A flight whose watch was bumped is left to its followers and replaced: its fetch began before an
    /// invalidation, and a call that comes after that must not even wait for it. So is one that does not watch all the
    /// tags of this call.
    pub(crate) fn join(
        &self,
        key: &str,
        binding: Binding,
        stripes: &Stripes,
        watch: Watch,
        now: Instant,
    ) -> Joined<'_> {
        let key = (Box::from(key), binding);
        let mut map = self.shard(&key.0).lock();
        if let Some(flight) = map.get(&key) {
            let mut state = flight.state.lock();
            if state.outcome.is_none() && stripes.unchanged(&state.watch) && state.watch.covers(&watch) {
                if !state.led {
                    let term = state.lead(watch, now);
                    drop(state);
                    return Joined::Leader(Leader::new(self, flight.clone(), term));
                }
                state.followers += 1;
                let joined = state.events;
                drop(state);
                return Joined::Follower(Follower { flights: self, flight: flight.clone(), joined, waiter: None });
            }
        }
        let state = State {
            events: 0,
            term: 0,
            led: true,
            polled: now,
            watch,
            fetch_began: None,
            outcome: None,
            waiters: Vec::new(),
            free: Vec::new(),
            followers: 0,
        };
        let flight = Arc::new(Flight { key: key.clone(), state: Mutex::new(state) });
        map.insert(key, flight.clone());
        Joined::Leader(Leader::new(self, flight, 0))
    }

    /// The keys under way that `covers` accepts.
    pub(crate) fn keys(&self, mut covers: impl FnMut(&str) -> bool) -> Vec<Box<str>> {
        let mut keys = Vec::new();
        for leaders in &self.leaders {
            keys.extend(leaders.lock().keys().filter(|key| covers(key)).cloned());
        }
        keys
    }

    /// Takes `flight` off the map, so that nobody joins it any more.
    fn close(&self, flight: &Arc<Flight>) {
        let mut map = self.shard(&flight.key.0).lock();
        if map.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            map.remove(&flight.key);
        }
    }
}

impl State {
    fn lead(&mut self, watch: Watch, now: Instant) -> u64 {
        self.term += 1;
        self.led = true;
        self.polled = now;
        self.watch = watch;
        self.fetch_began = None;
        self.term
    }

    fn next_event(&mut self) -> u64 {
        // A follower that joins now notes this number and so counts as later than the event.
        self.events += 1;
        self.events
    }

    fn wake_one(&mut self) {
        if let Some(waker) = self.waiters.iter_mut().find_map(Option::take) {
            waker.wake();
        }
    }

    fn wake_all(&mut self) {
        for waker in self.waiters.iter_mut().filter_map(Option::take) {
            waker.wake();
        }
    }
}

/// The call that fetches for all. Dropped without an outcome, it hands over to the next waiter.
#[derive(Debug)]
pub(crate) struct Leader<'f> {
    flights: &'f Flights,
    flight: Arc<Flight>,
    term: u64,
}

impl<'f> Leader<'f> {
    /// Counts the leader from before it watches or fetches anything, until it is dropped: after it has stored.
    fn new(flights: &'f Flights, flight: Arc<Flight>, term: u64) -> Self {
        let key = &flight.key.0;
        *flights.leaders[flights.place(key)].lock().entry(key.clone()).or_default() += 1;
        Self { flights, flight, term }
    }

    /// Notes that a command is about to be sent which may accept a value: to be called right before sending.
    pub(crate) fn sending(&self) -> Event {
        Event(self.flight.state.lock().next_event())
    }

    /// Notes that the fetch begins now, and what it watches.
    pub(crate) fn fetch_begins(&self, watch: Watch) {
        let mut state = self.flight.state.lock();
        if state.term == self.term {
            let event = state.next_event();
            state.fetch_began = Some(event);
            state.watch = watch;
        }
    }

    /// Nobody joins from here on: no command will accept the value, so who comes later could not take it.
    pub(crate) fn close(&self) {
        // A deposed leader leaves the flight to its successor.
        if self.flight.state.lock().term == self.term {
            self.flights.close(&self.flight);
        }
    }

    /// Notes that this leader is alive.
    pub(crate) fn polled(&self, now: Instant) {
        let mut state = self.flight.state.lock();
        if state.term == self.term {
            state.polled = now;
        }
    }

    /// Ends the flight. `accepted` is the event at which the command was sent that accepted the value.
    pub(crate) fn finish(self, ending: Ending, accepted: Option<Event>) {
        if self.flight.state.lock().term == self.term {
            self.close();
        }
        let mut state = self.flight.state.lock();
        if state.term != self.term || state.outcome.is_some() {
            return;
        }
        let fetch_began = state.fetch_began;
        state.outcome = Some(Outcome { ending, fetch_began, accepted: accepted.map(|event| event.0) });
        state.wake_all();
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        {
            let key = &self.flight.key.0;
            let mut leaders = self.flights.leaders[self.flights.place(key)].lock();
            if let Some(count) = leaders.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    leaders.remove(key);
                }
            }
        }
        let mut state = self.flight.state.lock();
        if state.term != self.term || state.outcome.is_some() {
            return;
        }
        state.led = false;
        state.wake_one();
        let abandoned = state.followers == 0;
        drop(state);
        if abandoned {
            self.flights.close_if_abandoned(&self.flight);
        }
    }
}

impl Flights {
    /// Forgets a flight with neither leader nor followers. Checked again under the map's lock, where joining
    /// happens: between the two locks somebody may have come.
    fn close_if_abandoned(&self, flight: &Arc<Flight>) {
        let mut map = self.shard(&flight.key.0).lock();
        let state = flight.state.lock();
        if !state.led
            && state.followers == 0
            && map.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight))
        {
            map.remove(&flight.key);
        }
    }
}

/// A call that waits for the leader.
#[derive(Debug)]
pub(crate) struct Follower<'f> {
    flights: &'f Flights,
    flight: Arc<Flight>,
    joined: u64,
    waiter: Option<usize>,
}

impl<'f> Follower<'f> {
    /// Waits for the outcome, or for the leader's place. `watch` is what this call watches should it lead.
    pub(crate) fn wait(&mut self, watch: Watch, now: impl Fn() -> Instant) -> impl Future<Output = Awaited<'f>> {
        WaitFor { follower: self, watch, now }
    }

    /// Takes the lead if the leader was not polled for `patience`.
    pub(crate) fn depose(&mut self, patience: Duration, watch: Watch, now: Instant) -> Result<Leader<'f>, Duration> {
        let mut state = self.flight.state.lock();
        let left = patience.saturating_sub(now.since(state.polled));
        if state.outcome.is_some() || !left.is_zero() {
            return Err(left.max(Duration::from_millis(1)));
        }
        let term = state.lead(watch, now);
        Ok(Leader::new(self.flights, self.flight.clone(), term))
    }

    fn poll(&mut self, context: &Context<'_>, watch: Watch, now: &impl Fn() -> Instant) -> Poll<Awaited<'f>> {
        let mut state = self.flight.state.lock();
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(self.judge(outcome));
        }
        if !state.led {
            let term = state.lead(watch, now());
            return Poll::Ready(Awaited::Leader(Leader::new(self.flights, self.flight.clone(), term)));
        }
        let waker = Some(context.waker().clone());
        let place = self.waiter.or_else(|| state.free.pop()).unwrap_or_else(|| {
            state.waiters.push(None);
            state.waiters.len() - 1
        });
        state.waiters[place] = waker;
        self.waiter = Some(place);
        Poll::Pending
    }

    /// The hand-out law.
    fn judge(&self, outcome: &Outcome) -> Awaited<'f> {
        let joined_before = |event: Option<u64>| event.is_some_and(|event| self.joined < event);
        match &outcome.ending {
            // An error is no stale value: sharing it spares a failing upstream.
            Ending::Failed(Some(_)) => Awaited::Ending(outcome.ending.clone()),
            Ending::Value(_) if joined_before(outcome.fetch_began) || joined_before(outcome.accepted) => {
                Awaited::Ending(outcome.ending.clone())
            }
            Ending::Value(_) | Ending::Failed(None) => Awaited::GoAround,
        }
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        let mut state = self.flight.state.lock();
        state.followers -= 1;
        if let Some(place) = self.waiter {
            state.waiters[place] = None;
            state.free.push(place);
        }
        if state.led || state.outcome.is_some() {
            return;
        }
        // It may have been this one that was woken to lead: pass it on.
        state.wake_one();
        let abandoned = state.followers == 0;
        drop(state);
        if abandoned {
            self.flights.close_if_abandoned(&self.flight);
        }
    }
}

struct WaitFor<'w, 'f, N> {
    follower: &'w mut Follower<'f>,
    watch: Watch,
    now: N,
}

impl<'f, N: Fn() -> Instant> Future for WaitFor<'_, 'f, N> {
    type Output = Awaited<'f>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Awaited<'f>> {
        // Sound without pinning: no field is address-sensitive.
        let this = self.get_mut();
        this.follower.poll(context, this.watch, &this.now)
    }
}

impl<N> Unpin for WaitFor<'_, '_, N> {}

#[cfg(test)]
mod tests {
    use std::any::TypeId;

    use super::*;
    use crate::{clock::Clock, value::keyspace::Origin};

    struct Fixture {
        flights: Flights,
        stripes: Stripes,
    }

    impl Fixture {
        fn new() -> Self {
            Self { flights: Flights::new(), stripes: Stripes::new(1 << 16) }
        }

        fn watch(&self) -> Watch {
            self.stripes.watch(["key", "space", "tenant"])
        }

        fn join(&self) -> Joined<'_> {
            let binding = Binding { type_id: TypeId::of::<u8>(), origin: Origin::none() };
            self.flights.join("key", binding, &self.stripes, self.watch(), Clock::Coarse.now())
        }

        fn lead(&self) -> Leader<'_> {
            match self.join() {
                Joined::Leader(leader) => leader,
                Joined::Follower(_) => panic!("somebody leads"),
            }
        }

        fn follow(&self) -> Follower<'_> {
            match self.join() {
                Joined::Follower(follower) => follower,
                Joined::Leader(_) => panic!("nobody leads"),
            }
        }

        fn poll<'f>(&self, follower: &mut Follower<'f>) -> Poll<Awaited<'f>> {
            follower.poll(&Context::from_waker(Waker::noop()), self.watch(), &|| Clock::Coarse.now())
        }

        fn is_empty(&self) -> bool {
            self.flights.shards.iter().all(|shard| shard.lock().is_empty())
        }
    }

    fn value() -> Ending {
        Ending::Value(Arc::new(7_u8))
    }

    fn takes(awaited: &Poll<Awaited<'_>>) -> bool {
        matches!(awaited, Poll::Ready(Awaited::Ending(_)))
    }

    /// Law (a): its fetch began after they joined, whatever became of it.
    #[test]
    fn a_refused_value_goes_to_who_joined_before_its_fetch_began() {
        let fixture = Fixture::new();
        let leader = fixture.lead();
        let mut before = fixture.follow();
        leader.fetch_begins(fixture.watch());
        let mut after = fixture.follow();
        leader.finish(value(), None);
        assert!(takes(&fixture.poll(&mut before)));
        assert!(matches!(fixture.poll(&mut after), Poll::Ready(Awaited::GoAround)));
    }

    /// Law (b): a command sent after they joined accepted it.
    #[test]
    fn an_accepted_value_goes_to_who_joined_before_the_command_was_sent() {
        let fixture = Fixture::new();
        let leader = fixture.lead();
        leader.fetch_begins(fixture.watch());
        let mut before = fixture.follow();
        let sent = leader.sending();
        let mut after = fixture.follow();
        leader.finish(value(), Some(sent));
        assert!(takes(&fixture.poll(&mut before)));
        assert!(matches!(fixture.poll(&mut after), Poll::Ready(Awaited::GoAround)));
    }

    #[test]
    fn nobody_joins_a_flight_that_something_it_watches_was_bumped_in() {
        let fixture = Fixture::new();
        let doomed = fixture.lead();
        let mut waiting = fixture.follow();
        fixture.stripes.bump("space");
        let newer = fixture.lead();
        doomed.finish(value(), None);
        assert!(matches!(fixture.poll(&mut waiting), Poll::Ready(Awaited::GoAround)));
        drop(fixture.follow());
        newer.finish(value(), None);
        assert!(fixture.is_empty());
    }

    /// The one that was woken to lead is dropped before it is polled: the wake-up is passed on.
    #[test]
    fn a_wake_up_to_lead_is_never_lost() {
        let fixture = Fixture::new();
        let leader = fixture.lead();
        let (mut first, mut second) = (fixture.follow(), fixture.follow());
        assert!(fixture.poll(&mut first).is_pending() && fixture.poll(&mut second).is_pending());
        drop(leader);
        drop(first);
        let Poll::Ready(Awaited::Leader(leader)) = fixture.poll(&mut second) else { panic!("nobody leads") };
        drop((leader, second));
        assert!(fixture.is_empty(), "an abandoned flight is forgotten");
    }

    /// It was deposed: its outcome is of an older term.
    #[test]
    fn a_deposed_leader_ends_nothing() {
        let fixture = Fixture::new();
        let old = fixture.lead();
        let mut follower = fixture.follow();
        let new = follower.depose(Duration::ZERO, fixture.watch(), Clock::Coarse.now()).unwrap();
        let mut later = fixture.follow();
        old.finish(value(), None);
        assert!(fixture.poll(&mut later).is_pending());
        new.fetch_begins(fixture.watch());
        new.finish(value(), None);
        assert!(takes(&fixture.poll(&mut later)));
    }

    #[test]
    fn places_of_waiters_are_used_again() {
        let fixture = Fixture::new();
        let _leader = fixture.lead();
        for _ in 0..100 {
            let mut follower = fixture.follow();
            assert!(fixture.poll(&mut follower).is_pending());
        }
        let mut follower = fixture.follow();
        assert!(fixture.poll(&mut follower).is_pending());
        assert_eq!(follower.flight.state.lock().waiters.len(), 1);
    }
}
