//! The write fence: `invalidate_and_hold` before a commit, and whoever reads the row meanwhile.
//!
//! A write here is a commit. Its caller first puts a fence up, and commits after that has returned; a fence lasts until
//! then at least, and ends at any time after. A fetch reads the row at one moment and has seen what was committed by then.
//!
//! Only what the fence adds is held here: near copies and their bounds are those of `near.rs`, a fence that is lost ends its
//! protection early, and a `set` of a row read before the commit must not come after the fence.

use stateright::Property;

use crate::{
    check::{Kind, Story, Told},
    server::{Clause, Lease, Leased, SCOPE, Server, Without, Writes},
};

/// How far a hold is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    NotCalled,
    /// In the journal, and bumped at home.
    Called,
    /// Executed by the server; without Redis: the first of fence and bump is done.
    Executed,
    /// The reply: bumped again and acknowledged; without Redis: both are done.
    Held,
    Committed,
}

fn committed(writes: [Write; 2]) -> Writes {
    (0..2).filter(|&at| writes[at] == Write::Committed).fold(0, |seen, at| seen | 1 << at)
}

/// Beside Redis. Process `i` calls hold `i`, and has one call that reads through.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    /// What the other process does beside: a second hold, a plain invalidation, a `set`.
    pub(crate) other: Other,
    pub(crate) without: Without,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Other {
    Hold,
    Invalidate,
    Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    server: Server<1>,
    writes: [Write; 2],
    /// Fences of this process that are up: `State::holds`.
    own: [Writes; 2],
    /// Whether the other process has heard the notice of each hold.
    heard: [bool; 2],
    callers: [Caller; 2],
    copies: [Option<Copied>; 2],
    set: Set,
    /// A LEASE that fails; a leader that is dropped, or loses the reply to FILL.
    faults: [u8; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Idle,
    /// `Storage` is decided on.
    Decided(Storage),
    /// The watch is taken.
    Watches(Storage, Dirty),
    /// The row is read.
    Fetched(Storage, Dirty, Writes),
    /// Dropped; RELEASE is under way.
    Left,
    Done,
}

type Dirty = bool;

/// `lead::Storage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Storage {
    Fill,
    Unconfirmed,
    Nowhere,
}

/// A near copy that nothing has bumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copied {
    seen: Writes,
    /// Served until `asked_at` + 3 s only.
    bounded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Set {
    Idle,
    /// Its row is read.
    Called(Writes),
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    /// `invalidate_and_hold` is called.
    Call(usize),
    Execute(usize),
    /// The reply.
    Return(usize),
    Commit(usize),
    Hear(usize),
    /// The server's fence ends.
    End,
    /// This process's own fence ends.
    EndOwn(usize),
    Invalidate,
    /// The row for a `set` is read.
    CallSet,
    Set,
    /// A call finds its own process's invalidation pending.
    MustMiss(usize),
    Lease(usize),
    LeaseFails(usize),
    Watch(usize),
    ReadRow(usize),
    /// The fetch ends: FILL, or what else becomes of the value.
    FetchEnds(usize),
    Drop(usize),
    Release(usize),
    /// FILL is executed, and its reply is lost.
    LoseFill(usize),
}

impl Fence {
    fn holds(&self) -> usize {
        if self.other == Other::Hold { 2 } else { 1 }
    }

    fn bump(state: &mut State, process: usize) {
        state.copies[process] = None;
        if let Caller::Watches(_, dirty) | Caller::Fetched(_, dirty, _) = &mut state.callers[process] {
            *dirty = true;
        }
    }

