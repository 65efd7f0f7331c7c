//! What the type of a value is called in an entry: the same in every process, whichever compiler built it.
//!
//! A name that the user gives is taken as it is. By default the name is the type's own, as the source has it: with its
//! modules and its type arguments, so that two types of one bare name are two types. `type_name` tells it, and its form is
//! promised by nobody. So only what the source says is taken from it: no lifetimes, spaces or closures, and of a type of the
//! standard library, which moves types between its crates and modules, the last name alone.

use std::{any::type_name, cell::RefCell, collections::HashMap};

use rapidhash::fast::RandomState;
use twox_hash::XxHash3_64;

/// Hash of what `T` is called: `given`, or its own name.
pub(crate) fn schema<T: ?Sized>(given: Option<&str>) -> u64 {
    // A seed of its own: a given name is no type's own.
    given.map_or_else(own::<T>, |given| XxHash3_64::oneshot_with_seed(1, given.as_bytes()))
}

/// Hash of the type's own name.
pub(crate) fn own<T: ?Sized>() -> u64 {
    thread_local! {
        /// By the place of the name in memory: found out once for each type and thread.
        static KNOWN: RefCell<HashMap<(usize, usize), u64, RandomState>> = RefCell::default();
    }
    let name = type_name::<T>();
    let place = (name.as_ptr().addr(), name.len());
    let hash = || XxHash3_64::oneshot(normal(name).as_bytes());
    KNOWN.try_with(|known| *known.borrow_mut().entry(place).or_insert_with(hash)).unwrap_or_else(|_| hash())
}

/// A name of the compiler's, reduced to names of the source and brackets.
fn normal(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '\'' => match char_len(rest) {
                // A constant of type `char`.
                Some(end) => {
                    normal.push_str(&rest[..end]);
                    end
                }
                // A lifetime, with the comma behind it.
                None => {
                    let end =
                        rest[1..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(rest.len(), |at| at + 1);
                    if rest[end..].starts_with(',') { end + 1 } else { end }
                }
            },
            c if is_path(c) => {
                let end = rest.find(|c| !is_path(c)).unwrap_or(rest.len());
                push_path(&mut normal, &rest[..end]);
                end
            }
            c => {
                if !c.is_whitespace() {
                    normal.push(c);
                }
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    normal.replace("<>", "")
}

/// The length of the literal that `rest` begins with, such as `'x'`, `','` or `'\''`; `None` where it is a lifetime.
fn char_len(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let is_escaped = chars.next()?.1 == '\\';
    let (at, next) = chars.next()?;
    match is_escaped {
        true => rest.get(at + next.len_utf8()..)?.find('\'').map(|end| at + next.len_utf8() + end + 1),
        false => (next == '\'').then_some(at + 1),
    }
}

fn is_path(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | ':' | '{' | '}' | '#')
}

fn push_path(normal: &mut String, path: &str) {
    let is_std = ["std::", "core::", "alloc::"].iter().any(|library| path.starts_with(library));
    match path.rsplit_once("::") {
        Some((_, last)) if is_std => normal.push_str(last),
        _ => {
            let names = path.split("::").filter(|name| !name.starts_with('{'));
            for (index, name) in names.enumerate() {
                normal.push_str(if index > 0 { "::" } else { "" });
                normal.push_str(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

    use super::*;

    /// Names as compilers have told them, some of them in two ways.
    #[test]
    fn only_names_of_the_source_count() {
        for (told, expected) in [
            ("app::api::Report", "app::api::Report"),
            ("alloc::vec::Vec<app::api::Report>", "Vec<app::api::Report>"),
            ("alloc::borrow::Cow<'_, str>", "Cow<str>"),
            ("alloc::borrow::Cow<str>", "Cow<str>"),
            ("app::Ref<'_>", "app::Ref"),
            ("app::Ref", "app::Ref"),
            ("&'static str", "&str"),
            ("app::f::{{closure}}::Local", "app::f::Local"),
            ("app::f::{closure#0}::Local", "app::f::Local"),
            ("std::net::ip_addr::IpAddr", "IpAddr"),
            ("core::net::ip_addr::IpAddr", "IpAddr"),
            ("(u8, [core::option::Option<i64>; 4])", "(u8,[Option<i64>;4])"),
            ("std::collections::hash::map::HashMap<app::K, app::V>", "HashMap<app::K,app::V>"),
            ("app::Only<'x'>", "app::Only<'x'>"),
            ("app::Only<','>", "app::Only<','>"),
            ("app::Only<' '>", "app::Only<' '>"),
            ("app::Pair<'<', '>'>", "app::Pair<'<','>'>"),
            (r"app::Pair<'\'', '\u{301}'>", r"app::Pair<'\'','\u{301}'>"),
            (r"app::Pair<'\\', app::Of<'a, u8>>", r"app::Pair<'\\',app::Of<u8>>"),
            ("größe::Größe<42>", "größe::Größe<42>"),
            ("standard::Thing", "standard::Thing"),
        ] {
            assert_eq!(normal(told), expected, "{told}");
        }
    }

    /// Pins what this compiler tells: one that tells another name makes every entry of such a type a miss.
    #[test]
    fn types_are_called_what_they_are_called_in_the_source() {
        struct Local<T>(T);
        type Many = (HashMap<String, Option<Box<[u8]>>>, [u8; 4], (Cow<'static, str>,), IpAddr, Duration, Arc<str>);
        assert_eq!(
            normal(type_name::<Many>()),
            "(HashMap<String,Option<Box<[u8]>>>,[u8;4],(Cow<str>,),IpAddr,Duration,Arc<str>)"
        );
        assert!(normal(type_name::<Local<Vec<u8>>>()).ends_with("::Local<Vec<u8>>"));
        let _ = Local(1).0;
    }

    #[test]
    fn a_given_name_is_no_types_own() {
        assert_eq!(schema::<u8>(Some("report")), schema::<u16>(Some("report")));
        assert_ne!(schema::<u8>(Some("u8")), schema::<u8>(None));
        assert_ne!(schema::<u8>(None), schema::<u16>(None));
        assert_eq!(own::<String>(), own::<String>());
    }
}
