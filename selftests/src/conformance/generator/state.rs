//! What a program has made so far, as far as the generator must know to go on.
//!
//! A guide only: where it is wrong (a spoiled call succeeded, the kernel did something else), calls
//! fail in other ways, which is as good.

use super::super::arena::{self, PAGE, PAGES};
use super::super::reply::Reply;
use super::super::rng::Rng;
use super::super::step::{Source, Value};

/// A flag of an IOAS that maps page by page: what it tells of dirty pages then does not depend on
/// which frames happen to be contiguous.
pub(super) const PAGE_BY_PAGE: u64 = 1;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ioas,
    Hwpt,
    Nested,
    Device,
    MockDevice,
    FaultQueue,
    Viommu,
    Vdevice,
    Veventq,
    HwQueue,
}

/// An object of a context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) context: usize,
    pub(super) id: Value,
    pub(super) kind: Kind,
    /// What belongs to it: a mock device's or vDEVICE's device, an HWPT's IOAS, a queue's descriptor.
    pub(super) other: Option<Value>,
    /// Flags that it was made with, or a vDEVICE's virtual id.
    pub(super) flags: u64,
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) context: usize,
    pub(super) ioas: Value,
    pub(super) iova: Value,
    pub(super) length: u64,
    /// The caller's address, where it was mapped by address.
    pub(super) from: u64,
}

/// An access of the selftest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) context: usize,
    pub(super) fd: Value,
    pub(super) ioas: Value,
    pub(super) pins: bool,
}

/// Pages that an access holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pinned {
    pub(super) access: Value,
    pub(super) id: Value,
}

/// All of it.
#[derive(Clone)]
pub(super) struct State {
    /// The number of the call that is being made.
    pub(super) number: u32,
    /// Descriptors of /dev/iommu.
    pub(super) contexts: Vec<Value>,
    /// The one in use.
    pub(super) context: usize,
    pub(super) objects: Vec<Object>,
    pub(super) areas: Vec<Area>,
    pub(super) accesses: Vec<Access>,
    pub(super) pinned: Vec<Pinned>,
    /// Descriptors of memory and how long it is.
    pub(super) files: Vec<(Value, u64)>,
    /// The selftest's dma-bufs.
    pub(super) dmabufs: Vec<Value>,
    /// What vIOMMUs offer to mmap(2): offset and length.
    pub(super) offers: Vec<(Value, u64)>,
    /// Page responses that are due: a fault queue's descriptor and the cookie.
    pub(super) cookies: Vec<(Value, u32)>,
    /// PASIDs that are attached: the context, the mock device's id and the PASID.
    pub(super) pasids: Vec<(usize, u64, u32)>,
    /// What was attached to an HWPT with a fault queue: the context, the device and the PASID, or
    /// 0 for none.
    pub(super) faulting: Vec<(usize, Value, u32)>,
    /// Whether 2 MiB pages are mapped at [`arena::HUGE`].
    pub(super) huge: bool,
    /// Whether IOVAs and lengths are mostly of whole pages.
    pub(super) tidy: bool,
}

