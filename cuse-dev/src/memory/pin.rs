//! Pinned pages of a caller or of a file, as parts that are held in different ways.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::Errno;
use engine::dma::atomic::Width;
use engine::memory::{Held, PAGE_SIZE, Pin};
use rangemap::RangeSet;

use super::Host;
use super::map::FileMap;
use super::mm::Mm;
use super::pfn::Frames;
use super::private::Registered;

/// What keeps the pages of a part.
pub(crate) enum Hold {
    /// A kernel pin of pages of a file, from byte `offset` of it, and a mapping that shows those pages
    /// as long as the file has them.
    File { map: Arc<FileMap>, offset: u64, registered: Registered },
    /// A kernel pin of them.
    Pinned(Registered),
    /// Nothing but a mapping of the file behind them: what the file has there is used.
    Shown { map: Arc<FileMap>, offset: u64, why: &'static str },
    /// Nothing: the caller's addresses from `address` are looked at when they are used.
    Window { mm: Arc<Mm>, address: u64, why: &'static str },
}

/// A range of pages that is held in one way.
pub(crate) struct Part {
    /// Byte of the pin at which the part begins.
    pub(crate) start: u64,
    /// Bytes of the part.
    pub(crate) length: u64,
    pub(crate) hold: Hold,
    frames: Frames,
}

impl Part {
    /// A part of `length` bytes at byte `start` of its pin.
    pub(crate) fn new(start: u64, length: u64, hold: Hold, frames: Frames) -> Self {
        Self { start, length, hold, frames }
    }

    fn end(&self) -> u64 {
        self.start + self.length
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        match &self.hold {
            // What the file has lost the pin has still. To begin anew does not matter.
            Hold::File { map, offset: base, registered } => {
                map.read(base + offset, into).or_else(|_| registered.read(offset, into))
            }
            Hold::Shown { map, offset: base, .. } => map.read(base + offset, into),
            Hold::Pinned(registered) => registered.read(offset, into),
            Hold::Window { mm, address, .. } => mm.peek(address + offset, into),
        }
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        match &self.hold {
            Hold::File { map, offset: base, registered } => {
                map.write(base + offset, from).or_else(|_| registered.write(offset, from))
            }
            Hold::Shown { map, offset: base, .. } => map.write(base + offset, from),
            Hold::Pinned(registered) => registered.write(offset, from),
            Hold::Window { mm, address, .. } => mm.poke(address + offset, from),
        }
    }
}

impl Part {
    /// Calls `each` with the pages in `bytes` of it that the file has lost, as far as nobody was told.
    fn lost(&self, bytes: Range<u64>, each: &mut dyn FnMut(Range<u64>)) {
        let Hold::File { map, offset, registered } = &self.hold else { return };
        let Some(losses) = map.losses() else { return };
        for gone in losses.gone(&(offset + bytes.start..offset + bytes.end)) {
            let pages = (gone.start..gone.end).step_by(PAGE_SIZE as usize);
            let mut lost = RangeSet::new();
            for page in pages.filter(|&page| is_other(map, page, registered, page - offset)) {
                lost.insert(page..page + PAGE_SIZE);
            }
            for pages in lost.iter() {
                losses.tell(pages.clone());
                each(pages.start - offset..pages.end - offset);
            }
        }
    }
}

/// Whether the page that the file has at byte `offset`, if it has one, is another than the pinned one at
/// byte `at` of a pin. The kernel also unmaps pages to see whether anybody wants them. That is told by
/// what is in them, which anybody may change between two looks.
fn is_other(map: &FileMap, offset: u64, registered: &Registered, at: u64) -> bool {
    if map.data(offset, PAGE_SIZE, 1).is_ok_and(|data| data.is_empty()) {
        return true;
    }
    let (mut has, mut pinned) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
    (0..LOOKS).all(|_| {
        registered.read(at, &mut pinned).is_ok()
            && !(map.file_has(offset, &mut has) && has == pinned)
    })
}

/// How often pages are compared.
const LOOKS: usize = 3;

/// The pages of one [`engine::memory::AddressSpace::pin`] or [`engine::memory::BackingFile::pin`].
pub(crate) struct Pages {
    host: Arc<Host>,
    parts: Vec<Part>,
    length: u64,
    write: bool,
}

impl Pages {
    /// A pin of `parts`, which follow each other from byte 0.
    pub(crate) fn new(host: Arc<Host>, parts: Vec<Part>, write: bool) -> Self {
        let length = parts.last().map_or(0, Part::end);
        host.held.fetch_add(length / PAGE_SIZE, Ordering::Relaxed);
        Self { host, parts, length, write }
    }

    /// The part that contains byte `offset`.
    fn part(&self, offset: u64) -> Option<(usize, &Part)> {
        let index = match &self.parts[..] {
            [_] => 0,
            parts => parts.partition_point(|part| part.end() <= offset),
        };
        let part = self.parts.get(index)?;
        (offset < part.end()).then_some((index, part))
    }

    /// Runs `each` on the pieces of `bytes` that lie in one part: (part, offset in it, piece).
    fn split(
        &self,
        bytes: Range<u64>,
        mut each: impl FnMut(&Part, u64, Range<usize>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut at = bytes.start;
        while at < bytes.end {
            let (_, part) = self.part(at).ok_or(Errno::EFAULT)?;
            let stop = part.end().min(bytes.end);
            let piece = (at - bytes.start) as usize..(stop - bytes.start) as usize;
            each(part, at - part.start, piece)?;
            at = stop;
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.host.held.fetch_sub(self.length / PAGE_SIZE, Ordering::Relaxed);
    }
}

fn span(offset: u64, length: usize) -> Result<Range<u64>, Errno> {
    Ok(offset..offset.checked_add(length as u64).ok_or(Errno::EFAULT)?)
}

impl Pin for Pages {
    fn pages(&self) -> u64 {
        self.length / PAGE_SIZE
    }

    fn frames(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let bytes = pages.start.saturating_mul(PAGE_SIZE)..pages.end.saturating_mul(PAGE_SIZE);
        for part in &self.parts {
            let (start, end) = (bytes.start.max(part.start), bytes.end.min(part.end()));
            if start < end {
                let inside = (start - part.start) / PAGE_SIZE..(end - part.start) / PAGE_SIZE;
                part.frames.for_each(inside, each);
            }
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.split(span(offset, into.len())?, |part, at, piece| part.read(at, &mut into[piece]))
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if !self.write {
            return Err(Errno::EFAULT);
        }
        self.split(span(offset, from.len())?, |part, at, piece| part.write(at, &from[piece]))
    }

    fn compare_exchange(
        &self,
        offset: u64,
        width: Width,
        old: u64,
        new: u64,
    ) -> Option<Result<u64, Errno>> {
        let (_, part) = self.part(offset)?;
        match &part.hold {
            Hold::File { .. } | Hold::Shown { .. } if !self.write => Some(Err(Errno::EFAULT)),
            Hold::File { map, offset: base, .. } | Hold::Shown { map, offset: base, .. } => {
                map.compare_exchange(base + (offset - part.start), width, old, new).map(Ok)
            }
            Hold::Pinned(_) | Hold::Window { .. } => None,
        }
    }

    fn lost(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let bytes = pages.start.saturating_mul(PAGE_SIZE)..pages.end.saturating_mul(PAGE_SIZE);
        for part in &self.parts {
            let (start, end) = (bytes.start.max(part.start), bytes.end.min(part.end()));
            if start < end {
                part.lost(start - part.start..end - part.start, &mut |lost| {
                    let pages = (lost.end - lost.start) / PAGE_SIZE;
                    each((part.start + lost.start) / PAGE_SIZE, pages);
                });
            }
        }
    }

    fn release(&self, pages: Range<u64>) {
        let bytes = pages.start.saturating_mul(PAGE_SIZE)..pages.end.saturating_mul(PAGE_SIZE);
        for part in &self.parts {
            let (start, end) = (bytes.start.max(part.start), bytes.end.min(part.end()));
            if start < end
                && let Hold::Pinned(registered) | Hold::File { registered, .. } = &part.hold
            {
                registered.release(start - part.start, end - part.start);
            }
        }
    }

    fn held(&self) -> Held {
        // What is worst of all parts, for a report is to warn.
        let rank = |held: &Held| match held {
            Held::Shared => 0,
            Held::Pinned => 1,
            Held::Mapped(_) => 2,
            Held::Copy(_) => 3,
            Held::Window(_) => 4,
        };
        let held = self.parts.iter().map(|part| match &part.hold {
            Hold::File { .. } => Held::Shared,
            Hold::Shown { why, .. } => Held::Mapped(why),
            Hold::Pinned(_) => Held::Pinned,
            Hold::Window { why, .. } => Held::Window(why),
        });
        held.max_by_key(rank).unwrap_or(Held::Shared)
    }
}
