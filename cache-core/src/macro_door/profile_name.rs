//! The profile of a function that names none, from its module path. At compile time, as a profile is a constant.

/// The profile of a function that names none: its module path with `.` for `::`, lower case, `_` for what a profile
/// cannot hold. At most 64 bytes: the end of a longer path.
#[doc(hidden)]
#[macro_export]
macro_rules! __module_profile {
    ($path:expr) => {{
        const LENGTH: usize = $crate::__private::profile_name::length($path);
        const BYTES: [u8; LENGTH] = $crate::__private::profile_name::bytes::<LENGTH>($path);
        const NAME: &str = match ::core::str::from_utf8(&BYTES) {
            ::core::result::Result::Ok(name) => name,
            ::core::result::Result::Err(_) => "m",
        };
        NAME
    }};
}

#[doc(hidden)]
#[must_use]
pub const fn length(path: &str) -> usize {
    let bytes = path.as_bytes();
    let (mut length, mut at) = (0, 0);
    while at < bytes.len() {
        at += if is_separator(bytes, at) { 2 } else { 1 };
        length += 1;
    }
    // One more for the `m` put before a name that does not begin with a letter.
    let length = if starts_with_letter(bytes) { length } else { length + 1 };
    if length > crate::key::MAX_PROFILE { crate::key::MAX_PROFILE } else { length }
}

#[doc(hidden)]
#[must_use]
pub const fn bytes<const N: usize>(path: &str) -> [u8; N] {
    let bytes = path.as_bytes();
    let mut name = [b'm'; N];
    // From the end: of a path that is too long the end says most.
    let (mut to, mut from) = (N, bytes.len());
    while to > 0 && from > 0 {
        to -= 1;
        from -= 1;
        let byte = bytes[from].to_ascii_lowercase();
        name[to] = if byte == b':' {
            from -= 1;
            b'.'
        } else if byte.is_ascii_lowercase() || byte.is_ascii_digit() {
            byte
        } else {
            b'_'
        };
    }
    if !name[0].is_ascii_lowercase() {
        name[0] = b'm';
    }
    name
}

const fn is_separator(bytes: &[u8], at: usize) -> bool {
    bytes[at] == b':' && at + 1 < bytes.len() && bytes[at + 1] == b':'
}

const fn starts_with_letter(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes[0].is_ascii_alphabetic()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::__private::module_profile;

    #[test]
    fn a_module_path_becomes_a_profile() {
        assert_eq!(module_profile!("my_app::api::Scan"), "my_app.api.scan");
        assert_eq!(module_profile!("_x"), "m_x");
        assert_eq!(&bytes::<3>("aé"), b"a__");
        const LONG: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa::bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb::c";
        assert_eq!(module_profile!(LONG).len(), 64);
        assert!(crate::key::is_profile(module_profile!(LONG)));
    }
}
