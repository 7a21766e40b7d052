//! The system calls about other processes that `nix` does not wrap.
#![allow(unsafe_code)] // raw system calls and ioctls; each block says what the kernel is given

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use engine::Errno;

/// `PIDFD_THREAD`: the pidfd names a thread rather than a process (Linux 6.9).
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// `CAP_IPC_LOCK` of `<linux/capability.h>`.
pub(crate) const CAP_IPC_LOCK: u32 = 14;

/// `KCMP_VM` of `<linux/kcmp.h>`.
const KCMP_VM: libc::c_int = 1;

/// `_LINUX_CAPABILITY_VERSION_3` of `<linux/capability.h>`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn result(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned < 0 { Err(Errno::last()) } else { Ok(returned) }
}

fn descriptor(returned: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = result(returned)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just returned `fd` as a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pidfd of the process whose thread-group id is `pid`.
pub(crate) fn pidfd_open(pid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A pidfd of one thread. `EINVAL` before Linux 6.9.
pub(crate) fn pidfd_open_thread(tid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD) })
}

/// A duplicate of the descriptor `fd` of the process or thread behind `pidfd`.
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes three integers; `pidfd` is open for the length of the call.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Whether the process behind `pidfd` has not been reaped. A process that may not be signalled
/// lives.
pub(crate) fn alive(pidfd: BorrowedFd<'_>) -> bool {
    // SAFETY: signal 0 only asks; the siginfo pointer may be null.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    result(asked) != Err(Errno::ESRCH)
}

/// Whether `tid` is now a thread of the process `tgid`.
pub(crate) fn is_thread_of(tgid: u32, tid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let asked = unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid, 0) };
    result(asked) != Err(Errno::ESRCH)
}

/// Whether two threads have the same memory. An error when either cannot be asked.
pub(crate) fn same_memory(a: u32, b: u32) -> Result<bool, Errno> {
    // SAFETY: takes integers.
    result(unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) }).map(|order| order == 0)
}

/// The real user id of the process, in this process's user namespace.
pub(crate) fn real_uid(pidfd: BorrowedFd<'_>) -> Result<u32, Errno> {
    /// The first published `struct pidfd_info` of `<linux/pidfd.h>` (Linux 6.13).
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroupid: u64,
        ids: [u32; 3],
        ruid: u32,
        others: [u32; 8],
    }
    const _: () = assert!(size_of::<Info>() == 64);
    /// `PIDFD_GET_INFO` with that size: `_IOWR(0xff, 11, 64 bytes)`.
    const GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xff << 8) | 11;
    const CREDENTIALS: u64 = 1 << 1;
    let mut info = Info { mask: CREDENTIALS, ..Info::default() };
    // SAFETY: the command's size field says 64 bytes, which `info` has, and any bytes are valid
    // in it.
    let asked = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO as _, &raw mut info) };
    result(asked.into())?;
    if info.mask & CREDENTIALS == 0 { Err(Errno::ESRCH) } else { Ok(info.ruid) }
}

/// Capabilities 0 to 31, or 32 to 63, of a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Capabilities {
    pub(crate) effective: u32,
    pub(crate) permitted: u32,
    pub(crate) inheritable: u32,
}

/// What `capget` and `capset` take first: the layout of the rest, and whose (0 for this thread).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    tid: u32,
}

/// The capabilities of the thread `tid`, or of this one for 0.
pub(crate) fn capabilities(tid: u32) -> Result<[Capabilities; 2], Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, tid };
    let mut sets = [Capabilities::default(); 2];
    // SAFETY: version 3 reads the header and writes two sets; both outlive the call.
    result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    Ok(sets)
}

/// Gives this thread other capabilities.
pub(crate) fn set_capabilities(sets: &[Capabilities; 2]) -> Result<(), Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, tid: 0 };
    // SAFETY: version 3 reads the header and two sets; both outlive the call.
    result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) }).map(drop)
}

/// Whether `tid` has `capability` (a `CAP_*` number) in its effective set.
pub(crate) fn effective_capability(tid: u32, capability: u32) -> Result<bool, Errno> {
    let sets = capabilities(tid)?;
    let word = sets.get((capability / 32) as usize).ok_or(Errno::EINVAL)?;
    Ok(word.effective & (1 << (capability % 32)) != 0)
}

