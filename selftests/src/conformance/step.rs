//! What a program is made of: calls whose arguments are numbers, or what an earlier call returned.
//!
//! A program that is being shrunk loses calls, and with them ids and descriptors move. A [`Value`]
//! therefore knows where it came from: it is read from the reply of that call where the call is
//! still there, and is the number it was otherwise.

use serde::{Deserialize, Serialize};

/// A call with its number in the whole program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number, by which [`Value`]s name it; kept when others are removed.
    pub number: u32,
    /// What it does.
    pub call: Call,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The call's result.
    Result,
    /// Bytes of the struct as the call left it.
    Out {
        /// Bytes from its start.
        offset: u16,
        /// How many.
        width: u8,
    },
    /// The descriptor that the call opened without returning it.
    Descriptor,
    /// Bytes of the first piece of memory that the call's reply shows.
    Seen {
        /// Bytes from its start.
        offset: u16,
        /// How many.
        width: u8,
    },
}

/// A number in an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// What it was when the program was made.
    pub literal: u64,
    /// The call that returned it, by number, and what of its reply it is.
    pub from: Option<(u32, Source)>,
}

impl From<u64> for Value {
    fn from(literal: u64) -> Self {
        Self { literal, from: None }
    }
}

impl From<u32> for Value {
    fn from(literal: u32) -> Self {
        Self::from(u64::from(literal))
    }
}

impl From<&Self> for Value {
    fn from(value: &Self) -> Self {
        *value
    }
}

/// Where a struct lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Right before memory that is not there, so that looking beyond it fails.
    Guarded,
    /// In memory that can only be read.
    ReadOnly,
    /// With so many of its bytes beyond the end of memory.
    Cut(u16),
}

/// A field of a struct that holds a [`Value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Bytes from the struct's start.
    pub offset: u16,
    /// Bytes of the field.
    pub width: u8,
    /// What it holds.
    pub value: Value,
}

/// The third argument of an ioctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Argument {
    /// A number, or an address where nothing is put.
    Value(u64),
    /// A struct.
    Struct {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Fields that other calls returned.
        patches: Vec<Patch>,
        /// Where it lies.
        place: Place,
    },
}

/// Memory that is written before a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poke {
    /// Where.
    pub at: u64,
    /// What.
    pub bytes: Vec<u8>,
    /// Words of it that other calls returned.
    pub patches: Vec<Patch>,
}

/// Memory that a reply shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Its first address.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// open(2) of the iommufd.
    Open {
        /// O_RDWR and the like; O_CLOEXEC is added.
        flags: i32,
    },
    /// close(2).
    Close {
        /// Of what.
        fd: Value,
    },
    /// dup(2).
    Dup {
        /// Of what.
        fd: Value,
    },
    /// ioctl(2).
    Ioctl {
        /// On what.
        fd: Value,
        /// Its number.
        request: u32,
        /// Its argument.
        argument: Argument,
        /// What is written before it.
        pokes: Vec<Poke>,
        /// What is looked at after it.
        watch: Vec<Range>,
    },
    /// read(2).
    Read {
        /// Of what.
        fd: Value,
        /// Into which address.
        at: u64,
        /// At most so many bytes.
        len: u64,
    },
    /// write(2).
    Write {
        /// To what.
        fd: Value,
        /// What, and from which address.
        poke: Poke,
        /// So many bytes.
        len: u64,
    },
    /// poll(2) that does not wait.
    Poll {
        /// Of what.
        fd: Value,
        /// For what.
        events: i16,
    },
    /// mmap(2) at a fixed address.
    Mmap {
        /// Of what; -1 for none.
        fd: Value,
        /// Where to.
        at: u64,
        /// Bytes.
        len: u64,
        /// PROT_READ and the like.
        prot: i32,
        /// MAP_SHARED and the like; MAP_FIXED is added.
        flags: i32,
        /// From which byte on.
        offset: Value,
    },
    /// munmap(2).
    Munmap(Range),
    /// mprotect(2).
    Protect {
        /// Of what.
        range: Range,
        /// PROT_READ and the like.
        prot: i32,
    },
    /// memfd_create(2) and ftruncate(2).
    Memfd {
        /// Bytes.
        len: u64,
        /// MFD_ALLOW_SEALING and the like; MFD_CLOEXEC is added.
        flags: u32,
    },
    /// ftruncate(2).
    Truncate {
        /// Of what.
        fd: Value,
        /// Bytes.
        len: u64,
    },
    /// setrlimit(2) of RLIMIT_MEMLOCK's soft limit.
    LimitLockedMemory {
        /// Bytes.
        bytes: u64,
    },
    /// Raises or lowers an effective capability.
    Capability {
        /// Its number.
        number: u8,
        /// Whether the program has it afterwards.
        raised: bool,
    },
    /// Looks at memory, which shows what devices wrote.
    Look(Range),
    /// Calls in a child process.
    Child(Vec<Call>),
}

impl Call {
    /// The number at `offset` of an ioctl's struct, as the call is played with it: a patch counts, whatever
    /// the bytes below it were spoiled to. 0 where there is none.
    pub fn number(&self, offset: usize, width: usize) -> u64 {
        let Self::Ioctl { argument: Argument::Struct { bytes, patches, .. }, .. } = self else {
            return 0;
        };
        let patch = patches.iter().find(|patch| usize::from(patch.offset) == offset);
        let Some(patch) = patch.filter(|_| offset + width <= bytes.len()) else {
            return super::reply::number(bytes, offset, width);
        };
        patch.value.literal & (u64::MAX >> (64 - 8 * width.clamp(1, 8)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_counts_and_not_what_lies_below_it() {
        let patches = vec![Patch { offset: 4, width: 4, value: Value::from(2_u64) }];
        let bytes = vec![8, 0, 0, 0, 2, 0, 0, 1];
        let argument = Argument::Struct { bytes, patches, place: Place::Guarded };
        let fd = Value::from(4_u64);
        let call = Call::Ioctl { fd, request: 0, argument, pokes: Vec::new(), watch: Vec::new() };
        assert_eq!((call.number(0, 4), call.number(4, 4), call.number(8, 4)), (8, 2, 0));
    }
}
