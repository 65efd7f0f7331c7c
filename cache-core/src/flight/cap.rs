//! The cap on fetches that no lease holds back: with Redis down, or after a call's rounds are used up, an upstream
//! sees no more than this many at a time from one process.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{clock::sleep, flight::nesting};

#[derive(Debug)]
pub(crate) struct Cap(Semaphore);

impl Cap {
    pub(crate) fn new(fetches: u32) -> Self {
        Self(Semaphore::new(fetches as usize))
    }

    /// Waits for a permit, first come, first served, and no longer than `patience`: a fetch that waits for a task of
    /// its own which wants a permit would otherwise wait for ever. A call made inside a fetch takes no second one.
    pub(crate) async fn permit(&self, patience: Duration) -> Option<SemaphorePermit<'_>> {
        if nesting::is_nested() {
            return None;
        }
        tokio::select! {
            biased;
            permit = self.0.acquire() => permit.ok(),
            _ = sleep(patience) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::sync::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_cap_run_at_a_time_and_none_waits_for_ever() {
        let cap = Cap::new(3);
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let fetch = async |length: Duration| {
            let permit = cap.permit(Duration::from_secs(5)).await;
            if permit.is_some() {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(length).await;
                running.fetch_sub(1, Ordering::SeqCst);
            }
        };
        join_all((0..30).map(|_| fetch(Duration::from_millis(100)))).await;
        assert_eq!(most.load(Ordering::SeqCst), 3);
        let begun = tokio::time::Instant::now();
        join_all((0..4).map(|_| fetch(Duration::from_secs(3600)))).await;
        assert!(begun.elapsed() >= Duration::from_secs(3600), "the fourth went on after its patience");
    }
}
