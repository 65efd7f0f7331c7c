//! The `#[cached]` attribute of [cache-core](https://docs.rs/cache-core). Use it through that crate:
//! `use cache_core::cached;`.
//!
//! An attribute goes through one stage per module, in this order:
//!
//! | module | step |
//! |---|---|
//! | `args`, `item` | tokens of the attribute and of the function, read but not judged |
//! | `model` | every rule; gives a model that is right, or all mistakes at once |
//! | `key_plan` | what stands in each segment of the key |
//! | `expand` | the code; cannot fail |
//! | `fallback` | in place of the code: the mistakes, and the function untouched |

mod args;
mod attributes;
mod expand;
mod fallback;
mod item;
mod key_plan;
mod mistakes;
mod model;
#[cfg(test)]
mod testing;
mod words;

use proc_macro::TokenStream;

/// Puts an async function behind the cache: its body runs on a miss only.
///
/// ```
/// use cache_core::cached;
///
/// #[cached(ttl = "5m", key_prefix = "api")]
/// async fn scan_results(target: &str) -> Result<String, std::io::Error> {
///     // slow
/// #   Ok(format!("report on {target}"))
/// }
///
/// # async fn call() -> Result<(), std::io::Error> {
/// let report = scan_results("example.com").await?; // runs the body
/// let report = scan_results("example.com").await?; // does not
/// scan_results::invalidate("example.com").await;
/// # Ok(())
/// # }
/// ```
///
/// # What is cached
///
/// | return type | cached | a hit gives |
/// |---|---|---|
/// | `T` | every value | a clone |
/// | `Arc<T>` | every value | the same `Arc`; `T` need not be `Clone` |
/// | `Result<T, E>`, `Result<Arc<T>, E>` | `Ok` | `Ok`; an error goes to the caller, and where `E: Clone` to those who waited with it |
/// | `Option<T>`, `Result<Option<T>, E>` | `Some`; `None` with `negative_ttl` | as above |
///
/// Aliases of these types behave like the types. `T` is `Serialize + DeserializeOwned + Send + Sync + 'static`.
/// A failure of the cache is never an error of the function: the body runs, and the failure is counted and reported.
///
/// # Arguments of the attribute
///
/// Exactly one of `ttl` and `profile` is needed. All others may be left out.
///
/// | argument | meaning | default |
/// |---|---|---|
/// | `ttl = 300`, `"5m"`, `"1h 30m"`, or an expression | life of a value, 1 ms to 400 days: seconds, text, or any `Duration`, computed at each call without the function's arguments | |
/// | `profile = PATH` | a `TtlProfile` constant: name, TTL and the rest | |
/// | `key_prefix = "api"` | first segment of the key, and the name in statistics: `[a-z][a-z0-9_.-]*`, at most 64 characters | the module's path |
/// | `key = "{id}"` | the whole identifier, see below | function name, then arguments, see below |
/// | `skip(db, log)` | arguments that are not in the key | |
/// | `tenant = EXPR`, `tenant = global` | whose value it is, as text or integer, from the function's arguments; `global` for nobody's | the argument `tenant_id`, else global |
/// | `tags = ["plan", ..]` | tags of the value, anything that iterates over text, from the function's arguments; `invalidate_tag` removes all values of the tenant that have one | none |
/// | `cache = EXPR` | the cache, from the function's arguments | the cache of the process |
/// | `jitter = 0.1`, `"10%"` | largest part of the TTL that is taken off at random | the profile's: 10 % |
/// | `negative_ttl = 10`, `"10s"` | life of a `None` | `None` is not cached |
/// | `version = 2` | version of the type: raise it when old entries must not be read | 0 |
/// | `schema = "report"` | what the value's type is called in stored entries, so that it may be moved or renamed; see `Keyspace::with_schema` | its own name, with its modules |
/// | `share_error = PATH` | a `fn(&E) -> E` that copies an error, without the function's arguments: so calls that wait for a fetch that fails get its error though it is not `Clone` | errors that are `Clone + Send + Sync` are shared, with others waiting calls take turns |
/// | `companions = NAME`, `false` | name of the companion type, or none | the function's name |
/// | `crate = "path"` | where cache-core is, if it was renamed | `::cache_core` |
///
/// # Keys
///
/// Every argument is part of the key, but the tenant, the cache and what is skipped. Integers, `bool`, `char`, text,
/// `Option`, tuples and slices stand there in readable form, as does every type with a `KeyArgument` of its own;
/// other types need `Serialize`. With an argument that makes no key, such as NaN, or an empty tenant, the call runs
/// uncached.
///
/// A template has segments between `:`, each with at most one placeholder: the name of an argument, or a field of
/// it. `{{` and `}}` stand for the characters. It must mention every argument that is not skipped. Its key equals
/// that of a `Keyspace` over the same profile:
///
/// ```
/// use cache_core::{cached, profiles::WORKFLOW_DEF};
/// # pub struct User { org: String, id: u64 }
///
/// #[cached(profile = WORKFLOW_DEF, key = "{workflow_id}")]
/// async fn workflow(workflow_id: &str, tenant_id: &str) -> Result<String, std::io::Error> {
///     // cache:tenant:acme:workflow_def:abc-456
/// #   Ok(format!("{workflow_id} of {tenant_id}"))
/// }
///
/// #[cached(ttl = 60, tenant = user.org, key = "v1:{user.id}:{page}", skip(log))]
/// async fn page(user: &User, page: u32, log: &mut Vec<u64>) -> String {
/// #   log.push(user.id);
/// #   format!("page {page}")
///     // …
/// }
/// ```
///
/// Without a template the function's name comes first, then a segment for each argument. Functions of one name have keys
/// of their own: where the prefix is not the path of the module (with `key_prefix` or `profile`), or the function stands
/// inside another one, a short hash of its path follows the name, as in `cache:api:scan_results@995943:example.com`.
/// The pattern `api:scan_results@*` covers all of them. Lines and bodies may change; a function that is renamed
/// or moved has new keys. One that stands inside another function is bound to its body, too: one that changes makes older
/// values misses, and a `version` raised with it spares the two releases of a deploy that they overwrite each other's. Two functions of one name in two blocks of one function cannot be told apart: the second to
/// be called is reported in the log, by name, and runs uncached.
///
/// Of a generic function each instance has keys of its own: a short hash of the type parameters follows the name. Only those
/// count that no argument's type names, such as a marker, or the `T` of `T::Id`. One that is named, as in `id: T`, is not
/// part of the key, so that `invalidate` reaches a value whatever type its argument has, `&str` or `String`; instances that
/// differ in it alone evict each other. Types are told apart by their names and modules: two of one name in two blocks of
/// one function are one.
///
/// A value without a template is also bound to its function, and to the types of a generic one.
///
/// # Companions
///
/// They are associated functions of a type with the function's name and visibility. `use` of the function brings
/// both. Where a module or type of that name exists, choose another by `companions = NAME`.
///
/// | companion | arguments | result |
/// |---|---|---|
/// | `invalidate` | those in the key | `Invalidated`: removes the value everywhere |
/// | `refresh` | all | what the function returns: fetches and stores |
/// | `peek` | those in the key | what the function would return, `None` where it would fetch |
/// | `put` | those in the key, and a value | stores a value, or all that the function may return |
/// | `key` | those in the key | the key as it stands in Redis |
/// | `ttl` | those in the key | the remaining life |
///
/// Arguments from which `tenant`, `cache` or `tags` are computed count as being in the key.
///
/// # Limits
///
/// - Free functions only: call one from a method, and `skip(..)` what is not part of the key.
/// - A value cannot borrow from the arguments. An argument taken by `&mut` is skipped or refused.
/// - `skip` leaves out the argument and the type parameters that only it names.
/// - `expect` of a lint becomes `allow`: of the two functions made from one, the lint fires in one only.
#[proc_macro_attribute]
pub fn cached(args: TokenStream, item: TokenStream) -> TokenStream {
    match model::check(args.into(), item.clone().into()) {
        Ok(model) => expand::expand(&model).into(),
        Err(error) => fallback::untouched(&error, item.into()).into(),
    }
}
