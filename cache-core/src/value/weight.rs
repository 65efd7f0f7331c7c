//! What a value takes in memory, and how deeply it is nested.
//!
//! Nobody can ask a value of any type how much it owns in the heap. Its `Serialize` shows nearly all of it: the length of
//! each text, the number of elements of each collection, and a reference to each field, whose size is known. What it does
//! not show is estimated:
//!
//! - The elements of a standard collection come without their size. It is told from what they are made of: eight
//!   bytes for an `f64`, three words for a text, the sum of its fields for a struct. The variants of an enum differ, so
//!   the largest one seen counts; and where the parts of elements lie at equal distances, that distance.
//! - Which collection it is tells the size of its handle: three words for a `Vec`, six for a `HashMap`.
//! - Fields that do not lie where their owner does are in a `Box`.
//! - A bare `str` is a field's or variant's name where one stands; elsewhere a hand-written `Serialize` gives it for a `String` that
//!   the value owns. In a map that is an element of a collection nobody can tell: its key counts as text, and its value as a field.
//!
//! Not seen at all: fields that are skipped, and capacity beyond the length.

use std::fmt::{self, Display, Write as _};

use serde::ser::{self, Serialize, Serializer};

use super::depth::MAX_DEPTH;

const WORD: usize = size_of::<usize>();
/// What an allocation costs beside its content: the allocator's own bytes, and what it rounds up to.
const ALLOCATION: usize = 16;
/// The size of a value of which only the type knows it.
const UNKNOWN: usize = usize::MAX;
/// The longest text that is taken for a variant's name.
const LONGEST_TAG: usize = 64;

/// Why a value could not be weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    TooDeep,
    /// A number that JSON does not have.
    NotFinite,
    /// Its `Serialize` failed.
    Failed,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Refusal {}

impl ser::Error for Refusal {
    fn custom<T: Display>(_: T) -> Self {
        Self::Failed
    }
}

/// The bytes of memory that `value` takes: its own size and what it owns. `human_readable` as of the codec, for some
/// types are written as text or not.
pub(super) fn weigh<T: Serialize>(value: &T, human_readable: bool) -> Result<usize, Refusal> {
    let mut owned = 0;
    let (size, align) = (size_of::<T>(), align_of::<T>());
    let at = address(value);
    value.serialize(Scale {
        owned: &mut owned,
        at,
        size,
        align,
        least: 0,
        left: MAX_DEPTH,
        is_bare: false,
        human_readable,
    })?;
    Ok(size.saturating_add(owned))
}

/// What a value turned out to be.
#[derive(Clone, Copy)]
struct Seen {
    /// Bytes it takes where it lies, and how it is aligned there.
    size: usize,
    align: usize,
    /// Where a part of it lies, if that was seen.
    at: Option<usize>,
    is: Is,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Data,
    /// A `None`, which may stand in the place of anything.
    Nothing,
    /// A `str` itself and not something that owns one: the name of a field or variant, or all that a hand-written
    /// `Serialize` shows of a `String`.
    Bare,
}

/// Weighs one value, which takes `size` bytes at `at`.
#[derive(Debug)]
struct Scale<'a> {
    owned: &'a mut usize,
    at: usize,
    size: usize,
    align: usize,
    /// The least that an element takes in a sequence inside a sequence.
    least: usize,
    /// Levels that may follow.
    left: usize,
    /// Whether it comes without what owns it, as a `str` does.
    is_bare: bool,
    human_readable: bool,
}

impl<'a> Scale<'a> {
    fn deeper(mut self) -> Result<Self, Refusal> {
        self.left = self.left.checked_sub(1).ok_or(Refusal::TooDeep)?;
        Ok(self)
    }

    /// The value itself; of this size if nothing better is known.
    #[inline]
    fn seen(&self, size: usize, align: usize) -> Seen {
        let (size, align) = if self.size == UNKNOWN { (size, align) } else { (self.size, self.align) };
        Seen { size, align, at: None, is: Is::Data }
    }

    #[inline]
    fn scalar(self, size: usize) -> Result<Seen, Refusal> {
        Ok(self.seen(size, size.max(1)))
    }

    #[inline]
    fn number(self, size: usize, is_finite: bool) -> Result<Seen, Refusal> {
        if self.human_readable && !is_finite { Err(Refusal::NotFinite) } else { self.scalar(size) }
    }

    /// Adds an allocation of that many bytes, owned by this value.
    fn own(&mut self, bytes: usize) {
        let owned = match bytes {
            0 => 0,
            // Without room for a pointer it owns nothing.
            _ if self.size < WORD || self.align < WORD => 0,
            // It may as well lie in the value itself. The half of it is within a factor of two in both cases.
            _ if self.size > 4 * WORD && self.size != UNKNOWN && bytes + WORD <= self.size => (bytes + ALLOCATION) / 2,
            _ => bytes.saturating_add(ALLOCATION),
        };
        *self.owned = self.owned.saturating_add(owned);
    }

