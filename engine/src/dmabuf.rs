//! A dma-buf: memory of a device that `IOMMU_IOAS_MAP_FILE` maps without pinning, and that its
//! exporter can take back at any time.
//!
//! When it is revoked its frames leave every domain at once. The areas stay, empty, until they are
//! unmapped; mapping it anew works once the exporter allows it again.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::Errno;
use crate::file::{EngineFile, PollEvents};
use crate::ioas::Ioas;
use crate::memory::{BackingFile, PAGE_SIZE, Pin};

/// The buffer, shared by its exporter and all who map it.
pub struct Dmabuf {
    length: u64,
    physical: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revoked: bool,
    importers: Vec<Weak<Ioas>>,
}

impl Dmabuf {
    /// `length` bytes of a device, in one piece, at physical addresses that no memory has.
    pub fn new(length: u64) -> Arc<Self> {
        /// Above all memory, and within the 51 bits of a physical address that the mock IOMMU has.
        static NEXT: AtomicU64 = AtomicU64::new(1 << 50);
        let pages = length.div_ceil(PAGE_SIZE).max(1);
        let physical = NEXT.fetch_add(pages * PAGE_SIZE, Ordering::Relaxed);
        Arc::new(Self { length, physical, state: Mutex::default() })
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The physical address of the first byte.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Takes the buffer back, or allows it to be mapped again. Once this returns no domain
    /// translates to it, in either case: what mapped it before is told that it has moved. Must not be
    /// called with the lock of an IOAS held.
    pub fn revoke(self: &Arc<Self>, revoked: bool) {
        let importers = {
            let mut state = self.state.lock();
            state.revoked = revoked;
            std::mem::take(&mut state.importers)
        };
        for ioas in importers.iter().filter_map(Weak::upgrade) {
            ioas.revoke(self);
        }
    }

    /// Whether the exporter has taken it back.
    pub fn revoked(&self) -> bool {
        self.state.lock().revoked
    }

    /// Notes that `ioas` maps it. `ENODEV` while it is revoked.
    pub(crate) fn import(&self, ioas: &Arc<Ioas>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        if state.revoked {
            return Err(Errno::ENODEV);
        }
        let ioas = Arc::downgrade(ioas);
        state.importers.retain(|known| known.strong_count() > 0);
        if !state.importers.iter().any(|known| known.ptr_eq(&ioas)) {
            state.importers.push(ioas);
        }
        Ok(())
    }
}

/// The descriptor of a dma-buf, for [`crate::caller::Caller::install_as_result`].
pub struct DmabufFile {
    dmabuf: Arc<Dmabuf>,
}

impl DmabufFile {
    /// A file of `dmabuf`.
    pub fn new(dmabuf: Arc<Dmabuf>) -> Arc<Self> {
        Arc::new(Self { dmabuf })
    }

    /// What it is a file of.
    pub fn dmabuf(&self) -> &Arc<Dmabuf> {
        &self.dmabuf
    }
}

impl EngineFile for DmabufFile {
    fn name(&self) -> &'static str {
        "dmabuf"
    }

    fn writable(&self) -> bool {
        true
    }

    fn only_names(&self) -> bool {
        true
    }

    fn poll(&self) -> PollEvents {
        PollEvents::IN | PollEvents::OUT
    }

    fn backing(&self) -> Option<Arc<dyn BackingFile>> {
        Some(Arc::new(Backing { dmabuf: self.dmabuf.clone() }))
    }

    fn end(&self) {}

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

struct Backing {
    dmabuf: Arc<Dmabuf>,
}

impl BackingFile for Backing {
    fn describe(&self) -> String {
        "dma-buf".to_owned()
    }

    fn writable(&self) -> bool {
        true
    }

    fn pinnable(&self) -> bool {
        false
    }

    fn size(&self) -> u64 {
        self.dmabuf.length
    }

    fn pin(&self, _: u64, _: u64, _: bool) -> Result<Arc<dyn Pin>, Errno> {
        Err(Errno::EINVAL)
    }

    fn dmabuf(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.dmabuf.clone())
    }
}
