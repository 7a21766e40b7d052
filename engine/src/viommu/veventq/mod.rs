//! vEVENTQs: events of a vIOMMU, as its user reads them from a file.

mod queue;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::mem::offset_of;
use std::sync::Arc;

use ioctl_abi::iommufd::{IOMMU_VEVENTQ_TYPE_DEFAULT, iommu_veventq_alloc};
use parking_lot::Mutex;

use crate::call::Call;
use crate::context::Hold;
use crate::file::{EngineFile, PollEvents, ReadBuffer, Wake};
use crate::inspect::{Detail, Scope};
use crate::kept::Opens;
use crate::object::{Kind, Object, Use};
use crate::quota::{Resource, Taken};
use crate::{Errno, inject};

use super::Viommu;

pub(crate) use queue::EventQueue;

/// Events that one queue may hold: the kernel's limit.
const MAX_DEPTH: u32 = 1 << 19;

/// A vEVENTQ.
pub(crate) struct Veventq {
    event_type: u32,
    viommu: Use<Viommu>,
    /// Its place in its user's quota.
    _taken: Taken,
}

impl Object for Veventq {
    fn kind(&self) -> Kind {
        Kind::Veventq
    }

    fn report(&self, _: Scope) -> Detail {
        Detail::Veventq { viommu: self.viommu.handle().id(), event_type: self.event_type }
    }

    fn destroy(&self) {
        self.viommu.handle().remove_queue(self.event_type);
    }
}

/// The file of a vEVENTQ. Keeps the object, and its context, until it is released.
struct VeventqFile {
    queue: Arc<EventQueue>,
    kept: Mutex<Option<(Use<Veventq>, Hold)>>,
    opens: Opens,
}

impl EngineFile for VeventqFile {
    fn name(&self) -> &'static str {
        "[iommufd-viommu-event]"
    }

    fn writable(&self) -> bool {
        true
    }

    fn read(&self, into: &mut dyn ReadBuffer) -> Result<(), Errno> {
        self.queue.read(into)
    }

    fn write(&self, _bytes: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn poll(&self) -> PollEvents {
        let input = PollEvents::IN | PollEvents::RDNORM;
        if self.queue.readable() { input } else { PollEvents::empty() }
    }

    fn watch(&self, wake: Arc<dyn Wake>) {
        self.queue.watchers.add(wake);
    }

    fn opens(&self) -> Option<&Opens> {
        Some(&self.opens)
    }

    fn end(&self) {
        self.queue.watchers.clear();
        let kept = self.kept.lock().take();
        if let Some((veventq, hold)) = kept {
            drop(veventq);
            drop(hold);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// `IOMMU_VEVENTQ_ALLOC`.
pub(crate) fn alloc(call: &Call<'_>, command: &mut iommu_veventq_alloc) -> Result<(), Errno> {
    let default = command.r#type == IOMMU_VEVENTQ_TYPE_DEFAULT;
    if command.flags != 0 || command.__reserved != 0 || default {
        return Err(Errno::EOPNOTSUPP);
    }
    if command.veventq_depth == 0 || command.veventq_depth > MAX_DEPTH {
        return Err(Errno::EINVAL);
    }
    let objects = call.context.objects();
    let viommu = objects.get::<Viommu>(command.viommu_id)?;
    if viommu.handle().has_queue(command.r#type) {
        return Err(Errno::EEXIST);
    }
    let reserved = objects.reserve()?;
    let taken = call.context.take(Resource::Queues)?;
    inject::site("veventq: file")?;
    let id = reserved.id();
    let queue = Arc::new(EventQueue::new(command.veventq_depth, call.context.quota().cloned()));
    viommu.handle().add_queue(command.r#type, queue.clone());
    let veventq = Veventq { event_type: command.r#type, viommu, _taken: taken };
    let veventq = reserved.commit_used(Arc::new(veventq));
    let kept = Mutex::new(Some((veventq, call.context.hold())));
    // The descriptor first: its number lies in the same struct, so that the id fits there, too.
    let fd_at = call.arg + offset_of!(iommu_veventq_alloc, out_veventq_fd) as u64;
    let id_at = call.arg + offset_of!(iommu_veventq_alloc, out_veventq_id) as u64;
    if let Err(error) =
        call.caller.install(Arc::new(VeventqFile { queue, kept, opens: Opens::default() }), fd_at)
    {
        objects.remove(id);
        return Err(error);
    }
    call.write(id_at, &id)
}
