//! What one user may have, over all contexts of the user.

mod common;

use std::sync::Arc;

use common::caller::TestCaller;
use common::iommu::{TYPE, TinyDevice};
use engine::kapi::{Device, Lifetime};
use engine::quota::Resource;
use engine::{Context, Engine, Errno, Most, Node, Quota};
use ioctl_abi::iommufd::*;

const MANY: Most = Most { objects: 100, queues: 100, events: 100, areas: 100, pages: 100 };

fn ioas(caller: &TestCaller, context: &Arc<Context>) -> Result<u32, Errno> {
    let command = iommu_ioas_alloc { size: 12, ..Default::default() };
    let (answer, result) = caller.ioctl(context, IOMMU_IOAS_ALLOC, command);
    result.map(|_| answer.out_ioas_id)
}

fn fault_queue(caller: &TestCaller, context: &Arc<Context>) -> Result<u32, Errno> {
    let command = iommu_fault_alloc { size: 16, ..Default::default() };
    let (answer, result) = caller.ioctl(context, IOMMU_FAULT_QUEUE_ALLOC, command);
    result.map(|_| answer.out_fault_id)
}

#[test]
fn objects_are_counted_over_all_contexts_and_given_back() {
    let (engine, caller) = (Engine::new(), TestCaller::new());
    let quota = Quota::new(Most { objects: 2, ..MANY });
    let one = engine.open_within(Node::Iommu, Some(quota.clone()));
    let other = engine.open_within(Node::Iommu, Some(quota.clone()));
    let free = engine.open(Node::Iommu);
    ioas(&caller, &one).unwrap();
    ioas(&caller, &other).unwrap();
    assert_eq!(ioas(&caller, &one), Err(Errno::ENOMEM));
    assert_eq!(ioas(&caller, &free), Ok(1));
    assert_eq!(other.close(), 0);
    assert_eq!(ioas(&caller, &one), Ok(2));
    assert_eq!(one.close(), 0);
    assert_eq!(quota.taken(Resource::Objects), 0);
}

#[test]
fn a_queue_past_the_limit_leaves_nothing() {
    let (engine, caller) = (Engine::new(), TestCaller::new());
    let quota = Quota::new(Most { queues: 1, ..MANY });
    let context = engine.open_within(Node::Iommu, Some(quota.clone()));
    assert_eq!(fault_queue(&caller, &context), Ok(1));
    assert_eq!(fault_queue(&caller, &context), Err(Errno::EMFILE));
    assert_eq!(quota.taken(Resource::Objects), 1);
}

#[test]
fn events_past_the_limit_are_lost() {
    let (engine, caller) = (Engine::new(), TestCaller::new());
    let quota = Quota::new(Most { events: 1, ..MANY });
    let context = engine.open_within(Node::Iommu, Some(quota.clone()));
    let ioas = ioas(&caller, &context).unwrap();
    let device = Arc::new(TinyDevice::new("a"));
    let device = Device::bind(&context, device, Lifetime::WithContext).unwrap();
    let command = iommu_hwpt_alloc {
        size: size_of::<iommu_hwpt_alloc>() as u32,
        flags: IOMMU_HWPT_ALLOC_NEST_PARENT,
        dev_id: device.id(),
        pt_id: ioas,
        ..Default::default()
    };
    let hwpt = caller.ioctl(&context, IOMMU_HWPT_ALLOC, command).0.out_hwpt_id;
    let command = iommu_viommu_alloc {
        size: size_of::<iommu_viommu_alloc>() as u32,
        r#type: TYPE,
        dev_id: device.id(),
        hwpt_id: hwpt,
        ..Default::default()
    };
    let viommu = caller.ioctl(&context, IOMMU_VIOMMU_ALLOC, command).0.out_viommu_id;
    let command = iommu_veventq_alloc {
        size: size_of::<iommu_veventq_alloc>() as u32,
        viommu_id: viommu,
        r#type: TYPE,
        veventq_depth: 10,
        ..Default::default()
    };
    let answer = caller.ioctl(&context, IOMMU_VEVENTQ_ALLOC, command);
    answer.1.unwrap();
    // The driver tells of each new vDEVICE.
    let vdevice = |device: &Device, virt_id| {
        let command = iommu_vdevice_alloc {
            size: size_of::<iommu_vdevice_alloc>() as u32,
            viommu_id: viommu,
            dev_id: device.id(),
            virt_id,
            ..Default::default()
        };
        caller.ioctl(&context, IOMMU_VDEVICE_ALLOC, command).1
    };
    vdevice(&device, 5).unwrap();
    let other = Arc::new(TinyDevice::new("b"));
    let other = Device::bind(&context, other, Lifetime::WithContext).unwrap();
    let _ = vdevice(&other, 6);
    assert_eq!(quota.taken(Resource::Events), 1);
    // The one that has data, and a header that tells of the loss.
    let bytes = caller.read(answer.0.out_veventq_fd, 64).unwrap();
    let lost = [IOMMU_VEVENTQ_FLAG_LOST_EVENTS as u8, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(bytes, [&[0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0], &lost[..]].concat());
    assert_eq!(quota.taken(Resource::Events), 0);
}