    fn text(mut self, len: usize) -> Result<Seen, Refusal> {
        self.own(len);
        if self.is_bare && self.align == 1 && self.size == len {
            return Ok(Seen { size: 3 * WORD, align: WORD, at: None, is: Is::Bare });
        }
        Ok(self.seen(3 * WORD, WORD))
    }

    /// One value in another one, with a tag beside it or without.
    fn wrapper<T: Serialize + ?Sized>(self, value: &T, tagged: bool) -> Result<Seen, Refusal> {
        let mut fields = self.deeper()?.fields(tagged);
        fields.field(value)?;
        fields.finish()
    }

    fn fields(self, tagged: bool) -> Fields<'a> {
        Fields { scale: Scale { least: 0, ..self }, tagged, need: 0, align: 1, at: None, is_first: true }
    }
}

/// Weighs a part of what `scale` weighs.
#[inline]
fn part<T: Serialize + ?Sized>(scale: &mut Scale<'_>, size: usize, align: usize, value: &T) -> Result<Seen, Refusal> {
    let at = address(value);
    let is_bare = size_of::<&T>() > WORD;
    value.serialize(Scale { owned: scale.owned, at, size, align, is_bare, ..*scale })
}

fn address<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).addr()
}

/// Weighs an element, key or value of a collection. The standard ones give references to them, of which the size of what
/// they refer to is not known.
#[inline]
fn element<T: Serialize + ?Sized>(scale: &mut Scale<'_>, value: &T) -> Result<Seen, Refusal> {
    let (size, align) = (size_of_val(value), align_of_val(value));
    let seen = part(scale, if (size, align) == (WORD, WORD) { UNKNOWN } else { size }, align, value)?;
    if seen.is == Is::Bare {
        scale.own(size);
    }
    Ok(seen)
}

/// A struct, tuple or variant under way.
#[derive(Debug)]
struct Fields<'a> {
    scale: Scale<'a>,
    tagged: bool,
    need: usize,
    align: usize,
    at: Option<usize>,
    is_first: bool,
}

impl Fields<'_> {
    #[inline]
    fn field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let (size, align) = (size_of_val(value), align_of_val(value));
        let is_first = std::mem::replace(&mut self.is_first, false);
        let seen = part(&mut self.scale, size, align, value)?;
        if seen.is == Is::Bare {
            // The tag of a variant comes first.
            if !(is_first && size <= LONGEST_TAG) {
                self.scale.own(size);
                self.need = self.need.saturating_add(seen.size);
                self.align = self.align.max(seen.align);
            }
        } else if size > 0 {
            self.need = self.need.saturating_add(size);
            self.align = self.align.max(align);
            self.at.get_or_insert(address(value));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Seen, Refusal> {
        let tag = if self.tagged { self.align } else { 0 };
        let need = self.need.saturating_add(tag).next_multiple_of(self.align);
        // They lie elsewhere: in a `Box` or `Arc`, which takes a word, or two where its end must be known.
        let Scale { at, size, .. } = self.scale;
        if size <= 2 * WORD && self.at.is_some_and(|field| !(at..at + size).contains(&field)) {
            self.scale.own(need);
        }
        Ok(Seen { at: self.at, ..self.scale.seen(need, self.align) })
    }
}

/// The largest of what lies side by side.
#[derive(Debug, Default)]
struct Largest {
    size: usize,
    align: usize,
}

impl Largest {
    #[inline]
    fn add(&mut self, seen: Seen) {
        if seen.is != Is::Nothing {
            self.size = self.size.max(seen.size);
            self.align = self.align.max(seen.align);
        }
    }

    fn size(&self) -> usize {
        // Nothing but `None`: as large as what is optional most often.
        if self.align == 0 { 3 * WORD } else { self.size.next_multiple_of(self.align) }
    }
}

/// At what distance the same part of successive elements lies.
#[derive(Clone, Copy, Debug)]
enum Stride {
    Unknown,
    /// The part of this element.
    Began {
        at: usize,
        index: usize,
    },
    /// As many elements at this distance from the one before.
    Regular {
        at: usize,
        index: usize,
        by: usize,
        times: usize,
    },
    /// Not an array, or not of one kind.
    Irregular,
}

impl Stride {
    /// More is not taken for the size of an element.
    const MOST: usize = 4096;

    fn next(self, at: usize, index: usize) -> Self {
        let (Self::Began { at: from, index: since } | Self::Regular { at: from, index: since, .. }) = self else {
            return if matches!(self, Self::Unknown) { Self::Began { at, index } } else { self };
        };
        let by = at.wrapping_sub(from) / (index - since);
        match self {
            Self::Began { .. } if by <= Self::MOST => Self::Regular { at, index, by, times: 1 },
            // The parts of two variants begin a little apart.
            Self::Regular { by: before, times, .. } if by.abs_diff(before) <= 2 * WORD => {
                Self::Regular { at, index, by: by.min(before), times: times + 1 }
            }
            _ => Self::Irregular,
        }
    }
}

