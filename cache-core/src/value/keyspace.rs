//! A keyspace: a TTL profile, a value type and its version. Where typed keys come from.

use std::{any::TypeId, fmt, marker::PhantomData};

use crate::{
    error::{Error, ErrorKind},
    key::{KeyArgument, KeyWriter, tag::Tags},
    value::{TtlProfile, codec::Codec},
};

/// A kind of cached value: profile, type `T`, version and schema of `T`, and codec. `const`.
///
/// A key can only come from a keyspace, so reading it as another type does not compile. An entry in Redis says what type it
/// holds, and is a miss to every other type: see [`with_schema`](Self::with_schema) for what a type is called there.
///
/// ```
/// use cache_core::{Cache, Keyspace, profiles::WORKFLOW_DEF};
///
/// const WORKFLOWS: Keyspace<String> = WORKFLOW_DEF.of();
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), cache_core::Error> {
/// let acme = Cache::in_memory().tenant("acme")?;
/// let key = WORKFLOWS.key("abc-456");
/// acme.set(&key, "deploy".to_owned()).await?;
/// assert_eq!(acme.get(&key).await?.as_deref(), Some(&"deploy".to_owned()));
/// # Ok(())
/// # }
/// ```
pub struct Keyspace<T> {
    profile: TtlProfile,
    version: u32,
    schema: Option<&'static str>,
    codec: Option<Codec>,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Keyspace<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Keyspace<T> {}

impl<T> fmt::Debug for Keyspace<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace")
            .field("profile", &self.profile.name())
            .field("version", &self.version)
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl TtlProfile {
    /// The keyspace of values of type `T` under this profile.
    #[must_use]
    pub const fn of<T>(self) -> Keyspace<T> {
        Keyspace { profile: self, version: 0, schema: None, codec: None, value: PhantomData }
    }
}

impl<T> Keyspace<T> {
    /// Sets the version of `T`. Defaults to 0. Raise it when old entries must not be read as the new type.
    ///
    /// An entry of an older version is a miss and is overwritten. One of a newer version is left alone, whatever its type
    /// is called: the older binary fetches, and keeps what it fetched in its own memory only. So a rolling deploy never
    /// thrashes.
    #[must_use]
    pub const fn with_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets what `T` is called in stored entries, so that moving or renaming it costs nothing: entries that were stored
    /// under this name are read as `T`. Two keyspaces of one profile that name one schema read each other's entries,
    /// as far as serde can; raise the version where they must not.
    ///
    /// Defaults to the type's own name with the modules it stands in, and those of its parameters. That rests on the source,
    /// as the compiler tells it: a type that is moved or renamed, in a rare case a new compiler too, makes older entries
    /// misses, and until a deploy is over the two releases overwrite each other's. A raised version spares them that.
    /// Entries are never misread for it. Two types that the name does not tell apart are one: those of one name in two blocks
    /// of one function, and those of one bare name in a crate whose library is called `core`, `std` or `alloc`.
    ///
    /// ```
    /// use cache_core::{Keyspace, profiles::SCAN_RESULTS};
    ///
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Report { findings: u32 }
    ///
    /// const REPORTS: Keyspace<Report> = SCAN_RESULTS.of().with_schema("report");
    /// ```
    ///
    /// # Panics
    /// When the name is empty; in a `const` the panic is a compile error.
    #[must_use]
    pub const fn with_schema(mut self, name: &'static str) -> Self {
        assert!(!name.is_empty(), "schema: a name for the type, not empty");
        self.schema = Some(name);
        self
    }

    /// Sets how values are written to Redis. Defaults to the cache's codec, MessagePack.
    ///
    /// Each entry says how it was written, so a change needs no new version.
    #[must_use]
    pub const fn with_codec(mut self, codec: Codec) -> Self {
        self.codec = Some(codec);
        self
    }

    /// The key of this identifier: text, an integer, or a tuple for several segments.
    ///
    /// Never fails: an identifier that cannot be used is an error of the verb that gets the key. Cost: no
    /// allocation up to 200 bytes.
    #[must_use]
    pub fn key(&self, identifier: impl KeyArgument) -> Key<T> {
        let mut writer = KeyWriter::new();
        writer.segment();
        let error = identifier.write_key(&mut writer).err();
        Key { keyspace: *self, identifier: writer, tags: Ok(Tags::default()), error }
    }

    /// The profile of this keyspace.
    #[must_use]
    pub const fn profile(&self) -> &TtlProfile {
        &self.profile
    }

    pub(crate) const fn codec(&self) -> Option<Codec> {
        self.codec
    }

    pub(crate) const fn version(&self) -> u32 {
        self.version
    }

    pub(crate) const fn schema(&self) -> Option<&'static str> {
        self.schema
    }
}

/// The key of one value of type `T`, without its tenant: the scope it is used with adds that.
pub struct Key<T> {
    keyspace: Keyspace<T>,
    identifier: KeyWriter,
    tags: Result<Tags, Error>,
    error: Option<Error>,
}

impl<T> Key<T> {
    /// Names the tags of the value: up to 8, each 1 to 128 bytes once percent-encoded, in any order. They belong to
    /// the tenant that the key is used with. [`Scoped::invalidate_tag`](crate::Scoped::invalidate_tag) removes all values that name a tag.
    ///
    /// A value is stored with the tags its key names, and found by a key that names the same ones: name them wherever
    /// the key is used, except to invalidate it, which needs none. A tag that cannot be used is an error of the verb that
    /// gets the key.
    /// Cost: two allocations per tag, and 16 bytes of each stored entry.
    ///
    /// ```
    /// use cache_core::{Cache, Keyspace, profiles::WORKFLOW_DEF};
    ///
    /// const WORKFLOWS: Keyspace<String> = WORKFLOW_DEF.of();
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), cache_core::Error> {
    /// let acme = Cache::in_memory().tenant("acme")?;
    /// let key = WORKFLOWS.key("abc-456").with_tags(["plan:gold", "owner:7"]);
    /// acme.set(&key, "deploy".to_owned()).await?;
    /// assert!(acme.invalidate_tag("owner:7").await.is_applied());
    /// assert_eq!(acme.get(&key).await?, None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_tags<S: AsRef<str>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.tags = Tags::encode(tags);
        self
    }

    /// The keyspace this key comes from.
    #[must_use]
    pub const fn keyspace(&self) -> &Keyspace<T> {
        &self.keyspace
    }

    /// The identifier as it stands in the key; only its head where it is over 200 bytes.
    #[must_use]
    pub fn identifier(&self) -> &str {
        self.identifier.head()
    }

    pub(crate) fn tags(&self) -> Result<&Tags, Error> {
        self.tags.as_ref().map_err(Clone::clone)
    }

    pub(crate) fn writer(&self) -> Result<&KeyWriter, Error> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None if self.identifier.is_empty() => Err(empty_identifier()),
            None => Ok(&self.identifier),
        }
    }
}

