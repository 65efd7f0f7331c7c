//! Calls that wait for the lease of another process, used as `lead.rs` uses them.

use std::{pin::pin, sync::Arc};

use shuttle::future::{block_on, spawn};

use crate::{
    explore::{Gate, Row, choose, ended, pauses, perhaps_drop},
    flight::waiters::Waiters,
};

const KEY: &str = "cache:tenant:acme:report:x";

#[derive(Default)]
struct World {
    waiters: Waiters,
    /// How many leases other processes hold one after the other, and how many of them are over.
    released: Row,
}

impl World {
    /// Waits until `leases` were released. Each time it enables its wait before it asks.
    async fn wait(&self, leases: u64) {
        let waiter = self.waiters.register(KEY);
        loop {
            let mut released = pin!(waiter.released());
            released.as_mut().enable();
            pauses(choose(2)).await;
            if self.released.get() >= leases {
                return;
            }
            pauses(choose(2)).await;
            released.await;
        }
    }
}

/// G5 and G9: whoever waits is woken by the release that comes after it asked, whoever else comes, goes or is dropped
/// meanwhile; and in the end nobody is registered.
pub fn a_release_wakes_everybody_who_waits() {
    let world = Arc::new(World::default());
    block_on(async {
        let begun = Arc::new(Gate::default());
        let mut tasks: Vec<_> = (0..4)
            .map(|number| {
                let (world, begun, leases) = (world.clone(), begun.clone(), choose(3) as u64);
                spawn(async move {
                    if number == 3 {
                        begun.opened().await;
                    }
                    world.wait(leases).await;
                    begun.open();
                })
            })
            .collect();
        tasks.push(perhaps_drop(&tasks[1]));
        tasks.push(perhaps_drop(&tasks[2]));
        let notices = world.clone();
        tasks.push(spawn(async move {
            for _ in 0..2 {
                pauses(choose(4)).await;
                notices.released.write();
                notices.waiters.wake("cache:tenant:acme:report:another");
                notices.waiters.wake(KEY);
            }
        }));
        ended(tasks).await;
    });
    let left = format!("{:?}", world.waiters);
    assert!(!left.contains(KEY), "a wait is left: {left}");
}
