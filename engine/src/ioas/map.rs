//! `IOMMU_IOAS_MAP`, `MAP_FILE`, `COPY` and `UNMAP`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use ioctl_abi::iommufd::{
    IOMMU_IOAS_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_MAP_WRITEABLE, iommu_ioas_copy,
    iommu_ioas_map, iommu_ioas_map_file, iommu_ioas_noiommu_get_pa, iommu_ioas_unmap,
};

use ioctl_abi::selftest::MOCK_FLAGS_ACCESS_SYZ;

use crate::Errno;
use crate::account::Account;
use crate::call::Call;
use crate::caller::CallerFile;
use crate::dmabuf::Dmabuf;
use crate::domain::Prot;
use crate::inject;
use crate::iopt::Piece;
use crate::kept::Unpinnable;
use crate::memory::{AddressSpace, BackingFile, PAGE_SIZE};
use crate::pages::{Origin, Pages, Source};

use super::Ioas;

const KNOWN_FLAGS: u32 =
    IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

/// What `flags` allow devices to do. All mappings are cache coherent.
fn prot(flags: u32) -> Prot {
    let mut prot = Prot::CACHE;
    prot.set(Prot::READ, flags & IOMMU_IOAS_MAP_READABLE != 0);
    prot.set(Prot::WRITE, flags & IOMMU_IOAS_MAP_WRITEABLE != 0);
    prot
}

fn fixed(flags: u32, iova: u64) -> Option<u64> {
    (flags & IOMMU_IOAS_MAP_FIXED_IOVA != 0).then_some(iova)
}

/// `IOMMU_IOAS_MAP`.
pub(crate) fn map(call: &Call<'_>, command: &mut iommu_ioas_map) -> Result<(), Errno> {
    if command.flags & !KNOWN_FLAGS != 0 || command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if command.iova == u64::MAX || command.length == u64::MAX {
        return Err(Errno::EOVERFLOW);
    }
    if command.flags & (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE) == 0 {
        return Err(Errno::EINVAL);
    }
    let ioas = call.context.objects().get::<Ioas>(command.ioas_id)?;
    command.iova = Mapping {
        call: "IOMMU_IOAS_MAP",
        ioas: ioas.object(),
        prot: prot(command.flags),
        fixed: fixed(command.flags, command.iova),
        account: call.context.account(call),
    }
    .memory(&call.memory, command.user_va, command.length)?;
    call.respond(command)
}

/// `IOMMU_IOAS_MAP_FILE`.
pub(crate) fn map_file(call: &Call<'_>, command: &mut iommu_ioas_map_file) -> Result<(), Errno> {
    if command.flags & !KNOWN_FLAGS != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if command.iova == u64::MAX || command.length == u64::MAX {
        return Err(Errno::EOVERFLOW);
    }
    if command.flags & (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE) == 0 {
        return Err(Errno::EINVAL);
    }
    let ioas = call.context.objects().get::<Ioas>(command.ioas_id)?;
    if command.length == 0 {
        return Err(Errno::EINVAL);
    }
    command.start.checked_add(command.length - 1).ok_or(Errno::EOVERFLOW)?;
    let file: Arc<dyn BackingFile> = match call.caller.file(command.fd)? {
        CallerFile::Backing(file) => file,
        CallerFile::Engine(file) => match file.backing() {
            Some(backing) => backing,
            None => Unpinnable::file(call.context, file),
        },
        CallerFile::Context(id) => match call.context.engine().context(id) {
            Some(mapped) => Unpinnable::context(call.context, &mapped),
            None => Unpinnable::other(call.context),
        },
        CallerFile::Other => Unpinnable::other(call.context),
    };
    command.iova = Mapping {
        call: "IOMMU_IOAS_MAP_FILE",
        ioas: ioas.object(),
        prot: prot(command.flags),
        fixed: fixed(command.flags, command.iova),
        account: call.context.account(call),
    }
    .file(file, command.start, command.length)?;
    call.respond(command)
}

/// `IOMMU_IOAS_COPY`.
pub(crate) fn copy(call: &Call<'_>, command: &mut iommu_ioas_copy) -> Result<(), Errno> {
    // A kernel with the selftest takes fuzzers' IOVAs in the source.
    if call.context.engine().quirks() && command.flags & MOCK_FLAGS_ACCESS_SYZ != 0 {
        command.flags &= !MOCK_FLAGS_ACCESS_SYZ;
        if let Ok(source) = call.context.objects().get::<Ioas>(command.src_ioas_id) {
            command.src_iova = source.nth_area(command.src_iova);
        }
    }
    if command.flags & !KNOWN_FLAGS != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if [command.length, command.dst_iova, command.src_iova].contains(&u64::MAX) {
        return Err(Errno::EOVERFLOW);
    }
    if command.flags & (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE) == 0 {
        return Err(Errno::EINVAL);
    }
    let source = call.context.objects().get::<Ioas>(command.src_ioas_id)?;
    let last = command.length.checked_sub(1).ok_or(Errno::EINVAL)?;
    let last = command.src_iova.checked_add(last).ok_or(Errno::EOVERFLOW)?;
    let pieces = source.pieces(&(command.src_iova..=last))?;
    let target = call.context.objects().get::<Ioas>(command.dst_ioas_id)?;
    let fixed = fixed(command.flags, command.dst_iova);
    command.dst_iova = target.object().map(pieces, prot(command.flags), fixed)?;
    call.respond(command)
}

