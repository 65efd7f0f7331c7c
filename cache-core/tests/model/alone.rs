//! A cache without Redis: flights, stripes and the near tier of one process.
//!
//! Versions are as in `lease.rs`: how many invalidations had been called when the fetch began.

use stateright::{Model, Property};

const CALLERS: usize = 3;

/// A clause that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    /// A near hit checks the stripes.
    HitChecksStripes,
    /// `store_alone`: the stripes are checked before followers are served.
    StripesAreTheVerdict,
    /// The watch is taken before the fetch begins.
    WatchBeforeFetch,
    /// Hand-out law (a).
    LawA,
    /// Hand-out law (b): the check comes after everybody has joined.
    LawB,
    /// `Flights::join`: a flight whose watch was bumped is not joined.
    DoomedFlightsAreLeft,
    /// `invalidate::bump_key` and `bump_covered`: flights first, then the near tier.
    FlightsFirst,
    /// An invalidation finds every leader, also one whose flight is not on the map any more: deposed, and its
    /// successor has ended; or replaced before its fetch began. **Not so in 00b7ca7**: `Flights::is_under_way` and
    /// `Flights::keys` look at the map only, and `store_alone` does not ask whether its term is over.
    FindsEveryLeader,
}

#[derive(Clone, Debug)]
pub(crate) struct Alone {
    /// Whether a fetch begins with the leadership, or other threads may come in between.
    pub(crate) at_once: bool,
    pub(crate) without: &'static [Clause],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    writes: [Write; 2],
    copy: Option<Copied>,
    callers: [Caller; CALLERS],
    /// The flight that can be joined: `Flights::shards`. Flights are named after the caller that began them.
    map: Option<u8>,
    /// Whether each flight's watch was bumped: `single_flight::State::watch`.
    doomed: [bool; CALLERS],
    faults: Faults,
    wronged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Faults {
    /// A leader is dropped or deposed.
    leader: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copied {
    version: u8,
    bumped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    NotCalled,
    Called,
    /// One of the two was looked at: the flights and the near tier.
    LookedOnce,
    Returned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Caller {
    Idle,
    Again {
        floor: u8,
    },
    /// `current` while its term is.
    Leads {
        floor: u8,
        flight: u8,
        current: bool,
        step: Step,
    },
    Follows {
        floor: u8,
        flight: u8,
        before_fetch: bool,
        before_check: bool,
    },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// The flight is joined; the fetch has not begun.
    Joined,
    Fetches {
        version: u8,
        bumped: bool,
    },
    /// `store_alone` has checked the stripes.
    Checked {
        version: u8,
        bumped: bool,
        accepted: bool,
    },
    /// The value is near, unless it was refused.
    Stored {
        version: u8,
        accepted: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Call(u8),
    /// The first look, at flights: where one is under way the stripe is bumped.
    Look(u8),
    /// The second, at the near tier: a copy is removed. The call returns.
    LookAgain(u8),
    Join(u8),
    FetchBegins(u8),
    /// `store_alone`: the check.
    Check(u8),
    /// The value is kept, with the watch of before the fetch.
    Keep(u8),
    /// `Leader::finish`.
    Finish(u8),
    Drop(u8),
    Depose(u8),
}

impl Alone {
    fn has(&self, clause: Clause) -> bool {
        !self.without.contains(&clause)
    }

    fn served(&self, state: &State) -> Option<u8> {
        let copy = state.copy?;
        (!copy.bumped || !self.has(Clause::HitChecksStripes)).then_some(copy.version)
    }

    fn g1(&self, state: &State) -> bool {
        self.served(state).is_none_or(|version| version >= state.newest(Write::Returned))
    }

    fn bump(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Look(write) | Action::LookAgain(write)) = action else { return None };
        let at = usize::from(write);
        let again = matches!(action, Action::LookAgain(_));
        if state.writes[at] != if again { Write::LookedOnce } else { Write::Called } {
            return None;
        }
        let looks_at_flights = again != self.has(Clause::FlightsFirst);
        if looks_at_flights {
            let leads = |caller: &Caller| matches!(caller, Caller::Leads { .. });
            let found = self.has(Clause::FindsEveryLeader) && state.callers.iter().any(leads);
            if found || state.map.is_some() {
                state.bump();
            }
        } else {
            state.copy = None;
        }
        state.writes[at] = if again { Write::Returned } else { Write::LookedOnce };
        Some(())
    }

    fn join(&self, state: &mut State, caller: u8) -> Option<()> {
        let at = usize::from(caller);
        let floor = match state.callers[at] {
            Caller::Idle => state.newest(Write::Returned),
            Caller::Again { floor } => floor,
            _ => return None,
        };
        let open =
            state.map.filter(|&flight| !state.doomed[usize::from(flight)] || !self.has(Clause::DoomedFlightsAreLeft));
        let step = Step::Joined;
        state.callers[at] = if let Some(flight) = open {
            if state.leader(flight).is_none() {
                state.doomed[usize::from(flight)] = false;
                Caller::Leads { floor, flight, current: true, step }
            } else {
                let (before_fetch, before_check) = (!self.has(Clause::LawA), !self.has(Clause::LawB));
                Caller::Follows { floor, flight, before_fetch, before_check }
            }
        } else {
            state.map = Some(caller);
            state.doomed[at] = false;
            Caller::Leads { floor, flight: caller, current: true, step }
        };
        Some(())
    }

    fn lead(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::FetchBegins(caller) | Action::Check(caller) | Action::Keep(caller) | Action::Finish(caller)) =
            action
        else {
            return None;
        };
        let at = usize::from(caller);
        let Caller::Leads { floor, flight, current, step } = state.callers[at] else { return None };
        let next = match (action, step) {
            (Action::FetchBegins(_), Step::Joined) => {
                if current {
                    state.doomed[usize::from(flight)] = false;
                    state.followers(flight, |before_fetch, _| *before_fetch = true);
                }
                Step::Fetches { version: state.newest(Write::Called), bumped: false }
            }
            (Action::Check(_), Step::Fetches { version, bumped }) => {
                // Of a deposed leader's events only the number is used up.
                if current {
                    state.followers(flight, |_, before_check| *before_check = true);
                }
                let dirty = bumped && self.has(Clause::WatchBeforeFetch);
                let accepted = !dirty || !self.has(Clause::StripesAreTheVerdict);
                Step::Checked { version, bumped: dirty, accepted }
            }
            (Action::Keep(_), Step::Checked { version, bumped, accepted }) => {
                if accepted {
                    state.copy = Some(Copied { version, bumped });
                }
                Step::Stored { version, accepted }
            }
            (Action::Finish(_), Step::Stored { .. }) => {
                state.finish(caller, flight, current, step);
                return Some(());
            }
            _ => return None,
        };
        state.callers[at] = Caller::Leads { floor, flight, current, step: next };
        Some(())
    }

    fn fail(&self, state: &mut State, action: Action) -> Option<()> {
        state.faults.leader = state.faults.leader.checked_sub(1)?;
        let next = match action {
            Action::Drop(caller) => {
                let at = usize::from(caller);
                let Caller::Leads { flight, current, .. } = state.callers[at] else { return None };
                state.callers[at] = Caller::Done;
                if !current {
                    return Some(());
                }
                let next = (0..3).find(|at| {
                    matches!(state.callers[usize::from(*at)], Caller::Follows { flight: followed, .. } if followed == flight)
                });
                if next.is_none() {
                    state.map = state.map.filter(|open| *open != flight);
                }
                next
            }
            Action::Depose(caller) => {
                let Caller::Follows { flight, .. } = state.callers[usize::from(caller)] else { return None };
                let leader = state.leader(flight)?;
                if let Caller::Leads { current, .. } = &mut state.callers[leader] {
                    *current = false;
                }
                Some(caller)
            }
            _ => return None,
        };
        // Another term, with the watch of its leader.
        if let Some(next) = next
            && let Caller::Follows { floor, flight, .. } = state.callers[usize::from(next)]
        {
            let step = Step::Joined;
            state.callers[usize::from(next)] = Caller::Leads { floor, flight, current: true, step };
            state.doomed[usize::from(flight)] = false;
            state.followers(flight, |before_fetch, _| *before_fetch = false);
        }
        Some(())
    }
}

impl State {
    fn newest(&self, reached: Write) -> u8 {
        (0..2).zip(1..).filter(|&(at, _)| self.writes[at] >= reached).map(|(_, number)| number).max().unwrap_or(0)
    }

    fn leader(&self, of: u8) -> Option<usize> {
        (0..CALLERS).find(|&at| matches!(self.callers[at], Caller::Leads { flight, current: true, .. } if flight == of))
    }

    fn followers(&mut self, of: u8, mut change: impl FnMut(&mut bool, &mut bool)) {
        for caller in &mut self.callers {
            if let Caller::Follows { flight, before_fetch, before_check, .. } = caller
                && *flight == of
            {
                change(before_fetch, before_check);
            }
        }
    }

    fn finish(&mut self, caller: u8, flight: u8, current: bool, step: Step) {
        // A deposed leader leaves the flight to its successor.
        if current {
            self.map = self.map.filter(|open| *open != flight);
        }
        for at in 0..CALLERS {
            let (floor, takes) = match self.callers[at] {
                Caller::Leads { floor, .. } if at == usize::from(caller) => (floor, true),
                Caller::Follows { floor, flight: followed, before_fetch, before_check }
                    if followed == flight && current =>
                {
                    let accepted = matches!(step, Step::Stored { accepted: true, .. });
                    (floor, before_fetch || accepted && before_check)
                }
                _ => continue,
            };
            self.wronged |= takes && matches!(step, Step::Stored { version, .. } if version < floor);
            self.callers[at] = if takes { Caller::Done } else { Caller::Again { floor } };
        }
    }

    /// Callers are alike, so their order says nothing.
    fn sort(&mut self) {
        for (a, b) in [(0_u8, 1_u8), (1, 2), (0, 1)] {
            let (at, other) = (usize::from(a), usize::from(b));
            if self.callers[other] < self.callers[at] {
                self.callers.swap(at, other);
                self.doomed.swap(at, other);
                let rename = |flight: &mut u8| {
                    *flight = if *flight == a {
                        b
                    } else if *flight == b {
                        a
                    } else {
                        *flight
                    };
                };
                self.map.iter_mut().for_each(rename);
                for caller in &mut self.callers {
                    if let Caller::Leads { flight, .. } | Caller::Follows { flight, .. } = caller {
                        rename(flight);
                    }
                }
            }
        }
    }

    /// The key's stripe is bumped: copies, flights and fetches that watch it are dirty.
    fn bump(&mut self) {
        self.copy.iter_mut().for_each(|copy| copy.bumped = true);
        self.doomed = [true; CALLERS];
        for caller in &mut self.callers {
            if let Caller::Leads { step: Step::Fetches { bumped, .. } | Step::Checked { bumped, .. }, .. } = caller {
                *bumped = true;
            }
        }
    }
}

impl Model for Alone {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            writes: [Write::NotCalled; 2],
            copy: None,
            callers: [Caller::Idle; CALLERS],
            map: None,
            doomed: [false; CALLERS],
            faults: Faults { leader: 1 },
            wronged: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for write in 0..2 {
            actions.extend([Action::Call(write), Action::Look(write), Action::LookAgain(write)]);
        }
        for caller in 0..3 {
            actions.extend([
                Action::Join(caller),
                Action::FetchBegins(caller),
                Action::Check(caller),
                Action::Keep(caller),
                Action::Finish(caller),
                Action::Drop(caller),
                Action::Depose(caller),
            ]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Call(write) => {
                let at = usize::from(write);
                if last.writes[at] != Write::NotCalled || at == 1 && last.writes[0] == Write::NotCalled {
                    return None;
                }
                state.writes[at] = Write::Called;
            }
            Action::Look(_) | Action::LookAgain(_) => self.bump(&mut state, action)?,
            Action::Join(caller) => self.join(&mut state, caller)?,
            Action::FetchBegins(_) | Action::Check(_) | Action::Keep(_) | Action::Finish(_) => {
                self.lead(&mut state, action)?;
            }
            Action::Drop(_) | Action::Depose(_) => self.fail(&mut state, action)?,
        }
        if self.at_once {
            for caller in 0..3 {
                if let Caller::Leads { step: Step::Joined, .. } = state.callers[usize::from(caller)] {
                    self.lead(&mut state, Action::FetchBegins(caller))?;
                }
            }
        }
        // Makes states equal between which nothing can tell.
        for (doomed, flight) in state.doomed.iter_mut().zip(0..) {
            *doomed &= state.map == Some(flight);
        }
        state.sort();
        if self.has(Clause::HitChecksStripes) {
            state.copy = state.copy.filter(|copy| !copy.bumped);
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if !self.without.is_empty() {
            return vec![Property::always("all guarantees", |model: &Self, state: &State| {
                model.g1(state) && !state.wronged
            })];
        }
        vec![
            Property::always("G1: nothing older than a returned invalidation is served near", Self::g1),
            Property::always(
                "G2: a call is never given anything older than what returned before it began",
                |_, state: &State| !state.wronged,
            ),
            Property::eventually("G5: every call ends", |_, state: &State| {
                state.callers.iter().all(|caller| *caller == Caller::Done)
            }),
            Property::sometimes("a value is refused", |_, state: &State| {
                let refused = |caller: &Caller| {
                    matches!(caller, Caller::Leads { step: Step::Stored { accepted: false, .. }, .. })
                };
                state.callers.iter().any(refused)
            }),
            Property::sometimes("a flight is replaced while it goes on", |_, state: &State| {
                let leads = |caller: &&Caller| matches!(caller, Caller::Leads { current: true, .. });
                state.callers.iter().filter(leads).count() == 2
            }),
        ]
    }
}
