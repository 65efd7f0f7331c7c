//! The data verbs, for the keys of one tenant or of none.

use std::{any::TypeId, convert::Infallible, future::Future, time::Duration};

use crate::{
    api::cache::Cache,
    error::{Error, ErrorKind},
    flight::share::Share,
    invalidate::{self, Invalidated},
    key::{FullKey, Prefix, TenantArgument, pattern, prefix, tag::encode_tag},
    read,
    stats::Edge,
    sync::Arc,
    target::Target,
    value::{
        codec::CacheValue,
        keyspace::{Binding, Key, Keyspace, Origin},
    },
    write,
};

/// The keys of one tenant, or those that belong to none. A cheap clone, made by [`Cache::tenant`] or
/// [`Cache::global`].
///
/// All verbs that give a value first look into the near tier, at no round trip. [`exists`](Self::exists) and
/// [`ttl`](Self::ttl) ask Redis where there is one.
#[derive(Clone, Debug)]
pub struct Scoped {
    cache: Cache,
    prefix: Prefix,
    strict: bool,
}

impl Cache {
    /// The keys of one tenant: text or an integer. The only door to tenant data. Cost: no round trip.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTenant`] when the id is empty or longer than 192 bytes, percent-encoded.
    pub fn tenant(&self, id: impl TenantArgument) -> Result<Scoped, Error> {
        let prefix = id.with_tenant(|id| prefix(&self.state.options.root, Some(id)))?;
        Ok(Scoped::new(self.clone(), prefix))
    }

    /// The keys that belong to no tenant.
    ///
    /// # Errors
    /// [`ErrorKind::TenantRequired`] under [`Builder::require_tenant`](crate::Builder::require_tenant).
    pub fn global(&self) -> Result<Scoped, Error> {
        if self.state.options.require_tenant {
            let message = "this cache demands a tenant (`require_tenant`); use `tenant(id)`";
            return Err(Error::new(ErrorKind::TenantRequired, message));
        }
        Ok(Scoped::new(self.clone(), prefix(&self.state.options.root, None)?))
    }
}

impl Scoped {
    pub(crate) fn new(cache: Cache, prefix: Prefix) -> Self {
        Self { cache, prefix, strict: false }
    }

    /// The same keys, read strictly: beside Redis no read is answered from the near tier, so that one which begins after an
    /// invalidation returned never gives an older value, in any process. Cost: a round trip for each read.
    ///
    /// Without Redis all reads are strict.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// The name of an entry, which its tags are no part of.
    fn name<T>(&self, key: &Key<T>) -> Result<FullKey, Error> {
        Ok(FullKey::new(&self.prefix, key.keyspace().profile().name(), key.writer()?))
    }

    fn count_invalidation<T>(&self, key: &Key<T>) {
        self.cache.state.stats.note(key.keyspace().profile().name(), Edge::Invalidation);
    }

    fn target<T: 'static>(&self, key: &Key<T>) -> Result<Target<'_>, Error> {
        let keyspace = key.keyspace();
        Ok(Target {
            state: &self.cache.state,
            key: self.name(key)?.with_tags(key.tags()?),
            binding: Binding {
                type_id: TypeId::of::<T>(),
                origin: Origin::none().of_values(keyspace.version(), keyspace.schema()),
            },
            profile: *keyspace.profile(),
            version: keyspace.version(),
            schema: keyspace.schema(),
            codec: keyspace.codec(),
            strict: self.strict,
        })
    }

    /// The value, if a tier has it. Cost: at most one round trip.
    ///
    /// # Errors
    /// A key that cannot be used, or Redis cannot be reached in time.
    pub async fn get<T: CacheValue>(&self, key: &Key<T>) -> Result<Option<Arc<T>>, Error> {
        let target = self.target(key)?;
        if let Some(value) = read::near(&target) {
            return Ok(value);
        }
        // Boxed: some kilobytes of state that a near hit does not need.
        Ok(Box::pin(async move { read::get(&target).await }).await?.flatten())
    }

