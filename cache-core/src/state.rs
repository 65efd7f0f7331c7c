//! What the clones of a cache share.

use crate::{
    clock::Clock,
    error::Error,
    flight::{Flights, cap::Cap, waiters::Waiters},
    near::Near,
    options::Options,
    pending::{
        fences::Fences,
        journal::{self, Journal},
    },
    remote::Remote,
    sink::Sink,
    stats::{Counters, Registry},
    sync::{Arc, AtomicBool, AtomicU64, Ordering},
    task::Task,
};

/// What the clones of a cache share.
#[derive(Debug)]
pub(crate) struct State {
    /// Tells the caches of a process apart.
    pub(crate) id: u64,
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    pub(crate) near: Near,
    pub(crate) flights: Flights,
    pub(crate) remote: Option<Arc<Remote>>,
    pub(crate) stats: Registry,
    pub(crate) sink: Sink,
    pub(crate) cap: Cap,
    pub(crate) journal: Journal,
    /// Write fences of this process.
    pub(crate) fences: Fences,
    /// Sends again what the journal holds.
    pub(crate) resending: Task,
    /// Calls that wait for the lease of another process.
    pub(crate) waiters: Waiters,
    /// Holds the link to the backplane.
    pub(crate) linking: Task,
    /// Closed or disabled: every call fetches.
    pub(crate) off: AtomicBool,
    /// The environment is wrong: there may be a Redis that this cache does not know.
    pub(crate) cut_off: bool,
    /// Closed: nothing is sent any more. A cache that is only disabled still invalidates for the others.
    pub(crate) closed: AtomicBool,
}

impl State {
    pub(crate) fn new(options: Options, clock: Clock, remote: Option<Arc<Remote>>, off: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            near: Near::new(options.near_bytes, options.max_value, options.near_share, options.stripes),
            flights: Flights::new(),
            stats: Registry::default(),
            sink: Sink::new(clock),
            cap: Cap::new(options.fetch_cap),
            journal: Journal::new(clock, journal::CAP),
            fences: Fences::default(),
            resending: Task::new(clock),
            waiters: Waiters::default(),
            linking: Task::new(clock),
            off: AtomicBool::new(off),
            cut_off: false,
            closed: AtomicBool::new(false),
            options,
            clock,
            remote,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn is_off(&self) -> bool {
        self.off.load(Ordering::Acquire)
    }

    /// Counts and reports a failure of the remote tier that no caller sees.
    pub(crate) fn remote_failed(&self, what: &'static str, counters: &Counters, error: &Error) {
        counters.remote_errors.increment();
        self.sink.report(what, error);
    }
}
