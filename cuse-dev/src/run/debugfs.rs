//! The fault-injection knobs of debugfs, where the machine's kernel has none to show.
//!
//! A program that wants faults injected first sets `failslab` and `fail_page_alloc` so that every
//! allocation can fail, which in the engine they always can. The knobs are therefore plain files
//! in a temporary directory, made when a program first looks for them: writing them does nothing.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

const DEBUGFS: &str = "/sys/kernel/debug";
const FAULTS: &[&str] = &["failslab", "fail_page_alloc"];
const KNOBS: &[&str] =
    &["ignore-gfp-wait", "ignore-gfp-highmem", "verbose", "probability", "times"];

/// The directory that stands for `/sys/kernel/debug`.
#[derive(Default)]
pub(crate) struct Debugfs {
    root: Mutex<Option<PathBuf>>,
}

impl Debugfs {
    /// What stands for `path`, which is relative to `/sys/kernel/debug`: nothing, unless it is
    /// the directory itself or a knob's, or if the machine has real ones that we can reach.
    pub(crate) fn find(&self, path: &Path) -> Option<PathBuf> {
        if Path::new(DEBUGFS).join(FAULTS[0]).exists() {
            return None;
        }
        let whole = self.made()?.join(path);
        whole.exists().then_some(whole)
    }

    /// Removes what was made. To be called when nobody looks any more.
    pub(crate) fn remove(&self) {
        if let Some(root) = self.root.lock().take() {
            let _ = fs::remove_dir_all(root);
        }
    }

    fn made(&self) -> Option<PathBuf> {
        let mut root = self.root.lock();
        if root.is_none() {
            match make() {
                Ok(made) => *root = Some(made),
                Err(error) => {
                    tracing::warn!(%error, "no directory for the fault-injection knobs");
                }
            }
        }
        root.clone()
    }
}

fn make() -> io::Result<PathBuf> {
    let root = nix::unistd::mkdtemp(&std::env::temp_dir().join("softiommu-debugfs-XXXXXX"))?;
    // Callers of other users may look, too.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    for fault in FAULTS {
        let directory = root.join(fault);
        DirBuilder::new().create(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        for knob in KNOBS {
            let knob = directory.join(knob);
            fs::write(&knob, "")?;
            fs::set_permissions(&knob, fs::Permissions::from_mode(0o666))?;
        }
    }
    Ok(root)
}
