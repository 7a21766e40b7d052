//! Ports over a table that is a map, and pins that are a vector.
#![allow(unsafe_code)] // The fake pin hands out a pointer to its own bytes.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use proptest::prelude::*;

use super::atomic::{AtomicOp, Width};
use super::fault::Stage;
use super::*;
use crate::Errno;
use crate::domain::{DirtySink, Domain, Prot};
use crate::memory::{Held, PAGE_SIZE, Pin};

/// Pages at `frames`; mapped here or not.
struct FakePin {
    words: Vec<AtomicU64>,
    frames: Vec<u64>,
    mapped: bool,
}

impl FakePin {
    fn new(frames: Vec<u64>, mapped: bool) -> Arc<Self> {
        let words = (0..frames.len() * PAGE_SIZE as usize / 8).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { words, frames, mapped })
    }

    fn bytes(&self, offset: u64) -> *mut u8 {
        assert!(offset <= self.words.len() as u64 * 8);
        self.words.as_ptr().cast_mut().cast::<u8>().wrapping_add(offset as usize)
    }

    /// What devices read and write others do at the same time, with atomics of any width.
    fn byte(&self, offset: u64) -> &AtomicU8 {
        assert!(offset < self.words.len() as u64 * 8);
        // SAFETY: inside of `words`, which is of atomics: all who share the pin use such.
        unsafe { AtomicU8::from_ptr(self.bytes(offset)) }
    }
}

impl Pin for FakePin {
    fn pages(&self) -> u64 {
        self.frames.len() as u64
    }
    fn frames(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        for page in pages {
            each(self.frames[page as usize], 1);
        }
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        assert!(offset + into.len() as u64 <= self.words.len() as u64 * 8);
        for (byte, at) in into.iter_mut().zip(offset..) {
            *byte = self.byte(at).load(Ordering::Relaxed);
        }
        Ok(())
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        assert!(offset + from.len() as u64 <= self.words.len() as u64 * 8);
        for (byte, at) in from.iter().zip(offset..) {
            self.byte(at).store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }
    fn compare_exchange(
        &self,
        offset: u64,
        width: Width,
        old: u64,
        new: u64,
    ) -> Option<Result<u64, Errno>> {
        assert!(offset + width.bytes() <= self.words.len() as u64 * 8);
        let at = self.bytes(offset);
        let (all, relaxed) = (Ordering::SeqCst, Ordering::Relaxed);
        self.mapped.then(|| match width {
            // SAFETY: inside of `words`, aligned as atomics are, and all who share the pin use atomics.
            Width::Four => unsafe { AtomicU32::from_ptr(at.cast()) }
                .compare_exchange(old as u32, new as u32, all, relaxed)
                .map_or_else(|found| Ok(found.into()), |found| Ok(found.into())),
            // SAFETY: the same.
            Width::Eight => Ok(unsafe { AtomicU64::from_ptr(at.cast()) }
                .compare_exchange(old, new, all, relaxed)
                .unwrap_or_else(|found| found)),
        })
    }
    fn release(&self, _: Range<u64>) {}
    fn held(&self) -> Held {
        Held::Shared
    }
}

/// A table of 4 KiB leaves that counts walks, and the IOAS above it.
#[derive(Default)]
struct FakeTable {
    leaves: RwLock<BTreeMap<u64, (u64, Prot)>>,
    extents: RwLock<Vec<Extent>>,
    dirty: Mutex<Vec<u64>>,
    walks: AtomicUsize,
    ports: Ports,
}

impl FakeTable {
    fn map(&self, iova: u64, pin: &Arc<FakePin>, prot: Prot) {
        for (page, pfn) in (0..).zip(&pin.frames) {
            self.leaves.write().insert(iova + page * PAGE_SIZE, (pfn * PAGE_SIZE, prot));
        }
        let last = iova + (pin.pages() * PAGE_SIZE - 1);
        self.extents.write().push(Extent { first: iova, last, offset: 0, pin: pin.clone() });
    }

