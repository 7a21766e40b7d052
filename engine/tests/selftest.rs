//! The selftest's command and the mock IOMMU behind it, family by family.

mod common;

use std::sync::Arc;

use common::caller::{FREE, TestCaller};
use engine::inject::with_fail_nth;
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An open context, and who calls it.
struct Bench {
    caller: TestCaller,
    context: Arc<Context>,
}

/// A mock device.
#[derive(Clone, Copy, Debug)]
struct Device {
    stdev: u32,
    hwpt: u32,
    idev: u32,
}

type Answer<T> = Result<T, Errno>;

impl Bench {
    fn new() -> Self {
        Self { caller: TestCaller::new(), context: Engine::new().open(Node::Iommu) }
    }

    fn ioctl<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, argument: T) -> Answer<T> {
        let (answer, result) = self.caller.ioctl(&self.context, command, argument);
        result.map(|_| answer)
    }

    fn test<T: TestBody>(&self, id: u32, body: &T) -> Answer<iommu_test_cmd> {
        self.test_op(T::OP, id, body)
    }

    fn test_op<T: TestBody>(&self, op: u32, id: u32, body: &T) -> Answer<iommu_test_cmd> {
        let size = size_of::<iommu_test_cmd>() as u32;
        let mut command = iommu_test_cmd { size, op, id, ..Default::default() };
        command.set_body(body);
        self.ioctl(IOMMU_TEST_CMD, command)
    }

    fn ioas(&self) -> Answer<u32> {
        let command = iommu_ioas_alloc { size: 12, ..Default::default() };
        Ok(self.ioctl(IOMMU_IOAS_ALLOC, command)?.out_ioas_id)
    }

    fn destroy(&self, id: u32) -> Answer<()> {
        self.ioctl(IOMMU_DESTROY, iommu_destroy { size: 8, id }).map(drop)
    }

    fn device(&self, pt_id: u32, dev_flags: u32) -> Answer<Device> {
        let body = iommu_test_mock_domain_flags { dev_flags, ..Default::default() };
        let body: iommu_test_mock_domain_flags = self.test(pt_id, &body)?.body();
        Ok(Device { stdev: body.out_stdev_id, hwpt: body.out_hwpt_id, idev: body.out_idev_id })
    }

    fn replace(&self, device: Device, pt_id: u32) -> Answer<u32> {
        let command = self.test(device.stdev, &iommu_test_mock_domain_replace { pt_id })?;
        Ok(command.body::<iommu_test_mock_domain_replace>().pt_id)
    }

    fn hwpt(&self, device: Device, pt_id: u32, flags: u32) -> Answer<u32> {
        self.hwpt_with(device, pt_id, flags, 0, 0)
    }

    fn hwpt_with(
        &self,
        device: Device,
        pt_id: u32,
        flags: u32,
        data_len: u32,
        fault_id: u32,
    ) -> Answer<u32> {
        let command = iommu_hwpt_alloc {
            size: size_of::<iommu_hwpt_alloc>() as u32,
            flags,
            dev_id: device.idev,
            pt_id,
            data_type: if data_len == 0 { IOMMU_HWPT_DATA_NONE } else { IOMMU_HWPT_DATA_SELFTEST },
            data_len,
            data_uptr: if data_len == 0 { 0 } else { FREE },
            fault_id,
            ..Default::default()
        };
        Ok(self.ioctl(IOMMU_HWPT_ALLOC, command)?.out_hwpt_id)
    }

    fn nested(&self, device: Device, pt_id: u32, flags: u32, fault_id: u32) -> Answer<u32> {
        let data = iommu_hwpt_selftest { iotlb: IOMMU_TEST_IOTLB_DEFAULT, ..Default::default() };
        self.caller.put(FREE, &data);
        self.hwpt_with(device, pt_id, flags, size_of_val(&data) as u32, fault_id)
    }

    fn viommu(&self, device: Device, hwpt_id: u32, data_len: u32) -> Answer<u32> {
        let command = iommu_viommu_alloc {
            size: size_of::<iommu_viommu_alloc>() as u32,
            r#type: IOMMU_VIOMMU_TYPE_SELFTEST,
            dev_id: device.idev,
            hwpt_id,
            data_len,
            data_uptr: if data_len == 0 { 0 } else { FREE },
            ..Default::default()
        };
        Ok(self.ioctl(IOMMU_VIOMMU_ALLOC, command)?.out_viommu_id)
    }

    fn vdevice(&self, device: Device, viommu_id: u32, virt_id: u64) -> Answer<u32> {
        let command = iommu_vdevice_alloc {
            size: size_of::<iommu_vdevice_alloc>() as u32,
            viommu_id,
            dev_id: device.idev,
            virt_id,
            ..Default::default()
        };
        Ok(self.ioctl(IOMMU_VDEVICE_ALLOC, command)?.out_vdevice_id)
    }

    fn veventq(&self, viommu_id: u32) -> Answer<iommu_veventq_alloc> {
        let command = iommu_veventq_alloc {
            size: size_of::<iommu_veventq_alloc>() as u32,
            viommu_id,
            r#type: IOMMU_VEVENTQ_TYPE_SELFTEST,
            veventq_depth: 4,
            ..Default::default()
        };
        self.ioctl(IOMMU_VEVENTQ_ALLOC, command)
    }

    fn fault_queue(&self) -> Answer<iommu_fault_alloc> {
        let size = size_of::<iommu_fault_alloc>() as u32;
        self.ioctl(IOMMU_FAULT_QUEUE_ALLOC, iommu_fault_alloc { size, ..Default::default() })
    }

    /// How many of `requests` were handled, and the result.
    fn invalidate<T: IntoBytes + Immutable>(
        &self,
        hwpt_id: u32,
        data_type: u32,
        requests: &[T],
    ) -> (u32, Answer<()>) {
        self.caller.put(FREE, requests);
        let command = iommu_hwpt_invalidate {
            size: size_of::<iommu_hwpt_invalidate>() as u32,
            hwpt_id,
            data_uptr: FREE,
            data_type,
            entry_len: size_of::<T>() as u32,
            entry_num: requests.len() as u32,
            ..Default::default()
        };
        let (answer, result) = self.caller.ioctl(&self.context, IOMMU_HWPT_INVALIDATE, command);
        (answer.entry_num, result.map(drop))
    }

    fn iotlb(&self, hwpt: u32, id: u32, iotlb: u32) -> Answer<()> {
        self.test(hwpt, &iommu_test_check_iotlb { id, iotlb }).map(drop)
    }

    fn cache(&self, device: Device, id: u32, cache: u32) -> Answer<()> {
        self.test(device.idev, &iommu_test_check_dev_cache { id, cache }).map(drop)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.caller.close_all();
            assert_eq!(self.context.close(), 0, "objects that would not go");
            assert!(self.context.objects().is_empty());
        }
    }
}

