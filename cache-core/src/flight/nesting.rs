//! Which fetches the running code is inside of, so that none ever waits for itself.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
};

use crate::{
    sync::Arc,
    value::{envelope::Id, keyspace::Binding},
};

tokio::task_local! {
    static FETCHING: Arc<Frame>;
}

/// One fetch under way, of one entry or of a batch, and the one around it.
#[derive(Debug)]
struct Frame {
    around: Option<Arc<Self>>,
    cache: u64,
    entries: HashMap<Box<str>, Binding>,
    tokens: HashSet<Id>,
}

fn frames() -> impl Iterator<Item = Arc<Frame>> {
    let innermost = FETCHING.try_with(Arc::clone).ok();
    std::iter::successors(innermost, |frame| frame.around.clone())
}

/// Whether the running code is part of the fetch of this very entry.
pub(crate) fn is_fetching(cache: u64, key: &str, binding: Binding) -> bool {
    frames().any(|frame| frame.cache == cache && frame.entries.get(key).is_some_and(|own| *own == binding))
}

/// Whether the running code is part of any fetch.
pub(crate) fn is_nested() -> bool {
    FETCHING.try_with(|_| ()).is_ok()
}

/// Whether the lease of this token belongs to a fetch around the running code, perhaps through another cache.
pub(crate) fn holds(token: &Id) -> bool {
    frames().any(|frame| frame.tokens.contains(token))
}

/// Runs `fetch` as the fetch of these entries: key, binding and the token of their lease.
pub(crate) fn within<'k, F: Future>(
    cache: u64,
    entries: impl IntoIterator<Item = (&'k str, Binding, Id)>,
    fetch: F,
) -> impl Future<Output = F::Output> {
    let around = FETCHING.try_with(Arc::clone).ok();
    let (mut own, mut tokens) = (HashMap::new(), HashSet::new());
    for (key, binding, token) in entries {
        own.insert(key.into(), binding);
        tokens.insert(token);
    }
    FETCHING.scope(Arc::new(Frame { around, cache, entries: own, tokens }), fetch)
}
