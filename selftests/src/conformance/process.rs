//! What a program does to its own process: children, limits, capabilities.
#![allow(unsafe_code)] // fork, capabilities and limits are raw system calls.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use super::reply::Reply;

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// capget(2)'s and capset(2)'s data of this thread: effective, permitted and inheritable, low and
/// high.
fn capabilities(set: Option<[[u32; 3]; 2]>) -> Result<[[u32; 3]; 2], Errno> {
    let header = [CAPABILITY_VERSION, 0];
    let mut data = set.unwrap_or_default();
    let call = if set.is_some() { libc::SYS_capset } else { libc::SYS_capget };
    // SAFETY: version 3's header and two structs of three words each.
    Errno::result(unsafe { libc::syscall(call, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(data)
}

fn answer(result: Result<(), Errno>) -> Reply {
    Reply::of(result.map_or_else(|errno| -i64::from(errno as i32), |()| 0))
}

/// Raises or lowers an effective capability.
pub(super) fn capability(number: u8, raised: bool) -> Reply {
    let changed = capabilities(None).and_then(|mut sets| {
        let (half, bit) = (usize::from(number / 32), 1 << (number % 32));
        let effective = &mut sets.get_mut(half).ok_or(Errno::EINVAL)?[0];
        *effective = if raised { *effective | bit } else { *effective & !bit };
        capabilities(Some(sets)).map(drop)
    });
    answer(changed)
}

/// Gives up a capability for good, for this process and the programs that it plays.
pub fn drop_capability(number: u8) -> Result<(), Errno> {
    let mut sets = capabilities(None)?;
    let bits = sets.get_mut(usize::from(number / 32)).ok_or(Errno::EINVAL)?;
    for set in bits {
        *set &= !(1 << (number % 32));
    }
    capabilities(Some(sets)).map(drop)
}

/// Sets RLIMIT_MEMLOCK's soft limit.
pub(super) fn limit_locked_memory(bytes: u64) -> Reply {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: one rlimit, twice.
    answer(unsafe {
        Errno::result(libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit)).and_then(|_| {
            limit.rlim_cur = bytes.min(limit.rlim_max);
            Errno::result(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit)).map(drop)
        })
    })
}

/// Undoes what an earlier program did to this process's rights and limits.
pub(super) fn restore() {
    if let Ok(mut sets) = capabilities(None) {
        for set in &mut sets {
            set[0] = set[1];
        }
        let _ = capabilities(Some(sets));
    }
    // The same everywhere, as far as this process may.
    limit_locked_memory(8 << 20);
    fresh_user();
}

/// A real user that no program was before. Locked memory is counted by real user, and what an
/// earlier program, or another process of this machine, has locked or left locked would decide what
/// this one may lock. Rights come from the effective user, which stays.
fn fresh_user() {
    static PROGRAMS: AtomicU32 = AtomicU32::new(0);
    const USERS: u32 = 0x1000_0000;
    let programs = PROGRAMS.fetch_add(1, Ordering::Relaxed) % (1 << 10);
    let user = USERS + ((std::process::id() % (1 << 18)) << 10) + programs;
    // SAFETY: a system call of numbers. Who may not choose users stays who they are.
    unsafe { libc::setresuid(user, libc::uid_t::MAX, libc::uid_t::MAX) };
}

/// The descriptor that the next open gets.
pub(super) fn lowest_free_descriptor() -> i32 {
    // SAFETY: a descriptor of ours that nobody else has seen.
    unsafe {
        let fd = libc::dup(0);
        libc::close(fd);
        fd
    }
}

/// Whether a descriptor is open.
pub(super) fn is_open(fd: i32) -> bool {
    // SAFETY: a plain system call on a number that may be no descriptor.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Runs `calls` in a child process and returns their replies.
pub(super) fn in_child(calls: impl FnOnce() -> Vec<Reply>) -> Reply {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Reply::of(-i64::from(Errno::last() as i32));
    }
    // Out of the program's way, so that its next descriptors are what they were.
    // SAFETY: our own descriptors.
    let [from, to] = ends.map(|end| unsafe {
        let moved = libc::fcntl(end, libc::F_DUPFD_CLOEXEC, super::machine::OWN_DESCRIPTORS);
        libc::close(end);
        moved
    });
    // SAFETY: a worker has one thread; the child ends in _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let said = serde_json::to_vec(&calls()).unwrap_or_default();
        // SAFETY: the bytes have the length, and nothing of the parent's runs in the child.
        unsafe {
            libc::write(to, said.as_ptr().cast(), said.len());
            libc::_exit(0);
        }
    }
    let mut said = Vec::new();
    let mut bytes = [0_u8; 4096];
    // SAFETY: our own descriptors and child; `bytes` has the length.
    unsafe {
        libc::close(to);
        loop {
            match libc::read(from, bytes.as_mut_ptr().cast(), bytes.len()) {
                got if got > 0 => said.extend_from_slice(&bytes[..got as usize]),
                0 => break,
                _ if Errno::last() == Errno::EINTR => {}
                _ => break,
            }
        }
        libc::close(from);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    let child = serde_json::from_slice(&said).unwrap_or_default();
    Reply { child, ..Reply::default() }
}
