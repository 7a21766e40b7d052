//! How a system call is set up in a stopped thread on x86-64: what all who inject calls share.

use engine::Errno;

/// The registers of a stopped thread.
pub(crate) type Registers = libc::user_regs_struct;

/// The `syscall` instruction.
pub(crate) const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// 64-bit code: the selector of user code.
const USER_CS: u64 = 0x33;

/// Bytes below the stack pointer that the thread may be using (the ABI's red zone, and space for
/// what a signal frame aligns).
const RED_ZONE: u64 = 128 + 64;

/// Whether the thread runs 64-bit code; calls of 32-bit code are numbered differently.
pub(crate) fn native(registers: &Registers) -> bool {
    registers.cs == USER_CS
}

/// Where the instruction is that the thread just executed, if it was a system call.
pub(crate) fn last_instruction(registers: &Registers) -> u64 {
    registers.rip.wrapping_sub(SYSCALL.len() as u64)
}

/// Free stack below what the thread uses.
pub(crate) fn scratch(registers: &Registers, bytes: u64) -> u64 {
    registers.rsp.wrapping_sub(RED_ZONE + bytes) & !63
}

/// `registers` such that the thread executes the `syscall` instruction at `at`.
pub(crate) fn call(registers: &Registers, at: u64, number: i64, arguments: [u64; 6]) -> Registers {
    let [rdi, rsi, rdx, r10, r8, r9] = arguments;
    Registers {
        rip: at,
        rax: number as u64,
        // Nothing to restart.
        orig_rax: u64::MAX,
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        ..*registers
    }
}

/// Whether a system call that was injected only asks to be made again (`-ERESTARTSYS` to
/// `-ERESTARTNOHAND`).
pub(crate) fn asks_again(registers: &Registers) -> bool {
    (-514..=-512).contains(&(registers.rax as i64))
}

/// `registers` such that the thread makes its system call again, if that is what its result asks
/// for whatever signals do (`-ERESTARTNOINTR`).
pub(crate) fn restarted(registers: &Registers) -> Option<Registers> {
    let asks = registers.rax as i64 == -513 && registers.orig_rax != u64::MAX;
    asks.then(|| Registers {
        rax: registers.orig_rax,
        rip: last_instruction(registers),
        orig_rax: u64::MAX,
        ..*registers
    })
}

/// `registers` such that the thread's system call returns `result`.
pub(crate) fn returning(registers: &Registers, result: i64) -> Registers {
    Registers { rax: result as u64, orig_rax: u64::MAX, ..*registers }
}

/// What the system call returned.
pub(crate) fn result(registers: &Registers) -> Result<u64, Errno> {
    let value = registers.rax as i64;
    if (-4095..0).contains(&value) {
        Err(Errno::from_raw(-value as i32))
    } else {
        Ok(registers.rax)
    }
}
