//! Rules that join the attribute to the arguments of the function: which argument is in the key, which is the tenant, which
//! is for the body alone.

use proc_macro2::{Ident, Span};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::{Expr, Generics, LitStr, Type};

use super::signature::{Input, Role};
use super::template::{Placeholder, Template};
use super::values;
use crate::args::Args;
use crate::mistakes::Mistakes;
use crate::words::{reads, words};

/// An argument of this name is the tenant unless the attribute says otherwise.
const TENANT_ARGUMENT: &str = "tenant_id";

/// Whose data the function returns.
pub(crate) enum Tenant {
    /// Nobody's.
    Global,
    /// This tenant's.
    Of(Expr),
}

/// What the attribute makes of the function's arguments.
pub(crate) struct Roles {
    pub(crate) inputs: Vec<Input>,
    /// Const parameters that are part of the key.
    pub(crate) consts: Vec<Ident>,
    pub(crate) tenant: Tenant,
    pub(crate) template: Option<Template>,
}

/// Gives every argument its role.
pub(super) fn check(
    args: &Args,
    mut inputs: Vec<Input>,
    output: &Type,
    generics: &Generics,
    mistakes: &mut Mistakes,
) -> Roles {
    let tenant = tenant(args, &mut inputs);
    mark_read(args.cache.as_ref().map(|given| &given.value), Some(Role::Cache), &mut inputs);
    mark_read(args.tags.as_ref().map(|given| &given.value), None, &mut inputs);
    let mut consts: Vec<Ident> = generics.const_params().map(|param| param.ident.clone()).collect();
    let skipped = args.skip.as_ref().map_or(&[][..], |given| &given.value);
    skip(skipped, &mut inputs, &mut consts, mistakes);
    let template = args.key.as_ref().and_then(|given| {
        let literal = mistakes.keep(values::key(given))?;
        let template = parse_template(&literal, mistakes)?;
        let is_sound = expect_known_placeholders(&template, literal.span(), &inputs, &consts, skipped, mistakes);
        is_sound.then_some(template)
    });
    // An argument that could not be read may have been the `skip(..)` that explains the rest.
    if let Some(template) = &template
        && !args.incomplete
    {
        expect_all_in_template(template, &inputs, &consts, mistakes);
        refuse_hidden_types(&inputs, output, generics, mistakes);
    }
    refuse_mutable_keys(&inputs, mistakes);
    Roles { inputs, consts, tenant, template }
}

