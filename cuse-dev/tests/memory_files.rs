//! Files of callers: what a pin does to their pages.

mod puppet;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cuse_dev::caller::{CallerProcess, Callers};
use cuse_dev::memory::{Host, PfnMode};
use engine::caller::CallerFile;
use engine::memory::{BackingFile, Held, Pin};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use puppet::{PAGE, Puppet};

struct Bench {
    puppet: Puppet,
    process: Arc<CallerProcess>,
}

fn bench() -> Bench {
    let callers = Callers::new(Host::new(PfnMode::Real).unwrap());
    let puppet = Puppet::new();
    let process = callers.resolve(puppet.pid).unwrap();
    Bench { puppet, process }
}

fn memfd(bytes: u64) -> OwnedFd {
    let file = memfd_create(c"ram", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&file, bytes as i64).unwrap();
    file
}

impl Bench {
    fn backing(&self, file: OwnedFd) -> Arc<dyn BackingFile> {
        let fd = self.puppet.adopt(file) as i32;
        let file = self.process.descriptor(self.puppet.pid, fd).unwrap();
        match self.process.classify(file).unwrap() {
            CallerFile::Backing(file) => file,
            _ => panic!("a memfd has pages"),
        }
    }
}

fn frames(pin: &Arc<dyn Pin>) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    pin.frames(0..pin.pages(), &mut |pfn, count| all.push((pfn, count)));
    all
}

fn blocks(file: &OwnedFd) -> u64 {
    nix::sys::stat::fstat(file).unwrap().st_blocks as u64 * 512
}

#[test]
fn pinned_pages_stay_in_their_frames() {
    if !puppet::io_uring() {
        eprintln!("SKIPPED: no io_uring here");
        return;
    }
    let bench = bench();
    let file = memfd(32 << 20);
    let pages = (32 << 20) / PAGE;
    let backing = bench.backing(file);
    let pin = backing.pin(0, pages, true).unwrap();
    assert_eq!(pin.held(), Held::Shared);
    let before = frames(&pin);
    // All that the kernel may do to pages, as far as we may ask for it.
    let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
    let again = backing.pin(0, pages, true).unwrap();
    assert_eq!(frames(&again), before);
    drop(pin);
    assert_eq!(frames(&again), before);
}

#[test]
fn a_read_only_file_is_kept_in_place_and_not_written() {
    if !puppet::io_uring() {
        eprintln!("SKIPPED: no io_uring here");
        return;
    }
    let bench = bench();
    let file = memfd(4 * PAGE);
    nix::sys::uio::pwrite(&file, &[7; 100], 0).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = std::fs::File::open(path).unwrap();
    let pin = bench.backing(read_only.into()).pin(0, 4, false).unwrap();
    assert_eq!(pin.held(), Held::Shared);
    assert!(pin.write(0, &[1]).is_err());
    let mut seen = [0; 100];
    pin.read(0, &mut seen).unwrap();
    assert_eq!(seen, [7; 100]);
    assert_eq!(nix::sys::uio::pread(&file, &mut seen, 0), Ok(100));
    assert_eq!(seen, [7; 100]);
}

#[test]
fn a_sealed_file_is_mapped_and_says_why_it_is_not_pinned() {
    let bench = bench();
    let file = memfd(4 * PAGE);
    nix::sys::uio::pwrite(&file, &[7; 100], 0).unwrap();
    let seal = nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_WRITE);
    nix::fcntl::fcntl(&file, seal).unwrap();
    let pin = bench.backing(file).pin(0, 4, false).unwrap();
    assert!(matches!(pin.held(), Held::Mapped(why) if why.contains("may not be written")));
    let mut seen = [0; 100];
    pin.read(0, &mut seen).unwrap();
    assert_eq!(seen, [7; 100]);
}

#[test]
fn holes_are_made_up_to_a_gibibyte() {
    let bench = bench();
    let file = memfd(8 << 20);
    let pin = bench.backing(file.try_clone().unwrap()).pin(0, (8 << 20) / PAGE, true).unwrap();
    assert_eq!(blocks(&file), 8 << 20);
    drop(pin);
    assert_eq!(blocks(&file), 8 << 20);
}

#[test]
fn a_sparse_tebibyte_is_pinned_where_it_has_pages() {
    let bench = bench();
    let length = 1_u64 << 40;
    let file = memfd(length);
    let middle = length / 2 + 5 * PAGE;
    nix::sys::uio::pwrite(&file, &[9; 2 * PAGE as usize], middle as i64).unwrap();
    let backing = bench.backing(file.try_clone().unwrap());
    let begin = Instant::now();
    let pin = backing.pin(0, length / PAGE, true).unwrap();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(blocks(&file), 2 * PAGE);
    assert!(matches!(pin.held(), Held::Mapped(why) if why.contains("hole")));
    let mut seen = [0; 8];
    pin.read(middle + PAGE - 4, &mut seen).unwrap();
    assert_eq!(seen, [9; 8]);
    pin.write(length - 8, &[4; 8]).unwrap();
    nix::sys::uio::pread(&file, &mut seen, length as i64 - 8).unwrap();
    assert_eq!(seen, [4; 8]);
    let all = frames(&pin);
    assert_eq!(all.iter().map(|run| run.1).sum::<u64>(), length / PAGE);
    // What was looked at once stays what it was.
    assert_eq!(frames(&pin), all);
    drop(pin);
    assert_eq!(blocks(&file), 3 * PAGE);
}

/// Whatever the file loses in the middle of it: a pin has its pages from the first look to the last.
#[test]
fn pages_that_a_file_loses_all_the_time_are_the_pins() {
    if !puppet::io_uring() {
        eprintln!("SKIPPED: no io_uring here");
        return;
    }
    const PAGES: u64 = 4;
    let bench = bench();
    let file = memfd(PAGES * PAGE);
    let backing = bench.backing(file.try_clone().unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            for page in (0..PAGES).cycle() {
                let at = (page * PAGE) as i64;
                fallocate(&file, punch, at, PAGE as i64).unwrap();
                // Every other one has a page again at once.
                if page % 2 == 0 {
                    nix::sys::uio::pwrite(&file, b"new", at).unwrap();
                }
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        // However the rounds end.
        let _end = Sets(&done);
        for round in 0..200_u32 {
            let pins: Vec<_> = (0..2).map(|_| backing.pin(0, PAGES, true).unwrap()).collect();
            for pin in &pins {
                let marks = (0..PAGES).map(|page| (page * PAGE + 1024, round + page as u32));
                for (at, mark) in marks.clone() {
                    pin.write(at, &mark.to_ne_bytes()).unwrap();
                }
                for _ in 0..3 {
                    for (at, mark) in marks.clone() {
                        let mut seen = [0; 4];
                        pin.read(at, &mut seen).unwrap();
                        assert_eq!(u32::from_ne_bytes(seen), mark);
                    }
                    std::thread::yield_now();
                }
            }
        }
    });
}

/// Sets it in the end.
struct Sets<'a>(&'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
