//! `/proc/PID/status` with softiommu's accounting in it.
//!
//! The kernel shows what is pinned of a process as `VmPin`, and what is locked as `VmLck`. Of the
//! pins that softiommu accounts for it knows nothing, or counts them in its own way (a huge page of
//! which one page is pinned counts whole). So callers get a copy of the file: pins that the kernel
//! does not know are added, and where it knows some, softiommu's number stands in its place.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;

use engine::Errno;
use engine::account::Totals;
use nix::fcntl::OFlag;

use super::memfd::SharedMemfd;

const PAGE_KIB: u64 = engine::memory::PAGE_SIZE / 1024;

/// The status of the thread `tid` with `totals` in it, open for reading. `shown`: the kernel counts
/// some of them, too.
pub(crate) fn open(tid: u32, totals: Totals, shown: bool) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{tid}/status");
    let status = fs::read_to_string(path).map_err(|error| crate::memory::errno(&error))?;
    let file = SharedMemfd::new(c"status")?;
    (&mut file.file())
        .write_all(with(&status, totals, shown).as_bytes())
        .map_err(|_| Errno::ENOMEM)?;
    file.open(OFlag::O_RDONLY)
}

fn with(status: &str, totals: Totals, shown: bool) -> String {
    let mut out = String::with_capacity(status.len() + 16);
    for line in status.lines() {
        let added = match line.split(':').next() {
            Some("VmPin") => Some(totals.pinned),
            Some("VmLck") => Some(totals.locked),
            _ => None,
        };
        let known = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        match (added, known) {
            (Some(pages), Some(known)) => {
                let known = if shown && line.starts_with("VmPin") { 0 } else { known };
                let kib = known.saturating_add(pages.saturating_mul(PAGE_KIB));
                out.push_str(&format!("{}:\t{kib:8} kB", &line[..5]));
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pinned_and_locked_memory_change() {
        let status = "Name:\tcat\nVmLck:\t       8 kB\nVmPin:\t       0 kB\nVmHWM:\t    1000 kB\n";
        let shown = with(status, Totals { pinned: 3, locked: 1 }, false);
        assert_eq!(
            shown,
            "Name:\tcat\nVmLck:\t      12 kB\nVmPin:\t      12 kB\nVmHWM:\t    1000 kB\n"
        );
    }

    #[test]
    fn pins_that_the_kernel_counts_are_not_added() {
        let status = "VmLck:\t       8 kB\nVmPin:\t    2048 kB\n";
        let shown = with(status, Totals { pinned: 3, locked: 1 }, true);
        assert_eq!(shown, "VmLck:\t      12 kB\nVmPin:\t      12 kB\n");
    }
}
