//! Step *single-flight* of the picture: one leader per key and process, and followers that wait for it.
//!
//! The hand-out law is kept here. Events of a flight are numbered: a follower notes the number at which it joined,
//! the leader notes the numbers at which its fetch began and at which the command was sent that accepted the value.
//! A follower may take the outcome if it joined before either. Who may not goes round again.
//!
//! A leader that is dropped, that fails with an error which cannot be shared, or that is not polled for most of a lease
//! period, is lost: the next waiter leads, first come, first served. Nothing here waits for anything but a follower for its
//! flight, and a dropped follower passes a wake-up on. Wakers run code of the executor, so they are called under no lock.
//!
//! How long a follower waits, in lease periods `p`:
//!
//! | it waits for | at most |
//! |---|---|
//! | a leader that is polled and is not lost | the caller's limit |
//! | leaders that are not polled, however many take the lead one after the other | `p` in all |
//! | leaders that are lost, from the second one on | `p` in all, and the last of them |

pub(crate) mod cap;
pub(crate) mod nesting;
pub(crate) mod share;
pub(crate) mod waiters;

use std::{
    collections::{BTreeMap, HashMap},
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
    sync::{Arc, Mutex, MutexGuard},
    value::keyspace::Binding,
};

const SHARDS: usize = 32;
/// A leader shows that it is alive this often in a lease period.
pub(crate) const BEATS: u32 = 10;
/// Silence after which a leader is deposed: four fifths of a lease period. What is left of the period is for the lease
/// that the silent leader may hold in Redis, and for a successor that is silent too.
const DEPOSED_AFTER: u32 = 8;
/// Silence of any further leader that a follower bears after one was deposed, and the time it lets further leaders lose once
/// it has noticed that the first was lost, which takes up to [`DEPOSED_AFTER`]: two beats.
const BORNE_AFTER: u32 = 2;

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
    state: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    /// Number of the last event.
    events: u64,
    /// Which leadership is current; a leader of an earlier term is ignored.
    term: u64,
    /// Whether the current term has a leader.
    led: bool,
    /// When the leader was last polled.
    polled: Instant,
    /// When the current term began.
    led_at: Instant,
    /// For how long leaders that were lost had the lead, and were silent, all together.
    lost: Duration,
    silence: Duration,
    /// Whether a newer flight has taken its place: nobody leads this one any more.
    replaced: bool,
    /// What the leader watches; a bump dooms the flight, and nobody joins it any more.
    watch: Watch,
    fetch_began: Option<u64>,
    outcome: Option<Outcome>,
    /// Followers that wait, by the number each drew when it joined.
    waiters: BTreeMap<u64, Waker>,
    /// The number that the next follower draws.
    next_ticket: u64,
    /// Followers not dropped yet.
    followers: usize,
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// A value, or that there is none.
    Value(Erased),
    /// The fetch failed, with this error for all who waited.
    Failed(Erased),
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
    /// There is an outcome, but it may be older than this call allows.
    GoAround,
    /// The leader is gone or has failed; this call leads now.
    Leader(Leader<'f>),
}