/// `IOMMU_IOAS_UNMAP`.
pub(crate) fn unmap(call: &Call<'_>, command: &mut iommu_ioas_unmap) -> Result<(), Errno> {
    let ioas = call.context.objects().get::<Ioas>(command.ioas_id)?;
    if command.iova == 0 && command.length == u64::MAX {
        // An IOAS without areas is empty already.
        command.length = 0;
        ioas.unmap(&(0..=u64::MAX), &mut command.length)?;
    } else {
        if command.iova == u64::MAX || command.length == u64::MAX {
            return Err(Errno::EOVERFLOW);
        }
        let last = command.length.checked_sub(1).ok_or(Errno::EINVAL)?;
        let last = command.iova.checked_add(last).ok_or(Errno::EOVERFLOW)?;
        command.length = 0;
        ioas.unmap(&(command.iova..=last), &mut command.length)?;
        if command.length == 0 {
            return Err(Errno::ENOENT);
        }
    }
    call.respond(command)
}

/// `IOMMU_IOAS_NOIOMMU_GET_PA`: for devices without an IOMMU, which no simulated device is.
pub(crate) fn noiommu_get_pa(_: &Call<'_>, _: &mut iommu_ioas_noiommu_get_pa) -> Result<(), Errno> {
    Err(Errno::EOPNOTSUPP)
}

/// A mapping to be made.
pub(crate) struct Mapping<'a> {
    /// The call, for reports.
    pub(crate) call: &'static str,
    pub(crate) ioas: &'a Arc<Ioas>,
    pub(crate) prot: Prot,
    /// Where, or nothing to choose.
    pub(crate) fixed: Option<u64>,
    /// Who pays.
    pub(crate) account: Arc<Account>,
}

impl Mapping<'_> {
    /// Maps `length` bytes at `address` of an mm, and answers where.
    pub(crate) fn memory(
        self,
        memory: &Arc<dyn AddressSpace>,
        address: u64,
        length: u64,
    ) -> Result<u64, Errno> {
        let within = address % PAGE_SIZE;
        address.checked_add(length).ok_or(Errno::EOVERFLOW)?;
        let count = count(within, length)?;
        let source = Source::Memory { memory: memory.clone(), address: address - within };
        self.pages(source, count, within, length)
    }

    /// Maps `length` bytes from byte `start` of a file, and answers where.
    pub(crate) fn file(
        self,
        file: Arc<dyn BackingFile>,
        start: u64,
        length: u64,
    ) -> Result<u64, Errno> {
        let within = start % PAGE_SIZE;
        let count = count(within, length)?;
        let last = start.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
        let offset = start - within;
        let dmabuf = file.dmabuf().and_then(|exporter| exporter.downcast::<Dmabuf>().ok());
        let source = match dmabuf {
            Some(dmabuf) if last >= dmabuf.length() => return Err(Errno::EINVAL),
            Some(dmabuf) => Source::Dmabuf { dmabuf, offset },
            None => Source::File { file, offset },
        };
        self.pages(source, count, within, length)
    }

    fn pages(self, source: Source, count: u64, at: u64, length: u64) -> Result<u64, Errno> {
        let origin = Origin {
            call: self.call,
            caller: self.account.process().pid(),
            at: Instant::now(),
            ioas: self.ioas.id(),
            iova: AtomicU64::new(0),
        };
        let writable = self.prot.contains(Prot::WRITE);
        let pages = Pages::new(source, count, writable, self.account, origin)?;
        inject::site("iopt: list of pages")?;
        self.ioas.map(vec![Piece { pages, at, length, copied: false }], self.prot, self.fixed)
    }
}

/// The pages that `length` bytes touch from byte `within` of the first one. `EINVAL` for none, and
/// for so many that they cannot be counted.
fn count(within: u64, length: u64) -> Result<u64, Errno> {
    if length == 0 || length > u64::MAX - PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    let end = within.checked_add(length).ok_or(Errno::EINVAL)?;
    Ok(end.div_ceil(PAGE_SIZE))
}
