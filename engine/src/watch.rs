//! Who waits for a file of the engine.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::file::Wake;

/// Those who asked to be told of changes.
#[derive(Default)]
pub(crate) struct Watchers {
    watchers: Mutex<Vec<Arc<dyn Wake>>>,
}

impl Watchers {
    pub(crate) fn add(&self, wake: Arc<dyn Wake>) {
        self.watchers.lock().push(wake);
    }

    /// Tells all of them.
    pub(crate) fn wake(&self) {
        self.watchers.lock().iter().for_each(|watcher| watcher.wake());
    }

    /// Forgets all of them.
    pub(crate) fn clear(&self) {
        self.watchers.lock().clear();
    }
}
