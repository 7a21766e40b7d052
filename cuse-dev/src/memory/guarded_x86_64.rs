//! Guarded copies on x86-64: functions any instruction of which may fault.
//!
//! They lie between two labels, call nobody and leave the stack alone, so that a fault in any of them
//! can go on at `softiommu_guarded_failed`, which returns 1 to their caller.
#![allow(unsafe_code)] // assembly

// Up to 2 KiB by loads and stores of 32 bytes, which take a few cycles; an aligned word is moved in one
// step. More by `rep movsb`, which takes tens of cycles to begin and is as fast as memory then.
std::arch::global_asm!(
    ".pushsection .text.softiommu_guarded, \"ax\", @progbits",
    ".p2align 6",
    ".hidden softiommu_guarded_copy",
    ".globl softiommu_guarded_copy",
    "softiommu_guarded_copy:",
    "    cmp rdx, 2048",
    "    jae 9f",
    "2:  cmp rdx, 32",
    "    jb 3f",
    "    movups xmm0, [rsi]",
    "    movups xmm1, [rsi + 16]",
    "    movups [rdi], xmm0",
    "    movups [rdi + 16], xmm1",
    "    add rsi, 32",
    "    add rdi, 32",
    "    sub rdx, 32",
    "    jmp 2b",
    "3:  test dl, 16",
    "    jz 4f",
    "    movups xmm0, [rsi]",
    "    movups [rdi], xmm0",
    "    add rsi, 16",
    "    add rdi, 16",
    "4:  test dl, 8",
    "    jz 5f",
    "    mov rax, [rsi]",
    "    mov [rdi], rax",
    "    add rsi, 8",
    "    add rdi, 8",
    "5:  test dl, 4",
    "    jz 6f",
    "    mov eax, [rsi]",
    "    mov [rdi], eax",
    "    add rsi, 4",
    "    add rdi, 4",
    "6:  test dl, 2",
    "    jz 7f",
    "    mov ax, [rsi]",
    "    mov [rdi], ax",
    "    add rsi, 2",
    "    add rdi, 2",
    "7:  test dl, 1",
    "    jz 8f",
    "    mov al, [rsi]",
    "    mov [rdi], al",
    "8:  xor eax, eax",
    "    ret",
    "9:  mov rcx, rdx",
    "    rep movsb",
    "    xor eax, eax",
    "    ret",
    ".hidden softiommu_guarded_exchange4",
    ".globl softiommu_guarded_exchange4",
    "softiommu_guarded_exchange4:",
    "    mov eax, esi",
    "    lock cmpxchg [rdi], edx",
    "    mov [rcx], rax",
    "    xor eax, eax",
    "    ret",
    ".hidden softiommu_guarded_exchange8",
    ".globl softiommu_guarded_exchange8",
    "softiommu_guarded_exchange8:",
    "    mov rax, rsi",
    "    lock cmpxchg [rdi], rdx",
    "    mov [rcx], rax",
    "    xor eax, eax",
    "    ret",
    ".hidden softiommu_guarded_failed",
    ".globl softiommu_guarded_failed",
    "softiommu_guarded_failed:",
    "    mov eax, 1",
    "    ret",
    ".popsection",
);

unsafe extern "C" {
    /// Copies `length` bytes. 1 if it met a page that is not there, in either memory.
    pub(super) fn softiommu_guarded_copy(to: *mut u8, from: *const u8, length: usize) -> u32;
    /// Exchanges 4 bytes at the aligned `at` if they are `old`; stores what was there in `found`. 1 if
    /// the page is not there.
    pub(super) fn softiommu_guarded_exchange4(
        at: *mut u8,
        old: u64,
        new: u64,
        found: *mut u64,
    ) -> u32;
    /// The same for 8 bytes.
    pub(super) fn softiommu_guarded_exchange8(
        at: *mut u8,
        old: u64,
        new: u64,
        found: *mut u64,
    ) -> u32;
    fn softiommu_guarded_failed();
}

/// Has the interrupted thread of `context` go on where its guarded function fails. False if it was in
/// none.
///
/// # Safety
///
/// `context` is that of a signal handler.
pub(super) unsafe fn fail(context: *mut libc::c_void) -> bool {
    let start = softiommu_guarded_copy as *const () as usize as i64;
    let end = softiommu_guarded_failed as *const () as usize as i64;
    // SAFETY: a handler with SA_SIGINFO is given a `ucontext_t`, by the caller's promise.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = &mut registers[libc::REG_RIP as usize];
    let guarded = (start..end).contains(at);
    if guarded {
        *at = end;
    }
    guarded
}
