//! `/proc/self/task/N/fail-nth`, which a kernel without fault injection lacks.
//!
//! The caller's file is a memfd, so reading and writing it costs the supervisor nothing. Before a
//! call of the thread the supervisor reads the count, and after it writes what is left, in the
//! kernel's words: a number and a newline.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::Errno;
use engine::inject::with_fail_nth;
use nix::fcntl::OFlag;
use parking_lot::Mutex;

use super::memfd::SharedMemfd;

/// The counts of all threads that have one.
#[derive(Default)]
pub(crate) struct FailNth {
    files: Mutex<HashMap<u32, Arc<SharedMemfd>>>,
    /// How many, so that a call without fault injection looks at nothing else.
    count: AtomicUsize,
}

impl FailNth {
    /// Opens the count of the thread `tid` with the access mode of `flags`.
    pub(crate) fn open(&self, tid: u32, flags: OFlag) -> Result<OwnedFd, Errno> {
        let mut files = self.files.lock();
        files.retain(|_, file| file.is_open());
        let file = match files.get(&tid) {
            Some(file) => file.clone(),
            None => {
                let file = SharedMemfd::new(c"fail-nth")?;
                file.file().write_all_at(b"0\n", 0).map_err(|_| Errno::ENOMEM)?;
                Arc::new(file)
            }
        };
        let given = file.open(flags)?;
        files.insert(tid, file);
        self.count.store(files.len(), Ordering::Relaxed);
        Ok(given)
    }

    /// Runs `call` of the thread `tid` with the faults that it asked for.
    pub(crate) fn around<R>(&self, tid: u32, call: impl FnOnce() -> R) -> R {
        if self.count.load(Ordering::Relaxed) == 0 {
            return call();
        }
        let file = self.files.lock().get(&tid).cloned();
        let Some(file) = file else { return call() };
        with_count(file.file(), tid, call)
    }

    /// The file of the thread `tid`, if it is to have a fault injected.
    pub(crate) fn armed(&self, tid: u32) -> Option<Arc<SharedMemfd>> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let file = self.files.lock().get(&tid).cloned()?;
        (read_count(file.file()) != 0).then_some(file)
    }
}

/// Runs `call` of the thread `tid` with the fault that the count in `file` asks for, and writes what
/// is left of the count there.
pub(crate) fn with_count<R>(file: &File, tid: u32, call: impl FnOnce() -> R) -> R {
    let nth = read_count(file);
    let (result, left) = with_fail_nth(nth, call);
    if let Some(site) = left.fired {
        tracing::debug!(target: "softiommu::fault", "{tid} fail-nth {nth}: {site}");
    }
    if nth != 0 {
        let text = format!("{}\n", left.remaining);
        // The file is in memory; only who has it can make these fail, by sealing it.
        let _ = file.write_all_at(text.as_bytes(), 0);
        let _ = file.set_len(text.len() as u64);
    }
    result
}

/// The count in `file`. A memfd keeps what a shorter write leaves of a longer text before it, so
/// a leading zero is a zero, whatever follows.
fn read_count(file: &File) -> u64 {
    let mut text = [0; 24];
    let read = file.read_at(&mut text, 0).unwrap_or(0);
    let digits = text[..read].iter().take_while(|b| b.is_ascii_digit()).count();
    if text[0] == b'0' {
        return 0;
    }
    std::str::from_utf8(&text[..digits]).ok().and_then(|t| t.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::inject::site;

    fn contents(file: &File) -> String {
        let mut text = [0; 32];
        let read = file.read_at(&mut text, 0).unwrap();
        String::from_utf8(text[..read].to_vec()).unwrap()
    }

    #[test]
    fn the_count_is_counted_down_and_fires() {
        let all = FailNth::default();
        let file = File::from(all.open(7, OFlag::O_RDWR).unwrap());
        let three_sites = || site("one").and_then(|()| site("two")).and_then(|()| site("three"));

        file.write_all_at(b"2", 0).unwrap();
        assert_eq!(all.around(8, three_sites), Ok(()), "another thread");
        assert_eq!(all.around(7, three_sites), Err(Errno::ENOMEM));
        assert_eq!(contents(&file), "0\n");
        assert_eq!(all.around(7, three_sites), Ok(()), "fires once");

        file.write_all_at(b"15", 0).unwrap();
        assert_eq!(all.around(7, three_sites), Ok(()));
        assert_eq!(contents(&file), "12\n");
        file.write_all_at(b"0", 0).unwrap();
        assert_eq!(all.around(7, three_sites), Ok(()), "turned off by a shorter write");
    }

    #[test]
    fn a_closed_count_is_forgotten() {
        let all = FailNth::default();
        let file = File::from(all.open(7, OFlag::O_RDWR).unwrap());
        file.write_all_at(b"1", 0).unwrap();
        drop(file);
        drop(all.open(9, OFlag::O_RDWR).unwrap());
        assert_eq!(all.around(7, || site("one")), Ok(()));
    }
}
