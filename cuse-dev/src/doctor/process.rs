//! What this process may do to others: stop them, read their memory, take their descriptors.
#![allow(unsafe_code)] // ptrace, and reading another process's memory.

use std::os::fd::AsFd;

use engine::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::child::Waiting;
use super::{Check, failed, setting};
use crate::caller::sys;

/// `CAP_*` numbers of `<linux/capability.h>`.
const CAPABILITIES: &[(u32, &str, &str)] = &[
    (21, "CAP_SYS_ADMIN", "real page frame numbers, FUSE mounts"),
    (40, "CAP_CHECKPOINT_RESTORE", "sharing pages through map_files"),
    (19, "CAP_SYS_PTRACE", "callers that belong to other users"),
    (14, "CAP_IPC_LOCK", "pins without a limit"),
];

pub(super) fn architecture() -> Check {
    let (name, title) = ("architecture", "processor");
    let found = std::env::consts::ARCH;
    if cfg!(target_arch = "x86_64") {
        Check::ok(name, title, found)
    } else {
        Check::ok(name, title, found).missing("nothing works yet", "an x86-64 machine")
    }
}

pub(super) fn checks() -> Vec<Check> {
    vec![root(), capabilities(), memory(), ptrace_child(), ptrace_others(), take_descriptor()]
}

fn root() -> Check {
    let (name, title) = ("root", "superuser");
    let uid = nix::unistd::geteuid();
    let check = Check::ok(name, title, format!("uid {uid}"));
    if uid.is_root() {
        return check;
    }
    check.missing("`softiommu serve` has to begin as root; `run` does not", "sudo, for `serve`")
}

fn capabilities() -> Check {
    let (name, title) = ("capabilities", "capabilities");
    let tid = std::process::id();
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(number, ..)| !sys::effective_capability(tid, *number).unwrap_or(false))
        .collect();
    if lacking.is_empty() {
        let all: Vec<_> = CAPABILITIES.iter().map(|(_, name, _)| *name).collect();
        return Check::ok(name, title, format!("{} are there", all.join(", ")));
    }
    let names: Vec<_> = lacking.iter().map(|(_, name, _)| *name).collect();
    let cost: Vec<_> = lacking.iter().map(|(_, name, what)| format!("{what} ({name})")).collect();
    let obtainable = lacking.iter().all(|(number, ..)| sys::obtainable(*number));
    let remedy = if obtainable {
        "as root"
    } else {
        "the bounding set lacks them: the container has to be started with them (--cap-add)"
    };
    Check::ok(name, title, format!("without {}", names.join(", ")))
        .degraded(format!("goes without: {}", cost.join("; ")), remedy)
}

/// Reads a byte that is at the same place in a forked process.
fn read_memory(pid: Pid) -> Result<(), Errno> {
    static BYTE: u8 = 0x5a;
    let mut byte = [0];
    let remote = RemoteIoVec { base: (&raw const BYTE) as usize, len: 1 };
    let read = process_vm_readv(pid, &mut [std::io::IoSliceMut::new(&mut byte)], &[remote])?;
    if read == 1 && byte == [BYTE] { Ok(()) } else { Err(Errno::EIO) }
}

fn memory() -> Check {
    let (name, title) = ("process-memory", "reading a caller's memory");
    match Waiting::child().and_then(|child| read_memory(child.pid())) {
        Ok(()) => Check::ok(name, title, "process_vm_readv read a child's"),
        Err(error) => Check::ok(name, title, failed("read a child's with process_vm_readv", error))
            .missing(
                "nothing works: arguments of ioctls cannot be read",
                "a kernel with CONFIG_CROSS_MEMORY_ATTACH; in a container, allow \
                 process_vm_readv (docker: --cap-add SYS_PTRACE)",
            ),
    }
}

/// Seizes, stops and lets go.
fn stop(pid: Pid) -> Result<(), Errno> {
    ptrace::seize(pid, ptrace::Options::empty())?;
    let stopped = ptrace::interrupt(pid).and_then(|()| match waitpid(pid, None)? {
        WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => Ok(()),
        _ => Err(Errno::ESRCH),
    });
    let _ = ptrace::detach(pid, None::<Signal>);
    stopped
}

fn yama() -> String {
    match setting("/proc/sys/kernel/yama/ptrace_scope").as_deref() {
        Some("3") => "Yama forbids ptrace until the next boot (kernel.yama.ptrace_scope=3)".into(),
        Some("0") | None => "as root with CAP_SYS_PTRACE (docker: --cap-add SYS_PTRACE)".into(),
        Some(_) => "as root with CAP_SYS_PTRACE, or sysctl kernel.yama.ptrace_scope=0".into(),
    }
}

fn ptrace_child() -> Check {
    let (name, title) = ("ptrace", "ptrace of a program that one started");
    match Waiting::child().and_then(|child| stop(child.pid())) {
        Ok(()) => Check::ok(name, title, "a child was stopped and let go"),
        Err(error) => Check::ok(name, title, failed("stop a child", error)).degraded(
            "private memory is a window on the caller's addresses, not a pin: it does not \
             survive munmap, fork or exit",
            yama(),
        ),
    }
}

fn ptrace_others() -> Check {
    let (name, title) = ("ptrace-others", "ptrace of other processes");
    match Waiting::stranger().and_then(|stranger| stop(stranger.pid())) {
        Ok(()) => Check::ok(name, title, "a process that is no descendant was stopped and let go"),
        Err(error) => Check::ok(name, title, failed("stop a process that is no descendant", error))
            .missing(
                "`serve` cannot give descriptors to callers (fault queues, event queues, \
                 accesses), nor pin their private memory; `run` does not need it",
                yama(),
            ),
    }
}

fn take_descriptor() -> Check {
    let (name, title) = ("pidfd-getfd", "taking a copy of a caller's descriptor");
    let tried = Waiting::child().and_then(|child| {
        let pidfd = sys::pidfd_open(child.pid().as_raw() as u32)?;
        // Any that a child has: the pipe that it waits on is one of the first.
        (0..64)
            .map(|number| sys::pidfd_getfd(pidfd.as_fd(), number))
            .find(|taken| {
                *taken.as_ref().map_or_else(|error| error, |_| &Errno::EBADF) != Errno::EBADF
                    || taken.is_ok()
            })
            .unwrap_or(Err(Errno::EBADF))
            .map(drop)
    });
    match tried {
        Ok(()) => Check::ok(name, title, "pidfd_getfd took one of a child's"),
        Err(error) => Check::ok(name, title, failed("use pidfd_getfd on a child", error)).degraded(
            "IOMMU_IOAS_MAP_FILE and descriptors in ioctls are refused, private memory is not pinned",
            "Linux 5.6 or later; in a container, allow pidfd_getfd (docker: --cap-add SYS_PTRACE)",
        ),
    }
}
