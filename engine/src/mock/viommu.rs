//! vIOMMUs of the mock IOMMU: two pages to map, device caches to invalidate, queues that do nothing.

use std::sync::Arc;

use ioctl_abi::selftest::{
    IOMMU_HW_QUEUE_TYPE_SELFTEST, IOMMU_TEST_HW_QUEUE_MAX, IOMMU_TEST_INVALIDATE_FLAG_ALL,
    IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST, IOMMU_VIOMMU_TYPE_SELFTEST, MOCK_DEV_CACHE_ID_MAX,
    iommu_viommu_invalidate_selftest, iommu_viommu_selftest,
};
use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::device::MockDevice;
use super::nested::MockNested;
use crate::driver::{
    HwQueueRequest, HwptFlags, IommuDevice, MmapMemory, NestedDomain, NewHwQueue, UserArray,
    UserData, Viommu, ViommuHandle,
};
use crate::memory::PAGE_SIZE;
use crate::{Errno, inject};

/// The end of `out_data`: the user need not want the page.
const DATA_LEAST: usize = 8;

/// The mock's half of a vIOMMU.
pub struct MockViommu {
    handle: ViommuHandle,
    /// Which hardware queues run.
    queues: Arc<Mutex<[bool; IOMMU_TEST_HW_QUEUE_MAX as usize]>>,
}

impl MockViommu {
    /// A vIOMMU. `data`, if the user gave some, gets its number back and a page to map that
    /// begins with it.
    pub(super) fn new(handle: ViommuHandle, data: Option<&UserData<'_>>) -> Result<Self, Errno> {
        const TYPE: u32 = IOMMU_VIOMMU_TYPE_SELFTEST;
        inject::site("mock: viommu")?;
        if let Some(user) = data {
            let mut data: iommu_viommu_selftest = user.read(TYPE, DATA_LEAST)?;
            let page = MmapMemory::new(2 * PAGE_SIZE)?;
            page.write(0, &data.in_data.to_ne_bytes())?;
            data.out_data = data.in_data;
            data.out_mmap_length = page.length();
            data.out_mmap_offset = handle.alloc_mmap(page)?;
            let offset = data.out_mmap_offset;
            user.write(TYPE, &data, DATA_LEAST).inspect_err(|_| handle.free_mmap(offset))?;
        }
        Ok(Self { handle, queues: Arc::default() })
    }

    fn handle_request(&self, request: &iommu_viommu_invalidate_selftest) -> Result<(), Errno> {
        if request.flags & !IOMMU_TEST_INVALIDATE_FLAG_ALL != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let all = request.flags & IOMMU_TEST_INVALIDATE_FLAG_ALL != 0;
        // The index counts even where all entries go.
        if request.cache_id > MOCK_DEV_CACHE_ID_MAX {
            return Err(Errno::EINVAL);
        }
        let device = self.handle.device(request.vdev_id.into()).ok_or(Errno::EINVAL)?;
        let device = MockDevice::of(&*device).ok_or(Errno::EINVAL)?;
        device.drop_cache((!all).then_some(request.cache_id));
        Ok(())
    }
}

impl Viommu for MockViommu {
    fn alloc_nested(
        &self,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedDomain>, Errno> {
        Ok(Arc::new(MockNested::new(flags, data, Some(self.handle.clone()))?))
    }

    fn invalidates(&self) -> bool {
        true
    }

    fn invalidate(&self, requests: &UserArray<'_>) -> (u32, Result<(), Errno>) {
        const TYPE: u32 = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST;
        if requests.data_type() != TYPE {
            return (0, Err(Errno::EINVAL));
        }
        let all = match requests.read_all(TYPE) {
            Ok(all) => all,
            Err(error) => return (0, Err(error)),
        };
        for (done, request) in (0..).zip(&all) {
            if let Err(error) = self.handle_request(request) {
                return (done, Err(error));
            }
        }
        (requests.len(), Ok(()))
    }

    fn vdevice_init(&self, _device: &Arc<dyn IommuDevice>, _virt_id: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn supports_hw_queue(&self, queue_type: u32) -> bool {
        queue_type == IOMMU_HW_QUEUE_TYPE_SELFTEST
    }

    fn hw_queue_init(&self, queue: &HwQueueRequest) -> Result<NewHwQueue, Errno> {
        let mut running = self.queues.lock();
        let index = queue.index as usize;
        match running.get(index) {
            None => return Err(Errno::EINVAL),
            Some(true) => return Err(Errno::EEXIST),
            // Queues start in order, each after the one that it depends on.
            Some(false) if index > 0 && !running[index - 1] => return Err(Errno::EIO),
            Some(false) => running[index] = true,
        }
        let queues = self.queues.clone();
        let depends_on = queue.index.checked_sub(1);
        // Linux's mock forgets the index of a queue, and frees the first one's place for each.
        let place = if self.handle.quirks() { 0 } else { index };
        Ok(NewHwQueue { queue: Box::new(Running { queues, place }), depends_on })
    }
}

/// A hardware queue, until it is dropped.
struct Running {
    queues: Arc<Mutex<[bool; IOMMU_TEST_HW_QUEUE_MAX as usize]>>,
    /// The place that is free when it ends.
    place: usize,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queues.lock()[self.place] = false;
    }
}

/// Handles the requests of one type, in order, up to the first that fails.
pub(super) fn each_request<T>(
    requests: &UserArray<'_>,
    data_type: u32,
    mut handle: impl FnMut(&T) -> Result<(), Errno>,
) -> (u32, Result<(), Errno>)
where
    T: FromBytes + IntoBytes + Immutable,
{
    if requests.data_type() != data_type {
        return (0, Err(Errno::EINVAL));
    }
    for index in 0..requests.len() {
        // All fields are of the first version.
        let request = requests.read(data_type, index, size_of::<T>());
        if let Err(error) = request.and_then(|request| handle(&request)) {
            return (index, Err(error));
        }
    }
    (requests.len(), Ok(()))
}
