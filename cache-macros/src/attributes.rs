//! Shares the attributes of the annotated function out to what is generated from it.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use syn::{Attribute, Meta};

/// The attributes, by their place.
#[derive(Default)]
pub(crate) struct Attributes {
    /// All of them: on the function that callers see.
    pub(crate) outer: Vec<TokenStream>,
    /// Lint levels: on the body and the companions, which repeat the signature.
    pub(crate) lints: Vec<TokenStream>,
    /// `cfg`: on the companions, which exist when the function does.
    pub(crate) cfg: Vec<TokenStream>,
}

impl Attributes {
    /// Shares out `attributes`.
    pub(crate) fn of(attributes: &[Attribute]) -> Self {
        let mut shared = Self::default();
        for attribute in attributes {
            let tokens = match is_expectation(attribute) {
                true => allowance(attribute),
                false => attribute.to_token_stream(),
            };
            if is_lint_level(attribute) {
                shared.lints.push(tokens.clone());
            } else if attribute.path().is_ident("cfg") {
                shared.cfg.push(tokens.clone());
            }
            shared.outer.push(tokens);
        }
        shared
    }
}

fn is_lint_level(attribute: &Attribute) -> bool {
    let path = attribute.path();
    let levels = ["allow", "warn", "deny", "forbid", "expect"];
    let is_clippy = path.segments.first().is_some_and(|first| first.ident == "clippy");
    is_clippy || levels.iter().any(|level| path.is_ident(level))
}

fn is_expectation(attribute: &Attribute) -> bool {
    attribute.path().is_ident("expect")
}

/// `expect` becomes `allow`: the lint fires on one of the two functions only, the other would report an unmet expectation.
fn allowance(attribute: &Attribute) -> TokenStream {
    let Meta::List(list) = &attribute.meta else {
        return attribute.to_token_stream();
    };
    let lints = &list.tokens;
    quote_spanned!(Span::call_site()=> #[allow(#lints)])
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn each_attribute_goes_where_it_belongs() {
        let attributes: Vec<Attribute> = vec![
            parse_quote!(#[doc = "text"]),
            parse_quote!(#[must_use]),
            parse_quote!(#[cfg(unix)]),
            parse_quote!(#[expect(clippy::all, reason = "r")]),
            parse_quote!(#[warn(dead_code)]),
        ];
        let shared = Attributes::of(&attributes);
        let texts = |part: &[TokenStream]| -> Vec<String> {
            part.iter().map(|tokens| tokens.to_string().replace(' ', "")).collect()
        };
        assert_eq!(shared.outer.len(), 5);
        assert_eq!(texts(&shared.cfg), ["#[cfg(unix)]"]);
        assert_eq!(texts(&shared.lints), ["#[allow(clippy::all,reason=\"r\")]", "#[warn(dead_code)]"]);
    }
}
