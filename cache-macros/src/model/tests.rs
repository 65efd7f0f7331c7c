//! The rules together: an attribute on a function, and what is said of it.

use quote::quote;

use super::*;
use crate::testing::all;

fn found(args: TokenStream, item: TokenStream) -> Vec<String> {
    check(args, item).err().map_or_else(Vec::new, |error| all(&error))
}

#[track_caller]
fn assert_one(args: TokenStream, item: TokenStream, expected: &str) {
    let found = found(args, item);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(expected), "{found:?}");
}

#[test]
fn a_life_time_comes_from_exactly_one_place() {
    let item = quote!(
        async fn f() -> u8 {}
    );
    assert_eq!(found(quote!(ttl = 1, jitter = 0.1), item.clone()), Vec::<String>::new());
    assert_eq!(found(quote!(profile = P, jitter = 0.1), item.clone()), Vec::<String>::new());
    assert_one(quote!(), item.clone(), "how long does a value live?");
    assert_one(quote!(ttl = 1, profile = P), item.clone(), "both given");
    assert_one(quote!(profile = P, key_prefix = "a"), item.clone(), "names the prefix");
    assert_one(quote!(tll = 5), item.clone(), "did you mean `ttl");
    assert_one(quote!(ttl = 0), item, "is zero");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let args = quote!(ttl = 0, key_prefix = "A", jitter = 7, skip(x), nonsense = 1);
    let found = found(
        args,
        quote!(
            fn f(a: &mut u8) {}
        ),
    );
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn a_template_contains_every_argument_or_skips_it() {
    let item = quote!(
        async fn f(a: u8, b: u8) -> u8 {}
    );
    let free = quote!(
        async fn f() -> u8 {}
    );
    assert_eq!(found(quote!(ttl = 1, key = "{a}:{b}"), item.clone()), Vec::<String>::new());
    assert_eq!(found(quote!(ttl = 1, key = "{a}", skip(b)), item.clone()), Vec::<String>::new());
    assert_eq!(found(quote!(ttl = 1, key = "x", skip(a, b)), item.clone()), Vec::<String>::new());
    assert_eq!(found(quote!(ttl = 1, key = "x"), free.clone()), Vec::<String>::new());
    assert_one(quote!(ttl = 1, key = "{a}"), item.clone(), "`b` is not in `key`");
    assert_one(quote!(ttl = 1, key = "{a}:{c}:{b}"), item.clone(), "expected `a`, `b`");
    assert_one(quote!(ttl = 1, key = "{a}:{b}", skip(b)), item.clone(), "remove it from one");
    assert_one(quote!(ttl = 1, key = "{a}{b}"), item, "put `:` between");
    assert_one(quote!(ttl = 1, key = "{a}"), free, "no named argument");
    let unnamed = quote!(
        async fn f((a, b): (u8, u8)) -> u8 {}
    );
    assert_one(quote!(ttl = 1, key = "x"), unnamed, "has no name");
    let sized = quote!(
        async fn f<const N: usize>() -> u8 {}
    );
    assert_one(quote!(ttl = 1, key = "x"), sized.clone(), "`N` is not in `key`");
    assert_one(quote!(ttl = 1, key = "{N}", skip(N)), sized.clone(), "remove it from one");
    assert_eq!(found(quote!(ttl = 1, key = "{N}"), sized), Vec::<String>::new());
}

#[test]
fn a_template_does_not_hide_a_type() {
    let hidden = quote!(
        async fn f<T: Kind>(a: u8) -> u8 {}
    );
    assert_one(quote!(ttl = 1, key = "{a}"), hidden.clone(), "`T` shows in no argument");
    assert_eq!(found(quote!(ttl = 1), hidden), Vec::<String>::new());
    let shown = quote!(
        async fn f<T: Kind, D>(a: u8, db: &D) -> T {}
    );
    assert_eq!(found(quote!(ttl = 1, key = "{a}", skip(db)), shown), Vec::<String>::new());
}

#[test]
fn skip_names_arguments_once() {
    let item = quote!(
        async fn f(a: u8, tenant_id: &str) -> u8 {}
    );
    assert_one(quote!(ttl = 1, skip(b)), item.clone(), "expected `a`, `tenant_id`");
    assert_one(quote!(ttl = 1, skip(a, a)), item.clone(), "skipped twice");
    assert_one(quote!(ttl = 1, skip(tenant_id)), item.clone(), "write `tenant = global`");
    assert_eq!(found(quote!(ttl = 1, tenant = global, skip(tenant_id)), item), Vec::<String>::new());
}

#[test]
fn a_mutable_argument_is_skipped_or_refused() {
    let item = quote!(
        async fn f(a: &mut u8) -> u8 {}
    );
    assert_one(quote!(ttl = 1), item.clone(), "write `skip(a)`");
    assert_eq!(found(quote!(ttl = 1, skip(a)), item), Vec::<String>::new());
}

#[test]
fn roles_follow_from_names_and_expressions() {
    let item = quote!(
        async fn f(tenant_id: &str, org: &str, cache: &Cache, id: u8) -> u8 {}
    );
    let roles = |args| -> Vec<Role> {
        let model = check(args, item.clone()).ok().unwrap();
        model.roles.inputs.iter().map(|input| input.role).collect()
    };
    use Role::{Cache, Key, Skipped, Tenant};
    assert_eq!(roles(quote!(ttl = 1, cache = cache)), [Tenant, Key, Cache, Key]);
    assert_eq!(roles(quote!(ttl = 1, tenant = org, skip(cache))), [Key, Tenant, Skipped, Key]);
    assert_eq!(roles(quote!(ttl = 1, tenant = global, skip(cache))), [Key, Key, Skipped, Key]);
    assert_eq!(roles(quote!(ttl = 1, tenant = pick(org), skip(cache))), [Key, Key, Skipped, Key]);
}

#[test]
fn companions_do_not_hide_primitive_types() {
    let item = quote!(
        async fn str() -> u8 {}
    );
    assert_one(quote!(ttl = 1), item.clone(), "would hide the primitive type");
    assert_eq!(found(quote!(ttl = 1, companions = Text), item), Vec::<String>::new());
}

#[test]
fn other_items_are_refused_by_name() {
    assert_one(
        quote!(ttl = 1),
        quote!(
            struct S;
        ),
        "found `struct`",
    );
    assert_one(
        quote!(ttl = 1),
        quote!(
            pub trait T {}
        ),
        "found `trait`",
    );
    assert_one(
        quote!(ttl = 1),
        quote!(
            const X: u8 = 1;
        ),
        "found `const`",
    );
    assert_one(
        quote!(ttl = 1),
        quote!(
            async fn f() -> u8;
        ),
        "needs a body",
    );
}
