//! vIOMMUs and what belongs to them.

mod common;

use std::sync::Arc;

use common::caller::{BASE, FREE, GAP, TestCaller};
use common::iommu::{Payload, TYPE, TinyDevice};
use engine::file::PollEvents;
use engine::kapi::{Device, Lifetime};
use engine::{Context, Engine, Errno, MmapRequest, Node};
use ioctl_abi::iommufd::*;

/// A vIOMMU with a device behind it.
struct Bench {
    caller: TestCaller,
    context: Arc<Context>,
    device: Option<Device>,
    ioas: u32,
    parent: u32,
    viommu: u32,
}

impl Bench {
    fn new() -> Self {
        let caller = TestCaller::new();
        let context = Engine::new().open(Node::Iommu);
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

    fn device_id(&self) -> u32 {
        self.device.as_ref().unwrap().id()
    }

    fn viommu(&self, viommu_type: u32, data_len: u32) -> Result<u32, Errno> {
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

    fn vdevice(&self, dev_id: u32, virt_id: u64) -> Result<u32, Errno> {
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

    fn veventq(&self, depth: u32) -> Result<iommu_veventq_alloc, Errno> {
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

    fn map(&self, user_va: u64, length: u64, iova: u64) {
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

    fn unmap(&self, iova: u64, length: u64) -> Result<i64, Errno> {
        let command = iommu_ioas_unmap { size: 24, ioas_id: self.ioas, iova, length };
        self.caller.ioctl(&self.context, IOMMU_IOAS_UNMAP, command).1
    }

    fn hw_queue(&self, queue_type: u32, index: u32, iova: u64, length: u64) -> Result<u32, Errno> {
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

    fn destroy(&self, id: u32) -> Result<i64, Errno> {
        let command = iommu_destroy { size: 8, id };
        self.caller.ioctl(&self.context, IOMMU_DESTROY, command).1
    }

    fn invalidate(&self, id: u32, data_type: u32, requests: &[u32]) -> (u32, Result<i64, Errno>) {
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

#[test]
fn a_viommu_keeps_its_parent() {
    let bench = Bench::new();
    assert_eq!(bench.viommu(0, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(bench.viommu(TYPE + 1, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(bench.destroy(bench.parent), Err(Errno::EBUSY));
    let vdevice = bench.vdevice(bench.device_id(), 1).unwrap();
    assert_eq!(bench.destroy(bench.viommu), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(vdevice), Ok(0));
    assert_eq!(bench.destroy(bench.viommu), Ok(0));
    assert_eq!(bench.destroy(bench.parent), Ok(0));
}

#[test]
fn a_vdevice_that_lost_its_device_leaves_a_tombstone() {
    let mut bench = Bench::new();
    let vdevice = bench.vdevice(bench.device_id(), 0x99).unwrap();
    assert_eq!(bench.vdevice(bench.device_id(), 0x98), Err(Errno::EEXIST));
    let other = Arc::new(TinyDevice::new("b"));
    let other = Device::bind(&bench.context, other, Lifetime::WithContext).unwrap();
    assert_eq!(bench.vdevice(other.id(), 0x99), Err(Errno::EEXIST));
    let elsewhere = Arc::new(TinyDevice { instance: 1, ..TinyDevice::new("c") });
    let elsewhere = Device::bind(&bench.context, elsewhere, Lifetime::WithContext).unwrap();
    assert_eq!(bench.vdevice(elsewhere.id(), 0x97), Err(Errno::EINVAL));
    bench.device.take().unwrap().unbind();
    assert_eq!(bench.destroy(vdevice), Err(Errno::ENOENT));
    let again = bench.vdevice(other.id(), 0x99).unwrap();
    assert_ne!(again, vdevice);
    drop((other, elsewhere));
    assert_eq!(bench.destroy(bench.viommu), Ok(0));
    assert_eq!(bench.context.close(), 0);
    assert!(bench.context.objects().is_empty());
}

#[test]
fn events_come_with_their_virtual_id() {
    let bench = Bench::new();
    assert_eq!(bench.veventq(0).err(), Some(Errno::EINVAL));
    assert_eq!(bench.veventq((1 << 19) + 1).err(), Some(Errno::EINVAL));
    let queue = bench.veventq(1 << 19).unwrap();
    assert_eq!(bench.veventq(2).err(), Some(Errno::EEXIST));
    let file = bench.caller.file_of(queue.out_veventq_fd);
    assert_eq!(file.poll(), PollEvents::empty());
    assert_eq!(file.write(&[0; 8]), Err(Errno::EINVAL));
    let vdevice = bench.vdevice(bench.device_id(), 0x55).unwrap();
    assert_eq!(file.poll(), PollEvents::IN | PollEvents::RDNORM);
    let bytes = bench.caller.read(queue.out_veventq_fd, 64).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0x55, 0, 0, 0]);
    assert_eq!(bench.destroy(queue.out_veventq_id), Err(Errno::EBUSY));
    drop(file);
    bench.caller.close(queue.out_veventq_fd);
    assert_eq!(bench.destroy(queue.out_veventq_id), Ok(0));
    assert_eq!(bench.destroy(vdevice), Ok(0));
    bench.veventq(2).unwrap();
}

#[test]
fn an_open_event_file_keeps_the_context() {
    let bench = Bench::new();
    let queue = bench.veventq(2).unwrap();
    let Bench { caller, context, device, .. } = bench;
    drop(device);
    context.close();
    assert!(!context.objects().is_empty());
    caller.close(queue.out_veventq_fd);
    assert!(context.objects().is_empty());
}

#[test]
fn invalidation_tells_how_far_it_came() {
    let bench = Bench::new();
    bench.vdevice(bench.device_id(), 5).unwrap();
    assert_eq!(bench.invalidate(bench.viommu, TYPE, &[5, 5]), (2, Ok(0)));
    assert_eq!(bench.invalidate(bench.viommu, TYPE, &[5, 6, 5]), (1, Err(Errno::EINVAL)));
    assert_eq!(bench.invalidate(bench.viommu, TYPE + 1, &[5]), (0, Err(Errno::EINVAL)));
    assert_eq!(bench.invalidate(bench.viommu, TYPE, &[]), (0, Ok(0)));
    assert_eq!(bench.invalidate(bench.parent, TYPE, &[5]), (0, Err(Errno::EINVAL)));
    assert_eq!(bench.invalidate(99, TYPE, &[5]), (0, Err(Errno::ENOENT)));
}

#[test]
fn user_data_may_be_older_and_never_newer() {
    let bench = Bench::new();
    bench.caller.put(FREE, &[7u32, 0, 0, 0]);
    assert_eq!(bench.viommu(TYPE, 3), Err(Errno::EINVAL));
    assert!(bench.viommu(TYPE, 4).is_ok());
    assert!(bench.viommu(TYPE, 8).is_ok());
    assert_eq!(bench.viommu(TYPE, 12), Err(Errno::EINVAL));
}

#[test]
fn a_region_is_mapped_whole_or_not_at_all() {
    let bench = Bench::new();
    bench.caller.put(FREE, &Payload { value: 0xbeef, answer: 0 });
    let viommu = bench.viommu(TYPE, 8).unwrap();
    let offset = u64::from(bench.caller.get::<Payload>(FREE).answer);
    assert_eq!(offset, 4096);
    let map = |offset, length| {
        bench.context.mmap(MmapRequest { offset, length, shared: true, executable: false })
    };
    for (offset, length) in [(offset + 4096, 8192), (0, 8192), (offset, 4096), (offset, 12288)] {
        assert_eq!(map(offset, length).err(), Some(Errno::ENXIO));
    }
    let mapping = map(offset, 8192).unwrap();
    let mut first = [0; 4];
    mapping.memory().read(0, &mut first).unwrap();
    assert_eq!(u32::from_le_bytes(first), 0xbeef);
    assert_eq!(bench.destroy(viommu), Err(Errno::EBUSY));
    drop(mapping);
    assert_eq!(bench.destroy(viommu), Ok(0));
    assert_eq!(map(offset, 8192).err(), Some(Errno::ENXIO));
}

#[test]
fn a_hardware_queue_owns_its_memory() {
    let bench = Bench::new();
    let gap = BASE + GAP * 4096;
    assert_eq!(bench.hw_queue(0, 0, 0x1000, 4096), Err(Errno::EOPNOTSUPP));
    assert_eq!(bench.hw_queue(TYPE + 1, 0, 0x1000, 4096), Err(Errno::EOPNOTSUPP));
    assert_eq!(bench.hw_queue(TYPE, 0, 0x1000, 0), Err(Errno::EINVAL));
    assert_eq!(bench.hw_queue(TYPE, 0, u64::MAX, 4096), Err(Errno::EOVERFLOW));
    let objects = bench.context.objects().len();
    assert_eq!(bench.hw_queue(TYPE, 0, 0x1000, 4096), Err(Errno::ENOENT));
    bench.map(gap - 4096, 8192, 0x1000);
    bench.map(gap + 4096, 4096, 0x3000);
    assert_eq!(bench.hw_queue(TYPE, 0, 0x1000, 8192), Err(Errno::EFAULT));
    assert_eq!(bench.context.objects().len(), objects);
    let first = bench.hw_queue(TYPE, 0, 0x1000, 4096).unwrap();
    assert_eq!(bench.context.objects().len(), objects + 2);
    assert_eq!(bench.destroy(first + 1), Err(Errno::EBUSY));
    // Two areas, and a start inside of a page.
    let second = bench.hw_queue(TYPE, 1, 0x2800, 0x1000).unwrap();
    assert_eq!(bench.destroy(first), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(bench.viommu), Err(Errno::EBUSY));
    assert_eq!(bench.unmap(0x1000, 8192), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(second), Ok(0));
    assert_eq!(bench.unmap(0x3000, 4096), Ok(0));
    assert_eq!(bench.destroy(first), Ok(0));
    assert_eq!(bench.unmap(0x1000, 8192), Ok(0));
    assert_eq!(bench.context.objects().len(), objects);
}

#[test]
fn every_fault_site_of_a_hardware_queue_leaves_nothing_behind() {
    let bench = Bench::new();
    bench.map(FREE, 4096, 0x1000);
    let objects = bench.context.objects().len();
    let mut sites = 0;
    for nth in 1.. {
        let alloc = || bench.hw_queue(TYPE, 0, 0x1000, 4096);
        let (result, left) = engine::inject::with_fail_nth(nth, alloc);
        if left.fired.is_none() {
            bench.destroy(result.unwrap()).unwrap();
            break;
        }
        assert_eq!(result, Err(Errno::ENOMEM), "{:?}", left.fired);
        assert_eq!(bench.context.objects().len(), objects);
        sites += 1;
    }
    assert!(sites > 5);
    assert_eq!(bench.unmap(0x1000, 4096), Ok(0));
}
