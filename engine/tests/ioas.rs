//! The memory side as a caller sees it: accounting, files, dma-bufs, options and VFIO.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use engine::caller::Process;
use engine::dmabuf::{Dmabuf, DmabufFile};
use engine::domain::Domain;
use engine::file::EngineFile;
use engine::ioas::Ioas;
use engine::memory::{AddressSpace, PAGE_SIZE};
use engine::testing::{TestCaller, TestDomain, TestFile};
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::iommufd::*;
use ioctl_abi::vfio::*;
use zerocopy::IntoBytes;

const BUFFER: u64 = 0x40_0000;
const RW: u32 = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
const FIXED: u32 = IOMMU_IOAS_MAP_FIXED_IOVA;

fn ioas(caller: &TestCaller, context: &Arc<Context>) -> Arc<Ioas> {
    let mut alloc = iommu_ioas_alloc::default();
    caller.call(context, &mut alloc).unwrap();
    context.objects().get::<Ioas>(alloc.out_ioas_id).unwrap().object().clone()
}

fn domain(ioas: &Ioas) -> (Arc<TestDomain>, Arc<dyn Domain>) {
    let domain = TestDomain::new(0..=u64::MAX, PAGE_SIZE | (2 << 20));
    let shared: Arc<dyn Domain> = domain.clone();
    ioas.attach_domain(&shared).unwrap();
    (domain, shared)
}

fn map(
    caller: &TestCaller,
    context: &Arc<Context>,
    ioas: &Ioas,
    va: u64,
    pages: u64,
) -> Result<u64, Errno> {
    let mut map = iommu_ioas_map {
        flags: RW,
        ioas_id: ioas.id(),
        user_va: va,
        length: pages * PAGE_SIZE,
        ..Default::default()
    };
    caller.call(context, &mut map).map(|_| map.iova)
}

fn map_file(
    caller: &TestCaller,
    context: &Arc<Context>,
    ioas: &Ioas,
    fd: i32,
    (start, length): (u64, u64),
) -> Result<u64, Errno> {
    let ioas_id = ioas.id();
    let mut map =
        iommu_ioas_map_file { flags: RW, ioas_id, fd, start, length, ..Default::default() };
    caller.call(context, &mut map).map(|_| map.iova)
}

fn unmap(caller: &TestCaller, context: &Arc<Context>, ioas: &Ioas, iova: u64, length: u64) -> u64 {
    let mut unmap = iommu_ioas_unmap { ioas_id: ioas.id(), iova, length, ..Default::default() };
    caller.call(context, &mut unmap).unwrap();
    unmap.length
}

#[test]
fn the_limit_is_exact_and_per_user() {
    let engine = Engine::new();
    let caller = TestCaller::limited(8);
    caller.memory.map(BUFFER, 64, true);
    let context = engine.open(Node::Iommu);
    let ioas = ioas(&caller, &context);
    assert_eq!(map(&caller, &context, &ioas, BUFFER, 64).map(drop), Ok(()), "nobody needs a page");
    unmap(&caller, &context, &ioas, 0, u64::MAX);
    let _domain = domain(&ioas);
    let first = map(&caller, &context, &ioas, BUFFER, 7).unwrap();
    assert_eq!(map(&caller, &context, &ioas, BUFFER, 2), Err(Errno::ENOMEM));
    map(&caller, &context, &ioas, BUFFER, 1).unwrap();
    assert_eq!(map(&caller, &context, &ioas, BUFFER, 1), Err(Errno::ENOMEM));
    // A bad page is met before the limit.
    assert_eq!(map(&caller, &context, &ioas, 0x10_0000, 1), Err(Errno::EFAULT));
    assert_eq!(engine.pinned(caller.memory.id()).pinned, 8);
    assert_eq!(engine.pinned(caller.memory.id()).locked, 0);
    // A copy shares the pages.
    let mut copy = iommu_ioas_copy {
        flags: RW,
        dst_ioas_id: ioas.id(),
        src_ioas_id: ioas.id(),
        length: PAGE_SIZE,
        src_iova: first,
        ..Default::default()
    };
    caller.call(&context, &mut copy).unwrap();
    // Another process of the user shares the limit, in another context.
    let other = TestCaller::limited(8);
    other.process.uid.store(caller.process.uid(), Ordering::Relaxed);
    other.memory.map(BUFFER, 8, true);
    let context2 = engine.open(Node::Iommu);
    let ioas2 = self::ioas(&other, &context2);
    let _domain2 = domain(&ioas2);
    assert_eq!(map(&other, &context2, &ioas2, BUFFER, 1), Err(Errno::ENOMEM));
    other.process.ipc_lock.store(true, Ordering::Relaxed);
    map(&other, &context2, &ioas2, BUFFER, 8).unwrap();
    assert_eq!(engine.accounts().locked_by_user(caller.process.uid()), 8);
    assert_eq!(engine.pinned(other.memory.id()).pinned, 8);
    assert_eq!(context.close() + context2.close(), 0);
    assert_eq!(engine.accounts().locked_by_user(caller.process.uid()), 0);
    assert_eq!(engine.pinned(caller.memory.id()).pinned, 0);
    assert_eq!(caller.memory.all_pins() + other.memory.all_pins(), 0);
}

