//! The whole read path and every invalidation of a cache without Redis, as users call them.

use std::{any::TypeId, sync::Arc, time::Duration};

use shuttle::future::{JoinHandle, block_on, spawn};

use crate::{
    clock::{self, Clock},
    explore::{Gate, Row, choose, either, ended, pauses, perhaps_drop, stalled},
    flight::share::Share,
    invalidate,
    key::{
        FullKey, Prefix,
        pattern::{self, Pattern},
        prefix,
    },
    options::Options,
    read::{near, read_through, read_through_many, refresh, touch},
    state::State,
    target::Target,
    value::{
        TtlProfile,
        keyspace::{Binding, Keyspace, Origin},
    },
    write,
};

const REPORT: TtlProfile = TtlProfile::new("report", Duration::from_secs(24 * 60 * 60));
const REPORTS: Keyspace<u64> = REPORT.of();

struct World {
    state: Arc<State>,
    scope: Prefix,
    /// The database, whose one row counts how often it was written.
    row: Row,
    /// The newest row whose invalidation has returned.
    invalidated: Row,
    fetches: Row,
    running: Row,
    /// The most fetches that ran at a time.
    most: Row,
}

impl World {
    fn new(near_bytes: u64) -> Arc<Self> {
        let options = Options { near_bytes, max_value: 1 << 10, stripes: 1 << 10, fetch_cap: 2, ..Options::default() };
        Arc::new(Self {
            state: State::new(options, Clock, None, false).into(),
            scope: prefix("cache", Some("acme")).unwrap(),
            row: Row::default(),
            invalidated: Row::default(),
            fetches: Row::default(),
            running: Row::default(),
            most: Row::default(),
        })
    }

    fn target(&self) -> Target<'_> {
        let key = REPORTS.key("x");
        Target {
            state: &self.state,
            key: FullKey::new(&self.scope, REPORT.name(), key.writer().unwrap()),
            binding: Binding { type_id: TypeId::of::<u64>(), origin: Origin::none() },
            profile: REPORT,
            version: 0,
            schema: None,
            codec: None,
            strict: false,
        }
    }

    /// Reads the row, some time after it was asked to, and answers some time after that. It is polled within the scope
    /// of a task-local, so it must not reach a scheduling point but by `await`.
    async fn fetch(&self, fails: bool) -> Result<Option<Arc<u64>>, ()> {
        struct Running<'a>(&'a Row);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.take_back();
            }
        }
        self.fetches.write();
        self.most.raise(self.running.write());
        let _running = Running(&self.running);
        pauses(choose(3)).await;
        let row = self.row.get();
        pauses(choose(4)).await;
        if fails { Err(()) } else { Ok(Some(Arc::new(row))) }
    }

    async fn read(&self, fails: bool) -> Option<u64> {
        let target = self.target();
        let floor = self.invalidated.get();
        let row = if choose(4) == 0 {
            let key = REPORTS.key("x");
            let fetch = async |_| Ok::<_, ()>(self.fetch(fails).await?.map(|row| (key.clone(), row)));
            let result = read_through_many(&[target], std::slice::from_ref(&key), fetch).await;
            result.ok()?.remove(0)
        } else if let Some(value) = near(&target) {
            value
        } else {
            let share = either().then(|| Share::by(Clone::clone));
            read_through(&target, self.fetch(fails), share).await.ok()?
        };
        let row = *row.unwrap();
        assert!(row >= floor, "read {row} after the invalidation of all below {floor} had returned");
        Some(row)
    }

    /// Commits a new row and tells the cache, in one of all ways.
    async fn write(&self, may_set: bool) {
        let row = self.row.write();
        pauses(choose(2)).await;
        let (target, state, scope) = (self.target(), &self.state, &self.scope);
        match choose(if may_set { 7 } else { 4 }) {
            0 => assert!(invalidate::keys(state, std::slice::from_ref(&target.key)).await.is_applied()),
            1 => assert!(invalidate::keyspace(state, scope, REPORT.name()).await.is_applied()),
            2 => assert!(invalidate::scope(state, scope).await.is_applied()),
            3 => {
                let pattern = pattern::parse("report:x*").unwrap();
                assert!(matches!(pattern, Pattern::Keys(_)));
                assert!(invalidate::pattern(state, scope, pattern).await.is_applied());
            }
            4 => assert_eq!(refresh(&target, self.fetch(false)).await.unwrap().map(|value| *value >= row), Some(true)),
            _ => write::set(&target, Some(Arc::new(row))).await.unwrap(),
        }
        self.invalidated.raise(row);
    }

    /// Nothing is left of any call, and the cache still answers.
    async fn settle(&self) {
        let key = self.target().key;
        let flights = format!("{:?}", self.state.flights);
        assert!(!flights.contains(key.as_str()), "a flight or a leader is left: {flights}");
        assert!(!self.state.flights.is_under_way(key.as_str()));
        assert_eq!(self.running.get(), 0);
        assert_eq!(self.read(false).await, Some(self.row.get()));
    }
}

