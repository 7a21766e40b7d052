//! What pinning under `softiommu run` costs beyond what holds the pages.
//!
//! `cargo bench -p softiommu --bench pins` maps and unmaps memory of four kinds in an IOAS that a
//! device is attached to, and prints ns a 4K page and `measure NAME RATIO goal GOAL`: the time over
//! that of the bare registration of the same memory with an io_uring (private memory), or of the bare
//! mmap of the same file (shared). `--full` takes 1 GiB of each, `--quick` 64 MiB. What a pin costs
//! the daemon in memory, and a sparse file's map in time, are measured against plain numbers.
#![allow(unsafe_code)] // ioctls, and memory of all kinds

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::ptr::null_mut;
use std::time::Instant;

use ioctl_abi::command::iommufd::{
    IOMMU_DESTROY, IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP,
};
use ioctl_abi::iommufd::{iommu_destroy, iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap};
use ioctl_abi::selftest::{
    IOMMU_TEST_CMD, IOMMU_TEST_OP_ACCESS_PAGES, IOMMU_TEST_OP_CREATE_ACCESS,
    IOMMU_TEST_OP_MOCK_DOMAIN, MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES, iommu_test_access_pages,
    iommu_test_cmd, iommu_test_create_access,
};

/// Says that this process is the one under `softiommu run`, and which file it is to map.
const INSIDE: &str = "SOFTIOMMU_PINS";
const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
const IOVA: u64 = 1 << 24;
/// The selftest's accesses pin no more at once.
const MOST_AT_ONCE: usize = 16 << 20;
/// Tries of everything; the quickest counts.
const ROUNDS: usize = 7;

/// Kinds of memory: name, what it takes of the bytes asked for, goal.
const PRIVATE: [(&str, f64); 2] = [("anon_4k", 1.2), ("anon_thp", 1.5)];
const SHARED: [(&str, f64); 2] = [("hugetlb", 1.5), ("memfd", 1.5)];

fn main() {
    if std::env::args().any(|a| a == "--help") {
        return println!(
            "usage: cargo bench -p softiommu --bench pins [-- --quick | --full]\n\n64 MiB, 1 GiB, or else 256 MiB of each kind of memory."
        );
    }
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let mib = if has("--full") {
        1024
    } else if has("--quick") {
        64
    } else {
        256
    };
    let bytes = mib << 20;
    match std::env::var(INSIDE) {
        Ok(kind) => inside(&kind, bytes),
        Err(_) => outside(bytes),
    }
}

/// Runs the other half of each measure under `softiommu run`, and prints them.
fn outside(bytes: usize) {
    for (kind, goal) in PRIVATE {
        let told = run(kind, None);
        show(kind, bytes, told[0], told[1], goal);
    }
    for (kind, goal) in SHARED {
        let Some((file, bytes)) = file(kind, bytes) else {
            println!("{kind}: SKIPPED: the machine has no such pages free");
            continue;
        };
        let bare = best(|| {
            let at = map_file(&file, bytes, libc::MAP_POPULATE);
            unmap(at, bytes);
        });
        let ring = io_uring::IoUring::new(2).expect("an io_uring");
        let held = best(|| {
            let at = map_file(&file, bytes, libc::MAP_POPULATE);
            register(&ring, at, bytes);
            unmap(at, bytes);
        });
        let told = run(kind, Some((&file, bytes)));
        show(kind, bytes, told[0], bare, goal);
        // A mapping alone lets the kernel move the pages to other frames.
        println!(
            "measure map_unmap_{kind}_to_mmap_and_registration {:.2} goal {goal}",
            told[0] / held
        );
    }
    let told = run("memory", None);
    println!("measure pin_bytes_per_lone_page {:.2} goal 16", told[0]);
    println!("measure pin_bytes_per_page_of_a_run {:.2} goal 1", told[1]);
    let told = run("sparse", None);
    println!("measure map_sparse_1tib_seconds {:.3} goal 1", told[0] / 1e9);
}

fn show(kind: &str, bytes: usize, time: f64, bare: f64, goal: f64) {
    let pages = (bytes / PAGE) as f64;
    println!(
        "{kind}: {} MiB, {:.1} ns a page to map and unmap, {:.1} bare",
        bytes >> 20,
        time / pages,
        bare / pages
    );
    println!("measure map_unmap_{kind} {:.2} goal {goal}", time / bare);
}

/// What the process under `softiommu run` measured, as numbers.
fn run(kind: &str, file: Option<(&OwnedFd, usize)>) -> Vec<f64> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
    command.args(["run", "--"]).arg(std::env::current_exe().expect("a program has a path"));
    command.args(std::env::args().skip(1));
    let what = match file {
        Some((file, bytes)) => format!("{kind} {} {bytes}", file.as_raw_fd()),
        None => kind.to_owned(),
    };
    let mut child =
        command.env(INSIDE, what).stdout(Stdio::piped()).spawn().expect("softiommu is built");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let told = lines.map(|line| line.expect("text").parse().expect("a number")).collect();
    assert!(child.wait().expect("a child").success(), "{kind} failed");
    told
}

