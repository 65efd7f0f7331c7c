//! What invalidations cover, and an index by it: whether a key is covered is found out at the same cost however many
//! invalidations there are.

use std::collections::HashMap;

use rapidhash::fast::RandomState;

use crate::key::{FullKey, pattern::Glob};

/// What an invalidation covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    Key(Box<FullKey>),
    /// Prefix and profile.
    Keyspace(String),
    /// The generation of a tenant's tag.
    Tag(String),
    /// The tenant's prefix.
    Scope(String),
    Pattern {
        scope: String,
        glob: Glob,
    },
}

impl Coverage {
    /// Something larger that covers this too, if there is something.
    fn widened(&self) -> Option<Self> {
        match self {
            Self::Key(key) => Some(Self::Keyspace(key.keyspace().to_owned())),
            Self::Keyspace(keyspace) => {
                // The profile holds no `:`, so the prefix ends at the last one.
                let end = keyspace.rfind(':').map_or(0, |colon| colon + 1);
                Some(Self::Scope(keyspace[..end].to_owned()))
            }
            // No tenant holds a `~`.
            Self::Tag(generation) => generation.split_once('~').map(|(scope, _)| Self::Scope(scope.to_owned())),
            Self::Pattern { scope, .. } => Some(Self::Scope(scope.clone())),
            Self::Scope(_) => None,
        }
    }
}

type Map<K, E> = HashMap<K, E, RandomState>;

/// An entry for each coverage.
#[derive(Debug)]
pub(super) struct Index<E> {
    keys: Map<Box<FullKey>, E>,
    /// By the prefix of their tenant.
    patterns: Map<String, Map<Glob, E>>,
    pattern_count: usize,
    keyspaces: Map<String, E>,
    tags: Map<String, E>,
    scopes: Map<String, E>,
}

impl<E> Default for Index<E> {
    fn default() -> Self {
        Self {
            keys: Map::default(),
            patterns: Map::default(),
            pattern_count: 0,
            keyspaces: Map::default(),
            tags: Map::default(),
            scopes: Map::default(),
        }
    }
}

impl<E> Index<E> {
    pub(super) fn len(&self) -> usize {
        self.narrow() + self.scopes.len()
    }

    /// How many there are that can be widened.
    fn narrow(&self) -> usize {
        self.keys.len() + self.pattern_count + self.keyspaces.len() + self.tags.len()
    }

    /// Whether an entry that `counts` covers `key`. Costs a look for each name of the key, and a match for each pattern of its
    /// tenant.
    pub(super) fn covers(&self, key: &FullKey, counts: impl Fn(&E) -> bool) -> bool {
        let counts = |entry: Option<&E>| entry.is_some_and(&counts);
        counts(self.keys.get(key))
            || counts(self.keyspaces.get(key.keyspace()))
            || counts(self.scopes.get(key.scope()))
            || (!self.tags.is_empty() && key.tags().iter().any(|tag| counts(self.tags.get(&**tag))))
            || self.patterns.get(key.scope()).is_some_and(|patterns| {
                let name = &key.as_str()[key.scope().len()..];
                patterns.iter().any(|(glob, entry)| glob.covers(name) && counts(Some(entry)))
            })
    }

    pub(super) fn get(&self, coverage: &Coverage) -> Option<&E> {
        match coverage {
            Coverage::Key(key) => self.keys.get(key),
            Coverage::Keyspace(name) => self.keyspaces.get(name),
            Coverage::Tag(name) => self.tags.get(name),
            Coverage::Scope(name) => self.scopes.get(name),
            Coverage::Pattern { scope, glob } => self.patterns.get(scope)?.get(glob),
        }
    }