#[test]
fn devices_come_with_the_kernels_ids_and_go() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let a = bench.device(ioas, 0).unwrap();
    assert_eq!((a.stdev, a.idev, a.hwpt), (2, 3, 4));
    let b = bench.device(ioas, 0).unwrap();
    assert_eq!((b.stdev, b.idev, b.hwpt), (5, 6, 4));
    assert_eq!(bench.destroy(a.idev), Err(Errno::EBUSY));
    assert_eq!(bench.destroy(ioas), Err(Errno::EBUSY));
    bench.destroy(a.stdev).unwrap();
    bench.destroy(b.stdev).unwrap();
    assert_eq!(bench.destroy(b.hwpt), Err(Errno::ENOENT));
    bench.destroy(ioas).unwrap();
}

#[test]
fn what_is_no_device_operation() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    assert_eq!(bench.device(ioas, 2).unwrap_err(), Errno::EINVAL);
    assert_eq!(bench.device(ioas, 8).unwrap_err(), Errno::EINVAL);
    assert_eq!(bench.device(99, 0).unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.context.objects().len(), 1);
    let none = iommu_test_mock_domain_replace { pt_id: ioas };
    assert_eq!(bench.test(ioas, &none).unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.test_op(0, ioas, &none).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(bench.test_op(24, ioas, &none).unwrap_err(), Errno::EOPNOTSUPP);
}

#[test]
fn hwpts_that_track_dirty_pages_want_devices_that_do() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let able = bench.device(ioas, 0).unwrap();
    let hwpt = bench.hwpt(able, ioas, IOMMU_HWPT_ALLOC_DIRTY_TRACKING).unwrap();
    assert_eq!(bench.device(hwpt, MOCK_FLAGS_DEVICE_NO_DIRTY).unwrap_err(), Errno::EINVAL);
    let unable = bench.device(ioas, MOCK_FLAGS_DEVICE_NO_DIRTY).unwrap();
    let flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
    assert_eq!(bench.hwpt(unable, ioas, flags).unwrap_err(), Errno::EOPNOTSUPP);
    let body = iommu_test_dirty { length: 4096, page_size: 4096, uptr: FREE, ..Default::default() };
    assert_eq!(bench.test(hwpt, &body).unwrap_err(), Errno::EINVAL, "tracking is off");
}

