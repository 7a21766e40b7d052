//! The atomics of PCIe's AtomicOp requests, on the bytes of a pin.

use std::sync::Arc;

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

    /// `value` from little-endian to what this processor has, or back.
    fn swapped(self, value: u64) -> u64 {
        match self {
            Self::Four => u32::from_le(value as u32).into(),
            Self::Eight => u64::from_le(value),
        }
    }
}

impl Port {
    /// One atomic of little-endian operands at `iova`; answers what was there before. It needs
    /// the right to read and to write.
    ///
    /// It is atomic towards the caller's processors where the memory is mapped here
    /// ([`Pin::compare_exchange`]). Where it is not (private memory that the kernel pins, and pages that their file has lost), only towards
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

/// Compares and exchanges the 8 bytes at the aligned `offset`; answers what was there.
pub(super) fn exchange(pin: &dyn Pin, offset: u64, old: u64, new: u64) -> Result<u64, Errno> {
    modify(pin, offset, Width::Eight, AtomicOp::CompareSwap(u64::from_le(old), u64::from_le(new)))
        .map(u64::to_le)
}

fn modify(pin: &dyn Pin, offset: u64, width: Width, op: AtomicOp) -> Result<u64, Errno> {
    // A guess: where it is wrong the first exchange tells what is there.
    let mut expected = 0;
    loop {
        // The operand is little-endian in memory; an addition must be done in the processor's order.
        let new = width.swapped(apply(width.swapped(expected), width, op));
        match pin.compare_exchange(offset, width, expected, new) {
            None => return emulate(pin, offset, width, op),
            Some(found) => match found? {
                found if found == expected => return Ok(width.swapped(found)),
                found => expected = found,
            },
        }
    }
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
