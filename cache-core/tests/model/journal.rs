//! The journal: invalidations of one process that Redis does not hear at once, and calls of the same process meanwhile.
//!
//! What is promised: whatever the invalidation returned, `Applied` or `Pending`, this process serves nothing older from
//! then on; and once nothing is pending any more, Redis holds nothing older either.
//!
//! Two callers of this process, and a third in another one that fetches and fills. READ and LEASE are one step, `Ask`:
//! a value, or "taken" and again, or the lease. Versions are as in `lease.rs`, stripes as in `near.rs`.

use stateright::{Model, Property};

const CALLERS: usize = 3;
/// The caller in the other process: it knows nothing of this one's journal.
const STRANGER: u8 = 2;
/// What a doubted record is numbered up by.
const DOUBTED: u8 = 2;

/// A clause that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    /// An invalidation is written down before it is sent.
    Written,
    /// It is written down before the bump.
    WrittenBeforeBump,
    /// What is pending is a must-miss: nobody asks Redis for it.
    MustMiss,
    /// The journal is looked at again each time LEASE is sent.
    MustMissOnEveryAsk,
    /// The watch is taken before the look into the journal.
    WatchBeforeMustMiss,
    /// A bump before the invalidation is sent.
    FirstBump,
    /// A bump after the server has acknowledged it.
    SecondBump,
    /// An acknowledgement counts for the record it was sent for, not for a later one.
    RecordNumbers,
    /// A flight whose watch was bumped is not joined.
    DoomedFlightsAreLeft,
    /// Acknowledged invalidations are sent again to another run of the server.
    ReplayAfterReconnect,
    /// Every new connection is asked for its run, also one that the pool makes by itself.
    EveryHandshake,
    /// What is acknowledged is forgotten after a time in which its server is known to be alive, not by the clock alone.
    AgesWithTheServer,
    /// Acknowledged ones that are too many are widened, not dropped.
    Widened,
    /// A `set` is recorded when it is acknowledged.
    SetIsRecorded,
    /// A `set` that was sent before a doubt is pending when its reply comes.
    SetBeforeDoubtIsPending,
    /// What is doubted after a reconnect gets another number, so that a reply of before does not count. **Not so in
    /// 00b7ca7**: `Journal::doubt` keeps the numbers.
    DoubtRenumbers,
}

#[derive(Clone, Debug)]
pub(crate) struct Journal {
    /// How many invalidations there are.
    pub(crate) writes: u8,
    /// Whether the server may lose what it has acknowledged, by a failover to a replica that had not heard it.
    pub(crate) failover: bool,
    /// Whether the write is a `set`, not an invalidation.
    pub(crate) set: bool,
    pub(crate) without: Option<Clause>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    value: Option<u8>,
    lease: Option<u8>,
    /// What the last INVALIDATE that found something removed: a replica may still have it.
    removed: Option<u8>,
    writes: [Write; 2],
    entry: Entry,
    /// `invalidate::replay`: the record it is sending, and whether the server has executed it.
    replay: Option<(u8, bool)>,
    copy: Option<Copied>,
    callers: [Caller; CALLERS],
    failures: u8,
    failover: Failover,
    wronged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    NotCalled,
    /// Written down, not bumped; where the order is turned round bumped, not written down.
    Called,
    Sent,
    Executed,
    Returned,
}

