//! The same work with `page_table_multiarch` and with the `x86_64` crate.
#![allow(unsafe_code)] // Both crates want a promise that the mappings are ours to make.

use crate::report::Report;
use crate::{MAP, Plain, TRANSLATE, Times, UNMAP, Work};
use io_pgtable::{Heap, Memory, Pool};
use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::{MappingFlags, PageSize, PagingHandler};
use std::hint::black_box;
use std::sync::LazyLock;
use x86_64::structures::paging as x64;

/// Where both crates take their tables from: the pool that ours have too.
static POOL: LazyLock<Pool<Heap>> = LazyLock::new(|| Pool::new(Heap::new()));

struct Frames;

impl PagingHandler for Frames {
    fn alloc_frames(num: usize, align: usize) -> Option<PhysAddr> {
        let pa = POOL.alloc((num * 4096).max(align))?;
        Some(PhysAddr::from(pa as usize))
    }

    fn dealloc_frames(pa: PhysAddr, num: usize) {
        // SAFETY: the crate gives back what it took.
        unsafe { POOL.free(pa.as_usize() as u64, num * 4096) };
    }

    fn phys_to_virt(pa: PhysAddr) -> VirtAddr {
        VirtAddr::from(pa.as_usize())
    }
}

// SAFETY: every frame is a page of the pool, given out once.
unsafe impl x64::FrameAllocator<x64::Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<x64::PhysFrame> {
        let pa = x86_64::PhysAddr::new(POOL.alloc(4096)?);
        Some(x64::PhysFrame::containing_address(pa))
    }
}

pub(crate) fn all(work: Work, report: &mut Report) {
    multiarch(work, report);
    match work.lg2 {
        12 => x64_crate::<x64::Size4KiB>(work, report),
        21 => x64_crate::<x64::Size2MiB>(work, report),
        _ => x64_crate::<x64::Size1GiB>(work, report),
    }
}

/// A slow peer needs no more rounds than this.
fn rounds(work: Work) -> u32 {
    work.rounds.min(40)
}

fn multiarch(work: Work, report: &mut Report) {
    if !report.wants("page_table_multiarch", work.name) {
        return;
    }
    type Table = page_table_multiarch::x86_64::X64PageTable<Frames>;
    let (len, entries) = (work.pages << work.lg2, (work.pages * work.calls) as usize);
    let base = (len * work.calls).next_power_of_two();
    let size = match work.lg2 {
        12 => PageSize::Size4K,
        21 => PageSize::Size2M,
        _ => PageSize::Size1G,
    };
    let mut table = Table::try_new().unwrap();
    let (mut times, mut plain) = (Times::new(), Plain::new(work.pages, work.calls));
    let starts = || (0..work.calls).map(|call| (base + call * len) as usize);
    let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::USER;
    for _ in 0..rounds(work) {
        times.time(MAP, || {
            for at in starts() {
                let mut cursor = table.cursor();
                let same = |va: VirtAddr| PhysAddr::from(va.as_usize());
                let huge = size.is_huge();
                cursor.map_region(at.into(), same, len as usize, flags, huge).unwrap();
            }
        });
        times.time(TRANSLATE, || {
            for page in 0..entries {
                black_box(table.query((base as usize + (page << work.lg2)).into()).unwrap());
            }
        });
        times.time(UNMAP, || {
            for at in starts() {
                table.cursor().unmap_region(at.into(), len as usize).unwrap();
            }
        });
        plain.round(work.lg2);
    }
    report.add(
        "page_table_multiarch",
        work.name,
        entries as u64,
        work.lg2,
        times,
        Some(plain.times),
    );
}

fn x64_crate<S>(work: Work, report: &mut Report)
where
    S: x64::PageSize + std::fmt::Debug,
    for<'a> x64::OffsetPageTable<'a>: x64::Mapper<S>,
{
    use x64::{Mapper, Page, PageTable, PageTableFlags, PhysFrame, Translate};
    if !report.wants("x86_64 crate", work.name) {
        return;
    }
    let (len, entries) = (work.pages << work.lg2, (work.pages * work.calls) as usize);
    let base = (len * work.calls).next_power_of_two();
    let mut top = Box::new(PageTable::new());
    // SAFETY: physical addresses are virtual ones here, and the top table is ours.
    let mut table = unsafe { x64::OffsetPageTable::new(&mut top, x86_64::VirtAddr::new(0)) };
    let (mut times, mut plain) = (Times::new(), Plain::new(work.pages, work.calls));
    let flags =
        PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::USER_ACCESSIBLE;
    let pages = || (0..entries as u64).map(|page| base + (page << work.lg2));
    let page = |at| Page::<S>::containing_address(x86_64::VirtAddr::new(at));
    for _ in 0..rounds(work) {
        times.time(MAP, || {
            for at in pages() {
                let frame = PhysFrame::containing_address(x86_64::PhysAddr::new(at));
                // SAFETY: nothing goes through these tables.
                unsafe { table.map_to(page(at), frame, flags, &mut Frames) }.unwrap().ignore();
            }
        });
        times.time(TRANSLATE, || {
            for at in pages() {
                black_box(table.translate(x86_64::VirtAddr::new(at)));
            }
        });
        times.time(UNMAP, || {
            for at in pages() {
                table.unmap(page(at)).unwrap().1.ignore();
            }
        });
        plain.round(work.lg2);
    }
    report.add("x86_64 crate", work.name, entries as u64, work.lg2, times, Some(plain.times));
}
