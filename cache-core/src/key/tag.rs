//! Tags: names a caller gives a value beside its key, to invalidate many at once.

use super::segment::encode;
use crate::{
    error::{Error, ErrorKind},
    sync::Arc,
};

/// Most tags of one key.
pub(crate) const MAX_TAGS: usize = 8;
/// The longest tag, percent-encoded, in bytes.
pub(crate) const MAX_TAG: usize = 128;

/// Names of one key's tags: sorted, each once. Nothing on the heap where there are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tags(Option<Arc<[Box<str>]>>);

impl Tags {
    /// Percent-encodes tags.
    pub(crate) fn encode<S: AsRef<str>>(tags: impl IntoIterator<Item = S>) -> Result<Self, Error> {
        let mut names = tags.into_iter().map(|tag| encode_tag(tag.as_ref())).collect::<Result<Vec<_>, _>>()?;
        // The order must not matter: generations are compared one by one.
        names.sort_unstable();
        names.dedup();
        if names.len() > MAX_TAGS {
            let message = format!("a key has {} tags, at most {MAX_TAGS} are allowed", names.len());
            return Err(Error::new(ErrorKind::InvalidKey, message));
        }
        Ok(Self::of(names))
    }

    fn of(names: Vec<Box<str>>) -> Self {
        Self((!names.is_empty()).then(|| names.into()))
    }

    /// The names of their generations within a tenant.
    pub(crate) fn generations(&self, scope: &str) -> Self {
        Self::of(self.as_slice().iter().map(|tag| tag_generation(scope, tag).into()).collect())
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[Box<str>] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// A tag as it stands in keys.
///
/// # Errors
/// [`ErrorKind::InvalidKey`] when it is empty or longer than 128 bytes, percent-encoded.
pub(crate) fn encode_tag(tag: &str) -> Result<Box<str>, Error> {
    let mut encoded = String::with_capacity(tag.len());
    // The length of what was given bounds the work on a hostile one.
    if !tag.is_empty() && tag.len() <= MAX_TAG {
        encode(tag, |piece| encoded.push_str(piece));
    }
    if encoded.is_empty() || encoded.len() > MAX_TAG {
        let given = tag.len();
        let message = format!("a tag of {given} bytes; give 1 to {MAX_TAG} bytes, percent-encoded");
        return Err(Error::new(ErrorKind::InvalidKey, message));
    }
    Ok(encoded.into())
}

/// The generation of a tag, from the tenant's prefix. No profile begins with `~`, so it is no value's key.
pub(crate) fn tag_generation(scope: &str, encoded: &str) -> String {
    format!("{scope}~t:{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_sorted_and_counted_once() {
        let tags = Tags::encode(["b", "a", "b"]).unwrap();
        assert_eq!(tags.as_slice(), [Box::from("a"), Box::from("b")]);
        assert_eq!(&*tags.generations("cache:tenant:x:").as_slice()[1], "cache:tenant:x:~t:b");
        assert!(Tags::encode::<&str>([]).unwrap().as_slice().is_empty());
    }

    #[test]
    fn what_cannot_be_a_tag_is_named() {
        let many = (0..9).map(|n| n.to_string());
        assert!(Tags::encode(many).unwrap_err().to_string().contains("9 tags"));
        assert!(encode_tag("").is_err());
        assert!(encode_tag(&"x".repeat(129)).is_err() && encode_tag(&"x".repeat(128)).is_ok());
        assert!(encode_tag(&"é".repeat(22)).is_err(), "132 bytes encoded");
    }
}