/// What a follower learns that looks after its leader.
pub(crate) enum Patience<'f> {
    /// The leader was silent for too long; this call leads now.
    Leader(Leader<'f>),
    /// Wait on, and look again after this time.
    Left(Duration),
    /// This call has waited for long enough.
    Over,
    /// A newer flight has taken the place of this one, which nobody leads any more.
    GoAround,
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
        let mut unled = Vec::new();
        if let Some(flight) = map.get(&key) {
            let mut state = flight.state.lock();
            if state.outcome.is_none() && stripes.unchanged(&state.watch) && state.watch.covers(&watch) {
                if !state.led {
                    let term = state.lead(watch, now);
                    drop(state);
                    return Joined::Leader(Leader::new(self, flight.clone(), term));
                }
                state.followers += 1;
                state.next_ticket += 1;
                let (events, ticket, term, silence) = (state.events, state.next_ticket, state.term, state.silence);
                drop(state);
                let flight = flight.clone();
                let follower = Follower { flights: self, flight, events, ticket, term, silence, lost: None };
                return Joined::Follower(follower);
            }
            // Where nobody leads it, nobody will: who waits for that joins this one.
            state.replaced = true;
            if !state.led {
                unled.extend(std::mem::take(&mut state.waiters).into_values());
            }
        }
        let state = Progress {
            events: 0,
            term: 0,
            led: true,
            polled: now,
            led_at: now,
            lost: Duration::ZERO,
            silence: Duration::ZERO,
            replaced: false,
            watch,
            fetch_began: None,
            outcome: None,
            waiters: BTreeMap::new(),
            next_ticket: 0,
            followers: 0,
        };
        let flight = Arc::new(Flight { key: key.clone(), state: Mutex::new(state) });
        map.insert(key, flight.clone());
        drop(map);
        unled.into_iter().for_each(Waker::wake);
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

impl Progress {
    fn lead(&mut self, watch: Watch, now: Instant) -> u64 {
        self.term += 1;
        self.led = true;
        self.silence += now.since(self.polled);
        self.lost += now.since(self.led_at);
        (self.polled, self.led_at) = (now, now);
        self.watch = watch;
        self.fetch_began = None;
        self.term
    }

    fn next_event(&mut self) -> u64 {
        // A follower that joins now notes this number and so counts as later than the event.
        self.events += 1;
        self.events
    }

    /// The follower that has waited longest.
    fn next_waiter(&mut self) -> Option<Waker> {
        self.waiters.pop_first().map(|(_, waker)| waker)
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

    /// Leaves the lead to the next waiter, if the flight has not ended: it fetches for itself, and for all others. What
    /// dropping the leader does, too.
    pub(crate) fn hand_over(&self) {
        let mut state = self.flight.state.lock();
        if state.term != self.term || state.outcome.is_some() || !state.led {
            return;
        }
        state.led = false;
        self.flights.pass_on(&self.flight, state);
    }

    /// Ends the flight. `accepted` is the event at which the command was sent that accepted the value.
    pub(crate) fn finish(&self, ending: Ending, accepted: Option<Event>) {
        if self.flight.state.lock().term == self.term {
            self.close();
        }
        let mut state = self.flight.state.lock();
        if state.term != self.term || state.outcome.is_some() {
            return;
        }
        let fetch_began = state.fetch_began;
        state.outcome = Some(Outcome { ending, fetch_began, accepted: accepted.map(|event| event.0) });
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        waiters.into_values().for_each(Waker::wake);
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
        self.hand_over();
    }
}

impl Flights {
    /// Wakes the next follower of a flight that nobody leads.
    fn pass_on(&self, flight: &Arc<Flight>, mut state: MutexGuard<'_, Progress>) {
        let next = if state.replaced {
            std::mem::take(&mut state.waiters).into_values().collect()
        } else {
            Vec::from_iter(state.next_waiter())
        };
        let is_abandoned = state.followers == 0;
        drop(state);
        next.into_iter().for_each(Waker::wake);
        if is_abandoned {
            self.close_if_abandoned(flight);
        }
    }

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
    /// Number of the last event when it joined.
    events: u64,
    ticket: u64,
    /// The term in which it joined, and the silence of leaders before that.
    term: u64,
    silence: Duration,
    /// For how long leaders had had the lead that were lost, when it noticed that the first of its own was.
    lost: Option<Duration>,
}

impl<'f> Follower<'f> {
    /// Waits for the outcome, or for the leader's place. `watch` is what this call watches should it lead.
    pub(crate) fn wait(&mut self, watch: Watch, now: impl Fn() -> Instant) -> impl Future<Output = Awaited<'f>> {
        WaitFor { follower: self, watch, now }
    }

    /// Looks after the leader, with lease periods of `period`: takes the place of one that is silent for too long. `watch`
    /// is what this call watches should it lead.
    ///
    /// Many followers look at one time, and one of them takes the lead; the others see a leader that was polled just now. If
    /// that one is silent, too, they have borne enough after two more beats, and do not depose it: what it holds in Redis
    /// would keep its successor waiting for another period.
    pub(crate) fn look_after(&mut self, period: Duration, watch: Watch, now: Instant) -> Patience<'f> {
        let beat = period / BEATS;
        let mut state = self.flight.state.lock();
        if state.outcome.is_some() {
            return Patience::Left(Duration::from_millis(1));
        }
        let silence = now.since(state.polled);
        let is_silent = silence >= beat * DEPOSED_AFTER;
        if state.replaced && (is_silent || !state.led) {
            return Patience::GoAround;
        }
        if is_silent {
            let term = state.lead(watch, now);
            // Let go first: counting a leader takes another lock.
            drop(state);
            return Patience::Leader(Leader::new(self.flights, self.flight.clone(), term));
        }
        let has_borne_one = state.silence.saturating_sub(self.silence) >= beat * (DEPOSED_AFTER - BORNE_AFTER);
        let borne = beat * if has_borne_one { BORNE_AFTER } else { DEPOSED_AFTER };
        let mut left = borne.saturating_sub(silence);
        if state.term != self.term {
            let lost = state.lost.saturating_sub(*self.lost.get_or_insert(state.lost));
            left = left.min((beat * BORNE_AFTER).saturating_sub(lost));
        }
        if left.is_zero() { Patience::Over } else { Patience::Left(left.max(Duration::from_millis(1))) }
    }

    fn poll(&mut self, context: &Context<'_>, watch: Watch, now: &impl Fn() -> Instant) -> Poll<Awaited<'f>> {
        let waker = context.waker().clone();
        let mut state = self.flight.state.lock();
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(self.judge(outcome));
        }
        if !state.led {
            if state.replaced {
                return Poll::Ready(Awaited::GoAround);
            }
            let term = state.lead(watch, now());
            drop(state);
            return Poll::Ready(Awaited::Leader(Leader::new(self.flights, self.flight.clone(), term)));
        }
        let replaced = state.waiters.insert(self.ticket, waker);
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// The hand-out law.
    fn judge(&self, outcome: &Outcome) -> Awaited<'f> {
        let joined_before = |event: Option<u64>| event.is_some_and(|event| self.events < event);
        match &outcome.ending {
            // An error is no stale value: sharing it spares a failing upstream.
            Ending::Failed(_) => Awaited::Ending(outcome.ending.clone()),
            Ending::Value(_) if joined_before(outcome.fetch_began) || joined_before(outcome.accepted) => {
                Awaited::Ending(outcome.ending.clone())
            }
            Ending::Value(_) => Awaited::GoAround,
        }
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        let mut state = self.flight.state.lock();
        state.followers -= 1;
        let waker = state.waiters.remove(&self.ticket);
        if state.led || state.outcome.is_some() {
            drop(state);
        } else {
            // It may have been this one that was woken to lead: pass it on.
            self.flights.pass_on(&self.flight, state);
        }
        drop(waker);
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
        begun: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { flights: Flights::new(), stripes: Stripes::new(1 << 16), begun: Clock::Coarse.now() }
        }

        fn watch(&self) -> Watch {
            self.stripes.watch(["key", "space", "tenant"])
        }

        fn join(&self) -> Joined<'_> {
            let binding = Binding { type_id: TypeId::of::<u8>(), origin: Origin::none() };
            self.flights.join("key", binding, &self.stripes, self.watch(), self.begun)
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

        fn at(&self, ms: u64) -> Instant {
            self.begun.saturating_add(Duration::from_millis(ms))
        }

        /// Looks so many milliseconds after the beginning, with lease periods of five seconds.
        fn look_after<'f>(&self, follower: &mut Follower<'f>, ms: u64) -> Patience<'f> {
            follower.look_after(Duration::from_secs(5), self.watch(), self.at(ms))
        }

        fn poll<'f>(&self, follower: &mut Follower<'f>) -> Poll<Awaited<'f>> {
            self.poll_at(follower, 0)
        }

        fn poll_at<'f>(&self, follower: &mut Follower<'f>, ms: u64) -> Poll<Awaited<'f>> {
            follower.poll(&Context::from_waker(Waker::noop()), self.watch(), &|| self.at(ms))
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
        let new = fixture.look_after(&mut follower, 4_000);
        let Patience::Leader(new) = new else { panic!("not deposed") };
        let mut later = fixture.follow();
        old.finish(value(), None);
        assert!(fixture.poll(&mut later).is_pending());
        new.fetch_begins(fixture.watch());
        new.finish(value(), None);
        assert!(takes(&fixture.poll(&mut later)));
    }

    /// Wakers are kept for followers that wait, and for no others.
    #[test]
    fn a_dropped_follower_leaves_nothing_behind() {
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

    // 1. The leader is parked.
    // 2. Three followers are polled once a period only. The one that takes the lead is parked, too.
    // 3. A live follower has waited for one period in all when it goes on alone.
    #[test]
    fn however_many_leaders_are_parked_a_follower_waits_for_one_period_in_all() {
        let fixture = Fixture::new();
        let _parked = fixture.lead();
        let (mut first, mut second, mut live) = (fixture.follow(), fixture.follow(), fixture.follow());
        let Patience::Leader(_also_parked) = fixture.look_after(&mut first, 4_000) else { panic!("not deposed") };
        let Patience::Left(left) = fixture.look_after(&mut live, 4_001) else { panic!("one looked just before") };
        assert!(left <= Duration::from_millis(1_000), "{left:?}");
        assert!(matches!(fixture.look_after(&mut second, 4_999), Patience::Left(_)));
        assert!(matches!(fixture.look_after(&mut live, 5_001), Patience::Over));
    }

    /// The herd behind a parked leader waits for the one of them that took its place, however long that fetches.
    #[test]
    fn a_successor_that_is_alive_is_waited_for() {
        let fixture = Fixture::new();
        let _parked = fixture.lead();
        let (mut first, mut second) = (fixture.follow(), fixture.follow());
        let Patience::Leader(leader) = fixture.look_after(&mut first, 4_000) else { panic!("not deposed") };
        for beat in (4_500..60_000).step_by(500) {
            leader.polled(fixture.at(beat));
            assert!(matches!(fixture.look_after(&mut second, beat + 499), Patience::Left(_)), "{beat}");
        }
    }

    #[test]
    fn after_leaders_that_are_lost_calls_take_turns_for_one_period() {
        let fixture = Fixture::new();
        let leader = fixture.lead();
        let [mut first, mut second, mut third, mut fourth] = [(); 4].map(|()| fixture.follow());
        for follower in [&mut first, &mut second, &mut third] {
            assert!(fixture.poll(follower).is_pending());
        }
        leader.polled(fixture.at(10_000));
        leader.hand_over();
        let Poll::Ready(Awaited::Leader(leader)) = fixture.poll_at(&mut first, 10_000) else { panic!("nobody's turn") };
        assert!(fixture.poll(&mut second).is_pending(), "one at a time");
        // From here on the third one notices what is lost.
        assert!(matches!(fixture.look_after(&mut third, 10_100), Patience::Left(_)));
        leader.hand_over();
        let Poll::Ready(Awaited::Leader(leader)) = fixture.poll_at(&mut second, 10_900) else {
            panic!("nobody's turn")
        };
        leader.polled(fixture.at(10_900));
        assert!(matches!(fixture.look_after(&mut third, 11_000), Patience::Left(_)));
        leader.hand_over();
        assert!(matches!(fixture.poll_at(&mut fourth, 11_100), Poll::Ready(Awaited::Leader(_))));
        assert!(matches!(fixture.look_after(&mut third, 11_100), Patience::Over));
    }

    /// However long the turn of one takes that does not fail.
    #[test]
    fn a_turn_that_is_not_lost_is_waited_for() {
        let fixture = Fixture::new();
        let leader = fixture.lead();
        let (mut first, mut second) = (fixture.follow(), fixture.follow());
        assert!(fixture.poll(&mut first).is_pending() && fixture.poll(&mut second).is_pending());
        leader.hand_over();
        let Poll::Ready(Awaited::Leader(leader)) = fixture.poll_at(&mut first, 1_000) else { panic!("nobody's turn") };
        for beat in (1_000..60_000).step_by(500) {
            leader.polled(fixture.at(beat));
            assert!(matches!(fixture.look_after(&mut second, beat + 499), Patience::Left(_)), "{beat}");
        }
    }

    // 1. A leads, and S waits.
    // 2. The key is invalidated.
    // 3. N joins, and leads a flight of its own.
    // 4. A is lost: S must not lead the old flight beside N.
    #[test]
    fn nobody_leads_a_flight_that_was_replaced() {
        let fixture = Fixture::new();
        let doomed = fixture.lead();
        let (mut waiting, mut silent) = (fixture.follow(), fixture.follow());
        assert!(fixture.poll(&mut waiting).is_pending());
        fixture.stripes.bump("space");
        let newer = fixture.lead();
        assert!(matches!(fixture.look_after(&mut silent, 4_000), Patience::GoAround));
        drop(doomed);
        assert!(matches!(fixture.poll(&mut waiting), Poll::Ready(Awaited::GoAround)));
        drop((waiting, silent));
        newer.finish(value(), None);
        assert!(fixture.is_empty());
    }

    /// What this thread alone has used of a processor: other work of the machine does not count.
    fn own_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
    }

    /// Each of them may be the one that was woken to lead, and passes that on.
    #[test]
    fn many_followers_of_a_lost_leader_are_dropped_in_linear_time() {
        let dropping = |count: usize| {
            let fixture = Fixture::new();
            let leader = fixture.lead();
            let mut followers: Vec<_> = (0..count).map(|_| fixture.follow()).collect();
            assert!(followers.iter_mut().all(|follower| fixture.poll(follower).is_pending()));
            drop(leader);
            let begun = own_time();
            drop(followers);
            own_time() - begun
        };
        // Eight times as many; what is quadratic takes 64 times as long.
        let shortest = |count| (0..7).map(|_| dropping(count)).min().unwrap_or_default().as_secs_f64();
        let ratio = shortest(40_000) / shortest(5_000);
        assert!(ratio < 32.0, "{ratio}");
    }
}
