//! Dispatch: from an ioctl number and a pointer to the handler that answers it.
//!
//! The kernel's order is kept: an unknown number is `ENOTTY`, a pointer without a readable size is
//! `EFAULT`, a size below the command's first release is `EINVAL`, and a tail that is newer than
//! this ABI and not zero is `E2BIG`. The struct is copied once ([`Call`]'s handler gets the copy).
//! What the caller sees of the answer is what the handler passes to [`Call::respond`].
//!
//! A new command is its struct and row in `ioctl_abi`, a handler, and a line in [`TABLE`].

use std::sync::Arc;

use ioctl_abi::CommandStruct;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::caller::Caller;
use crate::memory::AddressSpace;
use crate::{Context, Errno};

/// The first number of the commands that are not VFIO's.
const FIRST: usize = 0x80;
/// Numbers above are unknown: the selftest's is the last.
const LAST: usize = 0xa0;

/// One ioctl being answered.
pub struct Call<'a> {
    /// The open it was made on.
    pub context: &'a Arc<Context>,
    /// Who made it.
    pub caller: &'a dyn Caller,
    /// The memory that its pointers point into.
    pub memory: Arc<dyn AddressSpace>,
    /// Where the caller's struct is.
    pub arg: u64,
    /// How many bytes the caller says that it has.
    pub user_size: u32,
}

