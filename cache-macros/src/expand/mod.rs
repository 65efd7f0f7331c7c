//! A checked model → the code in its place. Nothing can fail here.
//!
//! ```text
//! async fn NAME(arguments) -> R    the call: key, near tier, then the read path with `__fetch` as its fetch
//! struct NAME {}                   carries what belongs to the function:
//!   __fetch                          the body, once, with the signature as written
//!   __site, __key, __shape           what a call is: its profile and origin, its identifier, its kind of value
//!   invalidate, refresh, …           the companions
//! ```
//!
//! Only paths below cache-core and `::core` are used. Generated locals are hygienic (`mixed_site`), so the expressions of
//! the user cannot see them. Where a compiler error is likely, the span is the user's type.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{FnArg, Pat, PatIdent, Visibility, parse_quote_spanned};

use crate::attributes::Attributes;
use crate::key_plan::KeyPlan;
use crate::model::{Companions, Input, Model, Role};

mod call;
mod companions;
mod key;
mod site;

/// The function, its companion type and all that belongs to it.
pub(crate) fn expand(model: &Model) -> TokenStream {
    let expansion = Expansion::new(model);
    let function = expansion.function();
    let holder = expansion.holder();
    quote!(#function #holder)
}

/// What the parts of the expansion share.
struct Expansion<'a> {
    model: &'a Model,
    plan: KeyPlan,
    attributes: Attributes,
    /// The path of the macro's door into cache-core.
    door: TokenStream,
    /// The type that carries what belongs to the function.
    holder: Ident,
    /// The function's visibility, for what is generated.
    visibility: TokenStream,
}

