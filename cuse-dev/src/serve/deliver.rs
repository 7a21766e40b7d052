//! Puts a descriptor into the table of a stopped caller: by a pair of sockets that the caller
//! makes, since that needs no privilege, no name and no common root.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};

use engine::Errno;
use engine::memory::AddressSpace;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use zerocopy::{Immutable, IntoBytes};

use super::stopped::Stopped;

/// `struct msghdr` of a 64-bit caller, and what it points at.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Receive {
    name: u64,
    name_length: u64,
    iov: u64,
    iov_count: u64,
    control: u64,
    control_length: u64,
    flags: u64,
    data: u64,
    data_length: u64,
    byte: u64,
    /// `struct cmsghdr` with one descriptor and its padding.
    message: [u8; CONTROL],
}

const CONTROL: usize = 24;
const _: () = assert!(size_of::<Receive>() <= super::stopped::SCRATCH);

/// Gives `file` to the caller, with close-on-exec; answers its number there. `EMFILE` when its
/// table is full. On an error the caller's table is as it was.
pub(super) fn give(
    caller: &mut Stopped,
    memory: &dyn AddressSpace,
    file: BorrowedFd<'_>,
) -> Result<i32, Errno> {
    let at = caller.scratch();
    let pair = libc::AF_UNIX as u64;
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
    caller.call(libc::SYS_socketpair, [pair, kind, 0, at])??;
    let mut numbers = [[0; 4]; 2];
    memory.read(at, numbers.as_mut_bytes())?;
    let [ours, theirs] = numbers.map(i32::from_ne_bytes);
    let sent = send(caller, ours, file);
    // Its number is the lowest that was free: the file is to get it.
    close(caller, ours)?;
    let received = match sent {
        Ok(()) => receive(caller, memory, theirs, at),
        Err(error) => Err(error),
    };
    close(caller, theirs)?;
    received
}

/// Takes back what [`give`] gave.
pub(super) fn close(caller: &mut Stopped, number: i32) -> Result<(), Errno> {
    // Linux frees the number whatever close returns.
    caller.call(libc::SYS_close, [number as u64, 0, 0, 0]).map(drop)
}

fn send(caller: &Stopped, number: i32, file: BorrowedFd<'_>) -> Result<(), Errno> {
    let socket = caller.descriptor(number)?;
    let files = [file.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&files)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &message, flags, None)?;
    Ok(())
}

fn receive(
    caller: &mut Stopped,
    memory: &dyn AddressSpace,
    socket: i32,
    at: u64,
) -> Result<i32, Errno> {
    let field = |offset: usize| at + offset as u64;
    let control = field(std::mem::offset_of!(Receive, message));
    let message = Receive {
        name: 0,
        name_length: 0,
        iov: field(std::mem::offset_of!(Receive, data)),
        iov_count: 1,
        control,
        control_length: CONTROL as u64,
        flags: 0,
        data: field(std::mem::offset_of!(Receive, byte)),
        data_length: 1,
        byte: 0,
        message: [0; CONTROL],
    };
    memory.write(at, message.as_bytes())?;
    let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
    caller.call(libc::SYS_recvmsg, [socket as u64, at, flags, 0])??;
    let mut answer = [0; CONTROL];
    memory.read(control, &mut answer)?;
    // A full table shows as a message without its rights (MSG_CTRUNC).
    let (length, kind) = (&answer[..8], &answer[8..16]);
    let rights = [libc::SOL_SOCKET, libc::SCM_RIGHTS];
    if length != 20_u64.to_ne_bytes() || kind != rights.as_bytes() {
        return Err(Errno::EMFILE);
    }
    Ok(i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]))
}