#[test]
fn page_table_types() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let device = bench.device(ioas, 0).unwrap();
    let kind = |pagetable_type| {
        bench.caller.put(FREE, &iommu_hwpt_selftest { pagetable_type, ..Default::default() });
        bench.hwpt_with(device, ioas, 0, 8, 0)
    };
    let huge = kind(MOCK_IOMMUPT_HUGE).unwrap();
    kind(MOCK_IOMMUPT_DEFAULT).unwrap();
    assert_eq!(kind(7).unwrap_err(), Errno::EOPNOTSUPP);
    let engine::driver::HwDomain::Paging(domain) =
        engine::kapi::domain(&bench.context, huge).unwrap()
    else {
        panic!("a paging domain");
    };
    assert_eq!(domain.page_sizes(), engine::memory::PAGE_SIZE | MOCK_HUGE_PAGE_SIZE);
    assert_eq!(domain.aperture(), 0..=(1 << 38) - 1);
}

#[test]
fn iotlb_entries_are_invalidated_one_or_all() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let device = bench.device(ioas, 0).unwrap();
    let parent = bench.hwpt(device, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT).unwrap();
    let nested = bench.nested(device, parent, 0, 0).unwrap();
    let request = |flags, iotlb_id| iommu_hwpt_invalidate_selftest { flags, iotlb_id };
    const TYPE: u32 = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST;
    assert_eq!(
        bench.invalidate(nested, TYPE, &[request(0, 1), request(2, 0)]),
        (1, Err(Errno::EOPNOTSUPP))
    );
    assert_eq!(bench.invalidate(nested, TYPE, &[request(0, 4)]), (0, Err(Errno::EINVAL)));
    let wrong = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID;
    assert_eq!(bench.invalidate(nested, wrong, &[request(0, 0)]), (0, Err(Errno::EINVAL)));
    bench.iotlb(nested, 0, IOMMU_TEST_IOTLB_DEFAULT).unwrap();
    bench.iotlb(nested, 1, 0).unwrap();
    assert_eq!(bench.iotlb(nested, 1, 5), Err(Errno::EINVAL));
    assert_eq!(bench.iotlb(nested, 4, 0), Err(Errno::EINVAL));
    assert_eq!(bench.iotlb(parent, 0, 0), Err(Errno::ENOENT));
    // The index counts even where all entries go.
    assert_eq!(bench.invalidate(nested, TYPE, &[request(1, 99)]), (0, Err(Errno::EINVAL)));
    assert_eq!(bench.invalidate(nested, TYPE, &[request(1, 3)]), (1, Ok(())));
    (0..4).for_each(|id| bench.iotlb(nested, id, 0).unwrap());
    assert_eq!(
        bench.nested(device, parent, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, 0).unwrap_err(),
        Errno::EOPNOTSUPP
    );
}

#[test]
fn pasids_attach_replace_and_fail_as_designed() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let device = bench.device(ioas, MOCK_FLAGS_DEVICE_PASID).unwrap();
    let hwpts: Vec<u32> =
        (0..2).map(|_| bench.hwpt(device, ioas, IOMMU_HWPT_ALLOC_PASID).unwrap()).collect();
    bench.replace(device, hwpts[0]).unwrap();
    let attach = |pasid, pt_id| {
        bench.test(device.stdev, &iommu_test_pasid_attach { pasid, pt_id }).map(drop)
    };
    let replace = |pasid, pt_id| {
        bench.test(device.stdev, &iommu_test_pasid_replace { pasid, pt_id }).map(drop)
    };
    let detach = |pasid| bench.test(device.stdev, &iommu_test_pasid_detach { pasid }).map(drop);
    let check = |pasid, hwpt_id| {
        bench.test(device.stdev, &iommu_test_pasid_check { pasid, hwpt_id }).map(drop)
    };
    detach(7).unwrap();
    check(7, 0).unwrap();
    assert_eq!(replace(7, hwpts[0]), Err(Errno::EINVAL));
    attach(7, hwpts[0]).unwrap();
    assert_eq!(attach(7, hwpts[1]), Err(Errno::EBUSY));
    check(7, hwpts[0]).unwrap();
    assert_eq!(check(7, hwpts[1]), Err(Errno::EINVAL));
    assert_eq!(check(7, 0), Err(Errno::EINVAL));
    assert_eq!(check(7, 4711), Err(Errno::ENOENT));
    assert_eq!(attach(1 << 20, hwpts[0]), Err(Errno::EINVAL), "beyond the device's width");
    // The reserved PASID fails every second time, and keeps what it had.
    attach(1024, hwpts[0]).unwrap();
    assert_eq!(replace(1024, hwpts[1]), Err(Errno::ENOMEM));
    check(1024, hwpts[0]).unwrap();
    detach(1024).unwrap();
    attach(1024, hwpts[1]).unwrap();
    detach(1024).unwrap();
    detach(7).unwrap();
}

