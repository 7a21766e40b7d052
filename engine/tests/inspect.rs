//! What a person who looks from outside is told.

use std::sync::Arc;

use engine::driver::NO_PASID;
use engine::inspect::{AreaReport, Detail, IoasReport, Scope};
use engine::kapi::{Device, Lifetime};
use engine::memory::{AddressSpace, PAGE_SIZE};
use engine::mock::{DeviceFlags, MockDevice};
use engine::testing::TestCaller;
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::CommandStruct;
use ioctl_abi::iommufd::*;

const BUFFER: u64 = 0x10_0000;
const IOVA: u64 = 1 << 24;
const RW: u32 = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
const ALL: Scope = Scope { areas: usize::MAX, from: 0 };

struct Bench {
    engine: Arc<Engine>,
    context: Arc<Context>,
    caller: TestCaller,
    device: Device,
    ioas: u32,
}

impl Bench {
    fn new() -> Self {
        let caller = TestCaller::new();
        caller.memory.map(BUFFER, 16, true);
        let engine = Engine::new();
        let context = engine.open(Node::Iommu);
        let mut alloc = iommu_ioas_alloc::default();
        caller.call(&context, &mut alloc).unwrap();
        let mock = MockDevice::new(DeviceFlags::PASID).unwrap();
        let device = Device::bind(&context, mock, Lifetime::WithContext).unwrap();
        Self { engine, context, caller, device, ioas: alloc.out_ioas_id }
    }

    fn call<T: CommandStruct>(&self, mut argument: T) -> Result<T, Errno> {
        self.caller.call(&self.context, &mut argument).map(|_| argument)
    }

    fn map(&self, iova: u64, page: u64, pages: u64, flags: u32) {
        let (user_va, length) = (BUFFER + page * PAGE_SIZE, pages * PAGE_SIZE);
        let (flags, ioas_id) = (flags | IOMMU_IOAS_MAP_FIXED_IOVA, self.ioas);
        let map = iommu_ioas_map { flags, ioas_id, user_va, length, iova, ..Default::default() };
        self.call(map).unwrap();
    }

    fn report_of(&self, scope: Scope) -> IoasReport {
        let report = self.context.report(scope);
        let ioas = report.objects.iter().find(|object| object.id == self.ioas).unwrap();
        let Detail::Ioas(ioas) = &ioas.detail else { panic!("{ioas:?}") };
        ioas.clone()
    }

    fn areas(&self) -> Vec<AreaReport> {
        self.report_of(ALL).areas
    }
}

#[test]
fn areas_tell_what_they_map_and_how_it_is_held() {
    let bench = Bench::new();
    bench.map(IOVA, 0, 4, RW);
    bench.map(IOVA + 4 * PAGE_SIZE, 8, 1, IOMMU_IOAS_MAP_READABLE);
    let areas = bench.areas();
    assert!(areas.iter().all(|area| area.pins.is_empty()), "nobody needs the pages");
    bench.device.attach(NO_PASID, bench.ioas).unwrap();
    let (flags, length) = (RW | IOMMU_IOAS_MAP_FIXED_IOVA, 2 * PAGE_SIZE);
    let (src_ioas_id, dst_ioas_id) = (bench.ioas, bench.ioas);
    let (src_iova, dst_iova) = (IOVA + PAGE_SIZE, IOVA + 0x10_0000);
    bench
        .call(iommu_ioas_copy {
            flags,
            dst_ioas_id,
            src_ioas_id,
            length,
            dst_iova,
            src_iova,
            ..Default::default()
        })
        .unwrap();
    let areas = bench.areas();
    assert_eq!(areas.len(), 3);
    let first = &areas[0];
    assert_eq!((first.iova, first.length), (IOVA, 4 * PAGE_SIZE));
    assert!(first.read && first.write && !first.source.copied);
    assert_eq!(first.source.address, BUFFER);
    assert_eq!(first.source.call, "IOMMU_IOAS_MAP");
    assert!(!areas[1].write);
    // The copy has the pages of the first, and two users.
    let users: Vec<_> =
        first.pins.iter().map(|pin| (pin.iova - IOVA, pin.pages, pin.users)).collect();
    assert_eq!(users, [(0, 1, 1), (PAGE_SIZE, 2, 2), (3 * PAGE_SIZE, 1, 1)]);
    let copied = &areas[2];
    assert!(copied.source.copied);
    assert_eq!(copied.source.address, BUFFER + PAGE_SIZE);
    assert_eq!(copied.pins.len(), 1);
    assert_eq!(copied.pins[0].held, "shared");
    let report = bench.engine.report(ALL);
    assert_eq!(report.payers.len(), 1);
    assert_eq!(report.payers[0].pinned_pages, 5);
}

