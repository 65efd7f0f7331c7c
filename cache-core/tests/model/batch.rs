//! Batches of two keys, called in opposite order: `many.rs`, and `read_through` for what a batch does not lead.
//!
//! One write of key 0, executed at any time. No lease expires and no leader is deposed: batches must get on without. In two
//! processes a batch waits for the other's leases, in one for its flights.

use stateright::Property;

use crate::{
    check::{Kind, Story, Told},
    server::{Clause, Leased, SCOPE, Server, Without, Writes},
};

#[derive(Clone, Debug)]
pub(crate) struct Batches {
    pub(crate) one_process: bool,
    pub(crate) without: Without,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    server: Server<2>,
    called: Writes,
    executed: Writes,
    batches: [Batch; 2],
    /// A batch fails or is dropped.
    faults: u8,
    wronged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Batch {
    keys: [Part; 2],
    /// What was executed before it began.
    floor: Writes,
    /// What its fetch would have seen when it had joined.
    early: Writes,
    /// Leases that it left behind; RELEASE is under way.
    left: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Todo,
    /// Leads its flight, as part of the batch or, later, for itself alone.
    Leads(Step, Alone),
    /// Led by others: for later.
    Rest,
    Follows {
        before_fetch: bool,
        before_command: bool,
    },
    Got,
}

type Alone = bool;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Asks,
    Granted,
    Fetches(Writes),
    /// FILL is executed; the reply is under way.
    Filled(Writes, bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Call,
    Execute,
    /// Joins the flight of its next key.
    Join(usize),
    Lease(usize, usize),
    /// One fetch of all that the batch leads.
    FetchBegins(usize),
    Fill(usize, usize),
    Finish(usize, usize),
    /// A key for later: READ, then its flight.
    ReadThrough(usize, usize),
    /// The single fetch of a key for later.
    FetchOne(usize, usize),
    /// The fetch fails, or the future is dropped.
    Fail(usize),
    Release(usize, usize),
}

impl Batches {
    /// Whether somebody else of this process leads the flight of `key`.
    fn is_led(&self, state: &State, by: usize, key: usize) -> bool {
        self.one_process && matches!(state.batches[1 - by].keys[key], Part::Leads(..))
    }

