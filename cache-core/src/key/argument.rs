//! From arguments to the identifier of a key: readable, canonical and injective.

use std::{borrow::Cow, fmt, rc::Rc, sync::Arc};

use arrayvec::ArrayString;

use super::{MAX_PLAIN, canonical, segment::encode};
use crate::error::{Error, ErrorKind};

/// A value with a canonical, readable form in a key.
///
/// Integers, `bool`, `char`, text, `Option`, tuples and slices have one. Everything else that is `Serialize` is
/// accepted by `#[cached]` and by [`Canonical`](crate::Canonical) in a less readable form. A newtype opts in by
/// writing itself as what it displays:
///
/// ```
/// use cache_core::{Error, KeyArgument, KeyWriter};
///
/// struct OrderId(u64);
///
/// impl KeyArgument for OrderId {
///     fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
///         self.0.write_key(writer)
///     }
/// }
/// ```
///
/// Two values that differ must write different text, and equal values the same text in every process.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be part of a cache key",
    label = "neither a `KeyArgument` nor `Serialize`",
    note = "implement `cache_core::KeyArgument` or `serde::Serialize` for it, or leave it out with `skip(..)`"
)]
pub trait KeyArgument {
    /// Whether the text of some value of this type starts with the marker that `Option` uses for `None`.
    #[doc(hidden)]
    const MARKED: bool = false;

    /// Appends the canonical form of `self` to the identifier.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`] for a value with no canonical form, for instance a NaN.
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error>;
}

/// Builds the identifier of a key, segment by segment, without allocating until it is longer than a key may be.
#[derive(Clone, Debug)]
pub struct KeyWriter {
    /// The identifier, or its head once it is longer than that.
    head: ArrayString<MAX_PLAIN>,
    /// Hash of the whole identifier once it is longer than `head` holds.
    overflow: Option<Box<blake3::Hasher>>,
    depth: u8,
    started: bool,
}

impl KeyWriter {
    #[inline]
    pub(crate) fn new() -> Self {
        Self { head: ArrayString::new_const(), overflow: None, depth: 0, started: false }
    }

    /// Begins the next segment; all but the first are preceded by `:`.
    #[inline]
    pub fn segment(&mut self) {
        if self.started {
            self.push(":");
        }
        self.started = true;
    }

    /// Appends text to the current segment, percent-encoded where needed.
    #[inline]
    pub fn literal(&mut self, text: &str) {
        encode(text, |piece| self.push(piece));
    }

    /// Appends what `value` displays to the current segment, percent-encoded where needed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`] when the value's `Display` fails.
    pub fn display(&mut self, value: impl fmt::Display) -> Result<(), Error> {
        fmt::write(self, format_args!("{value}"))
            .map_err(|_| Error::new(ErrorKind::InvalidKey, "a key argument failed to display itself"))
    }

    /// The identifier so far, or `None` once it is too long to be kept as it is.
    #[inline]
    pub(crate) fn plain(&self) -> Option<&str> {
        self.overflow.is_none().then_some(self.head.as_str())
    }

    pub(crate) fn head(&self) -> &str {
        &self.head
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        self.overflow.as_ref().map_or_else(|| blake3::hash(self.head.as_bytes()), |hasher| hasher.finalize())
    }

    /// Whether no segment, or only an empty first one, was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// Text that is already of the key alphabet.
    #[inline]
    fn push(&mut self, text: &str) {
        if self.overflow.is_some() || self.head.try_push_str(text).is_err() {
            self.push_long(text);
        }
    }

    #[cold]
    fn push_long(&mut self, text: &str) {
        let head = &mut self.head;
        let hasher = self.overflow.get_or_insert_with(|| {
            let mut hasher = Box::new(blake3::Hasher::new());
            hasher.update(head.as_bytes());
            hasher
        });
        hasher.update(text.as_bytes());
        // The alphabet is ASCII, so every cut is a character boundary.
        let _ = head.try_push_str(&text[..head.remaining_capacity().min(text.len())]);
    }

    /// Writes the elements of a tuple: own segments at the top, one segment with `|` inside another value.
    fn tuple(&mut self, elements: &[&dyn WriteElement]) -> Result<(), Error> {
        self.depth += 1;
        let written = elements.iter().enumerate().try_for_each(|(index, element)| {
            if self.depth > 1 && index > 0 {
                self.push("|");
            } else if self.depth == 1 && index > 0 {
                self.segment();
            }
            element.write(self)
        });
        self.depth -= 1;
        written
    }
}

/// Writers are equal when they hold the same identifier.
impl PartialEq for KeyWriter {
    fn eq(&self, other: &Self) -> bool {
        match (self.plain(), other.plain()) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (None, None) => self.hash() == other.hash(),
            _ => false,
        }
    }
}

