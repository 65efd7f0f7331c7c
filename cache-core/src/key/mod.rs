//! Step *key* of the picture: tenant-scoped keys, injective and readable in redis-cli.
//!
//! `<root>:tenant:<tenant>:<profile>:<identifier>` and `<root>:<profile>:<identifier>`. Segments are
//! percent-encoded; `~` marks auxiliary keys and the hash that ends a key too long to be kept as it is.

#[cfg(test)]
mod laws;
mod argument;
mod canonical;
pub(crate) mod pattern;
pub(crate) mod tag;
mod tenant;
pub(crate) mod segment;

use std::fmt::Write as _;

use arrayvec::ArrayString;

pub use self::{
    argument::{Canonical, KeyArgument, KeyWriter},
    tenant::TenantArgument,
};
use self::{
    segment::is_name,
    tag::{MAX_TAGS, Tags},
    tenant::MAX_TENANT,
};
use crate::error::{Detail, Error, ErrorKind};

/// The longest key that is kept as it is; a longer one ends in a hash.
pub(crate) const MAX_PLAIN: usize = 200;
/// `~` and 256 bits in hexadecimal.
pub(crate) const HASH_LEN: usize = 65;
/// Values inside values in one argument. Each level takes room on the stack.
const MAX_DEPTH: u8 = 128;
/// The longest root, in bytes.
pub(crate) const MAX_ROOT: usize = 32;
/// The longest profile name, in bytes.
pub(crate) const MAX_PROFILE: usize = 64;
/// The longest key: every part before the identifier at its longest, then a hash.
const MAX_KEY: usize = MAX_ROOT + ":tenant:".len() + MAX_TENANT + 1 + MAX_PROFILE + 1 + HASH_LEN;

/// What all keys of one tenant, or of none, start with: `cache:tenant:acme:` or `cache:`.
pub(crate) type Prefix = ArrayString<{ MAX_ROOT + 8 + MAX_TENANT + 1 }>;

/// The prefix of `tenant`, or of the keys that belong to no tenant.
#[inline]
pub(crate) fn prefix(root: &str, tenant: Option<&str>) -> Result<Prefix, Error> {
    let mut prefix = Prefix::new_const();
    match tenant {
        Some(tenant) => tenant::write_tenant(root, tenant, &mut prefix)?,
        None => {
            prefix.push_str(root);
            prefix.push(':');
        }
    }
    Ok(prefix)
}

