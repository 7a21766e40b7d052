//! Devices, HWPTs and groups, as a user and an external driver see them together.

mod common;

use std::sync::Arc;

use common::caller::{FREE, TestCaller};
use common::iommu::{Payload, TYPE, TinyDevice};
use engine::driver::{Fault, IommuDevice, NO_PASID, ReservedKind, ReservedRegion, ResponseCode};
use engine::kapi::{self, Device, Lifetime};
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::iommufd::*;

/// A context with an IOAS.
struct Bench {
    caller: TestCaller,
    context: Arc<Context>,
    ioas: u32,
}

impl Bench {
    fn new() -> Self {
        let caller = TestCaller::new();
        let context = Engine::new().open(Node::Iommu);
        let ioas = new_ioas(&caller, &context);
        Self { caller, context, ioas }
    }

    fn bind(&self, device: &Arc<TinyDevice>) -> Device {
        Device::bind(&self.context, device.clone(), Lifetime::WithContext).unwrap()
    }

    fn hwpt(&self, device: &Device, pt_id: u32, flags: u32) -> Result<u32, Errno> {
        self.hwpt_with(iommu_hwpt_alloc { flags, pt_id, dev_id: device.id(), ..Default::default() })
    }

    fn hwpt_with(&self, command: iommu_hwpt_alloc) -> Result<u32, Errno> {
        let command = iommu_hwpt_alloc { size: size_of_val(&command) as u32, ..command };
        let (answer, result) = self.caller.ioctl(&self.context, IOMMU_HWPT_ALLOC, command);
        result.map(|_| answer.out_hwpt_id)
    }

    fn nested(&self, device: &Device, pt_id: u32, flags: u32, fault_id: u32) -> Result<u32, Errno> {
        self.caller.put(FREE, &Payload { value: 7, answer: 0 });
        self.hwpt_with(iommu_hwpt_alloc {
            flags,
            pt_id,
            dev_id: device.id(),
            data_type: TYPE,
            data_len: 8,
            data_uptr: FREE,
            fault_id,
            ..Default::default()
        })
    }

    fn destroy(&self, id: u32) -> Result<i64, Errno> {
        let command = iommu_destroy { size: 8, id };
        self.caller.ioctl(&self.context, IOMMU_DESTROY, command).1
    }
}

fn new_ioas(caller: &TestCaller, context: &Arc<Context>) -> u32 {
    let command = iommu_ioas_alloc { size: 12, ..Default::default() };
    let (answer, result) = caller.ioctl(context, IOMMU_IOAS_ALLOC, command);
    result.unwrap();
    answer.out_ioas_id
}

#[test]
fn an_automatic_hwpt_is_shared_and_goes_with_its_last_device() {
    let bench = Bench::new();
    let devices = [TinyDevice::new("a"), TinyDevice::new("b")].map(Arc::new);
    let [a, b] = [&devices[0], &devices[1]].map(|device| bench.bind(device));
    let hwpt = a.attach(NO_PASID, bench.ioas).unwrap();
    assert_eq!(b.attach(NO_PASID, bench.ioas), Ok(hwpt));
    assert_eq!(a.attached(NO_PASID), Some(hwpt));
    assert_eq!(a.attach(NO_PASID, bench.ioas), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(hwpt), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(bench.ioas), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(a.id()), Err(Errno::EBUSY));
    a.detach(NO_PASID);
    a.detach(NO_PASID);
    assert_eq!(bench.destroy(hwpt), Err(Errno::EBUSY));
    drop(b);
    assert_eq!(bench.destroy(hwpt), Err(Errno::ENOENT));
    assert_eq!(bench.destroy(bench.ioas), Ok(0));
    drop(a);
    assert_eq!(bench.context.close(), 0);
}

#[test]
fn a_refused_automatic_hwpt_is_not_the_last_word() {
    let bench = Bench::new();
    let devices = [TinyDevice::new("a"), TinyDevice::new("b")].map(Arc::new);
    let [a, b] = [&devices[0], &devices[1]].map(|device| bench.bind(device));
    let first = a.attach(NO_PASID, bench.ioas).unwrap();
    *devices[1].refuse.lock().unwrap() = Some(Errno::EINVAL);
    let second = b.attach(NO_PASID, bench.ioas).unwrap();
    assert_ne!(first, second);
    b.detach(NO_PASID);
    assert_eq!(bench.destroy(second), Err(Errno::ENOENT));
    *devices[1].refuse.lock().unwrap() = Some(Errno::ENODEV);
    assert_eq!(b.attach(NO_PASID, bench.ioas), Err(Errno::ENODEV));
    assert_eq!(b.attach(NO_PASID, 99), Err(Errno::ENOENT));
    assert_eq!(b.attach(NO_PASID, a.id()), Err(Errno::EINVAL));
}

