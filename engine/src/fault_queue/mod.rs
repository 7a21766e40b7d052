//! Fault queues: page requests of devices on their way to the user, and the answers back.
//!
//! A group of page requests waits in the queue until it is read, and then under a cookie until its
//! answer is written. A device that leaves the HWPT takes its groups with it: they are answered
//! for the user, as failed.
//!
//! # Locks
//! A queue has one lock, taken last, and held neither while bytes go to a caller nor while a
//! driver hears an answer.

mod file;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::mem::offset_of;
use std::sync::Arc;

use ioctl_abi::iommufd::{
    IOMMU_PGFAULT_FLAGS_LAST_PAGE, IOMMU_PGFAULT_FLAGS_PASID_VALID, iommu_fault_alloc,
    iommu_hwpt_page_response, iommu_hwpt_pgfault,
};
use parking_lot::Mutex;

use crate::call::Call;
use crate::driver::{Fault, IommuDevice, PageResponse, ResponseCode};
use crate::inspect::{Detail, Scope};
use crate::object::{Kind, Object};
use crate::quota::{Resource, Taken};
use crate::watch::Watchers;
use crate::{Errno, inject};

pub(crate) use file::FaultFile;

/// Bytes of one fault as it is read.
const FAULT_SIZE: usize = size_of::<iommu_hwpt_pgfault>();
/// Bytes of one answer as it is written.
const RESPONSE_SIZE: usize = size_of::<iommu_hwpt_page_response>();

/// A fault queue.
#[derive(Default)]
pub(crate) struct FaultQueue {
    state: Mutex<State>,
    watchers: Watchers,
    /// Its place in its user's quota.
    _taken: Taken,
}

#[derive(Default)]
struct State {
    /// Not read yet.
    unread: VecDeque<FaultGroup>,
    /// Read, and not answered, by cookie.
    unanswered: BTreeMap<u32, FaultGroup>,
    cookies: Cookies,
}

/// Where faults come from: what one attachment of a device is to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The object id of the bound device.
    pub(crate) device_id: u32,
    /// The PASID that is attached, [`crate::driver::NO_PASID`] for the device itself.
    pub(crate) attached: u32,
}

/// The page requests of one group, which get one answer.
pub(crate) struct FaultGroup {
    origin: Origin,
    device: Arc<dyn IommuDevice>,
    faults: Vec<Fault>,
    /// Their places in their user's quota.
    _taken: Vec<Taken>,
}

impl FaultGroup {
    /// A group of `faults`, the last of which closed it. `ENOMEM`.
    pub(crate) fn new(
        origin: Origin,
        device: Arc<dyn IommuDevice>,
        faults: Vec<Fault>,
    ) -> Result<Self, Errno> {
        inject::site("fault: group")?;
        Ok(Self { origin, device, faults, _taken: Vec::new() })
    }

    /// With the faults' places in their user's quota, until they are answered.
    pub(crate) fn counted(self, taken: Vec<Taken>) -> Self {
        Self { _taken: taken, ..self }
    }

    fn bytes(&self) -> usize {
        self.faults.len() * FAULT_SIZE
    }

    fn messages(&self, cookie: u32) -> impl Iterator<Item = iommu_hwpt_pgfault> + '_ {
        self.faults.iter().map(move |fault| {
            let pasid = fault.pasid.map_or(0, |_| IOMMU_PGFAULT_FLAGS_PASID_VALID);
            let last = if fault.last { IOMMU_PGFAULT_FLAGS_LAST_PAGE } else { 0 };
            iommu_hwpt_pgfault {
                flags: pasid | last,
                dev_id: self.origin.device_id,
                pasid: fault.pasid.unwrap_or(0),
                grpid: fault.group_id,
                perm: fault.permissions,
                addr: fault.address,
                cookie,
                ..Default::default()
            }
        })
    }

    fn answer(&self, code: ResponseCode) {
        let Some(last) = self.faults.last() else { return };
        let (pasid, group_id) = (last.pasid, last.group_id);
        self.device.page_response(PageResponse { pasid, group_id, code });
    }
}