#[test]
fn a_viommu_shows_pages_caches_and_events() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let device = bench.device(ioas, 0).unwrap();
    let parent = bench.hwpt(device, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT).unwrap();
    let data = iommu_viommu_selftest { in_data: 0xbeef, ..Default::default() };
    bench.caller.put(FREE, &data);
    let viommu = bench.viommu(device, parent, size_of_val(&data) as u32).unwrap();
    let data: iommu_viommu_selftest = bench.caller.get(FREE);
    assert_eq!((data.out_data, data.out_mmap_length), (0xbeef, 8192));

    let nested = bench.nested(device, viommu, 0, 0).unwrap();
    assert_eq!(bench.replace(device, nested), Err(Errno::ENOENT), "no vDEVICE yet");
    let trigger = || bench.test(0, &iommu_test_trigger_vevent { dev_id: device.idev }).map(drop);
    assert_eq!(trigger(), Err(Errno::ENOENT));
    let vdevice = bench.vdevice(device, viommu, 0x99).unwrap();
    bench.replace(device, nested).unwrap();
    assert_eq!(trigger(), Err(Errno::EOPNOTSUPP), "no queue");
    let queue = bench.veventq(viommu).unwrap();
    trigger().unwrap();
    let event = bench.caller.read(queue.out_veventq_fd, 64).unwrap();
    assert_eq!(event[8..], 0x99u32.to_ne_bytes());

    const TYPE: u32 = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST;
    let request =
        |flags, vdev_id, cache_id| iommu_viommu_invalidate_selftest { flags, vdev_id, cache_id };
    assert_eq!(bench.invalidate(viommu, TYPE, &[request(0, 0x98, 0)]), (0, Err(Errno::EINVAL)));
    let requests = [request(0, 0x99, 2), request(0, 0x99, 4)];
    assert_eq!(bench.invalidate(viommu, TYPE, &requests), (1, Err(Errno::EINVAL)));
    bench.cache(device, 2, 0).unwrap();
    bench.cache(device, 1, IOMMU_TEST_DEV_CACHE_DEFAULT).unwrap();
    assert_eq!(bench.cache(device, 4, 0), Err(Errno::EINVAL));
    // The index counts even where all entries go.
    assert_eq!(bench.invalidate(viommu, TYPE, &[request(1, 0x99, 4)]), (0, Err(Errno::EINVAL)));
    assert_eq!(bench.invalidate(viommu, TYPE, &[request(1, 0x99, 3)]), (1, Ok(())));
    bench.cache(device, 1, 0).unwrap();

    bench.replace(device, ioas).unwrap();
    assert_eq!(trigger(), Err(Errno::ENOENT));
    bench.destroy(device.stdev).unwrap();
    assert_eq!(bench.destroy(vdevice), Err(Errno::ENOENT), "a tombstone");
    bench.caller.close(queue.out_veventq_fd);
}

#[test]
fn a_page_fault_goes_to_the_queue_and_back() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let device = bench.device(ioas, 0).unwrap();
    let parent = bench.hwpt(device, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT).unwrap();
    let queue = bench.fault_queue().unwrap();
    let nested =
        bench.nested(device, parent, IOMMU_HWPT_FAULT_ID_VALID, queue.out_fault_id).unwrap();
    let fault = iommu_test_trigger_iopf {
        dev_id: device.idev,
        pasid: 1,
        grpid: 2,
        perm: IOMMU_PGFAULT_PERM_WRITE,
        addr: 0xdead_b000,
    };
    let empty = bench.caller.read(queue.out_fault_fd, 40);
    bench.test(0, &fault).unwrap();
    assert_eq!(bench.caller.read(queue.out_fault_fd, 40), empty, "nobody is attached");
    bench.replace(device, nested).unwrap();
    bench.test(0, &fault).unwrap();
    let read = bench.caller.read(queue.out_fault_fd, 40).unwrap();
    let read = iommu_hwpt_pgfault::read_from_bytes(&read).unwrap();
    assert_eq!((read.dev_id, read.pasid, read.grpid), (device.idev, 1, 2));
    assert_eq!((read.addr, read.perm), (0xdead_b000, IOMMU_PGFAULT_PERM_WRITE));
    let response =
        iommu_hwpt_page_response { cookie: read.cookie, code: IOMMUFD_PAGE_RESP_SUCCESS };
    assert_eq!(bench.caller.file_of(queue.out_fault_fd).write(response.as_bytes()), Ok(8));
    bench.caller.close(queue.out_fault_fd);
    assert_eq!(
        bench.test(0, &iommu_test_trigger_iopf { dev_id: 77, ..fault }).unwrap_err(),
        Errno::ENOENT
    );
}

