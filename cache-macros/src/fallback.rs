//! What is emitted in place of an expansion when something is wrong.

use proc_macro2::TokenStream;

/// The errors, and the item as it was: whoever uses the function still finds it, so that a mistake gives one message.
pub(crate) fn untouched(error: &syn::Error, item: TokenStream) -> TokenStream {
    let mut tokens = error.to_compile_error();
    tokens.extend(item);
    tokens
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;
    use crate::model;

    #[test]
    fn the_item_survives_its_mistakes() {
        let item = quote!(
            fn f() -> u8 {
                1
            }
        );
        let error = model::check(quote!(ttl = 0), item.clone()).err().unwrap();
        let emitted = untouched(&error, item.clone()).to_string();
        assert_eq!(emitted.matches("compile_error").count(), 2);
        assert!(emitted.ends_with(&item.to_string()));
    }
}
