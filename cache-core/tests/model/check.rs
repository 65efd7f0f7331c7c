//! Running the checker: one thread, so that breadth-first search finds shortest traces. Tests run beside each other.

use std::{fmt::Debug, hash::Hash};

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Explores all states and asserts every property of `model`. Returns how many states there are.
pub(crate) fn exhaust<M>(name: &str, model: M) -> usize
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync,
    M::Action: Debug + Clone + PartialEq,
{
    let checker = model.checker().threads(1).spawn_bfs().join();
    assert!(checker.is_done(), "{name}: not all states were looked at");
    checker.assert_properties();
    let states = checker.unique_state_count();
    println!("{name}: {states} states, all looked at, depth {}", checker.max_depth());
    states
}

/// The shortest trace to a state that violates the only property of `model`; `None` when all states were looked at
/// and none does.
pub(crate) fn counterexample<M>(model: M) -> Option<Vec<String>>
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync,
    M::Action: Debug + Clone + PartialEq,
{
    assert_eq!(model.properties().len(), 1, "with more than one the checker does not stop at the first");
    let checker = model.checker().threads(1).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let (_, path) = checker.discoveries().into_iter().next()?;
    Some(path.into_actions().iter().map(|action| format!("{action:?}")).collect())
}

/// Asserts that a clause cannot be left out, and prints the shortest trace.
pub(crate) fn is_needed<M>(clause: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync,
    M::Action: Debug + Clone + PartialEq,
{
    let trace = counterexample(model).unwrap_or_else(|| panic!("no counterexample without {clause}"));
    println!("without {clause}: {} steps: {}", trace.len(), trace.join(", "));
}

/// Asserts that nothing breaks without a clause, in any state.
pub(crate) fn is_not_needed<M>(clause: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync,
    M::Action: Debug + Clone + PartialEq,
{
    if let Some(trace) = counterexample(model) {
        panic!("without {clause} something breaks: {} steps: {}", trace.len(), trace.join(", "));
    }
    println!("without {clause}: nothing breaks");
}

/// A model told in short: how it starts, what may happen, what must never be. From it come the properties of [`Told`].
pub(crate) trait Story: Clone + Send + Sync + 'static {
    type State: Clone + Debug + Hash + Eq + Send + Sync;
    type Action: Copy + Debug + PartialEq;

    fn start(&self) -> Self::State;

    /// All actions, possible or not.
    fn actions(&self) -> Vec<Self::Action>;

    /// `None` where the action is not possible.
    fn step(&self, state: &mut Self::State, action: Self::Action) -> Option<()>;

    /// The guarantee that does not hold in this state.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;

    /// Whether this may be the end: nobody waits.
    fn may_end(&self, state: &Self::State) -> bool;

    /// What an action is to those who wait.
    fn kind(&self, _: Self::Action) -> Kind {
        Kind::Step
    }

    /// Whether something is gone without a word, so that waiting for a timer is all that is left.
    fn needs_timers(&self, _: &Self::State) -> bool {
        false
    }

    /// What exploring must come across, or it explores less than it seems to.
    fn sights() -> Vec<Property<Told<Self>>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Step,
    /// Comes, but late: nobody must need it while nothing is gone without a word.
    Timer,
    /// May never come.
    Fault,
}

/// A [`Story`] as the checker wants it.
#[derive(Clone)]
pub(crate) struct Told<S> {
    pub(crate) story: S,
    /// Whether a counterexample is looked for, and nothing else.
    hunts: bool,
}

/// The guarantee that is broken because nothing happens any more, or only a timer helps.
const STUCK: &str = "G5: every call ends, and without a timer while nothing is gone without a word";

impl<S: Story> Told<S> {
    /// Every action uses something up, so all paths end: what has to be looked at is where.
    fn wrong(&self, state: &S::State) -> Option<&'static str> {
        if let Some(broken) = self.story.broken(state) {
            return Some(broken);
        }
        if self.story.may_end(state) {
            return None;
        }
        let needs_timers = self.story.needs_timers(state);
        let helps = |action: &S::Action| {
            let comes = match self.story.kind(*action) {
                Kind::Step => true,
                Kind::Timer => needs_timers,
                Kind::Fault => false,
            };
            comes && self.story.step(&mut state.clone(), *action).is_some()
        };
        (!self.story.actions().iter().any(helps)).then_some(STUCK)
    }
}

impl<S: Story> Model for Told<S> {
    type State = S::State;
    type Action = S::Action;

    fn init_states(&self) -> Vec<S::State> {
        vec![self.story.start()]
    }

    fn actions(&self, _: &S::State, actions: &mut Vec<S::Action>) {
        actions.extend(self.story.actions());
    }

    fn next_state(&self, last: &S::State, action: S::Action) -> Option<S::State> {
        let mut state = last.clone();
        self.story.step(&mut state, action)?;
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties =
            vec![Property::always("all guarantees", |model: &Self, state| model.wrong(state).is_none())];
        if !self.hunts {
            properties.extend(S::sights());
        }
        properties
    }
}

/// Asserts that nothing is wrong in any state, and that there is all that should be seen.
pub(crate) fn holds<S: Story>(name: &str, story: S) {
    exhaust(name, Told { story, hunts: false });
}

/// Asserts that without these clauses something goes wrong, and prints the shortest trace and what it is.
pub(crate) fn breaks<S: Story>(without: &impl Debug, story: S) {
    let model = Told { story, hunts: true };
    let checker = model.clone().checker().threads(1).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let Some((_, path)) = checker.discoveries().into_iter().next() else {
        panic!("no counterexample without {without:?}")
    };
    let wrong = model.wrong(path.last_state()).unwrap_or_default();
    let trace: Vec<_> = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
    println!("without {without:?}: {} steps: {}: {wrong}", trace.len(), trace.join(", "));
}

/// Asserts that nothing breaks without these clauses, in any state.
pub(crate) fn stays_whole<S: Story>(without: &impl Debug, story: S) {
    is_not_needed(&format!("{without:?}"), Told { story, hunts: true });
}
