//! Hardware queues: memory of the guest that the hardware reads and writes on its own.
//!
//! A queue's memory is pinned through an access of the engine, so that a queue takes two object
//! ids: its own and then that of the access. While it lives its IOVAs cannot be unmapped.

use std::any::Any;
use std::sync::{Arc, Weak};

use ioctl_abi::iommufd::{IOMMU_HW_QUEUE_TYPE_DEFAULT, iommu_hw_queue_alloc};
use parking_lot::Mutex;

use crate::call::Call;
use crate::driver::HwQueueRequest;
use crate::inspect::{Detail, Scope};
use crate::ioas::Ioas;
use crate::iopt::AccessUser;
use crate::iopt::access::AccessId;
use crate::memory::PAGE_SIZE;
use crate::object::{Kind, Object, Use};
use crate::{Context, Errno, inject};

use super::Viommu;

/// A hardware queue.
pub(crate) struct HwQueue {
    queue_type: u32,
    index: u32,
    /// The driver's half; nothing once the queue is destroyed.
    running: Mutex<Option<Box<dyn Any + Send + Sync>>>,
    _memory: Memory,
    /// The queue that has to outlive this one.
    _depends_on: Option<Use<HwQueue>>,
    viommu: Use<Viommu>,
}

/// The queues of a vIOMMU, for who depends on one.
#[derive(Default)]
pub(crate) struct HwQueues {
    queues: Mutex<Vec<(u32, Weak<HwQueue>)>>,
}

impl HwQueues {
    fn find(&self, context: &Context, queue_type: u32, index: u32) -> Option<Use<HwQueue>> {
        let queues = self.queues.lock();
        let same = |q: &HwQueue| q.queue_type == queue_type && q.index == index;
        let found =
            |(_, queue): &&(u32, Weak<HwQueue>)| queue.upgrade().is_some_and(|queue| same(&queue));
        // The one made last: with Linux's quirks there may be several.
        let &(id, _) = queues.iter().rfind(found)?;
        context.objects().get(id).ok()
    }

    fn add(&self, id: u32, queue: &Arc<HwQueue>) {
        let mut queues = self.queues.lock();
        queues.retain(|(_, queue)| queue.strong_count() > 0);
        queues.push((id, Arc::downgrade(queue)));
    }
}

/// The pinned memory of a queue. Dropping it unpins.
struct Memory {
    ioas: Use<Ioas>,
    access: AccessId,
    /// Whole pages; nothing while nothing is pinned.
    pinned: Option<(u64, u64)>,
    object: Option<Use<AccessObject>>,
    context: Weak<Context>,
}

/// The access of a queue, in the object table.
struct AccessObject {
    id: u32,
    ioas: u32,
}

impl Object for AccessObject {
    fn kind(&self) -> Kind {
        Kind::Access
    }

    fn report(&self, _: Scope) -> Detail {
        Detail::Access { ioas: Some(self.ioas), pins: true }
    }
}

/// Nobody asks it: locked areas are not unmapped.
struct Locked;

impl AccessUser for Locked {
    fn unmap(&self, _iova: u64, _length: u64) {}
}

impl Memory {
    /// Pins `length` bytes at `iova`, which are not none. Answers the first one's physical address,
    /// too. `ENOENT` when something is not mapped, `EFAULT` when it is not contiguous, `ERANGE` when
    /// whole pages around it are more than there can be, `ENOMEM`.
    fn pin(
        context: &Arc<Context>,
        ioas: &Use<Ioas>,
        iova: u64,
        length: u64,
    ) -> Result<(Self, u64), Errno> {
        let start = iova - iova % PAGE_SIZE;
        let bytes = (iova - start)
            .checked_add(length)
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE_SIZE))
            .ok_or(Errno::ERANGE)?;
        // The kernel has a pointer for each page, and no array of 2 GiB.
        if bytes / PAGE_SIZE * 8 > i32::MAX as u64 {
            return Err(Errno::ENOMEM);
        }
        let reserved = context.objects().reserve()?;
        let id = reserved.id();
        let object = reserved.commit_used(Arc::new(AccessObject { id, ioas: ioas.id() }));
        let access = match ioas.add_access(Arc::new(Locked), true) {
            Ok(access) => access,
            Err(error) => {
                drop(object);
                context.objects().remove(id);
                return Err(error);
            }
        };
        let mut memory = Self {
            ioas: ioas.clone(),
            access,
            pinned: None,
            object: Some(object),
            context: Arc::downgrade(context),
        };
        inject::site("hw_queue: pages")?;
        let frames = ioas.pin_pages(start, bytes, false)?;
        ioas.lock_areas(start, bytes);
        memory.pinned = Some((start, bytes));
        let [run] = frames[..] else { return Err(Errno::EFAULT) };
        Ok((memory, run.first * PAGE_SIZE + iova % PAGE_SIZE))
    }
}

impl Drop for Memory {
    /// Unpins, and gives the access's id back.
    fn drop(&mut self) {
        if let Some((start, bytes)) = self.pinned.take() {
            self.ioas.unlock_areas(start, bytes);
            self.ioas.unpin_pages(start, bytes);
        }
        let Some(object) = self.object.take() else { return };
        self.ioas.remove_access(self.access);
        let id = object.id;
        drop(object);
        if let Some(context) = self.context.upgrade() {
            context.objects().remove(id);
        }
    }
}

impl Object for HwQueue {
    fn kind(&self) -> Kind {
        Kind::HwQueue
    }

    fn report(&self, _: Scope) -> Detail {
        let (queue_type, index) = (self.queue_type, self.index);
        Detail::HwQueue { viommu: self.viommu.handle().id(), queue_type, index }
    }

    fn destroy(&self) {
        // The hardware stops before its memory goes.
        drop(self.running.lock().take());
    }
}

/// `IOMMU_HW_QUEUE_ALLOC`.
pub(crate) fn alloc(call: &Call<'_>, command: &mut iommu_hw_queue_alloc) -> Result<(), Errno> {
    let (queue_type, index) = (command.r#type, command.index);
    if command.flags != 0 || queue_type == IOMMU_HW_QUEUE_TYPE_DEFAULT {
        return Err(Errno::EOPNOTSUPP);
    }
    let (iova, length) = (command.nesting_parent_iova, command.length);
    if length == 0 {
        return Err(Errno::EINVAL);
    }
    iova.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
    let objects = call.context.objects();
    let viommu = objects.get::<Viommu>(command.viommu_id)?;
    if !viommu.ops().supports_hw_queue(queue_type) {
        return Err(Errno::EOPNOTSUPP);
    }
    let reserved = objects.reserve()?;
    let id = reserved.id();
    let ioas = viommu.parent().ioas_use();
    let (memory, physical) = Memory::pin(call.context, ioas, iova, length)?;
    inject::site("hw_queue: driver")?;
    let request = HwQueueRequest { queue_type, index, iova, physical, length };
    let new = viommu.ops().hw_queue_init(&request)?;
    let depends_on = match new.depends_on {
        Some(index) => {
            Some(viommu.hw_queues().find(call.context, queue_type, index).ok_or(Errno::EIO)?)
        }
        None => None,
    };
    let queue = Arc::new(HwQueue {
        queue_type,
        index,
        running: Mutex::new(Some(new.queue)),
        _memory: memory,
        _depends_on: depends_on,
        viommu,
    });
    command.out_hw_queue_id = id;
    call.respond(command)?;
    queue.viommu.hw_queues().add(id, &queue);
    reserved.commit(queue);
    Ok(())
}
