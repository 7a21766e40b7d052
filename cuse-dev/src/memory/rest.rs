//! Memory that its process may only read, made writable for as long as a pin of it takes.
//!
//! io_uring pins what it may write, so that a pin of a private page is a page of the process's own, as the
//! kernel's iommufd makes it, too. Nobody may write to read-only memory meanwhile without the fault that
//! the program counts on (collectors of garbage live on such faults). So this is done only while nobody can
//! run in the mm: its only thread waits in the call that is answered, and no other process shares it.

use std::ops::Range;
use std::sync::Arc;

use engine::Errno;

use super::helper::Helper;
use super::mm::Mm;
use super::vma::Vma;
use crate::caller::{status, sys};

/// A mapping that its process may write to until this is dropped.
pub(super) struct Unlocked {
    mm: Arc<Mm>,
    helper: Arc<Helper>,
    addresses: Range<u64>,
    rights: i32,
}

impl Unlocked {
    /// Makes all of `vma` writable: a part would become a mapping of its own, and stay it.
    pub(super) fn new(mm: &Arc<Mm>, helper: &Arc<Helper>, vma: &Vma) -> Result<Self, Errno> {
        let right = |has: bool, right| if has { right } else { 0 };
        let rights = right(vma.readable, libc::PROT_READ) | right(vma.executable, libc::PROT_EXEC);
        let addresses = vma.start..vma.end;
        helper.protect(addresses.clone(), rights | libc::PROT_WRITE)?;
        Ok(Self { mm: mm.clone(), helper: helper.clone(), addresses, rights })
    }
}

impl Drop for Unlocked {
    fn drop(&mut self) {
        if let Err(error) = self.helper.protect(self.addresses.clone(), self.rights)
            && !self.mm.gone()
        {
            let Range { start, end } = self.addresses;
            tracing::error!(%error, "{start:#x}-{end:#x} of a caller stays writable");
        }
    }
}

/// Whether the thread `waiting` is the only one that has its mm, but for `helper`.
pub(super) fn only_user(waiting: u32, helper: Option<u32>) -> bool {
    let (Ok(process), Ok(1)) = (status(waiting, "Tgid:"), status(waiting, "Threads:")) else {
        return false;
    };
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let mut others = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&other| other != process && Some(other) != helper);
    // Who may not be asked is taken for another user's, who does not share it, and who is gone for nobody.
    // Where nobody at all can be asked, anybody may.
    !others
        .any(|other: u32| matches!(sys::same_memory(other, waiting), Ok(true) | Err(Errno::ENOSYS)))
}