impl<'a> Expansion<'a> {
    fn new(model: &'a Model) -> Self {
        let name = &model.item.signature.ident;
        let krate = &model.krate;
        // The name is located at the user's, but counts as generated for lints such as `non_camel_case_types`.
        let (mut holder, visibility) = match &model.companions {
            Companions::Function => (name.clone(), &model.item.visibility),
            Companions::Named(chosen) => (chosen.clone(), &model.item.visibility),
            Companions::None => (format_ident!("__cached_{}", name.unraw()), &Visibility::Inherited),
        };
        holder.set_span(generated(name.span()));
        Self {
            model,
            plan: KeyPlan::of(model),
            attributes: Attributes::of(&model.item.attributes),
            door: quote!(#krate::__private),
            holder,
            visibility: respanned(visibility.to_token_stream()),
        }
    }

    /// The function that callers see: the arguments under plain names, the body replaced by the call.
    fn function(&self) -> TokenStream {
        let Self { attributes, holder, .. } = self;
        let item = &self.model.item;
        let (attributes, visibility, output) = (&attributes.outer, &item.visibility, &self.model.output);
        let mut signature = item.signature.clone();
        signature.inputs = self.model.roles.inputs.iter().map(plain_argument).collect();
        let holder = quote!(#holder);
        let (shape, call) = (self.shape(&holder), self.call(&holder));
        let fetch = self.fetch_call(&holder);
        let allowance = self.underscore_allowance();
        let statements = quote_spanned! {Span::mixed_site()=>
            let shape = #shape;
            #call
            if let ::core::option::Option::Some(hit) = call.near::<#output, _>(shape) {
                return hit;
            }
            call.run::<#output, _, _>(shape, #fetch).await
        };
        // With the user's braces it is the user's function, to which lints such as `dead_code` and `missing_docs` apply.
        let mut body = Group::new(Delimiter::Brace, statements);
        body.set_span(item.body.span());
        quote!(#(#attributes)* #allowance #visibility #signature #body)
    }

    /// The companion type with everything that belongs to the function.
    fn holder(&self) -> TokenStream {
        let Self { attributes, holder, visibility, .. } = self;
        let name = self.model.item.signature.ident.unraw();
        let (cfg, lints) = (&attributes.cfg, &attributes.lints);
        let (hidden, companions) = match self.model.companions {
            Companions::None => (Some(quote!(#[doc(hidden)])), None),
            _ => (None, Some(companions::expand(self))),
        };
        let documentation = format!("What belongs to the cached function `{name}`: its companions.");
        let (profile, site, key) = (self.profile(), self.site(), self.key());
        let (shape, fetch) = (self.shape_function(), self.fetch());
        quote! {
            #(#cfg)*
            #[doc = #documentation]
            #hidden
            #visibility struct #holder {}

            #(#cfg)*
            #(#lints)*
            impl #holder {
                #profile
                #site
                #key
                #shape
                #fetch
                #companions
            }
        }
    }

    /// `__fetch`: the body, in a function whose signature is the user's, so that the compiler speaks of that one.
    fn fetch(&self) -> TokenStream {
        let mut signature = self.model.item.signature.clone();
        signature.ident = Ident::new("__fetch", generated(signature.ident.span()));
        // `async` is what the attribute asks for, so a body without `.await` is no mistake.
        signature.asyncness = Some(syn::token::Async(generated(Span::call_site())));
        let inputs = self.model.roles.inputs.iter();
        signature.inputs = inputs.map(declared_argument).collect();
        let body = &self.model.item.body;
        quote!(#signature #body)
    }

    /// What clippy would say of generated functions on account of the user's signature.
    fn allowances(&self) -> TokenStream {
        // One may have an argument more than the function.
        let many = self.model.roles.inputs.len() > 6;
        let many = many.then(|| quote!(#[allow(clippy::too_many_arguments)]));
        let underscore = self.underscore_allowance();
        quote!(#many #underscore)
    }

    /// `_name` says that the body does not use the argument; the key does.
    fn underscore_allowance(&self) -> Option<TokenStream> {
        let mut inputs = self.model.roles.inputs.iter();
        let found = inputs.any(|input| input.name.to_string().starts_with('_'));
        found.then(|| quote!(#[allow(clippy::used_underscore_binding)]))
    }
}

/// The argument as written. The tenant is used even where the body does without it.
fn declared_argument(input: &Input) -> FnArg {
    let mut argument = input.declared.clone();
    if input.is_read || input.role == Role::Tenant {
        argument.attrs.push(parse_quote_spanned!(generated(argument.ty.span())=> #[allow(unused_variables)]));
    }
    FnArg::Typed(argument)
}

/// `name: Type`, for a function that passes the argument on.
fn plain_argument(input: &Input) -> FnArg {
    let mut argument = input.declared.clone();
    argument.attrs.clear();
    argument.pat = Box::new(Pat::Ident(PatIdent {
        attrs: Vec::new(),
        by_ref: None,
        mutability: None,
        ident: input.name.clone(),
        subpat: None,
    }));
    FnArg::Typed(argument)
}

/// `span`'s place with the hygiene of generated code, which lints leave alone.
fn generated(span: Span) -> Span {
    Span::call_site().located_at(span)
}

fn respanned(tokens: TokenStream) -> TokenStream {
    let tokens = tokens.into_iter().map(|mut token| {
        if let TokenTree::Group(group) = &token {
            token = Group::new(group.delimiter(), respanned(group.stream())).into();
        }
        token.set_span(generated(token.span()));
        token
    });
    tokens.collect()
}

#[cfg(test)]
mod tests {
    use syn::{File, ImplItem, Item};

    use super::*;
    use crate::model;

    fn expanded(args: TokenStream, item: TokenStream) -> File {
        let model = model::check(args, item).unwrap_or_else(|error| panic!("{error}"));
        syn::parse2(expand(&model)).expect("code that parses")
    }

    /// The functions of the companion type with their visibility.
    fn functions(file: &File) -> Vec<String> {
        let impls = file.items.iter().filter_map(|item| match item {
            Item::Impl(item) => Some(&item.items),
            _ => None,
        });
        let functions = impls.flatten().filter_map(|item| match item {
            ImplItem::Fn(function) => Some(function),
            _ => None,
        });
        let signature = |function: &syn::ImplItemFn| {
            let visibility = function.vis.to_token_stream();
            format!("{visibility} {}({})", function.sig.ident, function.sig.inputs.to_token_stream())
        };
        functions.map(|function| signature(function).replace(' ', "").replace(",)", ")")).collect()
    }

    #[test]
    fn companions_take_what_they_need_and_are_as_visible_as_the_function() {
        let file = expanded(
            quote!(ttl = 1, skip(db)),
            quote!(
                pub(crate) async fn load(mut id: u8, tenant_id: &str, db: &Db) -> u8 {}
            ),
        );
        let key = "id:u8,tenant_id:&str";
        let expected = [
            String::from("__site()"),
            String::from("__key(writer:&mut::cache_core::__private::KeyWriter,id:&u8)"),
            String::from("__shape()"),
            String::from("__fetch(mutid:u8,#[allow(unused_variables)]tenant_id:&str,db:&Db)"),
            format!("pub(crate)invalidate({key})"),
            format!("pub(crate)refresh({key},db:&Db)"),
            format!("pub(crate)peek({key})"),
            format!("pub(crate)put({key},value:impl::cache_core::__private::Put<u8>)"),
            format!("pub(crate)key({key})"),
            format!("pub(crate)ttl({key})"),
        ];
        assert_eq!(functions(&file), expected);
    }

    #[test]
    fn without_companions_the_type_is_private_and_hidden() {
        let file = expanded(
            quote!(profile = P, companions = false),
            quote!(
                pub async fn r#type() -> u8 {}
            ),
        );
        assert_eq!(
            functions(&file),
            ["__site()", "__key(writer:&mut::cache_core::__private::KeyWriter)", "__shape()", "__fetch()"]
        );
        let Item::Struct(holder) = &file.items[1] else { panic!("the companion type comes second") };
        assert_eq!(holder.ident, "__cached_type");
        assert!(matches!(holder.vis, Visibility::Inherited));
    }

    #[test]
    fn the_body_exists_once_and_paths_lead_through_the_given_crate() {
        let file = expanded(
            quote!(ttl = config().ttl, jitter = 0.5, negative_ttl = 1, crate = "my::cache", cache = app.cache),
            quote!(
                async fn load<T: Default>(app: App) -> Option<T> {
                    only_here()
                }
            ),
        );
        let text = file.to_token_stream().to_string();
        assert_eq!(text.matches("only_here").count(), 1);
        assert_eq!(text.matches("config ()").count(), 1);
        assert!(!text.contains("cache_core") && text.contains("my :: cache :: __private"), "{text}");
    }
}
