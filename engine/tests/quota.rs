//! What one user may have, over all contexts of the user.

mod common;

use std::sync::Arc;

use common::bench::Bench;
use common::caller::TestCaller;
use common::iommu::TinyDevice;
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
    let quota = Quota::new(Most { events: 1, ..MANY });
    let context = Engine::new().open_within(Node::Iommu, Some(quota.clone()));
    let bench = Bench::on(context.clone());
    let queue = bench.veventq(10).unwrap();
    // The driver tells of each new vDEVICE.
    bench.vdevice(bench.device_id(), 5).unwrap();
    let other = Arc::new(TinyDevice::new("b"));
    let other = Device::bind(&context, other, Lifetime::WithContext).unwrap();
    let _ = bench.vdevice(other.id(), 6);
    assert_eq!(quota.taken(Resource::Events), 1);
    // The one that has data, and a header that tells of the loss.
    let bytes = bench.caller.read(queue.out_veventq_fd, 64).unwrap();
    let lost = [IOMMU_VEVENTQ_FLAG_LOST_EVENTS as u8, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(bytes, [&[0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0], &lost[..]].concat());
    assert_eq!(quota.taken(Resource::Events), 0);
}
