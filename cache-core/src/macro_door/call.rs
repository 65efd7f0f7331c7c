//! One call of an annotated function, or of a companion.

use std::{
    any::TypeId,
    future::Future,
    pin::{Pin, pin},
    time::Duration,
};

use super::{
    shape::{Put, Shape},
    site::Site,
};
use crate::{
    api::{cache::Cache, scoped},
    error::{Error, ErrorKind},
    invalidate::{self, Invalidated},
    key::{FullKey, KeyWriter, TenantArgument, prefix, tag::Tags},
    read,
    stats::Edge,
    target::Target,
    value::{
        codec::CacheValue,
        keyspace::{Binding, empty_identifier},
    },
    write,
};

/// One call of an annotated function or companion: its cache and its key. Borrows no argument.
#[derive(Debug)]
pub struct Call<'c> {
    cache: &'c Cache,
    site: Site,
    key: Result<FullKey, Error>,
    /// What else keeps the call from the cache, such as tags that cannot be used: no part of the key, so that an
    /// invalidation is sent all the same.
    refused: Option<Error>,
}

impl<'c> Call<'c> {
    /// A call whose key belongs to a tenant.
    #[inline]
    pub fn tenant<T: TenantArgument + ?Sized>(
        cache: &'c Cache,
        site: Site,
        tenant: &T,
        write: impl FnOnce(&mut KeyWriter) -> Result<(), Error>,
    ) -> Self {
        let key = tenant.with_tenant(|tenant| build(cache, &site, Some(tenant), write));
        Self { cache, site, key, refused: None }
    }

    /// A call whose key belongs to no tenant.
    #[inline]
    pub fn global(cache: &'c Cache, site: Site, write: impl FnOnce(&mut KeyWriter) -> Result<(), Error>) -> Self {
        let key = build(cache, &site, None, write);
        Self { cache, site, key, refused: cache.state.options.require_tenant.then(tenant_required) }
    }

