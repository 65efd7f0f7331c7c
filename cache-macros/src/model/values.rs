//! Rules for the values of arguments that do not depend on the function.

use std::time::Duration;

use proc_macro2::Ident;
use syn::spanned::Spanned;
use syn::{Expr, Lit, LitInt, LitStr, Path, UnOp};

use crate::args::Given;

/// The longest TTL a profile may have: 400 days.
const MAX_TTL: Duration = Duration::from_secs(400 * 24 * 60 * 60);
/// The longest profile name.
const MAX_PREFIX: usize = 64;

/// How long a value lives.
pub(crate) enum Ttl {
    /// Known now: whole milliseconds from 1 ms to 400 days.
    Millis(u64),
    /// Known when the function is called.
    Computed(Expr),
}

/// How the companion type is called.
pub(crate) enum Companions {
    /// Like the function.
    Function,
    /// By this name.
    Named(Ident),
    /// There are none.
    None,
}

/// `ttl = 300`, `ttl = "5m"` or `ttl = EXPRESSION`.
pub(super) fn ttl(given: &Given<Expr>) -> syn::Result<Ttl> {
    match literal_ttl(given)? {
        Some(millis) => Ok(Ttl::Millis(millis)),
        None => Ok(Ttl::Computed(given.value.clone())),
    }
}

/// `negative_ttl = 10` or `negative_ttl = "10s"`.
pub(super) fn negative_ttl(given: &Given<Expr>) -> syn::Result<u64> {
    literal_ttl(given)?.ok_or_else(|| {
        let message = "`negative_ttl` takes whole seconds or a string: \
                       write `negative_ttl = 10` or `negative_ttl = \"10s\"`";
        syn::Error::new_spanned(&given.value, message)
    })
}

/// Milliseconds where the value is a literal, `None` for another expression.
fn literal_ttl(given: &Given<Expr>) -> syn::Result<Option<u64>> {
    let keyword = &given.keyword;
    let duration = match plain(&given.value) {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(seconds) => whole_seconds(keyword, seconds),
            Lit::Str(text) => parse_duration(keyword, &text.value()),
            Lit::Float(number) => {
                Err(format!("`{keyword}` takes whole seconds, found `{number}`: write a string such as \"1500ms\""))
            }
            _ => Err(format!(
                "`{keyword}` takes whole seconds, a string or a `Duration`: write `{keyword} = 300` or `{keyword} = \"5m\"`"
            )),
        },
        Expr::Unary(negative) if is_negative_number(negative) => {
            Err(format!("`{keyword}` must be positive: write `{keyword} = 300` or `{keyword} = \"5m\"`"))
        }
        _ => return Ok(None),
    };
    let millis = duration.and_then(|duration| checked_millis(keyword, duration));
    millis.map(Some).map_err(|message| syn::Error::new(given.value.span(), message))
}

fn whole_seconds(keyword: &Ident, seconds: &LitInt) -> Result<Duration, String> {
    if !is_integer_type(seconds.suffix()) {
        return Err(format!(
            "`{seconds}` is not a number of seconds: write it as a string, `{keyword} = \"{seconds}\"`"
        ));
    }
    // Too many digits for a u64 are too many seconds: the upper bound speaks of it.
    Ok(Duration::from_secs(seconds.base10_parse().unwrap_or(u64::MAX)))
}

fn parse_duration(keyword: &Ident, text: &str) -> Result<Duration, String> {
    // humantime reads `M` as months: `5M` for `5m` would keep values for half a year.
    if text.contains('M') {
        return Err(format!(
            "`{keyword} = {text:?}` is ambiguous, `M` means months: write `m` for minutes or give days"
        ));
    }
    humantime::parse_duration(text).map_err(|error| {
        format!("`{keyword} = {text:?}` is no duration ({error}): write \"5m\", \"350ms\" or \"1h 30m\"")
    })
}

/// Rounds up to milliseconds, so that no positive TTL becomes zero, and checks the range.
fn checked_millis(keyword: &Ident, duration: Duration) -> Result<u64, String> {
    if duration.is_zero() {
        return Err(format!(
            "`{keyword}` is zero: a value would expire before it is read; \
             write 1 ms to 400 days, or remove #[cached]"
        ));
    }
    if duration > MAX_TTL {
        return Err(format!("`{keyword}` is longer than 400 days: write 1 ms to 400 days"));
    }
    let millis = duration.as_nanos().div_ceil(1_000_000);
    Ok(u64::try_from(millis).expect("400 days of milliseconds fit"))
}

