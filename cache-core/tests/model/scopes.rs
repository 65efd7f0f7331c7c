//! Several keys under one generation, and tags: what a value depends on beside its key.
//!
//! All keys belong to one tenant and keyspace, whose two generations are one here: `SCOPE`. A caller may name a tag besides.
//! Who names no tag does not depend on it. One process has a near tier for key 0, and no link: what counts there is what
//! is known at home.

use stateright::Property;

use crate::{
    check::{Story, Told},
    server::{Clause, Generations, Leased, SCOPE, Server, TAG, Without, Writes},
};

/// What a write covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Covers {
    Key(usize),
    /// The whole tenant or keyspace.
    Scope,
    Tag,
}

/// A caller of the process: its key and the generations it names.
pub(crate) type Reader = (usize, Generations);

#[derive(Clone, Debug)]
pub(crate) struct Scopes {
    pub(crate) writes: [Covers; 2],
    pub(crate) readers: &'static [Reader],
    pub(crate) without: Without,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    server: Server<2>,
    writes: [Write; 2],
    callers: Vec<Caller>,
    /// The near copy of key 0, if nothing that it watches was bumped.
    copy: Option<(Writes, Generations)>,
    evictions: u8,
    wronged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    NotCalled,
    /// Bumped at home.
    Called,
    Executed,
    /// Bumped at home again.
    Returned,
}

/// `floor`: what was executed before the call began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Idle,
    Again { floor: Writes },
    Leads { step: Step, open: bool },
    Follows { floor: Writes, leader: usize, before_fetch: bool, before_command: bool },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Asks,
    Granted,
    /// Whether something that it watches was bumped since.
    Fetches(Writes, bool),
    /// FILL is executed; the reply is under way.
    Filled(Writes, bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Call(usize),
    Execute(usize),
    Return(usize),
    Join(usize),
    Lease(usize),
    FetchBegins(usize),
    Fill(usize),
    Finish(usize),
    /// A generation is evicted.
    Evict(Generations),
}

impl Scopes {
    fn covers(&self, write: usize, (key, names): Reader) -> bool {
        match self.writes[write] {
            Covers::Key(covered) => covered == key,
            Covers::Scope => true,
            Covers::Tag => names & TAG != 0,
        }
    }

    /// The writes that have come so far, of those that a reader depends on.
    fn reached(&self, state: &State, write: Write, reader: Reader) -> Writes {
        let is = |at: &usize| state.writes[*at] >= write && self.covers(*at, reader);
        (0..2).filter(is).fold(0, |seen, at| seen | 1 << at)
    }

    fn bump(&self, state: &mut State, write: usize) {
        state.copy = state.copy.filter(|(_, names)| !self.covers(write, (0, *names)));
        for (caller, reader) in state.callers.iter_mut().zip(self.readers) {
            if let Caller::Leads { step: Step::Fetches(_, dirty), .. } = caller {
                *dirty |= self.covers(write, *reader);
            }
        }
    }

    fn write(&self, state: &mut State, at: usize, from: Write, to: Write) -> Option<()> {
        if state.writes[at] != from {
            return None;
        }
        state.writes[at] = to;
        match (to, self.writes[at]) {
            (Write::Executed, Covers::Key(key)) => state.server.invalidate(self.without, key),
            (Write::Executed, Covers::Scope) => state.server.unlink(SCOPE),
            (Write::Executed, Covers::Tag) => state.server.unlink(TAG),
            _ => self.bump(state, at),
        }
        Some(())
    }