    /// The call whose value has these tags.
    #[must_use]
    pub fn with_tags<T: AsRef<str>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        match Tags::encode(tags) {
            Ok(tags) => self.key = self.key.map(|key| key.with_tags(&tags)),
            Err(error) => self.refused = Some(error),
        }
        self
    }

    /// The value, if it is in the near tier.
    #[inline]
    pub fn near<R, S: Shape<R>>(&self, shape: S) -> Option<R> {
        let state = &self.cache.state;
        if self.site.profile.is_err() || self.refused.is_some() {
            return None;
        }
        let value = read::near_by_key::<S::Value>(state, self.key.as_ref().ok()?, &self.site.origin())?;
        shape.join(value)
    }

    /// The value: from a tier, from another call's fetch, or from `fetch`.
    ///
    /// Boxed with the fetch: that is some kilobytes of state, which a near hit does not need and the caller's future
    /// need not hold.
    pub fn run<R, S: Shape<R>, F: Future<Output = R>>(
        self,
        shape: S,
        fetch: impl FnOnce() -> F,
    ) -> Pin<Box<impl Future<Output = R>>> {
        self.fetched(shape, fetch, false)
    }

    /// A call, or a refresh.
    fn fetched<R, S: Shape<R>, F: Future<Output = R>>(
        self,
        shape: S,
        fetch: impl FnOnce() -> F,
        is_refresh: bool,
    ) -> Pin<Box<impl Future<Output = R>>> {
        Box::pin(async move {
            if is_refresh && self.refusal().is_some() {
                // What is stored under the key, also by others, is older than what the fetch gives.
                let _ = self.remove().await;
            }
            let Some(target) = self.target_or_bypass::<S::Value>() else { return fetch().await };
            let mut fetch = pin!(fetch());
            let split = async { shape.split(fetch.as_mut().await) };
            let read = async {
                if is_refresh {
                    read::refresh(&target, split).await
                } else {
                    read::read_through(&target, split, shape.sharing()).await
                }
            };
            // Errors are never held across an await: they need not be `Send`.
            let value = match read.await {
                Ok(value) => value,
                Err(error) => return shape.fail(error),
            };
            match shape.join(value) {
                Some(returned) => returned,
                // A cached "none" under a key that a function of another shape shares: this one cannot say it. Its
                // fetch was not run.
                None => fetch.await,
            }
        })
    }

    /// Removes what is stored, and gives a value that was fetched after this call began, as a rule by `fetch`.
    pub fn refresh<R, S: Shape<R>, F: Future<Output = R>>(
        self,
        shape: S,
        fetch: impl FnOnce() -> F,
    ) -> Pin<Box<impl Future<Output = R>>> {
        self.fetched(shape, fetch, true)
    }

    /// What a call would return, if a tier has it.
    pub async fn peek<R, S: Shape<R>>(self, shape: S) -> Option<R> {
        let cache = self.cache;
        let target = self.target_or_bypass::<S::Value>()?;
        if let Some(value) = read::near(&target) {
            return shape.join(value);
        }
        match read::get(&target).await {
            Ok(found) => shape.join(found?),
            Err(error) => {
                cache.state.sink.report("peek", &error);
                None
            }
        }
    }

    /// Stores a value as if the function had returned it. An error or an uncacheable `None` is not stored.
    ///
    /// # Errors
    /// A key that cannot be used, a value that cannot be stored, or Redis cannot be reached.
    pub async fn put<R, S: Shape<R>, V: Put<R>>(self, shape: S, value: V) -> Result<(), Error> {
        let Ok(value) = shape.split(value.returned()) else { return Ok(()) };
        if self.refusal().is_some() {
            // Not stored, and all the same newer than what is.
            let _ = self.remove().await;
        }
        let target = self.target::<S::Value>()?;
        write::set(&target, value).await
    }

    /// Removes the value. Neither a TTL nor a tag that cannot be used is in the way: the key is known without them.
    pub async fn invalidate(self) -> Invalidated {
        self.cache.state.stats.note(self.site.profile_name, Edge::Invalidation);
        self.remove().await
    }

    async fn remove(&self) -> Invalidated {
        match &self.key {
            Ok(key) => invalidate::keys(&self.cache.state, std::slice::from_ref(key)).await,
            Err(error) => invalidate::unnamed(&self.cache.state, error),
        }
    }

    /// What is left of the value's life.
    ///
    /// # Errors
    /// A key that cannot be used, or Redis cannot be reached.
    pub async fn ttl<R, S: Shape<R>>(self, _: S) -> Result<Option<Duration>, Error> {
        Ok(read::life::<S::Value>(&self.target::<S::Value>()?).await?.map(|life| life.left))
    }

    /// The key as the server sees it.
    ///
    /// # Errors
    /// A key that cannot be used.
    pub fn key(self) -> Result<String, Error> {
        self.key.map(|key| key.as_str().to_owned())
    }

    /// Why this call runs uncached, if it does.
    fn refusal(&self) -> Option<&Error> {
        self.site.profile.as_ref().err().or(self.refused.as_ref()).or(self.key.as_ref().err())
    }

    fn target<T: CacheValue>(self) -> Result<Target<'c>, Error> {
        if let Some(error) = self.refusal() {
            return Err(error.clone());
        }
        Ok(Target {
            binding: Binding { type_id: TypeId::of::<T>(), origin: self.site.origin() },
            state: &self.cache.state,
            key: self.key?,
            profile: self.site.profile?,
            version: self.site.version,
            schema: self.site.schema,
            codec: None,
            strict: false,
        })
    }

    /// The target, or a count and a report of why this call runs uncached.
    fn target_or_bypass<T: CacheValue>(self) -> Option<Target<'c>> {
        let (cache, name, is_twin) = (self.cache, self.site.profile_name, self.site.is_twin());
        let refused = |error: &Error| match is_twin {
            // Reported once, at its first call.
            true => scoped::count_bypass(cache, name),
            false => scoped::bypass(cache, name, error),
        };
        self.target::<T>().inspect_err(refused).ok()
    }
}

#[inline]
fn build(
    cache: &Cache,
    site: &Site,
    tenant: Option<&str>,
    write: impl FnOnce(&mut KeyWriter) -> Result<(), Error>,
) -> Result<FullKey, Error> {
    let prefix = prefix(&cache.state.options.root, tenant)?;
    let mut writer = KeyWriter::new();
    site.write_label(&mut writer)?;
    write(&mut writer)?;
    if writer.is_empty() {
        return Err(empty_identifier());
    }
    Ok(FullKey::new(&prefix, site.profile_name, &writer))
}

#[cold]
fn tenant_required() -> Error {
    let message =
        "this cache demands a tenant (`require_tenant`), and the annotated function names none; it runs uncached";
    Error::new(ErrorKind::TenantRequired, message)
}
