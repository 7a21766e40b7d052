//! A vIOMMU, and the calls on it.

use std::sync::Arc;

use engine::kapi::{Device, Lifetime};
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::iommufd::*;

use super::caller::{FREE, TestCaller};
use super::iommu::{TYPE, TinyDevice};

/// A vIOMMU with a device behind it.
pub struct Bench {
    pub caller: TestCaller,
    pub context: Arc<Context>,
    pub device: Option<Device>,
    pub ioas: u32,
    pub parent: u32,
    pub viommu: u32,
}

impl Bench {
    pub fn new() -> Self {
        Self::on(Engine::new().open(Node::Iommu))
    }

    pub fn on(context: Arc<Context>) -> Self {
        let caller = TestCaller::new();
        let command = iommu_ioas_alloc { size: 12, ..Default::default() };
        let ioas = caller.ioctl(&context, IOMMU_IOAS_ALLOC, command).0.out_ioas_id;
        let device = Arc::new(TinyDevice::new("a"));
        let device = Device::bind(&context, device, Lifetime::WithContext).unwrap();
        let command = iommu_hwpt_alloc {
            size: size_of::<iommu_hwpt_alloc>() as u32,
            flags: IOMMU_HWPT_ALLOC_NEST_PARENT,
            dev_id: device.id(),
            pt_id: ioas,
            ..Default::default()
        };
        let parent = caller.ioctl(&context, IOMMU_HWPT_ALLOC, command).0.out_hwpt_id;
        let mut bench = Self { caller, context, device: Some(device), ioas, parent, viommu: 0 };
        bench.viommu = bench.viommu(TYPE, 0).unwrap();
        bench
    }

    pub fn device_id(&self) -> u32 {
        self.device.as_ref().unwrap().id()
    }

    pub fn viommu(&self, viommu_type: u32, data_len: u32) -> Result<u32, Errno> {
        let command = iommu_viommu_alloc {
            size: size_of::<iommu_viommu_alloc>() as u32,
            r#type: viommu_type,
            dev_id: self.device_id(),
            hwpt_id: self.parent,
            data_len,
            data_uptr: FREE,
            ..Default::default()
        };
        let (answer, result) = self.caller.ioctl(&self.context, IOMMU_VIOMMU_ALLOC, command);
        result.map(|_| answer.out_viommu_id)
    }

    pub fn vdevice(&self, dev_id: u32, virt_id: u64) -> Result<u32, Errno> {
        let command = iommu_vdevice_alloc {
            size: size_of::<iommu_vdevice_alloc>() as u32,
            viommu_id: self.viommu,
            dev_id,
            virt_id,
            ..Default::default()
        };
        let (answer, result) = self.caller.ioctl(&self.context, IOMMU_VDEVICE_ALLOC, command);
        result.map(|_| answer.out_vdevice_id)
    }

    pub fn veventq(&self, depth: u32) -> Result<iommu_veventq_alloc, Errno> {
        let command = iommu_veventq_alloc {
            size: size_of::<iommu_veventq_alloc>() as u32,
            viommu_id: self.viommu,
            r#type: TYPE,
            veventq_depth: depth,
            ..Default::default()
        };
        let (answer, result) = self.caller.ioctl(&self.context, IOMMU_VEVENTQ_ALLOC, command);
        result.map(|_| answer)
    }

    pub fn map(&self, user_va: u64, length: u64, iova: u64) {
        let command = iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags: IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
            ioas_id: self.ioas,
            user_va,
            length,
            iova,
            ..Default::default()
        };
        self.caller.ioctl(&self.context, IOMMU_IOAS_MAP, command).1.unwrap();
    }

    pub fn unmap(&self, iova: u64, length: u64) -> Result<i64, Errno> {
        let command = iommu_ioas_unmap { size: 24, ioas_id: self.ioas, iova, length };
        self.caller.ioctl(&self.context, IOMMU_IOAS_UNMAP, command).1
    }

    pub fn hw_queue(
        &self,
        queue_type: u32,
        index: u32,
        iova: u64,
        length: u64,
    ) -> Result<u32, Errno> {
        let command = iommu_hw_queue_alloc {
            size: size_of::<iommu_hw_queue_alloc>() as u32,
            viommu_id: self.viommu,
            r#type: queue_type,
            index,
            nesting_parent_iova: iova,
            length,
            ..Default::default()
        };
        let (answer, result) = self.caller.ioctl(&self.context, IOMMU_HW_QUEUE_ALLOC, command);
        result.map(|_| answer.out_hw_queue_id)
    }

    pub fn destroy(&self, id: u32) -> Result<i64, Errno> {
        let command = iommu_destroy { size: 8, id };
        self.caller.ioctl(&self.context, IOMMU_DESTROY, command).1
    }

    pub fn invalidate(
        &self,
        id: u32,
        data_type: u32,
        requests: &[u32],
    ) -> (u32, Result<i64, Errno>) {
        self.caller.put(FREE, requests);
        let command = iommu_hwpt_invalidate {
            size: size_of::<iommu_hwpt_invalidate>() as u32,
            hwpt_id: id,
            data_uptr: FREE,
            data_type,
            entry_len: 4,
            entry_num: requests.len() as u32,
            ..Default::default()
        };
        let (answer, result) = self.caller.ioctl(&self.context, IOMMU_HWPT_INVALIDATE, command);
        (answer.entry_num, result)
    }
}
