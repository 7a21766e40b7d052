//! DMA of bound mock devices through what the user attached them to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::dma::atomic::{AtomicOp, Width};
use engine::dma::fault::Stage;
use engine::dma::{Port, Reason, Recovery};
use engine::driver::NO_PASID;
use engine::file::ReadBuffer;
use engine::kapi::{Device, Lifetime};
use engine::memory::{AddressSpace, PAGE_SIZE};
use engine::mock::{DeviceFlags, MockDevice};
use engine::testing::TestCaller;
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::CommandStruct;
use ioctl_abi::iommufd::*;
use zerocopy::{FromBytes, IntoBytes};

/// The caller's buffer: 64 pages.
const BUFFER: u64 = 0x10_0000;
const PAGES: u64 = 64;
/// Where it is mapped for devices.
const IOVA: u64 = 1 << 24;

struct Bench {
    caller: TestCaller,
    context: Arc<Context>,
    device: Option<Device>,
    ioas: u32,
}

impl Bench {
    fn new() -> Self {
        let caller = TestCaller::new();
        caller.memory.map(BUFFER, PAGES, true);
        let context = Engine::new().open(Node::Iommu);
        let mut alloc = iommu_ioas_alloc::default();
        caller.call(&context, &mut alloc).unwrap();
        let mock = MockDevice::new(DeviceFlags::PASID).unwrap();
        let device = Device::bind(&context, mock, Lifetime::WithContext).unwrap();
        Self { caller, context, device: Some(device), ioas: alloc.out_ioas_id }
    }

    fn device(&self) -> &Device {
        self.device.as_ref().unwrap()
    }

    fn call<T: CommandStruct>(&self, mut argument: T) -> Result<T, Errno> {
        self.caller.call(&self.context, &mut argument).map(|_| argument)
    }

    fn map(&self, iova: u64, length: u64, flags: u32) {
        let flags = flags | IOMMU_IOAS_MAP_FIXED_IOVA;
        let ioas_id = self.ioas;
        let user_va = BUFFER + (iova - IOVA);
        let map = iommu_ioas_map { flags, ioas_id, user_va, length, iova, ..Default::default() };
        self.call(map).unwrap();
    }

    fn unmap(&self, iova: u64, length: u64) {
        self.call(iommu_ioas_unmap { ioas_id: self.ioas, iova, length, ..Default::default() })
            .unwrap();
    }

    fn hwpt(&self, pt_id: u32, flags: u32, fault_id: u32) -> u32 {
        let dev_id = self.device().id();
        let hwpt = iommu_hwpt_alloc { flags, dev_id, pt_id, fault_id, ..Default::default() };
        self.call(hwpt).unwrap().out_hwpt_id
    }

    /// A port of the device, attached to the IOAS, in which the whole buffer is mapped.
    fn attached(&self) -> Arc<Port> {
        self.map(IOVA, PAGES * PAGE_SIZE, RW);
        self.device().attach(NO_PASID, self.ioas).unwrap();
        self.device().dma(NO_PASID).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(self.device.take());
            assert_eq!(self.context.close(), 0);
            assert_eq!(self.caller.memory.all_pins(), 0);
        }
    }
}

const RW: u32 = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

#[test]
fn bytes_go_both_ways() {
    let bench = Bench::new();
    let port = bench.attached();
    let text: Vec<u8> = (0..3 * PAGE_SIZE).map(|i| (i % 251) as u8).collect();
    port.write(IOVA + 100, &text).unwrap();
    let mut got = vec![0; text.len()];
    bench.caller.memory.read(BUFFER + 100, &mut got).unwrap();
    assert_eq!(got, text);
    bench.caller.memory.write(BUFFER + 104, b"caller").unwrap();
    port.read(IOVA + 104, &mut got[..6]).unwrap();
    assert_eq!(&got[..6], b"caller");
    bench.caller.memory.write(BUFFER + 8, &5u64.to_le_bytes()).unwrap();
    assert_eq!(port.atomic(IOVA + 8, Width::Eight, AtomicOp::FetchAdd(3)), Ok(5));
    assert_eq!(port.atomic(IOVA + 8, Width::Four, AtomicOp::CompareSwap(8, 1)), Ok(8));
    let mut word = [0; 8];
    bench.caller.memory.read(BUFFER + 8, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 1);
}

