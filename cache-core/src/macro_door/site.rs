//! What is known about an annotated function without its arguments, and what tells it from others of its name.
//!
//! Two functions of one name under one prefix need two keys, or each would evict the other's values for ever. So the first
//! segment of a key is the function's name, and where the prefix is not the path of its module, or the function stands
//! inside another one, a short hash of that path: `scan_results@a1b2c3`. The path is made of names in the source,
//! so the key is the same in every process, and lines may move.
//!
//! Two blocks of one function have one path. The second of two such functions to be called in a process is reported, and
//! runs uncached. Which one is second may differ between processes, and both would be stored under one key:
//!
//! 1. Process A calls the first one, and stores its value.
//! 2. Process B calls the second one, and finds that value.
//!
//! So for a function inside another one the schema of an entry holds a hash of the function's own tokens. The schema is judged
//! after the version, so that an older release leaves alone what a newer one stores that changes the body and raises the version.
//!
//! A type parameter that no argument names, such as a marker, is part of the first segment, by a hash of what the type is called:
//! `load@a1b2c3@d4e5f6`. One that an argument names is not, as an invalidation must reach a value whatever the type is by which
//! its caller names it, `&str` or `String`. To both an entry is bound.

use std::{
    any::{TypeId, type_name},
    collections::HashMap,
};

use twox_hash::XxHash3_64;

use crate::{
    error::{Error, ErrorKind},
    key::{KeyWriter, segment},
    sync::{Mutex, OnceLock},
    value::{TtlProfile, keyspace::Origin, schema},
};

/// Where an annotated function stands. There is one for each, in a static of its expansion.
#[derive(Debug)]
pub struct Place {
    module: &'static str,
    function: &'static str,
    /// Hash of the function's tokens.
    code: u64,
    /// For a report. Neither is part of a key or of what an entry is bound to.
    file: &'static str,
    line: u32,
    resolved: OnceLock<Resolved>,
}

/// What follows from a place, found out at the first call.
#[derive(Debug)]
struct Resolved {
    /// The first segment of its keys, percent-encoded.
    label: Box<str>,
    /// What its entries are bound to, in every process.
    bound_to: u64,
    /// Hash of its tokens where its path does not tell it from every other function; else 0.
    code: u64,
    /// Why it runs uncached, where another function came first that cannot be told from it.
    twin: Option<Error>,
}

impl Place {
    /// The place of a function, by its module's path and its name.
    #[must_use]
    pub const fn new(module: &'static str, function: &'static str, code: u64, file: &'static str, line: u32) -> Self {
        Self { module, function, code, file, line, resolved: OnceLock::new() }
    }

    #[inline]
    fn resolved<F: 'static>(&'static self, profile: &str) -> &'static Resolved {
        self.resolved.get().unwrap_or_else(|| self.resolve(TypeId::of::<F>(), type_name::<F>(), profile))
    }

    #[cold]
    fn resolve(&'static self, function: TypeId, type_name: &str, profile: &str) -> &'static Resolved {
        let (path, is_inside) = self.path(type_name);
        let hash = XxHash3_64::oneshot(path.as_bytes());
        let is_said = !is_inside && self.module().replace("::", ".") == profile;
        let name = self.function;
        let label = if is_said { name.to_owned() } else { format!("{name}@{:06x}", hash & 0xff_ffff) };
        let twin = first_of(profile, &label, function, self).map(|first| self.twin_of(first, profile, &path));
        let code = if is_inside { self.code } else { 0 };
        let mut encoded = String::with_capacity(label.len());
        segment::encode(&label, |piece| encoded.push_str(piece));
        let resolved = Resolved { label: encoded.into(), bound_to: hash, code, twin };
        // Reported by whoever is first, and after that: what takes the log may call the function.
        if self.resolved.set(resolved).is_ok()
            && let Some(twin) = self.resolved.get().and_then(|resolved| resolved.twin.as_ref())
        {
            tracing::error!(target: "cache_core", "{twin}");
        }
        self.resolved.get().unwrap_or_else(|| unreachable!("set above"))
    }

    /// The module's path as types are named: without the mark of raw names.
    fn module(&self) -> String {
        self.module.replace("r#", "")
    }

    /// The path of the function, and whether it stands inside another item than its module. The type that stands for the
    /// function says what is between the two. No closures: a function that becomes `async` is the same one.
    fn path(&self, type_name: &str) -> (String, bool) {
        let (module, function) = (self.module(), self.function);
        let parent = type_name.rsplit_once("::").map_or("", |(parent, _)| parent);
        if parent == module {
            return (format!("{module}::{function}"), false);
        }
        let inside = parent.strip_prefix(&*module).and_then(|rest| rest.strip_prefix("::")).unwrap_or(parent);
        let named = inside.split("::").filter(|name| !name.starts_with('{'));
        let path = [&*module].into_iter().chain(named).chain([function]).collect::<Vec<_>>();
        (path.join("::"), true)
    }

    fn twin_of(&self, first: &Self, profile: &str, path: &str) -> Error {
        let (name, file, line) = (self.function, self.file, self.line);
        let message = format!(
            "`{name}` ({file}:{line}) runs uncached: nothing tells its keys from those of `{}` ({}:{}), which was called \
             first, as both are {path} under the prefix `{profile}`; rename one, or give it a `key` or a `key_prefix`",
            first.function, first.file, first.line,
        );
        Error::new(ErrorKind::InvalidKey, message)
    }
}

