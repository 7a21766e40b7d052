//! Records the page tables that a real kernel writes for an emulated IOMMU.
//!
//! Runs as root in a VM whose kernel has iommufd and vfio-pci (`ci/record-iopte` starts it): binds
//! a PCI device to an iommufd, maps memory of several page sizes, finds the device's table through
//! the IOMMU's own registers, and prints every entry of every table with what was mapped. The
//! output is test data of io-pgtable.
#![allow(unsafe_code)] // Maps physical memory and passes structs to ioctls.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use ioctl_abi::command::iommufd::{IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP};
use ioctl_abi::iommufd::{
    IOMMU_IOAS_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_MAP_WRITEABLE, iommu_ioas_alloc,
    iommu_ioas_map,
};

/// `VFIO_DEVICE_BIND_IOMMUFD`, `VFIO_DEVICE_ATTACH_IOMMUFD_PT` (linux/vfio.h).
const VFIO_DEVICE_BIND_IOMMUFD: u64 = 0x3b76;
const VFIO_DEVICE_ATTACH_IOMMUFD_PT: u64 = 0x3b77;

/// The IOMMU's registers on QEMU's q35 machine.
const VTD_REGISTERS: u64 = 0xfed9_0000;
const AMD_REGISTERS: u64 = 0xfed8_0000;

fn ioctl<T>(file: &File, number: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is the command's struct and lives through the call.
    let got = unsafe { libc::ioctl(file.as_raw_fd(), number, argument as *mut T) };
    if got < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Memory to map: where it lies and how long it is.
struct Memory {
    address: u64,
    length: u64,
}

impl Memory {
    /// `length` bytes, all there, with the flags that choose the page size.
    fn new(length: u64, flags: i32) -> io::Result<Self> {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length as usize, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Self { address: at as u64, length })
    }

    fn frame(&self, at: u64) -> io::Result<u64> {
        let mut entry = [0; 8];
        let index = (self.address + at) / 4096 * 8;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, index)?;
        Ok(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
    }
}

/// Hands the PCI device to vfio-pci and answers its character device.
fn take_device(address: &str) -> io::Result<File> {
    let device = format!("/sys/bus/pci/devices/{address}");
    fs::write(format!("{device}/driver_override"), "vfio-pci")?;
    let _ = fs::write(format!("{device}/driver/unbind"), address);
    fs::write("/sys/bus/pci/drivers_probe", address)?;
    let name = fs::read_dir(format!("{device}/vfio-dev"))?
        .next()
        .ok_or_else(|| Error::other("vfio-pci took no device"))??
        .file_name();
    let path = format!("/dev/vfio/devices/{}", name.to_string_lossy());
    OpenOptions::new().read(true).write(true).open(path)
}

fn word(memory: &File, physical: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, physical)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A register of the IOMMU: device memory, which only a mapping reads.
fn register(memory: &File, physical: u64) -> io::Result<u64> {
    let (page, within) = (physical & !0xfff, physical & 0xfff);
    let null = std::ptr::null_mut();
    // SAFETY: a fresh mapping of a page of registers.
    let at = unsafe {
        libc::mmap(null, 4096, libc::PROT_READ, libc::MAP_SHARED, memory.as_raw_fd(), page as i64)
    };
    if at == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: inside the page just mapped, aligned to 8; unmapped once, after its last use.
    let value = unsafe {
        let value = at.cast::<u8>().add(within as usize).cast::<u64>().read_volatile();
        libc::munmap(at, 4096);
        value
    };
    Ok(value)
}

/// A table format as this program walks it: enough to find the tables.
struct Format {
    /// The physical address of the next lower table, if `entry` at `level` is one.
    next: fn(entry: u64, level: u32) -> Option<u64>,
}

const VTD: Format = Format {
    next: |entry, level| {
        (entry & 3 != 0 && entry & 0x80 == 0 && level > 1).then_some(entry & 0x000f_ffff_ffff_f000)
    },
};

const X86: Format = Format {
    next: |entry, level| {
        (entry & 1 != 0 && entry & 0x80 == 0 && level > 1).then_some(entry & 0x000f_ffff_ffff_f000)
    },
};

const AMD: Format = Format {
    next: |entry, _| {
        let next_level = entry >> 9 & 7;
        (entry & 1 != 0 && next_level != 0 && next_level != 7)
            .then_some(entry & 0x000f_ffff_ffff_f000)
    },
};

fn print_table(memory: &File, format: &Format, table: u64, level: u32) -> io::Result<()> {
    let mut below = Vec::new();
    for index in 0..512 {
        let entry = word(memory, table + index * 8)?;
        if entry != 0 {
            println!("entry {table:#x} {index} {entry:#018x}");
            below.extend((format.next)(entry, level));
        }
    }
    for next in below {
        print_table(memory, format, next, level - 1)?;
    }
    Ok(())
}

