//! An IOAS against a model that is a list, with every page's pins counted.

mod model;

use std::sync::Arc;

use ioctl_abi::iommufd::*;
use proptest::prelude::*;

use crate::domain::Domain;
use crate::memory::PAGE_SIZE;
use crate::pages::Transfer;
use crate::testing::TestDomain;
use crate::{Errno, inject};

use model::{BUFFER, RW, Step, World, step};

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            // What an access has pinned could not be unmapped.
            if matches!(step, Step::Unmap { .. } | Step::UnmapAll) {
                while !world.pinned.is_empty() {
                    world.run(&Step::Unpin)?;
                }
            }
            world.run(step)?;
            world.check()?;
        }
        while !world.pinned.is_empty() {
            world.run(&Step::Unpin)?;
        }
        world.ioas.remove_access(world.access);
        for domain in std::mem::take(&mut world.domains) {
            let domain: Arc<dyn Domain> = domain;
            world.ioas.detach_domain(&domain);
        }
        prop_assert_eq!(world.context.close(), 0);
        prop_assert_eq!(world.caller.memory.all_pins(), 0);
    }

    /// Whichever allocation fails, nothing is left of the call, and the next one works.
    #[test]
    fn a_failed_map_leaves_nothing(nth in 1..12_u64, domains in 0..3_usize) {
        let world = World::new();
        let attached: Vec<Arc<dyn Domain>> =
            (0..domains).map(|_| TestDomain::new(0..=u64::MAX, PAGE_SIZE) as _).collect();
        for domain in &attached {
            world.ioas.attach_domain(domain).unwrap();
        }
        let map = || {
            let mut map = iommu_ioas_map {
                flags: RW,
                ioas_id: world.ioas.id(),
                user_va: BUFFER,
                length: 5 * PAGE_SIZE,
                ..Default::default()
            };
            world.caller.call(&world.context, &mut map)
        };
        let (result, left) = inject::with_fail_nth(nth, map);
        prop_assert_eq!(result.is_err(), left.fired.is_some());
        if result.is_err() {
            prop_assert_eq!(world.caller.memory.all_pins(), 0);
            map().unwrap();
        }
        let pins = if domains > 0 { 5 } else { 0 };
        prop_assert_eq!(world.caller.memory.all_pins(), pins);
        for domain in &attached {
            world.ioas.detach_domain(domain);
        }
        prop_assert_eq!(world.caller.memory.all_pins(), 0);
    }
}

#[test]
fn accesses_copy_live_bytes_and_respect_rights() {
    let world = World::new();
    let mut map = iommu_ioas_map {
        flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_FIXED_IOVA,
        ioas_id: world.ioas.id(),
        user_va: BUFFER + 100,
        length: 3 * PAGE_SIZE,
        iova: 0x5000,
        ..Default::default()
    };
    world.caller.call(&world.context, &mut map).unwrap();
    let memory = &world.caller.memory;
    let message = [7; 5000];
    crate::memory::AddressSpace::write(&**memory, BUFFER + 600, &message).unwrap();
    let mut bytes = [0; 5000];
    let read = |bytes: &mut [u8]| world.ioas.copy_at(0x5000 + 500, Transfer::Read(bytes));
    read(&mut bytes).unwrap();
    assert_eq!(bytes, message);
    // Partly pinned: whom memory is reached for by way of pins finds the pinned page when the VA is
    // gone, who copies by address does not.
    let second = 0x5000 + PAGE_SIZE - 100;
    assert_eq!(world.ioas.pin_pages(second + 1, 1, false), Err(Errno::EINVAL));
    world.ioas.pin_pages(second, 1, false).unwrap();
    memory.unmap(BUFFER + PAGE_SIZE, 1);
    assert_eq!(read(&mut bytes), Err(Errno::EFAULT));
    bytes.fill(0);
    let by_pin =
        |bytes: &mut [u8]| world.ioas.copy_pinned_at(0x5000 + 500, Transfer::Read(bytes), None);
    by_pin(&mut bytes).unwrap();
    assert_eq!(bytes, message);
    world.ioas.unpin_pages(second, 1);
    assert_eq!(by_pin(&mut bytes), Err(Errno::EFAULT));
    let write = world.ioas.copy_at(0x5000, Transfer::Write(&[1]));
    assert_eq!(write, Err(Errno::EPERM));
    let past = world.ioas.copy_at(0x5000 + 3 * PAGE_SIZE - 1, Transfer::Read(&mut [0; 2]));
    assert_eq!(past, Err(Errno::ENOENT));
}

#[test]
fn allowed_ranges_that_touch_are_one() {
    let world = World::new();
    world.ioas.allow(vec![0x101_0000..=0x101_7fff, 0x101_8000..=0x201_7fff]).unwrap();
    let mut map = iommu_ioas_map {
        flags: IOMMU_IOAS_MAP_READABLE,
        ioas_id: world.ioas.id(),
        user_va: BUFFER,
        length: 9 * PAGE_SIZE,
        ..Default::default()
    };
    world.caller.call(&world.context, &mut map).unwrap();
    assert_eq!(map.iova, 0x101_0000, "across the border of the two");
}
