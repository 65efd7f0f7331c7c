//! The alphabet of keys: which bytes stand for themselves and which are percent-encoded.

/// Bytes that never appear in a tenant or identifier segment as themselves: separators of the grammar, glob
/// characters of SCAN, hash-tag braces, the marker of auxiliary keys, controls, space and everything non-ASCII.
const ENCODED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = byte <= 0x20 || byte >= 0x7f;
        byte += 1;
    }
    let reserved = b":%|{}*?[]\\#!~";
    let mut i = 0;
    while i < reserved.len() {
        table[reserved[i] as usize] = true;
        i += 1;
    }
    table
};

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Hands `text` to `write` in pieces, percent-encoded. Text without reserved bytes is handed over as it is.
#[inline]
pub(crate) fn encode(text: &str, mut write: impl FnMut(&str)) {
    // One pass without an early exit: the compiler unrolls it, and almost all identifiers are plain.
    if !text.bytes().fold(false, |reserved, byte| reserved | ENCODED[usize::from(byte)]) {
        write(text);
        return;
    }
    encode_reserved(text, write);
}

#[cold]
fn encode_reserved(text: &str, mut write: impl FnMut(&str)) {
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        if !ENCODED[usize::from(byte)] {
            continue;
        }
        if plain < at {
            write(&text[plain..at]);
        }
        plain = at + 1;
        let escape = [b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
        write(std::str::from_utf8(&escape).unwrap_or_default());
    }
    if plain < text.len() {
        write(&text[plain..]);
    }
}

/// Whether `name` can be a root or a profile: `[a-z][a-z0-9_.-]*`, at most `max` bytes.
pub(crate) const fn is_name(name: &str, max: usize) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > max || !bytes[0].is_ascii_lowercase() {
        return false;
    }
    let mut i = 1;
    while i < bytes.len() {
        let byte = bytes[i];
        if !(byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'.' || byte == b'-') {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(text: &str) -> String {
        let mut out = String::new();
        encode(text, |piece| out.push_str(piece));
        out
    }

    #[test]
    fn a_company_called_r_and_d_stays_readable() {
        assert_eq!(encoded("R&D"), "R&D");
        assert_eq!(encoded("a:b"), "a%3Ab");
        assert_eq!(encoded("50% *?[]{}|;"), "50%25%20%2A%3F%5B%5D%7B%7D%7C;");
        assert_eq!(encoded("é\u{7f}\n"), "%C3%A9%7F%0A");
    }

    #[test]
    fn names_are_lower_case_and_start_with_a_letter() {
        for good in ["a", "workflow_def", "api.v2", "x-1"] {
            assert!(is_name(good, 64), "{good}");
        }
        for bad in ["", "1a", "A", "a:b", "é", "a b", "-a"] {
            assert!(!is_name(bad, 64), "{bad}");
        }
        assert!(!is_name("abcdef", 5));
    }

    proptest! {
        #[test]
        fn encoding_is_injective_and_never_holds_a_reserved_byte(a in ".{0,40}", b in ".{0,40}") {
            let (x, y) = (encoded(&a), encoded(&b));
            prop_assert_eq!(a == b, x == y);
            prop_assert!(x.bytes().all(|byte| byte == b'%' || !ENCODED[usize::from(byte)]));
        }
    }
}