    fn write(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Call(at) | Action::Execute(at) | Action::Return(at) | Action::Commit(at)) = action else {
            return None;
        };
        if at >= self.holds() {
            return None;
        }
        state.writes[at] = match (action, state.writes[at]) {
            (Action::Call(_), Write::NotCalled) => {
                if self.without.has(Clause::OwnFencesAreKnown) {
                    state.own[at] = 1 << at;
                }
                Self::bump(state, at);
                Write::Called
            }
            (Action::Execute(_), Write::Called) => {
                state.server.hold(self.without, 0, 1 << at);
                Write::Executed
            }
            (Action::Return(_), Write::Executed) => {
                Self::bump(state, at);
                Write::Held
            }
            (Action::Commit(_), Write::Held) => Write::Committed,
            _ => return None,
        };
        Some(())
    }

    fn call(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::MustMiss(at)
        | Action::Lease(at)
        | Action::LeaseFails(at)
        | Action::Watch(at)
        | Action::ReadRow(at)
        | Action::FetchEnds(at)
        | Action::Drop(at)
        | Action::Release(at)
        | Action::LoseFill(at)) = action
        else {
            return None;
        };
        let by = at as u8;
        let pending = matches!(state.writes[at], Write::Called | Write::Executed);
        state.callers[at] = match (action, state.callers[at]) {
            (Action::MustMiss(_), Caller::Idle) if pending => Caller::Decided(Storage::Unconfirmed),
            (Action::LeaseFails(_), Caller::Idle) if !pending => {
                state.faults[0] = state.faults[0].checked_sub(1)?;
                Caller::Decided(Storage::Unconfirmed)
            }
            (Action::Lease(_), Caller::Idle) if !pending => match state.server.lease(self.without, 0, by, SCOPE) {
                Leased::Taken => return None,
                Leased::Granted => Caller::Decided(Storage::Fill),
                Leased::Fenced => Caller::Decided(Storage::Nowhere),
                Leased::Found(_) => Caller::Done,
            },
            (Action::Watch(_), Caller::Decided(storage)) => {
                // The watch, and then the look at this process's own fences.
                if state.own[at] == 0 {
                    Caller::Watches(storage, false)
                } else {
                    state.server.release(self.without, 0, by);
                    Caller::Watches(Storage::Nowhere, false)
                }
            }
            (Action::ReadRow(_), Caller::Watches(storage, dirty)) => {
                Caller::Fetched(storage, dirty, committed(state.writes))
            }
            (Action::FetchEnds(_), Caller::Fetched(storage, dirty, seen)) => {
                let kept = match storage {
                    Storage::Fill => state.server.fill(self.without, 0, by, SCOPE, seen),
                    Storage::Unconfirmed => true,
                    Storage::Nowhere => !self.without.has(Clause::FencedKeepsNothing),
                };
                if kept && !dirty {
                    state.copies[at] = Some(Copied { seen, bounded: storage == Storage::Unconfirmed });
                }
                Caller::Done
            }
            (
                Action::Drop(_),
                Caller::Decided(Storage::Fill) | Caller::Watches(Storage::Fill, _) | Caller::Fetched(Storage::Fill, ..),
            ) => {
                state.faults[1] = state.faults[1].checked_sub(1)?;
                Caller::Left
            }
            (Action::LoseFill(_), Caller::Fetched(Storage::Fill, dirty, seen)) => {
                state.faults[1] = state.faults[1].checked_sub(1)?;
                state.server.fill(self.without, 0, by, SCOPE, seen);
                if !dirty {
                    state.copies[at] = Some(Copied { seen, bounded: true });
                }
                Caller::Done
            }
            (Action::Release(_), Caller::Left) => {
                state.server.release(self.without, 0, by);
                Caller::Done
            }
            _ => return None,
        };
        Some(())
    }
}