/// The entry of the one coverage, by the number of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    None,
    Pending(u8),
    Acknowledged(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Failover {
    None,
    /// It happened; this process has not reconnected.
    Unnoticed,
    /// It happened, and a connection to the new run is used by who takes it for the old one.
    Overlooked,
    Noticed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copied {
    version: u8,
    clean: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Caller {
    Idle,
    /// `watched`: whether the flight's watch is clean.
    Leads {
        floor: u8,
        step: Step,
        watched: bool,
    },
    /// Whether it joined before the fetch began, and before the last command was sent.
    Follows {
        floor: u8,
        before_fetch: bool,
        before_command: bool,
    },
    Done,
}

/// `clean`: nothing was bumped since the watch of the request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// About to take the watch and to look into the journal; `again` after "taken".
    Begins {
        again: bool,
    },
    /// One of the two is done.
    Watched {
        clean: bool,
    },
    LookedFirst,
    /// Both are done: READ or LEASE is sent.
    Ready {
        clean: bool,
    },
    Found {
        version: u8,
        clean: bool,
    },
    Granted,
    /// Nothing was asked: `Storage::Unconfirmed`.
    Unconfirmed,
    Fetches {
        version: u8,
        clean: bool,
        leased: bool,
    },
    Filled {
        version: u8,
        clean: bool,
        accepted: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Called, and `Journal::record`.
    Call(u8),
    /// `invalidate::bump`; the command is sent.
    Send(u8),
    /// The server executes it.
    Execute(u8),
    /// The reply: bump, acknowledge, return `Applied`.
    Applied(u8),
    /// No reply: return `Pending`.
    Pending(u8),
    Replay,
    ReplayExecuted,
    ReplayAcknowledged,
    /// A call begins a flight, joins one, or asks by itself first.
    Begin(u8),
    Join(u8),
    /// `Target::watch`.
    Watch(u8),
    /// `Target::must_miss`.
    Look(u8),
    /// READ or LEASE is executed.
    Ask(u8),
    FetchBegins(u8),
    /// The fetch ends, and FILL is executed under a lease.
    FetchEnds(u8),
    /// The reply; the value is kept near and the flight ends.
    Finish(u8),
    Failover,
    /// A new connection to another run, and `resend::reconnected`.
    Reconnect,
    /// The pool replaces one connection by itself.
    Replace,
    /// More than ten seconds pass.
    Time,
    /// More is acknowledged than the journal keeps one by one.
    Overflow,
}

impl Journal {
    fn has(&self, clause: Clause) -> bool {
        self.without != Some(clause)
    }

    /// Nothing older than what returned is served near. After a failover that holds again when what was replayed is
    /// acknowledged: until then it is a limit.
    fn at_home(&self, state: &State) -> bool {
        let limited = state.failover != Failover::None && (state.failover == Failover::Unnoticed || state.pending());
        limited || state.copy.is_none_or(|copy| !copy.clean || copy.version >= state.newest(Write::Returned))
    }

    fn in_redis(&self, state: &State) -> bool {
        state.pending()
            || state.failover == Failover::Unnoticed
            || state.value.is_none_or(|version| version >= state.newest(Write::Returned))
    }

    fn write(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Call(write)
        | Action::Send(write)
        | Action::Execute(write)
        | Action::Applied(write)
        | Action::Pending(write)) = action
        else {
            return None;
        };
        let (at, number) = (usize::from(write), write + 1);
        let in_order = self.has(Clause::WrittenBeforeBump);
        state.writes[at] = match (action, state.writes[at]) {
            (Action::Call(_), Write::NotCalled) if at == 0 || state.writes[0] != Write::NotCalled => {
                if !in_order {
                    self.first_bump(state);
                } else if !self.set {
                    self.record(state, number);
                }
                Write::Called
            }
            (Action::Send(_), Write::Called) => {
                if in_order {
                    self.first_bump(state);
                } else {
                    self.record(state, number);
                }
                Write::Sent
            }
            // What was sent to the old run is executed by no other.
            (Action::Execute(_), Write::Sent) if !self.set || state.failover == Failover::None => {
                if self.set {
                    state.set(number);
                } else {
                    state.invalidate();
                }
                Write::Executed
            }
            (Action::Applied(_), Write::Executed) if self.set => {
                self.set_acknowledged(state, number);
                Write::Returned
            }
            (Action::Applied(_), Write::Executed) => {
                self.acknowledge(state, number);
                Write::Returned
            }
            (Action::Pending(_), Write::Sent | Write::Executed) => {
                if self.set {
                    self.record(state, number);
                    state.bump();
                }
                state.failures = state.failures.checked_sub(1)?;
                Write::Returned
            }
            _ => return None,
        };
        Some(())
    }

    fn record(&self, state: &mut State, number: u8) {
        if self.has(Clause::Written) {
            state.entry = Entry::Pending(number);
        }
    }

    fn first_bump(&self, state: &mut State) {
        if self.has(Clause::FirstBump) {
            state.bump();
        }
    }

    fn acknowledge(&self, state: &mut State, number: u8) {
        if self.has(Clause::SecondBump) {
            state.bump();
        }
        if let Entry::Pending(pending) = state.entry
            && (pending == number || !self.has(Clause::RecordNumbers))
        {
            state.entry = Entry::Acknowledged(pending);
        }
    }

    /// `resend::executed`.
    fn set_acknowledged(&self, state: &mut State, number: u8) {
        state.bump();
        if !self.has(Clause::SetIsRecorded) {
            return;
        }
        let is_doubted = state.failover == Failover::Noticed;
        state.entry = if is_doubted && self.has(Clause::SetBeforeDoubtIsPending) {
            Entry::Pending(number + DOUBTED)
        } else {
            Entry::Acknowledged(number)
        };
    }

    /// `Journal::doubt`.
    fn notice(&self, state: &mut State) {
        state.failover = Failover::Noticed;
        let renumbered = |number| if self.has(Clause::DoubtRenumbers) { number + DOUBTED } else { number };
        state.entry = match state.entry {
            Entry::Acknowledged(number) if self.has(Clause::ReplayAfterReconnect) => Entry::Pending(renumbered(number)),
            Entry::Pending(number) => Entry::Pending(renumbered(number)),
            other => other,
        };
    }

    fn replay(&self, state: &mut State, action: Action) -> Option<()> {
        match (action, state.replay) {
            (Action::Replay, None) => {
                let Entry::Pending(number) = state.entry else { return None };
                // One begins when a command has failed, or after a reconnect.
                if state.failures == 1 && state.failover != Failover::Noticed {
                    return None;
                }
                state.replay = Some((number, false));
            }
            (Action::ReplayExecuted, Some((number, false))) => {
                state.invalidate();
                state.replay = Some((number, true));
            }
            (Action::ReplayAcknowledged, Some((number, true))) => {
                state.replay = None;
                self.acknowledge(state, number);
            }
            _ => return None,
        }
        Some(())
    }

    fn begin(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Begin(caller) | Action::Join(caller)) = action else { return None };
        let at = usize::from(caller);
        if state.callers[at] != Caller::Idle {
            return None;
        }
        if caller == STRANGER {
            // At worst its fetch begins with the lease.
            if let Action::Join(_) = action {
                return None;
            }
            if state.value.is_some() || state.lease.is_some() {
                return None;
            }
            let version = state.newest(Write::Called);
            let step = Step::Fetches { version, clean: true, leased: true };
            state.lease = Some(caller);
            state.callers[at] = Caller::Leads { floor: 0, step, watched: true };
            return Some(());
        }
        let floor = state.newest(Write::Returned);
        state.callers[at] = if let Action::Join(_) = action {
            let open = state.callers[..2].iter().any(|other| {
                matches!(other, Caller::Leads { watched, .. } if *watched || !self.has(Clause::DoomedFlightsAreLeft))
            });
            if !open {
                return None;
            }
            Caller::Follows { floor, before_fetch: false, before_command: false }
        } else {
            let step = Step::Begins { again: false };
            Caller::Leads { floor, step, watched: true }
        };
        Some(())
    }

    fn lead(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Watch(caller)
        | Action::Look(caller)
        | Action::Ask(caller)
        | Action::FetchBegins(caller)
        | Action::FetchEnds(caller)
        | Action::Finish(caller)) = action
        else {
            return None;
        };
        let at = usize::from(caller);
        let Caller::Leads { floor, step, mut watched } = state.callers[at] else { return None };
        let in_order = self.has(Clause::WatchBeforeMustMiss);
        let looks = |again: bool| self.has(Clause::MustMiss) && (!again || self.has(Clause::MustMissOnEveryAsk));
        let next = match (action, step) {
            (Action::Watch(_), Step::Begins { again }) if in_order || !looks(again) => {
                if looks(again) {
                    Step::Watched { clean: true }
                } else {
                    Step::Ready { clean: true }
                }
            }
            (Action::Look(_), Step::Begins { again }) if !in_order && looks(again) => {
                if state.pending() {
                    Step::Unconfirmed
                } else {
                    Step::LookedFirst
                }
            }
            (Action::Look(_), Step::Watched { clean }) => {
                if state.pending() {
                    Step::Unconfirmed
                } else {
                    Step::Ready { clean }
                }
            }
            (Action::Watch(_), Step::LookedFirst) => Step::Ready { clean: true },
            (Action::Ask(_), Step::Ready { clean }) => {
                state.command_sent();
                match (state.value, state.lease) {
                    (Some(version), _) => Step::Found { version, clean },
                    (None, Some(_)) => Step::Begins { again: true },
                    (None, None) => {
                        state.lease = Some(caller);
                        Step::Granted
                    }
                }
            }
            (Action::FetchBegins(_), Step::Granted | Step::Unconfirmed) => {
                watched = true;
                state.fetch_begins();
                Step::Fetches { version: state.newest(Write::Called), clean: true, leased: step == Step::Granted }
            }
            (Action::FetchEnds(_), Step::Fetches { version, clean, leased }) => {
                let accepted = leased && state.lease == Some(caller);
                if accepted {
                    state.command_sent();
                    (state.lease, state.value) = (None, Some(version));
                }
                if caller == STRANGER {
                    state.callers[at] = Caller::Done;
                    return Some(());
                }
                Step::Filled { version, clean, accepted }
            }
            (Action::Finish(_), Step::Found { version, clean }) => {
                state.finish(caller, version, clean, false, true);
                return Some(());
            }
            // A refused value is not kept; keeping one that was not asked for is `keep_unconfirmed`.
            (Action::Finish(_), Step::Filled { version, clean, accepted }) => {
                state.finish(caller, version, clean, true, accepted);
                return Some(());
            }
            _ => return None,
        };
        state.callers[at] = Caller::Leads { floor, step: next, watched };
        Some(())
    }
}

