//! The memory of mock page tables: the heap, which fails where the selftest injects a fault.
//!
//! Who maps much in small pages and unmaps it again needs the same number of tables over and over. A
//! domain keeps some of those that it gave up: what the heap hands out anew costs a page fault each.
#![allow(unsafe_code)] // The trait is unsafe: it hands out memory. Everything is the heap's.

use std::ptr::NonNull;

use io_pgtable::{Heap, Memory};
use parking_lot::Mutex;

use crate::inject;

/// Bytes of unused tables that a domain keeps at most: those of 1 GiB in pages of 4 KiB.
const MOST_SPARE: usize = 4 << 20;

/// The heap behind one fault site.
#[derive(Debug, Default)]
pub(super) struct TableMemory {
    heap: Heap,
    spare: Mutex<Spare>,
}

/// Tables that are not used: pages of the heap.
#[derive(Debug, Default)]
struct Spare {
    /// Bytes of each.
    size: usize,
    pages: Vec<u64>,
}

// SAFETY: every page is the heap's, handed through unchanged, or one that the heap gave and that was
// freed here since, so that nobody else has it; its words stay initialised.
unsafe impl Memory for TableMemory {
    fn alloc(&self, bytes: usize) -> Option<u64> {
        inject::site("mock: table").ok()?;
        let mut spare = self.spare.lock();
        if spare.size == bytes
            && let Some(page) = spare.pages.pop()
        {
            return Some(page);
        }
        drop(spare);
        self.heap.alloc(bytes)
    }

    unsafe fn free(&self, pa: u64, bytes: usize) {
        let mut spare = self.spare.lock();
        if spare.pages.is_empty() {
            spare.size = bytes;
        }
        if spare.size == bytes && (spare.pages.len() + 1) * bytes <= MOST_SPARE {
            spare.pages.push(pa);
            return;
        }
        drop(spare);
        // SAFETY: the caller's promise is about the heap's page.
        unsafe { self.heap.free(pa, bytes) };
    }

    fn at(&self, pa: u64, bytes: usize) -> Option<NonNull<u64>> {
        self.heap.at(pa, bytes)
    }
}

impl Drop for TableMemory {
    fn drop(&mut self) {
        let Spare { size, pages } = std::mem::take(self.spare.get_mut());
        for page in pages {
            // SAFETY: the heap gave it with this size, and who had it freed it.
            unsafe { self.heap.free(page, size) };
        }
    }
}