#[test]
fn a_report_survives_json() {
    let bench = Bench::new();
    bench.map(IOVA, 0, 1, RW);
    bench.device.attach(NO_PASID, bench.ioas).unwrap();
    let report = bench.engine.report(ALL);
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.contains(r#""iova":"0x1000000""#), "{text}");
    let back: engine::inspect::EngineReport = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
}

#[test]
fn areas_are_listed_as_far_as_asked_and_all_counted() {
    let bench = Bench::new();
    for page in 0..10 {
        bench.map(IOVA + 2 * page * PAGE_SIZE, page, 1, RW);
    }
    let report = bench.report_of(Scope { areas: 3, from: IOVA + 8 * PAGE_SIZE });
    assert_eq!((report.area_count, report.mapped), (10, 10 * PAGE_SIZE));
    let listed: Vec<_> = report.areas.iter().map(|area| area.iova).collect();
    assert_eq!(listed, [8, 10, 12].map(|page| IOVA + page * PAGE_SIZE));
}

#[test]
fn a_walk_shows_every_level_and_sets_no_bit() {
    let bench = Bench::new();
    bench.map(IOVA, 0, 1, RW);
    let id = bench.device.id();
    let walk = |iova| bench.context.walk(id, NO_PASID, iova).unwrap();
    let blocked = walk(IOVA);
    assert!(blocked.hwpt.is_none() && blocked.stages.is_empty());
    let flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
    let (dev_id, pt_id) = (id, bench.ioas);
    let hwpt = bench
        .call(iommu_hwpt_alloc { flags, dev_id, pt_id, ..Default::default() })
        .unwrap()
        .out_hwpt_id;
    bench.device.attach(NO_PASID, hwpt).unwrap();
    let flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
    let track = iommu_hwpt_set_dirty_tracking { flags, hwpt_id: hwpt, ..Default::default() };
    bench.call(track).unwrap();

    let found = walk(IOVA + 0x123);
    assert_eq!((found.hwpt, found.ioas), (Some(hwpt), Some(bench.ioas)));
    let steps = &found.stages[0].steps;
    assert!(steps.len() > 2, "{steps:?}");
    assert!(steps.last().unwrap().text.contains("page of 4 KiB at"), "{steps:?}");
    let pfn = bench.caller.memory.pfn(BUFFER).unwrap();
    assert_eq!(found.physical, Some(format!("{:#x}", pfn * PAGE_SIZE + 0x123)));
    assert!(!found.dirty);
    assert_eq!(found.frame.len(), 1);
    assert_eq!(found.frame[0].source.address, BUFFER);
    assert_eq!(walk(IOVA).stages, walk(IOVA).stages, "a walk changes nothing");

    bench.device.dma(NO_PASID).unwrap().write(IOVA, &[1]).unwrap();
    assert!(walk(IOVA).dirty);
    let hole = walk(IOVA + PAGE_SIZE);
    assert_eq!(hole.stages[0].result, "not present");
    assert_eq!(hole.physical, None);
    assert_eq!(bench.context.walk(77, NO_PASID, IOVA).unwrap_err(), Errno::ENOENT);
}

#[test]
fn a_frame_leads_back_to_its_bytes_and_owner() {
    let bench = Bench::new();
    bench.map(IOVA, 3, 4, RW);
    bench.device.attach(NO_PASID, bench.ioas).unwrap();
    let hwpt = bench.device.attached(NO_PASID).unwrap();
    bench.caller.memory.write(BUFFER + 5 * PAGE_SIZE, b"bytes").unwrap();
    let pfn = bench.caller.memory.pfn(BUFFER + 5 * PAGE_SIZE).unwrap();
    assert_eq!(bench.engine.find_frame(pfn, false)[0].current, Some(true));
    // Bytes stay the frame's when the process unmaps it.
    bench.caller.memory.unmap(BUFFER + 5 * PAGE_SIZE, 1);
    let found = bench.engine.find_frame(pfn, true);
    assert_eq!(found.len(), 1);
    let frame = &found[0];
    assert_eq!((frame.context, frame.ioas), (bench.context.id().0, bench.ioas));
    assert_eq!(frame.iova, IOVA + 2 * PAGE_SIZE);
    assert_eq!(frame.source.address, BUFFER + 5 * PAGE_SIZE);
    assert_eq!(frame.hwpts, [hwpt]);
    assert_eq!(frame.current, Some(false));
    assert_eq!(frame.held, "shared");
    let bytes = frame.bytes.as_ref().unwrap();
    assert_eq!(bytes.len(), 2 * PAGE_SIZE as usize);
    assert!(bytes.starts_with("6279746573"), "{bytes}");
    assert!(bench.engine.find_frame(pfn, false)[0].bytes.is_none());
    assert!(bench.engine.find_frame(pfn + 1000, true).is_empty());
}

#[test]
fn ports_are_had_by_id_and_pasids_are_checked() {
    let bench = Bench::new();
    bench.map(IOVA, 0, 1, RW);
    bench.device.attach(NO_PASID, bench.ioas).unwrap();
    let id = bench.device.id();
    assert!(bench.context.has_device(id) && !bench.context.has_device(bench.ioas));
    let port = bench.context.device_port(id, NO_PASID).unwrap();
    port.write(IOVA, b"dma").unwrap();
    let mut seen = [0; 3];
    bench.caller.memory.read(BUFFER, &mut seen).unwrap();
    assert_eq!(&seen, b"dma");
    let refused = |id, pasid| bench.context.device_port(id, pasid).err();
    assert_eq!(refused(bench.ioas, NO_PASID), Some(Errno::ENOENT));
    assert_eq!(refused(id, u32::MAX), Some(Errno::EINVAL));
    assert_eq!(refused(id, 3), None);
}

#[test]
fn what_is_looked_at_can_be_destroyed_meanwhile() {
    let bench = Bench::new();
    let report = bench.engine.report(ALL);
    let users = |id| report.contexts[0].objects.iter().find(|o| o.id == id).unwrap().users;
    assert_eq!(users(bench.ioas), 0);
    bench.call(iommu_destroy { id: bench.ioas, ..Default::default() }).unwrap();
}
