//! The library's clock, except that its time passes when a law says so, and that any wait may end before any other step.

#[path = "../../cache-core/src/clock.rs"]
mod real;

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

pub(crate) use self::real::{Instant, millis, unix_ms, unpanicked};

thread_local! {
    /// All tasks of an execution run on one thread; each test has its own.
    static TIME: RefCell<Time> = RefCell::default();
}

#[derive(Default)]
struct Time {
    now: Duration,
    /// Waits under way: their number, when they end and who waits.
    waits: Vec<(u64, Duration, Waker)>,
    next: u64,
    /// The task that lets time pass.
    keeper: Option<Waker>,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock;

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        // Away from zero, which no instant of a running process is.
        Instant::from_bits(1 << 40).saturating_add(TIME.with_borrow(|time| time.now))
    }
}

pub(crate) fn sleep(duration: Duration) -> impl Future<Output = bool> {
    TIME.with_borrow_mut(|time| {
        time.next += 1;
        Sleep { number: time.next, until: time.now + duration }
    })
}

struct Sleep {
    number: u64,
    until: Duration,
}

impl Future for Sleep {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        TIME.with_borrow_mut(|time| {
            time.waits.retain(|wait| wait.0 != self.number);
            if time.now >= self.until {
                return Poll::Ready(true);
            }
            time.waits.push((self.number, self.until, context.waker().clone()));
            if let Some(keeper) = time.keeper.take() {
                keeper.wake();
            }
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        TIME.with_borrow_mut(|time| time.waits.retain(|wait| wait.0 != self.number));
    }
}

/// Begins an execution at time zero.
pub(crate) fn begin() {
    TIME.set(Time::default());
}

/// Nobody waits for time any more: [`pass`] ends.
pub(crate) fn end() {
    TIME.with_borrow_mut(|time| {
        time.over = true;
        if let Some(keeper) = time.keeper.take() {
            keeper.wake();
        }
    });
}

pub(crate) fn advance(duration: Duration) {
    TIME.with_borrow_mut(|time| {
        time.now += duration;
        let now = time.now;
        time.waits.extract_if(.., |wait| wait.1 <= now).for_each(|wait| wait.2.wake());
    });
}

/// Lets time pass to the end of the nearest wait, again and again until [`end`], as soon as anybody waits and `lag`
/// turns later.
pub(crate) async fn pass(lag: usize) {
    let nearest = || {
        std::future::poll_fn(|context| {
            TIME.with_borrow_mut(|time| {
                if time.over {
                    return Poll::Ready(None);
                }
                let Some(until) = time.waits.iter().map(|wait| wait.1).min() else {
                    time.keeper = Some(context.waker().clone());
                    return Poll::Pending;
                };
                Poll::Ready(Some(until.saturating_sub(time.now)))
            })
        })
    };
    while nearest().await.is_some() {
        crate::explore::pauses(lag).await;
        let Some(left) = nearest().await else { return };
        advance(left);
    }
}
