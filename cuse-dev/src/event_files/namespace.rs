//! The mount for who may not mount: made in a user namespace.
//!
//! Whoever enters a user namespace gives up what it could do outside of it: it could not read the
//! memory of its own children there. So a process is started that lives for the mount only. It
//! enters the namespace, mounts, and sends the two descriptors of the mount over a socket.
//!
//! Such a mount serves its own user alone, in every namespace; with `allow_other` it would serve all
//! users of its own namespace, in which none of the callers is.
#![allow(unsafe_code)] // fork, and descriptors out of messages

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use engine::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::{NoMount, ROOT};
use crate::wire::Channel;
use crate::wire::mount::{Audience, Mount, fuse_for};

/// How far the other process came, as its message's first byte.
const IN_NAMESPACE: u8 = 1;
const MOUNTED: u8 = 2;

/// Makes the mount. To be called while this process has one thread.
pub(super) fn mount() -> Result<Mount, NoMount> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(NoMount::Namespace)?;
    // SAFETY: this process has one thread, so no lock is held that the child could wait for.
    match unsafe { fork() }.map_err(NoMount::Namespace)? {
        ForkResult::Child => {
            drop(ours);
            make(&theirs);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let received = receive(&ours);
            while waitpid(child, None) == Err(Errno::EINTR) {}
            received
        }
    }
}

/// The other process's part.
fn make(socket: &OwnedFd) {
    let report = |step: u8, error: Errno, fds: &[RawFd]| {
        let error = (error as i32).to_ne_bytes();
        let message = [step, error[0], error[1], error[2], error[3]];
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let payload = [IoSlice::new(&message)];
        let _ = sendmsg::<()>(socket.as_raw_fd(), &payload, control, MsgFlags::MSG_NOSIGNAL, None);
    };
    if let Err(error) = enter() {
        return report(0, error, &[]);
    }
    match fuse_for(Audience::Mounter, &ROOT, "softiommu") {
        Ok(mount) => {
            let fds = [mount.channel().as_fd().as_raw_fd(), mount.as_fd().as_raw_fd()];
            report(MOUNTED, Errno::UnknownErrno, &fds);
        }
        Err(error) => report(IN_NAMESPACE, error, &[]),
    }
}

fn receive(socket: &OwnedFd) -> Result<Mount, NoMount> {
    let mut message = [0; 5];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let received = loop {
        let mut payload = [IoSliceMut::new(&mut message)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut payload, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(NoMount::Namespace(error)),
            Ok(received) => {
                let fds =
                    received.cmsgs().into_iter().flatten().find_map(|control| match control {
                        ControlMessageOwned::ScmRights(fds) => Some(fds),
                        _ => None,
                    });
                break fds.unwrap_or_default();
            }
        }
    };
    // SAFETY: the kernel made these descriptors for us with this message.
    let mut fds = received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let [step, error @ ..] = message;
    let error = Errno::from_raw(i32::from_ne_bytes(error));
    match (step, fds.next(), fds.next()) {
        (MOUNTED, Some(channel), Some(root)) => {
            Ok(Mount::from_parts(Channel::from_fd(channel), root))
        }
        // Some systems give out namespaces in which nothing may be done.
        (IN_NAMESPACE, ..) if error != Errno::EPERM => Err(NoMount::Fuse(error)),
        _ => Err(NoMount::Namespace(error)),
    }
}

/// Enters a user namespace, in which this process may mount. Its user and group stay.
fn enter() -> Result<(), Errno> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPERM)))
    };
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("setgroups", "deny".into())?;
    write("gid_map", format!("{gid} {gid} 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_missing() {
        let pair = || {
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap()
        };
        let answer = |message: &[u8]| {
            let (ours, theirs) = pair();
            nix::unistd::write(&theirs, message).unwrap();
            drop(theirs);
            receive(&ours).unwrap_err()
        };
        let with = |step: u8, error: Errno| {
            let mut message = vec![step];
            message.extend((error as i32).to_ne_bytes());
            message
        };
        assert_eq!(answer(&with(0, Errno::ENOSPC)), NoMount::Namespace(Errno::ENOSPC));
        assert_eq!(answer(&with(IN_NAMESPACE, Errno::EPERM)), NoMount::Namespace(Errno::EPERM));
        assert_eq!(answer(&with(IN_NAMESPACE, Errno::EACCES)), NoMount::Fuse(Errno::EACCES));
        let (ours, theirs) = pair();
        drop(theirs);
        assert!(matches!(receive(&ours).unwrap_err(), NoMount::Namespace(_)));
    }
}
