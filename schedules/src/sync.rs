//! What `cache-core/src/sync.rs` offers, with a scheduling point before each step that another task can see, and after
//! each that changes something: what follows may be a look at something that has no such points, the near tier's map.

pub(crate) use std::sync::{Arc, OnceLock, Weak, atomic::Ordering};
use std::{
    ops::{Deref, DerefMut},
    sync::PoisonError,
};

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        Guard { guard: self.0.lock().unwrap_or_else(PoisonError::into_inner), _after: After }
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn read(&self) -> Guard<shuttle::sync::RwLockReadGuard<'_, T>> {
        Guard { guard: self.0.read().unwrap_or_else(PoisonError::into_inner), _after: After }
    }

    pub(crate) fn write(&self) -> Guard<shuttle::sync::RwLockWriteGuard<'_, T>> {
        Guard { guard: self.0.write().unwrap_or_else(PoisonError::into_inner), _after: After }
    }
}

pub(crate) type MutexGuard<'a, T> = Guard<shuttle::sync::MutexGuard<'a, T>>;

#[derive(Debug)]
pub(crate) struct Guard<G> {
    guard: G,
    /// Dropped after the guard.
    _after: After,
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

#[derive(Debug)]
struct After;

impl Drop for After {
    fn drop(&mut self) {
        point(Ordering::SeqCst);
    }
}

thread_local! {
    /// Its only use is that shuttle may switch before it is looked at.
    static POINT: shuttle::sync::atomic::AtomicBool = const { shuttle::sync::atomic::AtomicBool::new(false) };
}

/// Lets shuttle decide who goes on, unless the access is a relaxed one: nothing but statistics rests on those.
fn point(order: Ordering) {
    if order != Ordering::Relaxed {
        POINT.with(|point| point.load(Ordering::SeqCst));
    }
}

/// The standard library's atomics with scheduling points around each access: one task runs at a time, so that is all
/// there is to explore. Unlike shuttle's own they may be `static`, and a thousand of them cost next to nothing.
macro_rules! atomics {
    ($($name:ident($value:ty): $($function:ident)*;)+) => {
        $(
            #[derive(Debug, Default)]
            pub(crate) struct $name(std::sync::atomic::$name);

            impl $name {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    point(order);
                    self.0.load(order)
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    point(order);
                    self.0.store(value, order);
                    point(order);
                }

                $(
                    pub(crate) fn $function(&self, value: $value, order: Ordering) -> $value {
                        point(order);
                        let before = self.0.$function(value, order);
                        point(order);
                        before
                    }
                )*

                pub(crate) fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    point(success);
                    let outcome = self.0.compare_exchange(current, new, success, failure);
                    point(success);
                    outcome
                }
            }
        )+
    };
}

atomics! {
    AtomicBool(bool): swap;
    AtomicU64(u64): swap fetch_add fetch_sub fetch_max;
    AtomicUsize(usize): fetch_add fetch_sub fetch_max;
}
