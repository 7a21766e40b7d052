//! The memory of mock page tables: the heap, which fails where the selftest injects a fault.
#![allow(unsafe_code)] // The trait is unsafe: it hands out memory. Everything is the heap's.

use std::ptr::NonNull;

use io_pgtable::{Heap, Memory};

use crate::inject;

/// The heap behind one fault site.
#[derive(Debug, Default)]
pub(super) struct TableMemory(Heap);

// SAFETY: every page is the heap's, handed through unchanged.
unsafe impl Memory for TableMemory {
    fn alloc(&self, bytes: usize) -> Option<u64> {
        inject::site("mock: table").ok()?;
        self.0.alloc(bytes)
    }

    unsafe fn free(&self, pa: u64, bytes: usize) {
        // SAFETY: the caller's promise is about the heap's page.
        unsafe { self.0.free(pa, bytes) };
    }

    fn at(&self, pa: u64, bytes: usize) -> Option<NonNull<u64>> {
        self.0.at(pa, bytes)
    }
}