impl fmt::Write for KeyWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.literal(text);
        Ok(())
    }
}

/// `KeyArgument` without its constant, which makes it usable as an object.
trait WriteElement {
    fn write(&self, writer: &mut KeyWriter) -> Result<(), Error>;
}

impl<T: KeyArgument + ?Sized> WriteElement for T {
    fn write(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        self.write_key(writer)
    }
}

macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl KeyArgument for $integer {
            #[inline]
            fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
                writer.push(itoa::Buffer::new().format(*self));
                Ok(())
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

macro_rules! text {
    ($($text:ty),*) => {$(
        impl KeyArgument for $text {
            #[inline]
            fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
                writer.literal(self);
                Ok(())
            }
        }
    )*};
}
text!(str, String);

impl KeyArgument for bool {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        writer.push(if *self { "true" } else { "false" });
        Ok(())
    }
}

impl KeyArgument for char {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        writer.literal(self.encode_utf8(&mut [0; 4]));
        Ok(())
    }
}

/// `None` is `!`. `Some(x)` is `x`, after `!+` where the text of `x` could itself start with `!`.
impl<T: KeyArgument> KeyArgument for Option<T> {
    const MARKED: bool = true;

    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        match self {
            None => writer.push("!"),
            Some(value) => {
                if T::MARKED {
                    writer.push("!+");
                }
                return nested(writer, value);
            }
        }
        Ok(())
    }
}

/// `#<length>`, then `|` before each element.
impl<T: KeyArgument> KeyArgument for [T] {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        writer.push("#");
        writer.push(itoa::Buffer::new().format(self.len()));
        self.iter().try_for_each(|element| {
            writer.push("|");
            nested(writer, element)
        })
    }
}

/// A tuple inside another value is one segment.
fn nested<T: KeyArgument + ?Sized>(writer: &mut KeyWriter, value: &T) -> Result<(), Error> {
    writer.depth += 1;
    let written = value.write_key(writer);
    writer.depth -= 1;
    written
}

macro_rules! deref {
    ($([$($generics:tt)*] $pointer:ty => $target:ty),* $(,)?) => {$(
        impl<$($generics)*> KeyArgument for $pointer {
            const MARKED: bool = <$target as KeyArgument>::MARKED;

            #[inline]
            fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
                <$target as KeyArgument>::write_key(self, writer)
            }
        }
    )*};
}
deref! {
    [T: KeyArgument + ?Sized] &T => T,
    [T: KeyArgument + ?Sized] &mut T => T,
    [T: KeyArgument + ?Sized] Box<T> => T,
    [T: KeyArgument + ?Sized] Arc<T> => T,
    [T: KeyArgument + ?Sized] Rc<T> => T,
    [T: KeyArgument] Vec<T> => [T],
    [T: KeyArgument + ToOwned + ?Sized] Cow<'_, T> => T,
    [T: KeyArgument, const N: usize] [T; N] => [T],
}

macro_rules! tuples {
    ($(($($name:ident . $index:tt),+))*) => {$(
        impl<$($name: KeyArgument),+> KeyArgument for ($($name,)+) {
            // Its text starts with that of its first element.
            const MARKED: bool = tuples!(@first $($name),+);

            fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
                writer.tuple(&[$(&self.$index),+])
            }
        }
    )*};
    (@first $first:ident $(, $rest:ident)*) => { $first::MARKED };
}
tuples! {
    (A.0)
    (A.0, B.1)
    (A.0, B.1, C.2)
    (A.0, B.1, C.2, D.3)
    (A.0, B.1, C.2, D.3, E.4)
    (A.0, B.1, C.2, D.3, E.4, F.5)
}

/// A `Serialize` value as a key argument, in canonical form: maps sorted, floats by bits, NaN refused.
///
/// The order of a set is its iteration order: give a sorted one.
///
/// ```
/// use cache_core::{Canonical, TtlProfile, Keyspace};
/// use std::time::Duration;
///
/// #[derive(serde::Serialize)]
/// struct Filter { state: String, limit: u32 }
///
/// const CONTACTS: Keyspace<Vec<String>> = TtlProfile::new("contacts", Duration::from_secs(60)).of();
/// let key = CONTACTS.key(Canonical(&Filter { state: "open".into(), limit: 10 }));
/// assert_eq!(key.identifier(), "<state=4'open,limit=10>");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Canonical<'a, T: ?Sized>(pub &'a T);

impl<T: serde::Serialize + ?Sized> KeyArgument for Canonical<'_, T> {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        writer.literal(&canonical::to_text(self.0)?);
        Ok(())
    }
}
