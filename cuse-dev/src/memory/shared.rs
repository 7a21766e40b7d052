//! Pins of shared memory: pages of a file, mapped here and, where that is allowed, pinned there.
//!
//! Where the kernel would make every page of a sparse file, so do pins here, up to
//! [`MOST_MADE`] bytes. Beyond, only what the file has is pinned, and its holes are left to be
//! filled by whoever touches them first: a terabyte of guest memory maps at once. The frames of
//! holes are simulated ones that follow each other.

use std::sync::Arc;

use engine::Errno;
use engine::memory::PAGE_SIZE;

use super::Host;
use super::block::Place;
use super::map::FileMap;
use super::own::Refusal;
use super::pfn::Frames;
use super::pin::{Hold, Part};

/// Bytes of holes that a pin fills.
const MOST_MADE: u64 = 1 << 30;
/// Parts of a sparse file that are held each for itself; those after are left as holes are.
const MOST_PARTS: usize = 1024;
const FILE_SYSTEM: &str = "a page of a file system that writes it back is not pinned for long";
const HOLE: &str = "a large hole of the file: its pages are made when somebody touches them";

/// Pins `length` bytes from byte `offset` of `map`'s file, and appends that to `parts`, the parts
/// of a pin, from its byte `start` on. `EFAULT` where the file ends.
pub(super) fn pin(
    host: &Host,
    map: &Arc<FileMap>,
    offset: u64,
    length: u64,
    start: u64,
    parts: &mut Vec<Part>,
) -> Result<(), Errno> {
    if length <= MOST_MADE {
        parts.push(whole(host, map, offset, length, start)?);
        return Ok(());
    }
    let data = map.data(offset, length, MOST_PARTS)?;
    let present: u64 = data.iter().map(|range| range.end - range.start).sum();
    if length - present <= MOST_MADE {
        parts.push(whole(host, map, offset, length, start)?);
        return Ok(());
    }
    let mut at = offset;
    for range in data.into_iter().chain(std::iter::once(offset + length..offset + length)) {
        if range.start > at {
            parts.push(hole(host, map, at, range.start - at, start + (at - offset))?);
        }
        if range.end > range.start {
            let (length, start) = (range.end - range.start, start + (range.start - offset));
            parts.push(whole(host, map, range.start, length, start)?);
        }
        at = range.end;
    }
    Ok(())
}

/// All pages of the range, which are made where they are missing.
fn whole(
    host: &Host,
    map: &Arc<FileMap>,
    offset: u64,
    length: u64,
    start: u64,
) -> Result<Part, Errno> {
    let size = usize::try_from(length).map_err(|_| Errno::ENOMEM)?;
    let address = map.at(offset, size).ok_or(Errno::EFAULT)?;
    let (address, pages) = (address as u64, length / PAGE_SIZE);
    let mut frames = Frames::with_room_for(pages);
    let look = |frames: &mut Frames, from: u64, pages: u64| {
        let place = Place::file(map.id(), offset + (from - address));
        let before = frames.pages();
        let found = host.pfns.add(frames, &host.pagemap, from, pages, place);
        found.or_else(|_| host.pfns.unknown(frames, pages - (frames.pages() - before)))
    };
    let pinned = match map.pinnable() {
        true => {
            let range = (address, length, map.grain());
            let populate =
                |from: u64, length: u64| map.prepare(offset + (from - address), length as usize);
            host.own.pin(range, map.writable(), &mut frames, populate, look)
        }
        false => Err(Refusal::Way(FILE_SYSTEM)),
    };
    let pinned = match pinned {
        Ok(pinned) => Ok(pinned),
        Err(Refusal::Pages(error)) => return Err(error),
        Err(Refusal::Way(why)) => {
            map.populate(offset, size)?;
            frames = Frames::default();
            look(&mut frames, address, pages)?;
            Err(why)
        }
    };
    frames.shrink();
    Ok(Part::new(start, length, Hold::File { map: map.clone(), offset, pinned }, frames))
}

/// No page of the range. `ENOMEM` where it is too large to number its frames.
fn hole(
    host: &Host,
    map: &Arc<FileMap>,
    offset: u64,
    length: u64,
    start: u64,
) -> Result<Part, Errno> {
    let size = usize::try_from(length).map_err(|_| Errno::ENOMEM)?;
    map.at(offset, size).ok_or(Errno::EFAULT)?;
    let frames = host.pfns.hole(length / PAGE_SIZE, Place::file(map.id(), offset))?;
    let hold = Hold::File { map: map.clone(), offset, pinned: Err(HOLE) };
    Ok(Part::new(start, length, hold, frames))
}