impl State {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self {
            number: 0,
            contexts: Vec::new(),
            context: 0,
            objects: Vec::new(),
            areas: Vec::new(),
            accesses: Vec::new(),
            pinned: Vec::new(),
            // The arena's.
            files: vec![(Value::from(3_u64), PAGES * PAGE)],
            dmabufs: Vec::new(),
            offers: Vec::new(),
            cookies: Vec::new(),
            pasids: Vec::new(),
            faulting: Vec::new(),
            huge: false,
            tidy: rng.chance(75),
        }
    }

    /// The descriptor of the context in use.
    pub(super) fn context(&self) -> Value {
        self.contexts.get(self.context).copied().unwrap_or(Value::from(99_u64))
    }

    /// The objects of a kind in the context in use.
    pub(super) fn all(&self, kind: Kind) -> Vec<Object> {
        let here = |object: &&Object| object.kind == kind && object.context == self.context;
        self.objects.iter().filter(here).copied().collect()
    }

    /// One of them; the newest is the likeliest.
    pub(super) fn any(&self, kind: Kind, rng: &mut Rng) -> Option<Object> {
        let all = self.all(kind);
        if rng.chance(40) { all.last().copied() } else { rng.any(&all).copied() }
    }

    /// Whether it is (still) an IOAS that maps page by page.
    pub(super) fn page_by_page(&self, ioas: Value) -> bool {
        self.all(Kind::Ioas)
            .iter()
            .any(|object| object.id.literal == ioas.literal && object.flags == PAGE_BY_PAGE)
    }

    /// Remembers how an IOAS maps.
    pub(super) fn maps_page_by_page(&mut self, ioas: u64, yes: bool) {
        let context = self.context;
        for object in &mut self.objects {
            let it = object.context == context && object.id.literal == ioas;
            if it && object.kind == Kind::Ioas {
                object.flags = if yes { PAGE_BY_PAGE } else { 0 };
            }
        }
    }

    /// A mapping of the context in use.
    pub(super) fn area(&self, rng: &mut Rng) -> Option<Area> {
        let all: Vec<_> =
            self.areas.iter().filter(|area| area.context == self.context).copied().collect();
        if rng.chance(30) { all.last().copied() } else { rng.any(&all).copied() }
    }

    /// An access of the context in use.
    pub(super) fn access(&self, rng: &mut Rng) -> Option<Access> {
        let all: Vec<_> =
            self.accesses.iter().filter(|access| access.context == self.context).copied().collect();
        rng.any(&all).copied()
    }

    /// Remembers an object whose id a reply has at `out`.
    pub(super) fn made(
        &mut self,
        kind: Kind,
        reply: &Reply,
        number: u32,
        (offset, width): (u16, u8),
        other: Option<Value>,
        flags: u64,
    ) -> Value {
        let id = out(reply, number, (offset, width));
        self.objects.push(Object { context: self.context, id, kind, other, flags });
        id
    }

    /// Forgets the object.
    pub(super) fn gone(&mut self, id: u64) {
        let context = self.context;
        let mine = |object: &Object| object.context == context && object.id.literal == id;
        let Some(at) = self.objects.iter().position(mine) else { return };
        let object = self.objects.remove(at);
        if object.kind == Kind::Ioas {
            self.areas.retain(|area| area.context != context || area.ioas.literal != id);
        }
        if object.kind == Kind::MockDevice
            && let Some(device) = object.other
        {
            self.gone(device.literal);
        }
    }

    /// A good address of the caller and how many bytes follow it.
    pub(super) fn memory(&self, rng: &mut Rng) -> (u64, u64) {
        let region = match rng.below(100) {
            0..30 => arena::SHARED,
            30..55 => arena::FILE,
            55..85 => arena::PRIVATE,
            85..90 => arena::READ_ONLY,
            _ if self.huge => arena::HUGE,
            _ => arena::SHARED,
        };
        let pages = if region == arena::HUGE { 512 } else { PAGES };
        let page = rng.below(pages);
        (region + page * PAGE, (pages - page) * PAGE)
    }

    /// A length: mostly a few pages.
    pub(super) fn length(&self, most: u64, rng: &mut Rng) -> u64 {
        let most_pages = if rng.chance(80) { 4 } else { PAGES };
        let pages = 1 + rng.below(most_pages);
        let length = (pages * PAGE).min(most);
        if self.tidy || rng.chance(60) {
            return length;
        }
        match rng.below(4) {
            0 => rng.below(length) + 1,
            1 => (length / 2048).max(1) * 2048 - 2048 * rng.below(2),
            2 => *rng.pick(&[0, 1, 2048, 4095, 4097, u64::MAX, 1 << 31, 1 << 63]),
            _ => length,
        }
    }

    /// An IOVA to map at: mostly where mock devices can reach, and close to others.
    pub(super) fn iova(&self, rng: &mut Rng) -> u64 {
        let base = if rng.chance(85) { 0x100_0000 } else { 0 };
        let iova = base + rng.below(64) * PAGE;
        if self.tidy || rng.chance(70) {
            return iova;
        }
        match rng.below(6) {
            0 => iova + rng.below(PAGE),
            1 => iova + 2048,
            2 => 0x8000_0000 - PAGE * (1 + rng.below(4)),
            3 => 0x100_0000 - PAGE * rng.below(4),
            4 => u64::MAX - rng.below(3 * PAGE),
            _ => *rng.pick(&[0, 1, 1 << 63, u64::MAX, 1 << 52, (1 << 56) - PAGE, 1 << 56]),
        }
    }

    /// Some part of a mapping: its IOVA, length, and the caller's address.
    pub(super) fn part(&self, area: &Area, rng: &mut Rng) -> (Value, u64, u64) {
        if rng.chance(45) {
            return (area.iova, area.length, area.from);
        }
        let unit = if self.tidy || rng.chance(50) { PAGE } else { *rng.pick(&[1, 2, 512, 2048]) };
        let units = (area.length / unit).max(1);
        let skip = rng.below(units) * unit;
        let most = area.length.saturating_sub(skip).max(1);
        let length = ((1 + rng.below((most / unit).max(1))) * unit).min(most);
        // A little more than there is.
        let length = if rng.chance(6) { most + *rng.pick(&[1, 2048, PAGE]) } else { length };
        let iova = Value::from(area.iova.literal.wrapping_add(skip));
        (if skip == 0 { area.iova } else { iova }, length, area.from.wrapping_add(skip))
    }

    /// An id: a live one of any kind, or none.
    pub(super) fn wild_id(&self, rng: &mut Rng) -> Value {
        match rng.any(&self.objects) {
            Some(object) if rng.chance(75) => object.id,
            _ => Value::from(*rng.pick(&[
                0_u64,
                1,
                2,
                3,
                4,
                5,
                6,
                7,
                8,
                12,
                20,
                99,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
            ])),
        }
    }
}

/// A value that a reply has at an offset of its struct.
pub(super) fn out(reply: &Reply, number: u32, (offset, width): (u16, u8)) -> Value {
    Value {
        literal: reply.out(offset.into(), width.into()),
        from: Some((number, Source::Out { offset, width })),
    }
}
