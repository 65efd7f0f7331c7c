//! Patterns over `profile:identifier`, with `*` as the only wildcard.

use super::{HASH_LEN, MAX_PLAIN, segment::encode};
use crate::error::{Error, ErrorKind};

/// The longest pattern, percent-encoded, in bytes: more than a key has behind its tenant.
const MAX_PATTERN: usize = 512;

/// A pattern, by what it covers within one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Everything of the tenant.
    Scope,
    /// One whole keyspace, by profile.
    Keyspace(String),
    /// Keys that must be looked for.
    Keys(Glob),
}

/// A pattern relative to the tenant's prefix, in the key alphabet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Glob(String);

/// Reads a pattern: `:` separates segments, `*` stands for any text, and everything else for itself, percent-encoded
/// as in keys.
///
/// # Errors
/// [`ErrorKind::InvalidKey`] when it is empty or longer than 512 bytes, percent-encoded.
pub(crate) fn parse(pattern: &str) -> Result<Pattern, Error> {
    if pattern.is_empty() {
        let message = "pattern is empty; give `profile:identifier` with `*` as wildcard, or `*` for the whole tenant";
        return Err(Error::new(ErrorKind::InvalidKey, message));
    }
    // The length of what was given bounds the work on a hostile one.
    if pattern.len() > MAX_PATTERN {
        return Err(too_long(pattern.len()));
    }
    let mut glob = String::with_capacity(pattern.len());
    for piece in pattern.split_inclusive([':', '*']) {
        let (text, end) = match piece.chars().last() {
            Some(end @ (':' | '*')) => (&piece[..piece.len() - 1], Some(end)),
            _ => (piece, None),
        };
        encode(text, |piece| glob.push_str(piece));
        // `**` means what `*` means.
        if let Some(end) = end
            && !(end == '*' && glob.ends_with('*'))
        {
            glob.push(end);
        }
    }
    if glob.len() > MAX_PATTERN {
        return Err(too_long(glob.len()));
    }
    if glob == "*" {
        return Ok(Pattern::Scope);
    }
    if let Some(profile) = glob.strip_suffix(":*")
        && super::is_profile(profile)
    {
        return Ok(Pattern::Keyspace(profile.to_owned()));
    }
    Ok(Pattern::Keys(Glob(glob)))
}

#[cold]
fn too_long(length: usize) -> Error {
    let message = format!(
        "a pattern of {length} bytes, percent-encoded where needed; at most {MAX_PATTERN} are allowed: \
         end it earlier with `*`"
    );
    Error::new(ErrorKind::InvalidKey, message)
}

impl Glob {
    /// The MATCH argument of a SCAN that finds every key this pattern may cover in the tenant of `scope`.
    ///
    /// Long keys end in a hash, so only their head can be compared. Their heads are as long as a 200-byte key
    /// leaves them; the literal start of the pattern is cut to what every such head still holds.
    pub(crate) fn scan_match(&self, scope: &str) -> String {
        let literal = self.0.split('*').next().unwrap_or_default();
        let profile = literal.find(':').map_or(literal.len(), |colon| colon + 1);
        let shortest_head = (MAX_PLAIN - HASH_LEN).saturating_sub(scope.len()).max(profile);
        // A tenant or profile is never cut into: the prefix of another tenant must not match. Neither the scope nor
        // the encoded literal can hold a character that is special to SCAN.
        format!("{scope}{}*", &literal[..literal.len().min(shortest_head)])
    }

    /// Whether `key`, relative to the tenant's prefix, is a value this pattern covers. Auxiliary keys never are.
    pub(crate) fn covers(&self, key: &str) -> bool {
        // Seen from the keys of no tenant, `tenant:` begins somebody else's data.
        if key.starts_with("tenant:") {
            return false;
        }
        match key.split_once('~') {
            None => matches(&self.0, key),
            Some((head, hash)) if hash.len() == HASH_LEN - 1 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
                may_match(&self.0, head)
            }
            Some(_) => false,
        }
    }
}

/// Whether `pattern` matches `text`. Each piece between two stars is looked for once, at the first place there is, so the
/// work grows with the length of the text and no faster.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let inner = text.strip_prefix(start).and_then(|text| text.strip_suffix(end));
    let mut pieces = middle.split('*');
    let left = inner.and_then(|inner| pieces.try_fold(inner, |text, piece| Some(text.split_once(piece)?.1)));
    left.is_some()
}

