//! The law of keys: two values of one type share a key if and only if they are the same value. Over generated types and
//! values of them, as what collides is a type whose parts meet: a newtype around an `Option` inside an `Option`, a
//! `null` beside an empty list.

use proptest::{prelude::*, sample::select};
use serde::ser::{
    Serialize, SerializeMap as _, SerializeStruct as _, SerializeStructVariant as _, SerializeTuple as _,
    SerializeTupleVariant as _, Serializer,
};

use super::{Canonical, FullKey, KeyArgument, KeyWriter, prefix};
use crate::error::Error;

/// A type as `derive(Serialize)` and a delegating `KeyArgument` see one.
#[derive(Clone, Debug)]
enum Type {
    Unit,
    Bool,
    Int,
    Float,
    Char,
    Text,
    Bytes,
    Json,
    Option(Box<Self>),
    Newtype(Box<Self>),
    Seq(Box<Self>),
    Map(Box<Self>, Box<Self>),
    Tuple(Vec<Self>),
    Struct(Vec<Self>),
    Enum(Vec<Variant>),
    /// An enum whose variants hold the first one, the first two of these, and so on, and write them as tuples: the number
    /// alone tells them apart.
    Counted(Vec<Self>),
    /// The same of integers, written by hand.
    ByHand,
}

#[derive(Clone, Debug)]
enum Variant {
    Unit,
    Newtype(Type),
    Tuple(Vec<Type>),
    Struct(Vec<Type>),
}

/// A value of one of them.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unit,
    Bool(bool),
    Int(i64),
    Float(u64),
    Char(char),
    Text(String),
    Bytes(Vec<u8>),
    Json(serde_json::Value),
    None,
    Some(Box<Self>),
    Many(Vec<Self>),
    /// Each key once, sorted.
    Map(Vec<(Self, Self)>),
    Variant(usize, Vec<Self>),
}

const FIELDS: [&str; 3] = ["a", "b_c", "0=d,'"];
const VARIANTS: [&str; 3] = ["A", "Bc", "0'D"];

fn types() -> impl Strategy<Value = Type> {
    let leaf = select(vec![
        Type::Unit,
        Type::Bool,
        Type::Int,
        Type::Float,
        Type::Char,
        Type::Text,
        Type::Bytes,
        Type::Json,
        Type::ByHand,
    ]);
    leaf.prop_recursive(4, 12, 3, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        let few = prop::collection::vec(inner.clone(), 1..=3);
        let variant = prop_oneof![
            Just(Variant::Unit),
            inner.prop_map(Variant::Newtype),
            few.clone().prop_map(Variant::Tuple),
            few.clone().prop_map(Variant::Struct),
        ];
        prop_oneof![
            3 => boxed.clone().prop_map(Type::Option),
            2 => boxed.clone().prop_map(Type::Newtype),
            2 => boxed.clone().prop_map(Type::Seq),
            1 => (boxed.clone(), boxed).prop_map(|(key, value)| Type::Map(key, value)),
            2 => few.clone().prop_map(Type::Tuple),
            1 => few.clone().prop_map(Type::Struct),
            2 => few.prop_map(Type::Counted),
            2 => prop::collection::vec(variant, 1..=3).prop_map(Type::Enum),
        ]
    })
}

/// Of few letters, mostly those that the grammar uses itself; some longer than a key may be.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[!+:|#~,='<(a0]{0,2}",
        1 => (170_usize..180, "[!a]{0,2}").prop_map(|(length, end)| "x".repeat(length) + &end),
    ]
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        (-1_i64..2).prop_map(Into::into),
        select(vec![0.5_f64, 1.0]).prop_map(Into::into),
        select(vec!["", "1", "a"]).prop_map(Into::into),
    ];
    leaf.prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Into::into),
            prop::collection::btree_map("[a1]{0,1}", inner, 0..3).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn values(of: &Type) -> BoxedStrategy<Value> {
    match of {
        Type::Unit => Just(Value::Unit).boxed(),
        Type::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        Type::Int => (-1_i64..12).prop_map(Value::Int).boxed(),
        Type::Float => select(vec![0.0_f64, -0.0, 1.0, 0.1]).prop_map(|v| Value::Float(v.to_bits())).boxed(),
        Type::Char => select(vec!['a', '!', '\'', '0', 'é']).prop_map(Value::Char).boxed(),
        Type::Text => text().prop_map(Value::Text).boxed(),
        Type::Bytes => prop::collection::vec(0_u8..2, 0..3).prop_map(Value::Bytes).boxed(),
        Type::Json => json().prop_map(Value::Json).boxed(),
        Type::Option(of) => {
            prop_oneof![Just(Value::None), values(of).prop_map(|value| Value::Some(Box::new(value)))].boxed()
        }
        Type::Newtype(of) => values(of),
        Type::Seq(of) => prop::collection::vec(values(of), 0..4).prop_map(Value::Many).boxed(),
        Type::Map(key, value) => prop::collection::vec((values(key), values(value)), 0..3)
            .prop_map(|mut entries| {
                entries.sort_by_key(|(key, _)| format!("{key:?}"));
                entries.dedup_by(|a, b| a.0 == b.0);
                Value::Map(entries)
            })
            .boxed(),
        Type::Tuple(of) | Type::Struct(of) => many(of).prop_map(Value::Many).boxed(),
        Type::Counted(of) => (many(of), 1..=of.len())
            .prop_map(|(mut values, length)| {
                values.truncate(length);
                Value::Many(values)
            })
            .boxed(),
        Type::ByHand => prop::collection::vec((1_i64..3).prop_map(Value::Int), 1..4).prop_map(Value::Many).boxed(),
        Type::Enum(variants) => {
            let variants = variants.iter().enumerate().map(|(at, variant)| {
                let fields = match variant {
                    Variant::Unit => Just(Vec::new()).boxed(),
                    Variant::Newtype(of) => values(of).prop_map(|value| vec![value]).boxed(),
                    Variant::Tuple(of) | Variant::Struct(of) => many(of),
                };
                fields.prop_map(move |fields| Value::Variant(at, fields)).boxed()
            });
            prop::strategy::Union::new(variants).boxed()
        }
    }
}

