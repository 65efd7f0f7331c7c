//! A checked model → the plan of its key: what stands in each segment, and what the companions need to know to build it.

use std::collections::HashSet;

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::{GenericParam, Generics, Member, Type, WherePredicate};

use crate::model::{Input, Model, Part, Placeholder, Role, Template};
use crate::words::words;

/// How a key is built, and from what.
pub(crate) struct KeyPlan {
    /// The identifier, between the colons.
    pub(crate) segments: Vec<Vec<Piece>>,
    /// Places in the function's inputs that the segments read.
    pub(crate) key_inputs: Vec<usize>,
    /// Places in the function's inputs that the companions take: those, and what leads to the tenant and the cache.
    pub(crate) companion_inputs: Vec<usize>,
    /// The generics that the companions need.
    pub(crate) companion_generics: Generics,
    /// The generics that writing the key needs.
    pub(crate) key_generics: Generics,
    /// Those of them that are part of the key: types and constants, lifetimes only in bounds.
    pub(crate) site_generics: Generics,
    /// The generics of the return type.
    pub(crate) output_generics: Generics,
}

/// A piece of one segment.
pub(crate) enum Piece {
    Text(String),
    /// An expression over *references* to the arguments, and the tokens to blame where it is no key argument.
    Value {
        borrowed: TokenStream,
        blamed: TokenStream,
    },
}

impl KeyPlan {
    /// Plans the key of `model`.
    pub(crate) fn of(model: &Model) -> Self {
        let inputs = &model.roles.inputs;
        let segments = match &model.roles.template {
            Some(template) => from_template(template, inputs),
            None => from_inputs(model),
        };
        let places = |select: &dyn Fn(&Input) -> bool| -> Vec<usize> {
            let selected = inputs.iter().enumerate().filter(|(_, input)| select(input));
            selected.map(|(place, _)| place).collect()
        };
        // A template may name the tenant too.
        let in_template = |input: &Input| {
            let name = input.name.unraw();
            let template = model.roles.template.as_ref();
            template.is_some_and(|template| {
                template.placeholders().any(|placeholder| input.is_named && name == placeholder.root)
            })
        };
        let is_in_key = |input: &Input| input.role == Role::Key || in_template(input);
        let key_generics = remaining(model, &is_in_key);
        Self {
            segments,
            key_inputs: places(&is_in_key),
            companion_inputs: places(&Input::is_in_companions),
            companion_generics: remaining(model, &Input::is_in_companions),
            site_generics: without_lifetimes(&key_generics),
            output_generics: only(&model.item.signature.generics, words(&model.output)),
            key_generics,
        }
    }
}

