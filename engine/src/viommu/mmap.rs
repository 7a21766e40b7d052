//! What `mmap` of an iommufd finds: offsets that drivers gave out, each for one whole region.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::memory::PAGE_SIZE;
use crate::object::{Object, Use};
use crate::{Context, Errno, inject};

use super::handle::MmapMemory;

/// The regions of a context by offset. The first page is never given out, so that an offset is
/// never 0.
#[derive(Default)]
pub(crate) struct Mmaps {
    regions: Mutex<BTreeMap<u64, Region>>,
}

struct Region {
    owner: u32,
    memory: MmapMemory,
}

/// A region that the caller may map. Keeps its owner from being destroyed: the front end drops it
/// when the caller's last mapping of it is gone.
pub struct Mapping {
    memory: MmapMemory,
    _owner: Use<dyn Object>,
}

impl Mapping {
    /// The memory to map, whole and from its first byte.
    pub fn memory(&self) -> &MmapMemory {
        &self.memory
    }
}

/// How a caller wants to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapRequest {
    /// Bytes into the file, page aligned.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// `PROT_EXEC`.
    pub executable: bool,
}

impl Mmaps {
    /// Takes the lowest free offset that `memory` fits at.
    pub(crate) fn insert(&self, owner: u32, memory: MmapMemory) -> Result<u64, Errno> {
        inject::site("mmap: offset")?;
        let mut regions = self.regions.lock();
        let mut offset = PAGE_SIZE;
        for (&start, region) in regions.iter() {
            if start - offset >= memory.length() {
                break;
            }
            offset = start + region.memory.length();
        }
        offset.checked_add(memory.length()).ok_or(Errno::ENOMEM)?;
        regions.insert(offset, Region { owner, memory });
        Ok(offset)
    }

    pub(crate) fn remove(&self, offset: u64) {
        self.regions.lock().remove(&offset);
    }
}

impl Context {
    /// Answers `mmap` of the iommufd. `ENXIO` when the request is not exactly one region,
    /// `EINVAL` for a private mapping, `EPERM` for an executable one.
    pub fn mmap(&self, request: MmapRequest) -> Result<Mapping, Errno> {
        if !request.shared {
            return Err(Errno::EINVAL);
        }
        if request.executable {
            return Err(Errno::EPERM);
        }
        let length = request.length.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENXIO)?;
        let regions = self.mmaps().regions.lock();
        let region = regions.get(&request.offset).ok_or(Errno::ENXIO)?;
        if region.memory.length() != length {
            return Err(Errno::ENXIO);
        }
        let owner = self.objects().get_any(region.owner).map_err(|_| Errno::ENXIO)?;
        Ok(Mapping { memory: region.memory.clone(), _owner: owner })
    }
}