    fn batch(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Join(at) => {
                let batch = state.batches[at];
                // The other one begins at the other end.
                let key = [at, 1 - at].into_iter().find(|key| batch.keys[*key] == Part::Todo)?;
                if batch.keys == [Part::Todo; 2] {
                    state.batches[at].floor = state.executed;
                }
                let part = if self.is_led(state, at, key) { Part::Rest } else { Part::Leads(Step::Asks, false) };
                state.batches[at].keys[key] = part;
                state.batches[at].early = state.called;
            }
            Action::FetchBegins(at) => {
                let batch = state.batches[at];
                let waits = |part: &Part| match part {
                    Part::Todo | Part::Leads(Step::Asks, false) => true,
                    Part::Rest | Part::Follows { .. } | Part::Leads(_, true) => {
                        !self.without.has(Clause::BatchFetchesFirst)
                    }
                    _ => false,
                };
                if batch.keys.iter().any(waits) || !batch.keys.contains(&Part::Leads(Step::Granted, false)) {
                    return None;
                }
                let seen = if self.without.has(Clause::FetchAfterLeases) { state.called } else { batch.early };
                for key in 0..2 {
                    if batch.keys[key] == Part::Leads(Step::Granted, false) {
                        state.batches[at].keys[key] = Part::Leads(Step::Fetches(seen), false);
                        state.fetch_begins(at, key);
                    }
                }
            }
            Action::Fail(at) => {
                state.faults = state.faults.checked_sub(1)?;
                for key in 0..2 {
                    if let Part::Leads(step, _) = state.batches[at].keys[key] {
                        let leased = matches!(step, Step::Granted | Step::Fetches(_));
                        state.batches[at].left[key] = leased && self.without.has(Clause::Releases);
                        state.leave(at, key);
                    }
                    state.batches[at].keys[key] = Part::Got;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// The steps of one key.
    fn part(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Lease(at, key)
        | Action::Fill(at, key)
        | Action::Finish(at, key)
        | Action::ReadThrough(at, key)
        | Action::FetchOne(at, key)) = action
        else {
            return None;
        };
        let batch = state.batches[at];
        state.batches[at].keys[key] = match (action, batch.keys[key]) {
            (Action::Lease(..), Part::Leads(Step::Asks, alone)) if !batch.keys.contains(&Part::Todo) => {
                match state.server.lease(self.without, key, at as u8, SCOPE) {
                    Leased::Granted => Part::Leads(Step::Granted, alone),
                    Leased::Found(seen) => {
                        state.command_sent(at, key);
                        state.finish(at, key, seen, false, true);
                        Part::Got
                    }
                    Leased::Taken if !alone && self.without.has(Clause::BatchWaitsForNoLease) => {
                        state.leave(at, key);
                        Part::Rest
                    }
                    Leased::Taken | Leased::Fenced => return None,
                }
            }
            (Action::FetchOne(..), Part::Leads(Step::Granted, true)) => {
                state.fetch_begins(at, key);
                Part::Leads(Step::Fetches(state.called), true)
            }
            (Action::Fill(..), Part::Leads(Step::Fetches(seen), alone)) => {
                state.command_sent(at, key);
                let accepted = state.server.fill(self.without, key, at as u8, SCOPE, seen);
                Part::Leads(Step::Filled(seen, accepted), alone)
            }
            (Action::Finish(..), Part::Leads(Step::Filled(seen, accepted), _)) => {
                state.finish(at, key, seen, true, accepted);
                Part::Got
            }
            (Action::ReadThrough(..), Part::Rest) => {
                let is_busy = |part: &Part| match part {
                    Part::Todo | Part::Leads(Step::Asks, false) => true,
                    Part::Leads(_, false) => self.without.has(Clause::BatchFetchesFirst),
                    _ => false,
                };
                if batch.keys.iter().any(is_busy) {
                    return None;
                }
                if let Some(seen) = state.server.hit(self.without, key, SCOPE) {
                    state.give(at, key, seen);
                    Part::Got
                } else if self.is_led(state, at, key) {
                    Part::Follows { before_fetch: false, before_command: false }
                } else {
                    Part::Leads(Step::Asks, true)
                }
            }
            _ => return None,
        };
        Some(())
    }
}

impl State {
    fn give(&mut self, to: usize, key: usize, seen: Writes) {
        self.wronged |= key == 0 && self.batches[to].floor & !seen != 0;
    }

    fn fetch_begins(&mut self, by: usize, key: usize) {
        if let Part::Follows { before_fetch, .. } = &mut self.batches[1 - by].keys[key] {
            *before_fetch = true;
        }
    }

    fn command_sent(&mut self, by: usize, key: usize) {
        if let Part::Follows { before_command, .. } = &mut self.batches[1 - by].keys[key] {
            *before_command = true;
        }
    }

    /// The flight ends, and who followed judges. Only the other of its process can have followed.
    fn finish(&mut self, by: usize, key: usize, seen: Writes, fetched: bool, accepted: bool) {
        let other = 1 - by;
        self.give(by, key, seen);
        if let Part::Follows { before_fetch, before_command } = self.batches[other].keys[key] {
            let takes = fetched && before_fetch || accepted && before_command;
            if takes {
                self.give(other, key, seen);
            }
            self.batches[other].keys[key] = if takes { Part::Got } else { Part::Rest };
        }
    }

    /// The leader is dropped: who follows leads.
    fn leave(&mut self, by: usize, key: usize) {
        let other = &mut self.batches[1 - by].keys[key];
        if let Part::Follows { .. } = other {
            *other = Part::Leads(Step::Asks, true);
        }
    }
}

impl Story for Batches {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        let batch = Batch { keys: [Part::Todo; 2], floor: 0, early: 0, left: [false; 2] };
        State { server: Server::new(), called: 0, executed: 0, batches: [batch; 2], faults: 1, wronged: false }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = vec![Action::Call, Action::Execute];
        for at in 0..2 {
            actions.extend([Action::Join(at), Action::FetchBegins(at), Action::Fail(at)]);
            for key in 0..2 {
                actions.extend([Action::Lease(at, key), Action::Fill(at, key), Action::Finish(at, key)]);
                actions.extend([Action::ReadThrough(at, key), Action::FetchOne(at, key), Action::Release(at, key)]);
            }
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
            Action::Release(at, key) if state.batches[at].left[key] => {
                state.batches[at].left[key] = false;
                state.server.release(self.without, key, at as u8);
            }
            Action::Call | Action::Execute | Action::Release(..) => return None,
            Action::Join(_) | Action::FetchBegins(_) | Action::Fail(_) => return self.batch(state, action),
            _ => return self.part(state, action),
        }
        Some(())
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        if state.server.hit(self.without, 0, SCOPE).is_some_and(|seen| state.executed & !seen != 0) {
            return Some("G1: once a write is executed, Redis serves nothing older");
        }
        state.wronged.then_some("G2: a batch is never given anything older than what was executed before it began")
    }

    fn may_end(&self, state: &State) -> bool {
        state.batches.iter().all(|batch| batch.keys == [Part::Got; 2]) && state.executed == 1
    }

    fn kind(&self, action: Action) -> Kind {
        if let Action::Fail(_) = action { Kind::Fault } else { Kind::Step }
    }

    fn sights() -> Vec<Property<Told<Self>>> {
        vec![
            Property::sometimes("each leads one key and leaves the other", |_, state: &State| {
                let crossed = |batch: &Batch| {
                    batch.keys.contains(&Part::Rest)
                        && batch.keys.iter().any(|part| matches!(part, Part::Leads(Step::Granted, false)))
                };
                state.batches.iter().all(crossed)
            }),
            Property::sometimes("one batch fetches both", |_, state: &State| {
                let fetches = |part: &Part| matches!(part, Part::Leads(Step::Fetches(_), false));
                state.batches.iter().any(|batch| batch.keys.iter().all(fetches))
            }),
        ]
    }
}
