//! Groups of devices that an IOMMU cannot tell apart: owned by one context at a time, and attached
//! to one domain together.
//!
//! A group's lock is held for a look-up or a change of this record only, and while a fault finds
//! its queue. Who changes the record holds the serial lock of the owning context and calls the
//! IOMMU driver with the group unlocked.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Errno;
use crate::device::Bound;
use crate::driver::NO_PASID;
use crate::file::ContextId;
use crate::hwpt::Hwpt;

/// An IOMMU group. Its driver makes one and all devices in it share it.
pub struct Group {
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The context that has devices of the group, and how many.
    owner: Option<(ContextId, usize)>,
    /// By PASID, [`NO_PASID`] for the devices themselves.
    attachments: BTreeMap<u32, Attachment>,
}

/// What a PASID of the group is attached to, and for which of its devices.
#[derive(Clone)]
pub(crate) struct Attachment {
    pub(crate) hwpt: Hwpt,
    pub(crate) devices: Vec<Arc<Bound>>,
}

impl Attachment {
    pub(crate) fn has(&self, bound: &Bound) -> bool {
        self.devices.iter().any(|device| device.id() == bound.id())
    }
}

impl Group {
    /// A group that nobody owns. `name` is for reports.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), state: Mutex::default() }
    }

    /// What the driver called it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One more device of the group is bound to `context`. `EBUSY` while another one has devices.
    pub(crate) fn claim(&self, context: ContextId) -> Result<(), Errno> {
        let mut state = self.state.lock();
        match &mut state.owner {
            Some((owner, devices)) if *owner == context => *devices += 1,
            Some(_) => return Err(Errno::EBUSY),
            none => *none = Some((context, 1)),
        }
        Ok(())
    }

    /// One device less.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock();
        match &mut state.owner {
            Some((_, devices)) if *devices > 1 => *devices -= 1,
            owner => *owner = None,
        }
    }

    /// What `pasid` is attached to.
    pub(crate) fn attachment(&self, pasid: u32) -> Option<Attachment> {
        self.state.lock().attachments.get(&pasid).cloned()
    }

    /// Sets, or takes away, what `pasid` is attached to. Answers what it was.
    pub(crate) fn set_attachment(
        &self,
        pasid: u32,
        attachment: Option<Attachment>,
    ) -> Option<Attachment> {
        let mut state = self.state.lock();
        match attachment {
            Some(attachment) => state.attachments.insert(pasid, attachment),
            None => state.attachments.remove(&pasid),
        }
    }

    /// Runs `with` on the HWPT that `pasid` of `bound` is attached to, for who only looks.
    pub(crate) fn with_attachment<R>(
        &self,
        bound: &Bound,
        pasid: u32,
        with: impl FnOnce(&Hwpt) -> R,
    ) -> Option<R> {
        let state = self.state.lock();
        let attachment =
            state.attachments.get(&pasid).filter(|attachment| attachment.has(bound))?;
        Some(with(&attachment.hwpt))
    }

    /// The PASIDs that `bound` is attached with.
    pub(crate) fn pasids_of(&self, bound: &Bound) -> Vec<u32> {
        let state = self.state.lock();
        let mine = state.attachments.iter().filter(|(_, attachment)| attachment.has(bound));
        mine.map(|(&pasid, _)| pasid).collect()
    }

    /// Whether the group would let `pasid` be attached to `hwpt`: PASIDs want HWPTs that were made
    /// for them, on the device itself, too, as long as it has any. `EINVAL`.
    pub(crate) fn check_pasid(&self, pasid: u32, hwpt: &Hwpt) -> Result<(), Errno> {
        let state = self.state.lock();
        let suits = if pasid == NO_PASID {
            hwpt.is_for_pasid() || state.attachments.keys().all(|&other| other == NO_PASID)
        } else {
            let device = state.attachments.get(&NO_PASID);
            hwpt.is_for_pasid() && device.is_none_or(|device| device.hwpt.is_for_pasid())
        };
        if suits { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Runs `with` on the HWPT that handles faults of `bound` with `pasid`, and on the PASID that
    /// it is attached to. While `with` runs the device stays attached. `EINVAL` when there is
    /// none.
    ///
    /// A nested HWPT on the device itself has the table of the PASIDs, too, and so takes the
    /// faults of all that are not attached on their own.
    pub(crate) fn with_handler<R>(
        &self,
        bound: &Bound,
        pasid: u32,
        with: impl FnOnce(&Hwpt, u32) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let state = self.state.lock();
        let attached = |pasid| state.attachments.get(&pasid).filter(|a| a.has(bound));
        let own = attached(pasid).map(|attachment| (attachment, pasid));
        let device = || {
            let nested = |a: &&Attachment| matches!(a.hwpt, Hwpt::Nested(_));
            attached(NO_PASID).filter(nested).map(|attachment| (attachment, NO_PASID))
        };
        let (attachment, pasid) = own.or_else(device).ok_or(Errno::EINVAL)?;
        with(&attachment.hwpt, pasid)
    }
}
