//! Kernel pins of what this process has mapped: files of callers.
//!
//! A mapping alone shows the very pages, but the kernel may move them to other frames (compaction,
//! migration), and a frame that an IOPTE holds would be another page's then. Registered with a
//! ring of this process they stay where they are.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::Errno;
use engine::memory::PAGE_SIZE;

use super::pfn::Frames;
use super::private::Registered;
use super::ring::Ring;
use super::rings::{Grain, Rings};
use crate::caller::sys;

pub(super) const NO_IO_URING: &str = "io_uring is disabled";
const NO_ROOM: &str = "the RLIMIT_MEMLOCK of softiommu has no room for a pin";
const NOT_WRITABLE: &str = "a file that may not be written cannot be pinned from outside";

/// Sets of rings: a thread uses one, so that few wait for each other.
const SETS: usize = 8;

thread_local! {
    /// Which set this thread uses.
    static SET: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SETS)
    };
}

/// Why there is no kernel pin.
pub(super) enum Refusal {
    /// The pages cannot be pinned, by anybody.
    Pages(Errno),
    /// This way is closed.
    Way(&'static str),
}

/// The pins of this process.
#[derive(Default)]
pub(crate) struct Own {
    sets: [Rings; SETS],
    /// Why there are none.
    refused: OnceLock<&'static str>,
    /// Whether the kernel limits what it pins.
    limited: OnceLock<bool>,
}

impl Own {
    /// Pins `length` bytes of this process from `address`, a mapping that is `writable`, and adds
    /// their frames, as `look` (address, pages) does, to `frames`. `populate` (address, bytes) makes
    /// the pages that are missing, which takes a pin longer.
    pub(super) fn pin(
        &self,
        (address, length, grain): (u64, u64, Grain),
        writable: bool,
        frames: &mut Frames,
        populate: impl Fn(u64, u64) -> Result<(), Errno>,
        look: impl Fn(&mut Frames, u64, u64) -> Result<(), Errno>,
    ) -> Result<Registered, Refusal> {
        if let Some(why) = self.refused.get() {
            return Err(Refusal::Way(why));
        }
        if !writable {
            return Err(Refusal::Way(NOT_WRITABLE));
        }
        let limited =
            *self.limited.get_or_init(|| !sys::raise_memlock(std::process::id(), u64::MAX));
        let set = &self.sets[SET.get()];
        let pinned = set.slots(address, length, grain, Ring::own).and_then(|wanted| {
            let mut pinned = Registered::empty(address, grain, None);
            for one in wanted {
                populate(one.address, one.length)?;
                one.ring.register(one.slot, one.address, one.length)?;
                let (address, pages) = (one.address, one.length / PAGE_SIZE);
                pinned.push(one);
                look(frames, address, pages)?;
            }
            Ok(pinned)
        });
        pinned.map_err(|error| match error {
            Errno::ENOMEM if limited => Refusal::Way(NO_ROOM),
            Errno::EPERM | Errno::ENOSYS | Errno::EACCES => {
                Refusal::Way(self.refused.get_or_init(|| NO_IO_URING))
            }
            error => Refusal::Pages(error),
        })
    }
}
