//! Every call ends: leases that expire, leaders that fail, are dropped, hang or crash, and a FILL that comes after another
//! leader's. One key, one write of it, and as many faults as there are given, of every kind.
//!
//! What a timer does here may happen at any time, but nobody must need it while no leader hangs and no process crashed.

use stateright::Property;

use crate::{
    check::{Kind, Story, Told},
    server::{Clause, Lease, Leased, SCOPE, Server, Without, Writes},
};

#[derive(Clone, Debug)]
pub(crate) struct Ends {
    /// The process of each caller, ascending.
    pub(crate) processes: &'static [u8],
    pub(crate) kinds: &'static [Fault],
    pub(crate) faults: u8,
    pub(crate) without: Without,
}

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The lease of a leader that fetches expires.
    Expires,
    /// The fetch fails, with an error that is not shared.
    Fails,
    /// The leader's future is dropped.
    Drops,
    /// The leader is not polled any more.
    Hangs,
    /// The whole process ends; its leases stay.
    Crashes,
    /// The reply to FILL does not come; the command is executed later.
    LosesFill,
    /// LEASE is not answered in time.
    LosesLease,
    /// The value is evicted.
    Evicts,
}

pub(crate) const ALL_FAULTS: [Fault; 8] = [
    Fault::Expires,
    Fault::Fails,
    Fault::Drops,
    Fault::Hangs,
    Fault::Crashes,
    Fault::LosesFill,
    Fault::LosesLease,
    Fault::Evicts,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    server: Server<1>,
    called: Writes,
    executed: Writes,
    callers: Vec<Caller>,
    faults: u8,
    /// Somebody hangs or has crashed: timers are what they are for.
    helpless: bool,
    wronged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Caller {
    /// What was executed before the call began.
    floor: Writes,
    /// Flights that it waited for in vain.
    rounds: u8,
    at: At,
    left: Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum At {
    Idle,
    Again,
    Leads { step: Step, open: bool, hangs: bool },
    Follows { leader: u8, before_fetch: bool, before_command: bool },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    Asks,
    Granted,
    /// Fetches without a lease: `Storage::Nowhere` and `Unconfirmed`.
    GaveUp,
    Fetches(Writes),
    Filled(Writes, bool),
}

/// A command of a caller that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Left {
    Nothing,
    Fill(Writes),
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Call,
    Execute,
    Join(usize),
    Lease(usize),
    FetchBegins(usize),
    /// The fetch ends; FILL is executed, if there is a lease.
    FetchEnds(usize),
    /// The reply to FILL: the flight ends.
    Finish(usize),
    Renew(usize),
    /// The server executes what is left.
    Late(usize),
    Fault(Fault, usize),
    /// Timer: a leader has waited for other processes for a lease period.
    GiveUp(usize),
    /// Timer: a follower has waited for `max_fetch`, and fetches for itself.
    LosePatience(usize),
    /// Timer: the leader was not polled for a lease period.
    Depose(usize),
    /// Timer: a lease that nobody renews ends.
    ExpireUnrenewed,
}

impl Ends {
    fn has(&self, clause: Clause) -> bool {
        self.without.has(clause)
    }

    fn lead(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Lease(at)
        | Action::FetchBegins(at)
        | Action::FetchEnds(at)
        | Action::Finish(at)
        | Action::Renew(at)
        | Action::GiveUp(at)) = action
        else {
            return None;
        };
        let by = at as u8;
        let At::Leads { step, mut open, hangs: false } = state.callers[at].at else { return None };
        let mine = matches!(state.server.leases[0], Lease::Held { holder, .. } if holder == by);
        let next = match (action, step) {
            (Action::Lease(_), Step::Asks) => match state.server.lease(self.without, 0, by, SCOPE) {
                Leased::Granted => {
                    state.command_sent(by);
                    Step::Granted
                }
                Leased::Found(seen) => {
                    state.command_sent(by);
                    self.finish(state, at, Some(seen), false, true);
                    return Some(());
                }
                Leased::Taken | Leased::Fenced => return None,
            },
            (Action::GiveUp(_), Step::Asks)
                if !mine && state.server.leases[0] != Lease::Free && self.has(Clause::LeadersHavePatience) =>
            {
                open = false;
                Step::GaveUp
            }
            (Action::FetchBegins(_), Step::Granted) => {
                state.fetch_begins(by);
                Step::Fetches(state.called)
            }
            // Without a lease nothing comes of the value but this call's result.
            (Action::FetchBegins(_), Step::GaveUp) => {
                state.fetch_begins(by);
                self.finish(state, at, Some(state.called), true, false);
                return Some(());
            }
            (Action::FetchEnds(_), Step::Fetches(seen)) => {
                state.command_sent(by);
                Step::Filled(seen, state.server.fill(self.without, 0, by, SCOPE, seen))
            }
            (Action::Finish(_), Step::Filled(seen, accepted)) => {
                self.finish(state, at, Some(seen), true, accepted);
                return Some(());
            }
            // Refused: the flight is doomed, and nobody joins it any more.
            (Action::Renew(_), Step::Fetches(_)) if !mine && open => {
                if !self.has(Clause::RenewOnlyExtends) {
                    state.server.leases[0] = Lease::Held { holder: by, names: SCOPE, lost: 0 };
                }
                open = false;
                step
            }
            _ => return None,
        };
        state.callers[at].at = At::Leads { step: next, open, hangs: false };
        Some(())
    }

    fn join(&self, state: &mut State, at: usize) -> Option<()> {
        match state.callers[at].at {
            At::Idle => state.callers[at].floor = state.executed,
            At::Again => {}
            _ => return None,
        }
        if state.callers[at].rounds == 2 && self.has(Clause::TwoRounds) {
            // Its own fetch is as new as can be.
            state.callers[at].at = At::Done;
            return Some(());
        }
        let open = |other: &usize| {
            self.processes[*other] == self.processes[at]
                && matches!(state.callers[*other].at, At::Leads { open: true, .. })
        };
        state.callers[at].at = match (0..state.callers.len()).find(open) {
            Some(leader) => At::Follows { leader: leader as u8, before_fetch: false, before_command: false },
            None => At::Leads { step: Step::Asks, open: true, hangs: false },
        };
        Some(())
    }

    /// The flight ends, with a value or without; who followed judges.
    fn finish(&self, state: &mut State, by: usize, seen: Option<Writes>, fetched: bool, accepted: bool) {
        state.callers[by].at = At::Done;
        if let Some(seen) = seen {
            state.wronged |= state.callers[by].floor & !seen != 0;
        }
        for caller in &mut state.callers {
            let At::Follows { leader, before_fetch, before_command } = caller.at else { continue };
            if usize::from(leader) != by {
                continue;
            }
            let may = fetched && before_fetch || accepted && before_command || !self.has(Clause::HandOutLaw);
            if let Some(seen) = seen.filter(|_| may) {
                state.wronged |= caller.floor & !seen != 0;
                caller.at = At::Done;
            } else {
                caller.at = At::Again;
                caller.rounds += 1;
            }
        }
    }

    /// Its place is taken by `next`, whom the others follow.
    fn hand_over(&self, state: &mut State, from: usize, next: usize, open: bool) {
        for at in 0..state.callers.len() {
            if let At::Follows { leader, before_fetch, .. } = &mut state.callers[at].at
                && usize::from(*leader) == from
            {
                (*leader, *before_fetch) = (next as u8, false);
            }
        }
        state.callers[next].at = At::Leads { step: Step::Asks, open, hangs: false };
    }

    fn drop_leader(&self, state: &mut State, at: usize, open: bool) {
        state.callers[at].at = At::Done;
        let follows = |caller: &Caller| matches!(caller.at, At::Follows { leader, .. } if usize::from(leader) == at);
        if let Some(next) = state.callers.iter().position(follows).filter(|_| self.has(Clause::DropHandsOver)) {
            self.hand_over(state, at, next, open);
        }
    }

    fn fault(&self, state: &mut State, fault: Fault, at: usize) -> Option<()> {
        if !self.kinds.contains(&fault) {
            return None;
        }
        state.faults = state.faults.checked_sub(1)?;
        // These have no caller; one of them is enough.
        match fault {
            Fault::Evicts if at == 0 => return state.server.values[0].take().map(drop),
            Fault::Expires if at == 0 => {
                let expires = state.server.leases[0] != Lease::Free;
                state.server.leases[0] = Lease::Free;
                return expires.then_some(());
            }
            Fault::Crashes => {
                let process = self.processes[at];
                if at > 0 && self.processes[at - 1] == process {
                    return None;
                }
                for (caller, _) in state.callers.iter_mut().zip(self.processes).filter(|(_, of)| **of == process) {
                    (caller.at, caller.left) = (At::Done, Left::Nothing);
                }
                state.helpless = true;
                return Some(());
            }
            Fault::Evicts | Fault::Expires => return None,
            _ => {}
        }
        let At::Leads { step, open, hangs: false } = state.callers[at].at else { return None };
        let release = if self.has(Clause::Releases) { Left::Release } else { Left::Nothing };
        match (fault, step) {
            (Fault::Fails, Step::Fetches(_)) => {
                state.callers[at].left = release;
                self.finish(state, at, None, true, false);
            }
            (Fault::Fails, Step::GaveUp) => self.finish(state, at, None, true, false),
            (Fault::Drops, Step::Granted | Step::Fetches(_)) => {
                state.callers[at].left = release;
                self.drop_leader(state, at, open);
            }
            (Fault::Drops, _) => self.drop_leader(state, at, open),
            (Fault::Hangs, _) => {
                state.callers[at].at = At::Leads { step, open, hangs: true };
                state.helpless = true;
            }
            (Fault::LosesFill, Step::Fetches(seen)) => {
                state.callers[at].left = Left::Fill(seen);
                self.finish(state, at, Some(seen), true, false);
            }
            (Fault::LosesLease, Step::Asks) => {
                // It may have been granted all the same.
                let by = at as u8;
                if state.server.lease(self.without, 0, by, SCOPE) == Leased::Granted {
                    state.callers[at].left = release;
                }
                state.callers[at].at = At::Leads { step: Step::GaveUp, open: false, hangs: false };
            }
            _ => return None,
        }
        Some(())
    }

    fn late(&self, state: &mut State, at: usize) -> Option<()> {
        match std::mem::replace(&mut state.callers[at].left, Left::Nothing) {
            Left::Nothing => return None,
            Left::Fill(seen) => drop(state.server.fill(self.without, 0, at as u8, SCOPE, seen)),
            Left::Release => state.server.release(self.without, 0, at as u8),
        }
        Some(())
    }

    /// Callers of one process are alike, so their order says nothing.
    fn sort(&self, state: &mut State) {
        for _ in 1..state.callers.len() {
            for at in 1..state.callers.len() {
                if self.processes[at - 1] == self.processes[at] && state.callers[at] < state.callers[at - 1] {
                    state.swap(at - 1, at);
                }
            }
        }
    }
}

