//! The near tier alone.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use shuttle::future::{JoinHandle, block_on, spawn};

use crate::{
    clock::{Clock, Instant},
    explore::{Row, choose, either, ended, pauses},
    near::{Entry, Erased, Near, Watch},
    stats::Registry,
    value::keyspace::Origin,
};

const NAMES: [&str; 3] = ["cache:tenant:acme:report:x", "cache:tenant:acme:report", "cache:tenant:acme:"];
const KEY: &str = NAMES[0];

struct World {
    near: Near,
    row: Row,
    /// The newest row before which everything was invalidated.
    invalidated: Row,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            near: Near::new(1 << 16, 1 << 10, 100, 1 << 10),
            row: Row::default(),
            invalidated: Row::default(),
        })
    }

    fn insert(&self, row: u64, watch: Watch) {
        self.insert_value(Arc::new(row), watch);
    }

    fn insert_value(&self, value: Erased, watch: Watch) {
        let entry = Entry {
            value,
            origin: Origin::none(),
            watch,
            fresh_until: Clock.now().saturating_add(Duration::from_secs(60)),
            sure_until: Instant::MAX,
            negative: false,
            slot: Registry::default().slot("report"),
        };
        self.near.insert("tenant", KEY, entry, 8);
    }

    fn get(&self) -> Option<u64> {
        Some(*self.near.get::<u64>(KEY, &[], &Origin::none(), Clock.now())?.value.unwrap())
    }

    fn check(&self) {
        let floor = self.invalidated.get();
        if let Some(row) = self.get() {
            assert!(row >= floor, "{row} is served after the invalidation of all below {floor} had returned");
        }
    }

    fn touch(&self) {
        let renewed = |_| Some(Clock.now().saturating_add(Duration::from_secs(600)));
        self.near.touch(KEY, &[], &Origin::none(), Clock.now(), renewed);
    }
}

fn task(world: &Arc<World>, step: impl Fn(&World) + Send + 'static) -> JoinHandle<()> {
    let (world, later) = (world.clone(), choose(3));
    spawn(async move {
        pauses(later).await;
        step(&world);
    })
}

/// G1, stripes: stores, hits, touches, removals and bumps race. No hit is older than a bump that had returned.
pub fn a_bump_outlives_every_store_and_touch() {
    let world = World::new();
    block_on(async {
        let mut tasks: Vec<_> = (0..2)
            .map(|_| {
                let world = world.clone();
                spawn(async move {
                    let watch = world.near.stripes.watch(NAMES);
                    pauses(choose(2)).await;
                    let row = world.row.get();
                    pauses(choose(3)).await;
                    world.insert(row, watch);
                })
            })
            .collect();
        for _ in 0..2 {
            tasks.push(task(&world, World::check));
        }
        tasks.push(task(&world, World::touch));
        tasks.push(task(&world, |world| world.near.remove(KEY)));
        tasks.push(task(&world, |world| {
            for name in [choose(4), choose(4)] {
                let row = world.row.write();
                match NAMES.get(name) {
                    Some(name) => world.near.stripes.bump(name),
                    None => world.near.stripes.bump_everything(),
                }
                world.invalidated.raise(row);
            }
        }));
        ended(tasks).await;
    });
    world.check();
}

/// G1 without Redis, where an entry that no fetch can replace is invalidated by its removal, and a `set` replaces it:
/// a touch under way brings back neither what was removed nor what was replaced.
pub fn a_touch_never_brings_anything_back() {
    let world = World::new();
    world.insert(0, world.near.stripes.watch(NAMES));
    block_on(async {
        let mut tasks = vec![task(&world, World::touch), task(&world, World::touch), task(&world, World::check)];
        let sets = either();
        tasks.push(task(&world, move |world| {
            let row = world.row.write();
            world.near.remove(KEY);
            if sets {
                world.insert(row, world.near.stripes.watch(NAMES));
            }
            world.invalidated.raise(row);
        }));
        ended(tasks).await;
        world.check();
        assert_eq!(world.get(), sets.then_some(1), "what was stored last is served");
    });
}

/// Uses the tier when it is dropped.
struct Asking(Weak<World>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(world) = self.0.upgrade() {
            let _ = world.near.size();
            world.touch();
            world.insert(1, world.near.stripes.watch(NAMES));
        }
    }
}

/// The user's code runs under no lock, whoever drops the value last: a touch, a store, a removal, the end of the tier.
pub fn a_value_may_ask_when_it_is_dropped() {
    let world = World::new();
    let insert = |world: &Arc<World>| {
        world.insert_value(Arc::new(Asking(Arc::downgrade(world))), world.near.stripes.watch(NAMES));
    };
    insert(&world);
    block_on(async {
        let mut tasks = vec![task(&world, World::touch), task(&world, World::touch)];
        tasks.push(match choose(3) {
            0 => task(&world, |world| {
                world.near.stripes.bump(KEY);
                world.near.remove(KEY);
            }),
            1 => task(&world, |world| world.near.clear()),
            _ => {
                let world = world.clone();
                spawn(async move { insert(&world) })
            }
        });
        ended(tasks).await;
        world.near.clear();
    });
}