impl Story for Fence {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        State {
            server: Server::new(),
            writes: [Write::NotCalled; 2],
            own: [0; 2],
            heard: [false; 2],
            callers: [Caller::Idle; 2],
            copies: [None; 2],
            set: if self.other == Other::Set { Set::Idle } else { Set::Done },
            faults: [1; 2],
        }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = vec![Action::End, Action::Invalidate, Action::CallSet, Action::Set];
        for at in 0..2 {
            actions.extend([Action::Call(at), Action::Execute(at), Action::Return(at), Action::Commit(at)]);
            actions.extend([Action::Hear(at), Action::EndOwn(at), Action::MustMiss(at), Action::Lease(at)]);
            actions.extend([Action::LeaseFails(at), Action::Watch(at), Action::ReadRow(at), Action::FetchEnds(at)]);
            actions.extend([Action::Drop(at), Action::Release(at), Action::LoseFill(at)]);
        }
        actions
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Call(_) | Action::Execute(_) | Action::Return(_) | Action::Commit(_) => {
                return self.write(state, action);
            }
            Action::Hear(write) => {
                if state.heard[write] || state.writes[write] < Write::Executed {
                    return None;
                }
                state.heard[write] = true;
                Self::bump(state, 1 - write);
            }
            Action::End => {
                let Lease::Fence(lasts) = state.server.leases[0] else { return None };
                let late = matches!(state.set, Set::Called(seen) if seen & lasts != lasts);
                if lasts & !committed(state.writes) != 0 || late {
                    return None;
                }
                state.server.leases[0] = Lease::Free;
            }
            Action::EndOwn(at) => {
                if state.own[at] == 0 || state.own[at] & !committed(state.writes) != 0 {
                    return None;
                }
                state.own[at] = 0;
            }
            Action::Invalidate => {
                if self.other != Other::Invalidate || state.writes[1] != Write::NotCalled {
                    return None;
                }
                state.writes[1] = Write::Held;
                state.server.invalidate(self.without, 0);
                Self::bump(state, 1);
            }
            Action::CallSet if state.set == Set::Idle => state.set = Set::Called(committed(state.writes)),
            Action::Set => {
                let Set::Called(seen) = state.set else { return None };
                state.server.set(self.without, 0, SCOPE, seen);
                state.set = Set::Done;
            }
            Action::CallSet => return None,
            _ => return self.call(state, action),
        }
        Some(())
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let committed = committed(state.writes);
        if state.server.values[0].is_some() && matches!(state.server.leases[0], Lease::Fence(_)) {
            return Some("nobody stores while a fence is up");
        }
        let stale = |seen: Writes, write: usize| committed & 1 << write & !seen != 0;
        for write in 0..self.holds() {
            if state.server.hit(self.without, 0, SCOPE).is_some_and(|seen| stale(seen, write)) {
                return Some("G1: a row read before a fenced commit is not in Redis after it");
            }
            if state.copies[write].is_some_and(|copy| stale(copy.seen, write)) {
                return Some("nor near at home");
            }
            let elsewhere = |copy: Copied| !copy.bounded && state.heard[write] && stale(copy.seen, write);
            if state.copies[1 - write].is_some_and(elsewhere) {
                return Some("nor elsewhere, beyond the bound");
            }
        }
        None
    }

    fn may_end(&self, state: &State) -> bool {
        state.callers == [Caller::Done; 2] && state.writes[..self.holds()].iter().all(|at| *at == Write::Committed)
    }

    fn kind(&self, action: Action) -> Kind {
        match action {
            Action::LeaseFails(_) | Action::Drop(_) | Action::LoseFill(_) => Kind::Fault,
            _ => Kind::Step,
        }
    }

    fn sights() -> Vec<Property<Told<Self>>> {
        vec![
            Property::sometimes("a value is stored after a fence", |_, state: &State| {
                state.server.values[0].is_some_and(|value| value.seen != 0)
            }),
            Property::sometimes("a fetch under a fence", |_, state: &State| {
                state.callers.iter().any(|caller| matches!(caller, Caller::Fetched(Storage::Nowhere, ..)))
            }),
            Property::sometimes("FILL finds a fence", |_, state: &State| {
                let fills = |caller: &Caller| matches!(caller, Caller::Fetched(Storage::Fill, ..));
                matches!(state.server.leases[0], Lease::Fence(_)) && state.callers.iter().any(fills)
            }),
        ]
    }
}

