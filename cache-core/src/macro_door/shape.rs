//! The shape of an annotated function's return type: plain, `Arc`, `Option`, `Result`, and their combinations.
//!
//! Recognised by method resolution on a [`Probe`] of the real type, so that an alias behaves like what it stands for:
//! the more references a candidate's `Self` has, the earlier it is tried.

use std::{convert::Infallible, marker::PhantomData};

use crate::{flight::share::Share, near::Cached, sync::Arc, value::codec::CacheValue};

/// How a return type `R` is taken apart for the cache and put together again.
pub trait Shape<R>: Copy {
    /// The cached value's type.
    type Value: CacheValue;
    /// The error's type.
    type Error;

    /// What the cache stores of `returned`: a value, that there is none, or nothing but the error.
    ///
    /// # Errors
    /// The error in `returned`.
    fn split(self, returned: R) -> Result<Option<Arc<Self::Value>>, Self::Error>;

    /// The return value for a value, or for none. `None` where this shape cannot say "none".
    fn join(self, value: Cached<Self::Value>) -> Option<R>;

    /// The return value for an error.
    fn fail(self, error: Self::Error) -> R;

    /// How errors are given to the calls that waited, where their type allows it.
    fn sharing(self) -> Option<Share<Self::Error>> {
        None
    }
}

/// What `put` takes for a function returning `R`: an `R`, or its success value alone.
pub trait Put<R> {
    /// The return value.
    fn returned(self) -> R;
}

impl<R> Put<R> for R {
    fn returned(self) -> R {
        self
    }
}

impl<T, E> Put<Result<T, E>> for T {
    fn returned(self) -> Result<T, E> {
        Ok(self)
    }
}

impl<T> Put<Option<T>> for T {
    fn returned(self) -> Option<T> {
        Some(self)
    }
}

/// Asks for the shape of `R`.
#[derive(Debug)]
pub struct Probe<R>(PhantomData<fn() -> R>);

impl<R> Probe<R> {
    /// The question.
    pub const NEW: Self = Self(PhantomData);
}

macro_rules! shapes {
    ($(
        $shape:ident via $pick:ident for $probe:ty: $returned:ty, [$($error:ident)?], $fails:ty, [$($clone:tt)*];
        split |$given:ident| $split:expr;
        join |$value:ident| $join:expr;
        fail |$failure:ident| $fail:expr;
    )*) => {$(
        #[doc = concat!("The shape `", stringify!($returned), "`.")]
        pub struct $shape<T $(, $error)?>(PhantomData<fn() -> (T, $($error)?)>);

        impl<T $(, $error)?> Clone for $shape<T $(, $error)?> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T $(, $error)?> Copy for $shape<T $(, $error)?> {}

        impl<T $(, $error)?> std::fmt::Debug for $shape<T $(, $error)?> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($shape))
            }
        }

        impl<T $(, $error)?> Fails for $shape<T $(, $error)?> {
            type Error = $fails;
        }

        $(impl<T, $error> CanFail for $shape<T, $error> {
            type Error = $error;
        })?

        impl<T: CacheValue $($clone)* $(, $error)?> Shape<$returned> for $shape<T $(, $error)?> {
            type Value = T;
            type Error = $fails;

            fn split(self, $given: $returned) -> Result<Option<Arc<T>>, $fails> {
                $split
            }

            fn join(self, $value: Cached<T>) -> Option<$returned> {
                $join
            }

            fn fail(self, $failure: $fails) -> $returned {
                $fail
            }
        }

        impl<T $(, $error)?> $pick for $probe {
            type Shape = $shape<T $(, $error)?>;

            fn pick(&self) -> Self::Shape {
                $shape(PhantomData)
            }
        }
    )*};
}

macro_rules! picks {
    ($($pick:ident)*) => {$(
        #[doc(hidden)]
        pub trait $pick {
            type Shape;
            fn pick(&self) -> Self::Shape;
        }
    )*};
}
picks! { Pick1 Pick2 Pick3 Pick4 Pick5 }

/// The error type of a shape; of one that never fails, `Infallible`.
#[doc(hidden)]
pub trait Fails {
    type Error;
}

/// A shape of a `Result`, and its error.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`share_error` is for errors, and this function returns no `Result`",
    label = "returns no error: remove `share_error`, or return a `Result`"
)]
pub trait CanFail {
    type Error;
}

/// A shape whose errors are shared with the calls that waited.
pub struct Sharing<S, E> {
    shape: S,
    share: Share<E>,
}

