//! The file that stands for an access: it lives as long as the caller keeps a descriptor.

use std::any::Any;
use std::mem::offset_of;
use std::sync::{Arc, Weak};

use ioctl_abi::selftest::{
    MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES, iommu_test_cmd, iommu_test_create_access,
};
use parking_lot::{Mutex, MutexGuard};

use crate::call::Call;
use crate::caller::CallerFile;
use crate::file::EngineFile;
use crate::kapi::{Access, AccessOps, Lifetime, PinnedPages};
use crate::kept::Opens;
use crate::{Errno, inject};

/// An access of the selftest.
pub(super) struct AccessFile {
    /// Nothing once the file was released.
    access: Mutex<Option<Arc<Access>>>,
    pins: Arc<Mutex<Pins>>,
    opens: Opens,
}

/// What is pinned.
///
/// The lock is held while pages are pinned, so that an unmap finds either no pin or a pin that it
/// can call in. It comes after the serial lock and before the IOAS's.
#[derive(Default)]
pub(super) struct Pins {
    /// Who unpins. Nothing before the file is complete and after its release.
    access: Weak<Access>,
    list: Vec<Pin>,
    next_id: u32,
}

/// A range that was pinned.
struct Pin {
    id: u32,
    iova: u64,
    length: u64,
}

/// The access's side that hears of unmaps.
struct Ops {
    pins: bool,
    list: Arc<Mutex<Pins>>,
}

impl AccessOps for Ops {
    fn pins(&self) -> bool {
        self.pins
    }

    fn unmap(&self, iova: u64, length: u64) {
        self.list.lock().call_in(iova, length);
    }
}

impl Pins {
    /// Pins a range, has `check` look at it and `tell` tell the caller its id. An error undoes it, but
    /// for an id that could not be told, which is not used again.
    pub(super) fn pin(
        &mut self,
        (iova, length): (u64, u64),
        write: bool,
        check: impl FnOnce(&PinnedPages) -> Result<(), Errno>,
        tell: impl FnOnce(u32) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let access = self.access.upgrade().ok_or(Errno::EBADFD)?;
        inject::site("selftest: access pages")?;
        let pages = access.pin(iova, length, write)?;
        check(&pages).inspect_err(|_| access.unpin(iova, length))?;
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        tell(id).inspect_err(|_| access.unpin(iova, length))?;
        self.list.push(Pin { id, iova, length });
        Ok(())
    }

    /// Unpins what [`Pins::pin`] gave `id`. `ENOENT`.
    pub(super) fn unpin(&mut self, id: u32) -> Result<(), Errno> {
        let at = self.list.iter().position(|pin| pin.id == id).ok_or(Errno::ENOENT)?;
        let pin = self.list.swap_remove(at);
        if let Some(access) = self.access.upgrade() {
            access.unpin(pin.iova, pin.length);
        }
        Ok(())
    }

    /// Unpins what overlaps a range.
    fn call_in(&mut self, iova: u64, length: u64) {
        let Some(access) = self.access.upgrade() else { return };
        let last = iova.saturating_add(length.saturating_sub(1));
        self.list.retain(|pin| {
            let apart = pin.iova > last || pin.iova + (pin.length - 1) < iova;
            if !apart {
                access.unpin(pin.iova, pin.length);
            }
            apart
        });
    }
}

/// `IOMMU_TEST_OP_CREATE_ACCESS`.
pub(super) fn create(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_create_access = command.body();
    if body.flags & !MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    inject::site("selftest: access file")?;
    let pins = body.flags & MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES != 0;
    let list = Arc::<Mutex<Pins>>::default();
    let ops = Arc::new(Ops { pins, list: list.clone() });
    let access = Arc::new(Access::create(call.context, ops, Lifetime::HoldsContext)?);
    access.attach(command.id)?;
    list.lock().access = Arc::downgrade(&access);
    let file = Arc::new(AccessFile {
        access: Mutex::new(Some(access)),
        pins: list,
        opens: Opens::default(),
    });
    let number =
        offset_of!(iommu_test_cmd, body) + offset_of!(iommu_test_create_access, out_access_fd);
    let number_at = call.arg.checked_add(number as u64).ok_or(Errno::EFAULT)?;
    call.caller.install(file.clone(), number_at).inspect_err(|_| file.release())
}

impl AccessFile {
    /// The access behind the caller's descriptor `fd`. `EBADFD` when it is none.
    pub(super) fn get(call: &Call<'_>, fd: u32) -> Result<Arc<Self>, Errno> {
        match call.caller.file(fd as i32) {
            Ok(CallerFile::Engine(file)) => file.into_any().downcast().map_err(|_| Errno::EBADFD),
            _ => Err(Errno::EBADFD),
        }
    }

    /// The access itself. `EBADFD` once the file was released.
    pub(super) fn access(&self) -> Result<Arc<Access>, Errno> {
        self.access.lock().clone().ok_or(Errno::EBADFD)
    }

    /// What is pinned; no unmap calls pins in while the answer lives.
    pub(super) fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock()
    }
}

impl EngineFile for AccessFile {
    fn name(&self) -> &'static str {
        "[iommufd_test_staccess]"
    }

    fn writable(&self) -> bool {
        true
    }

    fn only_names(&self) -> bool {
        true
    }

    fn opens(&self) -> Option<&Opens> {
        Some(&self.opens)
    }

    fn end(&self) {
        let access = self.access.lock().take();
        {
            let mut pins = self.pins.lock();
            pins.call_in(0, u64::MAX);
            pins.access = Weak::new();
        }
        drop(access);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
