//! Devices behind the mock IOMMU.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ioctl_abi::selftest::{
    IOMMU_HW_INFO_SELFTEST_REGVAL, IOMMU_HW_INFO_TYPE_SELFTEST, IOMMU_TEST_DEV_CACHE_DEFAULT,
    IOMMU_TEST_PASID_RESERVED, IOMMU_VEVENTQ_TYPE_SELFTEST, IOMMU_VIOMMU_TYPE_SELFTEST,
    MOCK_DEV_CACHE_NUM, MOCK_FLAGS_DEVICE_NO_DIRTY, MOCK_FLAGS_DEVICE_PASID, MOCK_PASID_WIDTH,
    iommu_test_hw_info, iommu_viommu_event_selftest,
};
use parking_lot::Mutex;
use zerocopy::IntoBytes;

use super::DRIVER;
use super::domain::MockDomain;
use super::nested::MockNested;
use super::viommu::MockViommu;
use crate::dma::Port;
use crate::driver::{
    DomainChange, Group, HwCapabilities, HwDomain, HwInfo, HwptFlags, IommuDevice, NO_PASID,
    NestedDomain, PageResponse, PagingDomain, ResponseCode, UserData, Viommu, ViommuHandle,
};
use crate::{Errno, inject};

bitflags::bitflags! {
    /// What a mock device can do: `MOCK_FLAGS_DEVICE_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceFlags: u32 {
        /// It cannot track dirty pages.
        const NO_DIRTY = MOCK_FLAGS_DEVICE_NO_DIRTY;
        /// It has PASIDs.
        const PASID = MOCK_FLAGS_DEVICE_PASID;
    }
}

/// A mock device, alone in its group. All are behind one mock IOMMU.
pub struct MockDevice {
    flags: DeviceFlags,
    group: Arc<Group>,
    cache: [AtomicU32; MOCK_DEV_CACHE_NUM as usize],
    /// The vIOMMU that the device is in while it is attached to a nested domain of one.
    viommu: Mutex<Option<(ViommuHandle, u64)>>,
    /// Whether the reserved PASID was attached before, so that it fails now.
    reserved_pasid_fails: AtomicBool,
    ports: Mutex<BTreeMap<u32, Arc<Port>>>,
}

impl MockDevice {
    /// A new device on the mock bus. `ENOMEM`.
    pub fn new(flags: DeviceFlags) -> Result<Arc<Self>, Errno> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        inject::site("mock: device")?;
        inject::site("mock: group")?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self {
            flags,
            group: Arc::new(Group::new(format!("iommufd_mock{number}"))),
            cache: std::array::from_fn(|_| AtomicU32::new(IOMMU_TEST_DEV_CACHE_DEFAULT)),
            viommu: Mutex::default(),
            reserved_pasid_fails: AtomicBool::new(false),
            ports: Mutex::default(),
        }))
    }

    /// `device`, if it is a mock device.
    pub fn of(device: &dyn IommuDevice) -> Option<&Self> {
        (device as &dyn Any).downcast_ref()
    }

    /// What cache entry `index` holds; 0 once it was invalidated.
    pub fn cache(&self, index: u32) -> Option<u32> {
        Some(self.cache.get(index as usize)?.load(Ordering::Relaxed))
    }

    /// Invalidates cache entry `index`, or all.
    pub(super) fn drop_cache(&self, index: Option<u32>) {
        for (at, entry) in (0..).zip(&self.cache) {
            if index.is_none_or(|index| index == at) {
                entry.store(0, Ordering::Relaxed);
            }
        }
    }

    /// An event of the device for the vIOMMU that it is in. `ENOENT` when it is in none,
    /// `EOPNOTSUPP` when the user has no queue for it, `ENOMEM`.
    pub fn trigger_event(&self) -> Result<(), Errno> {
        let viommu = self.viommu.lock().clone();
        // The mock takes a virtual id of 0 for none.
        let (handle, virt_id) = viommu.filter(|(_, id)| *id != 0).ok_or(Errno::ENOENT)?;
        let event = iommu_viommu_event_selftest { virt_id: virt_id as u32 };
        handle.report_event(IOMMU_VEVENTQ_TYPE_SELFTEST, event.as_bytes())
    }

    /// What the mock's hardware refuses. Nothing has changed then.
    fn check(&self, pasid: u32, domain: &HwDomain) -> Result<Option<(ViommuHandle, u64)>, Errno> {
        let viommu = match domain {
            HwDomain::Paging(domain) => {
                let domain = MockDomain::of(&**domain).ok_or(Errno::EINVAL)?;
                // The mock does not ask this of what a PASID gets.
                let must_track = pasid == NO_PASID && domain.tracks_dirty();
                if must_track && self.flags.contains(DeviceFlags::NO_DIRTY) {
                    return Err(Errno::EINVAL);
                }
                None
            }
            HwDomain::Nested(domain) => {
                let domain = (&**domain as &dyn Any).downcast_ref::<MockNested>();
                match domain.ok_or(Errno::EINVAL)?.viommu() {
                    // Nor whether the vIOMMU knows the device.
                    Some(handle) if pasid == NO_PASID => {
                        Some((handle.clone(), handle.virt_id(self)?))
                    }
                    _ => None,
                }
            }
        };
        // The suite's way to a driver that fails half-way: every second time.
        if pasid == IOMMU_TEST_PASID_RESERVED
            && self.reserved_pasid_fails.fetch_xor(true, Ordering::Relaxed)
        {
            return Err(Errno::ENOMEM);
        }
        Ok(viommu)
    }
}

