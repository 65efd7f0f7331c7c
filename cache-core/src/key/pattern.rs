//! Patterns over `profile:identifier`, with `*` as the only wildcard.

use super::{HASH_LEN, MAX_PLAIN, segment::encode};
use crate::error::{Error, ErrorKind};

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
pub(crate) fn parse(pattern: &str) -> Result<Pattern, Error> {
    if pattern.is_empty() {
        let message = "pattern is empty; give `profile:identifier` with `*` as wildcard, or `*` for the whole tenant";
        return Err(Error::new(ErrorKind::InvalidKey, message));
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
            None => matches(self.0.as_bytes(), key.as_bytes(), false),
            Some((head, hash)) if hash.len() == HASH_LEN - 1 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
                matches(self.0.as_bytes(), head.as_bytes(), true)
            }
            Some(_) => false,
        }
    }
}

/// Whether `pattern` matches `text`, or, where only the head of the text is known, may match a text starting so.
fn matches(pattern: &[u8], text: &[u8], head_only: bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                // After a `*` anything may follow an unknown tail.
                Some(_) if head_only => return true,
                Some((after, from)) => {
                    p = after;
                    t = from + 1;
                    retry = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    head_only || pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
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
}