/// `key_prefix = "api"`: a profile name of the key grammar.
pub(super) fn key_prefix(given: &Given<Expr>) -> syn::Result<String> {
    let literal = string(given, "key_prefix = \"api\"")?;
    let prefix = literal.value();
    let mut letters = prefix.chars();
    let well_formed = letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c));
    let message = if !well_formed {
        format!(
            "`key_prefix` is {prefix:?}, expected a lower-case letter, then lower-case letters, digits, `_`, `.` or `-`"
        )
    } else if prefix.len() > MAX_PREFIX {
        let length = prefix.len();
        format!("`key_prefix` has {length} characters, expected at most {MAX_PREFIX}")
    } else if prefix == "tenant" {
        String::from("`tenant` is reserved for tenant keys: choose another `key_prefix`")
    } else {
        return Ok(prefix);
    };
    Err(syn::Error::new(literal.span(), message))
}

/// `key = "{id}"`: the text of the template.
pub(super) fn key(given: &Given<Expr>) -> syn::Result<LitStr> {
    string(given, "key = \"{id}\"")
}

/// `profile = PATH`: any constant expression that is no literal.
pub(super) fn profile(given: &Given<Expr>) -> syn::Result<Expr> {
    match plain(&given.value) {
        Expr::Lit(_) | Expr::Unary(_) => {
            let message = "`profile` takes the path of a `TtlProfile` constant: \
                           write `profile = WORKFLOW_DEF`, or `ttl` with `key_prefix`";
            Err(syn::Error::new_spanned(&given.value, message))
        }
        _ => Ok(given.value.clone()),
    }
}

/// `jitter = 0.1` or `jitter = "10%"`: the largest part of the TTL taken off.
pub(super) fn jitter(given: &Given<Expr>) -> syn::Result<f64> {
    let fraction = match plain(&given.value) {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Float(number) => number.base10_parse::<f64>().ok(),
            Lit::Int(number) => number.base10_parse::<f64>().ok(),
            Lit::Str(text) => percent(&text.value()),
            _ => None,
        },
        _ => None,
    };
    fraction.filter(|fraction| (0.0..=1.0).contains(fraction)).ok_or_else(|| {
        let message = "`jitter` is a fraction from 0 to 1: write `jitter = 0.1` or `jitter = \"10%\"`";
        syn::Error::new_spanned(&given.value, message)
    })
}

fn percent(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?.trim_end();
    number.parse::<f64>().ok().map(|percent| percent / 100.0)
}

/// `version = 2`.
pub(super) fn version(given: &Given<Expr>) -> syn::Result<u32> {
    let number = match plain(&given.value) {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(number) => number.base10_parse().ok(),
            _ => None,
        },
        _ => None,
    };
    number.ok_or_else(|| {
        let message = "`version` is a whole number that fits a u32: write `version = 2`";
        syn::Error::new_spanned(&given.value, message)
    })
}

/// `schema = "report"`: any name.
pub(super) fn schema(given: &Given<Expr>) -> syn::Result<String> {
    let literal = string(given, "schema = \"report\"")?;
    let name = literal.value();
    if name.is_empty() {
        let message = "`schema` is empty: name the type of the value, as in `schema = \"report\"`";
        return Err(syn::Error::new(literal.span(), message));
    }
    Ok(name)
}

/// `companions = NAME` or `companions = false`.
pub(super) fn companions(given: &Given<Expr>) -> syn::Result<Companions> {
    match plain(&given.value) {
        Expr::Lit(literal) => {
            if let Lit::Bool(wanted) = &literal.lit {
                return Ok(match wanted.value {
                    true => Companions::Function,
                    false => Companions::None,
                });
            }
        }
        Expr::Path(path) if path.qself.is_none() => {
            if let Some(name) = path.path.get_ident() {
                return Ok(Companions::Named(name.clone()));
            }
        }
        _ => {}
    }
    let message = "`companions` takes a type name or `false`: \
                   write `companions = ScanCache` or `companions = false`";
    Err(syn::Error::new_spanned(&given.value, message))
}

/// `crate = "path"`.
pub(super) fn krate(given: &Given<Expr>) -> syn::Result<Path> {
    let literal = string(given, "crate = \"my_cache\"")?;
    literal.parse_with(Path::parse_mod_style).map_err(|_| {
        let message = "`crate` is the path of cache-core as this crate sees it: \
                       write `crate = \"my_cache\"` or `crate = \"::my_crate::cache\"`";
        syn::Error::new(literal.span(), message)
    })
}

fn string(given: &Given<Expr>, example: &str) -> syn::Result<LitStr> {
    if let Expr::Lit(literal) = plain(&given.value)
        && let Lit::Str(text) = &literal.lit
    {
        return Ok(text.clone());
    }
    let message = format!("`{}` takes a string: write `{example}`", given.keyword);
    Err(syn::Error::new_spanned(&given.value, message))
}

/// The expression without the invisible group in which a `macro_rules` argument arrives.
pub(super) fn plain(mut expression: &Expr) -> &Expr {
    while let Expr::Group(group) = expression {
        expression = &group.expr;
    }
    expression
}

fn is_negative_number(unary: &syn::ExprUnary) -> bool {
    matches!(unary.op, UnOp::Neg(_)) && matches!(plain(&unary.expr), Expr::Lit(_))
}

