//! Rules for the function itself.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::{FnArg, Pat, PatType, ReturnType, Signature, Type};

use crate::item::Item;
use crate::mistakes::Mistakes;
use crate::words::words;

/// One argument of the function.
pub(crate) struct Input {
    /// What the generated functions call it.
    pub(crate) name: Ident,
    /// The user gave it that name, so attribute arguments may use it.
    pub(crate) is_named: bool,
    /// Pattern, type and attributes as written: what the body sees.
    pub(crate) declared: PatType,
    pub(crate) role: Role,
    /// The tenant's, the cache's or the tags' expression may read it.
    pub(crate) is_read: bool,
}

/// What an argument is to the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Part of the identifier.
    Key,
    /// The tenant, and nothing else.
    Tenant,
    /// The cache, and nothing else.
    Cache,
    /// For the body alone.
    Skipped,
}

impl Input {
    /// Its type.
    pub(crate) fn ty(&self) -> &Type {
        &self.declared.ty
    }

    /// The companions need it: it is in the key, or it leads to the tenant or the cache.
    pub(crate) fn is_in_companions(&self) -> bool {
        self.is_read || self.role != Role::Skipped
    }
}

/// Checks everything but the arguments' roles; gives the arguments and the type of the value.
pub(super) fn check(item: &Item, mistakes: &mut Mistakes) -> (Vec<Input>, Type) {
    let signature = &item.signature;
    if let Some(receiver) = signature.receiver() {
        let message = "methods are not supported yet: move the body to a free `async fn`, \
                       call it from here, and `skip(..)` what is not part of the key";
        mistakes.on(receiver, message);
    } else if words(&signature.inputs).contains("Self") || words(&signature.output).contains("Self") {
        let message =
            "associated functions are not supported yet: move the body to a free `async fn` and name the type";
        mistakes.on(&signature.ident, message);
    }
    qualifiers(signature, mistakes);
    (inputs(signature, mistakes), output(signature, mistakes))
}

/// The companions are a type of the function's name, which would hide a primitive type in the whole module.
pub(super) fn expect_free_type_name(name: &Ident, mistakes: &mut Mistakes) {
    let primitives = ["bool", "char", "str", "f32", "f64"];
    let integers = ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize"];
    if primitives.iter().chain(&integers).any(|primitive| name == primitive) {
        let message = format!(
            "the companions of `{name}` would hide the primitive type: \
             name them, as in `companions = Companions`, or write `companions = false`"
        );
        mistakes.on(name, message);
    }
}

fn qualifiers(signature: &Signature, mistakes: &mut Mistakes) {
    if signature.asyncness.is_none() {
        let message = format!("a cached function waits for the cache: make it `async fn {}`", signature.ident);
        mistakes.at(signature.fn_token.span, message);
    }
    let refused = [
        signature.constness.map(|token| ("const", token.span)),
        signature.unsafety.map(|token| ("unsafe", token.span)),
        signature.abi.as_ref().map(|abi| ("extern", abi.extern_token.span)),
    ];
    for (word, span) in refused.into_iter().flatten() {
        let message = format!(
            "#[cached] does not take `{word}` functions: remove `{word}`, or cache a safe `async fn` around it"
        );
        mistakes.at(span, message);
    }
    if let Some(variadic) = &signature.variadic {
        mistakes.on(variadic, "#[cached] does not take variadic functions");
    }
}

fn inputs(signature: &Signature, mistakes: &mut Mistakes) -> Vec<Input> {
    let typed = signature.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(declared) => Some(declared),
        FnArg::Receiver(_) => None,
    });
    let inputs = typed.enumerate().map(|(index, declared)| {
        for attribute in &declared.attrs {
            if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
                let message =
                    "an argument under `cfg` would change the key: put the `cfg` on two versions of the function";
                mistakes.on(attribute, message);
            }
        }
        let (name, is_named) = match &*declared.pat {
            Pat::Ident(pattern) => (pattern.ident.clone(), true),
            _ => (format_ident!("__cached_arg{index}", span = Span::mixed_site()), false),
        };
        Input { name, is_named, declared: declared.clone(), role: Role::Key, is_read: false }
    });
    inputs.collect()
}

