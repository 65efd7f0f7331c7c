//! Runs a law under many schedules.

use std::{
    future::{Future, poll_fn},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Poll, Waker},
};

use shuttle::{
    Config, MaxSteps, Runner,
    future::JoinHandle,
    rand::{Rng as _, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, UncontrolledNondeterminismCheckScheduler},
};

use crate::clock;

/// How many preemptions a schedule of the second half has at most. Few are enough for most mistakes.
const PREEMPTIONS: usize = 4;

/// Checks `law` under this many schedules: one half at random, the other with few preemptions (PCT).
///
/// New ones each time. What fails is printed with its schedule; `REPLAY=<schedule>` runs that one alone, and
/// `SHUTTLE_RANDOM_SEED=<number>` makes all of them repeatable.
///
/// # Panics
/// When the law is broken, or a task waits for ever.
pub fn explore(schedules: usize, law: fn()) {
    let law = move || {
        clock::begin();
        law();
    };
    let mut config = Config::new();
    config.stack_size = 1 << 17;
    config.max_steps = MaxSteps::FailAfter(100_000);
    if let Ok(schedule) = std::env::var("REPLAY") {
        Runner::new(ReplayScheduler::new_from_encoded(schedule.trim()), config).run(law);
        return;
    }
    // Only then is a printed schedule worth anything.
    let twice = UncontrolledNondeterminismCheckScheduler::new(RandomScheduler::new(100));
    Runner::new(twice, config.clone()).run(law);
    let half = schedules / 2;
    let mut run = Runner::new(RandomScheduler::new(half), config.clone()).run(law);
    run += Runner::new(PctScheduler::new(PREEMPTIONS, schedules - half), config).run(law);
    assert_eq!(run, schedules);
}

/// One of `0..n`, as part of the schedule.
pub(crate) fn choose(n: usize) -> usize {
    thread_rng().gen_range(0..n)
}

pub(crate) fn either() -> bool {
    choose(2) == 0
}

/// Lets other tasks go on at an `await`, this many times.
pub(crate) async fn pauses(mut turns: usize) {
    poll_fn(|context| {
        if turns == 0 {
            return Poll::Ready(());
        }
        turns -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A number outside of the cache, a row of the database for instance: reading and writing it is no scheduling point.
#[derive(Debug, Default)]
pub(crate) struct Row(AtomicU64);

impl Row {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn write(&self) -> u64 {
        self.0.fetch_add(1, Relaxed) + 1
    }

    pub(crate) fn take_back(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub(crate) fn raise(&self, to: u64) {
        self.0.fetch_max(to, Relaxed);
    }
}

/// Polls `future` no more than `polls` times, then holds on to it, neither polled nor dropped, until the gate opens.
pub(crate) async fn stalled<F: Future>(future: F, mut polls: usize, gate: &Gate) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let ended = poll_fn(|context| {
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await;
    if ended.is_none() {
        gate.opened().await;
    }
    ended
}

/// Opens once.
#[derive(Debug, Default)]
pub(crate) struct Gate(std::sync::Mutex<(bool, Vec<Waker>)>);

impl Gate {
    pub(crate) fn open(&self) {
        let mut gate = self.0.lock().unwrap();
        gate.0 = true;
        gate.1.drain(..).for_each(Waker::wake);
    }

    pub(crate) async fn opened(&self) {
        poll_fn(|context| {
            let mut gate = self.0.lock().unwrap();
            if gate.0 {
                return Poll::Ready(());
            }
            gate.1.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Waits for tasks; those that were dropped count as ended.
pub(crate) async fn ended(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        let _ = task.await;
    }
}

/// A task that drops another one, some time or other, if the schedule says so.
pub(crate) fn perhaps_drop(task: &JoinHandle<()>) -> JoinHandle<()> {
    let (drops, after, task) = (either(), choose(6), task.abort_handle());
    shuttle::future::spawn(async move {
        if drops {
            pauses(after).await;
            task.abort();
        }
    })
}
