//! One requester of DMA: a device, or one PASID of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::fault::{Fault, Reason, Recovery, Stage};
use super::gate::Gate;
use super::iotlb::{Iotlb, Slot};
use super::walk::{FirstStage, GuestTable, Ports, Walk, WalkFault};
use crate::domain::{Domain, Prot};
use crate::memory::{PAGE_SIZE, Pin};

/// Most bytes that are copied before the port's lock is offered to an invalidation.
pub const SLICE: u64 = 4 << 20;

/// Most bytes that one fill looks ahead.
const AHEAD: u64 = 4 << 20;

/// Page requests that may wait for their answer: PCIe's 9-bit page request group index.
const GROUPS: u32 = 512;

/// Where the bytes around an IOVA are held.
#[derive(Clone)]
pub struct Extent {
    /// First IOVA that `pin` holds in one piece.
    pub first: u64,
    /// Last IOVA of the piece, inclusive.
    pub last: u64,
    /// The byte of `pin` that `first` is.
    pub offset: u64,
    /// Who holds it.
    pub pin: Arc<dyn Pin>,
}

/// Where the bytes around an IOVA are, if anything is mapped there.
pub type LookUp<'a> = dyn Fn(u64) -> Option<Extent> + 'a;

/// Turns the frames of a domain's IOPTEs back into bytes: the IOAS that fills the domain.
pub trait Frames: Send + Sync {
    /// Runs `with` while nothing is mapped or unmapped. `with` is given the look-up: what is
    /// pinned around an IOVA. The port compares the pin's frames with the IOPTE's.
    fn locked(&self, with: &mut dyn FnMut(&LookUp<'_>));
}

/// Who takes the page requests of a port: a fault-capable HWPT.
pub trait PageRequests: Send + Sync {
    /// Asks the user to mend `iova`. Answers false when the queue cannot take it. The answer
    /// comes through [`Port::answer`] with the same `group`.
    fn request(&self, group: u32, iova: u64, write: bool) -> bool;
}

/// What a port is attached to.
#[derive(Clone)]
pub struct Target {
    /// The table that the IOAS fills: the HWPT, or the parent of a nested one.
    pub domain: Arc<dyn Domain>,
    /// The user's first stage; none when the HWPT is not nested or its first stage is bypassed.
    pub first_stage: Option<Arc<dyn FirstStage>>,
    /// The IOAS.
    pub frames: Arc<dyn Frames>,
    /// The fault queue, when the HWPT has one.
    pub requests: Option<Arc<dyn PageRequests>>,
}

#[derive(Default)]
struct State {
    target: Option<Arc<Target>>,
    /// Counts targets, so that a fill for an earlier one is not kept.
    generation: u64,
    tlb: Iotlb,
}

#[derive(Default)]
struct Requests {
    next: u32,
    /// Group ids on their way: nothing until answered.
    pending: BTreeMap<u32, Option<bool>>,
}

/// One requester. See the [module](super).
#[derive(Default)]
pub struct Port {
    state: Gate<State>,
    requests: Mutex<Requests>,
    answered: Condvar,
}

impl Port {
    /// A port that is attached to nothing.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Attaches, replaces or (with nothing) blocks. When it returns no access runs by what was
    /// there before.
    pub fn retarget(self: &Arc<Self>, target: Option<Target>) {
        let target = target.map(Arc::new);
        // Known to the new table before the first fill, and to the old one until after the last.
        if let Some(target) = &target {
            target.each_ports(|ports| ports.add(self));
        }
        let old = {
            let mut state = self.state.lock();
            state.generation += 1;
            state.tlb.invalidate(0, u64::MAX);
            std::mem::replace(&mut state.target, target)
        };
        if let Some(old) = &old {
            old.each_ports(|ports| ports.remove(self));
        }
    }

    /// Forgets translations of `first..=last`; waits for an access that uses one.
    pub fn invalidate(&self, first: u64, last: u64) {
        let mut state = self.state.lock();
        // A second stage's range says nothing about the IOVAs of a first stage above it.
        if state.target.as_ref().is_some_and(|t| t.first_stage.is_some()) {
            state.tlb.invalidate(0, u64::MAX);
        } else {
            state.tlb.invalidate(first, last);
        }
    }

    /// Loads `into.len()` bytes at `iova`. On a fault what comes before it was loaded.
    pub fn read(self: &Arc<Self>, iova: u64, into: &mut [u8]) -> Result<(), Fault> {
        let length = into.len() as u64;
        self.transfer(iova, length, false, |pin, offset, part| pin.read(offset, &mut into[part]))
    }

    /// Stores `from` at `iova`. On a fault what comes before it was stored.
    pub fn write(self: &Arc<Self>, iova: u64, from: &[u8]) -> Result<(), Fault> {
        let length = from.len() as u64;
        self.transfer(iova, length, true, |pin, offset, part| pin.write(offset, &from[part]))
    }

    /// Walks `length` bytes at `iova` in pieces that lie in one pin.
    pub(super) fn transfer(
        self: &Arc<Self>,
        iova: u64,
        length: u64,
        write: bool,
        mut copy: impl FnMut(&dyn Pin, u64, Range<usize>) -> Result<(), crate::Errno>,
    ) -> Result<(), Fault> {
        let fault = |iova, reason| Fault { iova, write, reason, recovery: Recovery::Unrecoverable };
        if length != 0 && iova.checked_add(length - 1).is_none() {
            return Err(fault(iova, Reason::OutOfRange));
        }
        let mut done = 0;
        while done < length {
            let state = self.state.lock();
            let mut slice = SLICE;
            while done < length && slice > 0 {
                let at = iova + done;
                let Some(slot) = state.tlb.get(at, write) else { break };
                let offset = slot.offset_of(at);
                let mut piece = (slot.last - at).saturating_add(1).min(length - done).min(slice);
                // Neighbours that continue in the same pin go in one copy.
                while piece < slice.min(length - done) {
                    match state.tlb.get(at + piece, write) {
                        Some(next)
                            if Arc::ptr_eq(&next.pin, &slot.pin)
                                && next.offset_of(at + piece) == offset + piece =>
                        {
                            let more = (next.last - (at + piece)).saturating_add(1);
                            piece += more.min(slice.min(length - done) - piece);
                        }
                        _ => break,
                    }
                }
                copy(&*slot.pin, offset, done as usize..(done + piece) as usize)
                    .map_err(|errno| fault(at, Reason::Memory(errno)))?;
                done += piece;
                slice -= piece;
            }
            drop(state);
            if done < length && slice > 0 {
                self.fill(iova + done, length - done, write)
                    .map_err(|reason| self.report(iova + done, write, reason))?;
            }
        }
        Ok(())
    }

    /// Walks for an access of `want` bytes at `iova` and keeps what it found.
    fn fill(self: &Arc<Self>, iova: u64, want: u64, write: bool) -> Result<(), Reason> {
        let (target, generation) = {
            let state = self.state.lock();
            (state.target.clone().ok_or(Reason::Blocked)?, state.generation)
        };
        let walk = target.domain.walker().ok_or(Reason::NoMemory)?;
        let mut outcome = Err(Reason::NoMemory);
        target.frames.locked(&mut |look_up| {
            let filler = Filler { walk, look_up, first_stage: target.first_stage.as_deref() };
            outcome = filler.fill(iova, want.min(AHEAD), write).map(|slot| {
                let mut state = self.state.lock();
                if state.generation == generation {
                    state.tlb.put(iova, slot);
                }
            });
        });
        outcome
    }

    /// Makes a fault of `reason`, and a page request where that can help.
    fn report(&self, iova: u64, write: bool, reason: Reason) -> Fault {
        let queue = self.state.lock().target.as_ref().and_then(|t| t.requests.clone());
        let recovery = match queue {
            Some(queue) if reason.pageable() => self.request(&*queue, iova, write),
            _ => Recovery::Unrecoverable,
        };
        let fault = Fault { iova, write, reason, recovery };
        tracing::debug!(%fault, "DMA");
        fault
    }

    fn request(&self, queue: &dyn PageRequests, iova: u64, write: bool) -> Recovery {
        let group = {
            let mut requests = self.requests.lock();
            if requests.pending.len() >= GROUPS as usize {
                return Recovery::Unrecoverable;
            }
            let mut group = requests.next;
            while requests.pending.contains_key(&group) {
                group = (group + 1) % GROUPS;
            }
            requests.next = (group + 1) % GROUPS;
            requests.pending.insert(group, None);
            group
        };
        if queue.request(group, iova & !(PAGE_SIZE - 1), write) {
            Recovery::Requested(group)
        } else {
            self.requests.lock().pending.remove(&group);
            Recovery::Unrecoverable
        }
    }

    /// The user answered page request `group`; an unknown one is ignored.
    pub fn answer(&self, group: u32, success: bool) {
        if let Some(slot) = self.requests.lock().pending.get_mut(&group) {
            *slot = Some(success);
            self.answered.notify_all();
        }
    }

    /// Waits for the answer to page request `group`: whether to retry. Nothing when it did not
    /// come in time, or the group is not waiting.
    pub fn wait_response(&self, group: u32, timeout: Duration) -> Option<bool> {
        let deadline = Instant::now() + timeout;
        let mut requests = self.requests.lock();
        loop {
            if let Some(answer) = *requests.pending.get(&group)? {
                requests.pending.remove(&group);
                return Some(answer);
            }
            if self.answered.wait_until(&mut requests, deadline).timed_out() {
                return None;
            }
        }
    }
}

/// One fill, with the IOAS's lock held.
struct Filler<'a> {
    walk: &'a dyn Walk,
    look_up: &'a LookUp<'a>,
    first_stage: Option<&'a dyn FirstStage>,
}

impl Filler<'_> {
    fn fill(&self, iova: u64, want: u64, write: bool) -> Result<Slot, Reason> {
        let Some(first_stage) = self.first_stage else {
            return self.second(iova, u64::MIN, u64::MAX, want, write);
        };
        let leaf = first_stage
            .walk(iova, write, &mut Guest(self))
            .map_err(|fault| Reason::from_walk(fault, Stage::First))?;
        let gpa = leaf.translate(iova);
        let last = leaf.translate(leaf.last);
        let mut slot = self.second(gpa, leaf.physical, last, want, write)?;
        let back = gpa - slot.first;
        slot.last = (slot.last - slot.first) + (iova - back);
        slot.first = iova - back;
        slot.read &= leaf.prot.contains(Prot::READ);
        Ok(slot)
    }