#[test]
fn what_the_caller_unmaps_from_its_memory_stays_for_the_device() {
    let bench = Bench::new();
    let port = bench.attached();
    port.write(IOVA, b"kept").unwrap();
    bench.caller.memory.unmap(BUFFER, PAGES);
    let mut got = [0; 4];
    port.read(IOVA, &mut got).unwrap();
    assert_eq!(&got, b"kept");
}

#[test]
fn an_unmap_of_the_ioas_and_a_detach_are_seen_at_once() {
    let bench = Bench::new();
    bench.map(IOVA, PAGE_SIZE, RW);
    bench.map(IOVA + PAGE_SIZE, PAGE_SIZE, RW);
    bench.device().attach(NO_PASID, bench.ioas).unwrap();
    let port = bench.device().dma(NO_PASID).unwrap();
    port.write(IOVA, &[1; 2 * PAGE_SIZE as usize]).unwrap();
    bench.unmap(IOVA + PAGE_SIZE, PAGE_SIZE);
    let fault = port.read(IOVA + PAGE_SIZE - 8, &mut [0; 16]).unwrap_err();
    assert_eq!((fault.iova, fault.reason), (IOVA + PAGE_SIZE, Reason::NotPresent(Stage::Second)));
    assert_eq!(fault.recovery, Recovery::Unrecoverable);
    bench.device().detach(NO_PASID);
    assert_eq!(port.read(IOVA, &mut [0]).unwrap_err().reason, Reason::Blocked);
    bench.device().attach(NO_PASID, bench.ioas).unwrap();
    port.read(IOVA, &mut [0]).unwrap();
}

#[test]
fn read_only_mappings_refuse_stores_and_atomics() {
    let bench = Bench::new();
    bench.map(IOVA, PAGE_SIZE, IOMMU_IOAS_MAP_READABLE);
    bench.device().attach(NO_PASID, bench.ioas).unwrap();
    let port = bench.device().dma(NO_PASID).unwrap();
    port.read(IOVA, &mut [0; 64]).unwrap();
    let denied = Reason::Permission(Stage::Second);
    assert_eq!(port.write(IOVA, &[0; 64]).unwrap_err().reason, denied);
    let swap = port.atomic(IOVA, Width::Eight, AtomicOp::Swap(1));
    assert_eq!(swap.unwrap_err().reason, denied);
}

#[test]
fn stores_make_pages_dirty_and_loads_do_not() {
    let bench = Bench::new();
    bench.map(IOVA, PAGES * PAGE_SIZE, RW);
    // Large IOPTEs would make their neighbours dirty, too.
    bench
        .call(iommu_option {
            option_id: IOMMU_OPTION_HUGE_PAGES,
            op: IOMMU_OPTION_OP_SET,
            object_id: bench.ioas,
            ..Default::default()
        })
        .unwrap();
    let hwpt = bench.hwpt(bench.ioas, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, 0);
    bench.device().attach(NO_PASID, hwpt).unwrap();
    let port = bench.device().dma(NO_PASID).unwrap();
    port.write(IOVA + 9 * PAGE_SIZE, &[1]).unwrap();
    let flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
    let track = iommu_hwpt_set_dirty_tracking { flags, hwpt_id: hwpt, ..Default::default() };
    bench.call(track).unwrap();
    let bitmap = BUFFER + (PAGES - 1) * PAGE_SIZE;
    let dirty = || {
        bench.caller.memory.write(bitmap, &[0; 8]).unwrap();
        bench
            .call(iommu_hwpt_get_dirty_bitmap {
                hwpt_id: hwpt,
                iova: IOVA,
                length: PAGES * PAGE_SIZE,
                page_size: PAGE_SIZE,
                data: bitmap,
                ..Default::default()
            })
            .unwrap();
        let mut bits = [0; 8];
        bench.caller.memory.read(bitmap, &mut bits).unwrap();
        u64::from_le_bytes(bits)
    };
    assert_eq!(dirty(), 0);
    port.read(IOVA, &mut [0; 8192]).unwrap();
    port.write(IOVA + 3 * PAGE_SIZE, &[1; 64]).unwrap();
    port.write(IOVA + 5 * PAGE_SIZE - 1, &[1; 2]).unwrap();
    assert_eq!(dirty(), 1 << 3 | 1 << 4 | 1 << 5);
    assert_eq!(dirty(), 0);
    // A warm port makes the page dirty again.
    port.write(IOVA + 3 * PAGE_SIZE, &[1; 64]).unwrap();
    assert_eq!(dirty(), 1 << 3);
}

