//! A whole IOMMU driver, as small as one can be that has everything: paging and nested domains,
//! PASIDs, faults, vIOMMUs with events, hardware queues and memory to map. Nothing of it touches
//! the engine's own files.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use engine::Errno;
use engine::domain::{DirtySink, Domain, Prot};
use engine::driver::{
    DomainChange, Group, HwCapabilities, HwDomain, HwInfo, HwQueueRequest, HwptFlags, IommuDevice,
    MmapMemory, NestedDomain, NewHwQueue, PageResponse, PagingDomain, ReservedRegion, UserArray,
    UserData, Viommu, ViommuHandle,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The type of everything that is specific to this driver.
pub const TYPE: u32 = 0xabcd;

/// The driver's struct of a nested domain, of a vIOMMU and of an invalidation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Payload {
    /// What the driver is given.
    pub value: u32,
    /// Since the second version of the struct; comes back.
    pub answer: u32,
}

/// Bytes of the struct's first version.
pub const FIRST_VERSION: usize = 4;

/// A device behind the IOMMU.
pub struct TinyDevice {
    pub name: &'static str,
    pub group: Arc<Group>,
    pub instance: u64,
    pub pasid_bits: u8,
    pub dirty: bool,
    pub reserved: Vec<ReservedRegion>,
    /// Refuses the next attach with this.
    pub refuse: Mutex<Option<Errno>>,
    pub attached: Mutex<BTreeMap<u32, HwDomain>>,
    pub responses: Mutex<Vec<PageResponse>>,
}

impl TinyDevice {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            group: Arc::new(Group::new(name)),
            instance: 0,
            pasid_bits: 0,
            dirty: true,
            reserved: Vec::new(),
            refuse: Mutex::default(),
            attached: Mutex::default(),
            responses: Mutex::default(),
        }
    }
}