pub(crate) fn empty_identifier() -> Error {
    Error::new(ErrorKind::InvalidKey, "the identifier of a key is empty; give at least one byte")
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        Self {
            keyspace: self.keyspace,
            identifier: self.identifier.clone(),
            tags: self.tags.clone(),
            error: self.error.clone(),
        }
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}:{})", self.keyspace.profile.name(), self.identifier())
    }
}

/// Keys are equal when profile and identifier are: they name the same entry of a tenant.
impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.keyspace.profile.name() == other.keyspace.profile.name() && self.identifier == other.identifier
    }
}

impl<T> Eq for Key<T> {}

impl<T> std::hash::Hash for Key<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.identifier.hash(state);
    }
}

/// What binds a stored value to what may read it, beside the key: its type, and its function where an annotated one
/// named no key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Binding {
    pub(crate) type_id: TypeId,
    pub(crate) origin: Origin,
}

/// The function a value is bound to, and the version and given name of its type.
///
/// Within a process the function's own type tells it apart, which costs nothing on a hit; between processes a hash of its
/// place does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    function: TypeId,
    /// Hash of the function's place and of its type parameters. 0 for no function.
    place: u64,
    /// The version of the value's type: the envelope says it in Redis.
    version: u32,
    /// What the type was named: its own name is told by the type.
    schema: Option<&'static str>,
    /// Hash of the function's code, where its place does not tell it from every other one; else 0. Only Redis has need of it.
    code: u64,
}

impl Origin {
    /// Bound to no function.
    pub(crate) fn none() -> Self {
        Self::of(None)
    }

    /// Bound to this function, by its type and by the hash of its place, if to any.
    #[inline]
    pub(crate) fn of(function: Option<(TypeId, u64)>) -> Self {
        let (function, place) = function.unwrap_or((TypeId::of::<()>(), 0));
        Self { function, place, version: 0, schema: None, code: 0 }
    }

    /// Bound to this version and given name of the value's type.
    #[inline]
    pub(crate) fn of_values(self, version: u32, schema: Option<&'static str>) -> Self {
        Self { version, schema, ..self }
    }

    /// Bound to this code of the function's.
    #[inline]
    pub(crate) fn with_code(mut self, code: u64) -> Self {
        self.code = code;
        self
    }

    /// Part of the schema of an entry: judged after the version, so that a release which raises it may change the code.
    pub(crate) fn code(&self) -> u64 {
        self.code
    }

    /// The same in every process.
    pub(crate) fn seed(&self) -> u64 {
        self.place
    }
}

impl PartialEq for Origin {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function
            && self.place == other.place
            && self.version == other.version
            && self.schema == other.schema
    }
}

impl Eq for Origin {}

impl std::hash::Hash for Origin {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.function.hash(state);
        (self.place, self.version, self.schema).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher, hash::RandomState};

    use super::*;
    use crate::value::profiles::API_RESPONSE;

    /// A map of such keys must not become a list.
    #[test]
    fn keys_with_one_long_head_have_hashes_of_their_own() {
        const URLS: Keyspace<String> = API_RESPONSE.of();
        let head = "x".repeat(300);
        let hasher = RandomState::new();
        let hashes: HashSet<_> = (0..1000).map(|n| hasher.hash_one(URLS.key((head.as_str(), n)))).collect();
        assert_eq!(hashes.len(), 1000);
    }
}
