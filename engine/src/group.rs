//! Groups of devices that an IOMMU cannot tell apart: owned by one context at a time, and attached
//! to one domain together.

use parking_lot::Mutex;

use crate::Errno;
use crate::file::ContextId;

/// An IOMMU group. Its driver makes one and all devices in it share it.
pub struct Group {
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The context that has devices of the group, and how many.
    owner: Option<(ContextId, usize)>,
}

impl Group {
    /// A group that nobody owns. `name` is for reports.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), state: Mutex::default() }
    }

    /// What the driver called it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One more device of the group is bound to `context`. `EBUSY` while another one has devices.
    pub(crate) fn claim(&self, context: ContextId) -> Result<(), Errno> {
        let mut state = self.state.lock();
        match &mut state.owner {
            Some((owner, devices)) if *owner == context => *devices += 1,
            Some(_) => return Err(Errno::EBUSY),
            none => *none = Some((context, 1)),
        }
        Ok(())
    }

    /// One device less.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock();
        match &mut state.owner {
            Some((_, devices)) if *devices > 1 => *devices -= 1,
            owner => *owner = None,
        }
    }
}
