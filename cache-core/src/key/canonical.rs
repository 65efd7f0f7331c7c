//! Any `Serialize` value as canonical text: one text per value, in every process.
//!
//! Scalars carry their kind, text its length, and collections their brackets, so that no two values of one type
//! share a text. Maps are sorted by their keys' texts; entries of one key, such as a field and the same name in a flattened
//! map, stay in their order. Floats are written by their bits, and NaN is refused: it
//! equals nothing, itself included. What nests too deep is refused: each level takes room on the stack.
//!
//! What a type's own `Serialize` does not tell apart has one text: the variants of an untagged enum that hold the same,
//! `Some(x)` beside `x` where a type writes both alike, a field that is skipped.

use std::fmt::{Display, Write as _};

use serde::ser::{self, Serialize, Serializer};

use super::{MAX_DEPTH, too_deep, users_code};
use crate::error::{Error, ErrorKind};

pub(super) fn to_text<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    let mut text = String::new();
    value.serialize(Writer { text: &mut text, depth: 0 }).map_err(|refusal| match refusal {
        Refusal::TooDeep => too_deep(),
        Refusal::NotANumber => {
            Error::new(ErrorKind::InvalidKey, "a key argument is NaN, which equals nothing; give a number, or skip it")
        }
        Refusal::Custom => users_code("a key argument's Serialize failed; skip it, or mend it"),
    })?;
    Ok(text)
}

#[derive(Debug)]
enum Refusal {
    NotANumber,
    TooDeep,
    /// Without the reason: a type's own message may quote the value.
    Custom,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no canonical text")
    }
}

impl std::error::Error for Refusal {}

impl ser::Error for Refusal {
    fn custom<T: Display>(_: T) -> Self {
        Self::Custom
    }
}

struct Writer<'a> {
    text: &'a mut String,
    /// Values around this one.
    depth: u8,
}

impl<'a> Writer<'a> {
    /// The writer of a value inside one at `depth`.
    fn inside(text: &'a mut String, depth: u8) -> Result<Self, Refusal> {
        if depth < MAX_DEPTH { Ok(Self { text, depth: depth + 1 }) } else { Err(Refusal::TooDeep) }
    }

    fn scalar(self, value: impl Display) -> Result<(), Refusal> {
        let _ = write!(self.text, "{value}");
        Ok(())
    }

    fn float(self, kind: char, value: f64, bits: u64) -> Result<(), Refusal> {
        if value.is_nan() {
            return Err(Refusal::NotANumber);
        }
        let _ = write!(self.text, "{kind}{bits:x}");
        Ok(())
    }

    fn open(self, bracket: char, close: char) -> Compound<'a> {
        self.text.push(bracket);
        let Self { text, depth } = self;
        Compound { text, depth, close, first: true, entries: Vec::new(), key: String::new() }
    }

    fn variant(self, name: &str) -> Self {
        let _ = write!(self.text, "@{}'{name}", name.len());
        self
    }
}

/// A collection under way. Map entries are kept until the end, to be sorted.
struct Compound<'a> {
    text: &'a mut String,
    depth: u8,
    close: char,
    first: bool,
    entries: Vec<(String, String)>,
    key: String,
}

