//! G7 in figures: what a call pays while Redis hangs, beside a bare timer under the same load.
//!
//! A loaded machine delays a timer as much as a call, so each call runs beside a bare timer that begins with it, on
//! the same runtime. The percentiles of both are compared round by round, and the bound has to hold in the median
//! round: one in which the machine was busy elsewhere says nothing about the cache. `--nocapture` prints the figures.

mod support;

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use cache_core::{Cache, Keyspace, Scoped, TtlProfile};
use support::{Fault, Proxy, Server};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// The default.
const OP_TIMEOUT: Duration = Duration::from_millis(100);
/// What a call may take longer than a timer of one `op_timeout`.
const HUNG: Duration = Duration::from_millis(5);
/// What a call may take longer than giving way once, while the breaker is open.
const OPEN: Duration = Duration::from_millis(1);

const ROUNDS: usize = 5;
/// Bursts of a round: Redis hangs anew for each.
const BURSTS: usize = 3;
/// Calls of a burst, and as many timers.
const CALLS: usize = 64;
/// Calls of a burst that find the breaker open.
const OPEN_CALLS: usize = 400;

/// Neither measures while the other one loads the machine.
static ALONE: Mutex<()> = Mutex::new(());

fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    samples[(samples.len() * percent).div_ceil(100) - 1]
}

fn median(mut samples: Vec<Duration>) -> Duration {
    percentile(&mut samples, 50)
}

async fn timed<T>(what: impl Future<Output = T>) -> Duration {
    let begun = Instant::now();
    what.await;
    begun.elapsed()
}

/// A call of a cold key with a fetch that takes no time.
async fn call(acme: &Scoped, id: (&'static str, usize, usize)) {
    let fetch = || std::future::ready(Ok::<_, ()>("v".to_owned()));
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key(id), fetch).await.unwrap(), "v");
}

/// Calls and timers in turn, one of each per millisecond: all begin before the first failures open the breaker.
async fn hung(acme: &Scoped, burst: usize, calls: &mut Vec<Duration>, timers: &mut Vec<Duration>) {
    let pairs: Vec<_> = (0..CALLS)
        .map(|at| {
            let acme = acme.clone();
            let wait = Duration::from_millis(at as u64);
            let asking = tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                timed(call(&acme, ("hung", burst, at))).await
            });
            let waiting = tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                timed(tokio::time::sleep(OP_TIMEOUT)).await
            });
            (asking, waiting)
        })
        .collect();
    for (asking, waiting) in pairs {
        calls.push(asking.await.unwrap());
        timers.push(waiting.await.unwrap());
    }
}

/// Calls that find the breaker open, and as many turns of the runtime.
async fn open(acme: &Scoped, burst: usize, calls: &mut Vec<Duration>, turns: &mut Vec<Duration>) {
    let begun = Instant::now();
    for at in 0..OPEN_CALLS {
        assert!(begun.elapsed() < OP_TIMEOUT * 50, "the breaker is not open: {at} calls took {:?}", begun.elapsed());
        calls.push(timed(call(acme, ("open", burst, at))).await);
        turns.push(timed(tokio::task::yield_now()).await);
    }
}

/// Calls until Redis is used again.
async fn until_used(acme: &Scoped, burst: usize) {
    let begun = Instant::now();
    for at in 0.. {
        call(acme, ("again", burst, at)).await;
        if acme.exists(&REPORTS.key(("again", burst, at))).await.unwrap_or(false) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "Redis is not used again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets Redis hang again and again, and compares.
fn measure(name: &str, url: &str, hang: impl Fn(), go_on: impl Fn()) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let acme = Cache::connect(url).await.unwrap().tenant("acme").unwrap();
        until_used(&acme, usize::MAX).await;
        let (mut over_timer, mut over_turn) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (mut calls, mut timers, mut opened, mut turns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for burst in round * BURSTS..(round + 1) * BURSTS {
                hang();
                hung(&acme, burst, &mut calls, &mut timers).await;
                open(&acme, burst, &mut opened, &mut turns).await;
                go_on();
                until_used(&acme, burst).await;
            }
            assert!(percentile(&mut calls, 50) >= OP_TIMEOUT, "Redis did not hang");
            let [call, timer, open, turn] =
                [&mut calls, &mut timers, &mut opened, &mut turns].map(|samples| percentile(samples, 99));
            println!(
                "{name}, p99: hung {call:?}, timer {timer:?}; breaker open {open:?}, turn of the runtime {turn:?}"
            );
            over_timer.push(call.saturating_sub(timer));
            over_turn.push(open.saturating_sub(turn));
        }
        let (hung, open) = (median(over_timer.clone()), median(over_turn.clone()));
        println!("{name}, median of the rounds: hung {hung:?} over a timer; breaker open {open:?} over a turn");
        assert!(hung <= HUNG, "a call pays more than one op_timeout: {over_timer:?}");
        assert!(open <= OPEN, "a call is held up by an open breaker: {over_turn:?}");
    });
}

/// G7: the server is stopped; connections stay open.
#[test]
fn a_stopped_server_costs_one_op_timeout_and_then_nothing() {
    let server = Server::start();
    measure("server stopped", &server.url(), || server.pause(), || server.resume());
}

/// G7: the server works, its replies do not arrive.
#[test]
fn replies_that_are_held_up_cost_one_op_timeout_and_then_nothing() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    measure("replies held", proxy.url(), || proxy.set(Fault::HoldReplies), || proxy.set(Fault::None));
}