    pub(super) fn insert(&mut self, coverage: Coverage, entry: E) {
        match coverage {
            Coverage::Key(key) => drop(self.keys.insert(key, entry)),
            Coverage::Keyspace(name) => drop(self.keyspaces.insert(name, entry)),
            Coverage::Tag(name) => drop(self.tags.insert(name, entry)),
            Coverage::Scope(name) => drop(self.scopes.insert(name, entry)),
            Coverage::Pattern { scope, glob } => {
                let is_new = self.patterns.entry(scope).or_default().insert(glob, entry).is_none();
                self.pattern_count += usize::from(is_new);
            }
        }
    }

    pub(super) fn remove(&mut self, coverage: &Coverage) -> Option<E> {
        match coverage {
            Coverage::Key(key) => self.keys.remove(key),
            Coverage::Keyspace(name) => self.keyspaces.remove(name),
            Coverage::Tag(name) => self.tags.remove(name),
            Coverage::Scope(name) => self.scopes.remove(name),
            Coverage::Pattern { scope, glob } => {
                let patterns = self.patterns.get_mut(scope)?;
                let removed = patterns.remove(glob)?;
                self.pattern_count -= 1;
                if patterns.is_empty() {
                    self.patterns.remove(scope);
                }
                Some(removed)
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Coverage, &E)> {
        let keys = self.keys.iter().map(|(key, entry)| (Coverage::Key(key.clone()), entry));
        let patterns = self.patterns.iter().flat_map(|(scope, patterns)| {
            let pattern = |glob: &Glob| Coverage::Pattern { scope: scope.clone(), glob: glob.clone() };
            patterns.iter().map(move |(glob, entry)| (pattern(glob), entry))
        });
        let keyspaces = self.keyspaces.iter().map(|(name, entry)| (Coverage::Keyspace(name.clone()), entry));
        let tags = self.tags.iter().map(|(name, entry)| (Coverage::Tag(name.clone()), entry));
        let scopes = self.scopes.iter().map(|(name, entry)| (Coverage::Scope(name.clone()), entry));
        keys.chain(patterns).chain(keyspaces).chain(tags).chain(scopes)
    }

    pub(super) fn retain(&mut self, mut keeps: impl FnMut(&mut E) -> bool) {
        self.keys.retain(|_, entry| keeps(entry));
        self.keyspaces.retain(|_, entry| keeps(entry));
        self.tags.retain(|_, entry| keeps(entry));
        self.scopes.retain(|_, entry| keeps(entry));
        self.patterns.retain(|_, patterns| {
            patterns.retain(|_, entry| keeps(entry));
            !patterns.is_empty()
        });
        self.pattern_count = self.patterns.values().map(Map::len).sum();
    }

    /// Widens keys to their keyspaces, and those to their tenants, until no more than `cap` are left that could be
    /// widened: all of a kind at once, so that the next time is far. `merge` makes the wide entry of a narrow one and of what
    /// there is already.
    pub(super) fn widen(&mut self, cap: usize, mut merge: impl FnMut(E, Option<&E>) -> E) {
        while self.narrow() > cap {
            for (coverage, entry) in self.take_narrowest() {
                if let Some(wide) = coverage.widened() {
                    let entry = merge(entry, self.get(&wide));
                    self.insert(wide, entry);
                }
            }
        }
    }

    fn take_narrowest(&mut self) -> Vec<(Coverage, E)> {
        let keys = self.keys.drain().map(|(key, entry)| (Coverage::Key(key), entry));
        let patterns = self.patterns.drain().flat_map(|(scope, patterns)| {
            patterns.into_iter().map(move |(glob, entry)| (Coverage::Pattern { scope: scope.clone(), glob }, entry))
        });
        let taken: Vec<_> = keys.chain(patterns).collect();
        self.pattern_count = 0;
        if !taken.is_empty() {
            return taken;
        }
        let keyspaces = self.keyspaces.drain().map(|(name, entry)| (Coverage::Keyspace(name), entry));
        let tags = self.tags.drain().map(|(name, entry)| (Coverage::Tag(name), entry));
        keyspaces.chain(tags).collect()
    }
}