/// Whether anyone started from here can have `capability` at all. A container's root often cannot.
pub(crate) fn obtainable(capability: u32) -> bool {
    // SAFETY: takes a number and reads this thread's bounding set.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) == 1 }
}

/// The soft `RLIMIT_MEMLOCK` of `pid` in bytes, `u64::MAX` for none.
pub(crate) fn memlock_limit(pid: u32) -> Result<u64, Errno> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a null new limit changes nothing; `limit` takes the old one.
    let asked =
        unsafe { libc::prlimit(pid, libc::RLIMIT_MEMLOCK, std::ptr::null(), &raw mut limit) };
    match result(asked.into()) {
        // Another user's, and no CAP_SYS_RESOURCE to ask. Anybody may read the file.
        Err(Errno::EPERM) => memlock_limit_shown(pid),
        asked => asked
            .map(|_| if limit.rlim_cur == libc::RLIM_INFINITY { u64::MAX } else { limit.rlim_cur }),
    }
}

/// Raises the `RLIMIT_MEMLOCK` of `pid` to `bytes` (`u64::MAX` for none), or as far as this process
/// may. Whether it is none then.
pub(crate) fn raise_memlock(pid: u32, bytes: u64) -> bool {
    let raise = |soft, hard| {
        let new = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        let old = std::ptr::null_mut();
        // SAFETY: reads `new`, which outlives the call.
        unsafe { libc::prlimit(pid as libc::pid_t, libc::RLIMIT_MEMLOCK, &raw const new, old) == 0 }
    };
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `now` takes the limit; a null new limit changes nothing.
    let asked = unsafe {
        let new = std::ptr::null();
        libc::prlimit(pid as libc::pid_t, libc::RLIMIT_MEMLOCK, new, &raw mut now)
    };
    let best = if raise(bytes, bytes.max(now.rlim_max)) {
        bytes
    } else if asked == 0 && raise(now.rlim_max.min(bytes), now.rlim_max) {
        now.rlim_max.min(bytes)
    } else {
        now.rlim_cur
    };
    best == libc::RLIM_INFINITY
}

/// SIGKILL for the process behind `pidfd`.
pub(crate) fn kill(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    signal(pidfd, libc::SIGKILL)
}

/// Sends `signal` to the process behind `pidfd`.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let (pidfd, nothing) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: takes integers; the siginfo pointer may be null.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, nothing, 0) };
    result(sent).map(drop)
}

/// [`memlock_limit`] as `/proc/PID/limits` shows it: "Max locked memory  65536  65536  bytes".
fn memlock_limit_shown(pid: libc::pid_t) -> Result<u64, Errno> {
    let limits =
        std::fs::read_to_string(format!("/proc/{pid}/limits")).map_err(|_| Errno::EPERM)?;
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))
        .and_then(|line| line.split_whitespace().next())
        .ok_or(Errno::EPERM)?;
    if soft == "unlimited" { Ok(u64::MAX) } else { soft.parse().map_err(|_| Errno::EPERM) }
}

/// Asks that the thread `tid` (0: this one) be given the processor soon and for short turns, where
/// the scheduler heeds it (Linux 6.12). For threads that a caller waits for: they do a few
/// microseconds' work at a time, and on a busy machine each would begin after another's whole turn.
pub(crate) fn short_turns(tid: u32) {
    /// The kernel's least.
    const TURN: u64 = 100_000;
    // SAFETY: all of the structure's fields are integers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let room = size_of_val(&attributes) as libc::c_uint;
    // SAFETY: the kernel writes at most `room` bytes to the address.
    let got = result(unsafe {
        libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, room, 0)
    });
    // Who chose another policy, or turns of another length, knows better.
    if got.is_err() || attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.sched_runtime = TURN;
    // SAFETY: the address is the structure's, which says its size. A refusal changes nothing.
    unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_shown_as_it_is_answered() {
        let pid = std::process::id();
        let shown = memlock_limit_shown(pid.try_into().unwrap());
        assert_eq!(shown, memlock_limit(pid));
    }
}
