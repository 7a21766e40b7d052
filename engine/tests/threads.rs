//! Several threads that call on one context at once, and a device that does DMA meanwhile.
//!
//! What each call answers depends on the order. That all of them come to an end, and what is left at
//! the end, does not. `ci/tsan` runs it under ThreadSanitizer.

mod common;

use std::sync::Arc;

use common::caller::{FREE, TestCaller};
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const THREADS: u64 = 4;
/// Calls of each thread.
const CALLS: u32 = 400;
/// From one thread's structs to the next one's, behind which its data lie.
const SPACING: u64 = 0x2000;
/// Memory that all threads map.
const SHARED: u64 = FREE + 0x4_0000;
/// Ids that are tried at the end.
const IDS: u32 = 4000;

/// One thread, with what it knows of the objects that all of them make.
struct Actor<'a> {
    caller: &'a TestCaller,
    context: &'a Arc<Context>,
    at: u64,
    random: u64,
}

impl Actor<'_> {
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    fn ioctl<T>(&self, command: u32, argument: T) -> Result<T, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.caller.put(self.at, &argument);
        self.context.ioctl(self.caller, command, self.at)?;
        Ok(self.caller.get(self.at))
    }

    fn test<T: TestBody>(&self, id: u32, body: &T) -> Result<T, Errno> {
        let size = size_of::<iommu_test_cmd>() as u32;
        let mut command = iommu_test_cmd { size, op: T::OP, id, ..Default::default() };
        command.set_body(body);
        Ok(self.ioctl(IOMMU_TEST_CMD, command)?.body())
    }

    fn ioas(&self) -> Result<u32, Errno> {
        let command = iommu_ioas_alloc { size: 12, ..Default::default() };
        Ok(self.ioctl(IOMMU_IOAS_ALLOC, command)?.out_ioas_id)
    }

    fn destroy(&self, id: u32) -> Result<(), Errno> {
        self.ioctl(IOMMU_DESTROY, iommu_destroy { size: 8, id }).map(drop)
    }

    /// Any call on objects that may be anybody's. What it answers is nobody's business.
    fn call(&mut self, mine: &mut Vec<u32>) -> Result<(), Errno> {
        let (id, other) = (1 + self.below(12) as u32, 1 + self.below(12) as u32);
        let iova = 0x100_0000 + 0x1000 * self.below(16);
        let length = 0x1000 * (1 + self.below(4));
        let user_va = SHARED + 0x1000 * self.below(16);
        match self.below(12) {
            0 => any(self.ioas()),
            1 => self.destroy(id),
            2..=3 => any(self.ioctl(
                IOMMU_IOAS_MAP,
                iommu_ioas_map {
                    size: size_of::<iommu_ioas_map>() as u32,
                    flags: 7,
                    ioas_id: id,
                    user_va,
                    length,
                    iova,
                    ..Default::default()
                },
            )),
            4..=5 => any(self.ioctl(
                IOMMU_IOAS_UNMAP,
                iommu_ioas_unmap {
                    size: size_of::<iommu_ioas_unmap>() as u32,
                    ioas_id: id,
                    iova,
                    length,
                },
            )),
            6 => any(self.ioctl(
                IOMMU_IOAS_COPY,
                iommu_ioas_copy {
                    size: size_of::<iommu_ioas_copy>() as u32,
                    flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
                    dst_ioas_id: other,
                    src_ioas_id: id,
                    length: 0x1000,
                    dst_iova: 0,
                    src_iova: iova,
                },
            )),
            7 => any(self.test(id, &iommu_test_mock_domain::default())),
            8 => any(self.test(id, &iommu_test_mock_domain_replace { pt_id: other })),
            9 => any(self.ioctl(
                IOMMU_HWPT_ALLOC,
                iommu_hwpt_alloc {
                    size: size_of::<iommu_hwpt_alloc>() as u32,
                    dev_id: id,
                    pt_id: other,
                    ..Default::default()
                },
            )),
            10 => {
                let create = iommu_test_create_access { flags: 1, ..Default::default() };
                self.test(id, &create).map(|made| mine.push(made.out_access_fd))
            }
            _ => {
                let access = mine.last().copied().ok_or(Errno::ENOENT)?;
                let pages = iommu_test_access_pages { iova, length, ..Default::default() };
                any(self.test(access, &pages))
            }
        }
    }
}

fn any<T>(result: Result<T, Errno>) -> Result<(), Errno> {
    result.map(|_| ())
}

/// Destroys until nothing goes any more.
fn take_down(actor: &Actor<'_>) {
    while (1..IDS).filter(|&id| actor.destroy(id).is_ok()).count() > 0 {}
}

fn play(seed: u64) {
    let engine = Engine::new();
    let (caller, context) = (TestCaller::new(), engine.open(Node::Iommu));
    let actor = |thread: u64| Actor {
        caller: &caller,
        context: &context,
        at: FREE + thread * SPACING,
        random: (seed << 8 | (thread + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    };
    for _ in 0..2 {
        actor(0).ioas().unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (mut actor, caller) = (actor(thread), &caller);
            scope.spawn(move || {
                let mut accesses = Vec::new();
                for _ in 0..CALLS {
                    let _ = actor.call(&mut accesses);
                    if accesses.len() > 3 {
                        caller.close(accesses.remove(0));
                    }
                }
                accesses.into_iter().for_each(|access| caller.close(access));
            });
        }
    });
    let last = actor(0);
    take_down(&last);
    assert!(context.objects().is_empty(), "seed {seed}: {} objects", context.objects().len());
    assert_eq!(engine.accounts().pinned(), 0, "seed {seed}: pages are still pinned");
    assert_eq!(last.ioas(), Ok(1), "seed {seed}: the lowest id is free again");
    assert_eq!(context.close(), 0);
}

#[test]
fn whatever_the_order_nothing_is_left() {
    (1..=8).for_each(play);
}
