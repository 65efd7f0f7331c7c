//! What writes beside FILL: `refresh`, a `set` that was given up, TOUCH; among invalidations and calls, on one key.

use stateright::Property;

use crate::{
    check::{Story, Told},
    server::{Clause, Leased, SCOPE, Server, Value, Without, Writes},
};

/// What somebody does, once. Those that write are numbered by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    Invalidates,
    /// Reads through: LEASE, fetch, FILL.
    Reads,
    Refreshes,
    /// `set`, which may be given up and executed all the same.
    Sets,
    Touches,
}

#[derive(Clone, Debug)]
pub(crate) struct Writers {
    pub(crate) actors: &'static [Actor],
    pub(crate) without: Without,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    server: Server<1>,
    steps: Vec<Step>,
    called: Writes,
    executed: Writes,
    wronged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// The command is on its way: INVALIDATE, SET.
    Sent,
    /// SET is still on its way, and its time is over. What had been called by then may be overtaken by it.
    Late(Writes),
    /// LEASE is to be sent; what was executed before.
    Asks(Writes),
    Granted,
    Fetched(Writes),
    /// TOUCH has read this; only where it writes that back.
    Read(Option<Value>),
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    /// The next step of an actor.
    Next(usize),
    /// The time of a SET is over by the server's clock.
    TooLate(usize),
    /// Its command never arrives.
    Lost(usize),
}

impl Writers {
    fn has(&self, clause: Clause) -> bool {
        self.without.has(clause)
    }

    fn next(&self, state: &mut State, at: usize) -> Option<()> {
        let (actor, own) = (*self.actors.get(at)?, 1 << at);
        let server = &mut state.server;
        state.steps[at] = match (actor, state.steps[at]) {
            (Actor::Refreshes, Step::Idle) if !self.has(Clause::RefreshInvalidates) => {
                state.called |= own;
                // It returns, and must be as good as an invalidation, when it is done.
                Step::Asks(state.executed | own)
            }
            (Actor::Invalidates | Actor::Refreshes | Actor::Sets, Step::Idle) => {
                state.called |= own;
                Step::Sent
            }
            (Actor::Invalidates | Actor::Refreshes, Step::Sent) => {
                server.invalidate(self.without, 0);
                state.executed |= own;
                if actor == Actor::Refreshes { Step::Asks(state.executed) } else { Step::Done }
            }
            // What comes before its time is over is as new as all that was called: the last to arrive wins.
            (Actor::Sets, Step::Sent) => {
                server.set(self.without, 0, SCOPE, state.called);
                Step::Done
            }
            (Actor::Sets, Step::Late(called)) => {
                if !self.has(Clause::SetHasDeadline) {
                    server.set(self.without, 0, SCOPE, called);
                }
                Step::Done
            }
            (Actor::Reads, Step::Idle) => Step::Asks(state.executed),
            (_, Step::Asks(floor)) => match server.lease(self.without, 0, at as u8, SCOPE) {
                Leased::Granted => Step::Granted,
                Leased::Found(seen) => {
                    state.wronged |= floor & !seen != 0;
                    Step::Done
                }
                Leased::Taken | Leased::Fenced => return None,
            },
            (_, Step::Granted) => Step::Fetched(state.called),
            (Actor::Refreshes, Step::Fetched(seen)) if !self.has(Clause::RefreshFills) => {
                server.set(self.without, 0, SCOPE, seen);
                Step::Done
            }
            (_, Step::Fetched(seen)) => {
                server.fill(self.without, 0, at as u8, SCOPE, seen);
                Step::Done
            }
            // TOUCH changes no version, whatever it finds.
            (Actor::Touches, Step::Idle) if self.has(Clause::TouchInPlace) => Step::Done,
            (Actor::Touches, Step::Idle) => Step::Read(server.values[0]),
            (Actor::Touches, Step::Read(read)) => {
                server.values[0] = read.or(server.values[0]);
                Step::Done
            }
            _ => return None,
        };
        Some(())
    }
}

