//! The flight alone, with a server beside it of which this process hears nothing: the other half of the hand-out law.

use std::{any::TypeId, sync::Arc, time::Duration};

use shuttle::future::{block_on, spawn};

use crate::{
    clock::Clock,
    explore::{Row, choose, either, ended, pauses, perhaps_drop},
    flight::{Awaited, Ending, Flights, Follower, Joined, Leader, Patience},
    near::{Stripes, Watch},
    value::keyspace::{Binding, Origin},
};

const KEY: &str = "cache:tenant:acme:report:x";

struct World {
    flights: Flights,
    stripes: Stripes,
    row: Row,
    /// What the server compares when a value is to be stored: raised by each invalidation.
    generation: Row,
    /// The newest row whose invalidation has returned.
    invalidated: Row,
}

fn check(row: u64, floor: u64) {
    assert!(row >= floor, "was handed {row} after the invalidation of all below {floor} had returned");
}

impl World {
    fn watch(&self) -> Watch {
        self.stripes.watch([KEY, "cache:tenant:acme:report", "cache:tenant:acme:"])
    }

    /// A call that goes two rounds through the flight, like the read path's, and then gives up.
    async fn read(&self) {
        let floor = self.invalidated.get();
        for _ in 0..2 {
            let binding = Binding { type_id: TypeId::of::<u64>(), origin: Origin::none() };
            let joined = match self.flights.join(KEY, binding, &self.stripes, self.watch(), Clock.now()) {
                Joined::Leader(leader) => Awaited::Leader(leader),
                Joined::Follower(follower) => self.follow(follower).await,
            };
            match joined {
                Awaited::Leader(leader) => return self.lead(leader, floor).await,
                Awaited::Ending(Ending::Value(value)) => return check(*value.downcast::<u64>().unwrap(), floor),
                Awaited::Ending(Ending::Failed(_)) => return,
                Awaited::GoAround => {}
            }
        }
    }

    /// Waits, and sometimes holds its leader for one that is not polled.
    async fn follow<'f>(&'f self, mut follower: Follower<'f>) -> Awaited<'f> {
        if choose(4) == 0 {
            let awaited = tokio::select! {
                biased;
                awaited = follower.wait(self.watch(), || Clock.now()) => Some(awaited),
                () = pauses(choose(5)) => None,
            };
            if let Some(awaited) = awaited {
                return awaited;
            }
            // With periods of no length every leader is silent for too long.
            if let Patience::Leader(leader) = follower.look_after(Duration::ZERO, self.watch(), Clock.now()) {
                return Awaited::Leader(leader);
            }
        }
        follower.wait(self.watch(), || Clock.now()).await
    }

    /// LEASE, fetch, FILL. The server's verdict is the comparison of generations, between sending and reply.
    async fn lead(&self, leader: Leader<'_>, floor: u64) {
        pauses(choose(2)).await;
        let lease = self.generation.get();
        leader.polled(Clock.now());
        if choose(6) == 0 {
            leader.close();
        }
        leader.fetch_begins(self.watch());
        pauses(choose(2)).await;
        let row = self.row.get();
        pauses(choose(4)).await;
        match choose(8) {
            0 => return leader.hand_over(),
            1 => return leader.finish(Ending::Failed(Arc::new("shared")), None),
            2 => return,
            _ => {}
        }
        let sent = leader.sending();
        pauses(choose(2)).await;
        let accepted = self.generation.get() == lease;
        pauses(choose(4)).await;
        leader.finish(Ending::Value(Arc::new(row)), accepted.then_some(sent));
        check(row, floor);
    }

    /// Another process writes and invalidates; sometimes this one hears of it.
    async fn write(&self) {
        let row = self.row.write();
        pauses(choose(2)).await;
        self.generation.write();
        if choose(3) == 0 {
            self.stripes.bump(KEY);
        }
        self.invalidated.raise(row);
    }
}

/// G2, hand-out law (a) and (b), and G5: leaders finish, fail, are dropped and deposed at any step, followers are
/// dropped. Nobody is handed a row older than what was invalidated before it asked; everybody ends; no flight and no
/// leader is left.
pub fn nobody_is_handed_what_was_invalidated_before() {
    let world = Arc::new(World {
        flights: Flights::new(),
        stripes: Stripes::new(1 << 10),
        row: Row::default(),
        generation: Row::default(),
        invalidated: Row::default(),
    });
    block_on(async {
        let mut tasks: Vec<_> = (0..4)
            .map(|_| {
                let (world, later) = (world.clone(), choose(4));
                spawn(async move {
                    pauses(later).await;
                    world.read().await;
                })
            })
            .collect();
        tasks.push(perhaps_drop(&tasks[0]));
        tasks.push(perhaps_drop(&tasks[1]));
        let writer = world.clone();
        tasks.push(spawn(async move {
            for _ in 0..if either() { 1 } else { 2 } {
                pauses(choose(4)).await;
                writer.write().await;
            }
        }));
        ended(tasks).await;
    });
    let flights = format!("{:?}", world.flights);
    assert!(!flights.contains(KEY), "a flight or a leader is left: {flights}");
    assert!(!world.flights.is_under_way(KEY));
}
