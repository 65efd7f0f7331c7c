//! From arguments to the identifier of a key: readable, canonical and injective.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    rc::Rc,
    sync::Arc,
};

use arrayvec::ArrayString;

use super::{MAX_DEPTH, MAX_PLAIN, canonical, segment::encode, too_deep, users_code};
use crate::error::Error;

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
/// Two values that differ must write different text, and equal values the same text in every process. A type that keeps this
/// where it stands alone keeps it everywhere: as one of several arguments, in an `Option`, a tuple or a slice. What stands
/// between two parts of a value says how deep they are, and every value inside another is one deeper. So write a value of
/// several parts as one tuple, `(&self.region, self.id).write_key(writer)`: what is written one after the other may meet.
///
/// An identifier may be of any length; one that makes the key longer than 200 bytes is hashed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be part of a cache key",
    label = "neither a `KeyArgument` nor `Serialize`",
    note = "implement `cache_core::KeyArgument` or `serde::Serialize` for it, or leave it out with `skip(..)`"
)]
pub trait KeyArgument {
    /// Appends the canonical form of `self` to the identifier.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey) for a value with no canonical form: a NaN, one that nests
    /// deeper than 128 levels, one whose `Serialize` fails.
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error>;
}

/// Builds the identifier of a key, segment by segment, without allocating until it is longer than a key may be.
#[derive(Clone, Debug)]
pub struct KeyWriter {
    /// The identifier, or its head once it is longer than that.
    head: ArrayString<MAX_PLAIN>,
    /// The whole identifier once it is longer than `head` holds.
    overflow: Option<Box<Overflow>>,
    /// Values around the one that is written.
    depth: u8,
    /// Those of them whose parts are kept apart: what stands between two parts says it.
    level: u8,
    started: bool,
    /// Where the value of the `Some` that was begun last begins.
    some_at: usize,
}

/// An identifier too long to be kept.
#[derive(Clone, Debug)]
struct Overflow {
    hasher: blake3::Hasher,
    length: usize,
}

impl KeyWriter {
    #[inline]
    pub(crate) fn new() -> Self {
        Self { head: ArrayString::new_const(), overflow: None, depth: 0, level: 0, started: false, some_at: usize::MAX }
    }

    /// Begins the next segment. All but the first are preceded by `:`; inside another value by what stands between the
    /// elements of a tuple there.
    #[inline]
    pub fn segment(&mut self) {
        if self.started {
            self.separate();
        }
        self.started = true;
    }

    /// Begins the segment of an argument: the `sole` one of its key stands at the top, each of several inside the key as the
    /// elements of a tuple do.
    #[inline]
    pub(crate) fn argument(&mut self, sole: bool) {
        self.level = 0;
        self.segment();
        self.level = u8::from(!sole);
    }

    /// What stands between two parts of one value: `:` at the top, `|` inside that, then `#|`, `##|` and so on. No text of a
    /// part ends in `#`, so it is known of each of them how deep it is.
    #[inline]
    fn separate(&mut self) {
        if self.level == 0 {
            return self.push(":");
        }
        (1..self.level).for_each(|_| self.push("#"));
        self.push("|");
    }

    /// Appends text to the current segment, percent-encoded where needed.
    #[inline]
    pub fn literal(&mut self, text: &str) {
        encode(text, |piece| self.push(piece));
    }

    /// Appends text that is percent-encoded already.
    #[inline]
    pub(crate) fn encoded(&mut self, text: &str) {
        self.push(text);
    }

    /// Appends what `value` displays to the current segment, percent-encoded where needed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey) when the value's `Display` fails.
    pub fn display(&mut self, value: impl fmt::Display) -> Result<(), Error> {
        fmt::write(self, format_args!("{value}"))
            .map_err(|_| users_code("a key argument's Display failed; mend it, or name another argument"))
    }

    /// The identifier so far, or `None` once it is too long to be kept as it is.
    #[inline]
    pub(crate) fn plain(&self) -> Option<&str> {
        self.overflow.is_none().then_some(self.head.as_str())
    }

    pub(crate) fn head(&self) -> &str {
        &self.head
    }

