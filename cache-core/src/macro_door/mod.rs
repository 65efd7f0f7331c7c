//! The door of the attribute macro: what its expansion names. Not for direct use, and free to change.

mod shape;

use std::{
    any::TypeId,
    future::Future,
    pin::{Pin, pin},
    time::Duration,
};

pub use std::string::String;

pub use crate::{
    __module_profile as module_profile,
    __private::shape::{Probe, Shape},
    Cache, Error, Invalidated, KeyArgument, KeyWriter, TenantArgument, TtlProfile,
};
use crate::{
    ErrorKind,
    api::{global, scoped},
    invalidate,
    key::{FullKey, prefix, tag::Tags},
    read,
    target::Target,
    value::{
        codec::CacheValue,
        envelope::Fnv,
        keyspace::{Binding, Origin, empty_identifier},
    },
    write,
};

/// Types that signatures above need and nobody names.
pub mod shapes {
    pub use crate::{__private::shape::*, flight::share::Share};
}

/// Traits whose methods the expansion calls; which one applies is up to method resolution.
pub mod autoref {
    pub use super::{ByArgument, BySerialize, NoKey};
    pub use crate::__private::shape::{Pick1, Pick2, Pick3, Pick4, Pick5, ShareCloned, ShareNot};
}

/// The process-wide cache.
#[inline]
#[must_use]
pub fn default_cache() -> &'static Cache {
    global::default_cache()
}

/// What is known about an annotated function without its arguments.
#[derive(Clone, Debug)]
pub struct Site {
    profile: Result<TtlProfile, Error>,
    origin: Origin,
    version: u32,
    bound: bool,
}

impl Site {
    /// The site of the function that `F` stands for. `bound` unless it names a key of its own.
    #[inline]
    #[must_use]
    pub fn new<F: 'static>(profile: TtlProfile, bound: bool) -> Self {
        Self { profile: Ok(profile), origin: Origin::of::<F>(), version: 0, bound }
    }

    /// The same with a profile known only at run time; an error makes every call run uncached.
    #[inline]
    #[must_use]
    pub fn checked<F: 'static>(profile: Result<TtlProfile, Error>, bound: bool) -> Self {
        Self { profile, origin: Origin::of::<F>(), version: 0, bound }
    }

    /// The version of the value's type.
    #[inline]
    #[must_use]
    pub fn with_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Tells instances of a generic function apart.
    #[must_use]
    pub fn with_type<T: ?Sized>(mut self) -> Self {
        self.origin = self.origin.with_type(Fnv::new().update(std::any::type_name::<T>().as_bytes()).0);
        self
    }

    /// The same for a type that has no name.
    #[must_use]
    pub fn with_type_of<T: ?Sized>(self, _: &T) -> Self {
        self.with_type::<T>()
    }
}

/// An argument on its way into a key.
#[derive(Debug)]
pub struct Arg<'a, T: ?Sized>(pub &'a T);

impl<T: ?Sized> Clone for Arg<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Arg<'_, T> {}

/// Picked first: the readable form.
pub trait ByArgument {
    /// Appends the argument.
    ///
    /// # Errors
    /// A value with no canonical form.
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error>;
}

impl<T: KeyArgument + ?Sized> ByArgument for &Arg<'_, T> {
    #[inline]
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        self.0.write_key(writer)
    }
}

/// Picked next: the canonical form of anything serialisable.
pub trait BySerialize {
    /// Appends the argument.
    ///
    /// # Errors
    /// A value with no canonical form.
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error>;
}

impl<T: serde::Serialize + ?Sized> BySerialize for Arg<'_, T> {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        crate::Canonical(self.0).write_key(writer)
    }
}

/// Picked last, so that the compiler's message is the one of [`KeyArgument`].
pub trait NoKey<T: ?Sized>: Sized {
    /// Does not compile.
    ///
    /// # Errors
    /// None.
    fn write_key(self, writer: &mut KeyWriter) -> Result<(), Error>
    where
        T: KeyArgument;
}