#[test]
fn an_access_keeps_its_context_until_its_file_is_closed() {
    let bench = Bench::new();
    let ioas = bench.ioas().unwrap();
    let create =
        |flags, id| bench.test(id, &iommu_test_create_access { flags, ..Default::default() });
    assert_eq!(create(2, ioas).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(create(0, 99).unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.context.objects().len(), 1);
    let fd = create(0, ioas).unwrap().body::<iommu_test_create_access>().out_access_fd;
    let rw = iommu_test_access_rw { length: 1, uptr: FREE, ..Default::default() };
    assert_eq!(bench.test(fd, &rw).unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.test(fd + 1, &rw).unwrap_err(), Errno::EBADFD);
    let flags = iommu_test_access_rw { flags: 2, ..rw };
    assert_eq!(bench.test(fd, &flags).unwrap_err(), Errno::EOPNOTSUPP);
    let long = iommu_test_access_rw { length: (16 << 20) + 1, ..rw };
    assert_eq!(bench.test(fd, &long).unwrap_err(), Errno::ENOMEM);
    let pages = iommu_test_access_pages { length: 4096, ..Default::default() };
    assert_eq!(bench.test(fd, &pages).unwrap_err(), Errno::EOPNOTSUPP, "it does not pin");
    assert_eq!(bench.destroy(ioas), Err(Errno::EBUSY));
    bench.caller.close(fd);
    bench.destroy(ioas).unwrap();
}

#[test]
fn the_memory_limit_has_a_least() {
    let bench = Bench::new();
    let limit = |limit| bench.test(0, &iommu_test_memory_limit { limit }).map(drop);
    assert_eq!(limit(11), Err(Errno::EINVAL));
    assert_eq!(limit(12), Ok(()));
    assert_eq!(limit(65536), Ok(()));
}

/// Runs `sequence` with the first fault site failing, then the second, and so on until none is
/// left to fail. Each run must leave nothing behind. Answers how many sites there were.
fn sweep(sequence: impl Fn(&Bench) -> Answer<()>) -> u64 {
    for nth in 1..1000 {
        let bench = Bench::new();
        let (result, left) = with_fail_nth(nth, || sequence(&bench));
        if left.remaining != 0 {
            result.expect("a run without a fault succeeds");
            return nth - 1;
        }
        assert!(left.fired.is_some());
        // `drop` checks that everything goes.
    }
    panic!("no end of fault sites");
}

#[test]
fn every_fault_in_a_devices_life_leaves_nothing() {
    let sites = sweep(|bench| {
        let ioas = bench.ioas()?;
        let device = bench.device(ioas, MOCK_FLAGS_DEVICE_PASID)?;
        let pasid_hwpt = bench.hwpt(device, ioas, IOMMU_HWPT_ALLOC_PASID)?;
        bench.replace(device, pasid_hwpt)?;
        let flags = IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_PASID;
        let parent = bench.hwpt(device, ioas, flags)?;
        let viommu = bench.viommu(device, parent, 0)?;
        bench.vdevice(device, viommu, 0)?;
        let faults = bench.fault_queue()?;
        bench.nested(device, parent, IOMMU_HWPT_FAULT_ID_VALID, faults.out_fault_id)?;
        bench.veventq(viommu)?;
        let pasid = 200;
        bench.test(device.stdev, &iommu_test_pasid_attach { pasid, pt_id: parent })?;
        bench.test(device.stdev, &iommu_test_pasid_replace { pasid, pt_id: pasid_hwpt })?;
        bench.test(device.stdev, &iommu_test_pasid_detach { pasid })?;
        bench.destroy(device.stdev)
    });
    assert!(sites > 30, "{sites} fault sites");
}

#[test]
fn every_fault_around_an_access_leaves_nothing() {
    let sites = sweep(|bench| {
        let ioas = bench.ioas()?;
        let other = bench.ioas()?;
        let body = iommu_test_create_access::default();
        let fd = bench.test(ioas, &body)?.body::<iommu_test_create_access>().out_access_fd;
        let replaced = bench.test(fd, &iommu_test_access_replace_ioas { ioas_id: other });
        bench.caller.close(fd);
        replaced.map(drop)
    });
    assert!(sites > 5, "{sites} fault sites");
}
