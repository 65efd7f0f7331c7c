//! The place of a background task.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use shuttle::future::{JoinHandle, block_on, spawn};
use tokio::runtime::{Builder, Id};

use crate::{
    clock::{self, Clock},
    explore::{Gate, Row, choose, either, pauses},
    task::{Task, Term},
};

/// Two runtimes, as far as a task tells them apart.
fn runtimes() -> [Id; 2] {
    static IDS: OnceLock<[Id; 2]> = OnceLock::new();
    *IDS.get_or_init(|| [(), ()].map(|()| Builder::new_current_thread().build().unwrap().handle().id()))
}

struct World {
    task: Task,
    /// What is to be done, in steps.
    jobs: Row,
    done: Row,
    running: Row,
    /// How often tasks of the first runtime are polled before that runtime stands idle, if it does.
    idle_after: Option<usize>,
    gate: Gate,
    /// By runtime.
    tasks: [Mutex<Vec<JoinHandle<()>>>; 2],
}

impl World {
    fn is_idle(&self) -> bool {
        self.jobs.get() == self.done.get()
    }

    /// What `Task::ensure` does.
    fn ensure(self: &Arc<Self>, runtime: usize) {
        if self.is_idle() {
            return;
        }
        let Some(term) = self.task.take(runtimes()[runtime]) else { return };
        let (world, served) = (self.clone(), term.clone().serve(self.clone().work(term, runtime)));
        let idle_after = self.idle_after.filter(|_| runtime == 0);
        let task = spawn(async move {
            match idle_after {
                Some(polls) => driven(served, polls, &world.gate).await,
                None => served.await,
            }
        });
        self.tasks[runtime].lock().unwrap().push(task);
    }

    async fn work(self: Arc<Self>, term: Arc<Term>, runtime: usize) {
        let mut deposed = 0;
        self.running.write();
        loop {
            assert!(self.idle_after.is_some() || self.running.get() == 1, "two tasks, and both are polled");
            deposed += usize::from(!term.is_current());
            assert!(deposed <= 1, "deposed, and polled again");
            if self.is_idle() {
                self.running.take_back();
                term.end();
                // Put in while this task was ending: whoever did so took it for running.
                self.ensure(runtime);
                return;
            }
            let jobs = self.jobs.get();
            pauses(1 + choose(2)).await;
            self.done.raise(jobs);
        }
    }

    /// Waits for the tasks on a runtime, and for those that they begin.
    async fn ended(&self, runtime: usize) {
        loop {
            let Some(task) = self.tasks[runtime].lock().unwrap().pop() else { return };
            task.await.unwrap();
        }
    }

    async fn call(self: Arc<Self>, runtime: usize) {
        for _ in 0..2 {
            pauses(choose(3)).await;
            self.jobs.write();
            self.ensure(runtime);
        }
    }
}

/// Polls `future` no more than `polls` times until the gate opens, and then to its end.
async fn driven(future: impl Future<Output = ()>, mut polls: usize, gate: &Gate) {
    let mut future = pin!(future);
    let ended = std::future::poll_fn(|context| {
        if polls == 0 {
            return std::task::Poll::Ready(false);
        }
        polls -= 1;
        future.as_mut().poll(context).map(|()| true)
    })
    .await;
    if !ended {
        gate.opened().await;
        future.await;
    }
}

/// What is to be done is done, by one task at a time, whoever puts it in while a task ends. And where a runtime stands
/// idle, it is done as soon as somebody calls on another one a second later; what wakes up later does nothing more.
pub fn there_is_one_task_and_it_is_never_missed() {
    let idle_after = either().then(|| choose(5));
    let world = Arc::new(World {
        task: Task::new(Clock),
        jobs: Row::default(),
        done: Row::default(),
        running: Row::default(),
        idle_after,
        gate: Gate::default(),
        tasks: Default::default(),
    });
    block_on(async {
        let callers: Vec<_> = (0..3).map(|runtime| spawn(world.clone().call(runtime % 2))).collect();
        let passing = idle_after.is_some().then(|| {
            spawn(async {
                pauses(choose(6)).await;
                clock::advance(Duration::from_secs(1));
            })
        });
        for caller in callers.into_iter().chain(passing) {
            caller.await.unwrap();
        }
        if idle_after.is_some() {
            // The task on the first runtime may be polled a few times yet.
            for _ in 0..8 {
                clock::advance(Duration::from_secs(1));
                world.ensure(1);
                world.ended(1).await;
            }
            assert!(world.is_idle(), "nobody does it");
            world.gate.open();
        }
        for runtime in [0, 1] {
            world.ended(runtime).await;
        }
        assert!(world.is_idle(), "put in, and never done");
    });
}
