//! Files that areas keep open after their last descriptor.

use std::sync::Arc;

use engine::memory::PAGE_SIZE;
use engine::testing::TestCaller;
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::iommufd::*;

fn ioas(caller: &TestCaller, context: &Arc<Context>) -> u32 {
    let mut alloc = iommu_ioas_alloc::default();
    caller.call(context, &mut alloc).unwrap();
    alloc.out_ioas_id
}

/// A fault queue's id and descriptor.
fn queue(caller: &TestCaller, context: &Arc<Context>) -> (u32, i32) {
    let mut alloc = iommu_fault_alloc::default();
    caller.call(context, &mut alloc).unwrap();
    (alloc.out_fault_id, alloc.out_fault_fd as i32)
}

fn map(caller: &TestCaller, context: &Arc<Context>, ioas_id: u32, fd: i32) -> u64 {
    let mut map = iommu_ioas_map_file {
        flags: IOMMU_IOAS_MAP_READABLE,
        ioas_id,
        fd,
        length: PAGE_SIZE,
        ..Default::default()
    };
    caller.call(context, &mut map).unwrap();
    map.iova
}

fn unmap(caller: &TestCaller, context: &Arc<Context>, ioas_id: u32, iova: u64) {
    let length = PAGE_SIZE;
    let mut unmap = iommu_ioas_unmap { ioas_id, iova, length, ..Default::default() };
    caller.call(context, &mut unmap).unwrap();
}

fn destroy(caller: &TestCaller, context: &Arc<Context>, id: u32) -> Result<(), Errno> {
    caller.call(context, &mut iommu_destroy { id, ..Default::default() }).map(drop)
}

#[test]
fn an_area_keeps_a_queue() {
    let (engine, caller) = (Engine::new(), TestCaller::new());
    let context = engine.open(Node::Iommu);
    let ioas = ioas(&caller, &context);
    let (id, fd) = queue(&caller, &context);
    let first = map(&caller, &context, ioas, fd);
    let second = map(&caller, &context, ioas, fd);
    unmap(&caller, &context, ioas, first);
    assert_eq!(destroy(&caller, &context, id), Err(Errno::EBUSY), "open");
    caller.close(fd);
    assert_eq!(destroy(&caller, &context, id), Err(Errno::EBUSY), "mapped");
    unmap(&caller, &context, ioas, second);
    assert_eq!(destroy(&caller, &context, id), Ok(()));
    assert_eq!(context.close(), 0);
}

#[test]
fn an_area_of_another_iommufd_keeps_one() {
    let (engine, caller) = (Engine::new(), TestCaller::new());
    let (mapped, other) = (engine.open(Node::Iommu), engine.open(Node::Iommu));
    let fd = caller.open_context(&mapped);
    let ioas = ioas(&caller, &other);
    let iova = map(&caller, &other, ioas, fd);
    caller.close(fd);
    assert_eq!(engine.contexts().len(), 2);
    unmap(&caller, &other, ioas, iova);
    assert_eq!(engine.contexts().len(), 1);
}

/// Whatever keeps whatever: with the last descriptors all is gone.
#[test]
fn rings_end() {
    let (engine, caller) = (Engine::new(), TestCaller::new());
    let contexts = [engine.open(Node::Iommu), engine.open(Node::Iommu)];
    let weak: Vec<_> = contexts.iter().map(Arc::downgrade).collect();
    let fds: Vec<_> = contexts.iter().map(|context| caller.open_context(context)).collect();
    let mut queues = Vec::new();
    for context in &contexts {
        let ioas = ioas(&caller, context);
        let (_, queue) = queue(&caller, context);
        queues.push(queue);
        for fd in fds.iter().chain(&queues) {
            map(&caller, context, ioas, *fd);
        }
    }
    drop(contexts);
    caller.close(queues[0]);
    caller.close(fds[0]);
    assert_eq!(engine.contexts().len(), 2, "the other one maps it");
    caller.close(fds[1]);
    assert_eq!(engine.contexts().len(), 1, "its queue has a descriptor");
    caller.close(queues[1]);
    assert_eq!(engine.contexts().len(), 0);
    assert!(weak.iter().all(|context| context.strong_count() == 0));
}
