//! `crate::sync` as loom has it.

pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
pub(crate) use loom::thread::yield_now;

/// loom's flag. A swap that changes nothing writes nothing: loom leaves open in which order such a
/// write and another thread's come, and then lets who spins see its own for ever.
#[derive(Default)]
pub(crate) struct AtomicBool(loom::sync::atomic::AtomicBool);

impl AtomicBool {
    pub(crate) fn load(&self, order: Ordering) -> bool {
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        self.0.store(value, order);
    }

    pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
        let swapped = self.0.compare_exchange(!value, value, order, Ordering::Relaxed);
        swapped.unwrap_or_else(|now| now)
    }
}

/// Who spins lets others go on: the model has no time in which they would by themselves.
pub(crate) fn spin_loop() {
    yield_now();
}

/// loom's mutex with parking_lot's calls.
#[derive(Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("no model panics with a lock")
    }
}

/// loom's cell with the standard one's calls. Every look at it counts as a write, so that two that no
/// lock orders are told.
#[derive(Default)]
pub(crate) struct UnsafeCell<T>(loom::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0.with_mut(|inside| inside)
    }
}