/// Gives out the lowest free number from 1, as the kernel's cookies are chosen.
#[derive(Default)]
struct Cookies {
    highest: u32,
    free: BinaryHeap<Reverse<u32>>,
    /// Cookie 0 is among those that are given out.
    zero: bool,
}

impl Cookies {
    fn take(&mut self) -> Result<u32, Errno> {
        inject::site("fault: cookie")?;
        if let Some(Reverse(cookie)) = self.free.pop() {
            return Ok(cookie);
        }
        self.highest = self.highest.checked_add(1).ok_or(Errno::EBUSY)?;
        Ok(self.highest)
    }

    fn give_back(&mut self, cookie: u32) {
        self.zero |= cookie == 0;
        self.free.push(Reverse(cookie));
    }

    /// Cookie 0 is not given out at first, but Linux 7.3 frees it like any other when an answer
    /// names it while others are awaited, and gives it out from then on.
    fn answered_nothing(&mut self, cookie: u32, awaited: bool) {
        if cookie == 0 && awaited && !self.zero {
            self.give_back(0);
        }
    }
}

impl State {
    fn remove(&mut self, cookie: u32) -> Option<FaultGroup> {
        let Some(group) = self.unanswered.remove(&cookie) else {
            self.cookies.answered_nothing(cookie, !self.unanswered.is_empty());
            return None;
        };
        self.cookies.give_back(cookie);
        Some(group)
    }
}

impl FaultQueue {
    /// Adds a group for the user to read.
    pub(crate) fn push(&self, group: FaultGroup) {
        self.state.lock().unread.push_back(group);
        self.watchers.wake();
    }

    /// Answers the groups of `origin` as failed, read or not: their device leaves.
    pub(crate) fn forget(&self, origin: Origin) {
        self.fail(|group| group.origin == origin);
    }

    fn fail(&self, which: impl Fn(&FaultGroup) -> bool) {
        let mut failed: Vec<FaultGroup> = Vec::new();
        let mut state = self.state.lock();
        let (gone, kept) = std::mem::take(&mut state.unread).into_iter().partition(&which);
        state.unread = kept;
        failed.extend::<VecDeque<_>>(gone);
        let cookies: Vec<u32> =
            state.unanswered.iter().filter(|(_, g)| which(g)).map(|(&cookie, _)| cookie).collect();
        failed.extend(cookies.into_iter().filter_map(|cookie| state.remove(cookie)));
        drop(state);
        failed.iter().for_each(|group| group.answer(ResponseCode::Invalid));
    }
}

impl Object for FaultQueue {
    fn kind(&self) -> Kind {
        Kind::Fault
    }

    fn report(&self, _: Scope) -> Detail {
        let state = self.state.lock();
        Detail::FaultQueue { unread: state.unread.len(), unanswered: state.unanswered.len() }
    }

    fn destroy(&self) {
        self.fail(|_| true);
    }
}

/// `IOMMU_FAULT_QUEUE_ALLOC`.
pub(crate) fn alloc(call: &Call<'_>, command: &mut iommu_fault_alloc) -> Result<(), Errno> {
    if command.flags != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let objects = call.context.objects();
    let reserved = objects.reserve()?;
    let taken = call.context.take(Resource::Queues)?;
    inject::site("fault: file")?;
    let id = reserved.id();
    let queue = reserved.commit_used(Arc::new(FaultQueue { _taken: taken, ..Default::default() }));
    let file = Arc::new(FaultFile::new(queue, call.context.hold()));
    // The descriptor first: its number lies in the same struct, so that the id fits there, too.
    let fd_at = call.arg + offset_of!(iommu_fault_alloc, out_fault_fd) as u64;
    let id_at = call.arg + offset_of!(iommu_fault_alloc, out_fault_id) as u64;
    if let Err(error) = call.caller.install(file, fd_at) {
        objects.remove(id);
        return Err(error);
    }
    call.write(id_at, &id)
}