fn inside(what: &str, bytes: usize) {
    let words: Vec<&str> = what.split(' ').collect();
    match words[..] {
        ["anon_4k"] => private(bytes, libc::MADV_NOHUGEPAGE),
        ["anon_thp"] => private(bytes, libc::MADV_HUGEPAGE),
        ["memory"] => memory(64 << 20),
        ["sparse"] => sparse(),
        [_, fd, bytes] => {
            let (fd, bytes) = (fd.parse().expect("a number"), bytes.parse().expect("a number"));
            // SAFETY: it was inherited for this.
            let file = unsafe { OwnedFd::from_raw_fd(fd) };
            let at = map_file(&file, bytes, libc::MAP_POPULATE);
            let iommu = Iommu::new();
            iommu.attach();
            println!("{}", best(|| iommu.pair(at as u64, bytes)));
        }
        _ => unreachable!("{what}"),
    }
}

/// The time to map and unmap, and that of the bare registration.
fn private(bytes: usize, advice: i32) {
    let at = anonymous(bytes, advice);
    touch(at, bytes);
    let iommu = Iommu::new();
    iommu.attach();
    // The first pin makes what later ones use.
    iommu.pair(at as u64, HUGE);
    let ring = io_uring::IoUring::new(2).expect("an io_uring");
    let (mut pair, mut bare) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        pair = pair.min(time(|| iommu.pair(at as u64, bytes)));
        bare = bare.min(time(|| register(&ring, at, bytes)));
    }
    println!("{pair}\n{bare}");
}

/// Registers the memory, and takes the registration back.
fn register(ring: &io_uring::IoUring, at: *mut u8, bytes: usize) {
    let buffer = libc::iovec { iov_base: at.cast(), iov_len: bytes };
    // SAFETY: the memory stays mapped, and is unregistered before anything else.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.expect("registered");
    ring.submitter().unregister_buffers().expect("unregistered");
}

/// Bytes of the daemon for each pinned page: of pages whose frames do not follow each other, and of
/// those in huge pages.
fn memory(bytes: usize) {
    let (one, other) =
        (anonymous(bytes, libc::MADV_NOHUGEPAGE), anonymous(bytes, libc::MADV_NOHUGEPAGE));
    for page in (0..bytes).step_by(PAGE) {
        // Frames come one after the other; the two take turns.
        touch(one.wrapping_add(page), PAGE);
        touch(other.wrapping_add(page), PAGE);
    }
    let huge = anonymous(bytes, libc::MADV_HUGEPAGE);
    touch(huge, bytes);
    let iommu = Iommu::new();
    let access = iommu.access();
    // The first pins make what later ones use, and what is free afterwards.
    let pieces = [
        (other, bytes),
        (one, bytes),
        (huge, bytes / 2),
        (huge.wrapping_add(bytes / 2), bytes / 2),
    ];
    for (index, (at, bytes)) in (0_u64..).zip(pieces) {
        let iova = IOVA + (index << 30);
        iommu.map(at as u64, bytes, iova);
        let before = daemon_bytes();
        iommu.pin(access, at as u64, bytes, iova);
        if index % 2 == 1 {
            println!("{}", (daemon_bytes() - before).max(0.0) / (bytes / PAGE) as f64);
        }
    }
}

/// The time to map a file of 1 TiB without pages.
fn sparse() {
    // SAFETY: plain system calls.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"sparse".as_ptr(), 0)) };
    nix::unistd::ftruncate(&file, 1 << 40).expect("a sparse file");
    let at = map_file(&file, 1 << 40, libc::MAP_NORESERVE);
    let iommu = Iommu::new();
    let access = iommu.access();
    println!("{}", time(|| iommu.map(at as u64, 1 << 40, IOVA)));
    // A page of it is there when somebody asks.
    touch(at.wrapping_add(1 << 39), 1);
    iommu.pin(access, at as u64 + (1 << 39), PAGE, IOVA + (1 << 39));
}

/// Private bytes of the daemon, which is this process's parent.
fn daemon_bytes() -> f64 {
    let parent = std::os::unix::process::parent_id();
    let status = std::fs::read_to_string(format!("/proc/{parent}/status")).expect("a parent");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024.0
}

/// An iommufd with an IOAS.
struct Iommu {
    file: File,
    ioas: u32,
}

impl Iommu {
    fn new() -> Self {
        let file = File::options().read(true).write(true).open("/dev/iommu").expect("an iommufd");
        let mut alloc = iommu_ioas_alloc { size: size::<iommu_ioas_alloc>(), ..Default::default() };
        call(&file, IOMMU_IOAS_ALLOC, &mut alloc);
        Self { file, ioas: alloc.out_ioas_id }
    }

    fn test(&self, op: u32, id: u32, body: impl FnOnce(&mut iommu_test_cmd)) -> iommu_test_cmd {
        let size = size::<iommu_test_cmd>();
        let mut command = iommu_test_cmd { size, op, id, ..Default::default() };
        body(&mut command);
        call(&self.file, IOMMU_TEST_CMD, &mut command);
        command
    }

    /// Attaches a device.
    fn attach(&self) {
        self.test(IOMMU_TEST_OP_MOCK_DOMAIN, self.ioas, |_| {});
    }