impl<T: ?Sized> NoKey<T> for Arg<'_, T> {
    fn write_key(self, writer: &mut KeyWriter) -> Result<(), Error>
    where
        T: KeyArgument,
    {
        self.0.write_key(writer)
    }
}

/// What `put` takes for a function returning `R`: an `R`, or its success value alone.
pub trait Put<R> {
    /// The return value.
    fn returned(self) -> R;
}

impl<R> Put<R> for R {
    fn returned(self) -> R {
        self
    }
}

impl<T, E> Put<Result<T, E>> for T {
    fn returned(self) -> Result<T, E> {
        Ok(self)
    }
}

impl<T> Put<Option<T>> for T {
    fn returned(self) -> Option<T> {
        Some(self)
    }
}

/// One call of an annotated function or companion: its cache and its key. Borrows no argument.
#[derive(Debug)]
pub struct Call<'c> {
    cache: &'c Cache,
    site: Site,
    key: Result<FullKey, Error>,
    /// Tags that cannot be used: they are no part of the key, so that an invalidation does without them.
    bad_tags: Option<Error>,
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
        Self { cache, site, key, bad_tags: None }
    }

    /// A call whose key belongs to no tenant.
    #[inline]
    pub fn global(cache: &'c Cache, site: Site, write: impl FnOnce(&mut KeyWriter) -> Result<(), Error>) -> Self {
        let key =
            if cache.state.options.require_tenant { Err(tenant_required()) } else { build(cache, &site, None, write) };
        Self { cache, site, key, bad_tags: None }
    }

    /// The call whose value has these tags.
    #[must_use]
    pub fn with_tags<T: AsRef<str>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        match Tags::encode(tags) {
            Ok(tags) => self.key = self.key.map(|key| key.with_tags(&tags)),
            Err(error) => self.bad_tags = Some(error),
        }
        self
    }

    /// The value, if it is in the near tier.
    #[inline]
    pub fn near<R, S: Shape<R>>(&self, shape: S) -> Option<R> {
        let state = &self.cache.state;
        if self.bad_tags.is_some() {
            return None;
        }
        let value = state.lookup_near::<S::Value>(self.key.as_ref().ok()?, &self.origin())?;
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
        if let Some(value) = target.lookup_near() {
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
        let target = self.target::<S::Value>()?;
        let Ok(value) = shape.split(value.returned()) else { return Ok(()) };
        write::set(&target, value).await
    }

    /// Removes the value.
    pub async fn invalidate(self) -> Invalidated {
        let state = &self.cache.state;
        if let Ok(profile) = &self.site.profile {
            state.stats.counters(state.stats.slot(profile.name())).invalidations.increment();
        }
        // A key that cannot be built names no entry.
        let Ok(key) = &self.key else { return Invalidated::Applied };
        invalidate::keys(state, std::slice::from_ref(key)).await
    }

    /// What is left of the value's life.
    ///
    /// # Errors
    /// A key that cannot be used, or Redis cannot be reached.
    pub async fn ttl(self) -> Result<Option<Duration>, Error> {
        Ok(read::life(&self.target::<()>()?).await?.map(|life| life.left))
    }

    /// The key as the server sees it.
    ///
    /// # Errors
    /// A key that cannot be used.
    pub fn key(self) -> Result<String, Error> {
        self.key.map(|key| key.as_str().to_owned())
    }

    fn origin(&self) -> Origin {
        let origin = if self.site.bound { self.site.origin } else { Origin::none() };
        origin.with_version(self.site.version)
    }

    fn target<T: CacheValue>(self) -> Result<Target<'c>, Error> {
        if let Some(error) = self.bad_tags {
            return Err(error);
        }
        Ok(Target {
            binding: Binding { type_id: TypeId::of::<T>(), origin: self.origin() },
            state: &self.cache.state,
            key: self.key?,
            profile: self.site.profile?,
            version: self.site.version,
            codec: None,
            strict: false,
        })
    }

    /// The target, or a count and a report of why this call runs uncached.
    fn target_or_bypass<T: CacheValue>(self) -> Option<Target<'c>> {
        let cache = self.cache;
        let profile = self.site.profile.as_ref().map_or("invalid_profile", TtlProfile::name);
        self.target::<T>().inspect_err(|error| scoped::bypass(cache, profile, error)).ok()
    }
}