#[test]
fn a_group_has_one_owner_and_one_hwpt() {
    let bench = Bench::new();
    let first = TinyDevice::new("a");
    let second = TinyDevice { group: first.group.clone(), ..TinyDevice::new("b") };
    let devices = [first, second].map(Arc::new);
    let a = bench.bind(&devices[0]);
    let other = bench.context.engine().open(Node::Iommu);
    let busy = Device::bind(&other, devices[1].clone(), Lifetime::WithContext);
    assert_eq!(busy.err(), Some(Errno::EBUSY));
    let b = bench.bind(&devices[1]);
    let hwpts = [0; 2].map(|flags| bench.hwpt(&a, bench.ioas, flags).unwrap());
    a.attach(NO_PASID, hwpts[0]).unwrap();
    assert_eq!(b.attach(NO_PASID, hwpts[1]), Err(Errno::EINVAL));
    assert_eq!(b.replace(NO_PASID, hwpts[1]), Err(Errno::EINVAL));
    b.attach(NO_PASID, hwpts[0]).unwrap();
    // The whole group moves, or nobody.
    *devices[1].refuse.lock().unwrap() = Some(Errno::ENOMEM);
    assert_eq!(a.replace(NO_PASID, hwpts[1]), Err(Errno::ENOMEM));
    assert_eq!(a.attached(NO_PASID), Some(hwpts[0]));
    assert_eq!(bench.destroy(hwpts[1]), Ok(0));
    assert_eq!(a.replace(NO_PASID, bench.ioas), Ok(b.attached(NO_PASID).unwrap()));
    assert_eq!(bench.destroy(hwpts[0]), Ok(0));
}

#[test]
fn reserved_regions_stay_free_while_a_device_is_there() {
    let bench = Bench::new();
    let region = |range, kind| ReservedRegion { range, kind };
    let device = Arc::new(TinyDevice {
        reserved: vec![
            region(0x1000..=0x1fff, ReservedKind::Msi),
            region(0x8000..=0x8fff, ReservedKind::DirectRelaxable),
        ],
        ..TinyDevice::new("a")
    });
    let device = bench.bind(&device);
    device.attach(NO_PASID, bench.ioas).unwrap();
    assert_eq!(ranges(&bench)[..2], [(0, 0xfff), (0x2000, (1 << 40) - 1)]);
    let other = new_ioas(&bench.caller, &bench.context);
    device.replace(NO_PASID, other).unwrap();
    assert_eq!(ranges(&bench), [(0, u64::MAX)]);
}

fn ranges(bench: &Bench) -> Vec<(u64, u64)> {
    let command = iommu_ioas_iova_ranges {
        size: size_of::<iommu_ioas_iova_ranges>() as u32,
        ioas_id: bench.ioas,
        num_iovas: 8,
        allowed_iovas: FREE,
        ..Default::default()
    };
    let (answer, result) = bench.caller.ioctl(&bench.context, IOMMU_IOAS_IOVA_RANGES, command);
    result.unwrap();
    let range = |n: u32| bench.caller.get::<[u64; 2]>(FREE + u64::from(n) * 16).into();
    (0..answer.num_iovas).map(range).collect()
}

