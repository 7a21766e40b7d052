//! Files that areas keep open.
//!
//! `IOMMU_IOAS_MAP_FILE` takes any file, as long as nobody needs a page of it. A fault queue, an
//! access or an iommufd stays open while an area maps it, whatever becomes of its descriptors.
//!
//! Linux never frees an iommufd whose own area keeps a file of it. Here areas keep files only as long
//! as their iommufd has a descriptor: nobody can leave a ring behind.
//!
//! What ends with its last area may be an iommufd, which takes its own locks. So it ends after the
//! command, when none is held ([`Engine::end_kept`]).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::Errno;
use crate::context::{Context, Engine, Hold};
use crate::file::EngineFile;
use crate::memory::{BackingFile, Pin};

/// What keeps a file of the engine open: its descriptors, and areas.
#[derive(Default)]
pub struct Opens(Mutex<State>);

#[derive(Default)]
struct State {
    areas: usize,
    /// No descriptor is left.
    closed: bool,
}

impl Opens {
    /// The last descriptor is closed. Whether nothing else keeps it.
    pub fn close(&self) -> bool {
        let mut state = self.0.lock();
        state.closed = true;
        state.areas == 0
    }

    /// One more area keeps it, unless it is at its end.
    fn keep(&self) -> bool {
        let mut state = self.0.lock();
        let open = !state.closed || state.areas > 0;
        state.areas += usize::from(open);
        open
    }

    /// An area keeps it no more. Whether nothing else does.
    fn let_go(&self) -> bool {
        let mut state = self.0.lock();
        state.areas -= 1;
        state.closed && state.areas == 0
    }
}

/// What an area keeps.
enum What {
    File(Arc<dyn EngineFile>),
    Context(Hold),
}

/// A file without pages that can be pinned: a pipe, a directory, an iommufd. It can be mapped as
/// long as nobody needs a page of it. Keeps it open, where the engine is who would notice.
pub(crate) struct Unpinnable {
    engine: Arc<Engine>,
    what: Mutex<Option<What>>,
}

impl Unpinnable {
    fn of(context: &Arc<Context>, what: Option<What>) -> Arc<Self> {
        let keeps = what.is_some();
        let kept = Arc::new(Self { engine: context.engine().clone(), what: Mutex::new(what) });
        if keeps && !context.kept().add(&kept) {
            kept.let_go();
        }
        kept
    }

    /// A file that an area of `context` maps, and that is nothing to the engine.
    pub(crate) fn other(context: &Arc<Context>) -> Arc<Self> {
        Self::of(context, None)
    }

    /// The same for a file of the engine.
    pub(crate) fn file(context: &Arc<Context>, file: Arc<dyn EngineFile>) -> Arc<Self> {
        let keeps = file.opens().is_some_and(Opens::keep);
        Self::of(context, keeps.then_some(What::File(file)))
    }

    /// The same for an iommufd.
    pub(crate) fn context(context: &Arc<Context>, mapped: &Arc<Context>) -> Arc<Self> {
        Self::of(context, mapped.hold_open().map(What::Context))
    }

    fn let_go(&self) {
        let Some(what) = self.what.lock().take() else { return };
        if let What::File(file) = &what
            && !file.opens().is_some_and(Opens::let_go)
        {
            return;
        }
        self.engine.ends().add(what);
    }
}

impl Drop for Unpinnable {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl BackingFile for Unpinnable {
    fn describe(&self) -> String {
        "a file without pages".to_owned()
    }

    fn writable(&self) -> bool {
        true
    }

    fn pinnable(&self) -> bool {
        false
    }

    fn size(&self) -> u64 {
        0
    }

    fn pin(&self, _: u64, _: u64, _: bool) -> Result<Arc<dyn Pin>, Errno> {
        Err(Errno::EINVAL)
    }
}

/// What the areas of one iommufd keep. Nothing, and for ever, once it has no descriptor.
pub(crate) struct Kept(Mutex<Option<Vec<Weak<Unpinnable>>>>);

impl Default for Kept {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Kept {
    /// Whether it may.
    fn add(&self, kept: &Arc<Unpinnable>) -> bool {
        let mut all = self.0.lock();
        let Some(all) = all.as_mut() else { return false };
        if all.len() == all.capacity() {
            all.retain(|kept| kept.strong_count() > 0);
        }
        all.push(Arc::downgrade(kept));
        true
    }

    /// The iommufd's last descriptor is closed.
    pub(crate) fn let_go(&self) {
        let all = self.0.lock().take().unwrap_or_default();
        all.iter().filter_map(Weak::upgrade).for_each(|kept| kept.let_go());
    }
}

/// What nothing keeps any more, and has not ended yet.
#[derive(Default)]
pub(crate) struct Ends {
    list: Mutex<Vec<What>>,
    /// How many there are, for commands to look at without the lock, which all contexts share.
    waiting: AtomicUsize,
}

impl Ends {
    fn add(&self, what: What) {
        let mut list = self.list.lock();
        list.push(what);
        self.waiting.store(list.len(), Ordering::Release);
    }

    fn take(&self) -> Option<What> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut list = self.list.lock();
        let what = list.pop();
        self.waiting.store(list.len(), Ordering::Release);
        what
    }
}

impl Engine {
    /// Ends what nothing keeps any more. No lock of the engine may be held.
    pub(crate) fn end_kept(&self) {
        while let Some(what) = self.ends().take() {
            match what {
                What::File(file) => file.end(),
                What::Context(hold) => drop(hold),
            }
        }
    }
}
