//! The cap on fetches that no lease holds back. Its semaphore is tokio's, so the schedule changes at awaits.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use shuttle::future::{block_on, spawn};

use crate::{
    clock,
    explore::{Row, choose, either, ended, pauses, perhaps_drop},
    flight::{cap::Cap, nesting},
    value::keyspace::{Binding, Origin},
};

const PATIENCE: Duration = Duration::from_secs(5);

struct World {
    cap: Cap,
    permits: u32,
    running: Row,
    granted: Row,
    /// Who waits, in the order in which they asked.
    queue: Mutex<VecDeque<usize>>,
}

/// A place in the queue, left when the permit is there or its task is dropped.
struct Place<'a>(&'a World, usize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().unwrap().retain(|waiting| *waiting != self.1);
    }
}

struct Running<'a>(&'a Row);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.take_back();
    }
}

fn world(permits: u32) -> Arc<World> {
    let (running, granted) = (Row::default(), Row::default());
    Arc::new(World { cap: Cap::new(permits), permits, running, granted, queue: Mutex::default() })
}

impl World {
    async fn fetch(&self, number: usize) {
        let place = Place(self, number);
        let mut permit = pin!(self.cap.permit(PATIENCE));
        let mut asked = false;
        let permit = poll_fn(|context| {
            if !asked {
                asked = true;
                self.queue.lock().unwrap().push_back(number);
            }
            permit.as_mut().poll(context)
        })
        .await;
        let permit = permit.expect("time stands still, so nobody's patience ends");
        if self.permits == 1 {
            assert_eq!(self.queue.lock().unwrap().front(), Some(&number), "first come, first served");
        }
        drop(place);
        assert!(self.running.write() <= u64::from(self.permits), "more than the cap");
        let running = Running(&self.running);
        self.granted.write();
        if either() {
            // A call inside the fetch: with a second permit two such fetches would wait for each other.
            let binding = Binding { type_id: std::any::TypeId::of::<u64>(), origin: Origin::none() };
            let nested = async { self.cap.permit(PATIENCE).await.is_none() };
            assert!(nesting::within(1, [("key", binding, [7; 16])], nested).await, "a nested call took a permit");
        }
        pauses(choose(3)).await;
        drop(running);
        drop(permit);
    }
}

/// G4 and G5 with Redis down: never more fetches than the cap, first come, first served; a waiter that is dropped,
/// granted or not, passes the permit on, so everybody else ends.
pub fn no_more_than_the_cap_in_the_order_of_asking() {
    let world = world(if either() { 1 } else { 2 });
    block_on(async {
        let mut tasks: Vec<_> = (0..6)
            .map(|number| {
                let world = world.clone();
                spawn(async move { world.fetch(number).await })
            })
            .collect();
        for dropped in 0..3 {
            tasks.push(perhaps_drop(&tasks[dropped]));
        }
        ended(tasks).await;
    });
    assert!(world.granted.get() >= 3);
    assert_eq!(world.running.get(), 0);
}

/// G5: a fetch that waits for a task of its own, which wants a permit while there is none, goes on after the patience.
pub fn a_holder_may_wait_for_a_task_that_wants_a_permit() {
    let world = world(1);
    block_on(async {
        let keeper = spawn(clock::pass(choose(6)));
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let world = world.clone();
                spawn(async move {
                    let permit = world.cap.permit(PATIENCE).await;
                    let inner = world.clone();
                    let task = spawn(async move { drop(inner.cap.permit(PATIENCE).await) });
                    ended([task]).await;
                    drop(permit);
                })
            })
            .collect();
        ended(tasks).await;
        clock::end();
        ended([keeper]).await;
    });
}