#[test]
fn accounting_by_process_is_an_option_of_an_empty_context() {
    let engine = Engine::new();
    let caller = TestCaller::limited(4);
    caller.memory.map(BUFFER, 8, true);
    let context = engine.open(Node::Iommu);
    let option = |op, value| {
        let mut option = iommu_option {
            option_id: IOMMU_OPTION_RLIMIT_MODE,
            op,
            val64: value,
            ..Default::default()
        };
        caller.call(&context, &mut option).map(|_| option.val64)
    };
    assert_eq!(option(IOMMU_OPTION_OP_SET, 2), Err(Errno::EINVAL));
    assert_eq!(option(IOMMU_OPTION_OP_SET, 1), Ok(1));
    assert_eq!(option(IOMMU_OPTION_OP_GET, 9), Ok(1));
    let ioas = ioas(&caller, &context);
    assert_eq!(option(IOMMU_OPTION_OP_SET, 0), Err(Errno::EBUSY));
    caller.process.sys_resource.store(false, Ordering::Relaxed);
    assert_eq!(option(IOMMU_OPTION_OP_SET, 0), Err(Errno::EPERM));
    let _domain = domain(&ioas);
    map(&caller, &context, &ioas, BUFFER, 4).unwrap();
    assert_eq!(map(&caller, &context, &ioas, BUFFER, 1), Err(Errno::ENOMEM));
    let totals = engine.pinned(caller.memory.id());
    assert_eq!((totals.pinned, totals.locked), (4, 4));
    assert_eq!(engine.accounts().locked_by_user(caller.process.uid()), 0);
}

#[test]
fn another_process_takes_over_what_files_pin() {
    let engine = Engine::new();
    let (old, new) = (TestCaller::limited(8), TestCaller::limited(1));
    old.memory.map(BUFFER, 1, true);
    let context = engine.open(Node::Iommu);
    let ioas = ioas(&old, &context);
    let _domain = domain(&ioas);
    let fd = old.open(TestFile::new(2, true));
    map_file(&old, &context, &ioas, fd, (0, PAGE_SIZE)).unwrap();
    map_file(&old, &context, &ioas, fd, (PAGE_SIZE, PAGE_SIZE)).unwrap();
    let change =
        |caller: &TestCaller| caller.call(&context, &mut iommu_ioas_change_process::default());
    let pinned = || [&old, &new].map(|caller| engine.pinned(caller.memory.id()).pinned);
    assert_eq!(change(&new), Err(Errno::ENOMEM));
    assert_eq!(pinned(), [2, 0]);
    new.process.memlock.store(2 * PAGE_SIZE, Ordering::Relaxed);
    assert_eq!(change(&new), Ok(0));
    assert_eq!(pinned(), [0, 2]);
    let iova = map(&old, &context, &ioas, BUFFER, 1).unwrap();
    assert_eq!(change(&old), Err(Errno::EINVAL));
    unmap(&old, &context, &ioas, iova, PAGE_SIZE);
    assert_eq!(change(&old), Ok(0));
    assert_eq!(pinned(), [2, 0]);
    unmap(&old, &context, &ioas, 0, u64::MAX);
    assert_eq!(pinned(), [0, 0]);
}

