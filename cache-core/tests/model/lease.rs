//! The steps of Redis: one key, its lease, one generation and the sweep fence; strict reads, no near tier.
//!
//! **Versions.** What a value is worth is how many writes had been *called* when its fetch began: once the server has
//! executed write number `i`, every value below `i` must be unreadable. That is more than is promised (only the reply
//! acknowledges it), so the reply needs no action. No clock and no database is needed.
//!
//! **READ** has no action. A hit returns what V holds at that moment to a call that began before it, so the property
//! `G1` says in every state that a READ executed there is right. A miss, and a READ that failed, leads to `Join`, which
//! may come at any time. The same goes for the moment between a command's sending and its execution where nothing
//! but a more cautious verdict depends on it.
//!
//! **Ids** are random, so all that matters of a noted one is whether it is the current one: one bit. A new id makes
//! every noted one outdated. A caller leads at most once, so its number is its token.

use stateright::{Model, Property};

pub(crate) const CALLERS: usize = 3;

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `invalidate.lua`.
    Key,
    /// `Remote::invalidate_generation`: of a keyspace or tenant.
    Keyspace,
    /// `Remote::sweep`: the fence, then what SCAN finds.
    Pattern,
    /// `set.lua`.
    Set,
}

/// A clause of a step that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    /// FILL: is the lease mine?
    FillComparesToken,
    /// FILL: are the generations as noted?
    FillComparesGenerations,
    /// FILL: is the sweep fence as noted?
    FillComparesFence,
    /// FILL: drop the lease.
    FillDropsLease,
    /// READ and LEASE: are V's generations current?
    HitComparesGenerations,
    /// LEASE: a taken lease is not given to another.
    LeaseIsExclusive,
    /// LEASE: a lease whose generations are outdated is taken over.
    LeaseTakesOverOutdated,
    /// A generation or fence that was lost comes back under another id.
    RandomIds,
    /// SET drops the lease.
    SetDropsLease,
    /// INVALIDATE drops the lease.
    InvalidateDropsLease,
    /// RELEASE: is the lease mine?
    ReleaseComparesToken,
    /// Hand-out law (a): whoever joined after the fetch began is not served by that.
    LawA,
    /// Hand-out law (b): whoever joined after the command was sent is not served by its verdict.
    LawB,
    /// A flight to which no verdict will come is closed when its fetch begins.
    ClosesWithoutVerdict,
    /// That there is nothing is judged like a value, by a FILL that stores nothing.
    NothingIsJudged,
}

#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) writes: &'static [Mode],
    /// The process each caller belongs to.
    pub(crate) processes: [u8; CALLERS],
    pub(crate) faults: Faults,
    pub(crate) without: Option<Clause>,
}

