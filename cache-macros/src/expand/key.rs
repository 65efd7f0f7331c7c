//! `__key`: writes the identifier.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::Type;
use syn::spanned::Spanned;

use super::Expansion;
use crate::key_plan::Piece;
use crate::model::Input;

impl Expansion<'_> {
    /// The function, from references to the arguments.
    pub(super) fn key(&self) -> TokenStream {
        let Self { door, plan, .. } = self;
        let generics = &plan.key_generics;
        let clause = &generics.where_clause;
        let allowances = self.allowances();
        let arguments = self.key_inputs().into_iter().map(borrowed_argument);
        let is_sole = plan.segments.len() == 1;
        let segments = plan.segments.iter().map(|segment| {
            let pieces = segment.iter().map(|piece| write_piece(door, piece));
            quote_spanned!(Span::mixed_site()=> #door::segment(writer, #is_sole); #(#pieces)*)
        });
        quote_spanned! {Span::mixed_site()=>
            #allowances
            fn __key #generics(
                writer: &mut #door::KeyWriter,
                #(#arguments),*
            ) -> ::core::result::Result<(), #door::Error> #clause {
                #(#segments)*
                ::core::result::Result::Ok(())
            }
        }
    }
}

/// Statements that write one piece into the current segment.
fn write_piece(door: &TokenStream, piece: &Piece) -> TokenStream {
    match piece {
        Piece::Text(text) => quote_spanned!(Span::mixed_site()=> writer.literal(#text);),
        Piece::Value { borrowed, blamed } => {
            // The value is named outside the block: the glob could shadow it.
            quote_spanned! {blamed.span().resolved_at(Span::mixed_site())=>
                let part = #door::Arg(#borrowed);
                {
                    use #door::autoref::*;
                    (&&part).write_key(writer)?;
                }
            }
        }
    }
}

/// `name: &Type`.
fn borrowed_argument(input: &Input) -> TokenStream {
    let (name, ty) = (&input.name, input.ty());
    match ty {
        // `&impl A + B` would be read as `(&impl A) + B`.
        Type::ImplTrait(_) => quote!(#name: &(#ty)),
        _ => quote!(#name: &#ty),
    }
}