fn many(of: &[Type]) -> BoxedStrategy<Vec<Value>> {
    of.iter().map(values).collect::<Vec<_>>().boxed()
}

/// A type and two values of it, often the same.
fn pairs() -> impl Strategy<Value = (Type, Value, Value)> {
    types().prop_flat_map(|of| {
        let (one, other, same) = (values(&of), values(&of), prop::bool::weighted(0.2));
        (Just(of), one, other, same).prop_map(|(of, one, other, same)| {
            let other = if same { one.clone() } else { other };
            (of, one, other)
        })
    })
}

/// A value with its type.
#[derive(Clone, Copy)]
struct Typed<'a>(&'a Type, &'a Value);

fn typed<'a>(of: &'a [Type], values: &'a [Value]) -> Vec<Typed<'a>> {
    of.iter().zip(values).map(|(of, value)| Typed(of, value)).collect()
}

/// As `derive(Serialize)` does it.
impl Serialize for Typed<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match (self.0, self.1) {
            (Type::Newtype(of), value) => to.serialize_newtype_struct("Newtype", &Typed(of, value)),
            (Type::Unit, _) => to.serialize_unit(),
            (_, Value::Bool(v)) => to.serialize_bool(*v),
            (_, Value::Int(v)) => to.serialize_i64(*v),
            (_, Value::Float(bits)) => to.serialize_f64(f64::from_bits(*bits)),
            (_, Value::Char(v)) => to.serialize_char(*v),
            (_, Value::Text(v)) => to.serialize_str(v),
            (_, Value::Bytes(v)) => to.serialize_bytes(v),
            (_, Value::Json(v)) => v.serialize(to),
            (_, Value::None) => to.serialize_none(),
            (Type::Option(of), Value::Some(value)) => to.serialize_some(&Typed(of, value)),
            (Type::Seq(of), Value::Many(values)) => to.collect_seq(values.iter().map(|value| Typed(of, value))),
            (Type::Map(key, value), Value::Map(entries)) => {
                let mut map = to.serialize_map(Some(entries.len()))?;
                // As a hash map has them: in any order.
                for (k, v) in entries.iter().rev() {
                    map.serialize_entry(&Typed(key, k), &Typed(value, v))?;
                }
                map.end()
            }
            (Type::Tuple(of), Value::Many(values)) => {
                let mut tuple = to.serialize_tuple(of.len())?;
                typed(of, values).iter().try_for_each(|value| tuple.serialize_element(value))?;
                tuple.end()
            }
            (Type::Counted(of), Value::Many(values)) => to.collect_seq(typed(of, values)),
            (Type::ByHand, Value::Many(values)) => to.collect_seq(values.iter().map(|value| Typed(&Type::Int, value))),
            (Type::Struct(of), Value::Many(values)) => {
                let mut fields = to.serialize_struct("Struct", of.len())?;
                let mut values = FIELDS.iter().zip(typed(of, values));
                values.try_for_each(|(name, value)| fields.serialize_field(name, &value))?;
                fields.end()
            }
            (Type::Enum(variants), Value::Variant(at, values)) => {
                let (index, name) = (u32::try_from(*at).unwrap(), VARIANTS[*at]);
                match &variants[*at] {
                    Variant::Unit => to.serialize_unit_variant("Enum", index, name),
                    Variant::Newtype(of) => to.serialize_newtype_variant("Enum", index, name, &Typed(of, &values[0])),
                    Variant::Tuple(of) => {
                        let mut tuple = to.serialize_tuple_variant("Enum", index, name, of.len())?;
                        typed(of, values).iter().try_for_each(|value| tuple.serialize_field(value))?;
                        tuple.end()
                    }
                    Variant::Struct(of) => {
                        let mut fields = to.serialize_struct_variant("Enum", index, name, of.len())?;
                        let mut values = FIELDS.iter().zip(typed(of, values));
                        values.try_for_each(|(name, value)| fields.serialize_field(name, &value))?;
                        fields.end()
                    }
                }
            }
            other => unreachable!("{other:?} is no value of its type"),
        }
    }
}