impl Compound<'_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        self.comma();
        value.serialize(Writer::inside(self.text, self.depth)?)
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Refusal> {
        self.comma();
        // A renamed field may be called anything.
        let is_plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
        let _ = match is_plain && !name.starts_with(|c: char| c.is_numeric() || c == '-') && !name.is_empty() {
            true => write!(self.text, "{name}="),
            false => write!(self.text, "{}'{name}=", name.len()),
        };
        value.serialize(Writer::inside(self.text, self.depth)?)
    }

    fn comma(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.text.push(',');
        }
    }

    fn finish(mut self) -> Result<(), Refusal> {
        self.entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (index, (key, value)) in self.entries.iter().enumerate() {
            let _ = write!(self.text, "{}{key}={value}", if index == 0 { "" } else { "," });
        }
        self.text.push(self.close);
        Ok(())
    }
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Refusal;
    type SerializeSeq = Compound<'a>;
    type SerializeTuple = Compound<'a>;
    type SerializeTupleStruct = Compound<'a>;
    type SerializeTupleVariant = Compound<'a>;
    type SerializeMap = Compound<'a>;
    type SerializeStruct = Compound<'a>;
    type SerializeStructVariant = Compound<'a>;

    fn serialize_bool(self, v: bool) -> Result<(), Refusal> {
        self.scalar(if v { "t" } else { "f" })
    }
    fn serialize_i8(self, v: i8) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_i16(self, v: i16) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_i32(self, v: i32) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_i64(self, v: i64) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_i128(self, v: i128) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_u8(self, v: u8) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_u16(self, v: u16) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_u32(self, v: u32) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_u64(self, v: u64) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_u128(self, v: u128) -> Result<(), Refusal> {
        self.scalar(v)
    }
    fn serialize_f32(self, v: f32) -> Result<(), Refusal> {
        self.float('e', f64::from(v), u64::from(v.to_bits()))
    }
    fn serialize_f64(self, v: f64) -> Result<(), Refusal> {
        self.float('d', v, v.to_bits())
    }
    fn serialize_char(self, v: char) -> Result<(), Refusal> {
        self.serialize_str(v.encode_utf8(&mut [0; 4]))
    }
    fn serialize_str(self, v: &str) -> Result<(), Refusal> {
        self.scalar(format_args!("{}'{v}", v.len()))
    }
    /// The default panics where the value's `Display` fails.
    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), Refusal> {
        let mut text = String::new();
        write!(text, "{value}").map_err(ser::Error::custom)?;
        self.serialize_str(&text)
    }
    fn serialize_bytes(self, v: &[u8]) -> Result<(), Refusal> {
        self.text.push('x');
        v.iter().try_for_each(|byte| write!(self.text, "{byte:02x}")).map_err(ser::Error::custom)
    }
    fn serialize_none(self) -> Result<(), Refusal> {
        self.scalar('_')
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refusal> {
        self.text.push('+');
        value.serialize(Self::inside(self.text, self.depth)?)
    }
    fn serialize_unit(self) -> Result<(), Refusal> {
        self.scalar('.')
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refusal> {
        self.serialize_unit()
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Refusal> {
        self.variant(variant);
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Refusal> {
        value.serialize(Self::inside(self.text, self.depth)?)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refusal> {
        let mut compound = self.variant(variant).open('(', ')');
        compound.element(value)?;
        compound.finish()
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Compound<'a>, Refusal> {
        Ok(self.open('(', ')'))
    }
    fn serialize_tuple(self, _: usize) -> Result<Compound<'a>, Refusal> {
        Ok(self.open('(', ')'))
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<'a>, Refusal> {
        Ok(self.open('(', ')'))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Refusal> {
        Ok(self.variant(variant).open('(', ')'))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'a>, Refusal> {
        Ok(self.open('<', '>'))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Compound<'a>, Refusal> {
        Ok(self.open('<', '>'))
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Refusal> {
        Ok(self.variant(variant).open('<', '>'))
    }
}

macro_rules! elements {
    ($($trait:ident :: $method:ident),*) => {$(
        impl ser::$trait for Compound<'_> {
            type Ok = ();
            type Error = Refusal;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
                self.element(value)
            }
            fn end(self) -> Result<(), Refusal> {
                self.finish()
            }
        }
    )*};
}
elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

macro_rules! fields {
    ($($trait:ident),*) => {$(
        impl ser::$trait for Compound<'_> {
            type Ok = ();
            type Error = Refusal;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Refusal> {
                self.field(name, value)
            }
            fn end(self) -> Result<(), Refusal> {
                self.finish()
            }
        }
    )*};
}
fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Compound<'_> {
    type Ok = ();
    type Error = Refusal;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refusal> {
        self.key.clear();
        key.serialize(Writer::inside(&mut self.key, self.depth)?)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let mut text = String::new();
        value.serialize(Writer::inside(&mut text, self.depth)?)?;
        self.entries.push((std::mem::take(&mut self.key), text));
        Ok(())
    }
    fn end(self) -> Result<(), Refusal> {
        self.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, serde::Serialize)]
    enum Shape {
        Dot,
        Circle(u8),
        Line(u8, u8),
        Box { width: Option<u8>, tags: Vec<String>, notes: BTreeMap<String, bool> },
    }

    fn shape() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Dot),
            any::<u8>().prop_map(Shape::Circle),
            any::<(u8, u8)>().prop_map(|(a, b)| Shape::Line(a, b)),
            (
                any::<Option<u8>>(),
                prop::collection::vec("[a',()=<>+_]{0,4}", 0..3),
                prop::collection::btree_map("[a'=,]{0,3}", any::<bool>(), 0..3)
            )
                .prop_map(|(width, tags, notes)| Shape::Box { width, tags, notes }),
        ]
    }

    proptest! {
        #[test]
        fn distinct_values_have_distinct_texts(a in shape(), b in shape()) {
            prop_assert_eq!(a == b, to_text(&a).unwrap() == to_text(&b).unwrap());
        }

        #[test]
        fn the_order_of_a_map_does_not_matter(entries in prop::collection::hash_map("[a-c]{0,3}", any::<u16>(), 0..8)) {
            let reversed: HashMap<_, _> = entries.iter().collect::<Vec<_>>().into_iter().rev().collect();
            prop_assert_eq!(to_text(&entries).unwrap(), to_text(&reversed).unwrap());
        }

        #[test]
        fn floats_are_told_apart_by_bits(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(a.to_bits() == b.to_bits(), to_text(&a).unwrap() == to_text(&b).unwrap());
        }
    }

    /// `json!(null)` is a unit to its `Serialize`.
    #[test]
    fn a_unit_is_no_empty_list() {
        use serde_json::json;

        let texts = [json!(null), json!([]), json!({}), json!(""), json!([null]), json!([[]]), json!({"a": null})]
            .map(|value| to_text(&value).unwrap());
        let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
        assert_eq!(distinct.len(), texts.len(), "{texts:?}");
    }

    /// A tag and a flattened map may name one key twice: the first is the type's own.
    #[test]
    fn entries_of_one_key_stay_in_their_order() {
        #[derive(serde::Serialize)]
        struct Query<'a> {
            owner: &'a str,
            #[serde(flatten)]
            more: BTreeMap<&'a str, &'a str>,
        }
        #[derive(serde::Serialize)]
        #[serde(tag = "kind")]
        enum Tagged<'a> {
            A(BTreeMap<&'a str, &'a str>),
            B(BTreeMap<&'a str, &'a str>),
        }
        let query = |owner, more| to_text(&Query { owner, more: [("a", "z"), ("owner", more)].into() }).unwrap();
        assert_eq!(query("bob", "al"), "<1'a=1'z,5'owner=3'bob,5'owner=2'al>");
        assert_ne!(query("bob", "al"), query("al", "bob"));
        let (a, b) = (Tagged::A([("kind", "B")].into()), Tagged::B([("kind", "A")].into()));
        assert_ne!(to_text(&a).unwrap(), to_text(&b).unwrap());
    }

    #[test]
    fn a_display_that_fails_is_an_error() {
        struct Bad;
        impl Display for Bad {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                Err(std::fmt::Error)
            }
        }
        struct Shown<T>(T);
        impl<T: Display> Serialize for Shown<T> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(&self.0)
            }
        }
        assert_eq!(to_text(&Shown(Bad)).unwrap_err().kind(), ErrorKind::InvalidKey);
        assert_eq!(to_text(&Shown("a")).unwrap(), to_text("a").unwrap());
    }

    /// A renamed field may look like two, or like none.
    #[test]
    fn a_name_of_a_field_is_never_taken_for_more() {
        #[derive(serde::Serialize)]
        #[serde(untagged)]
        enum Named {
            Two {
                a: u8,
                b: u8,
            },
            One {
                #[serde(rename = "a=1,b")]
                ab: u8,
            },
            Nameless {
                #[serde(rename = "")]
                nothing: u8,
            },
            List((u8,)),
        }
        let values =
            [Named::Two { a: 1, b: 2 }, Named::One { ab: 2 }, Named::Nameless { nothing: 1 }, Named::List((1,))];
        let texts = values.map(|value| to_text(&value).unwrap());
        assert_eq!(texts, ["<a=1,b=2>", "<5'a=1,b=2>", "<0'=1>", "(1)"]);
    }

    /// Deep enough to end the process, were every level given its room on the stack.
    #[test]
    fn what_nests_without_end_is_refused() {
        enum Endless {
            Some,
            Newtype,
            Seq,
            Key,
            Field,
            Variant,
        }
        impl Serialize for Endless {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct as _;
                match self {
                    Self::Some => to.serialize_some(self),
                    Self::Newtype => to.serialize_newtype_struct("N", self),
                    Self::Seq => to.collect_seq([self]),
                    Self::Key => to.collect_map([(self, 1)]),
                    Self::Field => {
                        let mut fields = to.serialize_struct("S", 1)?;
                        fields.serialize_field("a", self)?;
                        fields.end()
                    }
                    Self::Variant => to.serialize_newtype_variant("E", 0, "V", self),
                }
            }
        }
        use Endless::{Field, Key, Newtype, Seq, Some, Variant};
        for endless in [Some, Newtype, Seq, Key, Field, Variant] {
            let error = to_text(&endless).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey);
            assert!(error.to_string().contains("128 levels"), "{error}");
        }
        let nested = |levels| (0..levels).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
        assert!(to_text(&nested(128)).is_ok() && to_text(&nested(129)).is_err());
    }

    /// Its message may quote the value.
    #[test]
    fn the_reason_of_a_failing_serialize_is_not_repeated() {
        struct Secret;
        impl Serialize for Secret {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(ser::Error::custom("hunter2"))
            }
        }
        let error = to_text(&Secret).unwrap_err().to_string();
        assert!(error.contains("Serialize failed") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn nan_is_refused_and_says_what_to_do() {
        let error = to_text(&[1.0, f64::NAN]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey);
        assert!(error.to_string().contains("NaN"));
        assert!(to_text(&f32::NAN).is_err());
        assert_ne!(to_text(&0.0).unwrap(), to_text(&-0.0).unwrap());
    }
}
