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
//! # Where to look
//! - Which formats there are: [`AmdV1`], [`VtdSecond`], [`X86_64`], [`Lpae`], [`RiscV`], [`S390`],
//!   [`MockV1`]; how a new one is made: [`Format`].
//! - What can be done with a table: [`Table`]; from other threads meanwhile: [`Reader`]; when the
//!   format is known at run time only: [`AnyTable`].
//! - Where its pages come from: [`Memory`], [`Heap`], [`Pool`]; what happens when there are none:
//!   [`Failing`].
//! - Tables of another machine: [`Dump`].
//!
//! # How it is tested
//! One suite (`tests/formats.rs`) runs over every format; raw entries are checked against worked values
//! (`tests/worked.rs`) and against what Linux 7.3 wrote (`tests/kernel.rs`); the laws of encoding and
//! decoding are tried densely, and written as proofs for Kani (`src/formats/laws.rs`). Under
//! `cfg(miri)` the counts are small. `fuzz/` drives random operations with libFuzzer.
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
mod pair;
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

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