#[test]
fn pasids_want_hwpts_that_were_made_for_them() {
    let bench = Bench::new();
    let device = Arc::new(TinyDevice { pasid_bits: 8, ..TinyDevice::new("a") });
    let plain = Arc::new(TinyDevice::new("b"));
    let (bound, unable) = (bench.bind(&device), bench.bind(&plain));
    let without = bench.hwpt(&bound, bench.ioas, 0).unwrap();
    let with = bench.hwpt(&bound, bench.ioas, IOMMU_HWPT_ALLOC_PASID).unwrap();
    let another = bench.hwpt(&bound, bench.ioas, IOMMU_HWPT_ALLOC_PASID).unwrap();
    bound.attach(NO_PASID, without).unwrap();
    assert_eq!(bound.attach(5, with), Err(Errno::EINVAL));
    bound.replace(NO_PASID, with).unwrap();
    assert_eq!(bound.attach(5, without), Err(Errno::EINVAL));
    assert_eq!(bound.attach(5, bench.ioas), Err(Errno::EINVAL));
    assert_eq!(bound.attach(256, with), Err(Errno::EINVAL));
    assert_eq!(unable.attach(5, with), Err(Errno::EINVAL));
    assert_eq!(bound.replace(5, with), Err(Errno::EINVAL));
    bound.attach(5, with).unwrap();
    assert_eq!(bound.attach(5, another), Err(Errno::EBUSY));
    assert_eq!(bound.replace(NO_PASID, without), Err(Errno::EINVAL));
    bound.replace(5, another).unwrap();
    assert_eq!(bound.attached(5), Some(another));
    assert!(
        device.attached.lock().unwrap()[&5].is(&kapi::domain(&bench.context, another).unwrap())
    );
    bound.detach(5);
    bound.replace(NO_PASID, without).unwrap();
    drop(bound);
    assert!(device.attached.lock().unwrap().is_empty());
}

