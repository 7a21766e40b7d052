//! What depends on the processor: the numbers of the system calls that the launcher watches.
//!
//! Another architecture is another `mod` here, and nothing else. Sources: `<asm/unistd.h>` and
//! `<linux/audit.h>`.

/// What a watched system call is for the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `open(path, flags)`
    Open,
    /// `openat(dirfd, path, flags)`
    Openat,
    /// `openat2(dirfd, path, how, size)`
    Openat2,
    /// `ioctl(fd, command, argument)`, with a command of type `;`
    Ioctl,
    /// `mmap(address, length, protection, flags, fd, offset)`, not anonymous
    Mmap,
    /// The same of 32-bit code, with an offset in pages
    Mmap2,
    /// `read(fd, buffer, 0)`
    ReadNothing,
    /// `write(fd, buffer, 0)`
    WriteNothing,
}

#[cfg(target_arch = "x86_64")]
mod this {
    use super::Call;

    pub(crate) const AUDIT_ARCH: u32 = 0xc000_003e;
    pub(crate) const CALLS: &[(i64, Call)] = &[
        (libc::SYS_ioctl, Call::Ioctl),
        (libc::SYS_mmap, Call::Mmap),
        (libc::SYS_read, Call::ReadNothing),
        (libc::SYS_write, Call::WriteNothing),
        (libc::SYS_openat, Call::Openat),
        (libc::SYS_open, Call::Open),
        (libc::SYS_openat2, Call::Openat2),
    ];

    /// Calls of 32-bit code (i386). iommufd's structs are the same there.
    pub(crate) const COMPAT: Option<(u32, &[(i64, Call)])> = Some((
        0x4000_0003,
        &[
            (54, Call::Ioctl),
            (192, Call::Mmap2),
            (3, Call::ReadNothing),
            (4, Call::WriteNothing),
            (295, Call::Openat),
            (5, Call::Open),
            (437, Call::Openat2),
        ],
    ));
}

#[cfg(target_arch = "aarch64")]
mod this {
    use super::Call;

    pub(crate) const AUDIT_ARCH: u32 = 0xc000_00b7;
    pub(crate) const CALLS: &[(i64, Call)] = &[
        (libc::SYS_ioctl, Call::Ioctl),
        (libc::SYS_mmap, Call::Mmap),
        (libc::SYS_read, Call::ReadNothing),
        (libc::SYS_write, Call::WriteNothing),
        (libc::SYS_openat, Call::Openat),
        (libc::SYS_openat2, Call::Openat2),
    ];

    /// Calls of 32-bit code: not yet.
    pub(crate) const COMPAT: Option<(u32, &[(i64, Call)])> = None;
}

pub(crate) use this::{AUDIT_ARCH, CALLS, COMPAT};

impl Call {
    /// What the system call `number` of `arch` is, if it is one of those that are watched.
    pub(crate) fn of(arch: u32, number: i32) -> Option<Self> {
        let calls = match COMPAT {
            _ if arch == AUDIT_ARCH => CALLS,
            Some((compat, calls)) if arch == compat => calls,
            _ => return None,
        };
        calls.iter().find(|(n, _)| *n == i64::from(number)).map(|(_, call)| *call)
    }
}