/// As a user writes it: built-in types as they are, everything else by delegation, as the docs of `KeyArgument` show.
impl KeyArgument for Typed<'_> {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        match (self.0, self.1) {
            (Type::Newtype(of), value) => Typed(of, value).write_key(writer),
            (Type::Unit, _) => Ok(()),
            (_, Value::Bool(v)) => v.write_key(writer),
            (_, Value::Int(v)) => v.write_key(writer),
            (_, Value::Char(v)) => v.write_key(writer),
            (_, Value::Text(v)) => v.write_key(writer),
            (Type::Option(_), Value::None) => None::<Typed<'_>>.write_key(writer),
            (Type::Option(of), Value::Some(value)) => Some(Typed(of, value)).write_key(writer),
            (Type::Seq(of), Value::Many(values)) => {
                values.iter().map(|value| Typed(of, value)).collect::<Vec<_>>().write_key(writer)
            }
            (Type::Tuple(of) | Type::Struct(of) | Type::Counted(of), Value::Many(values)) => {
                write_tuple(writer, &typed(of, values))
            }
            (Type::ByHand, Value::Many(values)) => values.iter().enumerate().try_for_each(|(at, value)| {
                if at > 0 {
                    writer.segment();
                }
                Typed(&Type::Int, value).write_key(writer)
            }),
            (Type::Enum(variants), Value::Variant(at, values)) => match &variants[*at] {
                // The name says how many elements follow.
                Variant::Unit => VARIANTS[*at].write_key(writer),
                Variant::Newtype(of) => (VARIANTS[*at], Typed(of, &values[0])).write_key(writer),
                Variant::Tuple(of) | Variant::Struct(of) => match &typed(of, values)[..] {
                    [a] => (VARIANTS[*at], a).write_key(writer),
                    [a, b] => (VARIANTS[*at], a, b).write_key(writer),
                    [a, b, c] => (VARIANTS[*at], a, b, c).write_key(writer),
                    other => unreachable!("{} elements", other.len()),
                },
            },
            _ => Canonical(self).write_key(writer),
        }
    }
}

fn write_tuple(writer: &mut KeyWriter, elements: &[Typed<'_>]) -> Result<(), Error> {
    match elements {
        [a] => (a,).write_key(writer),
        [a, b] => (a, b).write_key(writer),
        [a, b, c] => (a, b, c).write_key(writer),
        other => unreachable!("{} elements", other.len()),
    }
}

fn key(argument: impl KeyArgument) -> FullKey {
    let mut writer = KeyWriter::new();
    writer.segment();
    writer.literal("f");
    writer.segment();
    argument.write_key(&mut writer).unwrap();
    FullKey::new(&prefix("cache", Some("acme")).unwrap(), "api", &writer)
}

fn key_of_arguments(arguments: &[Typed<'_>]) -> FullKey {
    let mut writer = KeyWriter::new();
    writer.segment();
    writer.literal("f");
    for argument in arguments {
        writer.argument(arguments.len() == 1);
        argument.write_key(&mut writer).unwrap();
    }
    FullKey::new(&prefix("cache", Some("acme")).unwrap(), "api", &writer)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn two_values_of_one_type_share_a_key_if_and_only_if_they_are_the_same((of, one, other) in pairs()) {
        let (a, b) = (key(Typed(&of, &one)), key(Typed(&of, &other)));
        prop_assert_eq!(one == other, a == b, "{:?}: {} and {}", of, a.as_str(), b.as_str());
    }

    #[test]
    fn so_do_they_in_canonical_form((of, one, other) in pairs()) {
        let (a, b) = (key(Canonical(&Typed(&of, &one))), key(Canonical(&Typed(&of, &other))));
        prop_assert_eq!(one == other, a == b, "{:?}: {} and {}", of, a.as_str(), b.as_str());
    }

    /// Also where an argument stands before another, as in an annotated function, whose key is that of a tuple.
    #[test]
    fn so_do_two_arguments((of, one, other) in pairs(), (then, first, second) in pairs()) {
        let key = |a: &Value, b: &Value| {
            let tuple = key((Typed(&of, a), Typed(&then, b)));
            assert_eq!(tuple, key_of_arguments(&[Typed(&of, a), Typed(&then, b)]));
            tuple
        };
        let (a, b) = (key(&one, &first), key(&other, &second));
        prop_assert_eq!((&one, &first) == (&other, &second), a == b, "{} and {}", a.as_str(), b.as_str());
    }

    #[test]
    fn so_does_one_argument_alone((of, one, _) in pairs()) {
        prop_assert_eq!(key(Typed(&of, &one)), key_of_arguments(&[Typed(&of, &one)]));
    }
}
