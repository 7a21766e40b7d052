//! What depends on the processor: the registers of an injected system call, on x86-64.

use engine::Errno;
use nix::libc::user_regs_struct as Registers;

/// The length of the instruction that made the call.
const LENGTH: u64 = 2;
/// `syscall`. What a 32-bit call uses is another instruction, and another table of numbers.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Bytes below the stack pointer that the program may use without saying so.
const RED_ZONE: u64 = 128;
/// `__X32_SYSCALL_BIT` and above are not the calls that we number.
const NATIVE: std::ops::Range<u64> = 0..0x4000_0000;

/// Where the call's instruction is, given the registers on the way out of it.
pub(super) fn instruction(registers: &Registers) -> Result<u64, Errno> {
    if !NATIVE.contains(&registers.orig_rax) {
        return Err(Errno::ENOSYS);
    }
    registers.rip.checked_sub(LENGTH).ok_or(Errno::EFAULT)
}

/// Whether the bytes at [`instruction`] make a native system call.
pub(super) fn is_call(bytes: [u8; 2]) -> bool {
    bytes == SYSCALL
}

/// Scratch of `length` bytes on the caller's stack, aligned for anything.
pub(super) fn scratch(registers: &Registers, length: u64) -> Result<u64, Errno> {
    let below = RED_ZONE + length;
    Ok(registers.rsp.checked_sub(below).ok_or(Errno::EFAULT)? & !63)
}

/// The registers that call `number`.
pub(super) fn call(before: &Registers, number: libc::c_long, arguments: [u64; 4]) -> Registers {
    let [rdi, rsi, rdx, r10] = arguments;
    // No -1 in orig_rax here: the kernel takes the number from rax at the instruction.
    Registers {
        rip: before.rip - LENGTH,
        rax: number as u64,
        orig_rax: u64::MAX,
        rdi,
        rsi,
        rdx,
        r10,
        r8: 0,
        r9: 0,
        ..*before
    }
}

/// What a call returned.
pub(super) fn returned(registers: &Registers) -> Result<u64, Errno> {
    match registers.rax as i64 {
        error @ -4095..=-1 => Err(Errno::from_raw(-error as i32)),
        _ => Ok(registers.rax),
    }
}

/// The registers with which the caller's own call returns `result`, and is not restarted.
pub(super) fn finish(before: &Registers, result: i64) -> Registers {
    Registers { rax: result as u64, orig_rax: u64::MAX, ..*before }
}