    fn walks(&self) -> usize {
        self.walks.swap(0, Ordering::Relaxed)
    }
}

impl Domain for FakeTable {
    fn aperture(&self) -> RangeInclusive<u64> {
        0..=u64::MAX
    }
    fn page_sizes(&self) -> u64 {
        PAGE_SIZE
    }
    fn map(&self, _: u64, _: u64, _: u64, _: Prot, _: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn unmap(&self, iova: u64, length: u64) {
        self.leaves.write().retain(|&at, _| at < iova || at >= iova + length);
        self.ports.invalidate(iova, length);
        self.extents.write().retain(|e| e.first < iova || e.last > iova + (length - 1));
    }
    fn translate(&self, iova: u64) -> Option<u64> {
        let leaves = self.leaves.read();
        leaves.get(&(iova & !(PAGE_SIZE - 1))).map(|l| l.0 + iova % PAGE_SIZE)
    }
    fn read_dirty(&self, _: u64, _: u64, _: bool, _: &mut DirtySink<'_>) {}
    fn set_dirty_tracking(&self, _: bool) -> Result<(), Errno> {
        Ok(())
    }
    fn walker(&self) -> Option<&dyn Walk> {
        Some(self)
    }
}

impl Walk for FakeTable {
    fn walk(&self, iova: u64, write: bool) -> Result<Leaf, WalkFault> {
        self.walks.fetch_add(1, Ordering::Relaxed);
        let page = iova & !(PAGE_SIZE - 1);
        let (physical, prot) = *self.leaves.read().get(&page).ok_or(WalkFault::NotPresent)?;
        let needed = if write { Prot::WRITE } else { Prot::READ };
        if !prot.contains(needed) {
            return Err(WalkFault::Permission);
        }
        if write {
            self.dirty.lock().push(page);
        }
        Ok(Leaf { iova: page, last: page + (PAGE_SIZE - 1), physical, prot })
    }
    fn ports(&self) -> &Ports {
        &self.ports
    }
}

impl Frames for FakeTable {
    fn locked(&self, with: &mut dyn FnMut(&LookUp<'_>)) {
        let extents = self.extents.read();
        with(&|iova| extents.iter().find(|e| e.first <= iova && iova <= e.last).cloned());
    }
}

fn attach(table: &Arc<FakeTable>) -> Arc<Port> {
    let port = Port::new();
    port.retarget(Some(target(table)));
    port
}

fn target(table: &Arc<FakeTable>) -> Target {
    Target { domain: table.clone(), first_stage: None, frames: table.clone(), requests: None }
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

#[test]
fn a_warm_access_does_not_walk() {
    let table = Arc::new(FakeTable::default());
    table.map(0x10000, &FakePin::new(vec![7, 3, 9], true), RW);
    let port = attach(&table);
    port.write(0x10ffe, b"abcd").unwrap();
    assert_eq!(table.walks(), 2);
    let mut got = [0; 4];
    port.read(0x10ffe, &mut got).unwrap();
    assert_eq!(&got, b"abcd");
    assert_eq!(table.walks(), 0);
    assert_eq!(*table.dirty.lock(), [0x10000, 0x11000]);
}

#[test]
fn the_first_store_after_loads_walks_and_dirties() {
    let table = Arc::new(FakeTable::default());
    table.map(0, &FakePin::new(vec![1], true), RW);
    let port = attach(&table);
    port.read(8, &mut [0; 8]).unwrap();
    assert!(table.dirty.lock().is_empty());
    port.write(8, &[1; 8]).unwrap();
    port.write(16, &[1; 8]).unwrap();
    assert_eq!(*table.dirty.lock(), [0]);
    // What tracks dirty pages cleans and invalidates: the next store dirties again.
    table.ports.invalidate_all();
    port.write(16, &[1; 8]).unwrap();
    assert_eq!(*table.dirty.lock(), [0, 0]);
}

#[test]
fn unmapped_is_unreachable_at_once() {
    let table = Arc::new(FakeTable::default());
    table.map(0, &FakePin::new(vec![1, 2, 3, 4], true), RW);
    let port = attach(&table);
    port.write(0, &[5; 4 * PAGE_SIZE as usize]).unwrap();
    table.unmap(PAGE_SIZE, PAGE_SIZE);
    let fault = port.read(PAGE_SIZE - 4, &mut [0; 8]).unwrap_err();
    assert_eq!((fault.iova, fault.reason), (PAGE_SIZE, Reason::NotPresent(Stage::Second)));
    assert_eq!(fault.recovery, Recovery::Unrecoverable);
}

#[test]
fn detached_is_blocked_and_replaced_goes_to_the_new_table() {
    let (old, new) = (Arc::new(FakeTable::default()), Arc::new(FakeTable::default()));
    old.map(0, &FakePin::new(vec![1], true), RW);
    new.map(0, &FakePin::new(vec![2], true), RW);
    let port = attach(&old);
    port.write(0, b"old").unwrap();
    port.retarget(Some(target(&new)));
    let mut got = [0; 3];
    port.read(0, &mut got).unwrap();
    assert_eq!(got, [0; 3]);
    port.retarget(None);
    assert_eq!(port.read(0, &mut got).unwrap_err().reason, Reason::Blocked);
}

#[test]
fn rights_are_checked() {
    let table = Arc::new(FakeTable::default());
    table.map(0, &FakePin::new(vec![1], true), Prot::READ);
    table.map(PAGE_SIZE, &FakePin::new(vec![2], true), Prot::WRITE);
    let port = attach(&table);
    let denied = Reason::Permission(Stage::Second);
    port.read(0, &mut [0; 8]).unwrap();
    assert_eq!(port.write(0, &[0; 8]).unwrap_err().reason, denied);
    port.write(PAGE_SIZE, &[0; 8]).unwrap();
    assert_eq!(port.read(PAGE_SIZE, &mut [0; 8]).unwrap_err().reason, denied);
    let add = AtomicOp::FetchAdd(1);
    assert_eq!(port.atomic(PAGE_SIZE, Width::Eight, add).unwrap_err().reason, denied);
    assert_eq!(port.atomic(0, Width::Four, add).unwrap_err().reason, denied);
}

#[test]
fn a_table_that_names_foreign_frames_reaches_nothing() {
    let table = Arc::new(FakeTable::default());
    table.map(0, &FakePin::new(vec![1, 2], true), RW);
    table.leaves.write().get_mut(&PAGE_SIZE).unwrap().0 = 99 * PAGE_SIZE;
    let port = attach(&table);
    port.read(0, &mut [0; 8]).unwrap();
    assert_eq!(port.read(PAGE_SIZE, &mut [0; 8]).unwrap_err().reason, Reason::NoMemory);
}

#[test]
fn the_end_of_the_iova_space() {
    let table = Arc::new(FakeTable::default());
    let page = u64::MAX - (PAGE_SIZE - 1);
    table.map(page, &FakePin::new(vec![1], true), RW);
    let port = attach(&table);
    port.write(u64::MAX - 7, &[1; 8]).unwrap();
    assert_eq!(port.write(u64::MAX - 6, &[1; 8]).unwrap_err().reason, Reason::OutOfRange);
    assert_eq!(
        port.atomic(u64::MAX - 7, Width::Eight, AtomicOp::Swap(2)),
        Ok(0x0101_0101_0101_0101)
    );
    assert!(port.read(u64::MAX, &mut []).is_ok());
}

#[test]
fn atomics_mapped_and_not() {
    for mapped in [true, false] {
        let table = Arc::new(FakeTable::default());
        table.map(0, &FakePin::new(vec![1], mapped), RW);
        let port = attach(&table);
        port.write(8, &u64::MAX.to_le_bytes()).unwrap();
        assert_eq!(port.atomic(8, Width::Four, AtomicOp::FetchAdd(2)), Ok(u64::from(u32::MAX)));
        assert_eq!(port.atomic(8, Width::Eight, AtomicOp::Swap(5)), Ok(0xffff_ffff_0000_0001));
        assert_eq!(port.atomic(8, Width::Eight, AtomicOp::CompareSwap(4, 6)), Ok(5));
        assert_eq!(port.atomic(8, Width::Eight, AtomicOp::CompareSwap(5, 6)), Ok(5));
        assert_eq!(port.atomic(8, Width::Four, AtomicOp::Swap(0)), Ok(6));
        let odd = port.atomic(12, Width::Eight, AtomicOp::Swap(0)).unwrap_err();
        assert_eq!(odd.reason, Reason::Misaligned);
    }
}

#[test]
fn atomics_of_many_ports_lose_nothing() {
    for mapped in [true, false] {
        let table = Arc::new(FakeTable::default());
        table.map(0, &FakePin::new(vec![1], mapped), RW);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let port = attach(&table);
                scope.spawn(move || {
                    for _ in 0..500 {
                        port.atomic(64, Width::Eight, AtomicOp::FetchAdd(1)).unwrap();
                    }
                });
            }
        });
        let port = attach(&table);
        assert_eq!(port.atomic(64, Width::Eight, AtomicOp::FetchAdd(0)), Ok(2000));
    }
}

/// A queue that notes its requests.
#[derive(Default)]
struct FakeQueue(Mutex<Vec<(u32, u64, bool)>>);

impl PageRequests for FakeQueue {
    fn request(&self, group: u32, iova: u64, write: bool) -> bool {
        self.0.lock().push((group, iova, write));
        self.0.lock().len() < 3
    }
}

#[test]
fn page_requests_are_made_answered_and_bounded() {
    let table = Arc::new(FakeTable::default());
    let queue = Arc::new(FakeQueue::default());
    let port = Port::new();
    port.retarget(Some(Target { requests: Some(queue.clone()), ..target(&table) }));
    let fault = port.write(0x1234, &[1]).unwrap_err();
    assert_eq!(fault.recovery, Recovery::Requested(0));
    assert_eq!(*queue.0.lock(), [(0, 0x1000, true)]);
    assert_eq!(port.wait_response(0, Duration::ZERO), None);
    table.map(0x1000, &FakePin::new(vec![1], true), RW);
    port.answer(0, true);
    port.answer(77, true);
    assert_eq!(port.wait_response(0, Duration::from_secs(60)), Some(true));
    assert_eq!(port.wait_response(0, Duration::from_secs(60)), None);
    port.write(0x1234, &[1]).unwrap();
    assert_eq!(port.read(0, &mut [0]).unwrap_err().recovery, Recovery::Requested(1));
    // The queue is full, then.
    assert_eq!(port.read(0, &mut [0]).unwrap_err().recovery, Recovery::Unrecoverable);
}

/// A first stage of one level: 8-byte entries at `root`, bit 0 present, bit 1 writable.
struct OneLevel {
    root: u64,
    ports: Ports,
}

impl FirstStage for OneLevel {
    fn walk(&self, iova: u64, write: bool, table: &mut dyn GuestTable) -> Result<Leaf, WalkFault> {
        let at = self.root + iova / PAGE_SIZE % 512 * 8;
        let entry = table.load(at)?;
        if entry & 1 == 0 {
            return Err(WalkFault::NotPresent);
        }
        if write && entry & 2 == 0 {
            return Err(WalkFault::Permission);
        }
        table.update(at, entry, entry | 4)?;
        let page = iova & !(PAGE_SIZE - 1);
        let prot = if entry & 2 != 0 { RW } else { Prot::READ };
        Ok(Leaf { iova: page, last: page + (PAGE_SIZE - 1), physical: entry & !0xfff, prot })
    }
    fn ports(&self) -> &Ports {
        &self.ports
    }
}

#[test]
fn both_stages_translate_and_fault() {
    let table = Arc::new(FakeTable::default());
    let memory = FakePin::new(vec![10, 20, 30], true);
    table.map(0x8000, &memory, RW);
    let guest = |page: u64, entry: u64| memory.write(page * 8, &entry.to_le_bytes()).unwrap();
    guest(5, 0xa003); // IOVA 0x5000 is the third page, writable
    guest(6, 0x9001); // IOVA 0x6000 the second, read-only
    guest(7, 0xf003); // IOVA 0x7000 is outside of the second stage
    let first = Arc::new(OneLevel { root: 0x8000, ports: Ports::default() });
    let port = Port::new();
    port.retarget(Some(Target { first_stage: Some(first.clone()), ..target(&table) }));

    port.write(0x5ff8, &7u64.to_le_bytes()).unwrap();
    let mut got = [0; 8];
    memory.read(2 * PAGE_SIZE + 0xff8, &mut got).unwrap();
    assert_eq!(u64::from_le_bytes(got), 7);
    memory.read(5 * 8, &mut got).unwrap();
    assert_eq!(u64::from_le_bytes(got), 0xa007, "the accessed bit");

    port.read(0x6000, &mut got).unwrap();
    let reason = |iova| port.write(iova, &[0]).unwrap_err().reason;
    assert_eq!(reason(0x6000), Reason::Permission(Stage::First));
    assert_eq!(reason(0x4000), Reason::NotPresent(Stage::First));
    assert_eq!(reason(0x7000), Reason::NotPresent(Stage::Second));

    // The user changes the first stage and invalidates it.
    guest(5, 0x9003);
    first.ports.invalidate(0x5000, PAGE_SIZE);
    port.write(0x5000, b"second").unwrap();
    let mut text = [0; 6];
    memory.read(PAGE_SIZE, &mut text).unwrap();
    assert_eq!(&text, b"second");

    // A second stage that changes below is seen at once.
    table.unmap(0x8000, 3 * PAGE_SIZE);
    assert_eq!(reason(0x5000), Reason::NotPresent(Stage::First));
}

proptest! {
    /// Bytes through the port are the bytes of one flat memory, whatever lies where.
    #[test]
    fn like_flat_memory(
        frames in Just((1u64..=24).collect::<Vec<_>>()).prop_shuffle(),
        mapped in any::<bool>(),
        ops in prop::collection::vec((0u64..24 * 4096, 1usize..9000, any::<u8>(), any::<bool>()), 1..40),
    ) {
        let table = Arc::new(FakeTable::default());
        let base = 0x40_0000;
        for (i, part) in frames.chunks(6).enumerate() {
            table.map(base + i as u64 * 6 * PAGE_SIZE, &FakePin::new(part.to_vec(), mapped), RW);
        }
        let port = attach(&table);
        let mut flat = vec![0u8; 24 * PAGE_SIZE as usize];
        for (at, length, value, write) in ops {
            let room = flat.len() - at as usize;
            let end = at as usize + length.min(room);
            if write {
                let data: Vec<u8> = (0..end - at as usize).map(|i| value.wrapping_add(i as u8)).collect();
                let written = port.write(base + at, &data);
                prop_assert_eq!(written, Ok(()));
                flat[at as usize..end].copy_from_slice(&data);
            } else {
                let mut data = vec![0; end - at as usize];
                prop_assert_eq!(port.read(base + at, &mut data), Ok(()));
                prop_assert!(data == flat[at as usize..end]);
            }
        }
    }
}
