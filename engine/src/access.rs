//! Accesses: how a driver without a device of its own reaches the memory of an IOAS.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::context::Hold;
use crate::device::Lifetime;
use crate::inspect::{Detail, Scope};
use crate::ioas::Ioas;
use crate::iopt::AccessUser;
use crate::iopt::access::AccessId;
use crate::memory::MmId;
use crate::object::{Kind, Object, Use};
use crate::pages::Transfer;
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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where it can pin and copy.
    attached: Option<Attached>,
    /// Where its pins are: longer than `attached`, so that they can be undone while it leaves.
    pinned_in: Option<Attached>,
}

#[derive(Clone)]
struct Attached {
    ioas: Use<Ioas>,
    access: AccessId,
}

/// Passes the IOAS's calls on to the access's owner.
struct Callback(Arc<dyn AccessOps>);

impl AccessUser for Callback {
    fn unmap(&self, iova: u64, length: u64) {
        self.0.unmap(iova, length);
    }
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
        let object =
            reserved.commit_used(Arc::new(AccessObject { id, ops, state: Mutex::default() }));
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

    /// Attaches it to IOAS `ioas_id`. `ENOENT`, `EINVAL` when it is attached already,
    /// `EADDRINUSE` when it pins and something there is not page aligned, `ENOMEM`.
    pub fn attach(&self, ioas_id: u32) -> Result<(), Errno> {
        let _serial = self.context.serial();
        if self.object().state.lock().pinned_in.is_some() {
            return Err(Errno::EINVAL);
        }
        self.change(Some(ioas_id))
    }

    /// Moves it to IOAS `ioas_id`: all pins of the old one are called in first. `ENOENT` when it
    /// is not attached or there is no such IOAS, else as [`Access::attach`].
    pub fn replace(&self, ioas_id: u32) -> Result<(), Errno> {
        let _serial = self.context.serial();
        if self.object().state.lock().attached.is_none() {
            return Err(Errno::ENOENT);
        }
        self.change(Some(ioas_id))
    }

    /// Detaches it, after all its pins were called in. Nothing happens when it is not attached.
    pub fn detach(&self) {
        let _serial = self.context.serial();
        if let Err(error) = self.change(None) {
            tracing::warn!(access = self.id(), %error, "detach failed");
        }
    }

    /// Leaves its IOAS, if it is in one, for `ioas_id`, or for none.
    fn change(&self, ioas_id: Option<u32>) -> Result<(), Errno> {
        let object = self.object();
        let new = match ioas_id {
            Some(id) => Some(self.context.objects().get::<Ioas>(id)?),
            None => None,
        };
        let old = object.state.lock().attached.take();
        let stays = matches!((&old, &new), (Some(old), Some(new)) if old.ioas.id() == new.id());
        let joined = match new {
            Some(_) if stays => Ok(old.clone()),
            Some(ioas) => {
                let access = ioas.add_access(Arc::new(Callback(object.ops.clone())), self.pins());
                access.map(|access| Some(Attached { ioas, access }))
            }
            None => Ok(None),
        };
        let new = match joined {
            Ok(new) => new,
            Err(error) => {
                object.state.lock().attached = old;
                return Err(error);
            }
        };
        if let Some(old) = old.filter(|_| !stays) {
            object.ops.unmap(0, u64::MAX);
            old.ioas.remove_access(old.access);
        }
        *object.state.lock() = State { attached: new.clone(), pinned_in: new };
        Ok(())
    }

    /// Pins `length` bytes at `iova`: their pages stay, and stay where they are, until
    /// [`Access::unpin`]. The same range may be pinned several times.
    ///
    /// `EINVAL` for no length, a range that areas do not let be split at pages, or an access that
    /// was not made to pin; `EOVERFLOW`; `ENOENT` when it is not attached or something is not
    /// mapped; `EPERM` when it asks to `write` what is mapped read-only; `ENOMEM`.
    ///
    /// A driver that pins while the user may unmap holds a lock of its own from here until it has
    /// noted the pin, and in [`AccessOps::unmap`]: else a pin could be missed there.
    pub fn pin(&self, iova: u64, length: u64, write: bool) -> Result<PinnedPages, Errno> {
        if !self.pins() {
            return Err(Errno::EINVAL);
        }
        let runs = self.attached()?.ioas.pin_pages(iova, length, write)?;
        Ok(PinnedPages { frames: runs.iter().map(|run| (run.first, run.count)).collect() })
    }

    /// Undoes one [`Access::pin`] of exactly this range.
    pub fn unpin(&self, iova: u64, length: u64) {
        let pinned_in = self.object().state.lock().pinned_in.clone();
        if let Some(pinned_in) = pinned_in {
            pinned_in.ioas.unpin_pages(iova, length);
        }
    }

    /// Copies from `iova`. `EINVAL` for no length, `EOVERFLOW`, `ENOENT` when something is not
    /// mapped, `EPERM`, `EFAULT`, `ENOMEM`.
    pub fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.attached()?.ioas.copy_at(iova, Transfer::Read(into))
    }

    /// Copies to `iova`. Errors as [`Access::read`]'s.
    pub fn write(&self, iova: u64, from: &[u8]) -> Result<(), Errno> {
        self.attached()?.ioas.copy_at(iova, Transfer::Write(from))
    }

    /// [`Access::read`] for a caller of this mm, who reaches others' memory by way of pins; without
    /// one, all memory.
    pub fn read_pinned(&self, iova: u64, into: &mut [u8], of: Option<MmId>) -> Result<(), Errno> {
        self.attached()?.ioas.copy_pinned_at(iova, Transfer::Read(into), of)
    }

    /// [`Access::write`] in the same way.
    pub fn write_pinned(&self, iova: u64, from: &[u8], of: Option<MmId>) -> Result<(), Errno> {
        self.attached()?.ioas.copy_pinned_at(iova, Transfer::Write(from), of)
    }

    /// What a fuzzer means by `iova`, which cannot know what IOVAs there are: the low half counts the
    /// areas, the high half is an offset into one. 0 where there is none.
    pub(crate) fn nth_area(&self, iova: u64) -> u64 {
        self.attached().map_or(0, |attached| attached.ioas.nth_area(iova))
    }

    /// Where it can pin and copy. `ENOENT` when it is attached to nothing.
    fn attached(&self) -> Result<Attached, Errno> {
        self.object().state.lock().attached.clone().ok_or(Errno::ENOENT)
    }

    fn object(&self) -> &Use<AccessObject> {
        // Taken out only while dropping.
        self.object.as_ref().expect("an access")
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let _serial = self.context.serial();
        self.detach();
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

    fn report(&self, _: Scope) -> Detail {
        let ioas = self.state.lock().attached.as_ref().map(|attached| attached.ioas.id());
        Detail::Access { ioas, pins: self.ops.pins() }
    }
}
