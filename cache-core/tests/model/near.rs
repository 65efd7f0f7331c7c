//! The near tier of one process beside Redis: stripes, the link lease and the time bound.
//!
//! **Redis** is what `lease.rs` shows it to be: once write `i` is executed, READ returns and FILL accepts nothing below
//! `i`. The model takes the worst: READ returns the newest executed, FILL accepts whatever is not below it.
//!
//! **Stripes.** There is one key, so a snapshot is worth one of three things: nothing was bumped since it was taken; a
//! bump has counted since but not marked its stripe; something was bumped.
//!
//! **Requests.** A copy comes from one request, and no other request changes what it is worth. So one under way beside
//! the copy is enough.
//!
//! **Time** is in ticks, without an end: all that matters of a moment is its age, and that up to the bound.

use stateright::{Model, Property};

/// Ticks in the bound (3 s; `state::UNCONFIRMED`).
const BOUND: u8 = 2;

/// A clause that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    /// A hit checks the stripes.
    HitChecksStripes,
    /// The snapshot is taken before the value is asked for.
    SnapshotBeforeSending,
    /// A copy for which nobody vouches is served no longer than the bound.
    TimeBound,
    /// The bound counts from when the value was asked for, not from the reply.
    BoundFromAsking,
    /// Everything is bumped on a new subscription.
    BumpOnResubscribe,
    /// That bump comes after the server has acknowledged the subscription.
    BumpAfterSubscribed,
    /// The link lease counts from when the nonce was sent, not from when it was heard.
    NonceFromSending,
    /// A local write bumps before it is sent.
    FirstBump,
    /// A local write bumps again after the reply.
    SecondBump,
    /// `set` fills no near copy.
    SetKeepsNothing,
    /// The link vouches only for what a command has accepted.
    LinkVouchesForConfirmed,
    /// A link that failed vouches no more.
    FailedLinkIsDown,
}

#[derive(Clone, Debug)]
pub(crate) struct Near {
    /// Whether each write is this process's own.
    pub(crate) own: [bool; 2],
    pub(crate) without: Option<Clause>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    writes: [Write; 2],
    copy: Option<Copied>,
    request: Request,
    link: Link,
    /// What was published and not heard yet, oldest first.
    stream: [Option<Message>; 3],
    /// For how many ticks the link vouches yet: `Near::linked_until`.
    vouches: u8,
    /// Notices heard.
    heard: [bool; 2],
    cuts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    NotCalled,
    /// Of this process: `Stripes::bump` has counted.
    Counted,
    /// Bumped, or of another process: on its way.
    Sent,
    Executed,
    /// Of this process: the reply is here, the second bump has counted.
    CountedAgain,
    /// Returned `Applied`, this many ticks ago.
    Acknowledged {
        age: u8,
    },
}

/// What was bumped since a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Since {
    Nothing,
    /// Counted, not marked yet: still valid.
    Counted,
    Bumped,
}