    fn access(&self) -> u32 {
        let flags = MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
        let body = iommu_test_create_access { flags, ..Default::default() };
        let command =
            self.test(IOMMU_TEST_OP_CREATE_ACCESS, self.ioas, |command| command.set_body(&body));
        command.body::<iommu_test_create_access>().out_access_fd
    }

    /// Pins through an access, as much at once as one may.
    fn pin(&self, access: u32, uptr: u64, bytes: usize, iova: u64) {
        for at in (0..bytes).step_by(MOST_AT_ONCE) {
            let (iova, uptr) = (iova + at as u64, uptr + at as u64);
            let length = MOST_AT_ONCE.min(bytes - at) as u64;
            let body = iommu_test_access_pages { iova, length, uptr, ..Default::default() };
            self.test(IOMMU_TEST_OP_ACCESS_PAGES, access, |command| command.set_body(&body));
        }
    }

    fn map(&self, user_va: u64, bytes: usize, iova: u64) {
        let (size, length) = (size::<iommu_ioas_map>(), bytes as u64);
        let (flags, ioas_id) = (7, self.ioas);
        let mut map =
            iommu_ioas_map { size, flags, ioas_id, user_va, length, iova, ..Default::default() };
        call(&self.file, IOMMU_IOAS_MAP, &mut map);
    }

    fn pair(&self, user_va: u64, bytes: usize) {
        self.map(user_va, bytes, IOVA);
        let (size, length) = (size::<iommu_ioas_unmap>(), bytes as u64);
        let mut unmap = iommu_ioas_unmap { size, ioas_id: self.ioas, iova: IOVA, length };
        call(&self.file, IOMMU_IOAS_UNMAP, &mut unmap);
    }
}

impl Drop for Iommu {
    fn drop(&mut self) {
        let mut destroy = iommu_destroy { size: size::<iommu_destroy>(), id: self.ioas };
        let pointer = std::ptr::from_mut(&mut destroy);
        // SAFETY: the command's own struct. A device may still be attached: `EBUSY`.
        unsafe { libc::ioctl(self.file.as_raw_fd(), IOMMU_DESTROY.into(), pointer) };
    }
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

fn call<T>(iommu: &File, command: u32, argument: &mut T) {
    let pointer = std::ptr::from_mut(argument);
    // SAFETY: each command is called with its own struct.
    let result = unsafe { libc::ioctl(iommu.as_raw_fd(), command.into(), pointer) };
    assert_eq!(result, 0, "{command:#x}: {}", io::Error::last_os_error());
}

/// Nanoseconds that `what` takes.
fn time(what: impl FnOnce()) -> f64 {
    let began = Instant::now();
    what();
    began.elapsed().as_nanos() as f64
}

fn best(mut what: impl FnMut()) -> f64 {
    (0..ROUNDS).map(|_| time(&mut what)).fold(f64::INFINITY, f64::min)
}

/// A file with pages, and its bytes: as many as asked for, or as there are free.
fn file(kind: &str, bytes: usize) -> Option<(OwnedFd, usize)> {
    let huge = kind == "hugetlb";
    let flags = if huge { libc::MFD_HUGETLB } else { 0 };
    // SAFETY: plain system call.
    let fd = unsafe { libc::memfd_create(c"pins".as_ptr(), flags) };
    if fd < 0 {
        return None;
    }
    // SAFETY: just made.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let free = if huge { free_huge_pages()? * HUGE } else { bytes };
    let bytes = bytes.min(free / 2 / HUGE * HUGE * 2);
    if bytes == 0 || nix::unistd::ftruncate(&file, bytes as i64).is_err() {
        return None;
    }
    if huge {
        let reserved =
            nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, bytes as i64);
        reserved.ok()?;
    }
    let at = map_file(&file, bytes, libc::MAP_POPULATE);
    touch(at, bytes);
    unmap(at, bytes);
    Some((file, bytes))
}

fn free_huge_pages() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"))?;
    line.trim().parse().ok()
}

fn map_file(file: &OwnedFd, bytes: usize, flags: i32) -> *mut u8 {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(null_mut(), bytes, rights, libc::MAP_SHARED | flags, file.as_raw_fd(), 0)
    };
    assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    at.cast()
}

fn unmap(at: *mut u8, bytes: usize) {
    // SAFETY: nobody uses the mapping any more.
    assert_eq!(unsafe { libc::munmap(at.cast(), bytes) }, 0);
}

/// Private memory without pages, on a huge page's bound.
fn anonymous(bytes: usize, advice: i32) -> *mut u8 {
    let (rights, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), bytes + HUGE, rights, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    let at = at.cast::<u8>();
    let at = at.wrapping_add(at.align_offset(HUGE));
    // SAFETY: advice on the mapping just made.
    unsafe { libc::madvise(at.cast(), bytes, advice) };
    at
}

fn touch(at: *mut u8, bytes: usize) {
    for page in (0..bytes).step_by(PAGE) {
        // SAFETY: in a mapping of this process.
        unsafe { at.wrapping_add(page).write_volatile(1) };
    }
}
