//! Accesses: how a driver without a device of its own reaches the memory of an IOAS.

use std::sync::Arc;

use crate::context::Hold;
use crate::device::Lifetime;
use crate::object::{Kind, Object, Use};
use crate::{Context, Errno};

/// What the owner of an access answers for.
pub trait AccessOps: Send + Sync {
    /// Whether it pins pages. If so, IOVAs must be page aligned in every IOAS that it is attached
    /// to.
    fn pins(&self) -> bool;

    /// The range is about to be unmapped, or the access to leave its IOAS (the range is then
    /// everything): pins that overlap it must be gone when this returns. May call
    /// [`Access::unpin`].
    fn unmap(&self, iova: u64, length: u64);
}

/// An access, as its driver holds it. Dropping it detaches and destroys it.
pub struct Access {
    context: Arc<Context>,
    object: Option<Use<AccessObject>>,
    _hold: Option<Hold>,
}

/// The object behind an [`Access`].
struct AccessObject {
    id: u32,
    ops: Arc<dyn AccessOps>,
}

/// The physical memory behind a pinned range, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinnedPages {
    /// Runs of frames: the first PFN and how many follow each other.
    pub frames: Vec<(u64, u64)>,
}

impl Access {
    /// An access that is attached to nothing. `ENOMEM`.
    pub fn create(
        context: &Arc<Context>,
        ops: Arc<dyn AccessOps>,
        lifetime: Lifetime,
    ) -> Result<Self, Errno> {
        let _serial = context.serial();
        let reserved = context.objects().reserve()?;
        let id = reserved.id();
        let object = reserved.commit_used(Arc::new(AccessObject { id, ops }));
        let hold = (lifetime == Lifetime::HoldsContext).then(|| context.hold());
        Ok(Self { context: context.clone(), object: Some(object), _hold: hold })
    }

    /// The object id.
    pub fn id(&self) -> u32 {
        self.object().id
    }

    /// Whether it was made to pin pages.
    pub fn pins(&self) -> bool {
        self.object().ops.pins()
    }

    /// Attaches it to IOAS `ioas_id`. `ENOENT`, `EINVAL` when it is attached already, `ENOMEM`.
    pub fn attach(&self, ioas_id: u32) -> Result<(), Errno> {
        let _serial = self.context.serial();
        let _ = ioas_id;
        Err(Errno::ENOSYS)
    }

    /// Moves it to IOAS `ioas_id`: all pins of the old one are called in first. `ENOENT` when it
    /// is not attached or there is no such IOAS, `ENOMEM`.
    pub fn replace(&self, ioas_id: u32) -> Result<(), Errno> {
        let _serial = self.context.serial();
        let _ = ioas_id;
        Err(Errno::ENOSYS)
    }

    /// Detaches it, after all its pins were called in.
    pub fn detach(&self) {
        let _serial = self.context.serial();
    }

    /// Pins `length` bytes at `iova`: their pages stay, and stay where they are, until
    /// [`Access::unpin`]. The same range may be pinned several times.
    ///
    /// `EINVAL` for no length, a range that areas do not let be split at pages, or an access that
    /// was not made to pin; `EOVERFLOW`; `ENOENT` when it is not attached or something is not
    /// mapped; `EPERM` when it asks to `write` what is mapped read-only; `ENOMEM`.
    pub fn pin(&self, iova: u64, length: u64, write: bool) -> Result<PinnedPages, Errno> {
        let _ = (iova, length, write);
        Err(Errno::ENOSYS)
    }

    /// Undoes one [`Access::pin`] of exactly this range.
    pub fn unpin(&self, iova: u64, length: u64) {
        let _ = (iova, length);
    }

    /// Copies from `iova`. `EINVAL` for no length, `EOVERFLOW`, `ENOENT` when something is not
    /// mapped, `EPERM`, `EFAULT`, `ENOMEM`.
    pub fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        let _ = (iova, into);
        Err(Errno::ENOSYS)
    }

    /// Copies to `iova`. Errors as [`Access::read`]'s.
    pub fn write(&self, iova: u64, from: &[u8]) -> Result<(), Errno> {
        let _ = (iova, from);
        Err(Errno::ENOSYS)
    }

    fn object(&self) -> &Use<AccessObject> {
        // Taken out only while dropping.
        self.object.as_ref().expect("an access")
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let _serial = self.context.serial();
        let Some(object) = self.object.take() else { return };
        let id = object.id;
        drop(object);
        self.context.objects().remove(id);
    }
}

impl Object for AccessObject {
    fn kind(&self) -> Kind {
        Kind::Access
    }
}
