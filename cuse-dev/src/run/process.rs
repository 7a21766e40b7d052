//! Reading what a calling thread points at, before anything else of it is known.

use std::io;

use engine::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// The string at `address` of the thread `tid`, without its zero. `EFAULT`; `ENAMETOOLONG` as
/// `open` has it.
pub(crate) fn read_string(tid: u32, address: u64) -> Result<Vec<u8>, Errno> {
    const LONGEST: usize = libc::PATH_MAX as usize;
    let mut string = Vec::new();
    while string.len() < LONGEST {
        let from = address.checked_add(string.len() as u64).ok_or(Errno::EFAULT)?;
        // Never over the end of a page: the next one may be missing.
        let most = if string.is_empty() { 256 } else { 4096 };
        let length = (4096 - from % 4096).min(most) as usize;
        let mut piece = [0; 4096];
        read_exact(tid, from, &mut piece[..length])?;
        match piece[..length].iter().position(|&b| b == 0) {
            Some(end) => {
                string.extend_from_slice(&piece[..end]);
                return Ok(string);
            }
            None => string.extend_from_slice(&piece[..length]),
        }
    }
    Err(Errno::ENAMETOOLONG)
}

/// Copies from `address` of the thread `tid`.
pub(crate) fn read_exact(tid: u32, address: u64, into: &mut [u8]) -> Result<(), Errno> {
    let length = into.len();
    let remote =
        [RemoteIoVec { base: usize::try_from(address).unwrap_or(usize::MAX), len: length }];
    let read =
        process_vm_readv(Pid::from_raw(tid as i32), &mut [io::IoSliceMut::new(into)], &remote)?;
    if read == length { Ok(()) } else { Err(Errno::EFAULT) }
}

/// The process of the thread `tid`, which waits for us.
pub(crate) fn process_of(tid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}
