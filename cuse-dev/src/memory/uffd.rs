//! A userfaultfd of a caller's mm that only tells what happens to its mappings.
//!
//! The helper makes it, since it belongs to the mm of who made it; any holder can use it. Ranges are
//! registered for write protection and never protected, so that no fault of the caller ever waits
//! for us. What does wait, until the event is read, is its `munmap`, `mremap` or `madvise` of such a
//! range. (The crate `userfaultfd` makes descriptors of its own process and wants clang to build.)
#![allow(unsafe_code)] // ioctls and their structures

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use engine::Errno;
use parking_lot::Mutex;

/// Flags of `userfaultfd(2)`: `O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY`. The last lets
/// ordinary users have one; it limits faults, which we do not want anyway.
pub(super) const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | 1;

const UFFD_API: u64 = 0xaa;
/// `_IOWR(0xaa, 0x3f, 24 bytes)`, `_IOWR(0xaa, 0, 32 bytes)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;
const EVENT_REMAP: u64 = 1 << 2;
const EVENT_REMOVE: u64 = 1 << 3;
const EVENT_UNMAP: u64 = 1 << 6;
/// Any mapping may be registered for write protection (Linux 6.7); before, anonymous ones.
const WP_ASYNC: u64 = 1 << 15;

/// `struct uffd_msg`: the event's number, and three words about it.
const MESSAGE: usize = 32;

/// What happened to a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) addresses: Range<u64>,
    pub(super) what: What,
    /// Before its cause returned.
    pub(super) when: Instant,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// `munmap`, or `mmap` over it.
    Unmapped,
    /// `madvise` threw the pages away (`MADV_DONTNEED`, `MADV_REMOVE`).
    Discarded,
    /// `mremap` moved them to that address.
    Moved(u64),
}

/// A mapping that is registered.
struct Registered {
    addresses: Range<u64>,
    /// Its pages are a file's, which tells what it loses.
    kept: bool,
}

impl Registered {
    fn overlaps(&self, other: &Range<u64>) -> bool {
        self.addresses.start < other.end && other.start < self.addresses.end
    }
}

/// A userfaultfd of a caller.
pub(super) struct Uffd {
    fd: OwnedFd,
    /// The mappings that are registered, as far as nothing happened to them since.
    registered: Mutex<Vec<Registered>>,
}

impl Uffd {
    /// `fd` was made by a process of the mm with [`FLAGS`] and not used yet.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let events = EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP;
        api(&fd, events | WP_ASYNC).or_else(|_| api(&fd, events))?;
        Ok(Self { fd, registered: Mutex::default() })
    }

    /// Tells of what happens to the mapping with those addresses from now on. A mapping as a whole:
    /// a part would become one of its own, and `mremap` of both together would fail. Of pages that
    /// are `kept` whatever `madvise` does to the mapping it tells nothing: the file's are told of
    /// when the file loses them ([`super::losses`]), and others are not lost.
    pub(super) fn watch(&self, mapping: Range<u64>, kept: bool) -> Result<(), Errno> {
        let mut registered = self.registered.lock();
        let covers = |known: &&mut Registered| {
            known.addresses.start <= mapping.start && mapping.end <= known.addresses.end
        };
        if let Some(known) = registered.iter_mut().find(covers) {
            known.kept = kept;
            return Ok(());
        }
        let length = mapping.end - mapping.start;
        register(&self.fd, mapping.start, length, UFFDIO_REGISTER_MODE_WP)?;
        registered.retain(|known| !known.overlaps(&mapping));
        registered.push(Registered { addresses: mapping, kept });
        Ok(())
    }

    /// The next event, if there is one. Whoever caused it goes on.
    pub(super) fn event(&self) -> Option<Event> {
        loop {
            let mut message = [0; MESSAGE];
            let when = Instant::now();
            if nix::unistd::read(&self.fd, &mut message) != Ok(MESSAGE) {
                return None;
            }
            let event = decode(&message, when)?;
            let gone = &event.addresses;
            let mut registered = self.registered.lock();
            if event.what != What::Discarded {
                // What is left of a mapping is registered again when it is needed.
                registered.retain(|known| !known.overlaps(gone));
            } else if registered.iter().any(|known| known.kept && known.overlaps(gone)) {
                continue;
            }
            return Some(event);
        }
    }
}

