//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::cli_inspect;
use cuse_dev::memory::PfnMode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Linux's iommufd in userspace.
#[derive(Debug, Parser)]
#[command(name = "softiommu", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program whose /dev/iommu is softiommu
    ///
    /// The program needs no change: its opens of /dev/iommu and /dev/vfio/vfio, its ioctls on
    /// them and its mmaps of them are answered by softiommu, and so are those of everything that
    /// it starts. The exit status is the program's. Like strace -f, this waits until all that the
    /// program started has ended.
    Run(Run),
    /// Give the machine a /dev/iommu
    ///
    /// A daemon that answers for /dev/NAME: a character device where the kernel has CUSE, else a
    /// regular file by FUSE. Programs, containers and other users among them, then open it like
    /// the kernel's. It needs root to begin and gives up what it does not need.
    Serve(crate::cli_serve::Serve),
    /// Examine this machine: what is missing, what that costs, and how to get it
    ///
    /// Each thing is tried, not looked up. The exit status is 0 if what --for names works here,
    /// with fallbacks or without, and 1 if it does not.
    Doctor(crate::cli_doctor::Doctor),
    /// Write the manual pages and the shells' completions into a directory
    #[command(hide = true)]
    Pages(crate::cli_pages::Pages),
    /// Show what a running softiommu maps, pins and counts, and what it warned of
    Show(cli_inspect::ShowArgs),
    /// Walk a device's page tables: every level's raw IOPTE, and whose frame it ends at
    Walk(cli_inspect::WalkArgs),
    /// Find a frame: whose page it is, how it is held, where it is mapped, what it contains
    Pfn(cli_inspect::PfnArgs),
    /// Make a DMA as a device would: through its IOTLB and IOPTEs, with rights and dirty bits
    Dma(cli_inspect::DmaArgs),
}

/// Options of `softiommu run`.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Write a line for each call to FILE: caller, command with all fields, result, time
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Exit with 1 if the program succeeded and left an object, a pin or a descriptor behind
    #[arg(long)]
    pub(crate) strict: bool,
    /// Do as Linux 7.3 does even where it is plainly at fault: see docs/differences.md
    #[arg(long)]
    pub(crate) quirks: bool,
    /// Use the node of a `softiommu serve`, and add what it lacks: mmap and fault injection
    ///
    /// What the program does is then done by that daemon, under its options and limits.
    #[arg(long, value_name = "NODE", conflicts_with_all = ["strict", "quirks", "pfn", "control"])]
    pub(crate) via: Option<PathBuf>,
    /// Page frame numbers in IOPTEs: the machine's, or made-up ones that stay the same
    #[arg(long, value_name = "KIND", default_value = "real")]
    pub(crate) pfn: Pfn,
    /// Answer `softiommu show` and its like at PATH, not where they look by themselves
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<OsString>,
}

/// Where page frame numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pfn {
    /// From the kernel's pagemap where it may be read, else simulated.
    Real,
    /// Made up, with the same contiguity.
    Simulated,
}

impl From<Pfn> for PfnMode {
    fn from(pfn: Pfn) -> Self {
        match pfn {
            Pfn::Real => Self::Real,
            Pfn::Simulated => Self::Simulated,
        }
    }
}
