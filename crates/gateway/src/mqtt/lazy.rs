//! What is made when it is first needed, so that a connection that never needs it holds a pointer.

use std::ops::{Deref, DerefMut};

/// What something looks like that was not needed yet.
pub(super) trait Unused: Default + 'static {
    /// Equal to the default value.
    fn unused() -> &'static Self;
}

/// Reads as unused until it is first written to, which makes it.
#[derive(Debug)]
pub(super) struct Lazy<T>(Option<Box<T>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Lazy<T> {
    /// The value if there is one: what would change nothing of an unused one goes by here, and does not make it.
    pub(super) fn made(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// The value, by itself.
    pub(super) fn into_inner(self) -> T
    where
        T: Default,
    {
        self.0.map(|value| *value).unwrap_or_default()
    }

    /// Gives its memory back.
    pub(super) fn give_back(&mut self) {
        self.0 = None;
    }
}

impl<T: Unused> Deref for Lazy<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => T::unused(),
        }
    }
}

impl<T: Unused> DerefMut for Lazy<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}
