//! What a struct of the ABI is made of, as data: from it the printer, the C header and the test
//! against the kernel's headers are derived.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::release::Release;

/// A struct of the ABI: plain bytes without holes, in the kernel's layout.
pub trait AbiStruct: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Default {
    /// Its description.
    const LAYOUT: &'static Layout;
}

/// One struct.
#[derive(Debug)]
pub struct Layout {
    /// The C name without `struct`.
    pub name: &'static str,
    /// Bytes of the whole.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
    /// The fields by rising offset, without gaps.
    pub fields: &'static [Field],
}

impl Layout {
    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// One field of a struct.
#[derive(Debug)]
pub struct Field {
    /// The C name.
    pub name: &'static str,
    /// Bytes from the struct's start.
    pub offset: usize,
    /// Bytes of the whole field.
    pub size: usize,
    /// The C type of one element, such as `__u32`.
    pub c_type: &'static str,
    /// Elements of an array, where it is one; 0 for a flexible one at the struct's end.
    pub count: Option<usize>,
    /// What it means.
    pub show: Show,
}

impl Field {
    /// Bytes from the struct's start to the field's end.
    pub const fn end(&self) -> usize {
        self.offset + self.size
    }
}

/// What a field means to a reader.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    /// How to write its value.
    pub how: How,
    /// Who sets it.
    pub direction: Direction,
    /// The release that brought it, where that is later than its struct.
    pub since: Option<Release>,
    /// A second name of the same bytes (the headers' anonymous unions).
    pub alias: Option<&'static str>,
}

/// Who sets a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The caller.
    In,
    /// The kernel.
    Out,
    /// The caller, and then the kernel.
    InOut,
}

/// How a value is written.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// The struct's own size.
    Size,
    /// A count or length in decimal.
    Decimal,
    /// An address, a register, a bit pattern.
    Hex,
    /// The id of an iommufd object.
    Id,
    /// A descriptor of the caller.
    Fd,
    /// An address in the caller's memory.
    Pointer,
    /// Bits with names.
    Flags(&'static Set),
    /// One of several named values; the mock driver's are in a set of their own.
    Enum(&'static [&'static Set]),
    /// Must be zero.
    Reserved,
    /// Bytes that the C compiler inserts; no field of the header.
    Pad,
    /// A struct in the struct.
    Struct(&'static Layout),
    /// The body of a selftest command, whose shape the field `op` decides.
    TestBody,
}

impl Show {
    const fn of(how: How) -> Self {
        Self { how, direction: Direction::In, since: None, alias: None }
    }

    /// Set by the kernel alone.
    pub const fn out(self) -> Self {
        Self { direction: Direction::Out, ..self }
    }

    /// Read and then set by the kernel.
    pub const fn inout(self) -> Self {
        Self { direction: Direction::InOut, ..self }
    }

    /// Came later than its struct.
    pub const fn since(self, release: Release) -> Self {
        Self { since: Some(release), ..self }
    }

    /// Has a second name in the header.
    pub const fn alias(self, name: &'static str) -> Self {
        Self { alias: Some(name), ..self }
    }
}

/// The words that declarations of fields use.
pub mod show {
    use super::{How, Layout, Set, Show};

    /// The struct's own size.
    pub const SIZE: Show = Show::of(How::Size);
    /// A count or length.
    pub const DECIMAL: Show = Show::of(How::Decimal);
    /// An address, a register, a bit pattern.
    pub const HEX: Show = Show::of(How::Hex);
    /// The id of an object.
    pub const ID: Show = Show::of(How::Id);
    /// A descriptor of the caller.
    pub const FD: Show = Show::of(How::Fd);
    /// An address in the caller's memory.
    pub const POINTER: Show = Show::of(How::Pointer);
    /// Must be zero.
    pub const RESERVED: Show = Show::of(How::Reserved);
    /// The C compiler's padding.
    pub const PAD: Show = Show::of(How::Pad);
    /// The body of a selftest command.
    pub const TEST_BODY: Show = Show::of(How::TestBody);

    /// Bits of `set`.
    pub const fn flags(set: &'static Set) -> Show {
        Show::of(How::Flags(set))
    }

    /// One value of `sets`.
    pub const fn one_of(sets: &'static [&'static Set]) -> Show {
        Show::of(How::Enum(sets))
    }

    /// A struct in the struct.
    pub const fn nested(layout: &'static Layout) -> Show {
        Show::of(How::Struct(layout))
    }
}

/// An enum of the headers, or defines that belong together.
#[derive(Debug)]
pub struct Set {
    /// The enum's C name, or ours where the header has none.
    pub name: &'static str,
    /// The constants in the header's order.
    pub constants: &'static [Constant],
}

impl Set {
    /// The name of `value`; the first, where two share it.
    pub fn name_of(&self, value: u64) -> Option<&'static str> {
        self.constants.iter().find(|constant| constant.value == value).map(|found| found.name)
    }
}

/// One constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Its C name.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
}

/// The C name of what Rust calls `name`: without the mark of raw identifiers.
pub(crate) const fn c_name(name: &str) -> &str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// The C spelling of a field's Rust type.
pub trait CType {
    /// Of one element.
    const NAME: &'static str;
    /// Elements of an array.
    const COUNT: Option<usize> = None;
}

impl CType for u8 {
    const NAME: &'static str = "__u8";
}
impl CType for u16 {
    const NAME: &'static str = "__u16";
}
impl CType for u32 {
    const NAME: &'static str = "__u32";
}
impl CType for i32 {
    const NAME: &'static str = "__s32";
}
impl CType for u64 {
    const NAME: &'static str = "__aligned_u64";
}
impl<T: CType, const N: usize> CType for [T; N] {
    const NAME: &'static str = T::NAME;
    const COUNT: Option<usize> = Some(N);
}