/// How often each may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// The lease's period ends.
    pub(crate) expiry: u8,
    /// One of V, L, G, F is evicted.
    pub(crate) eviction: u8,
    /// A leader is dropped, deposed, or loses the reply to its FILL.
    pub(crate) leader: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    value: Option<Value>,
    lease: Option<Lease>,
    /// Whether generation and fence exist.
    generation: bool,
    fence: bool,
    writes: [Write; 2],
    callers: [Caller; CALLERS],
    /// What a caller that is gone has still under way.
    left: [Left; CALLERS],
    /// Whose lease was lost, by a fault or a write, not by another's command.
    lost: [bool; CALLERS],
    faults: Faults,
    /// A call was given something older than a write executed before it began.
    wronged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Value {
    version: u8,
    /// Whether its generation is the one that exists, or was the last to exist.
    current: bool,
    /// Sweeps that are sure to find it: it was there when they began.
    found_by: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lease {
    holder: u8,
    generation_current: bool,
    fence_current: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    NotCalled,
    Called,
    /// A pattern's fence is gone.
    Fenced,
    Executed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Caller {
    Idle,
    /// `Awaited::GoAround`. `floor` is the newest write executed before the call began.
    Again {
        floor: u8,
    },
    /// `single_flight::Leader`; `open` while its flight can be joined.
    Leads {
        floor: u8,
        step: Step,
        open: bool,
    },
    /// `single_flight::Follower`: whether it joined before the fetch began, and before the last command was sent.
    Follows {
        floor: u8,
        leader: u8,
        before_fetch: bool,
        before_command: bool,
    },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// LEASE is to be sent, again and again while another holds it.
    Asks,
    /// LEASE has found a value; the reply is under way.
    Found(u8),
    /// The lease is granted; the fetch has not begun.
    Granted,
    /// `Storage::Nowhere`: waited in vain for another process.
    GaveUp,
    Fetches {
        version: u8,
        stores: bool,
    },
    /// FILL is executed; the reply is under way.
    Filled {
        version: u8,
        accepted: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Left {
    Nothing,
    /// `write::fill` runs in a task of its own.
    Fill(u8),
    /// `lead::Release` dropped.
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A write is called; its data is committed.
    Call(u8),
    /// The server executes it: for a pattern the unlinking of the fence.
    Execute(u8),
    /// `scan::sweep` ends.
    Sweep(u8),
    /// A call begins, misses and joins the flight, or begins one: `Flights::join`.
    Join(u8),
    /// `lease.lua`.
    Lease(u8),
    /// `take_lease` has waited for a lease period in all.
    GiveUp(u8),
    /// `Taking::Found`: the flight ends.
    TakeFound(u8),
    /// `Leader::fetch_begins`.
    FetchBegins(u8),
    /// The fetch ends and `fill.lua` is executed; without a lease the flight ends.
    FetchEnds(u8),
    /// The fetch ends with nothing that is to be stored: `fill.lua` with a TTL of zero is executed.
    FindsNothing(u8),
    /// The reply to FILL: the flight ends.
    Finish(u8),
    /// RENEW was refused, or a notice has doomed the flight: nobody joins it any more.
    Close(u8),
    /// The leader's future is dropped.
    Drop(u8),
    /// The same after FILL was sent.
    DropAfterFill(u8),
    /// The reply to FILL does not come in time; the command may be executed yet.
    LoseFill(u8),
    /// `Follower::depose`.
    Depose(u8),
    /// The server executes what a gone caller has left.
    Late(u8),
    Expire,
    EvictValue,
    EvictLease,
    EvictGeneration,
    EvictFence,
}

impl Protocol {
    fn has(&self, clause: Clause) -> bool {
        self.without != Some(clause)
    }

    /// Whether V is a hit.
    fn hit(&self, state: &State) -> Option<u8> {
        let value = state.value?;
        let valid = state.generation && value.current || !self.has(Clause::HitComparesGenerations);
        valid.then_some(value.version)
    }

    /// Whether FILL by this caller would be accepted now.
    fn accepts(&self, state: &State, caller: u8) -> bool {
        state.lease.is_some_and(|lease| {
            (lease.holder == caller || !self.has(Clause::FillComparesToken))
                && (state.generation && lease.generation_current || !self.has(Clause::FillComparesGenerations))
                && (state.fence && lease.fence_current || !self.has(Clause::FillComparesFence))
        })
    }

    /// `fill.lua`. Returns whether the value was stored.
    fn fill(&self, state: &mut State, caller: u8, version: u8) -> bool {
        let accepted = self.accepts(state, caller);
        let mine = state.lease.is_some_and(|lease| lease.holder == caller);
        if (mine || accepted) && self.has(Clause::FillDropsLease) {
            state.lease = None;
        }
        if accepted {
            state.value = Some(Value { version, current: true, found_by: 0 });
        }
        accepted
    }

    /// `fill.lua` with a TTL of zero. Returns whether a value would have been stored.
    fn judge(&self, state: &mut State, caller: u8) -> bool {
        let accepted = self.accepts(state, caller) || !self.has(Clause::NothingIsJudged);
        let _ = state.lease.take_if(|lease| lease.holder == caller);
        accepted
    }

    /// A lost generation is created: what noted the old id is outdated.
    fn create_generation(&self, state: &mut State) {
        if !state.generation && self.has(Clause::RandomIds) {
            state.value.iter_mut().for_each(|value| value.current = false);
            state.lease.iter_mut().for_each(|lease| lease.generation_current = false);
        }
        state.generation = true;
    }

    fn create_fence(&self, state: &mut State) {
        if !state.fence && self.has(Clause::RandomIds) {
            state.lease.iter_mut().for_each(|lease| lease.fence_current = false);
        }
        state.fence = true;
    }

    fn execute(&self, state: &mut State, write: u8) -> Option<()> {
        let at = usize::from(write);
        if state.writes[at] != Write::Called {
            return None;
        }
        state.writes[at] = Write::Executed;
        match self.writes[at] {
            Mode::Key => {
                state.value = None;
                if self.has(Clause::InvalidateDropsLease) {
                    state.lose_lease();
                }
            }
            Mode::Keyspace => state.generation = false,
            Mode::Pattern => {
                state.fence = false;
                state.value.iter_mut().for_each(|value| value.found_by |= 1 << write);
                state.writes[at] = Write::Fenced;
            }
            Mode::Set => {
                self.create_generation(state);
                if self.has(Clause::SetDropsLease) {
                    state.lose_lease();
                }
                state.value = Some(Value { version: write + 1, current: true, found_by: 0 });
            }
        }
        Some(())
    }

    /// The steps of a leader that are its own; `None` where it has to wait.
    fn lead(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Lease(caller)
        | Action::GiveUp(caller)
        | Action::TakeFound(caller)
        | Action::FetchBegins(caller)
        | Action::FetchEnds(caller)
        | Action::FindsNothing(caller)
        | Action::Finish(caller)) = action
        else {
            return None;
        };
        let at = usize::from(caller);
        let Caller::Leads { floor, step, mut open } = state.callers[at] else { return None };
        let next = match (action, step) {
            (Action::Lease(_), Step::Asks) => {
                let found = self.lease(state, caller)?;
                state.command_sent(caller);
                found
            }
            (Action::GiveUp(_), Step::Asks) if state.lease.is_some_and(|lease| lease.holder != caller) => {
                open &= !self.has(Clause::ClosesWithoutVerdict);
                Step::GaveUp
            }
            (Action::FetchBegins(_), Step::Granted | Step::GaveUp) => {
                state.fetch_begins(caller);
                Step::Fetches { version: state.called(), stores: step == Step::Granted }
            }
            (Action::FetchEnds(_), Step::Fetches { version, stores: true }) => {
                state.command_sent(caller);
                Step::Filled { version, accepted: self.fill(state, caller, version) }
            }
            (Action::FindsNothing(_), Step::Fetches { version, stores: true }) => {
                state.command_sent(caller);
                Step::Filled { version, accepted: self.judge(state, caller) }
            }
            (Action::FetchEnds(_), Step::Fetches { version, stores: false }) => {
                state.finish(caller, version, true, false);
                return Some(());
            }
            (Action::TakeFound(_), Step::Found(version)) => {
                state.finish(caller, version, false, true);
                return Some(());
            }
            (Action::Finish(_), Step::Filled { version, accepted }) => {
                state.finish(caller, version, true, accepted);
                return Some(());
            }
            _ => return None,
        };
        state.callers[at] = Caller::Leads { floor, step: next, open };
        Some(())
    }

    /// `lease.lua`. `None` when the lease is taken.
    fn lease(&self, state: &mut State, caller: u8) -> Option<Step> {
        self.create_generation(state);
        self.create_fence(state);
        if let Some(version) = self.hit(state) {
            return Some(Step::Found(version));
        }
        if let Some(lease) = state.lease {
            let current = lease.generation_current && lease.fence_current;
            let stays = current || !self.has(Clause::LeaseTakesOverOutdated);
            if lease.holder != caller && stays && self.has(Clause::LeaseIsExclusive) {
                return None;
            }
            if lease.holder != caller && !current {
                state.lose_lease();
            }
        }
        state.lease = Some(Lease { holder: caller, generation_current: true, fence_current: true });
        Some(Step::Granted)
    }

    fn join(&self, state: &mut State, caller: u8) -> Option<()> {
        let floor = match state.callers[usize::from(caller)] {
            Caller::Idle => state.executed(),
            Caller::Again { floor } => floor,
            _ => return None,
        };
        let process = self.processes[usize::from(caller)];
        let leader = (0..CALLERS).find(|&other| {
            self.processes[other] == process && matches!(state.callers[other], Caller::Leads { open: true, .. })
        });
        state.callers[usize::from(caller)] = match leader {
            None => Caller::Leads { floor, step: Step::Asks, open: true },
            Some(leader) => Caller::Follows {
                floor,
                leader: leader as u8,
                before_fetch: !self.has(Clause::LawA),
                before_command: !self.has(Clause::LawB),
            },
        };
        Some(())
    }

    /// What may go wrong with a leader.
    fn fail(&self, state: &mut State, action: Action) -> Option<()> {
        state.faults.leader = state.faults.leader.checked_sub(1)?;
        let (Action::Drop(caller) | Action::DropAfterFill(caller) | Action::LoseFill(caller) | Action::Depose(caller)) =
            action
        else {
            return None;
        };
        let at = usize::from(caller);
        if let Action::Depose(_) = action {
            let Caller::Follows { leader, .. } = state.callers[at] else { return None };
            let Caller::Leads { floor, step, open } = state.callers[usize::from(leader)] else { return None };
            state.hand_over(leader, caller, open);
            state.callers[usize::from(leader)] = Caller::Leads { floor, step, open: false };
            return Some(());
        }
        let Caller::Leads { step, open, .. } = state.callers[at] else { return None };
        match (action, step) {
            (Action::Drop(_), Step::Asks | Step::Granted | Step::Fetches { stores: true, .. }) => {
                state.left[at] = Left::Release;
            }
            (Action::Drop(_), _) => {}
            (Action::DropAfterFill(_), Step::Fetches { version, stores: true }) => {
                state.left[at] = Left::Fill(version);
            }
            (Action::LoseFill(_), Step::Fetches { version, stores: true }) => {
                state.left[at] = Left::Fill(version);
                state.finish(caller, version, true, false);
                return Some(());
            }
            _ => return None,
        }
        state.callers[at] = Caller::Done;
        if let Some(next) = state.followers(caller).next() {
            state.hand_over(caller, next, open);
        }
        Some(())
    }

    fn late(&self, state: &mut State, caller: u8) -> Option<()> {
        let left = std::mem::replace(&mut state.left[usize::from(caller)], Left::Nothing);
        match left {
            Left::Nothing => return None,
            Left::Fill(version) => drop(self.fill(state, caller, version)),
            Left::Release => {
                let mine = |lease: &mut Lease| lease.holder == caller || !self.has(Clause::ReleaseComparesToken);
                let _ = state.lease.take_if(mine);
            }
        }
        Some(())
    }

    /// The guarantee that does not hold in this state, if one does not.
    fn violated(&self, state: &State) -> Option<&'static str> {
        [(G1, self.g1(state)), (G2, !state.wronged), (G4, self.g4(state)), (G4_FLEET, self.g4_fleet(state))]
            .into_iter()
            .find_map(|(name, holds)| (!holds).then_some(name))
    }

    /// Already when a write is executed: nothing older is a hit. (`near.rs` builds on that.)
    fn g1(&self, state: &State) -> bool {
        self.hit(state).is_none_or(|version| version >= state.executed())
    }

    fn g4(&self, state: &State) -> bool {
        (0..CALLERS).zip(0..).filter(|&(at, caller)| state.stores(at) && self.accepts(state, caller)).count() <= 1
    }

    /// Doomed fetches of those who lost their lease may go on beside it.
    fn g4_fleet(&self, state: &State) -> bool {
        (0..CALLERS).filter(|&at| state.stores(at) && !state.lost[at]).count() <= 1
    }

    /// Makes states equal between which nothing can tell.
    fn normalize(&self, state: &mut State) {
        let compares = [
            Clause::RandomIds,
            Clause::HitComparesGenerations,
            Clause::FillComparesGenerations,
            Clause::FillComparesFence,
            Clause::FillComparesToken,
            Clause::LeaseTakesOverOutdated,
        ];
        if !compares.iter().any(|clause| self.without == Some(*clause)) {
            // A lost id never comes back, so what noted it is outdated for good, and it does not matter when the next
            // one is created.
            state.value = state.value.filter(|value| state.generation && value.current);
            if let Some(lease) = &mut state.lease {
                let current = state.generation && lease.generation_current && state.fence && lease.fence_current;
                (lease.generation_current, lease.fence_current) = (current, current);
            }
            (state.generation, state.fence) = (true, true);
            // What was left under a lost lease changes nothing.
            for (left, caller) in state.left.iter_mut().zip(0..) {
                if state.lease.is_none_or(|lease| lease.holder != caller) && self.has(Clause::ReleaseComparesToken) {
                    *left = Left::Nothing;
                }
            }
        }
        // Where nobody is left who might join, it does not matter whether somebody could.
        for at in 0..CALLERS {
            let may_join = (0..CALLERS).any(|other| {
                let process = self.processes[other] == self.processes[at];
                process && matches!(state.callers[other], Caller::Idle | Caller::Again { .. } | Caller::Follows { .. })
            });
            if let Caller::Leads { open, .. } = &mut state.callers[at] {
                *open &= may_join;
            }
        }
        for at in 0..CALLERS {
            state.lost[at] &= state.stores(at);
        }
        self.sort(state);
    }

    /// Callers of one process are alike, so their order says nothing.
    fn sort(&self, state: &mut State) {
        for (a, b) in [(0, 1), (1, 2), (0, 1)] {
            if self.processes[a] == self.processes[b]
                && (state.callers[b], state.left[b]) < (state.callers[a], state.left[a])
            {
                state.swap(a, b);
            }
        }
    }
}

impl State {
    fn newest(&self, reached: Write) -> u8 {
        (0..2).zip(1..).filter(|&(at, _)| self.writes[at] >= reached).map(|(_, number)| number).max().unwrap_or(0)
    }

    fn called(&self) -> u8 {
        self.newest(Write::Called)
    }

    fn executed(&self) -> u8 {
        self.newest(Write::Executed)
    }

    fn lose_lease(&mut self) -> Option<Lease> {
        let lease = self.lease.take()?;
        self.lost[usize::from(lease.holder)] = true;
        Some(lease)
    }

    fn followers(&self, of: u8) -> impl Iterator<Item = u8> + use<> {
        let callers = self.callers;
        (0..3).filter(move |&at| matches!(callers[usize::from(at)], Caller::Follows { leader, .. } if leader == of))
    }

    /// Whether this caller fetches, or is about to, under a lease that it was granted.
    fn stores(&self, at: usize) -> bool {
        matches!(self.callers[at], Caller::Leads { step: Step::Granted | Step::Fetches { stores: true, .. }, .. })
    }

    /// `Leader::sending`: whoever is here joined before.
    fn command_sent(&mut self, by: u8) {
        for caller in &mut self.callers {
            if let Caller::Follows { leader, before_command, .. } = caller
                && *leader == by
            {
                *before_command = true;
            }
        }
    }

    fn fetch_begins(&mut self, by: u8) {
        for caller in &mut self.callers {
            if let Caller::Follows { leader, before_fetch, .. } = caller
                && *leader == by
            {
                *before_fetch = true;
            }
        }
    }

    /// `Leader::finish`, and `Follower::judge` of all who waited.
    fn finish(&mut self, by: u8, version: u8, fetched: bool, accepted: bool) {
        for at in 0..CALLERS {
            let (floor, takes) = match self.callers[at] {
                Caller::Leads { floor, .. } if at == usize::from(by) => (floor, true),
                Caller::Follows { floor, leader, before_fetch, before_command } if leader == by => {
                    (floor, fetched && before_fetch || accepted && before_command)
                }
                _ => continue,
            };
            self.wronged |= takes && version < floor;
            self.callers[at] = if takes { Caller::Done } else { Caller::Again { floor } };
        }
    }

    /// Another term: `next` leads, and the others follow it.
    fn hand_over(&mut self, from: u8, next: u8, open: bool) {
        for at in 0..CALLERS {
            if let Caller::Follows { floor, leader, before_command, .. } = self.callers[at]
                && leader == from
            {
                self.callers[at] = if at == usize::from(next) {
                    Caller::Leads { floor, step: Step::Asks, open }
                } else {
                    Caller::Follows { floor, leader: next, before_fetch: false, before_command }
                };
            }
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.callers.swap(a, b);
        self.left.swap(a, b);
        self.lost.swap(a, b);
        let rename = |caller: &mut u8| match usize::from(*caller) {
            at if at == a => *caller = b as u8,
            at if at == b => *caller = a as u8,
            _ => {}
        };
        self.lease.iter_mut().for_each(|lease| rename(&mut lease.holder));
        for caller in &mut self.callers {
            if let Caller::Follows { leader, .. } = caller {
                rename(leader);
            }
        }
    }
}

const G1: &str = "G1: once a write is executed, Redis serves nothing whose fetch began before it was called";
const G2: &str = "G2: a call is never given anything older than what was executed before it began";
const G4: &str = "G4: at most one fetch under way can still be stored";
const G4_FLEET: &str = "G4: at most one leased fetch is under way whose leader has kept its lease";

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            value: None,
            lease: None,
            generation: true,
            fence: true,
            writes: [Write::NotCalled; 2],
            callers: [Caller::Idle; CALLERS],
            left: [Left::Nothing; CALLERS],
            lost: [false; CALLERS],
            faults: self.faults,
            wronged: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for write in (0..).take(self.writes.len()) {
            actions.extend([Action::Call(write), Action::Execute(write)]);
            if self.writes[usize::from(write)] == Mode::Pattern {
                actions.push(Action::Sweep(write));
            }
        }
        for caller in 0..3 {
            actions.extend([
                Action::Join(caller),
                Action::Lease(caller),
                Action::GiveUp(caller),
                Action::TakeFound(caller),
                Action::FetchBegins(caller),
                Action::FetchEnds(caller),
                Action::FindsNothing(caller),
                Action::Finish(caller),
                Action::Close(caller),
            ]);
            if self.faults.leader > 0 {
                actions.extend([
                    Action::Drop(caller),
                    Action::DropAfterFill(caller),
                    Action::LoseFill(caller),
                    Action::Depose(caller),
                    Action::Late(caller),
                ]);
            }
        }
        actions.extend([
            Action::Expire,
            Action::EvictValue,
            Action::EvictLease,
            Action::EvictGeneration,
            Action::EvictFence,
        ]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Call(write) => {
                let at = usize::from(write);
                // A SET that is under way when another write is called may arrive after it: the last one wins,
                // which is a limit and no error.
                let racing = (0..at).any(|other| {
                    last.writes[other] == Write::NotCalled
                        || self.writes[other] == Mode::Set && last.writes[other] < Write::Executed
                });
                if last.writes[at] != Write::NotCalled || racing {
                    return None;
                }
                state.writes[at] = Write::Called;
            }
            Action::Execute(write) => self.execute(&mut state, write)?,
            Action::Sweep(write) => {
                let at = usize::from(write);
                if last.writes[at] != Write::Fenced {
                    return None;
                }
                state.writes[at] = Write::Executed;
                // SCAN is sure to return what is there all the time, and nothing else: what came later may be missed.
                state.value = last.value.filter(|value| value.found_by & 1 << write == 0);
            }
            Action::Join(caller) => self.join(&mut state, caller)?,
            Action::Lease(_)
            | Action::GiveUp(_)
            | Action::TakeFound(_)
            | Action::FetchBegins(_)
            | Action::FetchEnds(_)
            | Action::FindsNothing(_)
            | Action::Finish(_) => self.lead(&mut state, action)?,
            Action::Close(caller) => {
                let Caller::Leads { floor, step, open: true } = last.callers[usize::from(caller)] else { return None };
                let doomed = last.newest(Write::Fenced) > 0 || last.faults.expiry < self.faults.expiry;
                if !doomed || matches!(step, Step::Found(_) | Step::Filled { .. }) {
                    return None;
                }
                state.callers[usize::from(caller)] = Caller::Leads { floor, step, open: false };
            }
            Action::Drop(_) | Action::DropAfterFill(_) | Action::LoseFill(_) | Action::Depose(_) => {
                self.fail(&mut state, action)?;
            }
            Action::Late(caller) => self.late(&mut state, caller)?,
            Action::Expire => {
                state.faults.expiry = last.faults.expiry.checked_sub(1)?;
                state.lose_lease()?;
            }
            Action::EvictValue | Action::EvictLease | Action::EvictGeneration | Action::EvictFence => {
                state.faults.eviction = last.faults.eviction.checked_sub(1)?;
                let existed = match action {
                    Action::EvictValue => state.value.take().is_some(),
                    Action::EvictLease => state.lose_lease().is_some(),
                    Action::EvictGeneration => std::mem::replace(&mut state.generation, false),
                    _ => std::mem::replace(&mut state.fence, false),
                };
                if !existed {
                    return None;
                }
            }
        }
        self.normalize(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if self.without.is_some() {
            return vec![Property::always("all guarantees", |model: &Self, state: &State| {
                model.violated(state).is_none()
            })];
        }
        vec![
            Property::always(G1, Self::g1),
            Property::always(G2, |_, state: &State| !state.wronged),
            Property::always(G4, Self::g4),
            Property::always(G4_FLEET, Self::g4_fleet),
            // Every action uses something up, so all paths end, and where one ends nobody waits.
            Property::eventually("G5: every call ends and every write is executed", |model: &Self, state: &State| {
                state.callers.iter().all(|caller| *caller == Caller::Done)
                    && state.executed() as usize == model.writes.len()
            }),
            Property::always("G5: whoever follows has a leader", |_, state: &State| {
                state.callers.iter().all(|caller| match *caller {
                    Caller::Follows { leader, .. } => {
                        matches!(state.callers[usize::from(leader)], Caller::Leads { .. })
                    }
                    _ => true,
                })
            }),
            Property::sometimes("FILL is refused", |_, state: &State| {
                state.has_step(|step| matches!(step, Step::Filled { accepted: false, .. }))
            }),
            Property::sometimes("LEASE finds a value", |_, state: &State| {
                state.has_step(|step| matches!(step, Step::Found(_)))
            }),
            Property::sometimes("a call waits in vain for another process", |_, state: &State| {
                state.has_step(|step| *step == Step::GaveUp)
            }),
            Property::sometimes("a follower takes what was fetched after it joined", |_, state: &State| {
                state.has_follower(|before_fetch, _, accepted| before_fetch && !accepted)
            }),
            Property::sometimes("a follower takes what was accepted after it joined", |_, state: &State| {
                state.has_follower(|before_fetch, before_command, accepted| !before_fetch && before_command && accepted)
            }),
            Property::sometimes("a follower goes round again", |_, state: &State| {
                state.callers.iter().any(|caller| matches!(caller, Caller::Again { .. }))
            }),
        ]
    }
}

impl State {
    fn has_step(&self, is: impl Fn(&Step) -> bool) -> bool {
        self.callers.iter().any(|caller| matches!(caller, Caller::Leads { step, .. } if is(step)))
    }

    /// Whether the next step of a flight gives its outcome to a follower for this reason.
    fn has_follower(&self, is: impl Fn(bool, bool, bool) -> bool) -> bool {
        self.callers.iter().any(|caller| {
            let Caller::Follows { leader, before_fetch, before_command, .. } = caller else { return false };
            let Caller::Leads { step: Step::Filled { accepted, .. }, .. } = self.callers[usize::from(*leader)] else {
                return false;
            };
            is(*before_fetch, *before_command, accepted)
        })
    }
}
