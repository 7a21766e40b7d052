//! The Linux iommufd uAPI: structs, commands, decoding and printing.
//!
//! Everything here describes bytes and nothing acts on them: what a command *does* is the
//! engine's. Structs and constants keep the names, the order and the types of Linux 7.3's headers
//! (`include/uapi/linux/iommufd.h`, `drivers/iommu/iommufd/iommufd_test.h`,
//! `include/uapi/linux/vfio.h`), so that what one knows of the kernel is found again here.
//!
//! - [`iommufd`], [`selftest`], [`vfio`]: the structs and constants, each described by a
//!   [`layout::Layout`] or a [`layout::Set`].
//! - [`command`]: the one table of commands. A new ioctl is a struct and a row in it.
//! - [`decode`](mod@decode): how a caller's struct of another size becomes ours, as the kernel
//!   does it.
//! - [`print`](mod@print): commands and structs as `strace` would show them.
//! - [`header`]: the same as C.
#![no_std]

#[macro_use]
mod macros;

pub mod command;
pub mod decode;
pub mod header;
pub mod iommufd;
pub mod layout;
pub mod print;
pub mod release;
pub mod selftest;
pub mod vfio;

pub use command::{Command, CommandStruct};
pub use decode::{DecodeError, decode};
pub use layout::AbiStruct;
pub use print::{print, print_call};
pub use release::Release;
