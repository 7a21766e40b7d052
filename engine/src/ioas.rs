//! The IOAS object: an I/O address space, and the commands that make and fill one.
//!
//! What it maps and who uses it is kept by [`crate::iopt`]; an [`Ioas`] is that state with an id.

use std::sync::Arc;
use std::time::Duration;

use ioctl_abi::iommufd::iommu_ioas_alloc;
use parking_lot::{Mutex, MutexGuard};

use crate::Errno;
use crate::call::Call;
use crate::inspect::{Detail, Scope};
use crate::iopt::State;
use crate::object::{Kind, Object};
use crate::quota::Quota;

pub(crate) mod map;
pub(crate) mod process;
pub(crate) mod ranges;

/// An I/O address space.
pub struct Ioas {
    id: u32,
    state: Mutex<State>,
}

impl Ioas {
    /// An empty one, which the object table will know as `id`.
    pub fn new(id: u32) -> Self {
        Self::within(id, None)
    }

    /// The same, with areas that are counted in `quota`.
    pub(crate) fn within(id: u32, quota: Option<Arc<Quota>>) -> Self {
        Self { id, state: Mutex::new(State::within(quota)) }
    }

    /// Its object id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The IOAS lock: second in the order of [`crate::context`].
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The same, unless a command holds it for longer than `patience`.
    pub(crate) fn lock_within(&self, patience: Duration) -> Option<MutexGuard<'_, State>> {
        self.state.try_lock_for(patience)
    }
}

impl Object for Ioas {
    fn kind(&self) -> Kind {
        Kind::Ioas
    }

    fn report(&self, scope: Scope) -> Detail {
        Detail::Ioas(self.report_areas(scope))
    }

    fn destroy(&self) {
        self.clear();
    }
}

/// `IOMMU_IOAS_ALLOC`.
pub(crate) fn alloc(call: &Call<'_>, command: &mut iommu_ioas_alloc) -> Result<(), Errno> {
    if command.flags != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let reserved = call.context.objects().reserve()?;
    command.out_ioas_id = reserved.id();
    let ioas = Arc::new(Ioas::within(reserved.id(), call.context.quota().cloned()));
    call.respond(command)?;
    reserved.commit(ioas);
    Ok(())
}
