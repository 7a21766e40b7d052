//! A second external driver, beside the selftest: a device that counts bytes.
//!
//! What a driver of a device does with the kAPI, from binding to unbinding, and what one without a
//! device does with an access. Neither needs a line in the engine.

mod common;

use std::sync::{Arc, Mutex, Weak};

use common::caller::{FIRST_PFN, FREE, TestCaller};
use common::iommu::TinyDevice;
use engine::driver::{HwDomain, NO_PASID};
use engine::kapi::{self, Access, AccessOps, Device, Lifetime};
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::iommufd::*;

/// The user's side: an IOAS with a page of data.
fn user() -> (TestCaller, Arc<Context>, u32) {
    let (caller, context) = (TestCaller::new(), Engine::new().open(Node::Iommu));
    let command = iommu_ioas_alloc { size: 12, ..Default::default() };
    let ioas_id = caller.ioctl(&context, IOMMU_IOAS_ALLOC, command).0.out_ioas_id;
    caller.put(FREE, &[1u8; 4096]);
    let command = iommu_ioas_map {
        size: size_of::<iommu_ioas_map>() as u32,
        flags: IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        ioas_id,
        user_va: FREE,
        length: 4096,
        iova: 0x10_0000,
        ..Default::default()
    };
    caller.ioctl(&context, IOMMU_IOAS_MAP, command).1.unwrap();
    (caller, context, ioas_id)
}

fn unmap(caller: &TestCaller, context: &Arc<Context>, ioas_id: u32) -> Result<i64, Errno> {
    let command = iommu_ioas_unmap { size: 24, ioas_id, iova: 0x10_0000, length: 4096 };
    caller.ioctl(context, IOMMU_IOAS_UNMAP, command).1
}

#[test]
fn a_driver_of_a_device() {
    let (caller, context, ioas) = user();
    let hardware = Arc::new(TinyDevice::new("counter"));
    let device = Device::bind(&context, hardware, Lifetime::HoldsContext).unwrap();
    let hwpt = device.attach(NO_PASID, ioas).unwrap();
    let HwDomain::Paging(domain) = kapi::domain(&context, hwpt).unwrap() else { panic!("nested") };
    let frame = FIRST_PFN + (FREE - common::caller::BASE) / 4096;
    assert_eq!(domain.translate(0x10_0010), Some(frame * 4096 + 0x10));
    unmap(&caller, &context, ioas).unwrap();
    assert_eq!(domain.translate(0x10_0010), None);
    // The user goes first; the context ends with the driver.
    assert_eq!(context.close(), 0);
    device.unbind();
    assert!(context.objects().is_empty());
}

/// A driver that keeps pages pinned until it is told to let go.
struct Pinner {
    access: Mutex<Weak<Access>>,
    pinned: Mutex<Vec<(u64, u64)>>,
}

impl AccessOps for Pinner {
    fn pins(&self) -> bool {
        true
    }

    fn unmap(&self, iova: u64, length: u64) {
        let Some(access) = self.access.lock().unwrap().upgrade() else { return };
        let last = iova.saturating_add(length - 1);
        self.pinned.lock().unwrap().retain(|&(start, bytes)| {
            let apart = start > last || start + (bytes - 1) < iova;
            if !apart {
                access.unpin(start, bytes);
            }
            apart
        });
    }
}

#[test]
fn a_driver_without_a_device() {
    let (caller, context, ioas) = user();
    let pinner = Arc::new(Pinner { access: Mutex::default(), pinned: Mutex::default() });
    let access = Access::create(&context, pinner.clone(), Lifetime::HoldsContext).unwrap();
    let access = Arc::new(access);
    *pinner.access.lock().unwrap() = Arc::downgrade(&access);
    assert_eq!(access.pin(0x10_0000, 4096, true).err(), Some(Errno::ENOENT));
    access.attach(ioas).unwrap();
    assert_eq!(access.attach(ioas), Err(Errno::EINVAL));
    let pages = access.pin(0x10_0000, 4096, true).unwrap();
    assert_eq!(pages.frames.iter().map(|(_, count)| count).sum::<u64>(), 1);
    pinner.pinned.lock().unwrap().push((0x10_0000, 4096));
    access.write(0x10_0004, &[7; 4]).unwrap();
    assert_eq!(caller.get::<[u8; 12]>(FREE), [1, 1, 1, 1, 7, 7, 7, 7, 1, 1, 1, 1]);
    assert_eq!(unmap(&caller, &context, ioas), Ok(0));
    assert!(pinner.pinned.lock().unwrap().is_empty());
    assert_eq!(access.read(0x10_0000, &mut [0]), Err(Errno::ENOENT));
    context.close();
    assert!(!context.objects().is_empty());
    drop(access);
    assert!(context.objects().is_empty());
}