/// Without Redis: `hold.rs`, one fetch and one `set`, whose row was read before it was called.
#[derive(Clone, Debug)]
pub(crate) struct Embedded {
    pub(crate) without: Without,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    writes: [Write; 2],
    /// Until which writes are committed a fence is up.
    fence: Writes,
    /// The fetch, and the `set`.
    storing: [Storing; 2],
    copy: Option<Writes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Storing {
    step: u8,
    seen: Writes,
    dirty: bool,
    refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    ReadRow,
    Watch,
    LookAtFence,
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Move {
    Call(usize),
    Fence(usize),
    Bump(usize),
    Commit(usize),
    End,
    /// The next step of the fetch, or of the `set`.
    Next(usize),
}

impl Embedded {
    /// What the fetch and the `set` do, in this order.
    fn parts(&self, of: usize) -> [Part; 4] {
        let (first, second) = (Part::Watch, Part::LookAtFence);
        let (first, second) = if self.without.has(Clause::FenceAfterWatch) { (first, second) } else { (second, first) };
        if of == 0 { [first, second, Part::ReadRow, Part::Keep] } else { [Part::ReadRow, first, second, Part::Keep] }
    }
}

impl Story for Embedded {
    type State = Memory;
    type Action = Move;

    fn start(&self) -> Memory {
        let storing = Storing { step: 0, seen: 0, dirty: false, refused: false };
        Memory { writes: [Write::NotCalled; 2], fence: 0, storing: [storing; 2], copy: None }
    }

    fn actions(&self) -> Vec<Move> {
        let each = |at| [Move::Call(at), Move::Fence(at), Move::Bump(at), Move::Commit(at), Move::Next(at)];
        [[Move::End; 5], each(0), each(1)].into_iter().flatten().collect()
    }

    fn step(&self, state: &mut Memory, action: Move) -> Option<()> {
        let fence_first = self.without.has(Clause::FenceBeforeBump);
        match action {
            Move::Call(at) if state.writes[at] == Write::NotCalled => state.writes[at] = Write::Called,
            Move::Fence(at) if state.writes[at] == if fence_first { Write::Called } else { Write::Executed } => {
                let kept = if self.without.has(Clause::HoldNeverShortens) { state.fence } else { 0 };
                state.fence = kept | 1 << at;
                state.writes[at] = if fence_first { Write::Executed } else { Write::Held };
            }
            Move::Bump(at) if state.writes[at] == if fence_first { Write::Executed } else { Write::Called } => {
                if self.without.has(Clause::HoldBumpsAlways) || (1..4).contains(&state.storing[0].step) {
                    state.storing.iter_mut().for_each(|storing| storing.dirty = true);
                }
                state.copy = None;
                state.writes[at] = if fence_first { Write::Held } else { Write::Executed };
            }
            Move::Commit(at) if state.writes[at] == Write::Held => state.writes[at] = Write::Committed,
            Move::End => {
                let set = state.storing[1];
                let looked = 1 + self.parts(1).iter().position(|part| *part == Part::LookAtFence)? as u8;
                let late = (1..looked).contains(&set.step) && state.fence & !set.seen != 0;
                if state.fence == 0 || state.fence & !committed(state.writes) != 0 || late {
                    return None;
                }
                state.fence = 0;
            }
            Move::Next(of) => {
                let part = *self.parts(of).get(usize::from(state.storing[of].step))?;
                let storing = &mut state.storing[of];
                storing.step += 1;
                match part {
                    Part::ReadRow => storing.seen = committed(state.writes),
                    Part::Watch => storing.dirty = false,
                    Part::LookAtFence => storing.refused = state.fence != 0,
                    // A copy whose watch was bumped is never served.
                    Part::Keep if !storing.refused && !storing.dirty => state.copy = Some(storing.seen),
                    Part::Keep => {}
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn broken(&self, state: &Memory) -> Option<&'static str> {
        let stale = state.copy.is_some_and(|seen| committed(state.writes) & !seen != 0);
        stale.then_some("G1: a row read before a fenced commit is not served after it")
    }

    fn may_end(&self, state: &Memory) -> bool {
        state.writes == [Write::Committed; 2] && state.storing.iter().all(|storing| storing.step == 4)
    }

    fn sights() -> Vec<Property<Told<Self>>> {
        vec![
            Property::sometimes("a value is kept after a fence", |_, state: &Memory| state.copy == Some(3)),
            Property::sometimes("a fence is seen", |_, state: &Memory| state.storing[0].refused),
        ]
    }
}
