//! A call that is polled a given number of times, each time after it was woken, and then dropped.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::sync::Notify;

/// Far below [`LEASE`](super::world::LEASE), and long enough for a loaded machine: who waits longer waits for a lease
/// to run out.
pub(crate) const BOUND: Duration = Duration::from_secs(15);

/// When a call is dropped, counted from its last poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Right after it. What it asked for was not sent yet, and never will be by this call.
    AtOnce,
    /// When the server has got what it asked for, and before the answer comes.
    InFlight,
    /// When it was woken again: the answer, or the leader's place, has gone to a call that will not use it.
    Woken,
}

pub(crate) struct Cut<R> {
    /// `None` when the call has ended.
    call: Option<BoxFuture<'static, R>>,
    woken: Arc<Woken>,
    waker: Waker,
    polls: usize,
    /// Whether it was woken since its last poll, as far as anybody has looked.
    is_woken: bool,
}

struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

impl<R> Cut<R> {
    pub(crate) fn new(call: impl Future<Output = R> + Send + 'static) -> Self {
        let woken = Arc::new(Woken(Notify::new()));
        let waker = Waker::from(woken.clone());
        Self { call: Some(Box::pin(call)), woken, waker, polls: 0, is_woken: true }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.call.is_none()
    }

    /// Waits until the call is woken, and does not poll it.
    pub(crate) async fn wait_until_woken(&mut self) {
        if !self.is_woken {
            let woken = tokio::time::timeout(BOUND, self.woken.0.notified()).await;
            assert!(woken.is_ok(), "nothing wakes the call after its poll {}", self.polls);
            self.is_woken = true;
        }
    }

    /// Polls the call once more, when it was woken. Gives what it returned.
    pub(crate) async fn poll(&mut self) -> Option<R> {
        self.wait_until_woken().await;
        let call = self.call.as_mut()?;
        self.polls += 1;
        self.is_woken = false;
        match call.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(result) => {
                self.call = None;
                Some(result)
            }
            Poll::Pending => None,
        }
    }

    /// Polls the call until that was done `polls` times, or it has ended.
    pub(crate) async fn poll_to(&mut self, polls: usize) {
        while self.polls < polls && !self.has_ended() {
            self.poll().await;
        }
    }

    /// Polls the call until it ends.
    pub(crate) async fn end(mut self) -> R {
        loop {
            if let Some(result) = self.poll().await {
                return result;
            }
        }
    }
}

/// Runs `case` for every way to drop a call and every number of polls before that, from none to as many as it takes to
/// end. `case` says whether the call had ended.
pub(crate) async fn at_every_point(whens: &[When], mut case: impl AsyncFnMut(When, usize) -> bool) {
    for &when in whens {
        let mut polls = if when == When::AtOnce { 0 } else { 1 };
        while !case(when, polls).await {
            polls += 1;
            assert!(polls < 100, "the call never ends");
        }
    }
}

/// Waits until `condition` holds; panics if it does not within the bound.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(BOUND, holds).await.is_ok(), "{what}");
}

/// What `call` returns; panics if it does not within the bound.
pub(crate) async fn soon<R>(what: impl std::fmt::Debug, call: impl Future<Output = R>) -> R {
    match tokio::time::timeout(BOUND, call).await {
        Ok(result) => result,
        Err(_) => panic!("{what:?}: a call waits as long as for a lease to run out"),
    }
}
