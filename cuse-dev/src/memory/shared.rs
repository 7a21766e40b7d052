//! Pins of shared memory: pages of a file, mapped here and, where that is allowed, pinned there.
//!
//! A mapping that [keeps](FileMap::keeps) its pages shows the pinned ones, live and at the speed of
//! memory. What the file loses (`ftruncate`, a hole, `MADV_REMOVE`) goes from the mapping; the pin has it
//! still, and it is reached by way of the ring, which takes microseconds. Where the kernel offers no
//! such mappings all of a file's pages are reached so.
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
use super::private::Registered;

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
    let bytes = (offset, length);
    let pinned = match (map.pinnable(), map.keeps()) {
        (false, _) => Err(Refusal::Way(FILE_SYSTEM)),
        (true, false) => by_ring(host, map, bytes),
        (true, true) => kept(host, map, bytes),
    };
    let why = match pinned {
        Ok((hold, frames)) => return Ok(Part::new(start, length, hold, frames)),
        Err(Refusal::Pages(error)) => return Err(error),
        Err(Refusal::Way(why)) => why,
    };
    let map = host.maps.showing(map)?;
    map.populate(offset, usize::try_from(length).map_err(|_| Errno::ENOMEM)?)?;
    let mut frames = Frames::default();
    look(host, &map, bytes, &mut frames)?;
    frames.shrink();
    Ok(Part::new(start, length, Hold::Shown { map, offset, why }, frames))
}

/// Pins pages in a mapping that keeps them: this one, or another one if the file has lost pages that were
/// in this one.
fn kept(
    host: &Host,
    map: &Arc<FileMap>,
    (offset, length): (u64, u64),
) -> Result<(Hold, Frames), Refusal> {
    let again = |map: &Arc<FileMap>| host.maps.renew(map, offset + length).map_err(Refusal::Pages);
    let map = match register(host, map, (offset, length)) {
        Err(Refusal::Pages(Errno::EFAULT)) => again(map)?,
        Err(other) => return Err(other),
        Ok((registered, frames)) => {
            return Ok((Hold::File { map: map.clone(), offset, registered }, frames));
        }
    };
    match register(host, &map, (offset, length)) {
        // Somebody takes pages away all the time. A pin takes them as it meets them.
        Err(Refusal::Pages(Errno::EFAULT)) => {
            let map = host.maps.showing(&map).map_err(Refusal::Pages)?;
            by_ring(host, &map, (offset, length))
        }
        Err(other) => Err(other),
        Ok((registered, frames)) => Ok((Hold::File { map, offset, registered }, frames)),
    }
}

/// Pins pages that are reached by way of the ring alone, as no mapping keeps them.
fn by_ring(host: &Host, map: &Arc<FileMap>, bytes: (u64, u64)) -> Result<(Hold, Frames), Refusal> {
    let (registered, frames) = register(host, map, bytes)?;
    Ok((Hold::Pinned(registered), frames))
}

/// Pins what `map` has of the range.
fn register(
    host: &Host,
    map: &Arc<FileMap>,
    (offset, length): (u64, u64),
) -> Result<(Registered, Frames), Refusal> {
    let size = usize::try_from(length).map_err(|_| Refusal::Pages(Errno::ENOMEM))?;
    let address = map.at(offset, size).ok_or(Refusal::Pages(Errno::EFAULT))? as u64;
    let mut frames = Frames::with_room_for(length / PAGE_SIZE);
    let byte = |from: u64| offset + (from - address);
    let registered = host.own.pin(
        (address, length, map.grain()),
        map.writable(),
        &mut frames,
        |from, length| map.prepare(byte(from), length as usize),
        |frames, from, pages| look(host, map, (byte(from), pages * PAGE_SIZE), frames),
    )?;
    frames.shrink();
    Ok((registered, frames))
}

/// Adds the frames of what `map` has now.
fn look(
    host: &Host,
    map: &FileMap,
    (offset, length): (u64, u64),
    frames: &mut Frames,
) -> Result<(), Errno> {
    let address = map.at(offset, length as usize).ok_or(Errno::EFAULT)? as u64;
    let (place, before) = (Place::file(map.id(), offset), frames.pages());
    let pages = length / PAGE_SIZE;
    let found = host.pfns.add(frames, &host.pagemap, address, pages, place);
    found.or_else(|_| host.pfns.unknown(frames, pages - (frames.pages() - before)))
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
    // Not in a mapping that keeps pages: there is none yet.
    let map = host.maps.showing(map)?;
    map.at(offset, size).ok_or(Errno::EFAULT)?;
    let frames = host.pfns.hole(length / PAGE_SIZE, Place::file(map.id(), offset))?;
    Ok(Part::new(start, length, Hold::Shown { map, offset, why: HOLE }, frames))
}
