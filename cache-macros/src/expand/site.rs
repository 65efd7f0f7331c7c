//! `__site` and the TTL profile: what is known of the function without its arguments.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::ext::IdentExt;

use super::Expansion;
use crate::model::{Base, Profile, Ttl};
use crate::words::{hash, names};

impl Expansion<'_> {
    /// `__site`: what is known of the function without its arguments.
    pub(super) fn site(&self) -> TokenStream {
        let Self { door, plan, .. } = self;
        let generics = &plan.site_generics;
        let clause = &generics.where_clause;
        let is_bound = self.model.roles.template.is_none();
        let site = match self.model.profile.base {
            Base::Own { ttl: Ttl::Computed(_), .. } => {
                quote!(checked::<Self>(&PLACE, Self::__NAME, Self::__profile(), #is_bound))
            }
            _ => quote!(new::<Self>(&PLACE, Self::__PROFILE, #is_bound)),
        };
        let version = self.model.version.map(|version| quote!(.with_version(#version)));
        let schema = self.model.schema.as_ref().map(|schema| quote!(.with_schema(#schema)));
        // A key of the user's own is told apart by its text alone, whoever asks for it.
        let types = generics.type_params().filter(|_| is_bound).map(|param| &param.ident);
        let is_argument = |name: &&Ident| {
            let name = name.to_string();
            self.key_inputs().iter().any(|input| names(input.ty().to_token_stream(), &name))
        };
        let (types, markers): (Vec<&Ident>, Vec<&Ident>) = types.partition(is_argument);
        let item = &self.model.item;
        let name = item.signature.ident.unraw().to_string();
        let (signature, body) = (&item.signature, &item.body);
        let code = hash(quote!(#signature #body));
        // The companion type stands for the function: unlike the module's path it tells apart two functions of one name
        // inside two functions of one module.
        quote! {
            #[inline]
            fn __site #generics() -> #door::Site #clause {
                static PLACE: #door::Place =
                    #door::Place::new(::core::module_path!(), #name, #code, ::core::file!(), ::core::line!());
                #door::Site::#site
                    #version
                    #schema
                    #(.with_marker::<#markers>())*
                    #(.with_type::<#types>())*
            }
        }
    }

    /// `__PROFILE`, or `__profile()` where the TTL is known at run time only. Neither sees the function's arguments.
    pub(super) fn profile(&self) -> TokenStream {
        let door = &self.door;
        let Profile { base, jitter, negative_ttl_ms } = &self.model.profile;
        let negative_ttl = negative_ttl_ms.map(|millis| {
            let duration = duration(millis);
            quote!(.with_negative_ttl(#duration))
        });
        let (name, ttl) = match base {
            Base::Constant(constant) => {
                let jitter = jitter.map(|fraction| quote!(.with_jitter(#fraction)));
                return quote! {
                    const __PROFILE: #door::TtlProfile = (#constant) #jitter #negative_ttl;
                };
            }
            Base::Own { name, ttl } => (name, ttl),
        };
        let name = match name {
            Some(name) => quote!(#name),
            None => quote!(#door::module_profile!(::core::module_path!())),
        };
        match ttl {
            Ttl::Millis(millis) => {
                let duration = duration(*millis);
                let jitter = jitter.map(|fraction| quote!(.with_jitter(#fraction)));
                quote! {
                    const __PROFILE: #door::TtlProfile =
                        #door::TtlProfile::new(#name, #duration) #jitter #negative_ttl;
                }
            }
            Ttl::Computed(expression) => {
                let jitter = jitter.map(|fraction| quote!(.and_then(|profile| profile.try_with_jitter(#fraction))));
                let negative_ttl = negative_ttl.map(|set| quote!(.map(|profile| profile #set)));
                quote! {
                    const __NAME: &'static str = #name;

                    fn __ttl() -> ::core::time::Duration {
                        #expression
                    }

                    fn __profile() -> ::core::result::Result<#door::TtlProfile, #door::Error> {
                        #door::TtlProfile::try_new(Self::__NAME, Self::__ttl()) #jitter #negative_ttl
                    }
                }
            }
        }
    }
}

fn duration(millis: u64) -> TokenStream {
    quote!(::core::time::Duration::from_millis(#millis))
}
