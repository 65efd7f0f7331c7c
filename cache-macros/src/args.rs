//! Tokens of the attribute → [`Args`]: what was written, each argument at most once, not yet judged.
//!
//! A mistake in one argument does not hide the next one: the parser goes on behind the next comma.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Expr, Token};

use crate::mistakes::Mistakes;

/// Every argument with an example of its use, in the order of the manual.
const ARGUMENTS: [(&str, &str); 14] = [
    ("ttl", "ttl = \"5m\""),
    ("profile", "profile = WORKFLOW_DEF"),
    ("key_prefix", "key_prefix = \"api\""),
    ("key", "key = \"{id}\""),
    ("skip", "skip(db)"),
    ("tenant", "tenant = tenant_id"),
    ("tags", "tags = [\"plan\"]"),
    ("cache", "cache = cache"),
    ("jitter", "jitter = 0.1"),
    ("negative_ttl", "negative_ttl = \"10s\""),
    ("version", "version = 2"),
    ("schema", "schema = \"report\""),
    ("companions", "companions = false"),
    ("crate", "crate = \"my_cache\""),
];

/// One argument: its keyword, kept for its span, and its value.
pub(crate) struct Given<T> {
    pub(crate) keyword: Ident,
    pub(crate) value: T,
}

/// The arguments as written.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) ttl: Option<Given<Expr>>,
    pub(crate) profile: Option<Given<Expr>>,
    pub(crate) key_prefix: Option<Given<Expr>>,
    pub(crate) key: Option<Given<Expr>>,
    pub(crate) skip: Option<Given<Vec<Ident>>>,
    pub(crate) tenant: Option<Given<Expr>>,
    pub(crate) tags: Option<Given<Expr>>,
    pub(crate) cache: Option<Given<Expr>>,
    pub(crate) jitter: Option<Given<Expr>>,
    pub(crate) negative_ttl: Option<Given<Expr>>,
    pub(crate) version: Option<Given<Expr>>,
    pub(crate) schema: Option<Given<Expr>>,
    pub(crate) companions: Option<Given<Expr>>,
    pub(crate) krate: Option<Given<Expr>>,
    /// An argument could not be read, so that its absence says nothing.
    pub(crate) incomplete: bool,
}

impl Args {
    /// Reads the tokens between the parentheses of the attribute.
    pub(crate) fn parse(tokens: TokenStream, mistakes: &mut Mistakes) -> Self {
        let mut args = Self::default();
        let read = |input: ParseStream<'_>| {
            while !input.is_empty() {
                let result = args.read_one(input).and_then(|()| read_comma(input));
                if mistakes.keep(result).is_none() {
                    args.incomplete = true;
                    skip_behind_comma(input)?;
                }
            }
            Ok(())
        };
        let result = read.parse2(tokens);
        mistakes.keep(result);
        args
    }

    fn read_one(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        if !input.peek(syn::Ident::peek_any) {
            return Err(input.error(format!("expected an argument name: {}", names())));
        }
        let keyword = Ident::parse_any(input)?;
        if keyword == "skip" {
            let value = read_skip(&keyword, input)?;
            return set(&mut self.skip, keyword, value);
        }
        let Some(slot) = self.slot(&keyword) else {
            return Err(unknown(&keyword));
        };
        let value = read_value(&keyword, input)?;
        set(slot, keyword, value)
    }

    fn slot(&mut self, keyword: &Ident) -> Option<&mut Option<Given<Expr>>> {
        Some(match keyword.to_string().as_str() {
            "ttl" => &mut self.ttl,
            "profile" => &mut self.profile,
            "key_prefix" => &mut self.key_prefix,
            "key" => &mut self.key,
            "tenant" => &mut self.tenant,
            "tags" => &mut self.tags,
            "cache" => &mut self.cache,
            "jitter" => &mut self.jitter,
            "negative_ttl" => &mut self.negative_ttl,
            "version" => &mut self.version,
            "schema" => &mut self.schema,
            "companions" => &mut self.companions,
            "crate" => &mut self.krate,
            _ => return None,
        })
    }
}

/// Fills an argument that may be given once.
fn set<T>(slot: &mut Option<Given<T>>, keyword: Ident, value: T) -> syn::Result<()> {
    if slot.is_some() {
        let message = format!("`{keyword}` is given twice: remove one of the two");
        return Err(syn::Error::new(keyword.span(), message));
    }
    *slot = Some(Given { keyword, value });
    Ok(())
}

