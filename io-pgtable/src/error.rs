//! What an operation on a table can refuse, with the numbers a person needs to see why.

use core::fmt;

/// Why an operation did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The range is empty, wraps, or leaves the IOVAs that the table can translate.
    OutOfRange {
        /// First IOVA of the range.
        iova: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The physical range wraps or has bits that an entry cannot hold.
    OutputTooLarge {
        /// First physical address of the range.
        pa: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// IOVA, physical address or length is no multiple of the smallest page size allowed.
    Unaligned {
        /// The bitwise OR of everything that has to be aligned.
        bits: u64,
        /// The smallest page size allowed, in bytes.
        page_size: u64,
    },
    /// The format has no page size in the caller's mask.
    NoPageSize {
        /// The caller's mask: bit n allows pages of 2^n bytes.
        mask: u64,
    },
    /// The format cannot express these permissions.
    Unsupported {
        /// The permissions asked for.
        prot: crate::Prot,
    },
    /// Something is mapped here already.
    Exists {
        /// The first IOVA found mapped.
        iova: u64,
    },
    /// Nothing is mapped here.
    NotMapped {
        /// The IOVA without a translation.
        iova: u64,
    },
    /// The boundary lies inside a larger entry; [`cut`](crate::Table::cut) it first.
    InsideEntry {
        /// First IOVA of the entry.
        iova: u64,
        /// log2 of its size in bytes.
        lg2: u32,
    },
    /// The entry does not permit the access.
    Denied {
        /// The IOVA accessed.
        iova: u64,
        /// What its entry permits.
        prot: crate::Prot,
    },
    /// The memory had no table to give.
    NoMemory,
    /// An entry holds what the format reserves, or points at memory that is not there.
    Malformed {
        /// The IOVA whose walk met the entry.
        iova: u64,
        /// The entry as it stands in memory.
        entry: u64,
    },
    /// The configuration asks for what the format cannot do.
    BadConfig,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfRange { iova, len } => {
                write!(f, "IOVA {iova:#x} + {len:#x} is outside of the table")
            }
            Self::OutputTooLarge { pa, len } => {
                write!(f, "physical address {pa:#x} + {len:#x} does not fit an entry")
            }
            Self::Unaligned { bits, page_size } => {
                write!(f, "{bits:#x} is not a multiple of the page size {page_size:#x}")
            }
            Self::NoPageSize { mask } => write!(f, "no page size of the format is in {mask:#x}"),
            Self::Unsupported { prot } => write!(f, "the format cannot express {prot}"),
            Self::Exists { iova } => write!(f, "IOVA {iova:#x} is mapped already"),
            Self::NotMapped { iova } => write!(f, "IOVA {iova:#x} is not mapped"),
            Self::InsideEntry { iova, lg2 } => {
                write!(f, "the boundary is inside the entry of 2^{lg2} bytes at IOVA {iova:#x}")
            }
            Self::Denied { iova, prot } => write!(f, "IOVA {iova:#x} permits only {prot}"),
            Self::NoMemory => f.write_str("no memory for a table"),
            Self::Malformed { iova, entry } => {
                write!(f, "malformed entry {entry:#x} on the way to IOVA {iova:#x}")
            }
            Self::BadConfig => f.write_str("the format does not offer this configuration"),
        }
    }
}

impl core::error::Error for Error {}
