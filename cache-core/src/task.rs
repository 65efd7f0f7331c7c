//! A background task of which there is one at a time: the link is one, what sends pending invalidations again another.
//!
//! It lives on the runtime of the call that began it, and no runtime lives for ever: it may end, or stand idle between two
//! `block_on`s while another one is busy. So the task gives its place back when it is dropped, and shows that it is
//! polled. A call that finds it silent, on another runtime than the task's own, puts a new task in its place. The one that
//! was deposed ends as soon as it is polled again, before it does anything.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::runtime::{Handle, Id};

use crate::{
    clock::{Clock, Instant, sleep},
    sync::{Arc, AtomicU64, Mutex, Ordering},
};

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(250);
/// The silence after which nobody drives the task's runtime, as far as others can tell.
const SILENCE: Duration = Duration::from_secs(1);

/// The place of a task.
#[derive(Debug)]
pub(crate) struct Task {
    clock: Clock,
    place: Arc<Place>,
}

#[derive(Debug, Default)]
struct Place {
    /// When the task was polled last, as the bits of an instant; zero while there is none. Each task knows what it wrote
    /// here last, and so whether the place is still its own: whoever takes it over writes a later time.
    polled: AtomicU64,
    /// The runtime of the task. Locked while the place is taken.
    runtime: Mutex<Option<Id>>,
}

impl Task {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, place: Arc::default() }
    }

    /// Sees to it that the task runs. Outside of a runtime nothing is begun. Costs a load and a look at the clock where it
    /// runs already.
    #[inline]
    pub(crate) fn ensure<W>(&self, work: impl FnOnce(Arc<Term>) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        if is_silent(self.place.polled.load(Ordering::SeqCst), self.clock.now()) {
            self.begin(work);
        }
    }

    #[cold]
    fn begin<W>(&self, work: impl FnOnce(Arc<Term>) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        if let Ok(runtime) = Handle::try_current()
            && let Some(term) = self.take(runtime.id())
        {
            runtime.spawn(term.clone().serve(work(term)));
        }
    }

    /// Takes the place for a task on `runtime`, unless somebody has it who is alive.
    pub(crate) fn take(&self, runtime: Id) -> Option<Arc<Term>> {
        let mut owner = self.place.runtime.lock();
        let (polled, now) = (self.place.polled.load(Ordering::SeqCst), self.clock.now());
        // This runtime is driven, or nobody would ask: its own task is polled soon.
        let is_taken = !is_silent(polled, now) || (polled != 0 && *owner == Some(runtime));
        // Zero means that there is none, and in tests time begins there.
        let taken = now.to_bits().max(1);
        if is_taken || self.place.polled.compare_exchange(polled, taken, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return None;
        }
        *owner = Some(runtime);
        Some(Arc::new(Term { clock: self.clock, place: self.place.clone(), polled: AtomicU64::new(taken) }))
    }
}

fn is_silent(polled: u64, now: Instant) -> bool {
    polled == 0 || now.since(Instant::from_bits(polled)) >= SILENCE
}

/// A task's hold of its place. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Term {
    clock: Clock,
    place: Arc<Place>,
    /// What this task has written into its place; zero once it has given it back.
    polled: AtomicU64,
}

impl Term {
    /// Runs `work` until it ends, or until another task has the place.
    pub(crate) async fn serve(self: Arc<Self>, work: impl Future<Output = ()>) {
        let (mut work, mut beat) = (pin!(work), pin!(sleep(BEAT)));
        poll_fn(|context| {
            if !self.renew() {
                return Poll::Ready(());
            }
            while let Poll::Ready(is_running) = beat.as_mut().poll(context) {
                // The runtime shuts down.
                if !is_running {
                    return Poll::Ready(());
                }
                beat.set(sleep(BEAT));
            }
            work.as_mut().poll(context)
        })
        .await;
    }

    /// Whether the place is this task's. Not so once another one has taken it, or this one has given it back.
    pub(crate) fn is_current(&self) -> bool {
        let own = self.polled.load(Ordering::SeqCst);
        own != 0 && self.place.polled.load(Ordering::SeqCst) == own
    }