fn read_value(keyword: &Ident, input: ParseStream<'_>) -> syn::Result<Expr> {
    let example = example(keyword);
    if !input.peek(Token![=]) {
        let message = format!("`{keyword}` needs a value: write `{example}`");
        return Err(syn::Error::new(keyword.span(), message));
    }
    input.parse::<Token![=]>()?;
    if input.is_empty() || input.peek(Token![,]) {
        let message = format!("`{keyword} =` has no value: write `{example}`");
        return Err(syn::Error::new(keyword.span(), message));
    }
    input.parse().map_err(|error| {
        let message = format!("cannot read the value of `{keyword}`: {error}; write `{example}`");
        syn::Error::new(error.span(), message)
    })
}

fn read_skip(keyword: &Ident, input: ParseStream<'_>) -> syn::Result<Vec<Ident>> {
    if !input.peek(syn::token::Paren) {
        let message = "`skip` takes names of arguments in parentheses: write `skip(db)`";
        return Err(syn::Error::new(keyword.span(), message));
    }
    let content;
    syn::parenthesized!(content in input);
    let names = Punctuated::<Ident, Token![,]>::parse_terminated_with(&content, Ident::parse_any);
    let names = names.map_err(|error| {
        let message = "`skip` takes names of arguments, separated by commas: write `skip(db, log)`";
        syn::Error::new(error.span(), message)
    })?;
    if names.is_empty() {
        let message = "`skip()` names no argument: name one, as in `skip(db)`, or remove it";
        return Err(syn::Error::new(keyword.span(), message));
    }
    Ok(names.into_iter().collect())
}

fn read_comma(input: ParseStream<'_>) -> syn::Result<()> {
    if !input.is_empty() {
        input.parse::<Token![,]>()?;
    }
    Ok(())
}

fn skip_behind_comma(input: ParseStream<'_>) -> syn::Result<()> {
    while !input.is_empty() {
        if matches!(input.parse()?, TokenTree::Punct(punct) if punct.as_char() == ',') {
            break;
        }
    }
    Ok(())
}

fn unknown(keyword: &Ident) -> syn::Error {
    let found = keyword.to_string();
    let nearest = ARGUMENTS
        .iter()
        .map(|(name, example)| (distance(&found, name), example))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= 2);
    let hint = match nearest {
        Some((_, example)) => format!("did you mean `{example}`?"),
        None => format!("expected one of {}", names()),
    };
    syn::Error::new(keyword.span(), format!("unknown argument `{found}`: {hint}"))
}

fn names() -> String {
    let names: Vec<_> = ARGUMENTS.iter().map(|(name, _)| format!("`{name}`")).collect();
    names.join(", ")
}

fn example(keyword: &Ident) -> &'static str {
    let known = ARGUMENTS.iter().find(|(name, _)| keyword == name);
    known.map_or("", |(_, example)| example)
}

/// Edit distance by Wagner and Fischer, one row at a time.
fn distance(found: &str, wanted: &str) -> usize {
    let wanted: Vec<char> = wanted.chars().collect();
    let mut row: Vec<usize> = (0..=wanted.len()).collect();
    for (line, letter) in found.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, other) in wanted.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[wanted.len()]
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;
    use crate::testing::messages;

    fn parse(tokens: TokenStream) -> (Args, Vec<String>) {
        let mut mistakes = Mistakes::default();
        let args = Args::parse(tokens, &mut mistakes);
        (args, messages(mistakes))
    }

    #[test]
    fn every_argument_of_the_table_is_read() {
        for (name, example) in ARGUMENTS {
            let tokens: TokenStream = example.parse().unwrap();
            assert_eq!(parse(tokens).1, Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn a_mistake_does_not_hide_the_next_argument() {
        let (args, found) = parse(quote!(jiter = 0.1, ttl, ttl = 5, ttl = 6, version = ));
        assert!(args.ttl.is_some() && args.incomplete);
        assert_eq!(
            found,
            [
                "unknown argument `jiter`: did you mean `jitter = 0.1`?",
                "`ttl` needs a value: write `ttl = \"5m\"`",
                "`ttl` is given twice: remove one of the two",
                "`version =` has no value: write `version = 2`",
            ]
        );
    }

    #[test]
    fn commas_inside_an_expression_belong_to_it() {
        let (args, found) = parse(quote!(ttl = pick::<A, B>(1, 2), skip(a, r#type,)));
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(args.skip.unwrap().value.len(), 2);
    }

    #[test]
    fn skip_says_how_it_is_written() {
        assert!(parse(quote!(skip = db)).1[0].contains("write `skip(db)`"));
        assert!(parse(quote!(skip())).1[0].contains("names no argument"));
        assert!(parse(quote!(skip(a.b))).1[0].contains("names of arguments"));
        assert!(parse(quote!("text")).1[0].contains("expected an argument name"));
        assert!(parse(quote!(prefix = "a")).1[0].contains("expected one of `ttl`, `profile`"));
    }
}