#[test]
fn any_file_can_be_mapped_until_a_page_is_needed() {
    let engine = Engine::new();
    let caller = TestCaller::new();
    let context = engine.open(Node::Iommu);
    let ioas = ioas(&caller, &context);
    let file = TestFile::new(4, true);
    let (fd, pipe) = (caller.open(file.clone()), caller.open_other());
    let map = |fd, range| map_file(&caller, &context, &ioas, fd, range).map(drop);
    assert_eq!(map(99, (0, PAGE_SIZE)), Err(Errno::EBADF));
    assert_eq!(map(99, (0, 0)), Err(Errno::EINVAL));
    assert_eq!(map(pipe, (0, PAGE_SIZE)), Ok(()));
    assert_eq!(map(fd, (0, 5 * PAGE_SIZE)), Ok(()));
    assert_eq!(map(fd, (u64::MAX - 99, PAGE_SIZE)), Err(Errno::EOVERFLOW));
    unmap(&caller, &context, &ioas, 0, u64::MAX);
    let (domain, _) = domain(&ioas);
    assert_eq!(map(pipe, (0, PAGE_SIZE)), Err(Errno::EINVAL));
    assert_eq!(map(fd, (0, 5 * PAGE_SIZE)), Err(Errno::EINVAL));
    let iova = map_file(&caller, &context, &ioas, fd, (PAGE_SIZE, PAGE_SIZE)).unwrap();
    assert_eq!(domain.translate(iova), file.pfn(1).map(|pfn| pfn * PAGE_SIZE));
    assert_eq!(file.all_pins(), 1);
    context.close();
    assert_eq!(file.all_pins(), 0);
}

#[test]
fn a_revoked_dmabuf_leaves_all_domains_for_good() {
    let engine = Engine::new();
    let caller = TestCaller::new();
    let context = engine.open(Node::Iommu);
    let (first, second) = (ioas(&caller, &context), ioas(&caller, &context));
    let (domain1, _) = domain(&first);
    let (domain2, _) = domain(&second);
    let dmabuf = Dmabuf::new(4 * PAGE_SIZE);
    let fd = caller.open(DmabufFile::new(dmabuf.clone()).backing().unwrap());
    let all = (0, 4 * PAGE_SIZE);
    assert_eq!(map_file(&caller, &context, &first, fd, (1, all.1)), Err(Errno::EINVAL));
    let iova = map_file(&caller, &context, &first, fd, all).unwrap();
    assert_eq!(domain1.translate(iova), Some(dmabuf.physical()));
    let mut copy = iommu_ioas_copy {
        flags: RW,
        dst_ioas_id: second.id(),
        src_ioas_id: first.id(),
        length: all.1,
        src_iova: iova,
        ..Default::default()
    };
    caller.call(&context, &mut copy).unwrap();
    assert_eq!(domain2.mapped_bytes(), all.1);
    assert_eq!(first.pin_pages(iova, PAGE_SIZE, true), Err(Errno::EINVAL));
    dmabuf.revoke(true);
    assert_eq!(domain1.mapped_bytes() + domain2.mapped_bytes(), 0);
    assert_eq!(map_file(&caller, &context, &first, fd, all), Err(Errno::ENODEV));
    // A domain that comes later finds nothing there.
    let (later, shared) = domain(&first);
    assert_eq!(later.mapped_bytes(), 0);
    first.detach_domain(&shared);
    dmabuf.revoke(false);
    assert_eq!(domain1.mapped_bytes(), 0);
    let again = map_file(&caller, &context, &first, fd, all).unwrap();
    assert_eq!(domain1.translate(again), Some(dmabuf.physical()));
    assert_eq!(unmap(&caller, &context, &first, iova, all.1), all.1);
    assert_eq!(context.close(), 0);
    assert_eq!(domain1.mapped_bytes(), 0);
}

