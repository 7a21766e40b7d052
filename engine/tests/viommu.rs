//! vIOMMUs and what belongs to them.

mod common;

use std::sync::Arc;

use common::bench::Bench;
use common::caller::{BASE, FREE, GAP};
use common::iommu::{Payload, TYPE, TinyDevice};
use engine::file::PollEvents;
use engine::kapi::{Device, Lifetime};
use engine::{Errno, MmapRequest};

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