fn reader(world: &Arc<World>, reads: usize) -> JoinHandle<()> {
    let (world, fails) = (world.clone(), choose(4) == 0);
    spawn(async move {
        for _ in 0..reads {
            world.read(fails).await;
        }
    })
}

/// G1, G2 (hand-out law and stripes): readers, one of them dropped somewhere, race with whatever invalidates. Nobody
/// gets a row older than what was invalidated before it asked, and in the end the newest row is read.
pub fn what_was_invalidated_is_never_read() {
    let world = World::new(if either() { 0 } else { 1 << 16 });
    block_on(async {
        if either() {
            world.read(false).await;
        }
        let mut tasks: Vec<_> = (0..3).map(|_| reader(&world, 2)).collect();
        tasks.push(perhaps_drop(&tasks[0]));
        let two = choose(3) == 0;
        for _ in 0..if two { 2 } else { 1 } {
            let world = world.clone();
            // Two racing `set`s store whichever arrives last: so it is promised, and no law.
            tasks.push(spawn(async move {
                for _ in 0..2 {
                    world.write(!two).await;
                }
            }));
        }
        if either() {
            let world = world.clone();
            tasks.push(spawn(async move { drop(touch::<u64>(&world.target()).await) }));
        }
        ended(tasks).await;
        world.settle().await;
    });
}

/// G5, hand-over and depose: a leader that is no longer polled is never dropped either, others fail or are dropped,
/// and time passes slowly or fast. Every call ends, and G2 holds for all of them.
pub fn no_leader_holds_anybody_for_ever() {
    let world = World::new(if either() { 0 } else { 1 << 16 });
    block_on(async {
        let gate = Arc::new(Gate::default());
        let keeper = spawn(clock::pass(choose(24)));
        let unpolled = spawn({
            let (world, gate, polls) = (world.clone(), gate.clone(), choose(4));
            async move {
                stalled(world.read(false), polls, &gate).await;
            }
        });
        let mut tasks: Vec<_> = (0..3).map(|_| reader(&world, 1)).collect();
        tasks.push(perhaps_drop(&tasks[0]));
        if either() {
            let world = world.clone();
            tasks.push(spawn(async move { world.write(true).await }));
        }
        ended(tasks).await;
        gate.open();
        ended([unpolled]).await;
        clock::end();
        ended([keeper]).await;
        world.settle().await;
    });
}

/// G4: without an invalidation, and with everybody polled, at most one fetch runs at a time, and a cold key is fetched
/// once unless a fetch is dropped.
pub fn a_cold_key_is_fetched_once() {
    let world = World::new(1 << 16);
    block_on(async {
        let drops = either();
        let mut tasks: Vec<_> = (0..4)
            .map(|_| {
                spawn({
                    let world = world.clone();
                    async move { assert!(world.read(false).await.is_some()) }
                })
            })
            .collect();
        if drops {
            tasks.push(perhaps_drop(&tasks[0]));
            tasks.push(perhaps_drop(&tasks[1]));
        }
        ended(tasks).await;
        assert!(drops || world.fetches.get() == 1, "a cold key was fetched {} times", world.fetches.get());
        world.settle().await;
    });
    assert_eq!(world.most.get(), 1, "two fetches at a time");
}
