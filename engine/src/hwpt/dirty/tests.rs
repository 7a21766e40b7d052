use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::{Bitmap, PIECE, check, iommu_hwpt_get_dirty_bitmap};
use crate::Errno;
use crate::domain::{DirtySink, Domain, Prot};
use crate::driver::PagingDomain;
use crate::memory::{AddressSpace, MmId, Pin};

const PAGE: u64 = 4096;

/// Dirty 4 KiB pages by number; everything is mapped.
#[derive(Default)]
struct Pages {
    dirty: Mutex<BTreeSet<u64>>,
}

impl Domain for Pages {
    fn aperture(&self) -> RangeInclusive<u64> {
        0..=u64::MAX
    }
    fn page_sizes(&self) -> u64 {
        PAGE
    }
    fn map(&self, _: u64, _: u64, _: u64, _: Prot, _: u64) -> Result<(), Errno> {
        Ok(())
    }
    fn unmap(&self, _: u64, _: u64) {}
    fn translate(&self, iova: u64) -> Option<u64> {
        Some(iova)
    }
    fn read_dirty(&self, iova: u64, length: u64, clear: bool, each: &mut DirtySink<'_>) {
        let mut dirty = self.dirty.lock();
        let last = iova + (length - 1);
        let found: Vec<u64> = dirty.range(iova / PAGE..=last / PAGE).copied().collect();
        for page in found {
            each(page * PAGE, PAGE);
            if clear {
                dirty.remove(&page);
            }
        }
    }
    fn set_dirty_tracking(&self, _: bool) -> Result<(), Errno> {
        Ok(())
    }
}

impl PagingDomain for Pages {
    fn tracks_dirty(&self) -> bool {
        true
    }
}

/// Memory from [`Ram::BASE`] on.
struct Ram(Mutex<Vec<u8>>);

impl Ram {
    const BASE: u64 = 0x7000_0000;

    fn range(address: u64, length: usize, size: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = address.checked_sub(Self::BASE).ok_or(Errno::EFAULT)? as usize;
        let end = start.checked_add(length).filter(|&end| end <= size).ok_or(Errno::EFAULT)?;
        Ok(start..end)
    }
}

impl AddressSpace for Ram {
    fn id(&self) -> MmId {
        MmId(1)
    }
    fn describe(&self) -> String {
        "ram".into()
    }
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let ram = self.0.lock();
        into.copy_from_slice(&ram[Self::range(address, into.len(), ram.len())?]);
        Ok(())
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let mut ram = self.0.lock();
        let range = Self::range(address, from.len(), ram.len())?;
        ram[range].copy_from_slice(from);
        Ok(())
    }
    fn pin(&self, _: u64, _: u64, _: bool) -> Result<Arc<dyn Pin>, Errno> {
        Err(Errno::EFAULT)
    }
}

fn collect(
    ram: &Ram,
    at: u64,
    pages: &Pages,
    range: RangeInclusive<u64>,
    clear: bool,
    shift: u32,
) -> Result<(), Errno> {
    Bitmap { memory: ram, address: Ram::BASE + at, shift }.collect(pages, range, clear)
}

#[test]
fn bits_are_added_and_pages_cleaned_unless_told_otherwise() {
    let pages = Pages::default();
    pages.dirty.lock().extend([16, 19, 24]);
    let ram = Ram(Mutex::new(vec![0x80; 3]));
    let range = 16 * PAGE..=32 * PAGE - 1;
    collect(&ram, 1, &pages, range.clone(), false, 12).unwrap();
    assert_eq!(*ram.0.lock(), [0x80, 0x89, 0x81]);
    assert_eq!(pages.dirty.lock().len(), 3);
    collect(&ram, 1, &pages, range, true, 12).unwrap();
    assert!(pages.dirty.lock().is_empty());
}

#[test]
fn bits_that_find_no_memory_are_lost() {
    let pages = Pages::default();
    let ram = Ram(Mutex::new(vec![0; 4096]));
    pages.dirty.lock().extend([8 * 8191]);
    assert_eq!(collect(&ram, 0, &pages, 0..=PAGE * 8 * 8192 - 1, true, 12), Ok(()));
    assert!(pages.dirty.lock().is_empty());
    assert!(ram.0.lock().iter().all(|&byte| byte == 0));
}

#[test]
fn ranges_must_be_whole_pages_and_bits() {
    let command = |iova, length, page_size| iommu_hwpt_get_dirty_bitmap {
        iova,
        length,
        page_size,
        ..Default::default()
    };
    let check = |iova, length, page_size| check(&command(iova, length, page_size), 2048);
    assert_eq!(check(PAGE, PAGE, PAGE), Ok(PAGE..=2 * PAGE - 1));
    assert_eq!(check(PAGE, PAGE, 0), Err(Errno::EINVAL));
    assert_eq!(check(PAGE, PAGE, 2 * PAGE), Err(Errno::EINVAL));
    assert_eq!(check(PAGE, 1024, 1024), Err(Errno::EINVAL));
    assert_eq!(check(PAGE, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(check(u64::MAX - 4095, 8192, PAGE), Err(Errno::EOVERFLOW));
}

proptest! {
    /// Whatever the granularity, the position of the bitmap and the number of pieces: the bits set
    /// are those of a bitmap made bit by bit.
    #[test]
    fn as_if_bit_by_bit(
        dirty in prop::collection::btree_set(0..(PIECE * 20), 0..40),
        runs in prop::collection::vec((0..(PIECE * 20), 1..200u64), 0..3),
        shift in 11..15u32,
        offset in 0..5000u64,
        first in 0..64u64,
    ) {
        let pages = Pages::default();
        pages.dirty.lock().extend(&dirty);
        for (start, length) in runs {
            pages.dirty.lock().extend(start..start + length);
        }
        let unit = 1u64 << shift;
        let (start, end) = (first * 16 * PAGE, PIECE * 19 * PAGE);
        let bits = (end - start) / unit;
        let mut expected = vec![0u8; (offset + bits.div_ceil(8) + 1) as usize];
        for &page in &*pages.dirty.lock() {
            for piece in 0..PAGE.div_ceil(unit).max(1) {
                let iova = page * PAGE + piece * unit.min(PAGE);
                if (start..end).contains(&iova) {
                    let bit = (iova - start) / unit;
                    expected[(offset + bit / 8) as usize] |= 1 << (bit % 8);
                }
            }
        }
        let ram = Ram(Mutex::new(vec![0; expected.len()]));
        collect(&ram, offset, &pages, start..=end - 1, true, shift).unwrap();
        prop_assert!(*ram.0.lock() == expected);
        prop_assert!(pages.dirty.lock().iter().all(|p| !(start..end).contains(&(p * PAGE))));
    }
}