/// Its const parameters and its arguments, behind what the library puts there for the function itself: a segment each, so
/// that their number is always the same.
fn from_inputs(model: &Model) -> Vec<Vec<Piece>> {
    let consts =
        model.roles.consts.iter().map(|name| Piece::Value { borrowed: quote!(&#name), blamed: name.to_token_stream() });
    let in_key = model.roles.inputs.iter().filter(|input| input.role == Role::Key);
    let values = in_key
        .map(|input| Piece::Value { borrowed: input.name.to_token_stream(), blamed: input.ty().to_token_stream() });
    consts.chain(values).map(|piece| vec![piece]).collect()
}

fn from_template(template: &Template, inputs: &[Input]) -> Vec<Vec<Piece>> {
    let piece = |part: &Part| match part {
        Part::Text(text) => Piece::Text(text.clone()),
        Part::Placeholder(placeholder) => from_placeholder(placeholder, inputs),
    };
    let segments = template.segments.iter();
    segments.map(|segment| segment.iter().map(piece).collect()).collect()
}

fn from_placeholder(placeholder: &Placeholder, inputs: &[Input]) -> Piece {
    let root = &placeholder.root;
    let input = inputs.iter().find(|input| input.is_named && input.name.unraw() == root);
    let Some(input) = input else {
        // The only other thing a checked placeholder names is a const parameter.
        let name = name_of(root);
        return Piece::Value { borrowed: quote!(&#name), blamed: name.to_token_stream() };
    };
    let name = &input.name;
    let fields = placeholder.fields.iter().map(|field| match field.parse::<u32>() {
        Ok(index) => Member::from(index as usize),
        Err(_) => Member::from(name_of(field)),
    });
    let borrowed = match placeholder.fields.is_empty() {
        true => name.to_token_stream(),
        false => quote!(&#name #(.#fields)*),
    };
    Piece::Value { borrowed, blamed: input.ty().to_token_stream() }
}

/// The identifier for `text`, raw where it is a keyword.
fn name_of(text: &str) -> Ident {
    syn::parse_str(text).unwrap_or_else(|_| Ident::new_raw(text, proc_macro2::Span::call_site()))
}

/// The function's generics without those that only other inputs than the selected need: nobody could infer them from the
/// selected ones.
fn remaining(model: &Model, select: &dyn Fn(&Input) -> bool) -> Generics {
    let generics = &model.item.signature.generics;
    let inputs = model.roles.inputs.iter();
    let (kept, skipped): (Vec<&Input>, Vec<&Input>) = inputs.partition(|input| select(input));
    let mut needed = words(&model.output);
    needed.extend(kept.iter().flat_map(|input| words(input.ty())));
    let mut dispensable: HashSet<String> = skipped.iter().flat_map(|input| words(input.ty())).collect();
    add_bounds(generics, &mut dispensable);
    for param in &generics.params {
        let name = name(param);
        let is_needed = match param {
            GenericParam::Type(_) => !dispensable.contains(&name),
            GenericParam::Const(param) => model.roles.consts.contains(&param.ident),
            GenericParam::Lifetime(_) => false,
        };
        if is_needed {
            needed.insert(name);
        }
    }
    only(generics, needed)
}

fn without_lifetimes(generics: &Generics) -> Generics {
    let params = generics.params.iter();
    let params = params.filter(|param| !matches!(param, GenericParam::Lifetime(_)));
    only(generics, params.map(name).collect())
}

/// The generics that `needed` mentions, and those that their bounds mention.
fn only(generics: &Generics, mut needed: HashSet<String>) -> Generics {
    add_bounds(generics, &mut needed);
    retain(generics, &needed)
}

/// What the bounds of a needed parameter mention is needed too, and so on.
fn add_bounds(generics: &Generics, needed: &mut HashSet<String>) {
    let predicates = || generics.where_clause.iter().flat_map(|clause| &clause.predicates);
    let is_bounded = |predicate: &WherePredicate, needed: &HashSet<String>| match predicate {
        WherePredicate::Type(bound) => !words(&bound.bounded_ty).is_disjoint(needed),
        WherePredicate::Lifetime(bound) => needed.contains(&bound.lifetime.to_string()),
        _ => false,
    };
    loop {
        let params = generics.params.iter().filter(|param| needed.contains(&name(param)));
        let mut more: HashSet<String> = params.flat_map(words).collect();
        more.extend(predicates().filter(|predicate| is_bounded(predicate, needed)).flat_map(words));
        let before = needed.len();
        needed.extend(more);
        if needed.len() == before {
            return;
        }
    }
}

fn retain(generics: &Generics, needed: &HashSet<String>) -> Generics {
    let is_needed = |param: &GenericParam| needed.contains(&name(param));
    let gone: HashSet<String> = generics.params.iter().filter(|param| !is_needed(param)).map(name).collect();
    let mut kept = generics.clone();
    kept.params = generics.params.iter().filter(|param| is_needed(param)).cloned().collect();
    if let Some(clause) = &mut kept.where_clause {
        let predicates = clause.predicates.iter();
        let predicates = predicates.filter(|predicate| words(predicate).is_disjoint(&gone));
        clause.predicates = predicates.cloned().collect();
    }
    kept
}

fn name(param: &GenericParam) -> String {
    match param {
        GenericParam::Lifetime(param) => param.lifetime.to_string(),
        GenericParam::Type(param) => param.ident.to_string(),
        GenericParam::Const(param) => param.ident.to_string(),
    }
}

/// `::<T, N>` with the types and constants of `generics`; lifetimes are inferred and often may not be written.
pub(crate) fn turbofish(generics: &Generics) -> TokenStream {
    let names = generics.params.iter().filter_map(|param| match param {
        GenericParam::Lifetime(_) => None,
        GenericParam::Type(param) => Some(&param.ident),
        GenericParam::Const(param) => Some(&param.ident),
    });
    let names: Vec<&Ident> = names.collect();
    match names.is_empty() {
        true => TokenStream::new(),
        false => quote!(::<#(#names),*>),
    }
}

/// The type has no name that the expansion could write.
pub(crate) fn is_anonymous(ty: &Type) -> bool {
    words(ty).contains("impl")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    fn plan(args: TokenStream, item: TokenStream) -> KeyPlan {
        KeyPlan::of(&model::check(args, item).ok().unwrap())
    }

    fn written(plan: &KeyPlan) -> Vec<String> {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => format!("{text:?}"),
            Piece::Value { borrowed, .. } => borrowed.to_string().replace(' ', ""),
        };
        let segments = plan.segments.iter();
        segments.map(|segment| segment.iter().map(piece).collect()).collect()
    }

    #[test]
    fn without_a_template_every_argument_is_in_the_key() {
        let plan = plan(
            quote!(ttl = 1, skip(db)),
            quote!(
                async fn r#type<const N: usize>(a: u8, tenant_id: &str, db: &Db, (b, c): (u8, u8)) -> u8 {}
            ),
        );
        assert_eq!(written(&plan), ["&N", "a", "__cached_arg3"]);
        assert_eq!(plan.key_inputs, [0, 3]);
        assert_eq!(plan.companion_inputs, [0, 1, 3]);
    }

    #[test]
    fn a_template_is_the_whole_identifier() {
        let plan = plan(
            quote!(ttl = 1, key = "v1-{user.id}:{r.0}:{N}:{type}"),
            quote!(
                async fn f<const N: usize>(user: &User, r: (u8,), r#type: u8) -> u8 {}
            ),
        );
        assert_eq!(written(&plan), ["\"v1-\"&user.id", "&r.0", "&N", "r#type"]);
    }

    #[test]
    fn a_tenant_expression_keeps_its_argument_in_the_companions() {
        let plan = plan(
            quote!(ttl = 1, tenant = ctx.tenant, cache = ctx.cache, skip(ctx)),
            quote!(
                async fn f(ctx: &Ctx, id: u8) -> u8 {}
            ),
        );
        assert_eq!(plan.key_inputs, [1]);
        assert_eq!(plan.companion_inputs, [0, 1]);
    }

    #[test]
    fn types_of_tenants_and_caches_are_not_in_the_key() {
        let plan = plan(
            quote!(ttl = 1, cache = cache),
            quote!(
                async fn f<'a, C: AsRef<Cache>, T: TenantArgument, K: Key<'a>, R>(
                    cache: C,
                    tenant_id: &'a T,
                    key: K,
                ) -> u8 {
                }
            ),
        );
        let names = |generics: &Generics| -> Vec<String> { generics.params.iter().map(name).collect() };
        assert_eq!(names(&plan.companion_generics), ["'a", "C", "T", "K", "R"]);
        assert_eq!(names(&plan.key_generics), ["'a", "K", "R"]);
        assert_eq!(names(&plan.site_generics), ["'a", "K", "R"]);
    }

    #[test]
    fn generics_that_only_skipped_arguments_need_are_dropped() {
        let plan = plan(
            quote!(ttl = 1, skip(db, M)),
            quote!(
                async fn f<'a, 'b, D: Db<E>, E, K: Into<V>, V, P, const N: usize, const M: usize>(
                    key: &'a K,
                    db: &'b D,
                    more: E,
                ) -> u8
                where
                    D: Send,
                    V: Copy,
                    K: Other<'b>,
                {
                }
            ),
        );
        // `E` is in the key through `more`, so only `D` and `M` go; `'b` stays with the bound on `K`.
        let names: Vec<String> = plan.companion_generics.params.iter().map(name).collect();
        assert_eq!(names, ["'a", "'b", "E", "K", "V", "P", "N"]);
        let predicates = plan.companion_generics.where_clause.as_ref().unwrap().predicates.len();
        assert_eq!(predicates, 2);
        assert_eq!(turbofish(&plan.companion_generics).to_string().replace(' ', ""), "::<E,K,V,P,N>");
    }
}