impl<S: Copy, E> Clone for Sharing<S, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Copy, E> Copy for Sharing<S, E> {}

impl<S, E> std::fmt::Debug for Sharing<S, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sharing")
    }
}

impl<R, E, S: Shape<R, Error = E>> Shape<R> for Sharing<S, E> {
    type Value = S::Value;
    type Error = E;

    fn split(self, returned: R) -> Result<Option<Arc<S::Value>>, E> {
        self.shape.split(returned)
    }

    fn join(self, value: Cached<S::Value>) -> Option<R> {
        self.shape.join(value)
    }

    fn fail(self, error: E) -> R {
        self.shape.fail(error)
    }

    fn sharing(self) -> Option<Share<E>> {
        Some(self.share)
    }
}

/// Picked where errors can be cloned.
#[doc(hidden)]
pub trait ShareCloned {
    type Shared;
    fn share(&self) -> Self::Shared;
}

impl<S: Fails + Copy> ShareCloned for &S
where
    S::Error: Clone + Send + Sync + 'static,
{
    type Shared = Sharing<S, S::Error>;

    fn share(&self) -> Sharing<S, S::Error> {
        Sharing { shape: **self, share: Share::by(Clone::clone) }
    }
}

/// Picked otherwise.
#[doc(hidden)]
pub trait ShareNot {
    type Shared;
    fn share(&self) -> Self::Shared;
}

impl<S: Fails + Copy> ShareNot for S {
    type Shared = S;

    fn share(&self) -> S {
        *self
    }
}

/// Picked where there are errors, which a function of the user copies.
#[doc(hidden)]
pub trait ShareBy {
    type Error;
    type Shared;
    fn share_by(&self, copy: fn(&Self::Error) -> Self::Error) -> Self::Shared;
}

impl<S: CanFail + Copy> ShareBy for &S
where
    S::Error: Send + Sync + 'static,
{
    type Error = S::Error;
    type Shared = Sharing<S, S::Error>;

    fn share_by(&self, copy: fn(&S::Error) -> S::Error) -> Sharing<S, S::Error> {
        Sharing { shape: **self, share: Share::by(copy) }
    }
}

/// Picked otherwise, to be refused with one message.
#[doc(hidden)]
pub trait ShareByNot: Copy {
    fn share_by<F>(&self, _copy: F) -> Self
    where
        Self: CanFail<Error: Send + Sync + 'static>,
    {
        *self
    }
}

impl<S: Fails + Copy> ShareByNot for S {}

fn owned<T: Clone>(value: Arc<T>) -> T {
    Arc::unwrap_or_clone(value)
}

shapes! {
    ResultOptionArc via Pick1 for &&&&Probe<Result<Option<Arc<T>>, E>>: Result<Option<Arc<T>>, E>, [E], E, [];
    split |given| given;
    join |value| Some(Ok(value));
    fail |failure| Err(failure);

    ResultOption via Pick2 for &&&Probe<Result<Option<T>, E>>: Result<Option<T>, E>, [E], E, [+ Clone];
    split |given| given.map(|value| value.map(Arc::new));
    join |value| Some(Ok(value.map(owned)));
    fail |failure| Err(failure);

    ResultArc via Pick2 for &&&Probe<Result<Arc<T>, E>>: Result<Arc<T>, E>, [E], E, [];
    split |given| given.map(Some);
    join |value| value.map(Ok);
    fail |failure| Err(failure);

    ResultPlain via Pick3 for &&Probe<Result<T, E>>: Result<T, E>, [E], E, [+ Clone];
    split |given| given.map(|value| Some(Arc::new(value)));
    join |value| value.map(|value| Ok(owned(value)));
    fail |failure| Err(failure);

    OptionArc via Pick3 for &&Probe<Option<Arc<T>>>: Option<Arc<T>>, [], Infallible, [];
    split |given| Ok(given);
    join |value| Some(value);
    fail |failure| match failure {};

    OptionPlain via Pick4 for &Probe<Option<T>>: Option<T>, [], Infallible, [+ Clone];
    split |given| Ok(given.map(Arc::new));
    join |value| Some(value.map(owned));
    fail |failure| match failure {};

    ArcPlain via Pick4 for &Probe<Arc<T>>: Arc<T>, [], Infallible, [];
    split |given| Ok(Some(given));
    join |value| value;
    fail |failure| match failure {};

    Plain via Pick5 for Probe<T>: T, [], Infallible, [+ Clone];
    split |given| Ok(Some(Arc::new(given)));
    join |value| value.map(owned);
    fail |failure| match failure {};
}
