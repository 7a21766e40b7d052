//! The lock of a port: as cheap as one atomic exchange when nobody else wants it.
//!
//! A port is used by one thread of a device model, nearly always; now and then an unmap comes to
//! invalidate. A general mutex pays for its queue of waiters with a second atomic exchange at the
//! unlock, which is a third of what a warm access of 64 bytes costs. Here whoever waits spins, and
//! soon yields the processor. `tests/models` tries it under loom.
#![allow(unsafe_code)] // A lock around a cell.

use std::ops::{Deref, DerefMut};

use crate::sync::{AtomicBool, Ordering, UnsafeCell, spin_loop, yield_now};

/// Spins before a waiter yields.
const SPINS: u32 = 100;

#[derive(Default)]
pub(super) struct Gate<T> {
    taken: AtomicBool,
    inside: UnsafeCell<T>,
}

// SAFETY: a `Guard` exists for one thread at a time, so a shared gate moves `T` between threads
// and does not share it.
unsafe impl<T: Send> Sync for Gate<T> {}

pub(super) struct Guard<'a, T>(&'a Gate<T>);

impl<T> Gate<T> {
    #[inline]
    pub(super) fn lock(&self) -> Guard<'_, T> {
        if self.taken.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Guard(self)
    }

    #[cold]
    fn wait(&self) {
        loop {
            for _ in 0..SPINS {
                if !self.taken.load(Ordering::Relaxed) && !self.taken.swap(true, Ordering::Acquire)
                {
                    return;
                }
                spin_loop();
            }
            yield_now();
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: only who found `taken` clear and set it has a guard, until it is dropped.
        unsafe { &*self.0.inside.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard itself is borrowed mutably.
        unsafe { &mut *self.0.inside.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}