fn output(signature: &Signature, mistakes: &mut Mistakes) -> Type {
    let ReturnType::Type(_, output) = &signature.output else {
        let message =
            format!("`{}` returns nothing, so there is nothing to cache: give it a return type", signature.ident);
        mistakes.on(&signature.ident, message);
        return Type::Verbatim(signature.output.to_token_stream());
    };
    let nothing = matches!(&**output, Type::Tuple(tuple) if tuple.elems.is_empty());
    if nothing || matches!(**output, Type::Never(_)) {
        let message = "there is nothing to cache in this type: return a value";
        mistakes.on(output, message);
    } else if words(output).contains("impl") {
        let message = "a cached value needs a type with a name: replace `impl Trait`";
        mistakes.on(output, message);
    } else if let Some(borrow) = find_borrow(output.to_token_stream())
        && !has_functions(output)
    {
        let message = "a cached value outlives the call, so it cannot borrow: \
                       return an owned type such as `String`, `Vec<_>` or `Arc<_>`";
        mistakes.on(borrow, message);
    }
    (**output).clone()
}

/// The first reference or lifetime that is not `'static`.
fn find_borrow(tokens: TokenStream) -> Option<TokenStream> {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let found = match token {
            TokenTree::Punct(mark) if mark.as_char() == '&' => {
                let has_lifetime = tokens.peek().is_some_and(is_lifetime);
                (!has_lifetime).then(|| mark.to_token_stream())
            }
            TokenTree::Punct(mark) if mark.as_char() == '\'' => {
                let name = tokens.next().filter(|name| name.to_string() != "static");
                name.map(|name| quote!(#mark #name))
            }
            TokenTree::Group(group) => find_borrow(group.stream()),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn is_lifetime(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(mark) if mark.as_char() == '\'')
}

/// The type has functions in it, whose own borrows (`fn(&str) -> u8`) are not the value's.
fn has_functions(output: &Type) -> bool {
    let words = words(output);
    ["fn", "Fn", "FnMut", "FnOnce", "for"].iter().any(|word| words.contains(*word))
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;
    use crate::testing::messages;

    fn found(item: TokenStream) -> Vec<String> {
        let mut mistakes = Mistakes::default();
        check(&syn::parse2(item).unwrap(), &mut mistakes);
        messages(mistakes)
    }

    #[test]
    fn free_async_functions_with_owned_values_pass() {
        let right = [
            quote!(
                async fn f(a: &str, mut b: u8, (c, d): (u8, u8), _: u8) -> Result<Arc<T>, E> {}
            ),
            quote!(
                pub async fn f<'a, T: X<'a>>(a: &'a T) -> Vec<&'static str> {}
            ),
            quote!(
                async fn f() -> Cow<'static, [u8]> {}
            ),
            quote!(
                async fn f() -> fn(&str) -> u8 {}
            ),
        ];
        for item in right {
            assert_eq!(found(item), Vec::<String>::new());
        }
    }

    #[test]
    fn each_wrong_function_has_one_message() {
        let wrong = [
            (
                quote!(
                    fn f() -> u8 {}
                ),
                "make it `async fn f`",
            ),
            (
                quote!(
                    async fn f(&self) -> u8 {}
                ),
                "methods are not supported",
            ),
            (
                quote!(
                    async fn f(x: u8) -> Self {}
                ),
                "associated functions are not supported",
            ),
            (
                quote!(
                    async unsafe fn f() -> u8 {}
                ),
                "remove `unsafe`",
            ),
            (
                quote!(
                    async extern "C" fn f() -> u8 {}
                ),
                "remove `extern`",
            ),
            (
                quote!(
                    const async fn f() -> u8 {}
                ),
                "remove `const`",
            ),
            (
                quote!(
                    async fn f() {}
                ),
                "returns nothing",
            ),
            (
                quote!(
                    async fn f() -> () {}
                ),
                "nothing to cache",
            ),
            (
                quote!(
                    async fn f() -> ! {}
                ),
                "nothing to cache",
            ),
            (
                quote!(
                    async fn f() -> impl Display {}
                ),
                "replace `impl Trait`",
            ),
            (
                quote!(
                    async fn f() -> Option<impl Display> {}
                ),
                "replace `impl Trait`",
            ),
            (
                quote!(
                    async fn f(a: &str) -> &str {}
                ),
                "cannot borrow",
            ),
            (
                quote!(
                    async fn f(a: &str) -> (u8, [&str; 2]) {}
                ),
                "cannot borrow",
            ),
            (
                quote!(
                    async fn f<'a>(a: &'a str) -> Cow<'a, str> {}
                ),
                "cannot borrow",
            ),
            (
                quote!(
                    async fn f(#[cfg(unix)] a: u8) -> u8 {}
                ),
                "two versions of the function",
            ),
        ];
        for (item, expected) in wrong {
            let found = found(item.clone());
            assert_eq!(found.len(), 1, "{item}: {found:?}");
            assert!(found[0].contains(expected), "{item}: {found:?}");
        }
    }
}
