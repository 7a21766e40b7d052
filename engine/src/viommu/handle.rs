//! The engine's half of a vIOMMU, as its driver holds it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use parking_lot::{Mutex, RwLock};

use crate::driver::IommuDevice;
use crate::file::ContextId;
use crate::memory::PAGE_SIZE;
use crate::{Context, Errno, inject};

use super::veventq::EventQueue;

/// What the driver of a vIOMMU asks the engine for. Copies name the same vIOMMU; none keeps it,
/// or its context, alive.
#[derive(Clone)]
pub struct ViommuHandle {
    shared: Arc<Shared>,
}

/// What both halves see.
struct Shared {
    context: Weak<Context>,
    context_id: ContextId,
    id: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    devices: BTreeMap<u64, Arc<dyn IommuDevice>>,
    queues: BTreeMap<u32, Arc<EventQueue>>,
    mmaps: Vec<u64>,
}

impl ViommuHandle {
    pub(crate) fn new(context: &Arc<Context>, id: u32) -> Self {
        let shared = Shared {
            context: Arc::downgrade(context),
            context_id: context.id(),
            id,
            state: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The vIOMMU's object id.
    pub fn id(&self) -> u32 {
        self.shared.id
    }

    /// The context that the vIOMMU belongs to.
    pub fn context_id(&self) -> ContextId {
        self.shared.context_id
    }

    /// Whether both are of one vIOMMU.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether to do as Linux does where Linux is plainly at fault.
    pub fn quirks(&self) -> bool {
        self.shared.context.upgrade().is_some_and(|context| context.engine().quirks())
    }

    /// The device that the guest calls `virt_id`.
    pub fn device(&self, virt_id: u64) -> Option<Arc<dyn IommuDevice>> {
        self.shared.state.lock().devices.get(&virt_id).cloned()
    }

    /// What the guest calls `device`. `ENOENT` when it has no vDEVICE here.
    pub fn virt_id(&self, device: &dyn IommuDevice) -> Result<u64, Errno> {
        let state = self.shared.state.lock();
        let mut found = state.devices.iter().filter(|(_, d)| std::ptr::addr_eq(&***d, device));
        found.next().map(|(&virt_id, _)| virt_id).ok_or(Errno::ENOENT)
    }

    /// Reports an event to the queue of `event_type` (`enum iommu_veventq_type`). `EOPNOTSUPP`
    /// when the user has made none. A queue that is full counts the event as lost and this is not
    /// an error; `ENOMEM` by fault injection, which loses it, too.
    pub fn report_event(&self, event_type: u32, data: &[u8]) -> Result<(), Errno> {
        let queue = self.shared.state.lock().queues.get(&event_type).cloned();
        queue.ok_or(Errno::EOPNOTSUPP)?.push(data)
    }

    /// Lets the user map `memory` through the iommufd. Answers the offset to pass to `mmap`,
    /// which is good until [`ViommuHandle::free_mmap`] or the vIOMMU's end. `ENOMEM`.
    pub fn alloc_mmap(&self, memory: MmapMemory) -> Result<u64, Errno> {
        let context = self.shared.context.upgrade().ok_or(Errno::ENODEV)?;
        let offset = context.mmaps().insert(self.shared.id, memory)?;
        self.shared.state.lock().mmaps.push(offset);
        Ok(offset)
    }

    /// Takes an offset back. Mappings that exist stay.
    pub fn free_mmap(&self, offset: u64) {
        let mut state = self.shared.state.lock();
        let Some(at) = state.mmaps.iter().position(|&o| o == offset) else { return };
        state.mmaps.swap_remove(at);
        drop(state);
        if let Some(context) = self.shared.context.upgrade() {
            context.mmaps().remove(offset);
        }
    }

    pub(crate) fn free_all_mmaps(&self) {
        let offsets = std::mem::take(&mut self.shared.state.lock().mmaps);
        if let Some(context) = self.shared.context.upgrade() {
            offsets.into_iter().for_each(|offset| context.mmaps().remove(offset));
        }
    }

    /// `device` becomes `virt_id`. `EEXIST` when the id is taken.
    pub(crate) fn add_device(
        &self,
        virt_id: u64,
        device: &Arc<dyn IommuDevice>,
    ) -> Result<(), Errno> {
        use std::collections::btree_map::Entry;
        match self.shared.state.lock().devices.entry(virt_id) {
            Entry::Occupied(_) => Err(Errno::EEXIST),
            Entry::Vacant(free) => {
                inject::site("vdevice: virtual id")?;
                free.insert(device.clone());
                Ok(())
            }
        }
    }

    pub(crate) fn remove_device(&self, virt_id: u64) {
        self.shared.state.lock().devices.remove(&virt_id);
    }

    pub(crate) fn has_queue(&self, event_type: u32) -> bool {
        self.shared.state.lock().queues.contains_key(&event_type)
    }

    pub(crate) fn add_queue(&self, event_type: u32, queue: Arc<EventQueue>) {
        self.shared.state.lock().queues.insert(event_type, queue);
    }

    pub(crate) fn remove_queue(&self, event_type: u32) {
        self.shared.state.lock().queues.remove(&event_type);
    }
}

/// Memory that a driver shows to the user, as a device shows registers: whole pages of a memfd.
/// Clones are the same memory.
#[derive(Clone)]
pub struct MmapMemory {
    place: Arc<RwLock<Place>>,
    length: u64,
}

/// Where the bytes are.
struct Place {
    file: File,
    start: u64,
}

impl MmapMemory {
    /// Zeroed memory of `length` bytes, rounded up to whole pages. `EINVAL` for none, `ENOMEM`.
    pub fn new(length: u64) -> Result<Self, Errno> {
        inject::site("mmap: memory")?;
        let length = length.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let file: File = memfd_create(c"iommufd-mmap", MFdFlags::MFD_CLOEXEC)?.into();
        file.set_len(length).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { place: Arc::new(RwLock::new(Place { file, start: 0 })), length })
    }

    /// Bytes, a multiple of the page size.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Copies from byte `offset`. `EFAULT` outside of it.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.check(offset, into.len())?;
        let place = self.place.read();
        place.file.read_exact_at(into, place.start + offset).map_err(|_| Errno::EFAULT)
    }