/// The function of this process that has this label under this profile already, if it is another one.
fn first_of(profile: &str, label: &str, function: TypeId, place: &'static Place) -> Option<&'static Place> {
    type Places = HashMap<(Box<str>, Box<str>), (TypeId, &'static Place)>;
    static PLACES: OnceLock<Mutex<Places>> = OnceLock::new();
    let mut places = PLACES.get_or_init(Mutex::default).lock();
    let (first, first_place) = *places.entry((profile.into(), label.into())).or_insert((function, place));
    (first != function).then_some(first_place)
}

/// What is known about an annotated function without its arguments.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name is known whatever the rest is.
    pub(super) profile_name: &'static str,
    /// An error makes every call run uncached.
    pub(super) profile: Result<TtlProfile, Error>,
    function: TypeId,
    /// Unless it names a key of its own.
    resolved: Option<&'static Resolved>,
    types: u64,
    /// Those of them that are part of the key; 0 where there are none.
    markers: u64,
    pub(super) version: u32,
    pub(super) schema: Option<&'static str>,
}

impl Site {
    /// The site of the function that `F` stands for. `is_bound` unless it names a key of its own.
    #[inline]
    #[must_use]
    pub fn new<F: 'static>(place: &'static Place, profile: TtlProfile, is_bound: bool) -> Self {
        Self::checked::<F>(place, profile.name(), Ok(profile), is_bound)
    }

    /// The same with a TTL known only at run time.
    #[inline]
    #[must_use]
    pub fn checked<F: 'static>(
        place: &'static Place,
        profile_name: &'static str,
        profile: Result<TtlProfile, Error>,
        is_bound: bool,
    ) -> Self {
        let resolved = is_bound.then(|| place.resolved::<F>(profile_name));
        let profile = match resolved.and_then(|resolved| resolved.twin.as_ref()) {
            Some(twin) => Err(twin.clone()),
            None => profile,
        };
        Self {
            profile_name,
            profile,
            function: TypeId::of::<F>(),
            resolved,
            types: 0,
            markers: 0,
            version: 0,
            schema: None,
        }
    }

    /// The version of the value's type.
    #[inline]
    #[must_use]
    pub fn with_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// The name of the schema of the value's type.
    #[inline]
    #[must_use]
    pub fn with_schema(mut self, schema: &'static str) -> Self {
        self.schema = Some(schema);
        self
    }

    /// Tells instances of a generic function apart.
    #[must_use]
    pub fn with_type<T: ?Sized>(mut self) -> Self {
        self.types = self.types.rotate_left(7) ^ schema::own::<T>();
        self
    }

    /// The same for a type that no argument names. Each has keys of its own.
    #[must_use]
    pub fn with_marker<T: ?Sized>(mut self) -> Self {
        self = self.with_type::<T>();
        self.markers = self.types;
        self
    }

    /// The same for a type that has no name.
    #[must_use]
    pub fn with_type_of<T: ?Sized>(self, _: &T) -> Self {
        self.with_type::<T>()
    }

    /// Writes the first segment of its keys, unless it names a key of its own.
    #[inline]
    pub(super) fn write_label(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        let Some(resolved) = self.resolved else { return Ok(()) };
        writer.segment();
        writer.encoded(&resolved.label);
        match self.markers {
            0 => Ok(()),
            markers => writer.display(format_args!("@{:06x}", markers & 0xff_ffff)),
        }
    }

    /// Whether it runs uncached because it cannot be told from another function, which was reported.
    pub(super) fn is_twin(&self) -> bool {
        self.resolved.is_some_and(|resolved| resolved.twin.is_some())
    }

    /// What its entries are bound to.
    #[inline]
    pub(super) fn origin(&self) -> Origin {
        let bound = self.resolved.map(|resolved| (self.function, resolved.bound_to.wrapping_add(self.types)));
        let origin = Origin::of(bound).of_values(self.version, self.schema);
        origin.with_code(self.resolved.map_or(0, |resolved| resolved.code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn place(module: &'static str) -> Place {
        Place::new(module, "load", 0, "src/x.rs", 1)
    }

    #[test]
    fn the_path_of_a_function_is_made_of_names_in_the_source() {
        for (module, type_name, path, is_inside) in [
            ("app::api", "app::api::load", "app::api::load", false),
            ("app::r#type", "app::type::load", "app::type::load", false),
            ("app", "app::outer::load", "app::outer::load", true),
            ("app", "app::outer::{{closure}}::load", "app::outer::load", true),
            ("app", "app::B<u8>::get::load", "app::B<u8>::get::load", true),
            ("app", "<app::A as app::Tr>::m::load", "app::<app::A as app::Tr>::m::load", true),
            // Whatever a compiler makes of it.
            ("app", "load", "app::::load", true),
            ("app", "apple::load", "app::apple::load", true),
        ] {
            assert_eq!(place(module).path(type_name), (path.to_owned(), is_inside), "{type_name}");
        }
    }

    #[test]
    fn a_label_holds_a_hash_where_the_prefix_does_not_say_the_module() {
        struct Load;
        let label = |place: &'static Place, type_name, profile| {
            (*place.resolve(TypeId::of::<Load>(), type_name, profile).label).to_owned()
        };
        static SAID: Place = place("app::api");
        static UNSAID: Place = place("app::api");
        static INSIDE: Place = place("app::api");
        static IN_THE_DOCS: Place = Place::new("my_app", "scan_results", 0, "src/main.rs", 1);
        assert_eq!(label(&IN_THE_DOCS, "my_app::scan_results", "api"), "scan_results@995943");
        assert_eq!(label(&SAID, "app::api::load", "app.api"), "load");
        assert_eq!(label(&UNSAID, "app::api::load", "api"), "load@4888d9");
        assert_eq!(label(&INSIDE, "app::api::outer::load", "app.api"), "load@337419");
    }

    /// In whichever order two processes call them.
    #[test]
    fn functions_that_cannot_be_told_apart_are_bound_to_their_code() {
        struct One;
        struct Two;
        static ONE: Place = Place::new("twins", "load", 1, "src/x.rs", 1);
        static TWO: Place = Place::new("twins", "load", 2, "src/x.rs", 9);
        let one = ONE.resolve(TypeId::of::<One>(), "twins::outer::load", "api");
        let two = TWO.resolve(TypeId::of::<Two>(), "twins::outer::load", "api");
        assert_eq!((&one.label, one.bound_to), (&two.label, two.bound_to));
        assert_ne!(one.code, two.code);
        assert!(one.twin.is_none());
        let message = two.twin.as_ref().unwrap().to_string();
        for part in ["`load` (src/x.rs:9)", "src/x.rs:1", "twins::outer::load", "`api`"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}
