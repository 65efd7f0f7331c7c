//! Tenant ids and the scope prefix of a key.

use std::{borrow::Cow, fmt, sync::Arc};

use super::segment::encode;
use crate::error::{Error, ErrorKind};

/// The longest tenant segment, percent-encoded, in bytes.
pub(crate) const MAX_TENANT: usize = 192;

/// A value that names a tenant: text or an integer.
///
/// `Option` is left out on purpose: a missing tenant must be resolved where it is known what it means, and never
/// silently means "all tenants".
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not name a tenant",
    label = "not a tenant id",
    note = "a tenant id is text or an integer; resolve an `Option` in the attribute: `tenant = tenant_id.unwrap_or(\"…\")`",
    note = "`tenant = global` says that the function belongs to no tenant"
)]
pub trait TenantArgument {
    /// Calls `then` with the tenant id as text.
    fn with_tenant<R>(&self, then: impl FnOnce(&str) -> R) -> R;
}

macro_rules! text_tenant {
    ($($text:ty),*) => {$(
        impl TenantArgument for $text {
            fn with_tenant<R>(&self, then: impl FnOnce(&str) -> R) -> R {
                then(self)
            }
        }
    )*};
}
text_tenant!(str, String, Box<str>, Arc<str>, Cow<'_, str>);

macro_rules! integer_tenant {
    ($($integer:ty),*) => {$(
        impl TenantArgument for $integer {
            fn with_tenant<R>(&self, then: impl FnOnce(&str) -> R) -> R {
                then(itoa::Buffer::new().format(*self))
            }
        }
    )*};
}
integer_tenant!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

impl<T: TenantArgument + ?Sized> TenantArgument for &T {
    fn with_tenant<R>(&self, then: impl FnOnce(&str) -> R) -> R {
        (**self).with_tenant(then)
    }
}

/// Appends `<root>:tenant:<tenant>:` to `out`.
///
/// # Errors
/// [`ErrorKind::InvalidTenant`] when the id is empty or longer than 192 bytes once percent-encoded.
#[inline]
pub(crate) fn write_tenant(root: &str, tenant: &str, out: &mut impl fmt::Write) -> Result<(), Error> {
    if tenant.is_empty() || tenant.len() > MAX_TENANT {
        return Err(invalid_tenant(tenant.len()));
    }
    // Cannot overflow: the caller's buffer holds the longest root and tenant.
    let _ = out.write_str(root);
    let _ = out.write_str(":tenant:");
    let mut length = 0;
    encode(tenant, |piece| {
        length += piece.len();
        if length <= MAX_TENANT {
            let _ = out.write_str(piece);
        }
    });
    if length > MAX_TENANT {
        return Err(invalid_tenant(length));
    }
    let _ = out.write_char(':');
    Ok(())
}

#[cold]
fn invalid_tenant(length: usize) -> Error {
    let message = if length == 0 {
        "tenant id is empty; give 1 to 192 bytes, or use `global()` for data of no tenant".to_owned()
    } else {
        format!(
            "tenant id is {length} bytes (percent-encoded where needed), at most {MAX_TENANT} are allowed; \
             use the tenant's short id"
        )
    };
    Error::new(ErrorKind::InvalidTenant, message)
}