impl IommuDevice for MockDevice {
    fn name(&self) -> String {
        self.group.name().to_owned()
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn instance(&self) -> u64 {
        0
    }

    fn group(&self) -> &Arc<Group> {
        &self.group
    }

    fn hw_info(&self, requested: u32) -> Result<Option<HwInfo>, Errno> {
        if requested != ioctl_abi::iommufd::IOMMU_HW_INFO_TYPE_DEFAULT
            && requested != IOMMU_HW_INFO_TYPE_SELFTEST
        {
            return Err(Errno::EOPNOTSUPP);
        }
        inject::site("mock: hw_info")?;
        let info = iommu_test_hw_info { flags: 0, test_reg: IOMMU_HW_INFO_SELFTEST_REGVAL };
        let data = info.as_bytes().to_vec();
        Ok(Some(HwInfo { data_type: IOMMU_HW_INFO_TYPE_SELFTEST, data }))
    }

    fn capabilities(&self) -> HwCapabilities {
        let mut capabilities = HwCapabilities::PCI_ATS_NOT_SUPPORTED;
        let dirty = !self.flags.contains(DeviceFlags::NO_DIRTY);
        capabilities.set(HwCapabilities::DIRTY_TRACKING, dirty);
        capabilities
    }

    fn max_pasid_log2(&self) -> u8 {
        if self.flags.contains(DeviceFlags::PASID) { MOCK_PASID_WIDTH as u8 } else { 0 }
    }

    fn alloc_paging(
        &self,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<dyn PagingDomain>, Errno> {
        let tracks = !self.flags.contains(DeviceFlags::NO_DIRTY);
        if flags.contains(HwptFlags::DIRTY_TRACKING) && !tracks {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(Arc::new(MockDomain::new(flags, data)?))
    }

    fn alloc_nested(
        &self,
        _parent: &Arc<dyn PagingDomain>,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedDomain>, Errno> {
        Ok(Arc::new(MockNested::new(flags, data, None)?))
    }

    fn set_domain(&self, pasid: u32, change: DomainChange<'_>) -> Result<(), Errno> {
        let viommu = match change.new {
            Some(domain) => self.check(pasid, domain)?,
            None => {
                if pasid == IOMMU_TEST_PASID_RESERVED {
                    self.reserved_pasid_fails.store(false, Ordering::Relaxed);
                }
                None
            }
        };
        if pasid == NO_PASID {
            let mut now = self.viommu.lock();
            // Another HWPT of the same vIOMMU changes nothing, not even its id there.
            let same =
                matches!((&*now, &viommu), (Some((before, _)), Some((new, _))) if before.is(new));
            if !same {
                *now = viommu;
            }
        }
        Ok(())
    }

    fn page_response(&self, response: PageResponse) {
        let port = self.ports.lock().get(&response.pasid.unwrap_or(NO_PASID)).cloned();
        if let Some(port) = port {
            port.answer(response.group_id, response.code == ResponseCode::Success);
        }
    }

    fn port(&self, pasid: u32) -> Option<Arc<Port>> {
        self.ports.lock().get(&pasid).cloned()
    }

    fn open_port(&self, pasid: u32) -> Option<Arc<Port>> {
        Some(self.ports.lock().entry(pasid).or_default().clone())
    }

    fn supports_viommu(&self, viommu_type: u32) -> bool {
        viommu_type == IOMMU_VIOMMU_TYPE_SELFTEST
    }

    fn viommu_init(
        &self,
        _viommu_type: u32,
        _parent: &Arc<dyn PagingDomain>,
        handle: ViommuHandle,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<dyn Viommu>, Errno> {
        Ok(Arc::new(MockViommu::new(handle, data)?))
    }
}
