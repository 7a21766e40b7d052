//! The memory of callers: copies in and out, and pages that stay.
//!
//! [`process::ProcessMemory`] is one mm ([`mm`]) of a caller. Its pins hold pages in one of these ways, in
//! this order of preference:
//!
//! 1. shared memory ([`shared`]): the file behind the mapping, mapped here. The very pages, which a
//!    ring of this process ([`own`]) keeps, whatever becomes of the file.
//! 2. private memory: a buffer registered with an io_uring of the caller's mm, which is a kernel pin.
//!    io_uring wants to write what it pins, so memory that the caller may only read is made writable
//!    for that moment, if nobody can run in the mm ([`rest`]).
//! 3. everything else ([`pin`]): a live window on the caller's addresses, marked as such with its
//!    reason.
//!
//! A window is no copy: a device sees what the process writes there later, which a copy would miss. What a
//! window misses is the page after `munmap`, exec and exit.

pub(crate) mod block;
pub mod file;
mod guarded;
pub(crate) mod helper;
mod losses;
pub(crate) mod map;
pub(crate) mod maps;
pub(crate) mod mm;
pub(crate) mod own;
mod parking;
pub mod pfn;
pub(crate) mod pin;
pub(crate) mod private;
pub mod process;
mod rest;
pub(crate) mod ring;
mod rings;
mod shared;
pub(crate) mod trap;
mod uffd;
pub(crate) mod vma;
pub(crate) mod watch;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::unbounded;
use engine::{Engine, Errno};

pub use pfn::PfnMode;

/// What all mms of this process's callers share.
pub struct Host {
    pub(crate) maps: maps::FileMaps,
    pub(crate) pfns: pfn::Pfns,
    pub(crate) own: own::Own,
    /// `/proc/self/pagemap`.
    pub(crate) pagemap: File,
    pub(crate) watch: watch::Watch,
    /// Pages in all pins that there are.
    pub(crate) held: AtomicU64,
    /// Whether a right that a container takes from everybody is missing, as Linux has it.
    pub(crate) exact_rights: AtomicBool,
}

impl Host {
    /// From now on callers have the rights that they have, even where nobody here can have one.
    pub fn want_exact_rights(&self) {
        self.exact_rights.store(true, Ordering::Relaxed);
    }

    /// Once per daemon. Fails where `/proc` cannot be read.
    pub fn new(pfn: PfnMode) -> std::io::Result<Arc<Self>> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let (maps, own, watch, held, exact_rights) = Default::default();
        let pfns = pfn::Pfns::new(pfn);
        Ok(Arc::new(Self { maps, own, pfns, pagemap, watch, held, exact_rights }))
    }

    /// Has `engine` warn when something happens to memory of callers that it maps. To be called
    /// once, before the first pin.
    pub fn warn_of_changes(&self, engine: &Arc<Engine>) -> std::io::Result<()> {
        let engine = Arc::downgrade(engine);
        let (sender, maps) = unbounded();
        let (pagemap, told) = (self.pagemap.try_clone()?, engine.clone());
        let tell = move || {
            if let Some(engine) = told.upgrade() {
                engine.pages_lost();
            }
        };
        let watch = move || losses::watch(&maps, &pagemap, &tell);
        std::thread::Builder::new().name("file-watch".into()).spawn(watch)?;
        self.maps.watched_by(sender);
        self.watch.tell(Box::new(move |mm, addresses, when, what| {
            engine
                .upgrade()
                .is_some_and(|engine| engine.memory_changed(mm, addresses, when, what) != 0)
        }))
    }

    /// Pages in all pins that there are; a page in two pins counts twice.
    pub fn pages_held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// The errno of an I/O error.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