    /// The values, in input order, `None` where no tier has one. Cost: at most one round trip for all.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_many<T: CacheValue>(&self, keys: &[Key<T>]) -> Result<Vec<Option<Arc<T>>>, Error> {
        let targets = keys.iter().map(|key| self.target(key)).collect::<Result<Vec<_>, _>>()?;
        Ok(read::get_many(&targets).await?.into_iter().map(Option::flatten).collect())
    }

    /// The value: from a tier, from another call that is fetching it, or from `fetch`, whose value is then stored.
    ///
    /// A key that cannot be used, and a Redis that cannot be reached, lead to the fetch.
    ///
    /// # Cancellation
    /// Dropping the future hands the fetch over to the next waiting call. A finished fetch is stored all the same.
    pub async fn get_or_fetch<T, V, F>(&self, key: &Key<T>, fetch: impl FnOnce() -> F) -> Arc<T>
    where
        T: CacheValue,
        V: Into<Arc<T>>,
        F: Future<Output = V>,
    {
        let infallible = || async { Ok::<_, Infallible>(fetch().await) };
        match self.read(key, infallible, None).await {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    /// The value, or the error of `fetch`, untouched. Errors are not stored; calls that waited for a fetch that failed take
    /// turns: one fetches after the other. [`try_get_or_fetch_shared`](Self::try_get_or_fetch_shared) and
    /// [`try_get_or_fetch_arc`](Self::try_get_or_fetch_arc) give them its error instead.
    ///
    /// # Errors
    /// Those of `fetch` only.
    ///
    /// # Cancellation
    /// As [`get_or_fetch`](Self::get_or_fetch).
    pub async fn try_get_or_fetch<T, V, E, F>(&self, key: &Key<T>, fetch: impl FnOnce() -> F) -> Result<Arc<T>, E>
    where
        T: CacheValue,
        V: Into<Arc<T>>,
        F: Future<Output = Result<V, E>>,
    {
        self.read(key, fetch, None).await
    }

    /// Like [`try_get_or_fetch`](Self::try_get_or_fetch); the calls of this process that waited for a fetch that failed get
    /// its error, cloned. Where `Clone` panics they take turns.
    ///
    /// # Errors
    /// Those of `fetch` only.
    ///
    /// # Cancellation
    /// As [`get_or_fetch`](Self::get_or_fetch).
    pub async fn try_get_or_fetch_shared<T, V, E, F>(
        &self,
        key: &Key<T>,
        fetch: impl FnOnce() -> F,
    ) -> Result<Arc<T>, E>
    where
        T: CacheValue,
        V: Into<Arc<T>>,
        E: Clone + Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        self.read(key, fetch, Some(Share::by(E::clone))).await
    }

    /// Like [`try_get_or_fetch`](Self::try_get_or_fetch), for an error that cannot be cloned: the calls of this process that
    /// waited for a fetch that failed get its error, behind one `Arc`. They share it with calls of this verb alone. Cost: one
    /// allocation for each failed fetch.
    ///
    /// ```
    /// use cache_core::{Cache, Keyspace, profiles::WORKFLOW_DEF};
    /// use std::{io, sync::Arc};
    ///
    /// const WORKFLOWS: Keyspace<String> = WORKFLOW_DEF.of();
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), cache_core::Error> {
    /// let acme = Cache::in_memory().tenant("acme")?;
    /// let fetch = || async { Err::<String, _>(io::Error::other("no upstream")) };
    /// let result: Result<Arc<String>, Arc<io::Error>> = acme.try_get_or_fetch_arc(&WORKFLOWS.key("abc-456"), fetch).await;
    /// assert_eq!(result.unwrap_err().to_string(), "no upstream");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `fetch` only.
    ///
    /// # Cancellation
    /// As [`get_or_fetch`](Self::get_or_fetch).
    pub async fn try_get_or_fetch_arc<T, V, E, F>(
        &self,
        key: &Key<T>,
        fetch: impl FnOnce() -> F,
    ) -> Result<Arc<T>, Arc<E>>
    where
        T: CacheValue,
        V: Into<Arc<T>>,
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        self.read(key, || async { fetch().await.map_err(Arc::new) }, Some(Share::by(Arc::clone))).await
    }

    async fn read<T: CacheValue, V: Into<Arc<T>>, E, F: Future<Output = Result<V, E>>>(
        &self,
        key: &Key<T>,
        fetch: impl FnOnce() -> F,
        share: Option<Share<E>>,
    ) -> Result<Arc<T>, E> {
        let target = match self.target(key) {
            Ok(target) => target,
            Err(error) => {
                bypass(&self.cache, key.keyspace().profile().name(), &error);
                return fetch().await.map(Into::into);
            }
        };
        if let Some(Some(value)) = read::near(&target) {
            return Ok(value);
        }
        // Boxed with the fetch: that is some kilobytes of state, which a near hit does not need and the caller's
        // future need not hold.
        let past_near = Box::pin(async move {
            let mut fetch = Some(fetch);
            // Called when it is needed: a closure may do work before it returns its future.
            let some = async {
                let Some(fetch) = fetch.take() else { unreachable!("awaited once") };
                fetch().await.map(|value| Some(value.into()))
            };
            let value = read::read_through(&target, some, share).await?;
            match value {
                Some(value) => Ok(value),
                // Cached by an annotated function that says "there is none" under this key. A direct fetch gives a
                // value or an error; it was not run.
                None => {
                    let Some(fetch) = fetch.take() else { unreachable!("a fetch gives a value") };
                    fetch().await.map(Into::into)
                }
            }
        });
        past_near.await
    }

    /// The values, in input order: from a tier, from other calls that are fetching them, or from one `fetch` of all
    /// that are missing. `None` where the fetch gave none for the key. Cost: one round trip to look, two to store, for each 128 keys.
    ///
    /// `fetch` gets the missing keys, each once, and returns key and value of those it found. It is called once more
    /// for a single key where another call was fetching that and gave nothing this one may take.
    ///
    /// # Errors
    /// Those of `fetch` only.
    pub async fn try_get_or_fetch_many<T, V, E, I, F>(
        &self,
        keys: &[Key<T>],
        fetch: impl Fn(Vec<Key<T>>) -> F,
    ) -> Result<Vec<Option<Arc<T>>>, E>
    where
        T: CacheValue,
        V: Into<Arc<T>>,
        I: IntoIterator<Item = (Key<T>, V)>,
        F: Future<Output = Result<I, E>>,
    {
        match keys.iter().map(|key| self.target(key)).collect::<Result<Vec<_>, _>>() {
            Ok(targets) => read::read_through_many(&targets, keys, fetch).await,
            Err(error) => {
                if let Some(key) = keys.first() {
                    bypass(&self.cache, key.keyspace().profile().name(), &error);
                }
                read::fetch_uncached(keys, fetch).await
            }
        }
    }

    /// Stores a value for the profile's TTL, jittered; an invalidation of the older one in every process. Cost: one
    /// round trip. Of two racing calls the last to arrive wins.
    ///
    /// # Errors
    /// A key that cannot be used. A value that cannot be serialised or is above `max_value`, and a cache that is disabled: the
    /// older value is removed in every process all the same. A cache that is closed. Redis cannot be reached in time: whether
    /// the value was stored is then unknown.
    pub async fn set<T: CacheValue>(&self, key: &Key<T>, value: impl Into<Arc<T>>) -> Result<(), Error> {
        let (target, value) = (self.target(key)?, Some(value.into()));
        // Boxed: some kilobytes of state that the caller's future need not hold.
        Box::pin(async move { write::set(&target, value).await }).await
    }

    /// Whether there is a value. Cost: one round trip beside Redis, which does not move the value.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn exists<T: CacheValue>(&self, key: &Key<T>) -> Result<bool, Error> {
        Ok(self.ttl(key).await?.is_some())
    }

    /// What is left of the value's life, `None` where there is none. Cost: one round trip beside Redis.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn ttl<T: CacheValue>(&self, key: &Key<T>) -> Result<Option<Duration>, Error> {
        let life = read::life::<T>(&self.target(key)?).await?;
        Ok(life.filter(|life| !life.negative).map(|life| life.left))
    }

    /// Gives the value its full TTL again, jittered. False where there is none. Cost: at most one round trip.
    ///
    /// # Errors
    /// As [`get`](Self::get), and a cache that is closed or disabled.
    pub async fn touch<T: CacheValue>(&self, key: &Key<T>) -> Result<bool, Error> {
        let target = self.target(key)?;
        Box::pin(async move { read::touch::<T>(&target).await }).await
    }

    /// Removes a value: no fetch that began before can bring it back. A key that cannot be used is reported in the log. Cost:
    /// at most one round trip.
    pub async fn invalidate<T: 'static>(&self, key: &Key<T>) -> Invalidated {
        self.invalidate_many(std::slice::from_ref(key)).await
    }

    /// Removes a value and puts up a write fence: for the time `hold`, up to 10 minutes, nobody stores a value under this
    /// key, and calls fetch for themselves. To be called before a commit that takes no longer: a fetch that reads
    /// the old row before the commit is then not stored after it.
    ///
    /// A process that cannot reach Redis knows its own fences only: it may keep such a row for 3 s.
    ///
    /// The fence ends by itself. None removes or shortens another. `Pending` says that it may not be up. A longer
    /// `hold` is cut to 10 minutes and reported in the log. A [`set`](Self::set) meanwhile stores nothing. Cost: at
    /// most one round trip.
    ///
    /// ```
    /// # use cache_core::{Cache, Keyspace, profiles::WORKFLOW_DEF};
    /// # use std::time::Duration;
    /// # const WORKFLOWS: Keyspace<u64> = WORKFLOW_DEF.of();
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), cache_core::Error> {
    /// # let acme = Cache::in_memory().tenant("acme")?;
    /// # async fn commit() {}
    /// let key = WORKFLOWS.key("abc-456");
    /// let held = acme.invalidate_and_hold(&key, Duration::from_secs(2)).await;
    /// commit().await;
    /// if !held.is_applied() {
    ///     acme.invalidate(&key).await.is_applied();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn invalidate_and_hold<T: 'static>(&self, key: &Key<T>, hold: Duration) -> Invalidated {
        match self.name(key) {
            Ok(name) => {
                self.count_invalidation(key);
                invalidate::hold(&self.cache.state, &name, hold).await
            }
            Err(error) => invalidate::unnamed(&self.cache.state, &error),
        }
    }

    /// Removes values. Cost: one round trip for each 128 keys, one after the other, each within `op_timeout`.
    pub async fn invalidate_many<T: 'static>(&self, keys: &[Key<T>]) -> Invalidated {
        let (mut names, mut others) = (Vec::with_capacity(keys.len()), Invalidated::Applied);
        for key in keys {
            match self.name(key) {
                Ok(name) => {
                    self.count_invalidation(key);
                    names.push(name);
                }
                Err(error) => others = others.and(invalidate::unnamed(&self.cache.state, &error)),
            }
        }
        invalidate::keys(&self.cache.state, &names).await.and(others)
    }

    /// Removes what a pattern over `profile:identifier` covers, for instance `workflow_def:abc*`. `*` stands for any
    /// text and is the only wildcard. Cost: one round trip where it covers a whole profile (`workflow_def:*`) or
    /// tenant (`*`); else one SCAN per thousand keys on the server, and an UNLINK where one of these is covered. The server is never blocked.
    ///
    /// A pattern has at most 512 bytes, percent-encoded. A longer one removes nothing and is `Pending`, an empty one covers
    /// nothing; both are reported in the log.
    pub async fn invalidate_pattern(&self, pattern: &str) -> Invalidated {
        match pattern::parse(pattern) {
            Ok(pattern) => invalidate::pattern(&self.cache.state, &self.prefix, pattern).await,
            Err(error) => {
                self.cache.state.sink.report("pattern", &error);
                // A long one may be made of wildcards.
                if pattern.is_empty() { Invalidated::Applied } else { Invalidated::Pending }
            }
        }
    }

    /// Removes all values of a keyspace of this tenant. Cost: one round trip, at any size.
    pub async fn invalidate_keyspace<T>(&self, keyspace: &Keyspace<T>) -> Invalidated {
        let profile = keyspace.profile().name();
        self.cache.state.stats.note(profile, Edge::Invalidation);
        invalidate::keyspace(&self.cache.state, &self.prefix, profile).await
    }

    /// Removes all values of this tenant that were stored with this tag; see [`Key::with_tags`]. Cost: one round trip,
    /// at any size.
    ///
    /// A tag that cannot be used names no entry and is reported in the log.
    pub async fn invalidate_tag(&self, tag: &str) -> Invalidated {
        match encode_tag(tag) {
            Ok(tag) => invalidate::tag(&self.cache.state, &self.prefix, &tag).await,
            Err(error) => {
                self.cache.state.sink.report("tag", &error);
                Invalidated::Applied
            }
        }
    }

    /// Removes all values of this tenant. Cost: one round trip, at any size.
    pub async fn invalidate_all(&self) -> Invalidated {
        invalidate::scope(&self.cache.state, &self.prefix).await
    }
}

/// Counts and reports a call that runs uncached.
pub(crate) fn bypass(cache: &Cache, profile: &str, error: &Error) {
    count_bypass(cache, profile);
    cache.state.sink.report(if error.kind() == ErrorKind::InvalidTenant { "tenant" } else { "key" }, error);
}

/// Counts a call that runs uncached for a reason that was reported.
pub(crate) fn count_bypass(cache: &Cache, profile: &str) {
    cache.state.stats.note(profile, Edge::Bypassed);
}