impl State {
    fn newest(&self, reached: Write) -> u8 {
        (0..2).zip(1..).filter(|&(at, _)| self.writes[at] >= reached).map(|(_, number)| number).max().unwrap_or(0)
    }

    /// Drops what is acknowledged.
    fn forget(&mut self) {
        if let Entry::Acknowledged(_) = self.entry {
            self.entry = Entry::None;
        }
    }

    fn pending(&self) -> bool {
        matches!(self.entry, Entry::Pending(_))
    }

    /// `invalidate.lua`.
    fn invalidate(&mut self) {
        self.removed = self.value.take().or(self.removed);
        self.lease = None;
    }

    /// `set.lua`.
    fn set(&mut self, version: u8) {
        self.invalidate();
        self.value = Some(version);
    }

    fn bump(&mut self) {
        self.copy.iter_mut().for_each(|copy| copy.clean = false);
        for caller in &mut self.callers[..2] {
            if let Caller::Leads { step, watched, .. } = caller {
                *watched = false;
                if let Step::Watched { clean }
                | Step::Ready { clean }
                | Step::Found { clean, .. }
                | Step::Fetches { clean, .. }
                | Step::Filled { clean, .. } = step
                {
                    *clean = false;
                }
            }
        }
    }

    fn followers(&mut self, mut change: impl FnMut(&mut bool, &mut bool)) {
        for caller in &mut self.callers[..2] {
            if let Caller::Follows { before_fetch, before_command, .. } = caller {
                change(before_fetch, before_command);
            }
        }
    }