    /// Hash of the whole identifier.
    pub(crate) fn digest(&self) -> blake3::Hash {
        match &self.overflow {
            Some(whole) => whole.hasher.finalize(),
            None => blake3::hash(self.head.as_bytes()),
        }
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
        let whole = self.overflow.get_or_insert_with(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(head.as_bytes());
            Box::new(Overflow { hasher, length: head.len() })
        });
        whole.hasher.update(text.as_bytes());
        whole.length += text.len();
        // The alphabet is ASCII, so every cut is a character boundary.
        let _ = head.try_push_str(&text[..head.remaining_capacity().min(text.len())]);
    }

    /// How much was written.
    fn position(&self) -> usize {
        self.overflow.as_ref().map_or(self.head.len(), |whole| whole.length)
    }

    /// Writes an element: a value inside another that has more.
    fn element(&mut self, write: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        self.level += 1;
        let written = self.nested(write);
        self.level -= 1;
        written
    }

    /// Writes a value inside another.
    fn nested(&mut self, write: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(too_deep());
        }
        self.depth += 1;
        let written = write(self);
        self.depth -= 1;
        written
    }

    /// Writes the elements of a tuple: segments of their own at the top.
    fn tuple(&mut self, elements: &[&dyn KeyArgument]) -> Result<(), Error> {
        elements.iter().enumerate().try_for_each(|(index, element)| {
            if index > 0 {
                self.separate();
            }
            self.element(|writer| element.write_key(writer))
        })
    }
}

/// Writers are equal when they hold the same identifier.
impl PartialEq for KeyWriter {
    fn eq(&self, other: &Self) -> bool {
        match (self.plain(), other.plain()) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (None, None) => self.digest() == other.digest(),
            _ => false,
        }
    }
}

impl Eq for KeyWriter {}

/// Of the whole identifier: those with one long head in common would share a hash of the head.
impl Hash for KeyWriter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.plain() {
            Some(plain) => plain.hash(state),
            None => self.digest().as_bytes().hash(state),
        }
    }
}

impl fmt::Write for KeyWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.literal(text);
        Ok(())
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

/// `None` is `!`. `Some(x)` is `x`, after `!+` where `x` begins with an `Option` itself.
///
/// That is seen by position, whatever types stand between the two: a newtype has nothing to pass on.
impl<T: KeyArgument> KeyArgument for Option<T> {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        if writer.some_at == writer.position() {
            writer.push("!+");
        }
        match self {
            None => {
                writer.push("!");
                Ok(())
            }
            Some(value) => {
                writer.some_at = writer.position();
                writer.nested(|writer| value.write_key(writer))
            }
        }
    }
}

/// `#<length>`, then the elements, each behind what stands between those of a tuple.
impl<T: KeyArgument> KeyArgument for [T] {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        writer.push("#");
        writer.push(itoa::Buffer::new().format(self.len()));
        self.iter().try_for_each(|element| {
            writer.separate();
            writer.element(|writer| element.write_key(writer))
        })
    }
}

macro_rules! deref {
    ($([$($generics:tt)*] $pointer:ty => $target:ty),* $(,)?) => {$(
        impl<$($generics)*> KeyArgument for $pointer {
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
            fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
                writer.tuple(&[$(&self.$index),+])
            }
        }
    )*};
}
tuples! {
    (A.0)
    (A.0, B.1)
    (A.0, B.1, C.2)
    (A.0, B.1, C.2, D.3)
    (A.0, B.1, C.2, D.3, E.4)
    (A.0, B.1, C.2, D.3, E.4, F.5)
}

