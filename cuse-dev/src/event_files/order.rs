//! Keeps the order of a last close and the calls after it.
//!
//! The kernel tells of the last close (RELEASE) in its own time: a thread that closes a file and
//! calls an ioctl at once may have that call answered first, though the kernel it knows would have
//! released the file before. An inotify watch on each file tells what is being closed as it
//! happens, and [`Order::settle`] waits until all of that is released. It waits for files of one
//! owner only: whoever makes a release slow has to wait for it alone.
#![allow(unsafe_code)] // One ioctl that nix has no wrapper for.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use engine::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;

/// How long a call waits for a release before it. The order is lost past that, nothing else.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is open and what is being closed.
pub(super) struct Order {
    inotify: Inotify,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    /// By node.
    open: FxHashMap<u64, Watched>,
    /// Nodes by what inotify calls them.
    nodes: FxHashMap<WatchDescriptor, u64>,
    owners: FxHashMap<u64, Owner>,
}

struct Watched {
    owner: u64,
    watch: Option<WatchDescriptor>,
}

#[derive(Default)]
struct Owner {
    open: usize,
    /// Closed, and not released yet.
    closing: HashSet<u64>,
}

impl Order {
    pub(super) fn new() -> Result<Self, Errno> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, state: Mutex::default(), released: Condvar::new() })
    }

    /// `file`, of `node`, is about to be given away.
    pub(super) fn watch(&self, owner: u64, node: u64, file: BorrowedFd<'_>) {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // Without the watch the order of closes is the kernel's; nothing else suffers.
        let watch = self
            .inotify
            .add_watch(path.as_str(), AddWatchFlags::IN_CLOSE)
            .inspect_err(|errno| tracing::warn!(%errno, "cannot watch a file for its close"))
            .ok();
        let mut state = self.state.lock();
        state.open.insert(node, Watched { owner, watch });
        if let Some(watch) = watch {
            state.nodes.insert(watch, node);
        }
        state.owners.entry(owner).or_default().open += 1;
    }

    /// `node` is released.
    pub(super) fn released(&self, node: u64) {
        let mut state = self.state.lock();
        let Some(Watched { owner, watch }) = state.open.remove(&node) else { return };
        if let Some(watch) = watch {
            state.nodes.remove(&watch);
            // It keeps the kernel's inode, else.
            let _ = self.inotify.rm_watch(watch);
        }
        // That was noted, too, and must not fill the kernel's queue.
        state.note_closes(&self.inotify);
        if let Some(files) = state.owners.get_mut(&owner) {
            files.open -= 1;
            files.closing.remove(&node);
            if files.open == 0 {
                state.owners.remove(&owner);
            }
        }
        drop(state);
        self.released.notify_all();
    }

    /// What `owner` closed for the last time before now is released when this returns.
    pub(super) fn settle(&self, owner: u64) {
        let mut state = self.state.lock();
        if !state.owners.contains_key(&owner) {
            return;
        }
        state.note_closes(&self.inotify);
        let begin = Instant::now();
        while state.owners.get(&owner).is_some_and(|files| !files.closing.is_empty()) {
            let Some(left) = PATIENCE.checked_sub(begin.elapsed()) else { return };
            self.released.wait_for(&mut state, left);
        }
    }
}

impl State {
    fn note_closes(&mut self, inotify: &Inotify) {
        let close = AddWatchFlags::IN_CLOSE;
        // Mostly there is nothing, which a look tells for less than a read with its buffer.
        while has_events(inotify)
            && let Ok(events) = inotify.read_events()
        {
            for event in events.iter().filter(|event| event.mask.intersects(close)) {
                // Released already, else.
                let Some(&node) = self.nodes.get(&event.wd) else { continue };
                let Some(Watched { owner, .. }) = self.open.get(&node) else { continue };
                if let Some(files) = self.owners.get_mut(owner) {
                    files.closing.insert(node);
                }
            }
        }
    }
}

fn has_events(inotify: &Inotify) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int behind the pointer, which lives that long.
    let asked = unsafe { libc::ioctl(inotify.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    // In doubt the read tells.
    asked != 0 || bytes != 0
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;

    fn file(order: &Order, owner: u64, node: u64) -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("file")).unwrap();
        order.watch(owner, node, file.as_fd());
        (directory, file)
    }

    #[test]
    fn a_close_is_awaited_by_its_owner_alone() {
        let order = Arc::new(Order::new().unwrap());
        let (_kept, mine) = file(&order, 7, 1);
        let (_kept_too, _theirs) = file(&order, 8, 2);
        order.settle(7);
        drop(mine);
        let begin = Instant::now();
        order.settle(8);
        order.settle(9);
        let waits = order.clone();
        let waiter = std::thread::spawn(move || waits.settle(7));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        order.released(1);
        waiter.join().unwrap();
        assert!(begin.elapsed() < PATIENCE);
        assert!(!order.state.lock().owners.contains_key(&7));
    }

    #[test]
    fn a_release_that_came_first_is_not_awaited() {
        let order = Order::new().unwrap();
        let (_kept, mine) = file(&order, 7, 1);
        let (_kept_too, _other) = file(&order, 7, 2);
        drop(mine);
        order.released(1);
        let begin = Instant::now();
        order.settle(7);
        assert!(begin.elapsed() < PATIENCE);
    }
}
