//! The seccomp filter of the launched program: which system calls come to the supervisor.
//!
//! It is a classic BPF program over `struct seccomp_data` (`<linux/seccomp.h>`). It cannot read
//! memory, so every open comes, and is let through unless its path is ours; of ioctls only those
//! of type `;`, of mmaps only those of files, of reads and writes only those of no bytes. All else
//! costs a few instructions.
#![allow(unsafe_code)] // Installing a filter is a raw system call.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::sock_filter;

use super::arch::{AUDIT_ARCH, CALLS, COMPAT, Call};

/// The type byte of iommufd's and VFIO's ioctls, in the place it has in a command.
const TYPE_BITS: u32 = 0xff00;
const IOMMUFD_TYPE: u32 = (b';' as u32) << 8;

/// Byte offsets in `struct seccomp_data`. The low half of an argument comes first on the
/// little-endian processors that [`super::arch`] knows.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Skips the next `when_not` instructions unless the accumulator is `k`.
fn unless_equal(k: u32, when_not: u8) -> sock_filter {
    sock_filter { code: JUMP_EQUAL, jt: 0, jf: when_not, k }
}

/// The filter's program: a part for each architecture that code of the machine may have.
pub(crate) fn program() -> Vec<sock_filter> {
    let mut program = Vec::new();
    for (arch, calls) in COMPAT.into_iter().chain([(AUDIT_ARCH, CALLS)]) {
        let part = part(calls);
        program.push(op(LOAD, ARCH));
        program.push(unless_equal(arch, part.len() as u8));
        program.extend(part);
    }
    program.push(op(RETURN, libc::SECCOMP_RET_ALLOW));
    program
}

/// What to do with a call of one architecture, which are all that get here.
fn part(calls: &[(i64, Call)]) -> Vec<sock_filter> {
    let allow = op(RETURN, libc::SECCOMP_RET_ALLOW);
    let notify = op(RETURN, libc::SECCOMP_RET_USER_NOTIF);
    let mut program = vec![op(LOAD, NUMBER)];
    for &(number, call) in calls {
        let number = number as u32;
        match call {
            Call::Ioctl => program.extend([
                unless_equal(number, 5),
                op(LOAD, argument(1)),
                op(AND, TYPE_BITS),
                unless_equal(IOMMUFD_TYPE, 1),
                notify,
                allow,
            ]),
            Call::Mmap | Call::Mmap2 => program.extend([
                unless_equal(number, 5),
                op(LOAD, argument(3)),
                op(AND, libc::MAP_ANONYMOUS as u32),
                unless_equal(0, 1),
                notify,
                allow,
            ]),
            Call::ReadNothing | Call::WriteNothing => program.extend([
                unless_equal(number, 6),
                op(LOAD, argument(2)),
                unless_equal(0, 3),
                op(LOAD, argument(2) + 4),
                unless_equal(0, 1),
                notify,
                allow,
            ]),
            _ => program.extend([unless_equal(number, 1), notify]),
        }
    }
    program.push(allow);
    program
}

/// Puts the calling thread, and all that it starts, under the filter. Answers the descriptor that
/// notifications come from (close-on-exec).
///
/// `no_new_privs` is set only where the kernel asks for it (without `CAP_SYS_ADMIN`), so that
/// set-user-id programs keep working for who may have them. `EBUSY` when the thread is under
/// another supervisor already.
pub(crate) fn install(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let flags =
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let fprog =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    let set = || {
        // SAFETY: `fprog` describes `program`, which outlives the call, and the kernel only
        // reads it.
        unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                std::ptr::from_ref(&fprog),
            )
        }
    };
    let mut fd = set();
    if fd < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EACCES) {
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        fd = set();
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers, by a small interpreter of the instructions that it uses.
    fn answer(number: i64, arch: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend((number as u32).to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        args.iter().for_each(|a| data.extend(a.to_le_bytes()));
        let program = program();
        let (mut at, mut acc) = (0, 0u32);
        loop {
            let i = program[at];
            at += 1;
            match i.code {
                LOAD => {
                    let from = i.k as usize;
                    acc = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                }
                AND => acc &= i.k,
                JUMP_EQUAL => at += usize::from(if acc == i.k { i.jt } else { i.jf }),
                RETURN => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn only_what_concerns_us_comes_to_the_supervisor() {
        let notify = libc::SECCOMP_RET_USER_NOTIF;
        let allow = libc::SECCOMP_RET_ALLOW;
        let ioctl = |cmd| answer(libc::SYS_ioctl, AUDIT_ARCH, [3, cmd, 0, 0, 0, 0]);
        assert_eq!(ioctl(0x3b80), notify);
        assert_eq!(ioctl(0x3bff), notify);
        assert_eq!(ioctl(0xffff_ffff_4004_3b85), notify);
        assert_eq!(ioctl(0x5401), allow);
        let mmap = |flags| answer(libc::SYS_mmap, AUDIT_ARCH, [0, 4096, 3, flags, 5, 0]);
        assert_eq!(mmap(libc::MAP_SHARED as u64), notify);
        assert_eq!(mmap(libc::MAP_PRIVATE as u64), notify);
        assert_eq!(mmap((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64), allow);
        for &(number, call) in CALLS {
            if matches!(call, Call::Open | Call::Openat | Call::Openat2) {
                assert_eq!(answer(number, AUDIT_ARCH, [0; 6]), notify, "{call:?}");
                assert_eq!(answer(number, 0x1234_5678, [0; 6]), allow, "{call:?} of another");
            }
        }
        for number in [libc::SYS_read, libc::SYS_write] {
            let sized = |size| answer(number, AUDIT_ARCH, [3, 0x1000, size, 0, 0, 0]);
            assert_eq!(sized(0), notify);
            assert_eq!(sized(1), allow);
            assert_eq!(sized(1 << 32), allow);
        }
        assert_eq!(answer(libc::SYS_munmap, AUDIT_ARCH, [0; 6]), allow);
    }

    #[test]
    fn calls_of_32_bit_code_come_too() {
        let Some((arch, calls)) = COMPAT else { return };
        let notify = libc::SECCOMP_RET_USER_NOTIF;
        let allow = libc::SECCOMP_RET_ALLOW;
        for &(number, call) in calls {
            let args = if call == Call::Ioctl { [3, 0x3b80, 0, 0, 0, 0] } else { [0; 6] };
            assert_eq!(answer(number, arch, args), notify, "{call:?}");
            assert_eq!(Call::of(arch, number as i32), Some(call));
        }
        assert_eq!(answer(54, arch, [3, 0x5401, 0, 0, 0, 0]), allow);
        assert_eq!(answer(1, arch, [0; 6]), allow);
    }
}
