//! Values to bytes and back, inside a verified envelope.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    depth::{Limited, MAX_DEPTH},
    weight::{self, Refusal},
};
use crate::error::{Error, ErrorKind};

/// A type that can be cached: serialisable both ways, shareable between threads, owning what it holds.
///
/// Implemented for every type that qualifies.
///
/// Other processes read what `Deserialize` makes of what `Serialize` wrote, and no more. The two must mirror each other: each
/// field that matters to who reads the value is written, and read under the name it is written with. `skip_serializing` makes
/// another process read the field's default, and nothing can notice that; `rename_all(deserialize = "…")` makes each read
/// there a miss. In a debug build the first value that is stored for a profile and type is decoded again: the log names the
/// type if that fails, or gives a value that encodes differently. In every build the log says once for each profile and type
/// that an entry in Redis was not usable.
///
/// A value is nested at most 64 levels deep. Each sequence, map, struct, tuple, `Some`, newtype and variant with data is a
/// level; a variant with several fields is two. A deeper value is not stored, which is an error of `set` and counts in
/// [`ProfileStats::encode_errors`](crate::ProfileStats::encode_errors); deeper bytes in Redis are a miss.
///
/// Inside an untagged, internally tagged or flattened type serde decodes from a buffer of its own, where levels are not counted:
/// a type that asks for itself there without reading anything, such as `struct Endless(Option<Box<Endless>>)` in an
/// `#[serde(untagged)]` enum, overflows the stack. Each level of an untagged enum in another one may double the time that
/// decoding takes.
///
/// A `Some` that holds `None` or `()` is read as `None`, in both codecs.
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
    /// JSON, for readers in other languages. Slower, larger, and with JSON's limits: map keys are text, and a number that is
    /// infinite or none (`NaN`) cannot be stored, which is an error as for a value that is nested too deeply.
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

    /// What the value takes in memory. An error where it is nested too deeply to be encoded or holds a number that the codec
    /// does not have, or its `Serialize` fails or panics.
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

    /// The decoded value, or `None` where the bytes are not one, or are nested too deeply.
    pub(crate) fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Option<T> {
        catch_unwind(AssertUnwindSafe(|| match self {
            Self::MessagePack => {
                T::deserialize(Limited::new(&mut rmp_serde::Deserializer::from_read_ref(bytes), bytes.len())).ok()
            }
            Self::Json => {
                let mut json = serde_json::Deserializer::from_slice(bytes);
                let value = T::deserialize(Limited::new(&mut json, bytes.len())).ok()?;
                json.end().ok().map(|()| value)
            }
        }))
        .ok()
        .flatten()
    }
}

