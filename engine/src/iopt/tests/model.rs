//! The model: an IOAS is a list of areas, and a page has the pins that the list says.

use std::ops::RangeInclusive;
use std::sync::Arc;

use ioctl_abi::iommufd::*;
use proptest::prelude::*;

use super::super::{AccessId, AccessUser, Owner};
use crate::domain::Domain;
use crate::ioas::Ioas;
use crate::memory::PAGE_SIZE;
use crate::testing::{TestCaller, TestDomain};
use crate::{Context, Engine, Errno, Node};

pub(super) const BUFFER: u64 = 0x40_0000;
const BUFFER_PAGES: u64 = 24;
/// IOVAs that fixed maps and ranges use, in units of half pages.
const UNITS: u64 = 96;
const UNIT: u64 = PAGE_SIZE / 2;
pub(super) const RW: u32 = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Map { at: Option<u64>, from: u64, units: u64, writable: bool },
    Copy { at: Option<u64>, from: u64, units: u64 },
    Unmap { at: u64, units: u64 },
    UnmapAll,
    Allow(Vec<(u64, u64)>),
    Reserve { at: u64, units: u64 },
    Unreserve,
    Attach,
    Detach,
    Pin { at: u64, units: u64 },
    Unpin,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let at = || 0..UNITS;
    let units = || 0..12_u64;
    prop_oneof![
        6 => (prop::option::of(at()), 0..BUFFER_PAGES * 2, units(), any::<bool>())
            .prop_map(|(at, from, units, writable)| Step::Map { at, from, units, writable }),
        3 => (prop::option::of(at()), at(), units())
            .prop_map(|(at, from, units)| Step::Copy { at, from, units }),
        4 => (at(), 0..40_u64).prop_map(|(at, units)| Step::Unmap { at, units }),
        1 => Just(Step::UnmapAll),
        1 => prop::collection::vec((at(), 1..20_u64), 0..3).prop_map(Step::Allow),
        1 => (at(), 1..8_u64).prop_map(|(at, units)| Step::Reserve { at, units }),
        1 => Just(Step::Unreserve),
        1 => Just(Step::Attach),
        1 => Just(Step::Detach),
        2 => (at(), units()).prop_map(|(at, units)| Step::Pin { at, units }),
        2 => Just(Step::Unpin),
    ]
}

/// An area of the model.
#[derive(Clone, Debug)]
struct Area {
    start: u64,
    last: u64,
    va: u64,
    writable: bool,
    /// Which map call the pages came from.
    pages: usize,
    pages_writable: bool,
}

struct NoUser;

impl AccessUser for NoUser {
    fn unmap(&self, _: u64, _: u64) {}
}

pub(super) struct World {
    pub(super) caller: TestCaller,
    pub(super) context: Arc<Context>,
    pub(super) ioas: Arc<Ioas>,
    pub(super) access: AccessId,
    areas: Vec<Area>,
    allowed: Vec<RangeInclusive<u64>>,
    reserved: Vec<(Owner, RangeInclusive<u64>)>,
    pub(super) domains: Vec<Arc<TestDomain>>,
    pub(super) pinned: Vec<(u64, u64)>,
    maps: usize,
}

