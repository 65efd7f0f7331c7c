//! Running the checker: one thread, so that breadth-first search finds shortest traces. Tests run beside each other.

use std::{fmt::Debug, hash::Hash};

use stateright::{Checker, HasDiscoveries, Model};

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
