//! A command's struct in the making, its fields by the headers' names.

use ioctl_abi::Command;
use ioctl_abi::layout::{Field, How, Layout};
use ioctl_abi::selftest::TestOp;

use super::super::arena::BUFFER;
use super::super::step::{Argument, Call, Patch, Place, Poke, Range, Value};
use super::state::State;

/// The struct, and what comes with it.
pub(super) struct Draft {
    command: Command,
    layout: &'static Layout,
    body: Option<(usize, &'static Layout)>,
    bytes: Vec<u8>,
    patches: Vec<Patch>,
    pokes: Vec<Poke>,
    watch: Vec<Range>,
}

impl Draft {
    /// A struct of zeros with its size.
    pub(super) fn new(command: Command) -> Self {
        let layout = command.info().layout().expect("a command with a struct");
        let draft = Self {
            command,
            layout,
            body: None,
            bytes: vec![0; layout.size],
            patches: Vec::new(),
            pokes: Vec::new(),
            watch: Vec::new(),
        };
        let size = layout.size as u64;
        draft.set(layout.fields[0].name, size)
    }

    /// A selftest's operation on `id`.
    pub(super) fn test(op: u32, id: impl Into<Value>) -> Self {
        let mut draft = Self::new(Command::Test).set("op", u64::from(op)).set("id", id);
        let at = draft.layout.fields.iter().find(|field| matches!(field.show.how, How::TestBody));
        draft.body = TestOp::find(op)
            .and_then(|op| op.body)
            .and_then(|(_, layout)| Some((at?.offset, layout)));
        draft
    }

    /// The field, and its offset in the struct. A selftest's body goes first.
    pub(super) fn field(&self, name: &str) -> (&'static Field, usize) {
        if let Some((at, body)) = self.body
            && let Some(field) = body.field(name)
        {
            return (field, at + field.offset);
        }
        let field = self.layout.field(name);
        let field = field.unwrap_or_else(|| panic!("{} has no {name}", self.layout.name));
        (field, field.offset)
    }

    /// Sets a field.
    pub(super) fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        let (field, offset) = self.field(name);
        let value = value.into();
        let word = value.literal.to_le_bytes();
        self.bytes[offset..offset + field.size].copy_from_slice(&word[..field.size]);
        if value.from.is_some() {
            let (offset, width) = (offset as u16, field.size as u8);
            self.patches.push(Patch { offset, width, value });
        }
        self
    }

    /// Writes `bytes` into the data's memory at `offset` before the call.
    pub(super) fn poke(self, offset: u64, bytes: Vec<u8>) -> Self {
        self.poke_patched(offset, bytes, Vec::new())
    }

    /// The same, with words that other calls returned.
    pub(super) fn poke_patched(mut self, offset: u64, bytes: Vec<u8>, patches: Vec<Patch>) -> Self {
        self.pokes.push(Poke { at: BUFFER + offset, bytes, patches });
        self
    }

    /// Shows `len` bytes of the data's memory after the call.
    pub(super) fn watch(mut self, offset: u64, len: u64) -> Self {
        self.watch.push(Range { at: BUFFER + offset, len });
        self
    }

    /// More bytes behind the struct.
    pub(super) fn extend(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The value of a field.
    pub(super) fn out(&self, name: &str) -> (u16, u8) {
        let (field, offset) = self.field(name);
        (offset as u16, field.size as u8)
    }

    /// The call, on the context in use.
    pub(super) fn call(self, state: &State) -> Call {
        self.call_on(state.context())
    }

    /// The call, on a descriptor.
    pub(super) fn call_on(self, fd: Value) -> Call {
        let Self { command, bytes, patches, pokes, watch, .. } = self;
        Call::Ioctl {
            fd,
            request: command.info().ioctl,
            argument: Argument::Struct { bytes, patches, place: Place::Guarded },
            pokes,
            watch,
        }
    }
}

/// Numbers as a user's memory holds them.
pub(super) fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The same, of 32 bits.
pub(super) fn half_words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
