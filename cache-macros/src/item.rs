//! The annotated item, read only as far as the attribute needs: the body stays tokens, so an unfinished or very new
//! body is the compiler's to judge and costs nothing here.

use proc_macro2::TokenStream;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Signature, Token, Visibility};

/// A function in parts.
pub(crate) struct Item {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    /// The braces and what is between them.
    pub(crate) body: TokenStream,
}

impl Parse for Item {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let visibility = input.parse()?;
        expect_function(input)?;
        let signature = input.parse()?;
        if input.peek(Token![;]) {
            let message = "#[cached] needs a body to run on a miss: \
                           put it on a free `async fn`, not on a declaration in a trait";
            return Err(input.error(message));
        }
        let body = input.parse()?;
        Ok(Self { attributes, visibility, signature, body })
    }
}

fn expect_function(input: ParseStream<'_>) -> syn::Result<()> {
    let found = match input.cursor().ident() {
        Some((word, _)) => word.to_string(),
        None => String::from("something else"),
    };
    // `const` and `unsafe` begin a function or another item; what follows decides.
    let functions = ["async", "fn", "const", "unsafe", "extern"];
    let is_function = functions.contains(&found.as_str()) && input.fork().parse::<Signature>().is_ok();
    if is_function || matches!(found.as_str(), "async" | "fn") {
        return Ok(());
    }
    let message = format!("#[cached] goes on a free `async fn`, found `{found}`");
    Err(input.error(message))
}
