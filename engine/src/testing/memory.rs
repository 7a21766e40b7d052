//! Memory of a process that does not exist.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::Errno;
use crate::memory::{AddressSpace, BackingFile, Held, MmId, PAGE_SIZE, Pin};

static NEXT_PFN: AtomicU64 = AtomicU64::new(0x10_0000);
static NEXT_MM: AtomicU64 = AtomicU64::new(1 << 32);

/// A page with bytes. They exist from the first write on.
struct Frame {
    pfn: u64,
    bytes: Mutex<Option<Box<[u8; PAGE_SIZE as usize]>>>,
    pins: AtomicU64,
    /// Its file has it no more.
    taken: AtomicBool,
}

impl Frame {
    fn new(pfn: u64) -> Arc<Self> {
        Arc::new(Self {
            pfn,
            bytes: Mutex::new(None),
            pins: AtomicU64::new(0),
            taken: AtomicBool::new(false),
        })
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        match &*self.bytes.lock() {
            Some(bytes) => into.copy_from_slice(&bytes[at..at + into.len()]),
            None => into.fill(0),
        }
    }

    fn write(&self, at: usize, from: &[u8]) {
        let mut bytes = self.bytes.lock();
        let bytes = bytes.get_or_insert_with(|| Box::new([0; PAGE_SIZE as usize]));
        bytes[at..at + from.len()].copy_from_slice(from);
    }
}

/// Splits `length` bytes at `address` at page bounds: (page, byte in it, bytes of the whole).
fn pieces(address: u64, length: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address + done as u64;
        let within = (at % PAGE_SIZE) as usize;
        let part = (length - done).min(PAGE_SIZE as usize - within);
        let piece = (at / PAGE_SIZE, within, done..done + part);
        done += part;
        (part > 0).then_some(piece)
    })
}

#[derive(Clone)]
struct Mapped {
    frame: Arc<Frame>,
    writable: bool,
}

/// An mm. Pages are where [`TestMemory::map`] put them.
pub struct TestMemory {
    id: MmId,
    pages: RwLock<BTreeMap<u64, Mapped>>,
}

impl TestMemory {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        let id = MmId(NEXT_MM.fetch_add(1, Ordering::Relaxed));
        Arc::new(Self { id, pages: RwLock::default() })
    }

    /// Maps zeroed pages of contiguous frames at the page-aligned `address`, as
    /// `mmap(MAP_FIXED)` does.
    pub fn map(&self, address: u64, pages: u64, writable: bool) {
        let pfn = NEXT_PFN.fetch_add(pages + 1, Ordering::Relaxed);
        let mut table = self.pages.write();
        for page in 0..pages {
            let frame = Frame::new(pfn + page);
            table.insert(address / PAGE_SIZE + page, Mapped { frame, writable });
        }
    }

    /// Unmaps pages. Pins keep them.
    pub fn unmap(&self, address: u64, pages: u64) {
        let first = address / PAGE_SIZE;
        self.pages.write().retain(|page, _| !(first..first + pages).contains(page));
    }

    /// The PFN behind `address`.
    pub fn pfn(&self, address: u64) -> Option<u64> {
        self.pages.read().get(&(address / PAGE_SIZE)).map(|mapped| mapped.frame.pfn)
    }

    /// How often the page at `address` is pinned.
    pub fn pins(&self, address: u64) -> u64 {
        let pages = self.pages.read();
        pages.get(&(address / PAGE_SIZE)).map_or(0, |m| m.frame.pins.load(Ordering::Relaxed))
    }

    /// How many pins all mapped pages have together.
    pub fn all_pins(&self) -> u64 {
        self.pages.read().values().map(|m| m.frame.pins.load(Ordering::Relaxed)).sum()
    }
}

impl AddressSpace for TestMemory {
    fn frame_at(&self, address: u64) -> Result<Option<u64>, Errno> {
        Ok(self.pfn(address))
    }

    fn id(&self) -> MmId {
        self.id
    }