/// Agrees with the kernel on `features` of the new userfaultfd `fd`.
pub(super) fn api(fd: &OwnedFd, features: u64) -> Result<(), Errno> {
    let mut api = [UFFD_API, features, 0];
    // SAFETY: the command reads and writes 24 bytes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, api.as_mut_ptr()) })
        .map(drop)
}

/// Registers a range of addresses with `fd` in the way that `mode` says.
pub(super) fn register(fd: &OwnedFd, start: u64, length: u64, mode: u64) -> Result<(), Errno> {
    let mut register = [start, length, mode, 0];
    let at = register.as_mut_ptr();
    // SAFETY: the command reads and writes 32 bytes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER as _, at) }).map(drop)
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn decode(message: &[u8; MESSAGE], when: Instant) -> Option<Event> {
    let (words, _) = message.as_chunks::<8>();
    let [_, first, second, third] = [0, 1, 2, 3].map(|word| u64::from_ne_bytes(words[word]));
    let (addresses, what) = match message[0] {
        0x14 => (first..first.checked_add(third)?, What::Moved(second)),
        0x15 => (first..second, What::Discarded),
        0x16 => (first..second, What::Unmapped),
        _ => return None,
    };
    Some(Event { addresses, what, when })
}

impl std::fmt::Display for What {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unmapped => write!(to, "unmapped, or mapped over"),
            Self::Discarded => write!(to, "thrown away by madvise"),
            Self::Moved(to_address) => write!(to, "moved to {to_address:#x} by mremap"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    fn own() -> Option<Uffd> {
        // SAFETY: takes a number.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) as i32 };
        if fd < 0 {
            eprintln!("SKIPPED: no userfaultfd here: {}", Errno::last());
            return None;
        }
        // SAFETY: the kernel just made it.
        Some(Uffd::new(unsafe { OwnedFd::from_raw_fd(fd) }).unwrap())
    }

    #[test]
    fn mappings_tell_what_happens_to_them() {
        let Some(uffd) = own() else { return };
        let length = 16 * 4096_usize;
        // SAFETY: a new mapping, which nobody else knows.
        let at = unsafe {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), length, rights, flags, -1, 0)
        } as usize;
        uffd.watch(at as u64..(at + length) as u64, false).unwrap();
        std::thread::scope(|scope| {
            // They wait for the events to be read.
            let actor = scope.spawn(|| {
                // SAFETY: of the mapping made above.
                unsafe {
                    std::ptr::write_bytes(at as *mut u8, 1, length);
                    libc::madvise(at as *mut _, 4096, libc::MADV_DONTNEED);
                    libc::munmap((at + 8 * 4096) as *mut _, 2 * 4096);
                    libc::mremap(at as *mut _, 4096, 4096, libc::MREMAP_MAYMOVE | 2, at + 9 * 4096);
                }
            });
            let mut events = Vec::new();
            while !actor.is_finished() {
                events.extend(uffd.event());
                std::thread::yield_now();
            }
            let seen = |pages: Range<usize>, what| {
                let address = |page| (at + page * 4096) as u64;
                let addresses = address(pages.start)..address(pages.end);
                let same = |event: &Event| event.addresses == addresses && event.what == what;
                assert!(events.iter().any(same), "{events:x?} from {at:#x}");
            };
            seen(0..1, What::Discarded);
            seen(8..10, What::Unmapped);
            seen(0..1, What::Moved((at + 9 * 4096) as u64));
        });
        // Nobody would read of the last one.
        drop(uffd);
        // SAFETY: as above.
        unsafe { libc::munmap(at as *mut _, length) };
    }
}