impl State {
    fn fetch_begins(&mut self, by: u8) {
        for caller in &mut self.callers {
            if let At::Follows { leader, before_fetch, .. } = &mut caller.at {
                *before_fetch |= *leader == by;
            }
        }
    }

    fn command_sent(&mut self, by: u8) {
        for caller in &mut self.callers {
            if let At::Follows { leader, before_command, .. } = &mut caller.at {
                *before_command |= *leader == by;
            }
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.callers.swap(a, b);
        let rename = |caller: &mut u8| match usize::from(*caller) {
            at if at == a => *caller = b as u8,
            at if at == b => *caller = a as u8,
            _ => {}
        };
        if let Lease::Held { holder, .. } = &mut self.server.leases[0] {
            rename(holder);
        }
        for caller in &mut self.callers {
            if let At::Follows { leader, .. } = &mut caller.at {
                rename(leader);
            }
        }
    }

    /// Whether whoever holds the lease renews it, or is about to give it back.
    fn is_renewed(&self) -> bool {
        let Lease::Held { holder, .. } = self.server.leases[0] else { return true };
        let holder = self.callers[usize::from(holder)];
        matches!(holder.at, At::Leads { hangs: false, .. }) || holder.left != Left::Nothing
    }
}

impl Story for Ends {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        let caller = Caller { floor: 0, rounds: 0, at: At::Idle, left: Left::Nothing };
        State {
            server: Server::new(),
            called: 0,
            executed: 0,
            callers: vec![caller; self.processes.len()],
            faults: self.faults,
            helpless: false,
            wronged: false,
        }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = vec![Action::Call, Action::Execute, Action::ExpireUnrenewed];
        for at in 0..self.processes.len() {
            actions.extend([Action::Join(at), Action::Lease(at), Action::FetchBegins(at), Action::FetchEnds(at)]);
            actions.extend([Action::Finish(at), Action::Renew(at), Action::Late(at), Action::GiveUp(at)]);
            actions.extend([Action::LosePatience(at), Action::Depose(at)]);
            actions.extend(self.kinds.iter().map(|kind| Action::Fault(*kind, at)));
        }
        actions
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Call if state.called == 0 => state.called = 1,
            Action::Execute if state.called != state.executed => {
                state.executed = 1;
                state.server.invalidate(self.without, 0);
            }
            Action::Call | Action::Execute => return None,
            Action::Join(at) => self.join(state, at)?,
            Action::Late(at) => self.late(state, at)?,
            Action::Fault(fault, at) => self.fault(state, fault, at)?,
            Action::LosePatience(at) => {
                let At::Follows { .. } = state.callers[at].at else { return None };
                if !self.has(Clause::FollowersHavePatience) {
                    return None;
                }
                state.callers[at].at = At::Done;
            }
            Action::Depose(at) => {
                let At::Follows { leader, .. } = state.callers[at].at else { return None };
                let leader = usize::from(leader);
                let At::Leads { open, hangs: true, step } = state.callers[leader].at else { return None };
                if !self.has(Clause::Deposes) {
                    return None;
                }
                state.callers[leader].at = At::Leads { open: false, hangs: true, step };
                self.hand_over(state, leader, at, open);
            }
            Action::ExpireUnrenewed => {
                if state.is_renewed() || !self.has(Clause::LeasesExpire) {
                    return None;
                }
                state.server.leases[0] = Lease::Free;
            }
            _ => self.lead(state, action)?,
        }
        self.sort(state);
        Some(())
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        if state.server.hit(self.without, 0, SCOPE).is_some_and(|seen| state.executed & !seen != 0) {
            return Some("G1: once a write is executed, Redis serves nothing older");
        }
        let waits_again = |caller: &Caller| matches!(caller.at, At::Follows { .. }) && caller.rounds >= 2;
        if state.callers.iter().any(waits_again) {
            return Some("G5: a call waits for two flights at most");
        }
        state.wronged.then_some("G2: a call is never given anything older than what was executed before it began")
    }

    fn may_end(&self, state: &State) -> bool {
        let ended = |caller: &Caller| matches!(caller.at, At::Done | At::Leads { hangs: true, .. });
        state.callers.iter().all(ended) && state.executed == 1
    }

    fn kind(&self, action: Action) -> Kind {
        match action {
            Action::GiveUp(_) | Action::LosePatience(_) | Action::Depose(_) | Action::ExpireUnrenewed => Kind::Timer,
            Action::Fault(..) => Kind::Fault,
            _ => Kind::Step,
        }
    }

    fn needs_timers(&self, state: &State) -> bool {
        state.helpless
    }

    fn sights() -> Vec<Property<Told<Self>>> {
        vec![
            Property::sometimes("a FILL comes after another leader's lease", |_, state: &State| {
                let Lease::Held { holder, .. } = state.server.leases[0] else { return false };
                let fetches = |at: &At| matches!(at, At::Leads { step: Step::Fetches(_), .. });
                let others = |(caller, at): (&Caller, u8)| at != holder && fetches(&caller.at);
                state.callers.iter().zip(0..).any(others)
            }),
            Property::sometimes("a leader gives up", |_, state: &State| {
                state.callers.iter().any(|caller| matches!(caller.at, At::Leads { step: Step::GaveUp, .. }))
            }),
            Property::sometimes("a hanging leader is left behind", |_, state: &State| {
                state.callers.iter().all(|caller| matches!(caller.at, At::Done | At::Leads { hangs: true, .. }))
                    && state.callers.iter().any(|caller| caller.at != At::Done)
            }),
        ]
    }
}
