//! Files of callers whose pages `IOMMU_IOAS_MAP_FILE` can pin.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use engine::Errno;
use engine::caller::CallerFile;
use engine::memory::{BackingFile, PAGE_SIZE, Pin};

use super::map::FileKind;
use super::pin::Pages;
use super::{Host, shared};

/// A regular file that a caller has open.
pub struct HostFile {
    host: Arc<Host>,
    file: OwnedFd,
    kind: FileKind,
    writable: bool,
    name: String,
}

impl HostFile {
    /// What `file`, a duplicate of a caller's descriptor, is to the engine. The caller has
    /// already found that it is no file of the engine.
    pub fn classify(host: &Arc<Host>, file: OwnedFd) -> Result<CallerFile, Errno> {
        let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL)?;
        if flags & libc::O_PATH != 0 {
            // Names a place, not a file.
            return Err(Errno::EBADF);
        }
        let kind = FileKind::of(file.as_fd())?;
        if !kind.regular {
            return Ok(CallerFile::Other);
        }
        let writable = flags & libc::O_ACCMODE == libc::O_RDWR;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let name = link.map_or_else(|_| "a file".into(), |path| path.display().to_string());
        let name = name.trim_start_matches("/memfd:").trim_end_matches(" (deleted)");
        let name = if kind.pinnable { format!("memfd:{name}") } else { name.to_owned() };
        Ok(CallerFile::Backing(Arc::new(Self { host: host.clone(), file, kind, writable, name })))
    }
}

impl BackingFile for HostFile {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn pinnable(&self) -> bool {
        self.kind.pinnable
    }

    fn size(&self) -> u64 {
        let stat = nix::sys::stat::fstat(&self.file);
        stat.ok().and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0)
    }

    fn pin(&self, offset: u64, pages: u64, write: bool) -> Result<Arc<dyn Pin>, Errno> {
        if !self.kind.pinnable {
            return Err(Errno::EINVAL);
        }
        let length = pages.checked_mul(PAGE_SIZE).ok_or(Errno::EINVAL)?;
        let end = offset.checked_add(length).ok_or(Errno::EINVAL)?;
        if length == 0 || !offset.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let kind = FileKind { size: self.size(), ..self.kind };
        // Of a page that the file ends in the kernel pins nothing, either.
        if end > kind.size {
            return Err(Errno::EINVAL);
        }
        if write && !self.writable {
            return Err(Errno::EPERM);
        }
        let map = self.host.maps.for_pin(&self.file, &kind, end, write)?;
        let mut parts = Vec::with_capacity(1);
        shared::pin(&self.host, &map, offset, length, 0, &mut parts)?;
        Ok(Arc::new(Pages::new(self.host.clone(), parts, write)))
    }
}
