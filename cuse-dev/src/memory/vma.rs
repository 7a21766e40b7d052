//! Looking up one mapping of another process without reading all of them.
//!
//! `PROCMAP_QUERY` (Linux 6.11) answers in a quarter of a microsecond however many mappings there
//! are. On older kernels `maps` is read and parsed. Either way the open file names the mm that
//! the process had when it was opened.
#![allow(unsafe_code)] // one ioctl

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::os::fd::AsRawFd;

use engine::Errno;

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vma {
    /// First address.
    pub(crate) start: u64,
    /// First address after it.
    pub(crate) end: u64,
    /// `PROT_READ`.
    pub(crate) readable: bool,
    /// `PROT_WRITE`.
    pub(crate) writable: bool,
    /// `PROT_EXEC`.
    pub(crate) executable: bool,
    /// `MAP_SHARED`.
    pub(crate) shared: bool,
    /// Byte offset of `start` in the file.
    pub(crate) offset: u64,
    /// The file's device (major, minor) and inode, if there is a file.
    pub(crate) file: Option<(u32, u32, u64)>,
}

/// `struct procmap_query` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    device: [u32; 2],
    name_size: u32,
    build_id_size: u32,
    name_address: u64,
    build_id_address: u64,
}
const _: () = assert!(size_of::<Query>() == 104);

/// `PROCMAP_QUERY`: `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: libc::c_ulong = (3 << 30) | (104 << 16) | ((b'f' as libc::c_ulong) << 8) | 17;
const READABLE: u64 = 1;
const WRITABLE: u64 = 2;
const EXECUTABLE: u64 = 4;
const SHARED: u64 = 8;

/// The mappings of one mm, through an open `/proc/PID/maps`.
pub(crate) struct Mappings(File);

impl Mappings {
    /// Looks mappings up in `maps`, an open `/proc/PID/maps`.
    pub(crate) fn new(maps: File) -> Self {
        Self(maps)
    }

    /// The mapping that contains `address`. `EFAULT` when there is none, `ESRCH` when the mm is
    /// gone.
    pub(crate) fn find(&self, address: u64) -> Result<Vma, Errno> {
        match self.query(address) {
            Err(Errno::ENOENT) => Err(Errno::EFAULT),
            Err(Errno::ENOTTY) => self.search(address),
            other => other,
        }
    }

    /// What `PROCMAP_QUERY` says: `ENOENT` when there is no mapping, `ENOTTY` from a kernel that
    /// does not know it.
    pub(crate) fn query(&self, address: u64) -> Result<Vma, Errno> {
        let mut query = Query { size: size_of::<Query>() as u64, address, ..Query::default() };
        // SAFETY: `query` is as long as it says and as the command says, and any bytes are valid
        // in it; its name and build-id pointers are null with size 0.
        let asked = unsafe { libc::ioctl(self.0.as_raw_fd(), PROCMAP_QUERY as _, &raw mut query) };
        Errno::result(asked)?;
        Ok(Vma {
            start: query.start,
            end: query.end,
            readable: query.vma_flags & READABLE != 0,
            writable: query.vma_flags & WRITABLE != 0,
            executable: query.vma_flags & EXECUTABLE != 0,
            shared: query.vma_flags & SHARED != 0,
            offset: query.offset,
            file: (query.inode != 0).then_some((query.device[0], query.device[1], query.inode)),
        })
    }

    fn search(&self, address: u64) -> Result<Vma, Errno> {
        let mut file = &self.0;
        file.rewind().map_err(errno)?;
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(errno)?;
            let Some(vma) = parse(&String::from_utf8_lossy(&line)) else { continue };
            if vma.start <= address && address < vma.end {
                return Ok(vma);
            }
        }
        Err(Errno::EFAULT)
    }
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// One line of `/proc/PID/maps`.
fn parse(line: &str) -> Option<Vma> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?.as_bytes();
    let offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode: u64 = fields.next()?.parse().ok()?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let device = (u32::try_from(hex(major)?).ok()?, u32::try_from(hex(minor)?).ok()?);
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        readable: rights.first() == Some(&b'r'),
        writable: rights.get(1) == Some(&b'w'),
        executable: rights.get(2) == Some(&b'x'),
        shared: rights.get(3) == Some(&b's'),
        offset: hex(offset)?,
        file: (inode != 0).then_some((device.0, device.1, inode)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_and_the_text_agree() {
        let mappings = Mappings::new(File::open("/proc/self/maps").unwrap());
        let code = a_query_and_the_text_agree as fn() as usize as u64;
        let stack = (&raw const mappings) as u64;
        for address in [code, stack] {
            let vma = mappings.find(address).unwrap();
            assert!(vma.start <= address && address < vma.end && vma.readable);
            // The stack may grow between the two look-ups.
            let text = mappings.search(address).unwrap();
            assert_eq!((vma.end, vma.writable, vma.shared), (text.end, text.writable, text.shared));
            assert_eq!((vma.executable, text.executable), (address == code, address == code));
            assert_eq!(vma.file, text.file);
        }
        assert_eq!(mappings.find(0), Err(Errno::EFAULT));
        assert_eq!(mappings.search(0), Err(Errno::EFAULT));
    }

    #[test]
    fn a_line_of_maps() {
        let line = "7f0a-7f0c rw-s 00003000 00:1f 4711    /memfd:guest ram (deleted)";
        let expected = Vma {
            start: 0x7f0a,
            end: 0x7f0c,
            readable: true,
            writable: true,
            executable: false,
            shared: true,
            offset: 0x3000,
            file: Some((0, 0x1f, 4711)),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("nonsense"), None);
        assert_eq!(parse(""), None);
    }
}