/// Whether `pattern` matches some text that begins with `head`. After a `*` anything may follow.
fn may_match(pattern: &str, head: &str) -> bool {
    let (start, is_open) = pattern.split_once('*').map_or((pattern, false), |(start, _)| (start, true));
    start.starts_with(head) || (is_open && head.starts_with(start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(pattern: &str) -> Glob {
        match parse(pattern).unwrap() {
            Pattern::Keys(glob) => glob,
            other => panic!("{pattern} is {other:?}"),
        }
    }

    #[test]
    fn whole_tenants_and_keyspaces_are_recognised() {
        assert_eq!(parse("*").unwrap(), Pattern::Scope);
        assert_eq!(parse("**").unwrap(), Pattern::Scope);
        assert_eq!(parse("workflow_def:*").unwrap(), Pattern::Keyspace("workflow_def".into()));
        assert_eq!(parse("workflow*:*").unwrap(), Pattern::Keys(Glob("workflow*:*".into())));
        assert!(parse("").is_err());
    }

    #[test]
    fn only_the_star_is_a_wildcard() {
        let glob = glob("api:a?[b]*");
        assert!(glob.covers("api:a%3F%5Bb%5Dxyz"));
        assert!(!glob.covers("api:axb"));
        assert_eq!(glob.scan_match("cache:tenant:acme:"), "cache:tenant:acme:api:a%3F%5Bb%5D*");
    }

    #[test]
    fn stars_match_any_text_and_backtrack() {
        for (pattern, key, covered) in [
            ("a:*b*c", "a:xxbyybc", true),
            ("a:*b*c", "a:xxbyy", false),
            ("a:x", "a:x", true),
            ("a:x", "a:xy", false),
            ("*:x", "a:b:x", true),
            ("a*", "a:anything", true),
        ] {
            assert_eq!(glob(pattern).covers(key), covered, "{pattern} {key}");
        }
    }

    #[test]
    fn auxiliary_keys_are_never_covered_and_hashed_keys_by_their_head() {
        let hash = "0".repeat(64);
        let glob = glob("api:abc*xyz");
        assert!(glob.covers(&format!("api:abcdef~{hash}")));
        assert!(glob.covers(&format!("api:ab~{hash}")));
        assert!(!glob.covers(&format!("api:abd~{hash}")));
        assert!(!glob.covers("api:abc-xyz~l"));
        assert!(!glob.covers(&format!("api:abcxyz~{hash}~l")));
        assert!(!glob.covers("api:~g"));
    }

    #[test]
    fn a_pattern_over_keys_of_no_tenant_spares_every_tenant() {
        assert!(glob("*x").covers("api:x"));
        assert!(!glob("*x").covers("tenant:acme:api:x"));
    }

    #[test]
    fn a_scan_never_leaves_its_tenant() {
        let long = format!("api:{}*", "x".repeat(500));
        for pattern in ["*x", "a*", "api:a*", &long] {
            let scope = "cache:tenant:acme:";
            assert!(glob(pattern).scan_match(scope).starts_with(scope));
            assert!(glob(pattern).scan_match(scope).len() <= MAX_PLAIN);
        }
    }

    #[test]
    fn a_pattern_too_long_says_what_is_allowed() {
        for pattern in ["x".repeat(513), "é".repeat(100), "*x".repeat(1_000_000)] {
            let error = parse(&pattern).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey);
            assert!(error.to_string().contains("512"), "{error}");
        }
        assert!(parse(&"x".repeat(512)).is_ok());
    }

    /// All ways to match, one by one.
    fn reference(pattern: &str, text: &str) -> bool {
        match (pattern.chars().next(), text.chars().next()) {
            (None, None) => true,
            (Some('*'), _) => reference(&pattern[1..], text) || (!text.is_empty() && reference(pattern, &text[1..])),
            (Some(a), Some(b)) => a == b && reference(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_it_says(pattern in "[ab*]{0,6}", text in "[ab]{0,6}", tail in "[ab]{0,6}") {
            prop_assert_eq!(matches(&pattern, &text), reference(&pattern, &text));
            let whole = text.clone() + &tail;
            prop_assert!(may_match(&pattern, &text) || !reference(&pattern, &whole));
        }
    }
}
