//! The command line of `softiommu serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use cuse_dev::control::Warnings;
use cuse_dev::serve;

use crate::cli::Pfn;

/// Options of `softiommu serve`.
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The node: /dev/NAME
    #[arg(long, value_name = "NAME", default_value = "iommu", value_parser = name)]
    pub(crate) name: String,
    /// Serve VFIO's container /dev/vfio/vfio, too
    #[arg(long)]
    pub(crate) container: bool,
    /// How the node is made
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) front: Front,
    /// The node's permission bits, in octal
    #[arg(long, value_name = "BITS", default_value = "660", value_parser = mode)]
    pub(crate) mode: u32,
    /// The node's group, by name or number
    #[arg(long, value_name = "GROUP", default_value = "0", value_parser = group)]
    pub(crate) group: u32,
    /// Stay in the foreground
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Write a line for each call to FILE: caller, command with all fields, result, time
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Where `softiommu show` and the like reach this daemon
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Do as Linux 7.3 does even where it is plainly at fault: see docs/differences.md
    #[arg(long)]
    pub(crate) quirks: bool,
    /// Page frame numbers in IOPTEs: made-up ones that stay the same, or the machine's, for
    /// which the daemon keeps CAP_SYS_ADMIN
    #[arg(long, value_name = "KIND", default_value = "simulated")]
    pub(crate) pfn: Pfn,
    /// Most contexts (opens of the node) of one user other than root
    #[arg(long, value_name = "COUNT", default_value_t = serve::Limits::default().contexts)]
    pub(crate) max_contexts: usize,
    /// Most requests of one user other than root that each hold a thread of the daemon
    #[arg(long, value_name = "COUNT", default_value_t = serve::Limits::default().requests)]
    pub(crate) max_requests: usize,
    /// Most objects of one user other than root, in all its contexts: more are refused with ENOMEM
    #[arg(long, value_name = "COUNT", default_value_t = serve::Limits::default().most.objects)]
    pub(crate) max_objects: u64,
    /// Most fault and event queues of one user other than root: EMFILE
    #[arg(long, value_name = "COUNT", default_value_t = serve::Limits::default().most.queues)]
    pub(crate) max_queues: u64,
    /// Most faults and events of one user other than root that wait in queues: ENOMEM, or a lost
    /// event
    #[arg(long, value_name = "COUNT", default_value_t = serve::Limits::default().most.events)]
    pub(crate) max_events: u64,
    /// Most areas of IOVAs that one user other than root may have mapped: ENOMEM
    #[arg(long, value_name = "COUNT", default_value_t = serve::Limits::default().most.areas)]
    pub(crate) max_areas: u64,
    /// Most memory of one user other than root that may be pinned, whatever RLIMIT_MEMLOCK and
    /// CAP_IPC_LOCK say, in bytes or with K, M, G or T after the number: ENOMEM [default: three
    /// quarters of the machine's memory]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_pinned: Option<u64>,
}

/// How the node is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Front {
    /// A character device, by the kernel's module `cuse`.
    Cuse,
    /// A regular file, by the kernel's module `fuse`.
    Fuse,
    /// CUSE where the kernel has it, else FUSE.
    Auto,
}

impl From<Serve> for serve::Options {
    fn from(options: Serve) -> Self {
        let limits = serve::Limits::default();
        let pages = options.max_pinned.map(|bytes| bytes / engine::memory::PAGE_SIZE);
        Self {
            name: options.name,
            container: options.container,
            front: match options.front {
                Front::Cuse => serve::Front::Cuse,
                Front::Fuse => serve::Front::Fuse,
                Front::Auto => serve::Front::Auto,
            },
            mode: options.mode,
            group: options.group,
            foreground: options.foreground,
            limits: serve::Limits {
                contexts: options.max_contexts,
                requests: options.max_requests,
                most: engine::Most {
                    objects: options.max_objects,
                    queues: options.max_queues,
                    events: options.max_events,
                    areas: options.max_areas,
                    pages: pages.unwrap_or(limits.most.pages),
                },
            },
            pfn: options.pfn.into(),
            quirks: options.quirks,
            control: options.control,
            warnings: Warnings::default(),
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    let bad = |c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c));
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || text.contains(bad) {
        return Err("a name has letters, digits, '-', '_' and '.', and no more than 64".into());
    }
    Ok(text.into())
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("three octal digits".into()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| "KMGTkmgt".contains(c));
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("one of K, M, G and T may follow the number".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number of bytes".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than there can be".into())
}

fn group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group".into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("8G"), Ok(8 << 30));
        assert_eq!(size("64k"), Ok(64 << 10));
        for bad in ["", "G", "1GB", "-1", "1.5G", "99999999T", "1KK"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