    fn describe(&self) -> String {
        format!("test mm {}", self.id.0)
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        address.checked_add(into.len() as u64).ok_or(Errno::EFAULT)?;
        let pages = self.pages.read();
        for (page, at, part) in pieces(address, into.len()) {
            let mapped = pages.get(&page).ok_or(Errno::EFAULT)?;
            mapped.frame.read(at, &mut into[part]);
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        address.checked_add(from.len() as u64).ok_or(Errno::EFAULT)?;
        let pages = self.pages.read();
        for (page, at, part) in pieces(address, from.len()) {
            let mapped = pages.get(&page).filter(|m| m.writable).ok_or(Errno::EFAULT)?;
            mapped.frame.write(at, &from[part]);
        }
        Ok(())
    }

    fn pin(&self, address: u64, pages: u64, write: bool) -> Result<Arc<dyn Pin>, Errno> {
        let table = self.pages.read();
        let first = address / PAGE_SIZE;
        let frames: Option<Vec<_>> = (first..first + pages)
            .map(|page| {
                let mapped = table.get(&page).filter(|mapped| mapped.writable || !write)?;
                Some(mapped.frame.clone())
            })
            .collect();
        Ok(TestPin::hold(frames.ok_or(Errno::EFAULT)?))
    }
}

/// A memfd.
pub struct TestFile {
    frames: RwLock<Vec<Arc<Frame>>>,
    writable: bool,
}

impl TestFile {
    /// One of `pages` zeroed pages.
    pub fn new(pages: u64, writable: bool) -> Arc<Self> {
        let pfn = NEXT_PFN.fetch_add(pages + 1, Ordering::Relaxed);
        let frames = (0..pages).map(|page| Frame::new(pfn + page)).collect();
        Arc::new(Self { frames: RwLock::new(frames), writable })
    }

    /// Cuts it to `pages` pages. Pins keep the others.
    pub fn truncate(&self, pages: u64) {
        let mut frames = self.frames.write();
        let kept = frames.len().min(pages as usize);
        frames.drain(kept..).for_each(|frame| frame.taken.store(true, Ordering::Relaxed));
    }

    /// How many pins its pages have together.
    pub fn all_pins(&self) -> u64 {
        self.frames.read().iter().map(|frame| frame.pins.load(Ordering::Relaxed)).sum()
    }

    /// The PFN of a page.
    pub fn pfn(&self, page: u64) -> Option<u64> {
        self.frames.read().get(page as usize).map(|frame| frame.pfn)
    }
}

impl BackingFile for TestFile {
    fn describe(&self) -> String {
        "memfd:test".to_owned()
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn pinnable(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        self.frames.read().len() as u64 * PAGE_SIZE
    }

    fn pin(&self, offset: u64, pages: u64, _: bool) -> Result<Arc<dyn Pin>, Errno> {
        let first = offset / PAGE_SIZE;
        let frames = self.frames.read();
        let range = first as usize..(first + pages) as usize;
        Ok(TestPin::hold(frames.get(range).ok_or(Errno::EINVAL)?.to_vec()))
    }
}

struct TestPin {
    frames: Vec<Arc<Frame>>,
    held: Vec<AtomicU64>,
}

impl TestPin {
    fn hold(frames: Vec<Arc<Frame>>) -> Arc<dyn Pin> {
        for frame in &frames {
            frame.pins.fetch_add(1, Ordering::Relaxed);
        }
        let held = frames.iter().map(|_| AtomicU64::new(1)).collect();
        Arc::new(Self { frames, held })
    }
}

impl Pin for TestPin {
    fn pages(&self) -> u64 {
        self.frames.len() as u64
    }

    fn frames(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let mut run: Option<(u64, u64)> = None;
        for frame in &self.frames[pages.start as usize..pages.end as usize] {
            match &mut run {
                Some((first, count)) if *first + *count == frame.pfn => *count += 1,
                _ => {
                    if let Some((first, count)) = run.replace((frame.pfn, 1)) {
                        each(first, count);
                    }
                }
            }
        }
        if let Some((first, count)) = run {
            each(first, count);
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        for (page, at, part) in pieces(offset, into.len()) {
            self.frames.get(page as usize).ok_or(Errno::EFAULT)?.read(at, &mut into[part]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        for (page, at, part) in pieces(offset, from.len()) {
            self.frames.get(page as usize).ok_or(Errno::EFAULT)?.write(at, &from[part]);
        }
        Ok(())
    }

    fn lost(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let taken = |page: &u64| self.frames[*page as usize].taken.load(Ordering::Relaxed);
        pages.filter(taken).for_each(|page| each(page, 1));
    }

    fn release(&self, pages: Range<u64>) {
        for page in pages.start as usize..pages.end as usize {
            let held = self.held[page].swap(0, Ordering::Relaxed);
            assert_eq!(held, 1, "page {page} of a pin was released twice");
            self.frames[page].pins.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn held(&self) -> Held {
        Held::Shared
    }
}

impl Drop for TestPin {
    fn drop(&mut self) {
        for (frame, held) in self.frames.iter().zip(&self.held) {
            frame.pins.fetch_sub(held.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}