impl Codec {
    /// What is wrong with the type's serde, as far as this encoded value shows it: it must decode, and encode to the
    /// same bytes then. Their order does not count, as the iteration of a hash table has none.
    pub(crate) fn flaw<T: CacheValue>(self, payload: &[u8]) -> Option<&'static str> {
        let Some(decoded) = self.decode::<T>(payload) else {
            return Some(
                "what Serialize writes its Deserialize refuses, so that each read in another process is a miss; let one \
                 read what the other writes",
            );
        };
        let sorted = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.sort_unstable();
            bytes
        };
        let again = self.encode(&decoded);
        // The user's `Drop` may panic.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(decoded)));
        if !again.is_ok_and(|again| again == payload || sorted(&again) == sorted(payload)) {
            return Some(
                "what is decoded is another value than what was encoded, so that other processes read that; let \
                 Deserialize read all that Serialize writes",
            );
        }
        None
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
        Ok(Err(Refusal::NotFinite)) => {
            "JSON has no number that is infinite or NaN; the value was not stored; see `Codec::MessagePack`".to_owned()
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

    /// Of any shape.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Any {
        End,
        Number(u32),
        Some(Option<Box<Self>>),
        Wrapped(Wrapped),
        List(Vec<Self>),
        Pair(Box<Self>, u8),
        Map(BTreeMap<String, Self>),
        Fields { inner: Box<Self>, other: Option<String> },
        Tagged(Tagged),
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(Box<Any>);

    /// Decoded by way of serde's own buffer.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Tagged {
        Deeper { deeper: Box<Any> },
        Text(String),
    }

    /// Any value of these wrappers, the innermost one first.
    fn any_of(wrappers: &[u8]) -> Any {
        wrappers.iter().fold(Any::End, |inner, wrapper| match wrapper % 10 {
            0 | 1 => Any::Number(7),
            2 => Any::Some(Some(Box::new(inner))),
            3 => Any::Wrapped(Wrapped(Box::new(inner))),
            4 => Any::List(vec![Any::End, inner, Any::Number(1)]),
            5 => Any::Pair(Box::new(inner), 1),
            6 => Any::Map(BTreeMap::from([("key".to_owned(), inner)])),
            7 => Any::Fields { inner: Box::new(inner), other: None },
            8 => Any::Tagged(Tagged::Text("text".to_owned())),
            _ => Any::Tagged(Tagged::Deeper { deeper: Box::new(inner) }),
        })
    }

    proptest! {
        /// Whatever the shape: what may be stored can be read.
        #[test]
        fn what_is_not_too_deep_to_be_stored_can_be_read(wrappers in prop::collection::vec(0..10_u8, 15..40), bare in 10..70_usize) {
            for any in [any_of(&wrappers), (0..bare).fold(any_of(&wrappers[..10]), |inner, _| Any::List(vec![inner]))] {
                for codec in [Codec::MessagePack, Codec::Json] {
                    if codec.weigh(&any).is_ok() {
                        prop_assert_eq!(codec.decode::<Any>(&codec.encode(&any).unwrap()), Some(any.clone()));
                    }
                }
            }
        }
    }

    #[test]
    fn one_level_more_than_allowed_is_neither_stored_nor_read() {
        for levels in [MAX_DEPTH, MAX_DEPTH + 1] {
            let value = (0..levels).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
            for codec in [Codec::MessagePack, Codec::Json] {
                let bytes = codec.encode(&value).unwrap();
                assert_eq!(codec.weigh(&value).is_ok(), levels == MAX_DEPTH, "{codec:?}");
                assert_eq!(codec.decode::<serde_json::Value>(&bytes).is_some(), levels == MAX_DEPTH, "{codec:?}");
            }
        }
    }

    /// Each level takes of the stack: a worker's is 2 MiB.
    #[test]
    fn hostile_nesting_is_refused_before_the_stack_ends() {
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "never made")]
        enum Chain {
            Next(Box<Self>),
        }
        /// Endless without a byte read.
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "never made")]
        struct Number(Option<Box<Self>>);

        fn refused<T: DeserializeOwned>(codec: Codec, level: &[u8]) {
            for levels in [MAX_DEPTH + 1, 1000, 300_000] {
                let bytes = level.repeat(levels);
                assert!(codec.decode::<T>(&bytes).is_none(), "{} {codec:?} {level:x?}", std::any::type_name::<T>());
                // Where nobody asks for it.
                let skipped = [b"\x82\xa2id\x01\xa7ignored", &*bytes].concat();
                assert!(codec.decode::<Value>(&skipped).is_none());
            }
        }
        std::thread::Builder::new()
            .stack_size(2 << 20)
            .spawn(|| {
                let list = [0x91];
                let map = [0x81, 0xa1, b'k'];
                // A map whose key is a list.
                let key = [0x81, 0x91];
                let variant = b"\x81\xa4Next";
                let ext = [0xc7, 0x40, 0x01];
                for level in [&list[..], &map, &key, variant, &ext, &[0xdc, 0, 1], &[0xdf, 0, 0, 0, 1, 0xc0]] {
                    refused::<serde_json::Value>(Codec::MessagePack, level);
                    refused::<Chain>(Codec::MessagePack, level);
                    refused::<Vec<Chain>>(Codec::MessagePack, level);
                    refused::<Number>(Codec::MessagePack, level);
                }
                // `rmp_serde` takes a list of a variant's name alone for the variant, and its data from behind the list.
                refused::<Chain>(Codec::MessagePack, b"\x91\xa4Next");
                refused::<Vec<Chain>>(Codec::MessagePack, b"\x91\xa4Next");
                for level in [&b"["[..], b"{\"k\":", b"{\"Next\":", b"[{\"k\":[1,"] {
                    refused::<serde_json::Value>(Codec::Json, level);
                    refused::<Chain>(Codec::Json, level);
                    refused::<Number>(Codec::Json, level);
                    refused::<Any>(Codec::Json, level);
                }
                assert!(Codec::Json.decode::<Number>(b"1").is_none());
                assert!(Codec::MessagePack.decode::<Number>(&[1]).is_none());
            })
            .unwrap()
            .join()
            .unwrap();
    }

    /// As types are written by hand whose fields are private: with bare texts.
    struct ByHand(Shape);

    enum Shape {
        Map(BTreeMap<String, String>),
        List(Vec<String>),
        Struct(String, String),
    }

    impl Serialize for ByHand {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct};
            match &self.0 {
                Shape::Map(map) => {
                    let mut entries = to.serialize_map(Some(map.len()))?;
                    for (key, value) in map {
                        entries.serialize_entry(key.as_str(), value.as_str())?;
                    }
                    entries.end()
                }
                Shape::List(list) => {
                    let mut elements = to.serialize_seq(Some(list.len()))?;
                    for text in list {
                        elements.serialize_element(text.as_str())?;
                    }
                    elements.end()
                }
                Shape::Struct(first, second) => {
                    let mut fields = to.serialize_struct("Struct", 2)?;
                    fields.serialize_field("first", first.as_str())?;
                    fields.serialize_field("second", second.as_str())?;
                    fields.end()
                }
            }
        }
    }

    #[test]
    fn bare_texts_of_a_hand_written_serialize_are_weighed_as_texts() {
        let text = |n: usize| format!("{n:0500}");
        let map: BTreeMap<_, _> = (0..100).map(|n| (text(n), text(n))).collect();
        let list: Vec<_> = (0..100).map(text).collect();
        let weighed = |value: &dyn Fn(Codec) -> usize| [Codec::MessagePack, Codec::Json].map(value);
        for (bare, owned) in [
            (
                weighed(&|codec| codec.weigh(&ByHand(Shape::Map(map.clone()))).unwrap()),
                weighed(&|codec| codec.weigh(&map).unwrap()),
            ),
            (
                weighed(&|codec| codec.weigh(&ByHand(Shape::List(list.clone()))).unwrap()),
                weighed(&|codec| codec.weigh(&list).unwrap()),
            ),
            (
                weighed(&|codec| codec.weigh(&ByHand(Shape::Struct(text(1), text(2)))).unwrap()),
                weighed(&|codec| codec.weigh(&(text(1), text(2))).unwrap()),
            ),
            // In a collection, where it is not known where they lie.
            (
                weighed(&|codec| codec.weigh(&vec![ByHand(Shape::Map(map.clone()))]).unwrap()),
                weighed(&|codec| codec.weigh(&vec![map.clone()]).unwrap()),
            ),
        ] {
            for (bare, owned) in bare.into_iter().zip(owned) {
                assert!((owned * 2 / 3..=owned * 3 / 2).contains(&bare), "{bare} for {owned}");
            }
        }
    }

    /// With names that stand in the program, of which a value owns none.
    #[test]
    fn names_of_fields_and_variants_weigh_nothing_where_that_can_be_told() {
        #[derive(Serialize)]
        struct Flat {
            number: u64,
            other: u64,
            #[serde(flatten)]
            more: BTreeMap<String, u64>,
        }
        #[derive(Serialize)]
        struct Plain(u64, u64, BTreeMap<String, u64>);
        #[derive(Serialize)]
        #[serde(tag = "kind")]
        enum Tagged {
            Number { number: u64 },
            Map(BTreeMap<String, u64>),
        }
        let weigh = |value: Result<usize, Error>| value.unwrap();
        let more = BTreeMap::new;
        assert_eq!(
            weigh(Codec::MessagePack.weigh(&Flat { number: 1, other: 2, more: more() })),
            weigh(Codec::MessagePack.weigh(&Plain(1, 2, more())))
        );
        for tagged in [Tagged::Number { number: 1 }, Tagged::Map(more())] {
            assert_eq!(weigh(Codec::MessagePack.weigh(&tagged)), size_of::<Tagged>());
        }
    }

    /// A list that sets memory aside for as many elements as it is told of.
    struct Trusting(Vec<u64>);

    impl<'de> Deserialize<'de> for Trusting {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Trusting;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a list")
                }
                fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Trusting, A::Error> {
                    let mut all = Vec::with_capacity(seq.size_hint().unwrap_or(0));
                    while let Some(one) = seq.next_element()? {
                        all.push(one);
                    }
                    Ok(Trusting(all))
                }
            }
            from.deserialize_seq(Visitor)
        }
    }

    #[test]
    fn a_claimed_length_sets_no_memory_aside() {
        // 34 GB, which ends the process.
        assert!(Codec::MessagePack.decode::<Trusting>(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_none());
        assert!(
            Codec::MessagePack.decode::<Vec<Trusting>>(&[0xdd, 0, 0, 0, 1, 0xdd, 0xff, 0xff, 0xff, 0xff]).is_none()
        );
        // An honest one is passed on.
        let list: Vec<u64> = (0..1000).collect();
        let read = Codec::MessagePack.decode::<Trusting>(&Codec::MessagePack.encode(&list).unwrap()).unwrap();
        assert_eq!((read.0.capacity(), read.0), (1000, list));
    }

    #[test]
    fn a_number_that_json_does_not_have_is_an_error() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(Codec::Json.weigh(&vec![Some(number)]).unwrap_err().kind(), ErrorKind::Encode);
            #[expect(clippy::cast_possible_truncation, reason = "infinite and NaN in both")]
            let short = number as f32;
            assert_eq!(Codec::Json.weigh(&short).unwrap_err().kind(), ErrorKind::Encode);
            assert!(Codec::MessagePack.weigh(&number).is_ok());
        }
        assert!(Codec::Json.weigh(&(f64::MAX, f32::MIN)).is_ok());
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
