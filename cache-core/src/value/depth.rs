//! How deeply a value may be nested, held to while it is decoded.
//!
//! Each level of a value takes some of the stack of whoever decodes it, so bytes from Redis must not say how many there
//! are. The codecs' own limits do not do: `rmp_serde` does not count the variants of an enum, and both count neither
//! `Some` nor newtypes. So what drives the user's `Deserialize` is wrapped, and counts what [`weigh`](super::weight::weigh)
//! counts before a value is stored: what was stored can be read.
//!
//! Nor must bytes say how much memory is set aside before an element is read: a claim of a length is cut to what the bytes can hold.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// How deep a value may be nested. Each sequence, map, struct, tuple, `Some`, newtype and variant with data is a level; a
/// variant with several fields is two.
///
/// A worker of tokio's has a stack of 2 MiB. In a debug build a level of a struct of forty fields takes 30 KiB of it
/// while it is decoded, one of `serde_json::Value` 10 KiB.
pub(crate) const MAX_DEPTH: usize = 64;

/// The longest length that is passed on before the elements are there.
const MOST_CLAIMED: usize = 1 << 16;

/// A deserializer, visitor, seed or access, and what may follow.
#[derive(Debug)]
pub(super) struct Limited<I> {
    inner: I,
    left: Left,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    levels: usize,
    /// Elements that a sequence or map may claim to have.
    claim: usize,
}

impl<I> Limited<I> {
    /// For so many bytes, of which each element takes at least one.
    pub(super) fn new(inner: I, bytes: usize) -> Self {
        Self { inner, left: Left { levels: MAX_DEPTH, claim: bytes.min(MOST_CLAIMED) } }
    }
}

fn deeper<E: Error>(left: Left) -> Result<Left, E> {
    let levels = left.levels.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
    Ok(Left { levels, ..left })
}

macro_rules! deserialize {
    ($($method:ident($($name:ident: $type:ty),*))*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($name,)* Limited { inner: visitor, left: self.left })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Limited<D> {
    type Error = D::Error;

    deserialize! {
        deserialize_any() deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
        deserialize_i128() deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64() deserialize_char() deserialize_str() deserialize_string() deserialize_bytes()
        deserialize_byte_buf() deserialize_option() deserialize_unit() deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str) deserialize_seq() deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize) deserialize_map()
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) deserialize_identifier()
        deserialize_ignored_any()
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($type:ty))*) => {$(
        #[inline]
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

macro_rules! visit_deeper {
    ($($method:ident($trait:ident))*) => {$(
        #[inline]
        fn $method<A: $trait<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
            self.inner.$method(Limited { inner, left: deeper(self.left)? })
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Limited<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool(bool) visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128) visit_u8(u8)
        visit_u16(u16) visit_u32(u32) visit_u64(u64) visit_u128(u128) visit_f32(f32) visit_f64(f64) visit_char(char)
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String) visit_bytes(&[u8])
        visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    visit_deeper! { visit_some(Deserializer) visit_newtype_struct(Deserializer) visit_seq(SeqAccess) visit_map(MapAccess) }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        // A variant without data is no level.
        self.inner.visit_enum(Limited { inner, left: self.left })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Limited<S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Limited { inner, left: self.left })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Limited<A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(Limited { inner: seed, left: self.left })
    }
    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|claimed| claimed.min(self.left.claim))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Limited<A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(Limited { inner: seed, left: self.left })
    }
    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(Limited { inner: seed, left: self.left })
    }
    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|claimed| claimed.min(self.left.claim))
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Limited<A> {
    type Error = A::Error;
    type Variant = Limited<A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (name, inner) = self.inner.variant_seed(Limited { inner: seed, left: self.left })?;
        Ok((name, Limited { inner, left: self.left }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Limited<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }
    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Limited { inner: seed, left: deeper(self.left)? })
    }
    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, Limited { inner: visitor, left: deeper(self.left)? })
    }
    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, Limited { inner: visitor, left: deeper(self.left)? })
    }
}
