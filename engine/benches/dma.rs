//! What DMA costs beside plain copies of the same shared memory, measured turn by turn.
//!
//! `cargo bench -p softiommu-engine --bench dma` prints a line for each goal:
//! `measure NAME RATIO goal GOAL`. With `--quick` (or under `cargo test`) it only runs through.
#![allow(unsafe_code)] // The pin of the benchmark maps a memfd, as real pins of shared memory do.

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use engine::Errno;
use engine::dma::atomic::{AtomicOp, Width};
use engine::dma::{Extent, Frames, LookUp, Port, Target};
use engine::domain::{Domain, Prot};
use engine::driver::{HwptFlags, IommuDevice};
use engine::memory::{Held, PAGE_SIZE, Pin};
use engine::mock::{DeviceFlags, MockDevice};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Where the memory is mapped in the mock's aperture.
const IOVA: u64 = 1 << 28;
/// Bytes of it: more than the processor's caches.
const LENGTH: usize = 128 << 20;

/// Shared memory, whose frames are scattered so that every IOPTE is of 4 KiB.
struct SharedPin {
    at: NonNull<u8>,
    _file: File,
}

// SAFETY: the mapping is the pin's own until it is dropped, and only raw copies go to it.
unsafe impl Send for SharedPin {}
// SAFETY: the same.
unsafe impl Sync for SharedPin {}

impl SharedPin {
    fn new() -> Arc<Self> {
        let file: File = memfd_create(c"dma", MFdFlags::MFD_CLOEXEC).unwrap().into();
        file.set_len(LENGTH as u64).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { mmap(None, LENGTH.try_into().unwrap(), prot, flags, &file, 0) }.unwrap();
        Arc::new(Self { at: at.cast(), _file: file })
    }

    fn bytes(&self, offset: u64) -> *mut u8 {
        self.at.as_ptr().wrapping_add(offset as usize)
    }

    fn frame(page: u64) -> u64 {
        0x10_0000 + (page ^ 1)
    }
}

impl Drop for SharedPin {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nobody has it any more.
        unsafe { munmap(self.at.cast(), LENGTH) }.unwrap();
    }
}

