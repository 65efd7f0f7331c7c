//! Which names tokens mention. Macros see no scopes, so a mention may be one too many (a closure's own parameter), never
//! one too few.

use std::collections::HashSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
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

/// Whether a type names the parameter itself, and not only what belongs to it, as `T::Id` and `<T as Table>::Id` do.
pub(crate) fn names(ty: TokenStream, parameter: &str) -> bool {
    let mut tokens = ty.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let found = match token {
            TokenTree::Group(group) => names(group.stream(), parameter),
            TokenTree::Ident(word) if word == parameter => match tokens.peek() {
                Some(TokenTree::Punct(punct)) => punct.as_char() != ':',
                Some(TokenTree::Ident(word)) => word != "as",
                _ => true,
            },
            _ => false,
        };
        if found {
            return true;
        }
    }
    false
}

/// A hash (FNV-1a) of what tokens say: the same from every compiler, wherever they stand and however they are laid out.
pub(crate) fn hash(tokens: TokenStream) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    hash_into(tokens, &mut hash);
    hash
}

fn hash_into(tokens: TokenStream, hash: &mut u64) {
    let mut add = |text: &str, end: u8| {
        for byte in text.bytes().chain([end]) {
            *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let bracket = match group.delimiter() {
                    Delimiter::Parenthesis => "(",
                    Delimiter::Brace => "{",
                    Delimiter::Bracket => "[",
                    Delimiter::None => "",
                };
                add(bracket, 1);
                let mut inside = 0;
                hash_into(group.stream(), &mut inside);
                add(&inside.to_string(), 2);
            }
            TokenTree::Ident(word) => add(&word.to_string(), 3),
            TokenTree::Punct(punct) => add(&punct.as_char().to_string(), 4),
            TokenTree::Literal(literal) => add(&literal.to_string(), 5),
        }
    }
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
    fn a_hash_knows_tokens_and_not_their_places() {
        let (one, two) = ("fn f(a: u8) { a + 1 }", "fn f (\n a: u8 )\n{ a+1 }");
        let hash = |text: &str| hash(text.parse().unwrap());
        assert_eq!(hash(one), hash(two));
        for other in
            ["fn f(a: u8) { a + 2 }", "fn f(a: u8) { a; +1 }", "fn f(a: u8) { (a + 1) }", "fn f(a: u8, ) { a + 1 }"]
        {
            assert_ne!(hash(one), hash(other), "{other}");
        }
    }

    #[test]
    fn what_belongs_to_a_parameter_does_not_name_it() {
        for (ty, is_named) in [
            (quote!(T), true),
            (quote!(&Vec<(T, u8)>), true),
            (quote!(impl Fn(T::Id) -> T), true),
            (quote!(T::Id), false),
            (quote!(Option<<T as Table>::Id>), false),
            (quote!(Text), false),
        ] {
            assert_eq!(names(ty.clone(), "T"), is_named, "{ty}");
        }
    }

    #[test]
    fn lifetimes_are_words_of_their_own() {
        assert_eq!(sorted(words(quote!(&'a Vec<T>))), ["'a", "T", "Vec"]);
    }
}
