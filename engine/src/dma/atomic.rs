//! The bytes of a pin: plain copies, and the atomics of PCIe's AtomicOp requests.
#![allow(unsafe_code)] // Copies to and from pages that the caller's processors share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::fault::{Fault, Reason, Recovery, Stage};
use super::port::Port;
use crate::Errno;
use crate::memory::Pin;

/// What an atomic does to the operand in memory (PCIe 6.15: FetchAdd, Swap, CAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    /// Adds, wrapping at the width.
    FetchAdd(u64),
    /// Replaces.
    Swap(u64),
    /// Replaces by the second if it equals the first.
    CompareSwap(u64, u64),
}

/// The size of an atomic's operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl Width {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

impl Port {
    /// One atomic of little-endian operands at `iova`; answers what was there before. It needs
    /// the right to read and to write.
    ///
    /// It is atomic towards the caller's processors where the memory is mapped here
    /// ([`Pin::window`]). Where it is not (private memory that the kernel pins), only towards
    /// other atomics of the engine's devices.
    pub fn atomic(self: &Arc<Self>, iova: u64, width: Width, op: AtomicOp) -> Result<u64, Fault> {
        let fault = |reason| Fault { iova, write: true, reason, recovery: Recovery::Unrecoverable };
        if !iova.is_multiple_of(width.bytes()) {
            return Err(fault(Reason::Misaligned));
        }
        // A load first, so that write-only memory gives a permission fault of a read.
        self.read(iova, &mut [0; 1])?;
        let mut old = 0;
        self.transfer(iova, width.bytes(), true, |pin, offset, part| {
            if part.len() as u64 != width.bytes() {
                return Err(Errno::EINVAL);
            }
            old = modify(pin, offset, width, op)?;
            Ok(())
        })
        .map_err(|f| match f.reason {
            Reason::Memory(Errno::EINVAL) => fault(Reason::Permission(Stage::Second)),
            _ => f,
        })?;
        Ok(old)
    }
}

/// Copies out of a pin.
pub(super) fn load(pin: &dyn Pin, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
    let length = into.len();
    let mapped = pin.window(offset..offset + length as u64, &mut |bytes| {
        // SAFETY: `window` gives `length` bytes that are valid while it runs; `into` is ours and
        // as long. The pages are shared memory of another process and none of our allocations,
        // so they do not overlap `into`. Other processes may write meanwhile; the bytes are
        // plain data, for which any value will do.
        unsafe { std::ptr::copy_nonoverlapping(bytes, into.as_mut_ptr(), length) }
    });
    if mapped { Ok(()) } else { pin.read(offset, into) }
}

/// Copies into a pin.
pub(super) fn store(pin: &dyn Pin, offset: u64, from: &[u8]) -> Result<(), Errno> {
    let length = from.len();
    let mapped = pin.window(offset..offset + length as u64, &mut |bytes| {
        // SAFETY: as in `load`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes, length) }
    });
    if mapped { Ok(()) } else { pin.write(offset, from) }
}

/// Compares and exchanges the 8 bytes at the aligned `offset`; answers what was there.
pub(super) fn exchange(pin: &dyn Pin, offset: u64, old: u64, new: u64) -> Result<u64, Errno> {
    modify(pin, offset, Width::Eight, AtomicOp::CompareSwap(u64::from_le(old), u64::from_le(new)))
        .map(u64::to_le)
}

fn modify(pin: &dyn Pin, offset: u64, width: Width, op: AtomicOp) -> Result<u64, Errno> {
    let mut old = None;
    pin.window(offset..offset + width.bytes(), &mut |bytes| {
        if !(bytes.addr() as u64).is_multiple_of(width.bytes()) {
            return; // A table of less than 8-byte granularity: no format has one.
        }
        old = Some(match width {
            // SAFETY: `window` gives `width` bytes at `offset`, valid while it runs, and they are
            // aligned. Every other access of this process to them is a plain copy of shared memory.
            Width::Four => on_four(unsafe { AtomicU32::from_ptr(bytes.cast()) }, op),
            // SAFETY: the same.
            Width::Eight => on_eight(unsafe { AtomicU64::from_ptr(bytes.cast()) }, op),
        });
    });
    old.map_or_else(|| emulate(pin, offset, width, op), Ok)
}

fn on_four(at: &AtomicU32, op: AtomicOp) -> u64 {
    // The operand is little-endian in memory; an addition must be done in the processor's order.
    let step = |old: u32| apply(u64::from(u32::from_le(old)), Width::Four, op) as u32;
    let old = at.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(step(old).to_le()));
    u64::from(u32::from_le(old.unwrap_or_else(|old| old)))
}

fn on_eight(at: &AtomicU64, op: AtomicOp) -> u64 {
    let step = |old: u64| apply(u64::from_le(old), Width::Eight, op).to_le();
    let old = at.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(step(old)));
    u64::from_le(old.unwrap_or_else(|old| old))
}

fn apply(old: u64, width: Width, op: AtomicOp) -> u64 {
    let mask = match width {
        Width::Four => u64::from(u32::MAX),
        Width::Eight => u64::MAX,
    };
    match op {
        AtomicOp::FetchAdd(add) => old.wrapping_add(add) & mask,
        AtomicOp::Swap(new) => new & mask,
        AtomicOp::CompareSwap(expected, new) if old == expected & mask => new & mask,
        AtomicOp::CompareSwap(..) => old,
    }
}

/// Locks of the emulation, by the frame's number.
static EMULATED: [Mutex<()>; 16] = [const { Mutex::new(()) }; 16];

fn emulate(pin: &dyn Pin, offset: u64, width: Width, op: AtomicOp) -> Result<u64, Errno> {
    let page = offset / crate::memory::PAGE_SIZE;
    let mut frame = 0;
    pin.frames(page..page + 1, &mut |pfn, _| frame = pfn);
    let _one_at_a_time = EMULATED[frame as usize % EMULATED.len()].lock();
    let mut bytes = [0; 8];
    let size = width.bytes() as usize;
    pin.read(offset, &mut bytes[..size])?;
    let old = u64::from_le_bytes(bytes);
    let new = apply(old, width, op);
    if new != old {
        pin.write(offset, &new.to_le_bytes()[..size])?;
    }
    Ok(old)
}