fn is_integer_type(suffix: &str) -> bool {
    suffix.is_empty()
        || matches!(
            suffix,
            "u8" | "u16" | "u32" | "u64" | "u128" | "usize" | "i8" | "i16" | "i32" | "i64" | "i128" | "isize"
        )
}

#[cfg(test)]
mod tests {
    use proc_macro2::Span;
    use syn::parse_quote;

    use super::*;

    fn given(value: Expr) -> Given<Expr> {
        let keyword = Ident::new("ttl", Span::call_site());
        Given { keyword, value }
    }

    fn millis(value: Expr) -> Result<u64, String> {
        match ttl(&given(value)) {
            Ok(Ttl::Millis(millis)) => Ok(millis),
            Ok(Ttl::Computed(_)) => Err(String::from("computed")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_ttl_is_seconds_or_a_duration_and_rounds_up_to_milliseconds() {
        assert_eq!(millis(parse_quote!(300)), Ok(300_000));
        assert_eq!(millis(parse_quote!(1u64)), Ok(1_000));
        assert_eq!(millis(parse_quote!("5m")), Ok(300_000));
        assert_eq!(millis(parse_quote!("1h 30m")), Ok(5_400_000));
        assert_eq!(millis(parse_quote!("350ms")), Ok(350));
        assert_eq!(millis(parse_quote!("1ns")), Ok(1));
        assert_eq!(millis(parse_quote!("1500us")), Ok(2));
        assert_eq!(millis(parse_quote!("400days")), Ok(34_560_000_000));
        assert_eq!(millis(parse_quote!(Duration::from_secs(5))), Err(String::from("computed")));
    }

    #[test]
    fn a_ttl_outside_its_range_is_refused() {
        let wrong: [(Expr, &str); 12] = [
            (parse_quote!(0), "is zero"),
            (parse_quote!("0s"), "is zero"),
            (parse_quote!(-5), "must be positive"),
            (parse_quote!(1.5), "whole seconds, found `1.5`"),
            (parse_quote!("abc"), "is no duration"),
            (parse_quote!("300"), "is no duration"),
            (parse_quote!("5M"), "means months"),
            (parse_quote!("401days"), "longer than 400 days"),
            (parse_quote!(34_560_001), "longer than 400 days"),
            (parse_quote!(99999999999999999999), "longer than 400 days"),
            (parse_quote!(5m), "write it as a string, `ttl = \"5m\"`"),
            (parse_quote!(true), "a string or a `Duration`"),
        ];
        for (value, expected) in wrong {
            let message = millis(value).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_prefix_follows_the_key_grammar() {
        for right in ["a", "api", "a1_b.c-d"] {
            assert_eq!(key_prefix(&given(parse_quote!(#right))).unwrap(), right);
        }
        let long = "a".repeat(65);
        for wrong in ["", "Api", "1a", "a:b", "ä", "tenant", "a b", long.as_str()] {
            assert!(key_prefix(&given(parse_quote!(#wrong))).is_err(), "{wrong}");
        }
        assert!(key_prefix(&given(parse_quote!(api))).is_err());
    }

    #[test]
    fn jitter_is_a_fraction() {
        let fraction = |value| jitter(&given(value)).ok();
        assert_eq!(fraction(parse_quote!(0.25)), Some(0.25));
        assert_eq!(fraction(parse_quote!(0)), Some(0.0));
        assert_eq!(fraction(parse_quote!(1)), Some(1.0));
        assert_eq!(fraction(parse_quote!("10%")), Some(0.1));
        for wrong in [parse_quote!(2), parse_quote!(1.01), parse_quote!(-0.1), parse_quote!("10")] {
            assert_eq!(fraction(wrong), None);
        }
        assert_eq!(fraction(parse_quote!("nan%")), None);
    }

    #[test]
    fn versions_schemas_companions_and_paths_are_checked() {
        assert_eq!(version(&given(parse_quote!(3))).unwrap(), 3);
        assert!(version(&given(parse_quote!(-1))).is_err());
        assert!(version(&given(parse_quote!(4294967296))).is_err());
        assert_eq!(schema(&given(parse_quote!("report"))).unwrap(), "report");
        assert!(schema(&given(parse_quote!(""))).is_err() && schema(&given(parse_quote!(report))).is_err());
        assert!(matches!(companions(&given(parse_quote!(false))).unwrap(), Companions::None));
        assert!(matches!(
            companions(&given(parse_quote!(ScanCache))).unwrap(),
            Companions::Named(name) if name == "ScanCache"
        ));
        assert!(companions(&given(parse_quote!("text"))).is_err());
        assert!(krate(&given(parse_quote!("crate::cache"))).is_ok());
        assert!(krate(&given(parse_quote!("a b"))).is_err());
        assert!(profile(&given(parse_quote!("workflow"))).is_err());
    }
}