#[test]
fn a_pasid_has_a_port_of_its_own() {
    let bench = Bench::new();
    bench.map(IOVA, PAGE_SIZE, RW);
    let hwpt = bench.hwpt(bench.ioas, IOMMU_HWPT_ALLOC_PASID, 0);
    bench.device().attach(7, hwpt).unwrap();
    let pasid = bench.device().dma(7).unwrap();
    let rid = bench.device().dma(NO_PASID).unwrap();
    pasid.write(IOVA, b"pasid").unwrap();
    assert_eq!(rid.read(IOVA, &mut [0]).unwrap_err().reason, Reason::Blocked);
    bench.device().detach(7);
    assert_eq!(pasid.read(IOVA, &mut [0]).unwrap_err().reason, Reason::Blocked);
}

struct Bytes(Vec<u8>);

impl ReadBuffer for Bytes {
    fn room(&self) -> usize {
        size_of::<iommu_hwpt_pgfault>() - self.0.len()
    }
    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn a_page_request_is_answered_by_the_user_and_the_access_repeated() {
    let bench = Bench::new();
    let queue = bench.call(iommu_fault_alloc::default()).unwrap();
    let hwpt = bench.hwpt(bench.ioas, IOMMU_HWPT_FAULT_ID_VALID, queue.out_fault_id);
    bench.device().attach(NO_PASID, hwpt).unwrap();
    let port = bench.device().dma(NO_PASID).unwrap();
    let fault = port.write(IOVA + 4, b"late").unwrap_err();
    let Recovery::Requested(group) = fault.recovery else { panic!("{fault}") };

    let file = bench.caller.engine_file(queue.out_fault_fd as i32).unwrap();
    let mut bytes = Bytes(Vec::new());
    file.read(&mut bytes).unwrap();
    let read = iommu_hwpt_pgfault::read_from_bytes(&bytes.0).unwrap();
    assert_eq!((read.addr, read.grpid, read.dev_id), (IOVA, group, bench.device().id()));
    assert_ne!(read.perm & IOMMU_PGFAULT_PERM_WRITE, 0);
    bench.map(IOVA, PAGE_SIZE, RW);
    let code = IOMMUFD_PAGE_RESP_SUCCESS;
    let answer = iommu_hwpt_page_response { cookie: read.cookie, code };
    file.write(answer.as_bytes()).unwrap();
    assert_eq!(port.wait_response(group, Duration::from_secs(60)), Some(true));
    port.write(IOVA + 4, b"late").unwrap();

    // Who is detached while it waits is told no.
    let fault = port.read(IOVA + PAGE_SIZE, &mut [0]).unwrap_err();
    let Recovery::Requested(group) = fault.recovery else { panic!("{fault}") };
    bench.device().detach(NO_PASID);
    assert_eq!(port.wait_response(group, Duration::from_secs(60)), Some(false));
    drop(file);
    bench.caller.close(queue.out_fault_fd as i32);
}

#[test]
fn threads_that_copy_while_others_map_and_unmap_never_reach_what_is_gone() {
    let bench = Bench::new();
    bench.device().attach(NO_PASID, bench.ioas).unwrap();
    let port = bench.device().dma(NO_PASID).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for offset in [0, 2 * PAGE_SIZE] {
            let (port, stop) = (&port, &stop);
            scope.spawn(move || {
                let mut bytes = [0; 2 * PAGE_SIZE as usize];
                while !stop.load(Ordering::Relaxed) {
                    let read = port.read(IOVA + offset, &mut bytes);
                    let gone =
                        |f: &engine::dma::Fault| f.reason == Reason::NotPresent(Stage::Second);
                    assert!(read.is_ok() || read.is_err_and(|f| gone(&f)));
                }
            });
        }
        for _ in 0..300 {
            bench.map(IOVA, 4 * PAGE_SIZE, RW);
            bench.unmap(IOVA, 4 * PAGE_SIZE);
            // Nothing is left that a port could still use.
            assert_eq!(bench.caller.memory.all_pins(), 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
