//! Values to bytes and back, inside a verified envelope.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde::{Serialize, de::DeserializeOwned};

use super::weight::{self, MAX_DEPTH, Refusal};
use crate::error::{Error, ErrorKind};

/// A type that can be cached: serialisable both ways, shareable between threads, owning what it holds.
///
/// Implemented for every type that qualifies.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be cached",
    label = "not a cacheable value",
    note = "a cached value is `serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static`"
)]
pub trait CacheValue: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> CacheValue for T {}

/// How values are written to Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// MessagePack with named fields: compact, and fields may be added with `#[serde(default)]`.
    #[default]
    MessagePack,
    /// JSON, for readers in other languages. Slower, larger, and with JSON's limits: map keys are text.
    Json,
}

impl Codec {
    pub(crate) const fn id(self) -> u8 {
        match self {
            Self::MessagePack => 1,
            Self::Json => 2,
        }
    }

    pub(crate) const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::MessagePack),
            2 => Some(Self::Json),
            _ => None,
        }
    }

    /// What the value takes in memory. An error where it is nested too deeply to be encoded, or its `Serialize` fails or
    /// panics.
    pub(crate) fn weigh<T: Serialize>(self, value: &T) -> Result<usize, Error> {
        guarded(|| weight::weigh(value, self == Self::Json))
    }

    /// The encoded value, which was weighed before: that tells how deeply it is nested.
    pub(crate) fn encode<T: Serialize>(self, value: &T) -> Result<Vec<u8>, Error> {
        guarded(|| match self {
            Self::MessagePack => rmp_serde::to_vec_named(value).map_err(|_| Refusal::Failed),
            Self::Json => serde_json::to_vec(value).map_err(|_| Refusal::Failed),
        })
    }

    /// The decoded value, or `None` where the bytes are not one.
    pub(crate) fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Option<T> {
        catch_unwind(AssertUnwindSafe(|| match self {
            Self::MessagePack => rmp_serde::from_slice(bytes).ok(),
            Self::Json => serde_json::from_slice(bytes).ok(),
        }))
        .ok()
        .flatten()
    }
}

/// The length of the value as MessagePack, without writing it anywhere.
pub(crate) fn encoded_len<T: Serialize>(value: &T) -> Result<usize, Error> {
    guarded(|| {
        let mut counter = Counter(0);
        rmp_serde::encode::write_named(&mut counter, value).map_err(|_| Refusal::Failed)?;
        Ok(counter.0)
    })
}

/// Runs the type's `Serialize`, of which neither an error nor a panic reaches the user's call.
fn guarded<R>(serialize: impl FnOnce() -> Result<R, Refusal>) -> Result<R, Error> {
    let message = match catch_unwind(AssertUnwindSafe(serialize)) {
        Ok(Ok(done)) => return Ok(done),
        // Without the reason: a type's own message may quote the value.
        Ok(Err(Refusal::Failed)) => "a value's Serialize failed; the value was not stored".to_owned(),
        Ok(Err(Refusal::TooDeep)) => {
            format!("a value is nested deeper than {MAX_DEPTH} levels, the most there may be; it was not stored")
        }
        Err(_) => "a value's Serialize panicked; the value was not stored".to_owned(),
    };
    Err(Error::new(ErrorKind::Encode, message))
}

struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Value {
        id: u64,
        name: String,
        score: Option<f64>,
        tags: Vec<String>,
        map: BTreeMap<String, i32>,
        nested: Option<Box<Self>>,
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = (
            any::<u64>(),
            ".{0,20}",
            prop::option::of(-1e300..1e300_f64),
            prop::collection::vec(".{0,5}", 0..4),
            prop::collection::btree_map(".{0,5}", any::<i32>(), 0..4),
        )
            .prop_map(|(id, name, score, tags, map)| Value { id, name, score, tags, map, nested: None });
        leaf.prop_recursive(2, 4, 1, |inner| {
            inner.prop_map(|value| Value { nested: Some(Box::new(value.clone())), ..value })
        })
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(value in value()) {
            for codec in [Codec::MessagePack, Codec::Json] {
                let bytes = codec.encode(&value).unwrap();
                prop_assert_eq!(codec.decode::<Value>(&bytes), Some(value.clone()));
            }
            prop_assert_eq!(encoded_len(&value).unwrap(), Codec::MessagePack.encode(&value).unwrap().len());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Codec::MessagePack.decode::<Value>(&bytes);
            let _ = Codec::Json.decode::<Value>(&bytes);
        }
    }

    #[test]
    fn a_panicking_serialize_is_an_error() {
        struct Panics;
        impl Serialize for Panics {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                panic!("as a test")
            }
        }
        assert_eq!(Codec::MessagePack.encode(&Panics).unwrap_err().kind(), ErrorKind::Encode);
        assert!(encoded_len(&Panics).is_err());
    }
}