impl IommuDevice for TinyDevice {
    fn name(&self) -> String {
        self.name.into()
    }
    fn driver(&self) -> &'static str {
        "tiny"
    }
    fn instance(&self) -> u64 {
        self.instance
    }
    fn group(&self) -> &Arc<Group> {
        &self.group
    }
    fn hw_info(&self, requested: u32) -> Result<Option<HwInfo>, Errno> {
        match requested {
            0 | TYPE => Ok(Some(HwInfo { data_type: TYPE, data: vec![0x11; 8] })),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
    fn capabilities(&self) -> HwCapabilities {
        let dirty = HwCapabilities::DIRTY_TRACKING;
        if self.dirty { dirty } else { HwCapabilities::empty() }
    }
    fn max_pasid_log2(&self) -> u8 {
        self.pasid_bits
    }
    fn reserved_regions(&self) -> Result<Vec<ReservedRegion>, Errno> {
        Ok(self.reserved.clone())
    }
    fn alloc_paging(
        &self,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<dyn PagingDomain>, Errno> {
        engine::inject::site("tiny: domain")?;
        if data.is_some() {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(Arc::new(TinyDomain {
            enforces_dirty: flags.contains(HwptFlags::DIRTY_TRACKING),
            ..TinyDomain::default()
        }))
    }
    fn alloc_nested(
        &self,
        _parent: &Arc<dyn PagingDomain>,
        _flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedDomain>, Errno> {
        nested(data)
    }
    fn set_domain(&self, pasid: u32, change: DomainChange<'_>) -> Result<(), Errno> {
        let refused = self.refuse.lock().unwrap().take_if(|_| change.new.is_some());
        if let Some(error) = refused {
            return Err(error);
        }
        let mut attached = self.attached.lock().unwrap();
        assert!(match (attached.get(&pasid), change.old) {
            (Some(a), Some(b)) => a.is(b),
            (None, None) => true,
            _ => false,
        });
        if let Some(HwDomain::Paging(domain)) = change.new {
            let domain: Arc<dyn Any + Send + Sync> = domain.clone();
            let domain = domain.downcast::<TinyDomain>().map_err(|_| Errno::EINVAL)?;
            if domain.enforces_dirty && !self.dirty {
                return Err(Errno::EINVAL);
            }
        }
        match change.new {
            Some(new) => attached.insert(pasid, new.clone()),
            None => attached.remove(&pasid),
        };
        Ok(())
    }
    fn page_response(&self, response: PageResponse) {
        self.responses.lock().unwrap().push(response);
    }
    fn supports_viommu(&self, viommu_type: u32) -> bool {
        viommu_type == TYPE
    }
    fn viommu_init(
        &self,
        viommu_type: u32,
        _parent: &Arc<dyn PagingDomain>,
        handle: ViommuHandle,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<dyn Viommu>, Errno> {
        if let Some(data) = data {
            let mut payload: Payload = data.read(viommu_type, FIRST_VERSION)?;
            let memory = MmapMemory::new(2 * 4096)?;
            memory.write(0, payload.value.as_bytes())?;
            payload.answer = handle.alloc_mmap(memory)? as u32;
            data.write(viommu_type, &payload, FIRST_VERSION)?;
        }
        Ok(Arc::new(TinyViommu { handle, invalidated: Mutex::default() }))
    }
}

/// A page table that is a map of runs.
#[derive(Default)]
pub struct TinyDomain {
    enforces_dirty: bool,
    tracking: AtomicBool,
    runs: Mutex<BTreeMap<u64, (u64, u64)>>,
    dirty: Mutex<BTreeMap<u64, u64>>,
}

impl TinyDomain {
    /// A device writes: the page is dirty from now on, if anybody asked.
    pub fn touch(&self, iova: u64) {
        if self.tracking.load(Ordering::Relaxed) {
            self.dirty.lock().unwrap().insert(iova & !0xfff, 0x1000);
        }
    }
}

impl Domain for TinyDomain {
    fn aperture(&self) -> RangeInclusive<u64> {
        0..=(1 << 40) - 1
    }
    fn page_sizes(&self) -> u64 {
        0x1000
    }
    fn map(&self, iova: u64, at: u64, length: u64, _: Prot, _: u64) -> Result<(), Errno> {
        engine::inject::site("tiny: map")?;
        self.runs.lock().unwrap().insert(iova, (at, length));
        Ok(())
    }
    fn unmap(&self, iova: u64, length: u64) {
        self.runs.lock().unwrap().retain(|&at, _| at < iova || at - iova >= length);
    }
    fn translate(&self, iova: u64) -> Option<u64> {
        let runs = self.runs.lock().unwrap();
        let (&start, &(at, length)) = runs.range(..=iova).next_back()?;
        (iova - start < length).then(|| at + (iova - start))
    }
    fn read_dirty(&self, iova: u64, length: u64, clear: bool, each: &mut DirtySink<'_>) {
        let mut dirty = self.dirty.lock().unwrap();
        dirty.retain(|&at, &mut run| {
            let inside = at >= iova && at - iova < length;
            if inside {
                each(at, run);
            }
            !(inside && clear)
        });
    }
    fn set_dirty_tracking(&self, enable: bool) -> Result<(), Errno> {
        self.tracking.store(enable, Ordering::Relaxed);
        Ok(())
    }
}

impl PagingDomain for TinyDomain {
    fn tracks_dirty(&self) -> bool {
        true
    }
}

/// A nested domain with one cache, which holds what it was made with until it is invalidated.
pub struct TinyNested {
    pub cached: Mutex<u32>,
}

fn nested(data: &UserData<'_>) -> Result<Arc<dyn NestedDomain>, Errno> {
    if data.data_type() != TYPE {
        return Err(Errno::EOPNOTSUPP);
    }
    let payload: Payload = data.read(TYPE, FIRST_VERSION)?;
    Ok(Arc::new(TinyNested { cached: Mutex::new(payload.value) }))
}

impl NestedDomain for TinyNested {
    fn invalidates(&self) -> bool {
        true
    }
    fn invalidate(&self, requests: &UserArray<'_>) -> (u32, Result<(), Errno>) {
        each(requests, |payload| {
            *self.cached.lock().unwrap() = payload.value;
            Ok(())
        })
    }
}

fn each(
    requests: &UserArray<'_>,
    mut one: impl FnMut(Payload) -> Result<(), Errno>,
) -> (u32, Result<(), Errno>) {
    if requests.data_type() != TYPE {
        return (0, Err(Errno::EINVAL));
    }
    for index in 0..requests.len() {
        if let Err(error) = requests.read(TYPE, index, FIRST_VERSION).and_then(&mut one) {
            return (index, Err(error));
        }
    }
    (requests.len(), Ok(()))
}

/// A vIOMMU.
pub struct TinyViommu {
    pub handle: ViommuHandle,
    pub invalidated: Mutex<Vec<u32>>,
}

impl Viommu for TinyViommu {
    fn alloc_nested(
        &self,
        _flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedDomain>, Errno> {
        nested(data)
    }
    fn invalidates(&self) -> bool {
        true
    }
    fn invalidate(&self, requests: &UserArray<'_>) -> (u32, Result<(), Errno>) {
        each(requests, |payload| {
            self.handle.device(payload.value.into()).ok_or(Errno::EINVAL)?;
            self.invalidated.lock().unwrap().push(payload.value);
            Ok(())
        })
    }
    fn vdevice_init(&self, device: &Arc<dyn IommuDevice>, virt_id: u64) -> Result<(), Errno> {
        assert_eq!(self.handle.virt_id(&**device), Ok(virt_id));
        // So that the test sees an event that a device caused.
        self.handle.report_event(TYPE, &(virt_id as u32).to_le_bytes()).or(Ok(()))
    }
    fn supports_hw_queue(&self, queue_type: u32) -> bool {
        queue_type == TYPE
    }
    fn hw_queue_init(&self, queue: &HwQueueRequest) -> Result<NewHwQueue, Errno> {
        let depends_on = queue.index.checked_sub(1);
        Ok(NewHwQueue { queue: Box::new(*queue), depends_on })
    }
}
