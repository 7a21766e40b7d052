//! The supervisor's end of seccomp user notification: receive a call, answer it, hand over a
//! descriptor (`<linux/seccomp.h>`, seccomp_unotify(2)).
#![allow(unsafe_code)] // The listener's ioctls have no safe wrapper.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use engine::Errno;
use libc::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp};

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: caller and supervisor take turns on one CPU.
const SYNC_WAKE_UP: u64 = 1;

/// Where calls come from.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

/// One call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notification {
    /// Names the call towards the kernel.
    pub(crate) id: u64,
    /// The calling thread; 0 if it is in a pid namespace that we do not see.
    pub(crate) tid: u32,
    /// The architecture of the calling code (`AUDIT_ARCH_*`).
    pub(crate) arch: u32,
    /// The system call's number.
    pub(crate) number: i32,
    /// Its arguments.
    pub(crate) args: [u64; 6],
}

/// Why the call is not there any more: its thread was killed.
#[derive(Debug)]
pub(crate) struct Gone;

impl Listener {
    /// Takes the descriptor that [`super::filter::install`] made.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        // An older kernel (before 6.6) does not know this; it only is slower then.
        // SAFETY: the argument of this ioctl is a number.
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
        Self(fd)
    }

    fn ioctl<T>(&self, command: libc::Ioctl, argument: &mut T) -> Result<i32, Errno> {
        // SAFETY: each command below is called with the struct that it reads and writes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command, argument) };
        Errno::result(result)
    }

    /// Waits for a call. `ENOENT` when the one that came was killed meanwhile, or, on newer
    /// kernels, when nobody is left who could call.
    pub(crate) fn receive(&self) -> Result<Notification, Errno> {
        // SAFETY: all zeroes is a valid `seccomp_notif`, and the value the kernel asks for.
        let mut notif: seccomp_notif = unsafe { mem::zeroed() };
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut notif)?;
        Ok(Notification {
            id: notif.id,
            tid: notif.pid,
            arch: notif.data.arch,
            number: notif.data.nr,
            args: notif.data.args,
        })
    }

    fn respond(&self, mut response: seccomp_notif_resp) {
        // ENOENT: the caller was killed. Nobody waits for the answer.
        let _ = self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response);
    }

    /// The call returns `result`.
    pub(crate) fn answer(&self, call: &Notification, result: Result<i64, Errno>) {
        let (val, error) = match result {
            Ok(val) => (val, 0),
            Err(errno) => (0, -(errno as i32)),
        };
        self.respond(seccomp_notif_resp { id: call.id, val, error, flags: 0 });
    }

    /// The thread leaves the kernel, to where a tracer stops it, and makes the call again.
    pub(crate) fn let_go(&self, call: &Notification) -> Result<(), Errno> {
        let error = -crate::inject::CALL_AGAIN;
        let mut response = seccomp_notif_resp { id: call.id, val: 0, error, flags: 0 };
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response).map(drop)
    }

    /// The kernel carries the call out as if nobody had looked.
    pub(crate) fn let_through(&self, call: &Notification) {
        let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        self.respond(seccomp_notif_resp { id: call.id, val: 0, error: 0, flags });
    }

    /// Whether the call still waits. What was read by thread id before this said yes was read
    /// from the caller and not from a thread that got its id.
    pub(crate) fn still_waits(&self, call: &Notification) -> Result<(), Gone> {
        let mut id = call.id;
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id).map(drop).map_err(|_| Gone)
    }

    /// Puts `fd` into the caller's table. Answers its number there.
    pub(crate) fn add(
        &self,
        call: &Notification,
        fd: BorrowedFd<'_>,
        close_on_exec: bool,
    ) -> Result<i32, Errno> {
        let mut argument = seccomp_notif_addfd {
            id: call.id,
            flags: 0,
            srcfd: fd.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut argument)
    }
}
