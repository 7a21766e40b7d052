//! One table in memory, as words.
//!
//! A table that readers can reach is only touched through atomic words; one that no entry points at
//! yet, or whose writer has no readers, belongs to one thread alone and is accessed through cells,
//! which the compiler may widen.
#![allow(unsafe_code)] // Table pages are raw memory.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

/// A table of 2^`lg2` entries.
#[derive(Clone, Copy)]
pub(crate) struct Tab<'m> {
    words: NonNull<u64>,
    lg2: u32,
    memory: PhantomData<&'m AtomicU64>,
}

impl<'m> Tab<'m> {
    /// # Safety
    /// `words` is valid for atomic access to 2^`lg2` aligned words as long as 'm lasts, and nobody
    /// accesses them otherwise, but for the one writer before it has published the table.
    pub(crate) unsafe fn new(words: NonNull<u64>, lg2: u32) -> Self {
        Self { words, lg2, memory: PhantomData }
    }

    /// Where the first word is.
    pub(crate) fn start(self) -> NonNull<u64> {
        self.words
    }

    pub(crate) fn lg2(self) -> u32 {
        self.lg2
    }

    pub(crate) fn len(self) -> usize {
        1 << self.lg2
    }

    /// The index of the entry that `iova` selects where an entry covers 2^`shift` bytes.
    #[inline]
    pub(crate) fn index(self, iova: u64, shift: u32) -> usize {
        (iova >> shift) as usize & (self.len() - 1)
    }

    /// One entry. The index wraps at the table's length, so that no caller can leave the table.
    #[inline]
    pub(crate) fn at(self, index: usize) -> &'m AtomicU64 {
        // SAFETY: the masked index is inside of the words that `new` was promised.
        unsafe { AtomicU64::from_ptr(self.words.as_ptr().add(index & (self.len() - 1))) }
    }

    #[inline]
    pub(crate) fn load(self, index: usize) -> u64 {
        self.at(index).load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn store(self, index: usize, entry: u64) {
        self.at(index).store(entry, Ordering::Release);
    }

    /// Some entries as atomic words; an empty slice if the range leaves the table.
    #[inline]
    pub(crate) fn words(self, range: Range<usize>) -> &'m [AtomicU64] {
        // SAFETY: AtomicU64 has the layout of u64, and `new` was promised that all accesses are atomic
        // while this is shared.
        let all: &'m [AtomicU64] =
            unsafe { core::slice::from_raw_parts(self.words.as_ptr().cast(), self.len()) };
        all.get(range).unwrap_or(&[])
    }

    /// Some entries as cells, which the compiler may access in wide pieces; an empty slice if the range
    /// leaves the table.
    ///
    /// # Safety
    /// Nobody on another thread accesses the table while the slice is in use: it is not linked yet, or the
    /// caller is its writer and it has no readers.
    #[inline]
    pub(crate) unsafe fn cells(self, range: Range<usize>) -> &'m [Cell<u64>] {
        if range.start > range.end || range.end > self.len() {
            return &[];
        }
        // SAFETY: in bounds as just checked; a cell has the layout of its word; the caller says that
        // the words are this thread's for now.
        unsafe {
            let first = self.words.as_ptr().add(range.start).cast::<Cell<u64>>();
            core::slice::from_raw_parts(first, range.len())
        }
    }

    /// Writes entries of a table that nobody else sees; nothing if the range leaves the table.
    ///
    /// # Safety
    /// As for [`Self::cells`].
    #[inline]
    pub(crate) unsafe fn init(self, range: Range<usize>, entry: u64) {
        // SAFETY: passed through.
        let cells = unsafe { self.cells(range) };
        if entry == 0 {
            let first: *mut Cell<u64> = cells.as_ptr().cast_mut();
            // SAFETY: cells may be written through a shared reference on this thread, and zeroes are a
            // word.
            unsafe { first.write_bytes(0, cells.len()) };
            return;
        }
        for word in cells {
            word.set(entry);
        }
    }
}