#[test]
fn hwpt_alloc_checks_what_it_is_asked() {
    let bench = Bench::new();
    let device = bench.bind(&Arc::new(TinyDevice { dirty: false, ..TinyDevice::new("a") }));
    let with = |change: &dyn Fn(&mut iommu_hwpt_alloc)| {
        let mut command =
            iommu_hwpt_alloc { dev_id: device.id(), pt_id: bench.ioas, ..Default::default() };
        change(&mut command);
        bench.hwpt_with(command)
    };
    assert_eq!(with(&|c| c.__reserved = 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(with(&|c| c.flags = 1 << 4), Err(Errno::EOPNOTSUPP));
    assert_eq!(with(&|c| c.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING), Err(Errno::EOPNOTSUPP));
    let parent_with_faults = IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_FAULT_ID_VALID;
    assert_eq!(with(&|c| c.flags = parent_with_faults), Err(Errno::EOPNOTSUPP));
    assert_eq!(with(&|c| c.data_len = 4), Err(Errno::EINVAL));
    assert_eq!(with(&|c| c.data_type = TYPE), Err(Errno::EINVAL));
    assert_eq!(with(&|c| c.dev_id = bench.ioas), Err(Errno::ENOENT));
    assert_eq!(with(&|c| c.pt_id = c.dev_id), Err(Errno::EINVAL));
    assert_eq!(with(&|c| c.pt_id = 77), Err(Errno::EINVAL));
    let parent = bench.hwpt(&device, bench.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT).unwrap();
    let plain = bench.hwpt(&device, bench.ioas, 0).unwrap();
    assert_eq!(bench.nested(&device, plain, 0, 0), Err(Errno::EINVAL));
    let flags = IOMMU_HWPT_ALLOC_NEST_PARENT;
    assert_eq!(bench.nested(&device, parent, flags, 0), Err(Errno::EOPNOTSUPP));
    let nested = bench.nested(&device, parent, 0, 0).unwrap();
    assert_eq!(bench.nested(&device, nested, 0, 0), Err(Errno::EINVAL));
    assert_eq!(bench.nested(&device, parent, IOMMU_HWPT_FAULT_ID_VALID, 99), Err(Errno::ENOENT));
    assert_eq!(bench.destroy(parent), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(nested), Ok(0));
    assert_eq!(bench.destroy(parent), Ok(0));
}

#[test]
fn every_fault_site_of_an_attach_leaves_nothing_behind() {
    let bench = Bench::new();
    let device = Arc::new(TinyDevice::new("a"));
    let bound = bench.bind(&device);
    let before = bench.context.objects().len();
    let mut sites = 0;
    for nth in 1.. {
        let attach = || bound.attach(NO_PASID, bench.ioas);
        let (result, left) = engine::inject::with_fail_nth(nth, attach);
        if left.fired.is_none() {
            assert!(result.is_ok());
            break;
        }
        assert_eq!(result, Err(Errno::ENOMEM), "{:?}", left.fired);
        assert_eq!(bound.attached(NO_PASID), None);
        assert!(device.attached.lock().unwrap().is_empty());
        assert_eq!(bench.context.objects().len(), before);
        sites += 1;
    }
    assert!(sites > 3);
}

#[test]
fn faults_reach_the_queue_of_the_hwpt_they_hit() {
    let bench = Bench::new();
    let device = Arc::new(TinyDevice { pasid_bits: 8, ..TinyDevice::new("a") });
    let bound = bench.bind(&device);
    let size = size_of::<iommu_fault_alloc>() as u32;
    let command = iommu_fault_alloc { size, ..Default::default() };
    let (queue, result) = bench.caller.ioctl(&bench.context, IOMMU_FAULT_QUEUE_ALLOC, command);
    result.unwrap();
    let parent = bench.hwpt(&bound, bench.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT).unwrap();
    let flags = IOMMU_HWPT_FAULT_ID_VALID;
    let nested = bench.nested(&bound, parent, flags, queue.out_fault_id).unwrap();
    let fault = |last| Fault { pasid: Some(1), group_id: 2, permissions: 1, address: 0, last };
    assert_eq!(bound.report_fault(fault(true)), Err(Errno::EINVAL));
    bound.attach(NO_PASID, nested).unwrap();
    bound.report_fault(fault(false)).unwrap();
    assert_eq!(bench.caller.read(queue.out_fault_fd, 400).unwrap().len(), 0);
    kapi::report_fault(&bench.context, bound.id(), fault(true)).unwrap();
    assert_eq!(bench.caller.read(queue.out_fault_fd, 400).unwrap().len(), 80);
    assert_eq!(bench.destroy(queue.out_fault_id), Err(Errno::EBUSY));
    // Leaving answers for the user.
    bound.replace(NO_PASID, parent).unwrap();
    let responses = device.responses.lock().unwrap().clone();
    assert_eq!(responses.len(), 1);
    assert_eq!((responses[0].pasid, responses[0].code), (Some(1), ResponseCode::Invalid));
    assert_eq!(bench.destroy(nested), Ok(0));
    assert_eq!(bench.destroy(queue.out_fault_id), Err(Errno::EBUSY));
    bench.caller.close(queue.out_fault_fd);
    assert_eq!(bench.destroy(queue.out_fault_id), Ok(0));
}

#[test]
fn hw_info_fills_the_buffer_that_there_is() {
    let bench = Bench::new();
    let device = bench.bind(&Arc::new(TinyDevice { pasid_bits: 9, ..TinyDevice::new("a") }));
    let ask = |data_len, flags, out_data_type| {
        bench.caller.put(FREE, &[0xffu8; 16]);
        let command = iommu_hw_info {
            size: size_of::<iommu_hw_info>() as u32,
            flags,
            dev_id: device.id(),
            data_len,
            data_uptr: FREE,
            out_data_type,
            ..Default::default()
        };
        let (answer, result) = bench.caller.ioctl(&bench.context, IOMMU_GET_HW_INFO, command);
        result.map(|_| (answer, bench.caller.get::<[u8; 16]>(FREE)))
    };
    let (answer, bytes) = ask(12, 0, 99).unwrap();
    assert_eq!((answer.data_len, answer.out_data_type), (8, TYPE));
    assert_eq!((answer.out_max_pasid_log2, answer.out_capabilities), (9, 1));
    assert_eq!((bytes[7], bytes[8], bytes[11], bytes[12]), (0x11, 0, 0, 0xff));
    let (answer, bytes) = ask(2, 0, 0).unwrap();
    assert_eq!((answer.data_len, bytes[1], bytes[2]), (8, 0x11, 0xff));
    assert_eq!(ask(8, IOMMU_HW_INFO_FLAG_INPUT_TYPE, 99).err(), Some(Errno::EOPNOTSUPP));
    assert_eq!(ask(8, 2, 0).err(), Some(Errno::EOPNOTSUPP));
    assert!(ask(8, IOMMU_HW_INFO_FLAG_INPUT_TYPE, TYPE).is_ok());
}

#[test]
fn a_closed_context_waits_for_a_device_that_holds_it() {
    let bench = Bench::new();
    let device: Arc<dyn IommuDevice> = Arc::new(TinyDevice::new("a"));
    let bound = Device::bind(&bench.context, device, Lifetime::HoldsContext).unwrap();
    bound.attach(NO_PASID, bench.ioas).unwrap();
    bench.context.close();
    assert!(!bench.context.objects().is_empty());
    drop(bound);
    assert!(bench.context.objects().is_empty());
}
