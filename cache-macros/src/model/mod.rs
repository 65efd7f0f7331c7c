//! All rules. [`check`] turns tokens into a [`Model`] that is right in every respect, or says at once everything that is
//! wrong: what was found, what is expected, and the fix, at the narrowest span.

mod roles;
mod signature;
mod template;
mod values;

#[cfg(test)]
mod tests;

use proc_macro2::{Span, TokenStream};
use syn::{Expr, Path, Type};

pub(crate) use self::roles::{Roles, Tenant};
pub(crate) use self::signature::{Input, Role};
pub(crate) use self::template::{Part, Placeholder, Template};
pub(crate) use self::values::{Companions, Ttl};
use crate::args::Args;
use crate::item::Item;
use crate::mistakes::Mistakes;

/// A function and what the attribute says of it, checked.
pub(crate) struct Model {
    /// The path of cache-core.
    pub(crate) krate: Path,
    pub(crate) item: Item,
    /// The function's return type.
    pub(crate) output: Type,
    pub(crate) profile: Profile,
    pub(crate) version: Option<u32>,
    /// `None`: the type's own name.
    pub(crate) schema: Option<String>,
    pub(crate) roles: Roles,
    /// `None`: the default cache.
    pub(crate) cache: Option<Expr>,
    /// `None`: no tags.
    pub(crate) tags: Option<Expr>,
    pub(crate) companions: Companions,
}

/// Where the TTL profile comes from, and what the attribute changes in it.
pub(crate) struct Profile {
    pub(crate) base: Base,
    pub(crate) jitter: Option<f64>,
    pub(crate) negative_ttl_ms: Option<u64>,
}

/// The profile before changes.
pub(crate) enum Base {
    /// A constant of the user.
    Constant(Expr),
    /// One of its own. Without a name it is called like the module.
    Own { name: Option<String>, ttl: Ttl },
}

/// Checks the arguments of the attribute and the item under it.
pub(crate) fn check(args: TokenStream, item: TokenStream) -> syn::Result<Model> {
    let mut mistakes = Mistakes::default();
    let args = Args::parse(args, &mut mistakes);
    let profile = profile(&args, &mut mistakes);
    let version = args.version.as_ref();
    let version = version.and_then(|given| mistakes.keep(values::version(given)));
    let schema = args.schema.as_ref();
    let schema = schema.and_then(|given| mistakes.keep(values::schema(given)));
    let companions = args.companions.as_ref();
    let companions = companions.and_then(|given| mistakes.keep(values::companions(given)));
    let krate = args.krate.as_ref();
    let krate = krate.and_then(|given| mistakes.keep(values::krate(given)));

    let item: Option<Item> = mistakes.keep(syn::parse2(item));
    let function = item.map(|item| {
        let (inputs, output) = signature::check(&item, &mut mistakes);
        if args.companions.is_none() {
            signature::expect_free_type_name(&item.signature.ident, &mut mistakes);
        }
        let roles = roles::check(&args, inputs, &output, &item.signature.generics, &mut mistakes);
        (item, output, roles)
    });
    let (item, output, roles) = match (mistakes.into_error(), function) {
        (None, Some(function)) => function,
        (Some(error), _) => return Err(error),
        (None, None) => unreachable!("an item that was not read is a mistake"),
    };
    Ok(Model {
        krate: krate.unwrap_or_else(|| syn::parse_quote!(::cache_core)),
        item,
        output,
        profile,
        version,
        schema,
        roles,
        cache: args.cache.map(|given| given.value),
        tags: args.tags.map(|given| given.value),
        companions: companions.unwrap_or(Companions::Function),
    })
}

/// Exactly one of `ttl` and `profile`; the latter brings its name.
fn profile(args: &Args, mistakes: &mut Mistakes) -> Profile {
    let name = args.key_prefix.as_ref();
    let name = name.and_then(|given| mistakes.keep(values::key_prefix(given)));
    let ttl = args.ttl.as_ref();
    let ttl = ttl.and_then(|given| mistakes.keep(values::ttl(given)));
    let constant = args.profile.as_ref();
    let constant = constant.and_then(|given| mistakes.keep(values::profile(given)));
    match (&args.ttl, &args.profile) {
        (Some(_), Some(profile)) => {
            let message = "`ttl` and `profile` are both given, and a profile has a TTL: remove one of the two";
            mistakes.at(profile.keyword.span(), message);
        }
        (None, None) if !args.incomplete => {
            let message = "how long does a value live? \
                           Write `#[cached(ttl = \"5m\")]` or `#[cached(profile = WORKFLOW_DEF)]`";
            mistakes.at(Span::call_site(), message);
        }
        _ => {}
    }
    if let (Some(prefix), Some(_)) = (&args.key_prefix, &args.profile) {
        let message = "the profile names the prefix: remove `key_prefix`, or give `ttl` in place of `profile`";
        mistakes.at(prefix.keyword.span(), message);
    }
    let jitter = args.jitter.as_ref();
    let negative_ttl = args.negative_ttl.as_ref();
    Profile {
        // A missing TTL is a mistake by now, so the number is never used.
        base: match constant {
            Some(constant) => Base::Constant(constant),
            None => Base::Own { name, ttl: ttl.unwrap_or(Ttl::Millis(1)) },
        },
        jitter: jitter.and_then(|given| mistakes.keep(values::jitter(given))),
        negative_ttl_ms: negative_ttl.and_then(|given| mistakes.keep(values::negative_ttl(given))),
    }
}