#[test]
fn without_huge_pages_all_is_mapped_by_page_and_vfio_may_cut() {
    let engine = Engine::new();
    let caller = TestCaller::new();
    caller.memory.map(BUFFER, 8, true);
    let context = engine.open(Node::VfioContainer);
    let vfio = |command: u32, argument: &mut [u8]| {
        caller.memory.write(TestCaller::ARGUMENT, argument).unwrap();
        let result = context.ioctl(&caller, command, TestCaller::ARGUMENT);
        caller.memory.read(TestCaller::ARGUMENT, argument).unwrap();
        result
    };
    let set_type = |kind: u32| context.ioctl(&caller, VFIO_SET_IOMMU, u64::from(kind));
    assert_eq!(set_type(VFIO_TYPE1_IOMMU), Err(Errno::ENODEV));
    let ioas = ioas(&caller, &context);
    let mut set =
        iommu_vfio_ioas { ioas_id: ioas.id(), op: IOMMU_VFIO_IOAS_SET, ..Default::default() };
    caller.call(&context, &mut set).unwrap();
    let (domain, _) = domain(&ioas);
    let map = |iova: u64, pages: u64| {
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: BUFFER,
            iova,
            size: pages * PAGE_SIZE,
        };
        vfio(VFIO_IOMMU_MAP_DMA, map.as_mut_bytes())
    };
    let unmap = |iova: u64, size: u64| {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
            flags: 0,
            iova,
            size,
            data: [],
        };
        vfio(VFIO_IOMMU_UNMAP_DMA, unmap.as_mut_bytes()).map(|_| unmap.size)
    };
    map(0x10000, 8).unwrap();
    assert_eq!(unmap(0x12000, 0x1000), Err(Errno::ENOENT), "the new type does not cut");
    assert_eq!(unmap(0x90000, 0x1000), Ok(0));
    assert_eq!(unmap(0x10000, 0x8000), Ok(0x8000));
    assert_eq!(set_type(VFIO_TYPE1_IOMMU), Ok(0));
    map(0x10000, 8).unwrap();
    assert_eq!(unmap(0x12000, 0x1000), Ok(0x1000));
    assert_eq!(unmap(0x14800, 0x1000), Err(Errno::EINVAL));
    assert_eq!(domain.mapped_bytes(), 7 * PAGE_SIZE);
    assert_eq!(caller.memory.all_pins(), 7);
    assert_eq!(engine.pinned(caller.memory.id()).pinned, 7);
    assert_eq!(unmap(0x11000, 0x100000), Ok(6 * PAGE_SIZE));
    assert_eq!(unmap(0, u64::MAX), Ok(PAGE_SIZE));
    assert_eq!(caller.memory.all_pins(), 0);
}

#[test]
fn contiguous_frames_are_mapped_at_once() {
    let engine = Engine::new();
    let caller = TestCaller::new();
    caller.memory.map(BUFFER, 16, true);
    caller.memory.map(BUFFER + 16 * PAGE_SIZE, 16, true);
    let context = engine.open(Node::Iommu);
    let ioas = ioas(&caller, &context);
    let (domain, _) = domain(&ioas);
    map(&caller, &context, &ioas, BUFFER, 32).unwrap();
    assert_eq!(domain.map_calls(), 2, "one for each run of frames");
}

#[test]
fn a_caller_hears_of_memory_that_changes_under_a_mapping() {
    let engine = Engine::new();
    let caller = TestCaller::new();
    caller.memory.map(BUFFER, 4, true);
    let context = engine.open(Node::Iommu);
    let ioas = ioas(&caller, &context);
    let mut map = iommu_ioas_map {
        flags: RW | FIXED,
        ioas_id: ioas.id(),
        user_va: BUFFER,
        length: 2 * PAGE_SIZE,
        iova: 0x1_0000,
        ..Default::default()
    };
    let before = Instant::now();
    caller.call(&context, &mut map).unwrap();
    let mm = caller.memory.id();
    let page = |n: u64| BUFFER + n * PAGE_SIZE..BUFFER + (n + 1) * PAGE_SIZE;
    assert_eq!(engine.memory_changed(mm, &page(1), Instant::now(), "unmapped"), 1);
    assert_eq!(engine.memory_changed(mm, &page(2), Instant::now(), "unmapped"), 0);
    assert_eq!(
        engine.memory_changed(TestCaller::new().memory.id(), &page(1), Instant::now(), "unmapped"),
        0
    );
    // It happened before the mapping was made.
    assert_eq!(engine.memory_changed(mm, &page(1), before, "unmapped"), 0);
}

#[test]
fn each_mapping_of_what_a_file_has_lost_is_told() {
    let engine = Engine::new();
    let caller = TestCaller::new();
    let context = engine.open(Node::Iommu);
    let ioas = ioas(&caller, &context);
    let _domain = domain(&ioas);
    let file = TestFile::new(4, true);
    let fd = caller.open(file.clone());
    let range = |first: u64, pages: u64| (first * PAGE_SIZE, pages * PAGE_SIZE);
    map_file(&caller, &context, &ioas, fd, range(0, 4)).unwrap();
    map_file(&caller, &context, &ioas, fd, range(0, 2)).unwrap();
    map_file(&caller, &context, &ioas, fd, range(3, 1)).unwrap();
    assert_eq!(engine.pages_lost(), 0);
    file.truncate(3);
    assert_eq!(engine.pages_lost(), 2);
    file.truncate(1);
    assert_eq!(engine.pages_lost(), 3, "neighbours are told of at once");
}
