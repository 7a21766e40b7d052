//! Takes from the daemon what it does not need once the node is up: capabilities, the way to get
//! new ones, and the system calls that it never makes.
#![allow(unsafe_code)] // Some of prctl and seccomp have no safe wrapper.

use engine::Errno;
use libc::sock_filter;

use crate::caller::sys;
use crate::memory::PfnMode;

/// Numbers of `<linux/capability.h>`, with what they are for.
const KEPT: [u32; 5] = [
    1,  // CAP_DAC_OVERRIDE: a caller's shared memory, opened through /proc/PID/map_files.
    5,  // CAP_KILL: a SIGSTOP that came for a caller while it was stopped anyway.
    19, // CAP_SYS_PTRACE: the memory, files and threads of callers.
    24, // CAP_SYS_RESOURCE: the RLIMIT_MEMLOCK of callers, who are other users.
    40, // CAP_CHECKPOINT_RESTORE: /proc/PID/map_files at all.
];
/// Real page frame numbers are shown to this one only.
const SYS_ADMIN: u32 = 21;

/// Confines this thread and all that it starts from here on.
pub(super) fn confine(pfn: PfnMode) -> Result<(), Errno> {
    let mut kept = KEPT.to_vec();
    if matches!(pfn, PfnMode::Real) {
        kept.push(SYS_ADMIN);
    }
    drop_capabilities(&kept)?;
    nix::sys::prctl::set_no_new_privs()?;
    filter()
}

/// Leaves `kept`, as far as they are there, and takes the rest out of every set.
fn drop_capabilities(kept: &[u32]) -> Result<(), Errno> {
    let mask = kept.iter().fold(0_u64, |mask, &number| mask | 1 << number);
    for number in (0..64).filter(|number| mask & 1 << number == 0) {
        // Past the last capability this answers EINVAL; without CAP_SETPCAP EPERM, and then what
        // stays in the bounding set cannot be had for lack of a way to exec.
        // SAFETY: takes integers.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    }
    // SAFETY: takes integers.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let mut sets = sys::capabilities(0)?;
    for (word, set) in sets.iter_mut().enumerate() {
        let mask = (mask >> (32 * word)) as u32;
        set.permitted &= mask;
        set.effective = set.permitted;
        set.inheritable = 0;
    }
    sys::set_capabilities(&sets)
}

/// The system calls that the daemon makes: the ones of every request first. There is no exec, no
/// fork's wait-less twin that matters (threads need clone), no mount, no new socket but pairs,
/// datagrams and the peers of the control socket, which listens already, no change of identity, no module, key, bpf or perf.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_writev,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_futex,
    libc::SYS_pread64,
    libc::SYS_tgkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_write,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mlock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, time and signals.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_nanosleep,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Callers.
    libc::SYS_capget,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_prlimit64,
    libc::SYS_ptrace,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Files.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_preadv,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_socketpair,
    libc::SYS_statx,
    libc::SYS_userfaultfd,
];

/// Names that only older architectures have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_ARCH: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_epoll_wait,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_ARCH: &[libc::c_long] = &[];

/// `AUDIT_ARCH_*` of `<linux/audit.h>`.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Everything that is not [`ALLOWED`] answers EPERM from here on. `socket` is allowed for
/// AF_UNIX, by which the service manager is told.
fn filter() -> Result<(), Errno> {
    let program = program();
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program and what it points at live as long as the call, which copies it.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    Errno::result(done).map(drop)
}

fn program() -> Vec<sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let line = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let (number, arch, argument) = (0, 4, 16);
    let mut program = vec![
        line(LOAD, 0, 0, arch),
        line(EQUAL, 1, 0, AUDIT_ARCH),
        line(RETURN, 0, 0, refuse),
        line(LOAD, 0, 0, number),
    ];
    // A jump reaches 255 lines: each call has its own way out.
    for &call in ALLOWED.iter().chain(ALLOWED_ARCH) {
        program.push(line(EQUAL, 0, 1, call as u32));
        program.push(line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    }
    program.extend([
        line(EQUAL, 0, 3, libc::SYS_socket as u32),
        line(LOAD, 0, 0, argument),
        line(EQUAL, 0, 1, libc::AF_UNIX as u32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        line(RETURN, 0, 0, refuse),
    ]);
    program
}