fn overlap(a: &RangeInclusive<u64>, b: &RangeInclusive<u64>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

impl World {
    pub(super) fn new() -> Self {
        let caller = TestCaller::limited(1000);
        caller.memory.map(BUFFER, BUFFER_PAGES, true);
        let context = Engine::new().open(Node::Iommu);
        let mut alloc = iommu_ioas_alloc::default();
        caller.call(&context, &mut alloc).unwrap();
        let ioas = context.objects().get::<Ioas>(alloc.out_ioas_id).unwrap().object().clone();
        // Half pages stay possible: it pins nothing itself.
        let access = ioas.add_access(Arc::new(NoUser), false).unwrap();
        Self {
            caller,
            context,
            ioas,
            access,
            areas: Vec::new(),
            allowed: Vec::new(),
            reserved: Vec::new(),
            domains: Vec::new(),
            pinned: Vec::new(),
            maps: 0,
        }
    }

    fn alignment(&self) -> u64 {
        if self.domains.is_empty() { 1 } else { UNIT }
    }

    fn taken(&self, range: &RangeInclusive<u64>) -> bool {
        self.areas.iter().any(|a| overlap(&(a.start..=a.last), range))
            || self.reserved.iter().any(|(_, r)| overlap(r, range))
    }

    /// What the kernel would choose, by trying every half page.
    fn choose(&self, length: u64, va: u64) -> Result<u64, Errno> {
        if length == 0 {
            return Err(Errno::EOVERFLOW);
        }
        let alignment = length.next_power_of_two().min(1 << va.trailing_zeros()).min(2 << 20);
        if alignment < self.alignment() {
            return Err(Errno::EINVAL);
        }
        let whole = std::slice::from_ref(&(0..=u64::MAX));
        let allowed = if self.allowed.is_empty() { whole } else { &self.allowed };
        for range in allowed {
            let mut at = (*range.start()).max(PAGE_SIZE);
            while at <= *range.end() && at < 4 * UNITS * UNIT {
                let start = at.next_multiple_of(alignment) | (va % PAGE_SIZE);
                let last = start + length - 1;
                // The alignment starts at the first free byte, so that no free byte is between.
                let hole = at..=last.max(start + 1);
                if last <= *range.end() && start < *range.end() && !self.taken(&hole) {
                    return Ok(start);
                }
                at += UNIT / 2;
            }
        }
        Err(Errno::ENOSPC)
    }

    fn place(&self, at: Option<u64>, length: u64, va: u64) -> Result<u64, Errno> {
        let Some(start) = at else { return self.choose(length, va) };
        let range = start..=start + length - 1;
        if !start.is_multiple_of(self.alignment()) {
            return Err(Errno::EINVAL);
        }
        if self.reserved.iter().any(|(_, r)| overlap(r, &range)) {
            return Err(Errno::EINVAL);
        }
        if self.taken(&range) { Err(Errno::EEXIST) } else { Ok(start) }
    }

    fn covering(&self, range: &RangeInclusive<u64>) -> Option<Vec<Area>> {
        let mut parts = Vec::new();
        let mut at = *range.start();
        loop {
            let area = self.areas.iter().find(|a| (a.start..=a.last).contains(&at))?;
            let last = area.last.min(*range.end());
            parts.push(Area { start: at, last, va: area.va + (at - area.start), ..area.clone() });
            if last == *range.end() {
                return Some(parts);
            }
            at = last + 1;
        }
    }

    pub(super) fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Map { at, from, units, writable } => {
                let (va, length) = (BUFFER + from * UNIT, units * UNIT);
                let flags = IOMMU_IOAS_MAP_READABLE
                    | if writable { IOMMU_IOAS_MAP_WRITEABLE } else { 0 }
                    | if at.is_some() { IOMMU_IOAS_MAP_FIXED_IOVA } else { 0 };
                let mut map = iommu_ioas_map {
                    flags,
                    ioas_id: self.ioas.id(),
                    user_va: va,
                    length,
                    iova: at.unwrap_or(0) * UNIT,
                    ..Default::default()
                };
                let got = self.caller.call(&self.context, &mut map).map(|_| map.iova);
                let buffer_end = BUFFER + BUFFER_PAGES * PAGE_SIZE;
                let expect = if length == 0 {
                    Err(Errno::EINVAL)
                } else {
                    self.place(at.map(|at| at * UNIT), length, va).and_then(|start| {
                        let unreadable = va + length > buffer_end && !self.domains.is_empty();
                        if unreadable { Err(Errno::EFAULT) } else { Ok(start) }
                    })
                };
                prop_assert_eq!(got, expect, "{:?}", step);
                if let Ok(start) = expect {
                    let last = start + length - 1;
                    let (pages, pages_writable) = (self.maps, writable);
                    self.areas.push(Area { start, last, va, writable, pages, pages_writable });
                    self.maps += 1;
                }
            }
            Step::Copy { at, from, units } => {
                let length = units * UNIT;
                let mut copy = iommu_ioas_copy {
                    flags: RW | if at.is_some() { IOMMU_IOAS_MAP_FIXED_IOVA } else { 0 },
                    dst_ioas_id: self.ioas.id(),
                    src_ioas_id: self.ioas.id(),
                    length,
                    dst_iova: at.unwrap_or(0) * UNIT,
                    src_iova: from * UNIT,
                    ..Default::default()
                };
                let got = self.caller.call(&self.context, &mut copy).map(|_| copy.dst_iova);
                if length == 0 {
                    prop_assert_eq!(got, Err(Errno::EINVAL));
                    return Ok(());
                }
                let parts = self.covering(&(from * UNIT..=from * UNIT + length - 1));
                let expect = parts.as_ref().ok_or(Errno::ENOENT).and_then(|parts| {
                    let start = self.place(at.map(|at| at * UNIT), length, parts[0].va)?;
                    for part in parts {
                        if !part.pages_writable {
                            return Err(Errno::EPERM);
                        }
                    }
                    for part in parts {
                        let end = part.va + (part.last - part.start) + 1;
                        let buffer_end = BUFFER + BUFFER_PAGES * PAGE_SIZE;
                        if end > buffer_end && !self.domains.is_empty() {
                            return Err(Errno::EFAULT);
                        }
                    }
                    Ok(start)
                });
                prop_assert_eq!(got, expect, "{:?}", step);
                if let (Ok(start), Some(parts)) = (expect, parts) {
                    let shift = start.wrapping_sub(parts[0].start);
                    self.areas.extend(parts.into_iter().map(|part| Area {
                        start: part.start.wrapping_add(shift),
                        last: part.last.wrapping_add(shift),
                        writable: true,
                        ..part
                    }));
                }
            }
            Step::Unmap { at, units } => {
                let mut unmap = iommu_ioas_unmap {
                    ioas_id: self.ioas.id(),
                    iova: at * UNIT,
                    length: units * UNIT,
                    ..Default::default()
                };
                let got = self.caller.call(&self.context, &mut unmap).map(|_| unmap.length);
                if units == 0 {
                    prop_assert_eq!(got, Err(Errno::EINVAL));
                    return Ok(());
                }
                let expect = self.unmap(&(at * UNIT..=(at + units) * UNIT - 1));
                let expect = expect.and_then(|n| if n == 0 { Err(Errno::ENOENT) } else { Ok(n) });
                prop_assert_eq!(got, expect, "{:?}", step);
            }
            Step::UnmapAll => {
                let mut unmap = iommu_ioas_unmap {
                    ioas_id: self.ioas.id(),
                    length: u64::MAX,
                    ..Default::default()
                };
                let got = self.caller.call(&self.context, &mut unmap).map(|_| unmap.length);
                prop_assert_eq!(got, self.unmap(&(0..=u64::MAX)));
            }
            Step::Allow(ref ranges) => {
                let array: Vec<_> = ranges
                    .iter()
                    .map(|&(at, units)| iommu_iova_range {
                        start: at * UNIT,
                        last: (at + units) * UNIT - 1,
                    })
                    .collect();
                let address = TestCaller::ARGUMENT + 512;
                for (index, range) in array.iter().enumerate() {
                    let bytes = zerocopy::IntoBytes::as_bytes(range);
                    let at = address + index as u64 * 16;
                    crate::memory::AddressSpace::write(&*self.caller.memory, at, bytes).unwrap();
                }
                let mut allow = iommu_ioas_allow_iovas {
                    ioas_id: self.ioas.id(),
                    num_iovas: array.len() as u32,
                    allowed_iovas: address,
                    ..Default::default()
                };
                let got = self.caller.call(&self.context, &mut allow).map(drop);
                let mut new: Vec<_> = array.iter().map(|r| r.start..=r.last).collect();
                new.sort_by_key(|r| *r.start());
                let crossing = new.windows(2).any(|pair| overlap(&pair[0], &pair[1]));
                let hit = new.iter().any(|r| self.reserved.iter().any(|(_, t)| overlap(r, t)));
                let expect = match (crossing, hit) {
                    (true, _) => Err(Errno::EINVAL),
                    (_, true) => Err(Errno::EADDRINUSE),
                    _ => Ok(()),
                };
                prop_assert_eq!(got, expect);
                if expect.is_ok() {
                    // Touching ranges are one.
                    self.allowed.clear();
                    for range in new {
                        match self.allowed.last_mut() {
                            Some(last) if *last.end() + 1 == *range.start() => {
                                *last = *last.start()..=*range.end();
                            }
                            _ => self.allowed.push(range),
                        }
                    }
                }
            }
            Step::Reserve { at, units } => {
                let range = at * UNIT..=(at + units) * UNIT - 1;
                let owner = Owner::unique();
                let got = self.ioas.reserve(owner, std::slice::from_ref(&range));
                let busy = self.areas.iter().any(|a| overlap(&(a.start..=a.last), &range))
                    || self.allowed.iter().any(|a| overlap(a, &range));
                prop_assert_eq!(got, if busy { Err(Errno::EADDRINUSE) } else { Ok(()) });
                if !busy {
                    self.reserved.push((owner, range));
                }
            }
            Step::Unreserve => {
                if let Some((owner, _)) = self.reserved.pop() {
                    self.ioas.unreserve(owner);
                }
            }
            Step::Attach => {
                let domain = TestDomain::new(0..=u64::MAX, UNIT | PAGE_SIZE | (2 << 20));
                let shared: Arc<dyn Domain> = domain.clone();
                let got = self.ioas.attach_domain(&shared);
                let end = BUFFER + BUFFER_PAGES * PAGE_SIZE;
                let bad = self.areas.iter().any(|a| a.va + (a.last - a.start) >= end);
                let expect = if bad { Err(Errno::EFAULT) } else { Ok(()) };
                prop_assert_eq!(got, expect);
                if expect.is_ok() {
                    self.domains.push(domain);
                } else {
                    prop_assert_eq!(domain.mapped_bytes(), 0);
                }
            }
            Step::Detach => {
                if let Some(domain) = self.domains.pop() {
                    let shared: Arc<dyn Domain> = domain.clone();
                    self.ioas.detach_domain(&shared);
                    prop_assert_eq!(domain.mapped_bytes(), 0);
                }
            }
            Step::Pin { at, units } => {
                let (iova, length) = (at * UNIT, units * UNIT);
                let got = self.ioas.pin_pages(iova, length, true).map(drop);
                let expect = self.pin(iova, length);
                prop_assert_eq!(got, expect, "{:?}", step);
                if expect.is_ok() {
                    self.pinned.push((iova, length));
                }
            }
            Step::Unpin => {
                if let Some((iova, length)) = self.pinned.pop() {
                    self.ioas.unpin_pages(iova, length);
                }
            }
        }
        Ok(())
    }

    fn pin(&self, iova: u64, length: u64) -> Result<(), Errno> {
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        // Area by area: what is wrong with one comes before a hole behind it.
        let (mut at, last) = (iova, iova + length - 1);
        loop {
            let area = self.areas.iter().find(|area| (area.start..=area.last).contains(&at));
            let area = area.ok_or(Errno::ENOENT)?;
            let here = area.last.min(last);
            let first = area.va + (at - area.start);
            let end = first + (here - at) + 1;
            let whole = here == last || end.is_multiple_of(PAGE_SIZE);
            if !first.is_multiple_of(PAGE_SIZE) || !whole {
                return Err(Errno::EINVAL);
            }
            if !area.writable {
                return Err(Errno::EPERM);
            }
            if end > BUFFER + BUFFER_PAGES * PAGE_SIZE {
                return Err(Errno::EFAULT);
            }
            if here == last {
                return Ok(());
            }
            at = here + 1;
        }
    }

    fn unmap(&mut self, range: &RangeInclusive<u64>) -> Result<u64, Errno> {
        // The user of the access is deaf, so pins are taken back here first, as it would.
        self.areas.sort_by_key(|a| a.start);
        let mut bytes = 0;
        while let Some(i) = self.areas.iter().position(|a| overlap(&(a.start..=a.last), range)) {
            let area = &self.areas[i];
            if area.start < *range.start() || area.last > *range.end() {
                return Err(Errno::ENOENT);
            }
            bytes += area.last - area.start + 1;
            self.areas.remove(i);
        }
        Ok(bytes)
    }

    /// Everything that can be seen is as the model has it.
    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        let mut seen = Vec::new();
        self.ioas.each_area(&mut |start, last| seen.push((start, last)));
        let mut expect: Vec<_> = self.areas.iter().map(|a| (a.start, a.last)).collect();
        expect.sort_unstable();
        prop_assert_eq!(seen, expect);
        for domain in &self.domains {
            let bytes: u64 = self.areas.iter().map(|a| a.last - a.start + 1).sum();
            prop_assert_eq!(domain.mapped_bytes(), bytes);
            for area in &self.areas {
                for at in (area.start..=area.last).step_by(UNIT as usize).chain([area.last]) {
                    let va = area.va + (at - area.start);
                    let physical =
                        self.caller.memory.pfn(va).map(|pfn| pfn * PAGE_SIZE + va % PAGE_SIZE);
                    prop_assert_eq!(domain.translate(at), physical);
                }
            }
        }
        let mut charged = 0;
        for page in 0..BUFFER_PAGES {
            let va = BUFFER + page * PAGE_SIZE;
            let touches = |start: u64, last: u64| start < va + PAGE_SIZE && last >= va;
            let mut holders: Vec<usize> = Vec::new();
            if !self.domains.is_empty() {
                let filled = self.areas.iter();
                holders.extend(
                    filled
                        .filter(|a| touches(a.va, a.va + (a.last - a.start)))
                        .map(|area| area.pages),
                );
            }
            for &(iova, length) in &self.pinned {
                let parts = self.covering(&(iova..=iova + length - 1)).unwrap_or_default();
                let parts = parts.iter();
                holders.extend(
                    parts
                        .filter(|p| touches(p.va, p.va + (p.last - p.start)))
                        .map(|part| part.pages),
                );
            }
            holders.sort_unstable();
            holders.dedup();
            charged += holders.len() as u64;
            prop_assert_eq!(self.caller.memory.pins(va), holders.len() as u64, "page {}", page);
        }
        let uid = crate::caller::Process::uid(&*self.caller.process);
        let accounts = self.context.engine().accounts();
        prop_assert_eq!(accounts.locked_by_user(uid), charged);
        let mm = crate::memory::AddressSpace::id(&*self.caller.memory);
        prop_assert_eq!(accounts.totals(mm).pinned, charged);
        Ok(())
    }
}
