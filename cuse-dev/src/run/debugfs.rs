//! The fault-injection knobs of debugfs, where the machine's kernel has none to show.
//!
//! A program that wants faults injected first sets `failslab` and `fail_page_alloc` so that every
//! allocation can fail, which in the engine they always can. The knobs are therefore plain files
//! in a temporary directory: writing them does nothing.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const DEBUGFS: &str = "/sys/kernel/debug";
const FAULTS: &[&str] = &["failslab", "fail_page_alloc"];
const KNOBS: &[&str] =
    &["ignore-gfp-wait", "ignore-gfp-highmem", "verbose", "probability", "times"];

/// The directory that stands for `/sys/kernel/debug`. Dropping it removes it.
pub(crate) struct Debugfs {
    root: PathBuf,
}

impl Debugfs {
    /// Makes the knobs, or answers nothing where the machine has real ones that we can reach.
    pub(crate) fn new() -> io::Result<Option<Self>> {
        if Path::new(DEBUGFS).join(FAULTS[0]).exists() {
            return Ok(None);
        }
        let template = std::env::temp_dir().join("softiommu-debugfs-XXXXXX");
        let made = Self { root: nix::unistd::mkdtemp(&template)? };
        // Callers of other users may look, too.
        fs::set_permissions(&made.root, fs::Permissions::from_mode(0o755))?;
        for fault in FAULTS {
            let directory = made.root.join(fault);
            DirBuilder::new().create(&directory)?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
            for knob in KNOBS {
                let knob = directory.join(knob);
                fs::write(&knob, "")?;
                fs::set_permissions(&knob, fs::Permissions::from_mode(0o666))?;
            }
        }
        Ok(Some(made))
    }

    /// What stands for `path`, which is relative to `/sys/kernel/debug`: nothing, unless it is
    /// the directory itself or a knob's.
    pub(crate) fn find(&self, path: &Path) -> Option<PathBuf> {
        let whole = self.root.join(path);
        whole.exists().then_some(whole)
    }
}

impl Drop for Debugfs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}