/// A sequence under way.
#[derive(Debug)]
struct Elements<'a> {
    scale: Scale<'a>,
    count: usize,
    largest: Largest,
    stride: Stride,
}

impl Elements<'_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let seen = element(&mut self.scale, value)?;
        self.largest.add(seen);
        self.count += 1;
        if let Some(at) = seen.at {
            self.stride = self.stride.next(at, self.count);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Seen, Refusal> {
        let size = match self.stride {
            Stride::Regular { by, times: 2.., .. } => self.largest.size().max(by),
            _ => self.largest.size(),
        };
        let places = if self.scale.size == HASH_TABLE { buckets(self.count) } else { self.count };
        self.scale.own(places.saturating_mul(size.max(self.scale.least)));
        Ok(self.scale.seen(3 * WORD, WORD))
    }
}

/// A map under way; or a struct with flattened fields, of which the others come with their bare names for keys.
#[derive(Debug)]
struct Entries<'a> {
    fields: Fields<'a>,
    count: usize,
    key: Largest,
    value: Largest,
    /// The length of the last key, where that was a bare text.
    name: Option<usize>,
}

impl Entries<'_> {
    #[inline]
    fn key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refusal> {
        let (size, align) = (size_of_val(key), align_of_val(key));
        let seen =
            part(&mut self.fields.scale, if (size, align) == (WORD, WORD) { UNKNOWN } else { size }, align, key)?;
        self.name = (seen.is == Is::Bare).then_some(size);
        if self.name.is_none() {
            self.key.add(seen);
        }
        Ok(())
    }

    #[inline]
    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        if let Some(name) = self.name {
            let Scale { at, size, .. } = self.fields.scale;
            let is_known = size != UNKNOWN && size > 2 * WORD;
            let is_bare = size_of::<&T>() > WORD;
            let is_within = is_known && !is_bare && (at..at + size).contains(&address(value));
            let is_tag = is_bare && self.fields.is_first && size_of_val(value) <= LONGEST_TAG;
            if !is_within && !is_tag {
                self.fields.scale.own(name);
            }
            if is_within || is_tag || !(is_known || is_bare) {
                return self.fields.field(value);
            }
            self.key.add(Seen { size: 3 * WORD, align: WORD, at: None, is: Is::Data });
        }
        self.fields.is_first = false;
        self.value.add(element(&mut self.fields.scale, value)?);
        self.count += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<Seen, Refusal> {
        if self.count > 0 {
            let align = self.key.align.max(self.value.align).max(1);
            let entry = (self.key.size() + self.value.size()).next_multiple_of(align);
            let places = match self.fields.scale.size {
                HASH_TABLE => buckets(self.count),
                // Nodes of eleven, two thirds full.
                TREE => (self.count * 8 / 5).max(11),
                _ => (self.count * 7 / 4).max(7),
            };
            // Each with a byte of the hash, or its part of the links between nodes.
            self.fields.scale.own(places.saturating_mul(entry + 1));
        }
        if self.fields.need > 0 {
            return self.fields.finish();
        }
        Ok(self.fields.scale.seen(HASH_TABLE, WORD))
    }
}

// What the standard library's collections take themselves, and `serde_json::Value`.
const TREE: usize = 3 * WORD;
const ANY: usize = 4 * WORD;
const HASH_TABLE: usize = 6 * WORD;

/// Buckets of the standard library's hash tables.
fn buckets(entries: usize) -> usize {
    match entries {
        0 => 0,
        1..4 => 4,
        4..8 => 8,
        _ => (entries.saturating_mul(8) / 7).next_power_of_two(),
    }
}

impl<'a> Serializer for Scale<'a> {
    type Ok = Seen;
    type Error = Refusal;
    type SerializeSeq = Elements<'a>;
    type SerializeTuple = Fields<'a>;
    type SerializeTupleStruct = Fields<'a>;
    type SerializeTupleVariant = Fields<'a>;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Fields<'a>;