impl Story for Writers {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        let steps = vec![Step::Idle; self.actors.len()];
        State { server: Server::new(), steps, called: 0, executed: 0, wronged: false }
    }

    fn actions(&self) -> Vec<Action> {
        let each = |at| [Action::Next(at), Action::TooLate(at), Action::Lost(at)];
        (0..self.actors.len()).flat_map(each).collect()
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Next(at) => return self.next(state, at),
            Action::TooLate(at) if self.actors[at] == Actor::Sets && state.steps[at] == Step::Sent => {
                state.steps[at] = Step::Late(state.called);
            }
            Action::Lost(at) if matches!(state.steps[at], Step::Late(_)) => state.steps[at] = Step::Done,
            _ => return None,
        }
        Some(())
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let read = state.server.hit(self.without, 0, SCOPE);
        if read.is_some_and(|seen| state.executed & !seen != 0) {
            return Some("G1: once a write is executed, Redis serves nothing older");
        }
        state.wronged.then_some("G2: a call is never given anything older than what was executed before it began")
    }

    fn may_end(&self, state: &State) -> bool {
        state.steps.iter().all(|step| *step == Step::Done)
    }

    fn sights() -> Vec<Property<Told<Self>>> {
        vec![Property::sometimes("a value as new as all writes", |_, state: &State| {
            state.called != 0 && state.server.values[0].is_some_and(|value| value.seen == state.called)
        })]
    }
}

/// Without Redis: `Near::touch`, beside one fetch and one invalidation: of a key, which bumps only with a fetch under
/// way and removes, or of a scope, which bumps.
#[derive(Clone, Debug)]
pub(crate) struct TouchAlone {
    pub(crate) of_scope: bool,
    pub(crate) without: Without,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    /// Whether it has seen the write, and whether something it watches was bumped.
    copy: Option<(bool, bool)>,
    write: Write,
    /// The row, if the fetch is under way, and whether its watch was bumped.
    fetch: Fetch,
    touch: Touch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    NotCalled,
    Called,
    /// The first of its two looks: at fetches under way.
    Looked,
    Returned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fetch {
    Idle,
    Begun(bool, bool),
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Touch {
    Idle,
    /// Holds the lock; what was alive there.
    Peeked((bool, bool)),
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Move {
    Write,
    Fetch,
    Touch,
}

impl Story for TouchAlone {
    type State = Memory;
    type Action = Move;

    fn start(&self) -> Memory {
        Memory { copy: Some((false, false)), write: Write::NotCalled, fetch: Fetch::Idle, touch: Touch::Idle }
    }

    fn actions(&self) -> Vec<Move> {
        vec![Move::Write, Move::Fetch, Move::Touch]
    }

    fn step(&self, state: &mut Memory, action: Move) -> Option<()> {
        let holds_lock = matches!(state.touch, Touch::Peeked(_)) && self.without.has(Clause::TouchLocks);
        match action {
            Move::Write => {
                state.write = match state.write {
                    Write::NotCalled => Write::Called,
                    Write::Called => {
                        let bumps = self.of_scope || matches!(state.fetch, Fetch::Begun(..));
                        if bumps {
                            state.copy.iter_mut().for_each(|(_, dirty)| *dirty = true);
                            if let Fetch::Begun(_, dirty) = &mut state.fetch {
                                *dirty = true;
                            }
                            if let Touch::Peeked((_, dirty)) = &mut state.touch {
                                *dirty = true;
                            }
                        }
                        Write::Looked
                    }
                    Write::Looked => {
                        if !self.of_scope {
                            state.copy = None;
                        }
                        Write::Returned
                    }
                    Write::Returned => return None,
                };
            }
            Move::Fetch => {
                state.fetch = match state.fetch {
                    Fetch::Idle => Fetch::Begun(state.write >= Write::Called, false),
                    Fetch::Begun(_, true) => Fetch::Done,
                    Fetch::Begun(seen, false) if !holds_lock => {
                        state.copy = Some((seen, false));
                        Fetch::Done
                    }
                    Fetch::Begun(..) | Fetch::Done => return None,
                };
            }
            Move::Touch => {
                state.touch = match state.touch {
                    Touch::Idle => match state.copy {
                        Some(alive @ (_, false)) => Touch::Peeked(alive),
                        _ => Touch::Done,
                    },
                    Touch::Peeked((seen, dirty)) => {
                        if state.copy.is_some() || !self.without.has(Clause::TouchOnlyReplaces) {
                            state.copy = Some((seen, dirty && self.without.has(Clause::TouchKeepsWatch)));
                        }
                        Touch::Done
                    }
                    Touch::Done => return None,
                };
            }
        }
        Some(())
    }

    fn broken(&self, state: &Memory) -> Option<&'static str> {
        let stale = state.write == Write::Returned && state.copy == Some((false, false));
        stale.then_some("G1: TOUCH revives nothing")
    }

    fn may_end(&self, state: &Memory) -> bool {
        state.write == Write::Returned && state.fetch == Fetch::Done && state.touch == Touch::Done
    }

    fn sights() -> Vec<Property<Told<Self>>> {
        vec![Property::sometimes("TOUCH finds something", |_, state: &Memory| matches!(state.touch, Touch::Peeked(_)))]
    }
}