    /// Copies to byte `offset`. `EFAULT` outside of it.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.check(offset, from.len())?;
        let place = self.place.read();
        place.file.write_all_at(from, place.start + offset).map_err(|_| Errno::EFAULT)
    }

    /// Moves the bytes to byte `start` of `file`, which grows as needed: for a front end whose
    /// callers map the iommufd's own file. Nothing happens when they are there already.
    ///
    /// Done before the first caller maps them, as a mapping does not move along.
    pub fn place(&self, file: BorrowedFd<'_>, start: u64) -> Result<(), Errno> {
        let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let end = start.checked_add(self.length).ok_or(Errno::EFBIG)?;
        let mut place = self.place.write();
        let there = fstat(file)?;
        let here = fstat(&place.file)?;
        if (here.st_dev, here.st_ino, place.start) == (there.st_dev, there.st_ino, start) {
            return Ok(());
        }
        let target = File::from(file.try_clone_to_owned().map_err(io)?);
        if target.metadata().map_err(io)?.len() < end {
            target.set_len(end).map_err(io)?;
        }
        let mut page = [0; PAGE_SIZE as usize];
        for offset in (0..self.length).step_by(page.len()) {
            place.file.read_exact_at(&mut page, place.start + offset).map_err(io)?;
            target.write_all_at(&page, start + offset).map_err(io)?;
        }
        *place = Place { file: target, start };
        Ok(())
    }

    fn check(&self, offset: u64, length: usize) -> Result<(), Errno> {
        let end = offset.checked_add(length as u64).filter(|&end| end <= self.length);
        end.map(drop).ok_or(Errno::EFAULT)
    }
}
