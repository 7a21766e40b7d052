//! Tables that lie in a guest's memory, as a VMM or a hypervisor has it: where their pages come from, a
//! device that translates on a thread of its own, and anybody who reads the same words.
#![allow(unsafe_code)] // The guest's memory is raw, and `Memory` is a promise about it.

use io_pgtable::{Error, Format, Memory, Prot, Table, VtdSecond};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

const PAGE: usize = 4096;
/// Where the guest sees the memory that is set apart for tables, and how much of it there is.
const BASE: u64 = 0x8000_0000;
const PAGES: usize = 64;

/// A piece of a guest's memory, of which the VMM gives pages.
struct Guest {
    memory: NonNull<u8>,
    free: Mutex<Vec<u64>>,
}

// SAFETY: the memory is the guest's own until it is dropped, and is accessed as `Memory` says.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

impl Guest {
    const LAYOUT: Layout = match Layout::from_size_align(PAGES * PAGE, PAGE) {
        Ok(layout) => layout,
        Err(_) => panic!("a page's size is a power of two"),
    };

    fn new() -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(Self::LAYOUT) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(Self::LAYOUT));
        let free = (0..PAGES).rev().map(|page| BASE + (page * PAGE) as u64).collect();
        Self { memory, free: Mutex::new(free) }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has the guest any more.
        unsafe { dealloc(self.memory.as_ptr(), Self::LAYOUT) };
    }
}

// SAFETY: a page is given once until it comes back, is initialised, and stays where it is.
unsafe impl Memory for Guest {
    fn alloc(&self, bytes: usize) -> Option<u64> {
        // Tables of other formats have other sizes; VT-d's are all pages.
        if bytes == PAGE { self.free.lock().ok()?.pop() } else { None }
    }

    unsafe fn free(&self, pa: u64, _bytes: usize) {
        if let Ok(mut free) = self.free.lock() {
            free.push(pa);
        }
    }

    fn at(&self, pa: u64, bytes: usize) -> Option<NonNull<u64>> {
        // A guest may have written any address into an entry: what is not in its memory is not there.
        let offset = usize::try_from(pa.checked_sub(BASE)?).ok()?;
        let inside = offset.checked_add(bytes)? <= PAGES * PAGE && offset % 8 == 0;
        // SAFETY: inside of the allocation, as just checked.
        inside.then(|| unsafe { self.memory.add(offset).cast() })
    }
}

fn main() -> Result<(), Error> {
    let guest = Arc::new(Guest::new());
    let mut table = Table::<VtdSecond, _>::new(guest.clone(), VtdSecond::config())?;
    let (root, levels) = table.top();
    println!("for the device's context entry: {levels} levels at {root:#x}");
    table.map(0x40_0000, 0x1_0000_0000, 0x20_1000, Prot::READ | Prot::WRITE, u64::MAX)?;

    // The device model: each of its threads has a reader.
    let device = table.reader();
    let dma = std::thread::spawn(move || {
        let written = device.access(0x40_0008, Prot::WRITE).map(|to| to.pa);
        (written, device.access(0x80_0000, Prot::READ).map(|from| from.pa))
    });
    let (written, beyond) = dma.join().expect("the device does not panic");
    assert_eq!(written, Ok(0x1_0000_0008));
    assert_eq!(beyond, Err(Error::NotMapped { iova: 0x80_0000 }), "a fault to report");

    // What the device wrote to is dirty, for a migration.
    table.read_dirty(0, 1 << 30, true, |iova, len| println!("dirty: {len:#x} at {iova:#x}"))?;

    // The tables are words in the guest's memory, which anything can read that knows the format.
    let walk = table.walk(0x40_0008)?;
    print!("{walk}");
    let top = walk.steps[0];
    let word = guest.at(root + 8 * top.index as u64, 8).expect("the table is in the guest");
    // SAFETY: a word of a live table, and no other thread is left.
    assert_eq!(unsafe { word.read() }, top.entry);

    // Before a page that was unmapped is given to somebody else, the device has to be done with it.
    assert_eq!(table.unmap(0, 1 << 30)?, 0x20_1000);
    let barrier = table.barrier();
    assert!(table.passed(barrier), "no read section is open");
    Ok(())
}