    fn is_human_readable(&self) -> bool {
        self.human_readable
    }
    fn serialize_bool(self, _: bool) -> Result<Seen, Refusal> {
        self.scalar(1)
    }
    fn serialize_i8(self, _: i8) -> Result<Seen, Refusal> {
        self.scalar(1)
    }
    fn serialize_i16(self, _: i16) -> Result<Seen, Refusal> {
        self.scalar(2)
    }
    fn serialize_i32(self, _: i32) -> Result<Seen, Refusal> {
        self.scalar(4)
    }
    fn serialize_i64(self, _: i64) -> Result<Seen, Refusal> {
        self.scalar(8)
    }
    fn serialize_i128(self, _: i128) -> Result<Seen, Refusal> {
        self.scalar(16)
    }
    fn serialize_u8(self, _: u8) -> Result<Seen, Refusal> {
        self.scalar(1)
    }
    fn serialize_u16(self, _: u16) -> Result<Seen, Refusal> {
        self.scalar(2)
    }
    fn serialize_u32(self, _: u32) -> Result<Seen, Refusal> {
        self.scalar(4)
    }
    fn serialize_u64(self, _: u64) -> Result<Seen, Refusal> {
        self.scalar(8)
    }
    fn serialize_u128(self, _: u128) -> Result<Seen, Refusal> {
        self.scalar(16)
    }
    fn serialize_f32(self, v: f32) -> Result<Seen, Refusal> {
        self.number(4, v.is_finite())
    }
    fn serialize_f64(self, v: f64) -> Result<Seen, Refusal> {
        self.number(8, v.is_finite())
    }
    fn serialize_char(self, _: char) -> Result<Seen, Refusal> {
        self.scalar(4)
    }
    fn serialize_unit(self) -> Result<Seen, Refusal> {
        self.scalar(0)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<Seen, Refusal> {
        // An empty sequence in MessagePack.
        self.deeper()?.scalar(0)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<Seen, Refusal> {
        self.scalar(1)
    }
    fn serialize_none(self) -> Result<Seen, Refusal> {
        Ok(Seen { is: Is::Nothing, ..self.seen(0, 1) })
    }
    fn serialize_str(self, v: &str) -> Result<Seen, Refusal> {
        self.text(v.len())
    }
    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<Seen, Refusal> {
        struct Length(usize);
        impl fmt::Write for Length {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0 += text.len();
                Ok(())
            }
        }
        let mut length = Length(0);
        write!(length, "{value}").map_err(|_| Refusal::Failed)?;
        self.text(length.0)
    }
    fn serialize_bytes(self, v: &[u8]) -> Result<Seen, Refusal> {
        // A sequence in JSON.
        self.deeper()?.text(v.len())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Seen, Refusal> {
        // A number needs a tag beside it; most others have room for it.
        let tagged = self.size == UNKNOWN && size_of_val(value) == align_of_val(value);
        self.wrapper(value, tagged)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Seen, Refusal> {
        self.wrapper(value, false)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<Seen, Refusal> {
        self.wrapper(value, true)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'a>, Refusal> {
        let mut scale = self.deeper()?;
        scale.least = match scale.size {
            UNKNOWN => scale.least,
            // Most likely a variant of an enum for data of any shape, whose elements are such enums again.
            ANY => ANY,
            _ => 0,
        };
        Ok(Elements { scale, count: 0, largest: Largest::default(), stride: Stride::Unknown })
    }
    fn serialize_tuple(self, _: usize) -> Result<Fields<'a>, Refusal> {
        Ok(self.deeper()?.fields(false))
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Fields<'a>, Refusal> {
        Ok(self.deeper()?.fields(false))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields<'a>, Refusal> {
        // Written as a map that holds a sequence.
        Ok(self.deeper()?.deeper()?.fields(true))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Entries<'a>, Refusal> {
        let fields = self.deeper()?.fields(false);
        Ok(Entries { fields, count: 0, key: Largest::default(), value: Largest::default(), name: None })
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a>, Refusal> {
        Ok(self.deeper()?.fields(false))
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields<'a>, Refusal> {
        Ok(self.deeper()?.deeper()?.fields(true))
    }
}

impl ser::SerializeSeq for Elements<'_> {
    type Ok = Seen;
    type Error = Refusal;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        self.element(value)
    }
    fn end(self) -> Result<Seen, Refusal> {
        self.finish()
    }
}

impl ser::SerializeMap for Entries<'_> {
    type Ok = Seen;
    type Error = Refusal;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refusal> {
        self.key(key)
    }
    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        self.value(value)
    }
    fn end(self) -> Result<Seen, Refusal> {
        self.finish()
    }
}

macro_rules! fields {
    ($($trait:ident :: $method:ident($($name:ident)?)),*) => {$(
        impl ser::$trait for Fields<'_> {
            type Ok = Seen;
            type Error = Refusal;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, $($name: &'static str,)? value: &T) -> Result<(), Refusal> {
                $(let _ = $name;)?
                self.field(value)
            }
            fn end(self) -> Result<Seen, Refusal> {
                self.finish()
            }
        }
    )*};
}
fields!(
    SerializeTuple::serialize_element(),
    SerializeTupleStruct::serialize_field(),
    SerializeTupleVariant::serialize_field(),
    SerializeStruct::serialize_field(name),
    SerializeStructVariant::serialize_field(name)
);