type Handler = fn(&Call<'_>, Locked) -> Result<i64, Errno>;

/// Whether `run` takes [`Context::serial`].
#[derive(Clone, Copy)]
struct Locked(bool);

struct Row {
    nr: u8,
    ioctl: u32,
    locked: bool,
    run: Handler,
}

macro_rules! rows {
    ($($lock:ident $command:ident => $handler:expr;)*) => {
        &[$(Row {
            // The lowest byte of the number.
            nr: (ioctl_abi::Command::$command as u32 & 0xff) as u8,
            ioctl: ioctl_abi::Command::$command as u32,
            locked: rows!(@ $lock),
            run: |call, locked| call.decoded(locked, $handler),
        },)*]
    };
    (@ locked) => { true };
    (@ unlocked) => { false };
}

/// Every command and who answers it. `locked` handlers run one after another in a context; an
/// `unlocked` one takes [`Context::serial`] where it needs it.
static TABLE: &[Row] = rows! {
    locked Destroy => crate::object::destroy;
    locked IoasAlloc => crate::ioas::alloc;
    locked IoasAllowIovas => crate::ioas::ranges::allow_iovas;
    locked IoasCopy => crate::ioas::map::copy;
    locked IoasIovaRanges => crate::ioas::ranges::iova_ranges;
    locked IoasMap => crate::ioas::map::map;
    locked IoasUnmap => crate::ioas::map::unmap;
    locked Option => crate::option::option;
    locked VfioIoas => crate::vfio::ioas;
    locked HwptAlloc => crate::hwpt::alloc;
    locked GetHwInfo => crate::device::hw_info::get;
    locked HwptSetDirtyTracking => crate::hwpt::dirty::set;
    locked HwptGetDirtyBitmap => crate::hwpt::dirty::get;
    locked HwptInvalidate => crate::hwpt::invalidate::invalidate;
    locked IoasMapFile => crate::ioas::map::map_file;
    locked IoasChangeProcess => crate::ioas::process::change_process;
    locked FaultQueueAlloc => crate::fault_queue::alloc;
    locked ViommuAlloc => crate::viommu::alloc;
    locked VdeviceAlloc => crate::viommu::vdevice::alloc;
    locked VeventqAlloc => crate::viommu::veventq::alloc;
    locked HwQueueAlloc => crate::viommu::hw_queue::alloc;
    locked IoasNoiommuGetPa => crate::ioas::map::noiommu_get_pa;
    unlocked Test => crate::selftest::run;
};

/// [`TABLE`] by number.
static BY_NUMBER: [Option<&Row>; LAST - FIRST + 1] = {
    let mut by_number = [None; LAST - FIRST + 1];
    let mut i = 0;
    while i < TABLE.len() {
        by_number[TABLE[i].nr as usize - FIRST] = Some(&TABLE[i]);
        i += 1;
    }
    by_number
};

impl Context {
    /// Answers ioctl `command` with argument `arg`: the ioctl's result or the kernel's errno.
    pub fn ioctl(
        self: &Arc<Self>,
        caller: &dyn Caller,
        command: u32,
        arg: u64,
    ) -> Result<i64, Errno> {
        let result = self.answer(caller, command, arg);
        self.engine().end_kept();
        result
    }

    fn answer(self: &Arc<Self>, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64, Errno> {
        let number = (command & 0xff) as usize;
        let mut call = Call { context: self, caller, memory: caller.memory(), arg, user_size: 0 };
        if !(FIRST..=LAST).contains(&number) {
            return crate::vfio::ioctl(&call, command);
        }
        let Some(row) = BY_NUMBER[number - FIRST].filter(|row| row.ioctl == command) else {
            call.read::<u32>(arg)?;
            return Err(Errno::ENOTTY);
        };
        call.user_size = u32::MAX;
        (row.run)(&call, Locked(row.locked))
    }
}

/// Whether ioctl `command` names memory of its caller that is to be pinned, then or later.
pub fn maps_memory(command: u32) -> bool {
    [ioctl_abi::Command::IoasMap as u32, ioctl_abi::vfio::VFIO_IOMMU_MAP_DMA].contains(&command)
}

impl Call<'_> {
    /// Fetches the struct, and runs `handler` on it.
    fn decoded<T: CommandStruct>(
        &self,
        locked: Locked,
        handler: fn(&Call<'_>, &mut T) -> Result<(), Errno>,
    ) -> Result<i64, Errno> {
        let (user_size, mut argument) = self.fetch::<T>()?;
        let call = Call { user_size, memory: self.memory.clone(), ..*self };
        let _serial = locked.0.then(|| self.context.serial());
        handler(&call, &mut argument).map(|()| 0)
    }

    /// The caller's struct, and its size. One copy takes all that a caller of today's ABI has;
    /// only where less can be read is the size looked at first.
    fn fetch<T: CommandStruct>(&self) -> Result<(u32, T), Errno> {
        let mut argument = T::new_zeroed();
        let bytes = argument.as_mut_bytes();
        let whole = self.memory.read(self.arg, bytes).is_ok();
        let user_size = if whole {
            u32::read_from_prefix(bytes).map_err(|_| Errno::EFAULT)?.0
        } else {
            self.read::<u32>(self.arg)?
        };
        let extent = ioctl_abi::decode::extent(T::COMMAND, user_size).map_err(errno)?;
        self.check_zero(self.arg, extent.tail)?;
        if !whole {
            if extent.head == bytes.len() {
                return Err(Errno::EFAULT);
            }
            self.memory.read(self.arg, &mut bytes[..extent.head])?;
        }
        bytes[extent.head..].fill(0);
        Ok((user_size, argument))
    }

    /// Whether the bytes `range` after `base` are all zero: `E2BIG` if not, `EFAULT` if they can't
    /// be read.
    fn check_zero(&self, base: u64, range: std::ops::Range<u64>) -> Result<(), Errno> {
        if range.is_empty() {
            // As nearly always: nothing is to be made ready for nothing.
            return Ok(());
        }
        let mut piece = [0; 4096];
        let mut at = range.start;
        while at < range.end {
            // Ends on page bounds, so that a bad page is met no earlier than the kernel meets it.
            let address = base.checked_add(at).ok_or(Errno::EFAULT)?;
            let length = (range.end - at).min(4096 - address % 4096);
            let piece = &mut piece[..length as usize];
            self.memory.read(address, piece)?;
            ioctl_abi::decode::check_tail(piece).map_err(errno)?;
            at += length;
        }
        Ok(())
    }

    /// Copies `answer` to where the caller's struct is, as far as the caller has room.
    pub fn respond<T: IntoBytes + Immutable>(&self, answer: &T) -> Result<(), Errno> {
        let bytes = answer.as_bytes();
        let length = bytes.len().min(self.user_size as usize);
        self.memory.write(self.arg, &bytes[..length])
    }

    /// Copies one value from the caller.
    pub fn read<T: FromBytes + IntoBytes>(&self, address: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.memory.read(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies one value to the caller.
    pub fn write<T: IntoBytes + Immutable>(&self, address: u64, value: &T) -> Result<(), Errno> {
        self.memory.write(address, value.as_bytes())
    }

    /// Copies `values` to the caller, all or `EFAULT`.
    pub fn write_all<T: IntoBytes + Immutable>(
        &self,
        address: u64,
        values: &[T],
    ) -> Result<(), Errno> {
        if values.is_empty() { Ok(()) } else { self.memory.write(address, values.as_bytes()) }
    }

    /// A struct of `user_size` bytes at `address` as `copy_struct_from_user()` reads it: what the
    /// caller lacks is zero, what is newer must be zero (`E2BIG`).
    pub fn read_extensible<T: FromBytes + IntoBytes>(
        &self,
        address: u64,
        user_size: usize,
    ) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let head = user_size.min(bytes.len());
        self.check_zero(address, head as u64..user_size as u64)?;
        self.memory.read(address, &mut bytes[..head])?;
        Ok(value)
    }
}

fn errno(error: ioctl_abi::DecodeError) -> Errno {
    Errno::from_raw(error.errno())
}