/// The expression of the attribute, else the argument called `tenant_id`, else nobody.
fn tenant(args: &Args, inputs: &mut [Input]) -> Tenant {
    let expression = match &args.tenant {
        Some(given) if is_word(&given.value, "global") => return Tenant::Global,
        Some(given) => given.value.clone(),
        None => {
            let found = inputs.iter().find(|input| is_called(input, TENANT_ARGUMENT));
            let Some(input) = found else {
                return Tenant::Global;
            };
            let name = &input.name;
            syn::parse_quote!(#name)
        }
    };
    mark_read(Some(&expression), Some(Role::Tenant), inputs);
    Tenant::Of(expression)
}

/// An argument that *is* the expression has its role, if it gives one; others that the expression may read stay in the
/// key.
fn mark_read(expression: Option<&Expr>, role: Option<Role>, inputs: &mut [Input]) {
    let Some(expression) = expression else { return };
    let reads = reads(expression);
    for input in inputs.iter_mut().filter(|input| input.is_named) {
        if let Some(role) = role
            && is_word(expression, &input.name.to_string())
        {
            input.role = role;
        }
        input.is_read |= reads.contains(&input.name.to_string());
    }
}

fn skip(skipped: &[Ident], inputs: &mut [Input], consts: &mut Vec<Ident>, mistakes: &mut Mistakes) {
    for (index, name) in skipped.iter().enumerate() {
        if skipped[..index].contains(name) {
            mistakes.at(name.span(), format!("`{name}` is skipped twice: remove one of the two"));
            continue;
        }
        let plain = name.unraw().to_string();
        if let Some(position) = consts.iter().position(|param| param.unraw() == plain) {
            consts.remove(position);
            continue;
        }
        match inputs.iter().position(|input| is_called(input, &plain)) {
            Some(index) if inputs[index].role == Role::Tenant => {
                let message = format!(
                    "`{name}` is the tenant and cannot be skipped: for one value that all tenants share, write `tenant = global`"
                );
                mistakes.at(name.span(), message);
            }
            Some(index) if inputs[index].role == Role::Cache => {}
            Some(index) => inputs[index].role = Role::Skipped,
            None => {
                let message = format!("`skip({name})` names no argument: expected {}", one_of(inputs));
                mistakes.at(name.span(), message);
            }
        }
    }
}

fn parse_template(literal: &LitStr, mistakes: &mut Mistakes) -> Option<Template> {
    let parsed = Template::parse(&literal.value());
    let messages = match parsed {
        Ok(template) => return Some(template),
        Err(messages) => messages,
    };
    for message in messages {
        mistakes.at(literal.span(), message);
    }
    None
}

/// Whether each placeholder names something that may be in the key.
fn expect_known_placeholders(
    template: &Template,
    span: Span,
    inputs: &[Input],
    consts: &[Ident],
    skipped: &[Ident],
    mistakes: &mut Mistakes,
) -> bool {
    let mut is_sound = true;
    for Placeholder { root, .. } in template.placeholders() {
        let is_known =
            inputs.iter().any(|input| is_called(input, root)) || consts.iter().any(|name| name.unraw() == root);
        let message = if skipped.iter().any(|name| name.unraw() == root) {
            format!("`{root}` is in `key` and in `skip(..)`: remove it from one of them")
        } else if !is_known {
            format!("`{{{root}}}` in `key` names no argument: expected {}", one_of(inputs))
        } else {
            continue;
        };
        is_sound = false;
        mistakes.at(span, message);
    }
    is_sound
}

/// With a template, what is neither in it nor skipped would be forgotten: two calls would share one value.
fn expect_all_in_template(template: &Template, inputs: &[Input], consts: &[Ident], mistakes: &mut Mistakes) {
    let in_template = |name: &Ident| {
        let name = name.unraw();
        template.placeholders().any(|placeholder| name == placeholder.root)
    };
    let arguments = inputs.iter().filter(|input| input.role == Role::Key);
    let names = arguments.map(|input| (&input.name, input.is_named, input.declared.pat.to_token_stream()));
    let names = names.chain(consts.iter().map(|name| (name, true, name.to_token_stream())));
    for (name, is_named, written) in names {
        if in_template(name) {
            continue;
        }
        let plain = name.unraw();
        let message = match is_named {
            true => format!(
                "`{plain}` is not in `key`, so calls that differ in it would share one value: \
                 add `{{{plain}}}` to the template, or write `skip({plain})`"
            ),
            false => String::from(
                "this argument has no name, so `key` cannot contain it: give it a name and add it to the template, \
                 or to `skip(..)`",
            ),
        };
        mistakes.on(written, message);
    }
}

/// With a template, the text of the arguments and the type of the value tell calls apart. A type parameter that shows in
/// neither would be forgotten.
fn refuse_hidden_types(inputs: &[Input], output: &Type, generics: &Generics, mistakes: &mut Mistakes) {
    let mut shown = words(output);
    shown.extend(inputs.iter().flat_map(|input| words(input.ty())));
    let hidden = generics.type_params().filter(|param| !shown.contains(&param.ident.to_string()));
    for param in hidden {
        let message = format!(
            "`{0}` shows in no argument and not in the return type, so calls that differ in it would share one value: \
             remove `key`; without it the value is bound to its types",
            param.ident
        );
        mistakes.on(&param.ident, message);
    }
}

fn refuse_mutable_keys(inputs: &[Input], mistakes: &mut Mistakes) {
    for input in inputs.iter().filter(|input| input.role == Role::Key) {
        if is_mutable_borrow(input.ty()) {
            let message = match input.is_named {
                true => format!(
                    "a hit does not run the body, so it cannot change `{0}`: pass it by value or `&`, or write `skip({0})`",
                    input.name.unraw()
                ),
                false => String::from(
                    "a hit does not run the body, so it cannot change this argument: pass it by value or `&`",
                ),
            };
            mistakes.on(input.ty(), message);
        }
    }
}

fn is_mutable_borrow(ty: &Type) -> bool {
    match ty {
        Type::Group(group) => is_mutable_borrow(&group.elem),
        Type::Paren(paren) => is_mutable_borrow(&paren.elem),
        Type::Reference(reference) => reference.mutability.is_some(),
        _ => false,
    }
}

fn is_called(input: &Input, name: &str) -> bool {
    input.is_named && input.name.unraw() == name
}

fn is_word(expression: &Expr, word: &str) -> bool {
    matches!(values::plain(expression), Expr::Path(path) if path.path.is_ident(word))
}

/// The arguments one may name, for a message.
fn one_of(inputs: &[Input]) -> String {
    let named = inputs.iter().filter(|input| input.is_named);
    let names: Vec<_> = named.map(|input| format!("`{}`", input.name.unraw())).collect();
    match names.len() {
        0 => String::from("none, the function has no named argument"),
        _ => names.join(", "),
    }
}