/// `near::Entry`. `age` since it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copied {
    version: u8,
    age: u8,
    since: Since,
    confirmed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    None,
    /// READ or LEASE was sent.
    Asked {
        age: u8,
        since: Since,
    },
    /// A fetch is under way.
    Fetches {
        version: u8,
        age: u8,
        since: Since,
    },
    /// A command has accepted this version; the reply is under way.
    Replied {
        version: u8,
        age: u8,
        since: Since,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Link {
    Up,
    /// The server publishes to nobody; what was published before may be heard yet.
    Cut,
    /// The server publishes again; this process has not noticed yet.
    Subscribed,
    /// Bumped before subscribing: only where the order is turned round.
    Forgotten,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Message {
    Notice(u8),
    Nonce { age: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Tick,
    /// A write is called; of this process: the bump counts.
    Call(u8),
    /// `Stripes::bump` marks; the command is sent.
    Mark(u8),
    /// The server executes and publishes.
    Execute(u8),
    /// The reply; the second bump counts.
    Reply(u8),
    /// The second bump marks, and the call returns.
    Return(u8),
    /// Snapshot, then READ is sent: `Target::watch`.
    Ask,
    /// Snapshot, then the fetch begins.
    FetchBegins,
    /// READ is executed.
    Read,
    /// FILL is sent and executed: `keep_confirmed` counts from here, with the watch of before the fetch.
    Fill,
    /// The reply; the copy is kept.
    Keep,
    /// FILL failed, or was not tried: `keep_unconfirmed`.
    KeepUnconfirmed,
    /// `Remote::beat`.
    Beat,
    /// The next message is heard: `backplane::handle`.
    Hear,
    Cut,
    /// SUBSCRIBE is executed.
    Subscribe,
    /// Its acknowledgement: everything is bumped.
    Resume,
}

impl Near {
    fn has(&self, clause: Clause) -> bool {
        self.without != Some(clause)
    }

    /// The version that a near hit would return now: `Near::is_alive`.
    fn served(&self, state: &State) -> Option<u8> {
        let copy = state.copy?;
        let stripes = copy.since != Since::Bumped || !self.has(Clause::HitChecksStripes);
        let vouched = state.vouches > 0 && (copy.confirmed || !self.has(Clause::LinkVouchesForConfirmed));
        let in_time = copy.age < BOUND || !self.has(Clause::TimeBound);
        (stripes && (in_time || vouched)).then_some(copy.version)
    }

    fn fresh(&self, state: &State, is: impl Fn(usize, Write) -> bool) -> bool {
        let newest = (0..2).zip(1..).filter(|&(at, _)| is(at, state.writes[at])).map(|(_, number)| number).max();
        self.served(state).is_none_or(|version| version >= newest.unwrap_or(0))
    }

    /// A notice that was heard is respected.
    fn g1(&self, state: &State) -> bool {
        self.fresh(state, |at, _| state.heard[at])
    }

    fn g3(&self, state: &State) -> bool {
        self.fresh(state, |_, write| write == Write::Acknowledged { age: BOUND })
    }

    /// At home at once.
    fn g3_at_home(&self, state: &State) -> bool {
        self.fresh(state, |at, write| self.own[at] && matches!(write, Write::Acknowledged { .. }))
    }

    /// The snapshot of a copy kept now.
    fn snapshot(&self, since: Since) -> Since {
        if self.has(Clause::SnapshotBeforeSending) { since } else { Since::Nothing }
    }

    fn write(&self, state: &mut State, action: Action) -> Option<()> {
        let (Action::Call(write)
        | Action::Mark(write)
        | Action::Execute(write)
        | Action::Reply(write)
        | Action::Return(write)) = action
        else {
            return None;
        };
        let at = usize::from(write);
        let own = self.own[at];
        state.writes[at] = match (action, state.writes[at]) {
            (Action::Call(_), Write::NotCalled) => {
                // Writes are numbered as they are called.
                if at == 1 && state.writes[0] == Write::NotCalled {
                    return None;
                }
                // A `set` that is overtaken by the next write is a limit and no error.
                let overtakes = at == 1 && self.own[0] && state.writes[0] < Write::Executed;
                if !self.has(Clause::SetKeepsNothing) && overtakes {
                    return None;
                }
                if !own {
                    Write::Sent
                } else {
                    if self.has(Clause::FirstBump) {
                        state.bump_counts();
                    }
                    Write::Counted
                }
            }
            (Action::Mark(_), Write::Counted) => {
                if self.has(Clause::FirstBump) {
                    state.bump_marks();
                }
                Write::Sent
            }
            (Action::Execute(_), Write::Sent) => {
                state.publish(Message::Notice(write));
                if own { Write::Executed } else { Write::Acknowledged { age: 0 } }
            }
            (Action::Reply(_), Write::Executed) => {
                if self.has(Clause::SecondBump) {
                    state.bump_counts();
                }
                Write::CountedAgain
            }
            (Action::Return(_), Write::CountedAgain) => {
                if self.has(Clause::SecondBump) {
                    state.bump_marks();
                }
                if !self.has(Clause::SetKeepsNothing) {
                    let version = write + 1;
                    state.copy = Some(Copied { version, age: 0, since: Since::Nothing, confirmed: true });
                }
                Write::Acknowledged { age: 0 }
            }
            _ => return None,
        };
        Some(())
    }

    fn request(&self, state: &mut State, action: Action) -> Option<()> {
        let (called, executed) = (state.newest(Write::Counted), state.newest(Write::Executed));
        let since = Since::Nothing;
        state.request = match (action, state.request) {
            (Action::Ask, Request::None) => Request::Asked { age: 0, since },
            (Action::FetchBegins, Request::None) => Request::Fetches { version: called, age: 0, since },
            (Action::Read, Request::Asked { age, since }) => Request::Replied { version: executed, age, since },
            (Action::Fill, Request::Fetches { version, since, .. }) if version >= executed => {
                Request::Replied { version, age: 0, since }
            }
            (Action::Keep, Request::Replied { version, age, since }) => {
                let age = if self.has(Clause::BoundFromAsking) { age } else { 0 };
                state.copy = Some(Copied { version, age, since: self.snapshot(since), confirmed: true });
                Request::None
            }
            (Action::KeepUnconfirmed, Request::Fetches { version, age, since }) => {
                let age = if self.has(Clause::BoundFromAsking) { age } else { 0 };
                state.copy = Some(Copied { version, age, since: self.snapshot(since), confirmed: false });
                Request::None
            }
            _ => return None,
        };
        Some(())
    }

    fn link(&self, state: &mut State, action: Action) -> Option<()> {
        match (action, state.link) {
            // The next nonce is sent when the last was heard; until then it keeps its time.
            (Action::Beat, Link::Up) if !state.stream.iter().any(|m| matches!(m, Some(Message::Nonce { .. }))) => {
                state.publish(Message::Nonce { age: 0 });
            }
            (Action::Hear, Link::Up | Link::Cut) => {
                let message = state.stream[0]?;
                state.stream = [state.stream[1], state.stream[2], None];
                match message {
                    Message::Notice(write) => {
                        state.heard[usize::from(write)] = true;
                        state.bump();
                    }
                    Message::Nonce { age } => {
                        state.vouches = if self.has(Clause::NonceFromSending) { BOUND - age } else { BOUND };
                    }
                }
            }
            (Action::Cut, Link::Up) => {
                state.cuts = state.cuts.checked_sub(1)?;
                state.link = Link::Cut;
            }
            (Action::Subscribe, before @ (Link::Cut | Link::Forgotten)) => {
                let in_order = before == Link::Cut;
                if in_order != self.has(Clause::BumpAfterSubscribed) {
                    return None;
                }
                if self.has(Clause::FailedLinkIsDown) {
                    state.vouches = 0;
                }
                state.stream = [None; 3];
                state.link = if in_order { Link::Subscribed } else { Link::Up };
            }
            (Action::Resume, Link::Cut) if !self.has(Clause::BumpAfterSubscribed) => {
                state.bump();
                state.link = Link::Forgotten;
            }
            (Action::Resume, Link::Subscribed) => {
                if self.has(Clause::BumpOnResubscribe) {
                    state.bump();
                }
                state.link = Link::Up;
            }
            _ => return None,
        }
        Some(())
    }

    /// Makes states equal between which nothing can tell.
    fn normalize(&self, state: &mut State) {
        if !self.has(Clause::HitChecksStripes) || !self.has(Clause::SnapshotBeforeSending) {
            return;
        }
        state.copy = state.copy.filter(|copy| {
            let may_be_vouched_for = copy.confirmed || !self.has(Clause::LinkVouchesForConfirmed);
            copy.since != Since::Bumped && (copy.age < BOUND || may_be_vouched_for || !self.has(Clause::TimeBound))
        });
        if let Request::Asked { since: Since::Bumped, .. }
        | Request::Fetches { since: Since::Bumped, .. }
        | Request::Replied { since: Since::Bumped, .. } = state.request
        {
            state.request = Request::None;
        }
    }
}

impl State {
    fn newest(&self, reached: Write) -> u8 {
        (0..2).zip(1..).filter(|&(at, _)| self.writes[at] >= reached).map(|(_, number)| number).max().unwrap_or(0)
    }

    /// Sends to the subscriber, if there is one. Two notices and one nonce are all there is.
    fn publish(&mut self, message: Message) {
        if matches!(self.link, Link::Up | Link::Subscribed)
            && let Some(place) = self.stream.iter_mut().find(|place| place.is_none())
        {
            *place = Some(message);
        }
    }

    fn snapshots(&mut self) -> impl Iterator<Item = &mut Since> {
        let request = match &mut self.request {
            Request::None => None,
            Request::Asked { since, .. } | Request::Fetches { since, .. } | Request::Replied { since, .. } => {
                Some(since)
            }
        };
        self.copy.iter_mut().map(|copy| &mut copy.since).chain(request)
    }

    fn bump_counts(&mut self) {
        self.snapshots().filter(|since| **since == Since::Nothing).for_each(|since| *since = Since::Counted);
    }

    fn bump_marks(&mut self) {
        self.snapshots().filter(|since| **since == Since::Counted).for_each(|since| *since = Since::Bumped);
    }

    fn bump(&mut self) {
        self.snapshots().for_each(|since| *since = Since::Bumped);
    }

    fn tick(&mut self) {
        let older = |age: &mut u8| *age = (*age + 1).min(BOUND);
        self.copy.iter_mut().for_each(|copy| older(&mut copy.age));
        if let Request::Asked { age, .. } | Request::Fetches { age, .. } | Request::Replied { age, .. } =
            &mut self.request
        {
            older(age);
        }
        for message in &mut self.stream {
            if let Some(Message::Nonce { age }) = message {
                older(age);
            }
        }
        for write in &mut self.writes {
            if let Write::Acknowledged { age } = write {
                older(age);
            }
        }
        self.vouches = self.vouches.saturating_sub(1);
    }
}

impl Model for Near {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            writes: [Write::NotCalled; 2],
            copy: None,
            request: Request::None,
            link: Link::Up,
            stream: [None; 3],
            vouches: 0,
            heard: [false; 2],
            cuts: 1,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for write in 0..2 {
            actions.extend([Action::Call(write), Action::Execute(write)]);
            if self.own[usize::from(write)] {
                actions.extend([Action::Mark(write), Action::Reply(write), Action::Return(write)]);
            }
        }
        actions.extend([
            Action::Ask,
            Action::FetchBegins,
            Action::Read,
            Action::Fill,
            Action::Keep,
            Action::KeepUnconfirmed,
        ]);
        actions.extend([Action::Tick, Action::Beat, Action::Hear, Action::Cut, Action::Subscribe, Action::Resume]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => state.tick(),
            Action::Call(_) | Action::Mark(_) | Action::Execute(_) | Action::Reply(_) | Action::Return(_) => {
                self.write(&mut state, action)?;
            }
            Action::Ask
            | Action::FetchBegins
            | Action::Read
            | Action::Fill
            | Action::Keep
            | Action::KeepUnconfirmed => self.request(&mut state, action)?,
            Action::Beat | Action::Hear | Action::Cut | Action::Subscribe | Action::Resume => {
                self.link(&mut state, action)?;
            }
        }
        self.normalize(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if self.without.is_some() {
            return vec![Property::always("all guarantees", |model: &Self, state: &State| {
                model.g1(state) && model.g3(state) && model.g3_at_home(state)
            })];
        }
        let mut properties = vec![
            Property::always("G1: no copy is served that is older than a notice that was heard", Self::g1),
            Property::always("G3: no copy is served that is older than a write acknowledged a bound ago", Self::g3),
            Property::always("G3: at home, no copy is served that is older than what returned", Self::g3_at_home),
            Property::sometimes("a copy is served past the bound because the link vouches", |model, state: &State| {
                model.served(state).is_some() && state.copy.is_some_and(|copy| copy.age == BOUND)
            }),
            Property::sometimes("a notice is lost", |_, state: &State| {
                state.writes.iter().all(|write| matches!(write, Write::Acknowledged { .. }))
                    && state.stream == [None; 3]
                    && state.heard == [false; 2]
            }),
        ];
        if self.own != [true; 2] {
            properties.push(Property::sometimes(
                "a copy is older than an acknowledged write, and still served",
                |model: &Self, state: &State| {
                    !model.fresh(state, |_, write| matches!(write, Write::Acknowledged { .. }))
                },
            ));
        }
        properties
    }
}
