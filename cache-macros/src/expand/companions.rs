//! The companions of a cached function: what one can do with its value beside asking for it.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::FnArg;
use syn::ext::IdentExt;

use super::{Expansion, plain_argument};

/// The companions, as associated functions.
pub(super) fn expand(expansion: &Expansion<'_>) -> TokenStream {
    let companions =
        [invalidate(expansion), refresh(expansion), peek(expansion), put(expansion), key(expansion), ttl(expansion)];
    companions.into_iter().collect()
}

fn invalidate(expansion: &Expansion<'_>) -> TokenStream {
    let door = &expansion.door;
    let body = quote_spanned!(Span::mixed_site()=> call.invalidate().await);
    let documentation = format!(
        "Removes the value of `{}` for these arguments, in every process.\n\n\
         Takes the arguments that are in the key. `Applied`: no value fetched before this call began is stored any more. \
         `Pending`: Redis could not be told, and other processes may still have it.",
        name(expansion)
    );
    expansion.companion(&documentation, quote!(invalidate), None, quote!(#door::Invalidated), &body)
}

fn refresh(expansion: &Expansion<'_>) -> TokenStream {
    let Expansion { model, visibility, .. } = expansion;
    let output = &model.output;
    let documentation = format!(
        "Removes the stored value of `{}`, fetches it anew and stores that.\n\n\
         Takes all arguments. Returns what the function returned; after an error nothing is stored.",
        name(expansion)
    );
    let generics = &model.item.signature.generics;
    let clause = &generics.where_clause;
    let arguments = model.roles.inputs.iter().map(plain_argument);
    let holder = quote!(Self);
    let (shape, call) = (expansion.shape(&holder), expansion.call(&holder));
    let fetch = expansion.fetch_call(&holder);
    let allowances = expansion.allowances();
    quote_spanned! {Span::mixed_site()=>
        #[doc = #documentation]
        #allowances
        #visibility async fn refresh #generics(#(#arguments),*) -> #output #clause {
            #call
            call.refresh::<#output, _, _>(#shape, #fetch).await
        }
    }
}

fn peek(expansion: &Expansion<'_>) -> TokenStream {
    let output = &expansion.model.output;
    let documentation = format!(
        "What `{}` would return from the cache for these arguments, `None` where it would fetch.\n\n\
         Takes the arguments that are in the key. Never runs the function.",
        name(expansion)
    );
    let shape = expansion.shape(&quote!(Self));
    let body = quote_spanned!(Span::mixed_site()=> call.peek::<#output, _>(#shape).await);
    let result = quote!(::core::option::Option<#output>);
    expansion.companion(&documentation, quote!(peek), None, result, &body)
}

fn put(expansion: &Expansion<'_>) -> TokenStream {
    let (door, output) = (&expansion.door, &expansion.model.output);
    let documentation = format!(
        "Stores `value` as what `{}` returned for these arguments.\n\n\
         Takes the arguments that are in the key, then the value: as the function returns it, or the success value \
         alone.\n\n# Errors\n\nWhere the value cannot be stored, \
         or not under this key; the older value is removed where it can be.",
        name(expansion)
    );
    let shape = expansion.shape(&quote!(Self));
    let body = quote_spanned!(Span::mixed_site()=> call.put::<#output, _, _>(#shape, value).await);
    let value = quote_spanned!(Span::mixed_site()=> value: impl #door::Put<#output>);
    let result = quote!(::core::result::Result<(), #door::Error>);
    expansion.companion(&documentation, quote!(put), Some(value), result, &body)
}

fn key(expansion: &Expansion<'_>) -> TokenStream {
    let Expansion { door, visibility, plan, .. } = expansion;
    let documentation = format!(
        "The key of `{}` for these arguments, as it stands in Redis.\n\n\
         Takes the arguments that are in the key.\n\n# Errors\n\nWhere an argument makes no key, such as NaN.",
        name(expansion)
    );
    let generics = &plan.companion_generics;
    let clause = &generics.where_clause;
    let arguments = expansion.companion_arguments();
    let call = expansion.call(&quote!(Self));
    let allowances = expansion.allowances();
    quote_spanned! {Span::mixed_site()=>
        #[doc = #documentation]
        #allowances
        #visibility fn key #generics(
            #(#arguments),*
        ) -> ::core::result::Result<#door::String, #door::Error> #clause {
            #call
            call.key()
        }
    }
}

fn ttl(expansion: &Expansion<'_>) -> TokenStream {
    let (door, output) = (&expansion.door, &expansion.model.output);
    let shape = expansion.shape(&quote!(Self));
    let documentation = format!(
        "How long the value of `{}` for these arguments still lives, `None` where there is none.\n\n\
         Takes the arguments that are in the key.\n\n# Errors\n\nWhere the cache cannot be asked.",
        name(expansion)
    );
    let body = quote_spanned!(Span::mixed_site()=> call.ttl::<#output, _>(#shape).await);
    let result = quote! {
        ::core::result::Result<::core::option::Option<::core::time::Duration>, #door::Error>
    };
    expansion.companion(&documentation, quote!(ttl), None, result, &body)
}

fn name(expansion: &Expansion<'_>) -> String {
    expansion.model.item.signature.ident.unraw().to_string()
}

impl Expansion<'_> {
    /// An async companion over the arguments in the key, and perhaps a `last` one.
    fn companion(
        &self,
        documentation: &str,
        name: TokenStream,
        last: Option<TokenStream>,
        result: TokenStream,
        body: &TokenStream,
    ) -> TokenStream {
        let Self { visibility, plan, .. } = self;
        let generics = &plan.companion_generics;
        let clause = &generics.where_clause;
        let arguments = self.companion_arguments();
        let last = last.into_iter();
        let call = self.call(&quote!(Self));
        let allowances = self.allowances();
        quote_spanned! {Span::mixed_site()=>
            #[doc = #documentation]
            #allowances
            #visibility async fn #name #generics(#(#arguments,)* #(#last)*) -> #result #clause {
                #call
                #body
            }
        }
    }

    fn companion_arguments(&self) -> Vec<FnArg> {
        let inputs = &self.model.roles.inputs;
        let places = self.plan.companion_inputs.iter();
        places.map(|place| plain_argument(&inputs[*place])).collect()
    }
}