    fn call(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Join(at) | Action::Lease(at) | Action::FetchBegins(at) | Action::Fill(at) | Action::Finish(at)) =
            action
        else {
            return None;
        };
        let reader @ (key, names) = *self.readers.get(at)?;
        let without = self.without;
        state.callers[at] = match (action, state.callers[at]) {
            (Action::Join(_), Caller::Idle) => self.join(state, at, self.reached(state, Write::Executed, reader)),
            (Action::Join(_), Caller::Again { floor }) => self.join(state, at, floor),
            (Action::Lease(_), Caller::Leads { step: Step::Asks, open }) => {
                match state.server.lease(without, key, at as u8, names) {
                    Leased::Granted => Caller::Leads { step: Step::Granted, open },
                    Leased::Found(seen) => {
                        state.command_sent(at);
                        self.finish(state, at, seen, false, true);
                        Caller::Done
                    }
                    Leased::Taken | Leased::Fenced => return None,
                }
            }
            (Action::FetchBegins(_), Caller::Leads { step: Step::Granted, open }) => {
                for caller in &mut state.callers {
                    if let Caller::Follows { leader, before_fetch, .. } = caller {
                        *before_fetch |= *leader == at;
                    }
                }
                let called = (0..2).filter(|write| state.writes[*write] >= Write::Called);
                Caller::Leads { step: Step::Fetches(called.fold(0, |seen, write| seen | 1 << write), false), open }
            }
            (Action::Fill(_), Caller::Leads { step: Step::Fetches(seen, dirty), open }) => {
                state.command_sent(at);
                let accepted = state.server.fill(without, key, at as u8, names, seen);
                if accepted && !dirty && key == 0 {
                    state.copy = Some((seen, names));
                }
                Caller::Leads { step: Step::Filled(seen, accepted), open }
            }
            (Action::Finish(_), Caller::Leads { step: Step::Filled(seen, accepted), .. }) => {
                self.finish(state, at, seen, true, accepted);
                Caller::Done
            }
            _ => return None,
        };
        Some(())
    }

    fn join(&self, state: &State, at: usize, floor: Writes) -> Caller {
        let (key, names) = self.readers[at];
        let joins = |other: &usize| {
            let (of, watched) = self.readers[*other];
            let covered = names & !watched == 0 || !self.without.has(Clause::JoinCoversTags);
            of == key && covered && matches!(state.callers[*other], Caller::Leads { open: true, .. })
        };
        match (0..state.callers.len()).find(joins) {
            Some(leader) => Caller::Follows { floor, leader, before_fetch: false, before_command: false },
            None => Caller::Leads { step: Step::Asks, open: true },
        }
    }

    /// `Leader::finish`, and `Follower::judge` of all who waited.
    fn finish(&self, state: &mut State, by: usize, seen: Writes, fetched: bool, accepted: bool) {
        for caller in &mut state.callers {
            if let Caller::Follows { floor, leader, before_fetch, before_command } = *caller
                && leader == by
            {
                let takes = fetched && before_fetch || accepted && before_command;
                state.wronged |= takes && floor & !seen != 0;
                *caller = if takes { Caller::Done } else { Caller::Again { floor } };
            }
        }
    }
}

impl State {
    /// `Leader::sending`: whoever is here joined before.
    fn command_sent(&mut self, by: usize) {
        for caller in &mut self.callers {
            if let Caller::Follows { leader, before_command, .. } = caller {
                *before_command |= *leader == by;
            }
        }
    }
}

impl Story for Scopes {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        State {
            server: Server::new(),
            writes: [Write::NotCalled; 2],
            callers: vec![Caller::Idle; self.readers.len()],
            copy: None,
            evictions: 1,
            wronged: false,
        }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = vec![Action::Evict(SCOPE), Action::Evict(TAG)];
        for at in 0..2 {
            actions.extend([Action::Call(at), Action::Execute(at), Action::Return(at)]);
        }
        for at in 0..self.readers.len() {
            actions.extend([Action::Join(at), Action::Lease(at), Action::FetchBegins(at)]);
            actions.extend([Action::Fill(at), Action::Finish(at)]);
        }
        actions
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Call(at) => self.write(state, at, Write::NotCalled, Write::Called),
            Action::Execute(at) => self.write(state, at, Write::Called, Write::Executed),
            Action::Return(at) => self.write(state, at, Write::Executed, Write::Returned),
            Action::Evict(generation) => {
                state.evictions = state.evictions.checked_sub(1)?;
                state.server.unlink(generation);
                Some(())
            }
            _ => self.call(state, action),
        }
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        for &reader @ (key, names) in self.readers {
            let read = state.server.hit(self.without, key, names);
            if read.is_some_and(|seen| self.reached(state, Write::Executed, reader) & !seen != 0) {
                return Some("G1: once a write is executed, Redis serves nothing older to whom it covers");
            }
            let covered = |of: Generations| names & !of == 0 || !self.without.has(Clause::NearHitCoversTags);
            let near = state.copy.filter(|(_, of)| key == 0 && covered(*of));
            if near.is_some_and(|(seen, _)| self.reached(state, Write::Returned, reader) & !seen != 0) {
                return Some("G3: at home, nothing older than what returned is served to whom it covers");
            }
        }
        state.wronged.then_some("G2: a call is never given anything older than what was executed before it began")
    }

    fn may_end(&self, state: &State) -> bool {
        state.callers.iter().all(|caller| *caller == Caller::Done) && state.writes == [Write::Returned; 2]
    }

    fn sights() -> Vec<Property<Told<Self>>> {
        vec![
            Property::sometimes("FILL is refused", |_, state: &State| {
                let refused = |caller: &Caller| matches!(caller, Caller::Leads { step: Step::Filled(_, false), .. });
                state.callers.iter().any(refused)
            }),
            Property::sometimes("a value outlives all writes", |_, state: &State| {
                state.writes == [Write::Returned; 2]
                    && state.server.values.iter().flatten().any(|value| value.seen == 3)
            }),
        ]
    }
}