/// A `Serialize` value as a key argument, in canonical form: maps sorted, floats by bits. A NaN, and what nests deeper
/// than 128 levels, are refused.
///
/// The order of a set is its iteration order: give a sorted one. Values that a type serialises alike, such as two
/// variants of an untagged enum that hold the same number, have one form.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn text(value: impl KeyArgument) -> Result<String, Error> {
        let mut writer = KeyWriter::new();
        writer.segment();
        value.write_key(&mut writer)?;
        Ok(writer.plain().unwrap().to_owned())
    }

    /// As the docs of `KeyArgument` show.
    struct Newtype<T>(T);
    impl<T: KeyArgument> KeyArgument for Newtype<T> {
        fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
            self.0.write_key(writer)
        }
    }

    #[test]
    fn a_newtype_around_an_option_keeps_none_apart() {
        let texts = [None, Some(Newtype(None)), Some(Newtype(Some(1)))].map(|value| text(value).unwrap());
        assert_eq!(texts, ["!", "!+!", "!+1"]);
        // With and without the newtype alike.
        assert_eq!(text(Some(Newtype(Some(1)))).unwrap(), text(Some(Some(1))).unwrap());
        assert_eq!(text((Newtype(None::<u8>), 1)).unwrap(), text((None::<u8>, 1)).unwrap());
    }

    /// The marker is placed by position, which goes on where the text is only hashed.
    #[test]
    fn a_long_identifier_keeps_none_apart() {
        let long = "x".repeat(500);
        let written = |inner: Option<Newtype<Option<u8>>>| {
            let mut writer = KeyWriter::new();
            (long.as_str(), inner).write_key(&mut writer).unwrap();
            writer
        };
        assert!(written(None) != written(Some(Newtype(None))));
        assert!(written(Some(Newtype(None))) != written(Some(Newtype(Some(1)))));
        assert!(written(Some(Newtype(None))) == written(Some(Newtype(None))));
    }

    /// Told apart by what it writes alone, as the docs of `KeyArgument` ask.
    enum Id {
        Global(u64),
        Of(u64, u64),
        /// By hand.
        In(u64, u64, u64),
    }
    impl KeyArgument for Id {
        fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
            match self {
                Self::Global(id) => id.write_key(writer),
                Self::Of(org, id) => (org, id).write_key(writer),
                Self::In(region, org, id) => {
                    region.write_key(writer)?;
                    writer.segment();
                    org.write_key(writer)?;
                    writer.segment();
                    id.write_key(writer)
                }
            }
        }
    }
    use Id::{Global, In, Of};

    #[test]
    fn what_stands_between_two_parts_says_how_deep_they_are() {
        assert_eq!(text(Of(1, 2)).unwrap(), "1:2");
        assert_eq!(text((Of(1, 2), Global(3))).unwrap(), "1|2:3");
        assert_eq!(text([Of(1, 2), Global(3)]).unwrap(), "#2:1|2:3");
        assert_eq!(text(([Of(1, 2), Global(3)], In(4, 5, 6))).unwrap(), "#2|1#|2|3:4|5|6");
        assert_eq!(text(("a", ("b", ("c", ("d", "e"))))).unwrap(), "a:b|c#|d##|e");
        assert_eq!(text(Some(Of(1, 2))).unwrap(), text(Of(1, 2)).unwrap());
    }

    #[test]
    fn parts_of_one_argument_are_never_taken_for_those_of_the_next() {
        let pairs = || [(Global(1), In(2, 3, 4)), (Of(1, 2), Of(3, 4)), (In(1, 2, 3), Global(4))];
        let arguments = |(first, second): (Id, Id)| {
            let mut writer = KeyWriter::new();
            for id in [first, second] {
                writer.argument(false);
                id.write_key(&mut writer).unwrap();
            }
            writer.plain().unwrap().to_owned()
        };
        for texts in [
            pairs().map(arguments),
            pairs().map(|pair| text(pair).unwrap()),
            pairs().map(|(a, b)| text([a, b]).unwrap()),
            pairs().map(|(a, b)| text(Some((Some(a), (b,)))).unwrap()),
        ] {
            let distinct: std::collections::HashSet<_> = texts.iter().collect();
            assert_eq!(distinct.len(), texts.len(), "{texts:?}");
        }
    }

    #[test]
    fn what_nests_without_end_is_refused() {
        struct List;
        impl KeyArgument for List {
            fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
                [Self].write_key(writer)
            }
        }
        struct Options;
        impl KeyArgument for Options {
            fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
                Some(self).write_key(writer)
            }
        }
        for error in [text(List).unwrap_err(), text(Options).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::InvalidKey);
            assert!(error.to_string().contains("128 levels"), "{error}");
        }
    }
}
