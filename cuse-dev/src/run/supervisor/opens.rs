//! What an open of the program is an open of: the nodes, the caller's own descriptors of them, and
//! the files of `/proc` and debugfs that we answer for.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use engine::account::Totals;
use engine::{Errno, Node};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::super::notify::Notification;
use super::super::paths::{Ours, Thread, classify};
use super::super::process::{self, process_of};
use super::super::status;
use super::{Answer, Supervisor};

impl Supervisor {
    pub(super) fn openat2(&self, call: &Notification) -> Answer {
        /// `RESOLVE_*` that are about links and mounts, of which there are none on the way to ours.
        const HARMLESS: u64 =
            libc::RESOLVE_NO_XDEV | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;
        // struct open_how: flags, mode, resolve. What is wrong with it is the kernel's to say.
        let mut how = [0; 24];
        if call.args[3] < 24 || process::read_exact(call.tid, call.args[2], &mut how).is_err() {
            return Answer::LetThrough;
        }
        let word = |at: usize| {
            let (words, _) = how.as_chunks::<8>();
            u64::from_ne_bytes(words[at])
        };
        let creates = word(0) & (libc::O_CREAT | libc::O_TMPFILE) as u64 != 0;
        if word(1) != 0 && !creates || word(2) & !HARMLESS != 0 {
            return Answer::LetThrough;
        }
        self.open(call, call.args[0] as i32, call.args[1], word(0))
    }

    pub(super) fn open(
        &self,
        call: &Notification,
        directory: i32,
        path: u64,
        flags: u64,
    ) -> Answer {
        let Ok(path) = process::read_string(call.tid, path) else { return Answer::LetThrough };
        let base = || {
            let link = if directory == libc::AT_FDCWD {
                format!("/proc/{}/cwd", call.tid)
            } else {
                format!("/proc/{}/fd/{directory}", call.tid)
            };
            let target = std::fs::read_link(link).ok()?;
            Some(std::os::unix::ffi::OsStringExt::into_vec(target.into_os_string()))
        };
        let follow = flags & libc::O_NOFOLLOW as u64 == 0;
        let ours = classify(&path, base).or_else(|| {
            let path = if follow { link_target(call.tid, directory, &path) } else { None }?;
            classify(&path, || None)
        });
        let Some(ours) = ours else { return Answer::LetThrough };
        if self.listener.still_waits(call).is_err() {
            return Answer::LetThrough;
        }
        self.open_ours(call, ours, OFlag::from_bits_retain(flags as i32))
    }

    fn open_ours(&self, call: &Notification, ours: Ours, flags: OFlag) -> Answer {
        let opened = match ours {
            // Names the file without opening it: nothing of iommufd can be done with it.
            Ours::Iommu | Ours::VfioContainer if flags.contains(OFlag::O_PATH) => {
                nix::fcntl::open("/dev/null", flags & !OFlag::O_DIRECTORY, Mode::empty())
            }
            Ours::Iommu => self.open_node(Node::Iommu, flags),
            // The daemon's, if it serves one.
            Ours::VfioContainer if self.via.is_some() => return Answer::LetThrough,
            Ours::VfioContainer => self.open_node(Node::VfioContainer, flags),
            // The kernel opens the device anew, not the file.
            Ours::Descriptor(thread, fd) => match self.node_of(call, thread, fd) {
                Some(node) => self.open_node(node, flags),
                None => return Answer::LetThrough,
            },
            Ours::FailNth(thread) => match thread_id(call, thread) {
                Some(tid) => self.fail_nth.open(tid, flags),
                None => Err(Errno::ENOENT),
            },
            Ours::Status(thread) => match self.open_status(call, thread) {
                Some(opened) => opened,
                None => return Answer::LetThrough,
            },
            Ours::Debugfs(path) => match self.debugfs.find(&path) {
                Some(path) => open_knob(path, flags),
                None => return Answer::LetThrough,
            },
        };
        match opened {
            Ok(fd) => Answer::Descriptor(fd, flags.contains(OFlag::O_CLOEXEC)),
            Err(errno) => errno.into(),
        }
    }

    fn open_node(&self, node: Node, flags: OFlag) -> Result<OwnedFd, Errno> {
        if flags.contains(OFlag::O_CREAT | OFlag::O_EXCL) {
            return Err(Errno::EEXIST);
        }
        if flags.contains(OFlag::O_DIRECTORY) {
            return Err(Errno::ENOTDIR);
        }
        match &self.via {
            Some(via) => via.open_for(flags),
            None => self.open_files.open_node(node, flags),
        }
    }

    /// Which node the caller's own descriptor `fd` is an open of.
    fn node_of(&self, call: &Notification, thread: Thread, fd: i32) -> Option<Node> {
        // Without a context there is none, and most programs' descriptors cost nothing.
        if self.open_files.len() == 0 || thread_id(call, thread).is_none() {
            return None;
        }
        let (_, _, id) = self.caller_file(call, fd)?;
        Some(self.open_files.context(id)?.context.node())
    }

    /// `/proc/PID/status`, if anything is pinned of the process.
    fn open_status(&self, call: &Notification, thread: Thread) -> Option<Result<OwnedFd, Errno>> {
        if self.open_files.len() == 0 && self.via.is_none() {
            return None;
        }
        let tid = match thread {
            Thread::Caller => call.tid,
            Thread::Leader => process_of(call.tid)?,
            Thread::Id(tid) => tid,
        };
        if let Some(via) = &self.via {
            let (totals, shown) = via.pins(process_of(tid)?).ok()?;
            return (totals != Totals::default()).then(|| status::open(tid, totals, shown));
        }
        let process = self.callers.resolve(tid).ok()?;
        let totals = self.engine.accounts().totals(process.memory().id());
        let shown = process.pins_show();
        (totals != Totals::default()).then(|| status::open(tid, totals, shown))
    }
}

/// The absolute path that `path` leads to, if its last component is a symbolic link.
fn link_target(tid: u32, directory: i32, path: &[u8]) -> Option<Vec<u8>> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let start = match (path.first(), directory) {
        (Some(b'/'), _) => format!("/proc/{tid}/root"),
        (_, libc::AT_FDCWD) => format!("/proc/{tid}/cwd"),
        _ => format!("/proc/{tid}/fd/{directory}"),
    };
    let whole = PathBuf::from(format!("{start}/"))
        .join(std::ffi::OsStr::from_bytes(path).to_str()?.trim_start_matches('/'));
    // Nearly no file is a link, and asking costs one call.
    let first = std::fs::read_link(&whole).ok()?;
    let target = match std::fs::canonicalize(&whole) {
        Ok(target) => target,
        // A link to a node that the machine has not.
        Err(_) => first,
    };
    Some(target.into_os_string().into_vec())
}

/// The thread whose file in `/proc` the caller means, if it is in the caller's process.
fn thread_id(call: &Notification, thread: Thread) -> Option<u32> {
    let process = process_of(call.tid)?;
    match thread {
        Thread::Caller => Some(call.tid),
        Thread::Leader => Some(process),
        Thread::Id(tid) => process_of(tid).filter(|of| *of == process).map(|_| tid),
    }
}

fn open_knob(path: PathBuf, flags: OFlag) -> Result<OwnedFd, Errno> {
    let kept = OFlag::O_ACCMODE | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
    nix::fcntl::open(&path, (flags & kept) | OFlag::O_CLOEXEC, Mode::empty())
}
