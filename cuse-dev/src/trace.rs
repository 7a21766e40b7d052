//! One line for each ioctl: caller, command with all its fields, result, time.
//!
//! Off, it costs one look at a static. On, the caller's struct is read before and after the call,
//! for people only: the engine decides on its own copy.

use std::time::Instant;

use engine::Errno;
use engine::memory::AddressSpace;
use ioctl_abi::Command;
use ioctl_abi::command::Argument;

/// Who calls what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) tid: u32,
    pub(crate) context: u64,
    pub(crate) command: u32,
    pub(crate) argument: u64,
}

/// The target that `RUST_LOG` turns on.
const TARGET: &str = "softiommu::ioctl";

/// Runs `answer`, and logs it if somebody wants to know.
pub(crate) fn around(
    call: Call,
    memory: &dyn AddressSpace,
    answer: impl FnOnce() -> Result<i64, Errno>,
) -> Result<i64, Errno> {
    if !tracing::enabled!(target: TARGET, tracing::Level::DEBUG) {
        return answer();
    }
    let command = Command::from_ioctl(call.command);
    let before = command.map(|command| argument(command, call.argument, memory));
    let began = Instant::now();
    let result = answer();
    let micros = began.elapsed().as_nanos() as f64 / 1000.0;
    let shown = match (command, before) {
        (Some(command), Some(before)) => {
            let after = argument(command, call.argument, memory);
            ioctl_abi::print_call(command, &before, &after).to_string()
        }
        _ => format!("{:#x}, {:#x}", call.command, call.argument),
    };
    let outcome = match result {
        Ok(value) => value.to_string(),
        Err(errno) => format!("-1 {errno:?}"),
    };
    let Call { tid, context, .. } = call;
    tracing::debug!(target: TARGET, "{tid} iommufd {context}: {shown} = {outcome} <{micros:.1} us>");
    result
}

/// What the printer is to see of the caller's argument: nothing of what cannot be read.
fn argument(command: Command, argument: u64, memory: &dyn AddressSpace) -> Vec<u8> {
    match command.info().argument {
        Argument::None => Vec::new(),
        Argument::Value(_) => argument.to_ne_bytes().to_vec(),
        Argument::Struct(layout) => {
            let mut size = [0; 4];
            if memory.read(argument, &mut size).is_err() {
                return Vec::new();
            }
            let said = usize::try_from(u32::from_ne_bytes(size)).unwrap_or(usize::MAX);
            let mut bytes = vec![0; said.min(layout.size)];
            if memory.read(argument, &mut bytes).is_ok() { bytes } else { Vec::new() }
        }
    }
}