    /// The second stage around `at`, within `low..=high`, and as far ahead as `want` bytes go.
    fn second(&self, at: u64, low: u64, high: u64, want: u64, write: bool) -> Result<Slot, Reason> {
        let second = |fault| Reason::from_walk(fault, Stage::Second);
        let mut leaf = self.walk.walk(at, write).map_err(second)?;
        let extent = (self.look_up)(at).ok_or(Reason::NoMemory)?;
        let high = high.min(extent.last);
        let first = leaf.iova.max(extent.first).max(low);
        let wanted = at.saturating_add(want - 1).min(high);
        let reach = wanted.max(leaf.last.min(high));
        let offset = extent.offset + (first - extent.first);

        // The pin's runs of frames beside the table's leaves: they must say the same.
        let mut verified = None;
        let mut read = true;
        let mut next = first;
        let mut page = offset / PAGE_SIZE;
        let mut more = true;
        let end_page = (extent.offset + (reach - extent.first)) / PAGE_SIZE + 1;
        extent.pin.frames(page..end_page, &mut |pfn, count| {
            let run = page;
            page += count;
            while more {
                let byte = offset + (next - first);
                if byte / PAGE_SIZE >= page {
                    break;
                }
                if next > leaf.last {
                    match self.walk.walk(next, write) {
                        Ok(found) => leaf = found,
                        Err(_) => more = false,
                    }
                }
                let physical = (pfn + (byte / PAGE_SIZE - run)) * PAGE_SIZE + byte % PAGE_SIZE;
                if !more || leaf.translate(next) != physical {
                    more = false;
                    break;
                }
                read &= leaf.prot.contains(Prot::READ);
                // Both go on to here, the run's and the leaf's bytes.
                let last = next.saturating_add(page * PAGE_SIZE - byte - 1).min(leaf.last);
                verified = Some(last.min(reach));
                more = last < reach;
                next = last.wrapping_add(1);
            }
        });
        match verified {
            Some(last) if last >= at => {
                Ok(Slot { first, last, offset, pin: extent.pin, read, write })
            }
            _ => Err(Reason::NoMemory),
        }
    }
}

