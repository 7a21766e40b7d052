//! A calling thread, stopped on its way out of the ioctl, that makes system calls for us.
//!
//! A reply cannot put a descriptor into the caller's table, so the caller has to take it itself:
//! while its thread waits for the answer we seize it, answer, catch it before it returns to its
//! program, have it make a few system calls through its own `syscall` instruction, and let it go
//! with its registers as they were. It notices nothing; its signals wait meanwhile.
//!
//! All of that happens on the thread of the daemon that answers the request, since the kernel
//! takes ptrace requests only from the thread that attached.
#![allow(unsafe_code)] // ptrace requests and waitpid flags that nix does not wrap.

use std::os::fd::OwnedFd;

use engine::Errno;
use engine::memory::AddressSpace;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::inject::arch::{self, Registers};

const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;

/// Bytes of scratch on the caller's stack.
pub(super) const SCRATCH: usize = 256;

/// Seized, and told to stop as soon as its call is answered. Dropping it lets it go.
pub(super) struct Seized {
    tid: Pid,
    attached: bool,
}

/// Stopped on the way out of its call. Dropping it lets it go with the call's result as it is.
pub(super) struct Stopped {
    seized: Seized,
    before: Registers,
    /// Where the thread has a `syscall` instruction.
    at: u64,
    mask: u64,
    result: Option<i64>,
    scratch: u64,
}

impl Seized {
    /// Seizes the thread `tid`, which waits for our answer. `EPERM` when it is traced already, or
    /// when we may not.
    pub(super) fn new(tid: u32) -> Result<Self, Errno> {
        let tid = Pid::from_raw(i32::try_from(tid).map_err(|_| Errno::ESRCH)?);
        ptrace::seize(tid, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
        let mut seized = Self { tid, attached: true };
        seized.checked(ptrace::interrupt(tid))?;
        Ok(seized)
    }

    /// Waits for the stop. To be called after the call is answered. `ESRCH` when the thread died.
    pub(super) fn stopped(mut self, memory: &dyn AddressSpace) -> Result<Stopped, Errno> {
        self.wait(|status| matches!(status, WaitStatus::PtraceEvent(..)))?;
        let before = self.checked(ptrace::getregs(self.tid))?;
        let (at, mut bytes) = (arch::last_instruction(&before), arch::SYSCALL);
        memory.read(at, &mut bytes)?;
        // 32-bit calls are made by another instruction, and are numbered differently.
        if !arch::native(&before) || bytes != arch::SYSCALL {
            return Err(Errno::ENOSYS);
        }
        let scratch = arch::scratch(&before, SCRATCH as u64);
        let mut mask = 0;
        self.mask(PTRACE_GETSIGMASK, &mut mask)?;
        self.mask(PTRACE_SETSIGMASK, &mut u64::MAX.clone())?;
        Ok(Stopped { seized: self, before, at, mask, result: None, scratch })
    }

    /// Waits until a stop is what `wanted` says. Signals that cannot wait (SIGSTOP) are put back.
    fn wait(&mut self, wanted: impl Fn(&WaitStatus) -> bool) -> Result<(), Errno> {
        // Only tracees of this thread: others have their own.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitpid(self.tid, Some(flags)) {
                Err(Errno::EINTR) => {}
                Err(_) => {
                    self.attached = false;
                    return Err(Errno::ESRCH);
                }
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                    self.attached = false;
                    return Err(Errno::ESRCH);
                }
                Ok(status) if wanted(&status) => return Ok(()),
                Ok(WaitStatus::Stopped(_, signal)) => self.go_on(Some(signal))?,
                Ok(_) => self.go_on(None)?,
            }
        }
    }

    fn go_on(&mut self, signal: Option<Signal>) -> Result<(), Errno> {
        self.checked(ptrace::syscall(self.tid, signal))
    }

    /// A thread that dies under our hands answers ESRCH, and is ours to bury.
    fn checked<T>(&mut self, result: Result<T, Errno>) -> Result<T, Errno> {
        if result.as_ref().err() == Some(&Errno::ESRCH) {
            let _ = self.wait(|_| false);
        }
        result
    }

    fn mask(&mut self, request: libc::c_uint, mask: &mut u64) -> Result<(), Errno> {
        // SAFETY: both requests take the size of a signal set, 8, and 8 bytes to read or write.
        let done = unsafe { libc::ptrace(request as _, self.tid.as_raw(), 8_usize, mask) };
        self.checked(Errno::result(done).map(drop))
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        if !self.attached {
            return;
        }
        // Detaching needs a stop. One that was asked for is coming as soon as the call is
        // answered, which the owner of the request has done or is about to do.
        match ptrace::detach(self.tid, None) {
            Err(Errno::ESRCH) => {
                if self.wait(|status| matches!(status, WaitStatus::PtraceEvent(..))).is_ok() {
                    let _ = ptrace::detach(self.tid, None);
                }
            }
            _ => self.attached = false,
        }
    }
}

impl Stopped {
    /// Where [`SCRATCH`] bytes are that the caller's program does not use.
    pub(super) fn scratch(&self) -> u64 {
        self.scratch
    }

    /// Has the thread call `number`. The outer error says that it is gone, the inner is the
    /// call's own.
    pub(super) fn call(
        &mut self,
        number: libc::c_long,
        [first, second, third, fourth]: [u64; 4],
    ) -> Result<Result<u64, Errno>, Errno> {
        let tid = self.seized.tid;
        let arguments = [first, second, third, fourth, 0, 0];
        let registers = arch::call(&self.before, self.at, number, arguments);
        self.seized.checked(ptrace::setregs(tid, registers))?;
        for _ in ["the way in", "the way out"] {
            self.seized.go_on(None)?;
            self.seized.wait(|status| matches!(status, WaitStatus::PtraceSyscall(_)))?;
        }
        let after = self.seized.checked(ptrace::getregs(tid))?;
        Ok(arch::result(&after))
    }

    /// A duplicate of the thread's descriptor `fd`.
    pub(super) fn descriptor(&self, fd: i32) -> Result<OwnedFd, Errno> {
        super::task::descriptor_of(self.seized.tid.as_raw() as u32, fd)
    }

    /// What the caller's own call returns when it is let go.
    pub(super) fn set_result(&mut self, result: i64) {
        self.result = Some(result);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.seized.attached {
            return;
        }
        let result = self.result.unwrap_or(self.before.rax as i64);
        let registers = arch::returning(&self.before, result);
        let tid = self.seized.tid;
        // A thread that dies now needs neither.
        let _ = self.seized.checked(ptrace::setregs(tid, registers));
        if self.seized.attached {
            let mut mask = self.mask;
            let _ = self.seized.mask(PTRACE_SETSIGMASK, &mut mask);
        }
    }
}
