//! Looking into a running engine, for people who debug DMA and for their tools.
//!
//! The uAPI tells a program what it did; it does not tell what is mapped now, which bytes an IOPTE
//! leads to, or who mapped a frame. This module answers that from the outside: [`Engine::report`]
//! (everything), [`Context::walk`] (one IOVA as the hardware sees it), [`Engine::find_frame`] (a PFN
//! back to its bytes and its owner) and [`Context::device_port`] (DMA of a bound device).
//!
//! Nothing here changes what a program can see. No object is *used* while it is looked at (a
//! `DESTROY` meanwhile must not be `EBUSY`), no accessed or dirty bit is set, and locks that a long
//! pin may hold are waited for only [`PATIENCE`].

mod frame;
pub(crate) mod hex;
mod report;
mod walk;

pub use frame::FrameReport;
pub use report::{
    AreaReport, Attachment, ContextReport, Detail, EngineReport, IoasReport, ObjectReport,
    PayerReport, PinReport, SourceReport, UserReport,
};
pub use walk::{StageReport, StepReport, WalkReport};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::account::PayerId;
use crate::device::Bound;
use crate::dma::Port;
use crate::ioas::Ioas;
use crate::selftest::SelftestDevice;
use crate::{Context, Engine, Errno, Node};

/// How long a report waits for a lock that a command holds.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What a report shall contain.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Most areas that are listed of each IOAS; all are counted.
    pub areas: usize,
    /// Areas below this IOVA are not listed.
    pub from: u64,
}

impl Engine {
    /// All contexts, with all that is in them, and who pays for pins.
    pub fn report(&self, scope: Scope) -> EngineReport {
        let contexts = self.contexts();
        let mut payers = BTreeMap::new();
        for context in &contexts {
            context.each_ioas(|ioas| ioas.add_payers(&mut payers));
        }
        let users = self.accounts().users().into_iter();
        EngineReport {
            contexts: contexts.iter().map(|context| context.report(scope)).collect(),
            payers: payers.into_values().collect(),
            users: users.map(|(uid, locked_pages)| UserReport { uid, locked_pages }).collect(),
        }
    }

    /// Where frame `pfn` is pinned, in all contexts: whose page it is and how it is held, with its
    /// bytes when `bytes` asks for them. Looks at every area.
    pub fn find_frame(&self, pfn: u64, bytes: bool) -> Vec<FrameReport> {
        let contexts = self.contexts();
        contexts.iter().flat_map(|context| context.find_frame(pfn, bytes)).collect()
    }
}

impl Context {
    /// This context and all its objects.
    pub fn report(&self, scope: Scope) -> ContextReport {
        let objects = self.objects().all().into_iter();
        ContextReport {
            id: self.id().0,
            node: match self.node() {
                Node::Iommu => "/dev/iommu".into(),
                Node::VfioContainer => "/dev/vfio/vfio".into(),
            },
            rlimit_mode: self.account_mode().name().into(),
            objects: objects
                .map(|(id, users, object)| ObjectReport { id, users, detail: object.report(scope) })
                .collect(),
        }
    }

    /// Where DMA of device `id` (or a PASID of it; [`crate::driver::NO_PASID`] for none) begins.
    /// `id` is the device's object id, or that of the selftest's handle of it.
    ///
    /// `ENOENT` for no such device, `EINVAL` for a PASID that it cannot have, `EBUSY` while a
    /// command runs for longer than [`PATIENCE`], `EOPNOTSUPP` when its driver simulates no DMA.
    pub fn device_port(&self, id: u32, pasid: u32) -> Result<Arc<Port>, Errno> {
        let bound = self.device(id)?;
        if u64::from(pasid) >= 1 << bound.device().max_pasid_log2() {
            return Err(Errno::EINVAL);
        }
        let _serial = self.serial_within(PATIENCE).ok_or(Errno::EBUSY)?;
        bound.open_dma(pasid)
    }

    /// Whether there is a device `id`, bound.
    pub fn has_device(&self, id: u32) -> bool {
        self.device(id).is_ok()
    }

    /// The bound device `id`, not kept from anything. `ENOENT`.
    fn device(&self, id: u32) -> Result<Arc<Bound>, Errno> {
        let objects = self.objects();
        if let Some(bound) = objects.look::<Bound>(id) {
            return Ok(bound);
        }
        let handle = objects.look::<SelftestDevice>(id).ok_or(Errno::ENOENT)?;
        handle.device_id().and_then(|id| objects.look(id)).ok_or(Errno::ENOENT)
    }
}

impl Ioas {
    fn add_payers(&self, payers: &mut BTreeMap<PayerId, PayerReport>) {
        let Some(state) = self.lock_within(PATIENCE) else { return };
        let mut last = std::ptr::null();
        state.each_pages(&mut |pages| {
            if Arc::as_ptr(pages) != last {
                last = Arc::as_ptr(pages);
                pages.add_payer(payers);
            }
        });
    }
}