/// The device's table: its format, root and levels, as the IOMMU's registers and tables say.
fn find_table(memory: &File, kind: &str, devfn: u64) -> io::Result<(Format, u64, u32)> {
    if kind == "vtd" {
        // VT-d 11.4.5: Root Table Address; 9.1, 9.3: root entry, context entry in legacy mode.
        let roots = register(memory, VTD_REGISTERS + 0x20)? & !0xfff;
        let contexts = word(memory, roots)? & !0xfff;
        let context = contexts + devfn * 16;
        let levels = (word(memory, context + 8)? & 7) as u32 + 2;
        Ok((VTD, word(memory, context)? & 0x000f_ffff_ffff_f000, levels))
    } else if kind == "vtd-first" {
        // VT-d 9.2, 9.4 to 9.6: root, context, PASID directory and PASID table entry in scalable mode;
        // without a PASID of its own, the device has PASID 0.
        let roots = register(memory, VTD_REGISTERS + 0x20)? & !0xfff;
        let contexts = word(memory, roots + devfn / 128 * 8)? & !0xfff;
        let directory = word(memory, contexts + devfn % 128 * 32)? & !0xfff;
        let entry = word(memory, directory)? & !0xfff;
        if word(memory, entry)? >> 6 & 7 != 1 {
            return Err(Error::other("the device is not translated by a first stage"));
        }
        let first = word(memory, entry + 16)?;
        Ok((X86, first & 0x000f_ffff_ffff_f000, (first >> 2 & 3) as u32 + 4))
    } else {
        // AMD IOMMU 3.4.1: Device Table Base Address; 2.2.2.1: device table entry.
        let table = register(memory, AMD_REGISTERS)? & 0x000f_ffff_ffff_f000;
        let entry = word(memory, table + devfn * 32)?;
        Ok((AMD, entry & 0x000f_ffff_ffff_f000, (entry >> 9 & 7) as u32))
    }
}

fn record(kind: &str, address: &str) -> io::Result<()> {
    let device = take_device(address)?;
    let iommu = OpenOptions::new().read(true).write(true).open("/dev/iommu")?;
    // struct vfio_device_bind_iommufd: argsz, flags, iommufd, out_devid.
    ioctl(&device, VFIO_DEVICE_BIND_IOMMUFD, &mut [16, 0, iommu.as_raw_fd(), 0])?;
    let mut ioas = iommu_ioas_alloc { size: 12, ..Default::default() };
    ioctl(&iommu, IOMMU_IOAS_ALLOC.into(), &mut ioas)?;
    // struct vfio_device_attach_iommufd_pt: argsz, flags, pt_id.
    ioctl(&device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut [12, 0, ioas.out_ioas_id])?;

    let small = Memory::new(64 << 10, 0)?;
    let large = Memory::new(4 << 20, libc::MAP_HUGETLB)?;
    let huge = Memory::new(1 << 30, libc::MAP_HUGETLB | 30 << 26);
    let rw = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
    let mut maps = vec![
        (&small, 0, 0x1000, 0x1000, rw),
        (&small, 0x2000, 0x5000, 0x20_0000, IOMMU_IOAS_MAP_READABLE),
        (&small, 0x8000, 0x1000, 0x7f_ffff_f000, rw),
        (&large, 0, 2 << 20, 0x4000_0000, rw),
        (&large, 2 << 20, 2 << 20, 0x4040_0000, IOMMU_IOAS_MAP_READABLE),
        // One that starts and ends inside large pages.
        (&large, 0x1ff000, 0x2000, 0x6000_0000, rw),
        // Larger than a page size, at an IOVA that allows only 64 KiB.
        (&large, 0x10000, 0x40000, 0x7001_0000, rw),
    ];
    if let Ok(huge) = &huge {
        maps.push((huge, 0, 1 << 30, 0x10_0000_0000, rw));
    }
    for &(memory, at, length, iova, flags) in &maps {
        let mut map = iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags: flags | IOMMU_IOAS_MAP_FIXED_IOVA,
            ioas_id: ioas.out_ioas_id,
            user_va: memory.address + at,
            length,
            iova,
            ..Default::default()
        };
        ioctl(&iommu, IOMMU_IOAS_MAP.into(), &mut map)?;
        // Runs of frames that follow each other: first physical address and bytes.
        let step = if memory.length >= 2 << 20 { 2 << 20 } else { 4096 };
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for offset in (0..length).step_by(step) {
            let physical = memory.frame(at + offset)? * 4096;
            let bytes = (length - offset).min(step as u64);
            match runs.last_mut() {
                Some((first, run)) if *first + *run == physical => *run += bytes,
                _ => runs.push((physical, bytes)),
            }
        }
        let physical: Vec<_> = runs.iter().map(|(at, run)| format!("{at:#x}+{run:#x}")).collect();
        let rights = if flags & IOMMU_IOAS_MAP_WRITEABLE == 0 { "r" } else { "rw" };
        println!("map {iova:#x} {length:#x} {rights} {}", physical.join(" "));
    }

    let slot = address.rsplit(':').next().unwrap_or_default();
    let (number, function) = slot.split_once('.').unwrap_or((slot, "0"));
    let bad = |_| Error::other("the device's address is no PCI address");
    let devfn =
        u64::from_str_radix(number, 16).map_err(bad)? * 8 + function.parse::<u64>().map_err(bad)?;
    let memory = File::open("/dev/mem")?;
    let (format, root, levels) = find_table(&memory, kind, devfn)?;
    println!("table {kind} {root:#x} {levels}");
    print_table(&memory, &format, root, levels)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let [_, kind, address] = &words[..] else {
        eprintln!("usage: record-iopte vtd|vtd-first|amd PCI-ADDRESS");
        return ExitCode::from(2);
    };
    match record(kind, address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("record-iopte: {error}");
            ExitCode::FAILURE
        }
    }
}
