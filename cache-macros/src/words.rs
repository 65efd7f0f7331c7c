//! Which names tokens mention. Macros see no scopes, so a mention may be one too many (a closure's own parameter), never
//! one too few.

use std::collections::HashSet;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;

/// Every identifier and lifetime (`'a`) in `tokens`.
pub(crate) fn words(tokens: impl ToTokens) -> HashSet<String> {
    let mut found = HashSet::new();
    collect(tokens.into_token_stream(), &mut found, &mut |_, word| Some(word));
    found
}

/// Every name an expression may read from its surroundings: identifiers that are not behind a dot, and those in braces in
/// the string literals of formatting macros.
pub(crate) fn reads(tokens: impl ToTokens) -> HashSet<String> {
    let mut found = HashSet::new();
    collect(tokens.into_token_stream(), &mut found, &mut |before, word| (before != Some('.')).then_some(word));
    found
}

/// Walks through all groups; `select` is told the punctuation in front of a word (`..` counts as none).
fn collect(
    tokens: TokenStream,
    found: &mut HashSet<String>,
    select: &mut impl FnMut(Option<char>, String) -> Option<String>,
) {
    let mut before = None;
    for token in tokens {
        let previous = before.take();
        match token {
            TokenTree::Group(group) => collect(group.stream(), found, select),
            TokenTree::Ident(word) if previous == Some('\'') => {
                found.insert(format!("'{word}"));
            }
            TokenTree::Ident(word) => found.extend(select(previous, word.to_string())),
            TokenTree::Punct(punct) if punct.as_char() == '.' && previous == Some('.') => {}
            TokenTree::Punct(punct) => before = Some(punct.as_char()),
            TokenTree::Literal(literal) => {
                for name in captured(&literal.to_string()) {
                    found.insert(name);
                }
            }
        }
    }
}

/// Names in braces inside a string literal, as `format!("{id:?}")` captures them.
fn captured(literal: &str) -> Vec<String> {
    if !literal.ends_with(['"', '#']) {
        return Vec::new();
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let behind_braces = literal.split('{').skip(1);
    let names = behind_braces.map(|text| text.split(|c| !is_word(c)).next().unwrap_or_default());
    names.filter(|name| !name.is_empty()).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;

    fn sorted(words: HashSet<String>) -> Vec<String> {
        let mut words: Vec<_> = words.into_iter().collect();
        words.sort();
        words
    }

    #[test]
    fn a_field_is_not_a_read() {
        assert_eq!(sorted(reads(quote!(ctx.tenant.id(x)))), ["ctx", "x"]);
        assert_eq!(sorted(reads(quote!(0..end))), ["end"]);
        assert_eq!(sorted(reads(quote!(format!("{id}-{0}")))), ["0", "format", "id"]);
    }

    #[test]
    fn lifetimes_are_words_of_their_own() {
        assert_eq!(sorted(words(quote!(&'a Vec<T>))), ["'a", "T", "Vec"]);
    }
}