impl Pin for SharedPin {
    fn pages(&self) -> u64 {
        LENGTH as u64 / PAGE_SIZE
    }
    fn frames(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        pages.for_each(|page| each(Self::frame(page), 1));
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let end = offset + into.len() as u64;
        assert!(end <= LENGTH as u64);
        // SAFETY: inside of the mapping, which `into` is no part of.
        unsafe { self.bytes(offset).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        Ok(())
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let end = offset + from.len() as u64;
        assert!(end <= LENGTH as u64);
        // SAFETY: the same.
        unsafe { self.bytes(offset).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }
    fn compare_exchange(
        &self,
        offset: u64,
        width: Width,
        old: u64,
        new: u64,
    ) -> Option<Result<u64, Errno>> {
        assert!(width == Width::Eight && offset + 8 <= LENGTH as u64);
        // SAFETY: an aligned word of the mapping, which others use as an atomic, too.
        let word = unsafe { AtomicU64::from_ptr(self.bytes(offset).cast()) };
        let found = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed);
        Some(Ok(found.unwrap_or_else(|found| found)))
    }
    fn release(&self, _: Range<u64>) {}
    fn held(&self) -> Held {
        Held::Shared
    }
}

struct OneExtent(Extent);

impl Frames for OneExtent {
    fn locked(&self, with: &mut dyn FnMut(&LookUp<'_>)) {
        with(&|iova| (self.0.first..=self.0.last).contains(&iova).then(|| self.0.clone()));
    }
}

fn port(pin: &Arc<SharedPin>) -> Arc<Port> {
    let device = MockDevice::new(DeviceFlags::empty()).unwrap();
    let domain = device.alloc_paging(HwptFlags::empty(), None).unwrap();
    for page in 0..pin.pages() {
        let (iova, physical) = (IOVA + page * PAGE_SIZE, SharedPin::frame(page) * PAGE_SIZE);
        let prot = Prot::READ | Prot::WRITE;
        Domain::map(&*domain, iova, physical, PAGE_SIZE, prot, u64::MAX).unwrap();
    }
    let last = IOVA + LENGTH as u64 - 1;
    let extent = Extent { first: IOVA, last, offset: 0, pin: pin.clone() };
    let port = Port::new();
    port.retarget(Some(Target {
        domain,
        first_stage: None,
        frames: Arc::new(OneExtent(extent)),
        requests: None,
    }));
    port
}

/// The best of `rounds` times of both, taken turn by turn, as a ratio.
fn ratio(rounds: u32, mut ours: impl FnMut(), mut plain: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    let (mut best_ours, mut best_plain) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        best_ours = best_ours.min(time(&mut ours));
        best_plain = best_plain.min(time(&mut plain));
    }
    best_ours / best_plain
}

fn main() {
    if std::env::args().any(|a| a == "--help") {
        return println!("usage: cargo bench -p softiommu-engine --bench dma [-- --quick]");
    }
    // `cargo bench` passes --bench; `cargo test` runs benches without it.
    let quick =
        std::env::args().any(|a| a == "--quick") || !std::env::args().any(|a| a == "--bench");
    let (rounds, times) = if quick { (2, 100) } else { (60, 20_000) };
    let pin = SharedPin::new();
    let port = port(&pin);
    let goal =
        |name: &str, ratio: f64, goal: f64| println!("measure {name} {ratio:.2} goal {goal}");

    // 64 bytes in a few pages that both keep in the caches: the cost of the look-up.
    let at = |i: u64| i % 16 * PAGE_SIZE + 128;
    let mut line = [0u8; 64];
    let read = ratio(
        rounds,
        || (0..times).for_each(|i| port.read(IOVA + at(i), black_box(&mut line)).unwrap()),
        || {
            let mut line = [0u8; 64];
            for i in 0..times {
                // SAFETY: inside of the mapping; other threads do not touch it.
                unsafe {
                    pin.bytes(black_box(at(i))).copy_to(black_box(&mut line).as_mut_ptr(), 64);
                };
            }
        },
    );
    goal("dma-read-64", read, 10.0);
    let line = [7u8; 64];
    let write = ratio(
        rounds,
        || (0..times).for_each(|i| port.write(IOVA + at(i), black_box(&line)).unwrap()),
        || {
            for i in 0..times {
                // SAFETY: as above.
                unsafe { pin.bytes(black_box(at(i))).copy_from(black_box(&line).as_ptr(), 64) };
            }
        },
    );
    goal("dma-write-64", write, 10.0);
    let add = AtomicOp::FetchAdd(1);
    let atomic = ratio(
        rounds,
        || {
            for i in 0..times {
                black_box(port.atomic(IOVA + at(i), Width::Eight, add).unwrap());
            }
        },
        || {
            for i in 0..times {
                // SAFETY: an aligned word of the mapping, which is used as an atomic meanwhile.
                let word = unsafe { AtomicU64::from_ptr(pin.bytes(black_box(at(i))).cast()) };
                black_box(word.fetch_add(1, Ordering::SeqCst));
            }
        },
    );
    println!("measure dma-atomic-8 {atomic:.2}");

    // 4 MiB pieces, warm and after an invalidation, against a copy of the same bytes.
    let rounds = if quick { 1 } else { 20 };
    let piece = 4 << 20;
    let mut buffer = vec![1u8; piece];
    for (name, cold) in [("dma-bulk-read", false), ("dma-bulk-read-cold", true)] {
        let mut other = vec![1u8; piece];
        let bulk = ratio(
            rounds,
            || {
                for at in (0..LENGTH).step_by(piece) {
                    if cold {
                        port.invalidate(0, u64::MAX);
                    }
                    port.read(IOVA + at as u64, black_box(&mut buffer)).unwrap();
                }
            },
            || {
                for at in (0..LENGTH).step_by(piece) {
                    // SAFETY: inside of the mapping.
                    unsafe {
                        pin.bytes(at as u64).copy_to(black_box(&mut other).as_mut_ptr(), piece);
                    };
                }
            },
        );
        goal(name, bulk, 1.25);
    }
    let bulk = ratio(
        rounds,
        || {
            for at in (0..LENGTH).step_by(piece) {
                port.write(IOVA + at as u64, black_box(&buffer)).unwrap();
            }
        },
        || {
            for at in (0..LENGTH).step_by(piece) {
                // SAFETY: inside of the mapping.
                unsafe { pin.bytes(at as u64).copy_from(black_box(&buffer).as_ptr(), piece) };
            }
        },
    );
    goal("dma-bulk-write", bulk, 1.25);
}