/// Checks a root: the first segment of all keys of a deployment.
pub(crate) fn check_root(root: &str) -> Result<(), Error> {
    if is_name(root, MAX_ROOT) {
        return Ok(());
    }
    let message =
        format!("root {root:?} is not a name: [a-z][a-z0-9_.-]*, 1 to {MAX_ROOT} bytes, for instance \"prod\"");
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

/// Whether `name` can be a profile, the segment after the tenant.
pub(crate) const fn is_profile(name: &str) -> bool {
    is_name(name, MAX_PROFILE) && !matches!(name.as_bytes(), b"tenant")
}

/// Most generations a value depends on: of its tenant, its keyspace and its tags.
pub(crate) const MAX_GENERATIONS: usize = 2 + MAX_TAGS;

/// A whole key as the server sees it, on the stack, and the tags its caller named.
#[derive(Clone, Debug)]
pub(crate) struct FullKey {
    text: ArrayString<MAX_KEY>,
    /// Where the tenant's prefix ends.
    scope_end: u16,
    /// Where the profile ends, before its `:`.
    profile_end: u16,
    /// Names of the tags' generations.
    tags: Tags,
}

/// Keys are equal when they name the same entry, whatever tags the caller named.
impl PartialEq for FullKey {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for FullKey {}

impl std::hash::Hash for FullKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl FullKey {
    /// Joins prefix, profile and identifier; shortens the identifier to a readable head and a hash where the whole
    /// would be longer than 200 bytes.
    #[inline]
    pub(crate) fn new(prefix: &Prefix, profile: &str, identifier: &KeyWriter) -> Self {
        let mut text = ArrayString::new_const();
        text.push_str(prefix);
        text.push_str(profile);
        let profile_end = text.len();
        text.push(':');
        match identifier.plain() {
            Some(plain) if text.len() + plain.len() <= MAX_PLAIN => text.push_str(plain),
            _ => push_hashed(&mut text, identifier),
        }
        // Lossless: a key is at most `MAX_KEY` bytes.
        #[expect(clippy::cast_possible_truncation, reason = "MAX_KEY fits u16")]
        Self { text, scope_end: prefix.len() as u16, profile_end: profile_end as u16, tags: Tags::default() }
    }

    /// The key with these tags.
    pub(crate) fn with_tags(mut self, tags: &Tags) -> Self {
        self.tags = tags.generations(self.scope());
        self
    }

    /// Names of the tags' generations.
    #[inline]
    pub(crate) fn tags(&self) -> &[Box<str>] {
        self.tags.as_slice()
    }

    /// Names of all generations the value depends on: of tenant, keyspace and tags, in this order.
    pub(crate) fn generations(&self) -> Vec<String> {
        let mut names =
            vec![scope_generation(self.scope()).to_string(), keyspace_generation(self.keyspace()).to_string()];
        names.extend(self.tags().iter().map(|tag| tag.to_string()));
        names
    }

    /// How many they are.
    pub(crate) fn generation_count(&self) -> u8 {
        // At most `MAX_GENERATIONS`.
        u8::try_from(2 + self.tags().len()).unwrap_or(u8::MAX)
    }

    /// What an entry of this key is watched by: key, keyspace, tenant and tags.
    #[inline]
    pub(crate) fn watched(&self) -> impl Iterator<Item = &str> {
        [self.as_str(), self.keyspace(), self.scope()].into_iter().chain(self.tags().iter().map(|tag| &**tag))
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The tenant's prefix, or that of no tenant.
    #[inline]
    pub(crate) fn scope(&self) -> &str {
        &self.text[..usize::from(self.scope_end)]
    }

    /// The tenant's prefix and the profile: what names a keyspace of a tenant.
    #[inline]
    pub(crate) fn keyspace(&self) -> &str {
        &self.text[..usize::from(self.profile_end)]
    }

    pub(crate) fn lease(&self) -> String {
        auxiliary(&self.text, "~l").to_string()
    }

    pub(crate) fn sweep_fence(&self) -> String {
        sweep_fence(self.scope()).to_string()
    }
}

#[cold]
fn too_deep() -> Error {
    let message = format!("a key argument nests deeper than {MAX_DEPTH} levels; give a flatter one, or skip it");
    Error::new(ErrorKind::InvalidKey, message)
}

/// An argument of which no key can be made this time.
#[cold]
fn users_code(message: &'static str) -> Error {
    Error::with_detail(ErrorKind::InvalidKey, Detail::UsersCode, message)
}

#[cold]
fn push_hashed(text: &mut ArrayString<MAX_KEY>, identifier: &KeyWriter) {
    let room = MAX_PLAIN.saturating_sub(text.len() + HASH_LEN);
    let head = identifier.head();
    text.push_str(&head[..room.min(head.len())]);
    let _ = write!(text, "~{}", identifier.digest().to_hex());
}

/// The name of an auxiliary key, on the stack.
pub(crate) type Auxiliary = ArrayString<{ MAX_KEY + 4 }>;

#[inline]
fn auxiliary(name: &str, end: &str) -> Auxiliary {
    let mut text = Auxiliary::new_const();
    // Fits: a name is a key or the beginning of one.
    text.push_str(name);
    text.push_str(end);
    text
}

/// The generation of a whole tenant, or of the keys of no tenant, from its prefix.
#[inline]
pub(crate) fn scope_generation(scope: &str) -> Auxiliary {
    auxiliary(scope, "~g")
}

/// The generation of one keyspace of a tenant, from prefix and profile.
#[inline]
pub(crate) fn keyspace_generation(keyspace: &str) -> Auxiliary {
    auxiliary(keyspace, ":~g")
}

/// The sweep fence of a tenant, from its prefix.
pub(crate) fn sweep_fence(scope: &str) -> Auxiliary {
    auxiliary(scope, "~f")
}

/// As in an ACL: all keys under a root, and all channels.
pub(crate) fn all_keys(root: &str) -> String {
    format!("{root}:*")
}

pub(crate) fn all_channels(root: &str) -> String {
    format!("{}*", channel(root))
}

/// The channel in which all caches under one root hear each other's notices.
pub(crate) fn channel(root: &str) -> String {
    format!("{root}:~n")
}

/// The channel of one cache alone, next to that of all, in which its link hears itself; and the name of its marker.
pub(crate) fn own_channel(channel: &str, id: u64) -> String {
    format!("{channel}:{id:016x}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(tenant: Option<&str>, profile: &str, identifier: impl KeyArgument) -> FullKey {
        let mut writer = KeyWriter::new();
        writer.segment();
        identifier.write_key(&mut writer).unwrap();
        FullKey::new(&prefix("cache", tenant).unwrap(), profile, &writer)
    }

    /// Pins the grammar: a change here is a change of every stored key.
    #[test]
    fn golden_keys() {
        let long = "x".repeat(300);
        let canonical = serde_json::json!([null, [], {}, -1, 0.5, "a:b", true, { "b": [1], "a": null }]);
        let canonical = (Canonical(&canonical), Canonical(&Some(('c', None::<u8>, Ok::<u8, u8>(1)))));
        let tagged = full(Some("acme"), "api", "id").with_tags(&Tags::encode(["plan:é", "beta"]).unwrap());
        let lines = [
            full(Some("acme"), "workflow_def", "abc-456").as_str().to_owned(),
            full(None, "workflow_def", "global-1").as_str().to_owned(),
            full(Some("123"), "api_response", "contacts_list").as_str().to_owned(),
            full(Some("R&D"), "api", ("scan", 7, true)).as_str().to_owned(),
            full(Some("é:*"), "api", ("a:b", "")).as_str().to_owned(),
            full(Some("acme"), "api", ("a", "b")).as_str().to_owned(),
            full(Some("acme"), "api", (None::<&str>, Some("x"), Some(None::<u8>), Some(Some(1_u8))))
                .as_str()
                .to_owned(),
            full(Some("acme"), "api", (vec![1, 2], ("p", "q"), Some(("r", "s")))).as_str().to_owned(),
            full(Some("acme"), "api", [(1, [2, 3]), (4, [5, 6])]).as_str().to_owned(),
            full(Some("acme"), "api", ("a", ("b", ("c", ("d", "e"))))).as_str().to_owned(),
            full(Some("acme"), "api", canonical).as_str().to_owned(),
            full(Some("acme"), "api", &*long).as_str().to_owned(),
            full(Some("acme"), "api", "id").lease(),
            tagged.generations().join("\n"),
            full(Some("acme"), "api", "id").sweep_fence(),
            full(None, "api", "id").generations()[0].clone(),
        ];
        assert_eq!(lines.join("\n") + "\n", include_str!("../../tests/golden/keys.txt"));
    }

    #[test]
    fn a_key_is_at_most_200_bytes_unless_its_prefix_is_long() {
        for length in [100, 120, 180, 181, 182, 199, 200, 201, 65_536] {
            let key = full(Some("acme"), "api", "x".repeat(length));
            assert!(key.as_str().len() <= MAX_PLAIN, "{length}");
            assert_eq!(key.as_str().contains('~'), length > MAX_PLAIN - "cache:tenant:acme:api:".len(), "{length}");
        }
        let tenant = "t".repeat(MAX_TENANT);
        assert!(full(Some(&tenant), &"p".repeat(MAX_PROFILE), "x".repeat(65_536)).as_str().len() <= MAX_KEY);
    }

    #[test]
    fn a_tenant_of_64_kb_or_none_at_all_is_a_clear_error() {
        for tenant in ["", &"x".repeat(65_536), &"é".repeat(60)] {
            let error = prefix("cache", Some(tenant)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTenant);
            assert!(error.to_string().contains("192"), "{error}");
        }
    }

    #[test]
    fn tenant_is_reserved_as_a_profile() {
        assert!(!is_profile("tenant"));
        assert!(is_profile("tenant_config"));
    }

    proptest! {
        #[test]
        fn keys_are_injective(
            a in (".{0,8}", "[a-z]{1,3}", ".{0,8}", prop::option::of("[!+:|#~a]{0,3}")),
            b in (".{0,8}", "[a-z]{1,3}", ".{0,8}", prop::option::of("[!+:|#~a]{0,3}")),
        ) {
            prop_assume!(!a.0.is_empty() && !b.0.is_empty());
            let key = |(tenant, profile, first, second): &(String, String, String, Option<String>)|
                full(Some(tenant), profile, (first.as_str(), second.as_deref()));
            prop_assert_eq!(a == b, key(&a) == key(&b));
        }

        #[test]
        fn long_identifiers_are_injective(a in "[ab:]{150,260}", b in "[ab:]{150,260}") {
            prop_assert_eq!(a == b, full(Some("t"), "p", &*a) == full(Some("t"), "p", &*b));
        }

        #[test]
        fn nested_collections_are_injective(
            a in prop::collection::vec((".{0,2}", prop::option::of(prop::option::of(any::<u8>()))), 0..3),
            b in prop::collection::vec((".{0,2}", prop::option::of(prop::option::of(any::<u8>()))), 0..3),
        ) {
            prop_assert_eq!(a == b, full(None, "p", &a) == full(None, "p", &b));
        }
    }
}
