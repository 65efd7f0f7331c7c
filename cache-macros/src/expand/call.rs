//! The statements of one call: its shape, its cache, its key.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::Type;
use syn::spanned::Spanned;

use super::Expansion;
use crate::key_plan::{is_anonymous, turbofish};
use crate::model::{Input, Tenant};
use crate::words::reads;

impl Expansion<'_> {
    /// Statements that bind `call`, in a function that has the companions' arguments.
    pub(super) fn call(&self, holder: &TokenStream) -> TokenStream {
        let Self { door, plan, .. } = self;
        let cache = self.cache();
        let (of_site, of_key) = (turbofish(&plan.site_generics), turbofish(&plan.key_generics));
        let inputs = self.key_inputs();
        let names: Vec<&Ident> = inputs.iter().map(|input| &input.name).collect();
        let is_bound = self.model.roles.template.is_none();
        let anonymous = inputs.iter().filter(|input| is_bound && is_anonymous(input.ty())).map(|input| &input.name);
        let site = quote!(#holder::__site #of_site() #(.with_type_of(&#anonymous))*);
        let key = quote_spanned! {Span::mixed_site()=>
            |writer: &mut #door::KeyWriter| #holder::__key #of_key(writer, #(&#names),*)
        };
        let new = match &self.model.roles.tenant {
            Tenant::Global => quote!(#door::Call::global),
            Tenant::Of(_) => quote!(#door::Call::tenant),
        };
        let tenant = match &self.model.roles.tenant {
            Tenant::Global => None,
            Tenant::Of(expression) => {
                let span = expression.span().resolved_at(Span::mixed_site());
                Some(quote_spanned!(span=> &(#expression),))
            }
        };
        let tags = self.model.tags.as_ref().map(|expression| {
            quote_spanned!(expression.span().resolved_at(Span::mixed_site())=> let call = call.with_tags(#expression);)
        });
        quote_spanned! {Span::mixed_site()=>
            #cache
            let call = #new(cache, #site, #tenant #key);
            #tags
        }
    }

    /// `__shape`: how values, errors and absence are told apart in the return type. A function of its own, with an opaque
    /// type, so that the compiler complains once about a return type that cannot be cached.
    pub(super) fn shape_function(&self) -> TokenStream {
        let Self { door, plan, .. } = self;
        let output = &self.model.output;
        let generics = &plan.output_generics;
        let clause = &generics.where_clause;
        let shared = match &self.model.share_error {
            // Imported without a name, which could shadow one in the user's path.
            Some(copy) => quote_spanned! {output.span().resolved_at(Span::mixed_site())=>
                {
                    use #door::autoref::{ShareBy as _, ShareByNot as _};
                    (&&shape).share_by(#copy)
                }
            },
            None => quote_spanned! {output.span().resolved_at(Span::mixed_site())=>
                {
                    use #door::autoref::*;
                    (&&shape).share()
                }
            },
        };
        // The type is named outside the blocks: the glob could shadow it.
        quote_spanned! {output.span().resolved_at(Span::mixed_site())=>
            #[inline]
            fn __shape #generics() -> impl #door::Shape<#output> #clause {
                let probe = #door::Probe::<#output>::NEW;
                let shape = {
                    use #door::autoref::*;
                    (&&&&&probe).pick()
                };
                #shared
            }
        }
    }

    /// The value of `__shape`.
    pub(super) fn shape(&self, holder: &TokenStream) -> TokenStream {
        let turbofish = turbofish(&self.plan.output_generics);
        quote!(#holder::__shape #turbofish())
    }

    /// Binds `cache`, a reference.
    fn cache(&self) -> TokenStream {
        let door = &self.door;
        let Some(expression) = &self.model.cache else {
            return quote_spanned!(Span::mixed_site()=> let cache = #door::default_cache(););
        };
        let read = reads(expression);
        // An argument taken by value moves into the fetch while the call still needs the cache.
        let moves = self.model.roles.inputs.iter().any(|input| {
            let is_shared = matches!(input.ty(), Type::Reference(reference) if reference.mutability.is_none());
            !is_shared && read.contains(&input.name.to_string())
        });
        let clone =
            moves.then(|| quote_spanned!(Span::mixed_site()=> let cache = &::core::clone::Clone::clone(cache);));
        quote_spanned! {expression.span().resolved_at(Span::mixed_site())=>
            let cache = &(#expression);
            let cache = ::core::convert::AsRef::<#door::Cache>::as_ref(cache);
            #clone
        }
    }

    /// What makes the future of the body, in a function that has all arguments. Not the future itself: a hit has no use
    /// for its size.
    pub(super) fn fetch_call(&self, holder: &TokenStream) -> TokenStream {
        let turbofish = turbofish(&self.model.item.signature.generics);
        let names = self.model.roles.inputs.iter().map(|input| &input.name);
        quote!(move || #holder::__fetch #turbofish(#(#names),*))
    }

    pub(super) fn key_inputs(&self) -> Vec<&Input> {
        let inputs = &self.model.roles.inputs;
        self.plan.key_inputs.iter().map(|place| &inputs[*place]).collect()
    }
}