#[inline]
fn build(
    cache: &Cache,
    site: &Site,
    tenant: Option<&str>,
    write: impl FnOnce(&mut KeyWriter) -> Result<(), Error>,
) -> Result<FullKey, Error> {
    let profile = match &site.profile {
        Ok(profile) => profile.name(),
        Err(error) => return Err(error.clone()),
    };
    let prefix = prefix(&cache.state.options.root, tenant)?;
    let mut writer = KeyWriter::new();
    write(&mut writer)?;
    if writer.is_empty() {
        return Err(empty_identifier());
    }
    Ok(FullKey::new(&prefix, profile, &writer))
}

#[cold]
fn tenant_required() -> Error {
    let message =
        "this cache demands a tenant (`require_tenant`), and the annotated function names none; it runs uncached";
    Error::new(ErrorKind::TenantRequired, message)
}

/// The profile of a function that names none: its module path with `.` for `::`, lower case, `_` for what a profile
/// cannot hold. At most 64 bytes: the end of a longer path.
#[doc(hidden)]
#[macro_export]
macro_rules! __module_profile {
    ($path:expr) => {{
        const LENGTH: usize = $crate::__private::module_profile_len($path);
        const BYTES: [u8; LENGTH] = $crate::__private::module_profile_bytes::<LENGTH>($path);
        const NAME: &str = match ::core::str::from_utf8(&BYTES) {
            ::core::result::Result::Ok(name) => name,
            ::core::result::Result::Err(_) => "m",
        };
        NAME
    }};
}

#[doc(hidden)]
#[must_use]
pub const fn module_profile_len(path: &str) -> usize {
    let bytes = path.as_bytes();
    let (mut length, mut at) = (0, 0);
    while at < bytes.len() {
        at += if is_separator(bytes, at) { 2 } else { 1 };
        length += 1;
    }
    // One more for the `m` put before a name that does not begin with a letter.
    let length = if starts_with_letter(bytes) { length } else { length + 1 };
    if length > crate::key::MAX_PROFILE { crate::key::MAX_PROFILE } else { length }
}

#[doc(hidden)]
#[must_use]
pub const fn module_profile_bytes<const N: usize>(path: &str) -> [u8; N] {
    let bytes = path.as_bytes();
    let mut name = [b'm'; N];
    // From the end: of a path that is too long the end says most.
    let (mut to, mut from) = (N, bytes.len());
    while to > 0 && from > 0 {
        to -= 1;
        from -= 1;
        let byte = bytes[from].to_ascii_lowercase();
        name[to] = if byte == b':' {
            from -= 1;
            b'.'
        } else if byte.is_ascii_lowercase() || byte.is_ascii_digit() {
            byte
        } else {
            b'_'
        };
    }
    if !name[0].is_ascii_lowercase() {
        name[0] = b'm';
    }
    name
}

const fn is_separator(bytes: &[u8], at: usize) -> bool {
    bytes[at] == b':' && at + 1 < bytes.len() && bytes[at + 1] == b':'
}

const fn starts_with_letter(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes[0].is_ascii_alphabetic()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn profile<const N: usize>(path: &str) -> [u8; N] {
        module_profile_bytes(path)
    }

    #[test]
    fn a_module_path_becomes_a_profile() {
        assert_eq!(module_profile!("my_app::api::Scan"), "my_app.api.scan");
        assert_eq!(module_profile!("_x"), "m_x");
        assert_eq!(&profile::<3>("aé"), b"a__");
        const LONG: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa::bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb::c";
        assert_eq!(module_profile!(LONG).len(), 64);
        assert!(crate::key::is_profile(module_profile!(LONG)));
    }
}
