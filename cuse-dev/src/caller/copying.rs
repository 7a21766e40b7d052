//! Copies that a caller can hold: what tells that one is stuck, and lets its caller die.
//!
//! Memory may never answer: its faults are resolved by a userfaultfd, or by a file system, of the
//! caller's own. A thread of ours that copies from there waits, and cannot be woken. If the caller
//! is then killed, it waits for our answer and its descriptors for its end, the userfaultfd among
//! them: a deadlock, unless its call is answered while the copy is stuck.
//!
//! Once that is done, the caller's thread id may soon name somebody else, so nothing more may be
//! done by that id when the copy comes back. Each copy is between [`enter`] and the drop of what
//! that returned, and [`abandon`] succeeds only while the thread sleeps *inside* a copy's system
//! call, where the id was looked up already. All later ones find the mark.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use engine::Errno;
use parking_lot::Mutex;

/// What one thread of ours is at.
#[derive(Default)]
struct Slot {
    /// Odd while it copies; only grows.
    copies: AtomicU64,
    /// The caller that it works for was answered, and may be gone.
    abandoned: AtomicBool,
}

/// By thread id.
static SLOTS: Mutex<Option<HashMap<i32, Weak<Slot>>>> = Mutex::new(None);

thread_local! {
    static SLOT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

/// A copy that is being made. Dropping it ends it.
pub(crate) struct Copying(Option<Arc<Slot>>);

impl Drop for Copying {
    fn drop(&mut self) {
        if let Some(slot) = &self.0 {
            slot.copies.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// This thread begins to work for another caller, whom [`abandon`] may answer from here on.
pub(crate) fn begin() {
    SLOT.with_borrow_mut(|slot| match slot {
        Some(slot) => slot.abandoned.store(false, Ordering::SeqCst),
        None => {
            let new = Arc::<Slot>::default();
            let mut slots = SLOTS.lock();
            let slots = slots.get_or_insert_default();
            slots.retain(|_, slot| slot.strong_count() > 0);
            slots.insert(nix::unistd::gettid().as_raw(), Arc::downgrade(&new));
            *slot = Some(new);
        }
    });
}

/// Before a copy by way of the caller's thread id. `EFAULT` when the caller was abandoned.
pub(crate) fn enter() -> Result<Copying, Errno> {
    let slot = SLOT.with_borrow(Clone::clone);
    if let Some(slot) = &slot {
        slot.copies.fetch_add(1, Ordering::SeqCst);
    }
    let copying = Copying(slot);
    copying.check()?;
    Ok(copying)
}

/// Before anything else that is done by the caller's thread id. `ESRCH` when it was abandoned.
pub(crate) fn still_there() -> Result<(), Errno> {
    let abandoned =
        SLOT.with_borrow(|slot| slot.as_ref().is_some_and(|s| s.abandoned.load(Ordering::SeqCst)));
    if abandoned { Err(Errno::ESRCH) } else { Ok(()) }
}

impl Copying {
    fn check(&self) -> Result<(), Errno> {
        let abandoned = |slot: &Arc<Slot>| slot.abandoned.load(Ordering::SeqCst);
        if self.0.as_ref().is_some_and(abandoned) { Err(Errno::EFAULT) } else { Ok(()) }
    }
}

/// Whether the caller for whom our thread `by` works may be answered now by another: if so, `by`
/// does no more in its name.
pub(crate) fn abandon(by: i32) -> bool {
    let slot = SLOTS.lock().as_ref().and_then(|slots| slots.get(&by)?.upgrade());
    let Some(slot) = slot else { return false };
    let before = slot.copies.load(Ordering::SeqCst);
    if before % 2 == 0 || !sleeps_in_copy(by) {
        return false;
    }
    slot.abandoned.store(true, Ordering::SeqCst);
    // Still the copy in which it slept: whatever follows sees the mark.
    slot.copies.load(Ordering::SeqCst) == before
}

/// Whether our thread sleeps in a system call that copies.
pub(crate) fn sleeps_in_copy(by: i32) -> bool {
    let copies = [libc::SYS_process_vm_readv, libc::SYS_process_vm_writev];
    // "running", or the number of the call and its arguments.
    let text = std::fs::read_to_string(format!("/proc/self/task/{by}/syscall"));
    let number = text.ok().and_then(|text| text.split(' ').next()?.trim().parse().ok());
    number.is_some_and(|number: libc::c_long| copies.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_copy_is_not_abandoned() {
        begin();
        let this = nix::unistd::gettid().as_raw();
        assert!(!abandon(this));
        let copying = enter().unwrap();
        // It runs.
        assert!(!abandon(this));
        drop(copying);
        assert!(enter().is_ok());
        assert_eq!(still_there(), Ok(()));
    }
}