    /// Gives the place back, before the task ends: what comes in from now on begins another one.
    pub(crate) fn end(&self) {
        let own = self.polled.swap(0, Ordering::SeqCst);
        if own != 0 {
            let _ = self.place.polled.compare_exchange(own, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    fn renew(&self) -> bool {
        let (own, now) = (self.polled.load(Ordering::SeqCst), self.clock.now().to_bits().max(1));
        let is_current =
            own != 0 && self.place.polled.compare_exchange(own, now, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if is_current {
            self.polled.store(now, Ordering::SeqCst);
        }
        is_current
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    }

    /// A task that counts how often it is begun, and how often it does something.
    #[derive(Default)]
    struct Counts {
        begun: AtomicUsize,
        steps: AtomicUsize,
    }

    impl Counts {
        fn ensure(self: &Arc<Self>, task: &Task) {
            let counts = self.clone();
            task.ensure(|_| async move {
                counts.begun.fetch_add(1, Ordering::SeqCst);
                loop {
                    sleep(Duration::from_millis(100)).await;
                    counts.steps.fetch_add(1, Ordering::SeqCst);
                }
            });
        }

        fn get(&self) -> (usize, usize) {
            (self.begun.load(Ordering::SeqCst), self.steps.load(Ordering::SeqCst))
        }
    }

    async fn pass(ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    #[test]
    fn there_is_one_task_and_another_when_it_has_ended() {
        runtime().block_on(async {
            let task = Task::new(Clock::tokio());
            let counts = Arc::new(AtomicUsize::new(0));
            let ensure = || {
                let counts = counts.clone();
                task.ensure(|_| async move {
                    counts.fetch_add(1, Ordering::SeqCst);
                    pass(5_000).await;
                });
            };
            for _ in 0..4 {
                ensure();
                pass(1_000).await;
            }
            assert_eq!(counts.load(Ordering::SeqCst), 1);
            pass(2_000).await;
            ensure();
            pass(1).await;
            assert_eq!(counts.load(Ordering::SeqCst), 2);
        });
    }

    #[test]
    fn a_task_is_begun_again_when_its_runtime_has_ended() {
        let (first, second) = (runtime(), runtime());
        // One clock for both.
        let task = Task::new(Clock::Coarse);
        let counts = Arc::new(Counts::default());
        first.block_on(async {
            counts.ensure(&task);
            pass(350).await;
        });
        assert_eq!(counts.get(), (1, 3));
        drop(first);
        second.block_on(async {
            counts.ensure(&task);
            pass(150).await;
        });
        assert_eq!(counts.get(), (2, 4));
    }

    /// 1. A task begins on one runtime, which nobody drives.
    /// 2. A call on another one finds the task silent, and begins it there.
    /// 3. The first runtime is driven again: its task ends without a step.
    #[test]
    fn a_silent_task_is_taken_over_from_another_runtime_only_and_does_nothing_more() {
        let (idle, busy) = (Builder::new_current_thread().enable_all().build().unwrap(), runtime());
        let counts = Arc::new(Counts::default());
        busy.block_on(async {
            let task = Task::new(Clock::tokio());
            let call = |on: &Runtime| {
                let _on = on.enter();
                counts.ensure(&task);
            };
            call(&idle);
            for _ in 0..9 {
                pass(100).await;
                counts.ensure(&task);
            }
            assert_eq!(counts.get(), (0, 0), "silent for less than a second");
            pass(200).await;
            call(&idle);
            pass(1).await;
            assert_eq!(counts.get(), (0, 0), "its own runtime is driven, or would not ask");
            counts.ensure(&task);
            pass(1_050).await;
            let before = counts.get();
            assert!(matches!(before, (1, 9..)), "{before:?}");
            std::thread::scope(|scope| scope.spawn(|| idle.block_on(tokio::task::yield_now())).join().unwrap());
            assert_eq!(counts.get(), before, "the deposed one never began");
            pass(1_000).await;
            counts.ensure(&task);
            pass(50).await;
            assert!(matches!(counts.get(), (1, 18..)), "it took nothing along: {:?}", counts.get());
        });
    }

    #[test]
    fn who_comes_while_the_task_ends_begins_another_one() {
        runtime().block_on(async {
            let task = Task::new(Clock::tokio());
            let Some(term) = task.take(Handle::current().id()) else { panic!("the place was free") };
            assert!(term.is_current() && task.take(Handle::current().id()).is_none());
            term.end();
            assert!(!term.is_current());
            let second = task.take(Handle::current().id()).unwrap();
            drop(term);
            assert!(second.is_current(), "the first one gave its place back twice");
        });
    }
}