    fn command_sent(&mut self) {
        self.followers(|_, before_command| *before_command = true);
    }

    fn fetch_begins(&mut self) {
        self.followers(|before_fetch, _| *before_fetch = true);
    }

    fn finish(&mut self, by: u8, version: u8, clean: bool, fetched: bool, accepted: bool) {
        self.copy = Some(Copied { version, clean });
        for at in 0..CALLERS {
            let (floor, takes) = match self.callers[at] {
                Caller::Leads { floor, .. } if at == usize::from(by) => (floor, true),
                Caller::Follows { floor, before_fetch, before_command } => {
                    (floor, fetched && before_fetch || accepted && before_command)
                }
                _ => continue,
            };
            self.wronged |= takes && version < floor && self.failover == Failover::None;
            let again = Caller::Leads { floor, step: Step::Begins { again: false }, watched: true };
            self.callers[at] = if takes { Caller::Done } else { again };
        }
    }
}

impl Model for Journal {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            value: None,
            lease: None,
            removed: None,
            writes: [Write::NotCalled; 2],
            entry: Entry::None,
            replay: None,
            copy: None,
            callers: [Caller::Idle; CALLERS],
            failures: 1,
            failover: Failover::None,
            wronged: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for write in 0..self.writes {
            actions.extend([
                Action::Call(write),
                Action::Send(write),
                Action::Execute(write),
                Action::Applied(write),
                Action::Pending(write),
            ]);
        }
        actions.extend([Action::Replay, Action::ReplayExecuted, Action::ReplayAcknowledged]);
        for caller in 0..3 {
            actions.extend([
                Action::Begin(caller),
                Action::Join(caller),
                Action::Watch(caller),
                Action::Look(caller),
                Action::Ask(caller),
                Action::FetchBegins(caller),
                Action::FetchEnds(caller),
                Action::Finish(caller),
            ]);
        }
        if self.failover {
            actions.extend([Action::Failover, Action::Reconnect, Action::Replace, Action::Time, Action::Overflow]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Call(_) | Action::Send(_) | Action::Execute(_) | Action::Applied(_) | Action::Pending(_) => {
                self.write(&mut state, action)?
            }
            Action::Replay | Action::ReplayExecuted | Action::ReplayAcknowledged => self.replay(&mut state, action)?,
            Action::Begin(_) | Action::Join(_) => self.begin(&mut state, action)?,
            Action::Watch(_)
            | Action::Look(_)
            | Action::Ask(_)
            | Action::FetchBegins(_)
            | Action::FetchEnds(_)
            | Action::Finish(_) => self.lead(&mut state, action)?,
            Action::Failover => {
                if last.failover != Failover::None {
                    return None;
                }
                (state.value, state.lease) = (Some(last.removed?), None);
                state.failover = Failover::Unnoticed;
            }
            Action::Reconnect => {
                if last.failover != Failover::Unnoticed {
                    return None;
                }
                self.notice(&mut state);
            }
            Action::Replace => {
                if last.failover != Failover::Unnoticed {
                    return None;
                }
                if self.has(Clause::EveryHandshake) {
                    self.notice(&mut state);
                } else {
                    state.failover = Failover::Overlooked;
                }
            }
            Action::Time => match last.failover {
                // The server lives on, and snapshots from before are older than what is promised.
                Failover::None => {
                    let Entry::Acknowledged(_) = last.entry else { return None };
                    (state.entry, state.removed) = (Entry::None, None);
                }
                // The outage lasts.
                Failover::Unnoticed if !self.has(Clause::AgesWithTheServer) => state.forget(),
                _ => return None,
            },
            Action::Overflow => {
                if self.has(Clause::Widened) {
                    return None;
                }
                state.forget();
            }
        }
        // Makes states equal between which nothing can tell.
        state.copy = state.copy.filter(|copy| copy.clean);
        if !self.failover {
            state.removed = None;
        }
        if state.callers[1] < state.callers[0] {
            state.callers.swap(0, 1);
            state.lease = state.lease.map(|holder| if holder == STRANGER { holder } else { 1 - holder });
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if self.without.is_some() {
            return vec![Property::always("all guarantees", |model: &Self, state: &State| {
                model.at_home(state) && model.in_redis(state) && !state.wronged
            })];
        }
        let mut properties = vec![
            Property::always("what returned, be it `Pending`, is not served at home any more", Self::at_home),
            Property::always(
                "no call is given anything older than what returned before it began",
                |_, state: &State| !state.wronged,
            ),
            Property::always("once nothing is pending, Redis holds nothing older than what returned", Self::in_redis),
            Property::sometimes("a call does without Redis", |_, state: &State| {
                let does = |caller: &Caller| matches!(caller, Caller::Leads { step: Step::Unconfirmed, .. });
                state.callers.iter().any(does)
            }),
            Property::sometimes("Redis holds what was invalidated without its hearing", |_, state: &State| {
                state.pending() && state.value.is_some_and(|version| version < state.newest(Write::Returned))
            }),
        ];
        if self.writes == 2 {
            properties.push(Property::sometimes("one is heard while another is pending", |_, state: &State| {
                matches!(state.replay, Some((1, true))) && state.entry == Entry::Pending(2)
            }));
        }
        properties
    }
}