/// The first stage's table, read through the second stage.
struct Guest<'a, 'b>(&'a Filler<'b>);

impl Guest<'_, '_> {
    fn slot(&self, address: u64, write: bool) -> Result<Slot, WalkFault> {
        if !address.is_multiple_of(8) {
            return Err(WalkFault::OutOfRange);
        }
        self.0.second(address, u64::MIN, u64::MAX, 8, write).map_err(|_| WalkFault::NotPresent)
    }
}

impl GuestTable for Guest<'_, '_> {
    fn load(&mut self, address: u64) -> Result<u64, WalkFault> {
        let slot = self.slot(address, false)?;
        let mut bytes = [0; 8];
        slot.pin.read(slot.offset_of(address), &mut bytes).map_err(|_| WalkFault::NotPresent)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn update(&mut self, address: u64, old: u64, new: u64) -> Result<bool, WalkFault> {
        let slot = self.slot(address, true)?;
        super::atomic::exchange(&*slot.pin, slot.offset_of(address), old.to_le(), new.to_le())
            .map(|was| was == old.to_le())
            .map_err(|_| WalkFault::NotPresent)
    }
}

impl Target {
    fn each_ports(&self, with: impl Fn(&Ports)) {
        if let Some(walk) = self.domain.walker() {
            with(walk.ports());
        }
        if let Some(first_stage) = &self.first_stage {
            with(first_stage.ports());
        }
    }
}
