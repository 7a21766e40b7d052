//! IOMMU page-table formats of real hardware and one generic walker over them.
//!
//! A simulated IOMMU is only worth debugging against if its tables are the hardware's, bit for bit.
//! Here each [format](Format) is one file of small functions with the manual's section at each field;
//! the [algorithms](Table) exist once and are compiled for each format; and table pages lie in
//! [memory](Memory) that knows their physical addresses, so that anything which understands the
//! hardware can read them.
//!
//! ```
//! use io_pgtable::{AmdV1, Format, Heap, Prot, Table};
//!
//! let mut table = Table::<AmdV1, _>::new(Heap::new(), AmdV1::config())?;
//! table.map(0x20_0000, 0x8000_0000, 0x40_0000, Prot::READ | Prot::WRITE, u64::MAX)?;
//! assert_eq!(table.translate(0x20_1234)?.pa, 0x8000_1234);
//! println!("{}", table.walk(0x20_1234)?);
//! assert_eq!(table.unmap(0x20_0000, 0x40_0000)?, 0x40_0000);
//! # Ok::<(), io_pgtable::Error>(())
//! ```
//!
//! # How it is tested
//! One suite (`tests/formats.rs`) runs over every format; raw entries are checked against worked values
//! (`tests/worked.rs`). Under `cfg(miri)` the suite's counts are small: run it with
//! `MIRIFLAGS=-Zmiri-permissive-provenance cargo +nightly miri test -p io-pgtable`, because the [`Heap`]
//! turns addresses back into pointers. `fuzz/` drives random operations with libFuzzer.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod any;
mod bitmap;
mod config;
mod dump;
mod error;
mod format;
mod formats;
mod memory;
mod pool;
mod prot;
mod raw;
mod reclaim;
mod table;

pub use any::{AnyReader, AnyTable};
pub use bitmap::Bitmap;
pub use config::Config;
pub use dump::Dump;
pub use error::Error;
pub use format::{Dirty, Field, Format, Kind};
pub use formats::*;
pub use memory::{Failing, Heap, Memory};
pub use pool::Pool;
pub use prot::Prot;
pub use table::{Barrier, Reader, Step, Table, Taken, Translation, Walk};
