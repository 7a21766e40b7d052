//! Commands and structs as `strace` would show them: every field by name, flags and enums by
//! theirs, and after the call what the kernel changed (`iova=0 => 0x1000000`).
//!
//! Nothing is allocated and any bytes can be shown: a struct that ends early shows the fields
//! it has, a longer one says how many bytes follow.

use core::fmt::{self, Display, Formatter, Write};

use crate::command::{Argument, Command, Sizing};
use crate::layout::{Direction, Field, How, Layout, Set};
use crate::selftest::TestOp;

/// An ioctl number: a command's name, or `_IOC()` of its parts.
#[derive(Clone, Copy, Debug)]
pub struct IoctlName(pub u32);

impl Display for IoctlName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(command) = Command::from_ioctl(self.0) {
            return f.write_str(command.name());
        }
        let [nr, kind, ..] = self.0.to_le_bytes();
        let size = (self.0 >> 16) & 0x3fff;
        let direction = match self.0 >> 30 {
            0 => "_IOC_NONE",
            1 => "_IOC_WRITE",
            2 => "_IOC_READ",
            _ => "_IOC_READ|_IOC_WRITE",
        };
        write!(f, "_IOC({direction}, {kind:#x}, {nr:#x}, {size:#x})")
    }
}

/// A command and its argument, before the call.
///
/// `bytes` are the caller's struct, as much of it as is there; for [`Argument::Value`] the
/// argument itself, as this machine stores a `u64`.
pub fn print(command: Command, bytes: &[u8]) -> Call<'_> {
    Call { command, before: bytes, after: None }
}

/// A command and its argument after the call: like [`print()`], with what changed.
pub fn print_call<'a>(command: Command, before: &'a [u8], after: &'a [u8]) -> Call<'a> {
    Call { command, before, after: Some(after) }
}

/// A struct alone, such as a vendor's payload or what was read from a fault queue.
pub fn print_struct<'a>(layout: &'static Layout, bytes: &'a [u8]) -> Struct<'a> {
    Struct { layout, before: bytes, after: None }
}

/// See [`print()`] and [`print_call`].
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    command: Command,
    before: &'a [u8],
    after: Option<&'a [u8]>,
}

impl Display for Call<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let info = self.command.info();
        f.write_str(info.name)?;
        match info.argument {
            Argument::None => Ok(()),
            Argument::Value(set) => {
                f.write_char(' ')?;
                write_enum(f, &[set], word(self.before, 0, self.before.len().min(8)))
            }
            Argument::Struct(layout) => {
                f.write_char(' ')?;
                let (before, after) = (self.before, self.after);
                Struct { layout, before, after }.fmt(f)?;
                let tail = self.before.get(layout.size..).unwrap_or_default();
                if tail.is_empty() || info.sizing == Sizing::Argsz {
                    return Ok(());
                }
                let zero = tail.iter().all(|&byte| byte == 0);
                write!(f, " + {} bytes, {}", tail.len(), if zero { "zero" } else { "not zero" })
            }
        }
    }
}

/// See [`print_struct`].
#[derive(Clone, Copy, Debug)]
pub struct Struct<'a> {
    layout: &'static Layout,
    before: &'a [u8],
    after: Option<&'a [u8]>,
}

impl Display for Struct<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        let mut separator = "";
        for field in self.layout.fields {
            let Some(before) = self.before.get(field.offset..field.end()) else {
                // The caller's struct is an older release's, or ends where it should not.
                if self.before.len() > field.offset {
                    write!(f, "{separator}{}=?", field.name)?;
                }
                break;
            };
            // Of a flexible array nothing is in the struct itself.
            if matches!(field.show.how, How::Pad) || field.size == 0 {
                continue;
            }
            f.write_str(separator)?;
            separator = ", ";
            let after = self.after.and_then(|after| after.get(field.offset..field.end()));
            let op = matches!(field.show.how, How::TestBody)
                .then(|| self.layout.field("op"))
                .flatten()
                .map_or(0, |op| word(self.before, op.offset, op.size));
            write_field(f, field, op, before, after)?;
        }
        f.write_char('}')
    }
}

/// Writes `name=value`, or `name=value => value` where the kernel changed what the caller gave.
fn write_field(
    f: &mut Formatter<'_>,
    field: &Field,
    op: u64,
    before: &[u8],
    after: Option<&[u8]>,
) -> fmt::Result {
    match field.show.how {
        How::TestBody => {
            let Some((name, layout)) = find_body(op) else {
                f.write_str("body=")?;
                return write_value(f, field, before);
            };
            write!(f, "{name}=")?;
            return Struct { layout, before, after }.fmt(f);
        }
        How::Struct(layout) => {
            write!(f, "{}=", field.name)?;
            return Struct { layout, before, after }.fmt(f);
        }
        _ => write!(f, "{}=", field.name)?,
    }
    match after {
        Some(after) if after != before => {
            if field.show.direction != Direction::Out {
                write_value(f, field, before)?;
                f.write_str(" => ")?;
            }
            write_value(f, field, after)
        }
        _ => write_value(f, field, before),
    }
}

fn find_body(op: u64) -> Option<(&'static str, &'static Layout)> {
    TestOp::find(u32::try_from(op).ok()?)?.body
}

fn write_value(f: &mut Formatter<'_>, field: &Field, bytes: &[u8]) -> fmt::Result {
    let Some(count) = field.count else {
        return write_word(f, field.show.how, word(bytes, 0, bytes.len()));
    };
    let each = (field.size / count.max(1)).max(1);
    f.write_char('[')?;
    for (index, element) in bytes.chunks_exact(each).enumerate() {
        f.write_str(if index == 0 { "" } else { ", " })?;
        write_word(f, field.show.how, word(element, 0, each))?;
    }
    f.write_char(']')
}

fn write_word(f: &mut Formatter<'_>, how: How, value: u64) -> fmt::Result {
    match how {
        How::Size | How::Decimal | How::Id => write!(f, "{value}"),
        // Descriptors are four bytes and may be -1.
        How::Fd => write!(f, "{}", value as u32 as i32),
        How::Pointer if value == 0 => f.write_str("NULL"),
        How::Flags(set) => write_flags(f, set, value),
        How::Enum(sets) => write_enum(f, sets, value),
        How::Hex | How::Pointer | How::Reserved | How::Pad | How::Struct(_) | How::TestBody => {
            write_hex(f, value)
        }
    }
}

fn write_hex(f: &mut Formatter<'_>, value: u64) -> fmt::Result {
    if value == 0 { f.write_char('0') } else { write!(f, "{value:#x}") }
}

/// The names of the bits that are set, and as a number what has no name.
fn write_flags(f: &mut Formatter<'_>, set: &Set, value: u64) -> fmt::Result {
    let mut left = value;
    let mut separator = "";
    for constant in set.constants {
        if constant.value != 0 && left & constant.value == constant.value {
            left &= !constant.value;
            write!(f, "{separator}{}", constant.name)?;
            separator = "|";
        }
    }
    if left != 0 || value == 0 {
        f.write_str(separator)?;
        write_hex(f, left)?;
    }
    Ok(())
}

fn write_enum(f: &mut Formatter<'_>, sets: &[&Set], value: u64) -> fmt::Result {
    match sets.iter().find_map(|set| set.name_of(value)) {
        Some(name) => f.write_str(name),
        None => write_hex(f, value),
    }
}

/// The number in up to 8 bytes, in the byte order of this machine.
fn word(bytes: &[u8], offset: usize, len: usize) -> u64 {
    let Some(bytes) = bytes.get(offset..offset + len.min(8)) else { return 0 };
    let mut word = [0; 8];
    if cfg!(target_endian = "big") {
        word[8 - bytes.len()..].copy_from_slice(bytes);
    } else {
        word[..bytes.len()].copy_from_slice(bytes);
    }
    u64::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::command::COMMANDS;
    use crate::iommufd::*;
    use crate::selftest::*;
    use crate::vfio::*;

    #[test]
    fn a_map_before_and_after() {
        let before = iommu_ioas_map {
            size: 40,
            flags: IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE | 0x80,
            ioas_id: 1,
            user_va: 0x7f00_0000_0000,
            length: 0x2000,
            ..Default::default()
        };
        assert_eq!(
            print(Command::IoasMap, before.as_bytes()).to_string(),
            "IOMMU_IOAS_MAP {size=40, \
             flags=IOMMU_IOAS_MAP_WRITEABLE|IOMMU_IOAS_MAP_READABLE|0x80, ioas_id=1, \
             __reserved=0, user_va=0x7f0000000000, length=0x2000, iova=0}"
        );
        let after = iommu_ioas_map { iova: 0x100_0000, ..before };
        assert_eq!(
            print_call(Command::IoasMap, before.as_bytes(), after.as_bytes()).to_string(),
            "IOMMU_IOAS_MAP {size=40, \
             flags=IOMMU_IOAS_MAP_WRITEABLE|IOMMU_IOAS_MAP_READABLE|0x80, ioas_id=1, \
             __reserved=0, user_va=0x7f0000000000, length=0x2000, iova=0 => 0x1000000}"
        );
    }

    #[test]
    fn an_older_and_a_newer_struct() {
        let mut bytes = [0; 56];
        bytes[0] = 24;
        bytes[4] = 1;
        assert_eq!(
            print(Command::HwptAlloc, &bytes[..24]).to_string(),
            "IOMMU_HWPT_ALLOC {size=24, flags=IOMMU_HWPT_ALLOC_NEST_PARENT, dev_id=0, pt_id=0, \
             out_hwpt_id=0, __reserved=0}"
        );
        bytes[0] = 56;
        bytes[24..28].copy_from_slice(&IOMMU_HWPT_DATA_SELFTEST.to_ne_bytes());
        assert_eq!(
            print(Command::HwptAlloc, &bytes).to_string(),
            "IOMMU_HWPT_ALLOC {size=56, flags=IOMMU_HWPT_ALLOC_NEST_PARENT, dev_id=0, pt_id=0, \
             out_hwpt_id=0, __reserved=0, data_type=IOMMU_HWPT_DATA_SELFTEST, data_len=0, \
             data_uptr=NULL, fault_id=0, __reserved2=0} + 8 bytes, zero"
        );
        assert_eq!(print(Command::Destroy, &[8, 0, 0]).to_string(), "IOMMU_DESTROY {size=?}");
    }

    #[test]
    fn selftest_operations_show_their_own_fields() {
        let mut before = iommu_test_cmd { size: 72, id: 4, ..Default::default() };
        before.op = IOMMU_TEST_OP_MOCK_DOMAIN;
        let mut after = before;
        after.set_body(&iommu_test_mock_domain { out_stdev_id: 5, out_hwpt_id: 6, out_idev_id: 7 });
        assert_eq!(
            print_call(Command::Test, before.as_bytes(), after.as_bytes()).to_string(),
            "IOMMU_TEST_CMD {size=72, op=IOMMU_TEST_OP_MOCK_DOMAIN, id=4, __reserved=0, \
             mock_domain={out_stdev_id=5, out_hwpt_id=6, out_idev_id=7}, last=0}"
        );
        before.op = 99;
        assert_eq!(
            print(Command::Test, before.as_bytes()).to_string(),
            "IOMMU_TEST_CMD {size=72, op=0x63, id=4, __reserved=0, body=[0, 0, 0, 0, 0, 0], \
             last=0}"
        );
    }

    #[test]
    fn descriptors_arrays_and_values() {
        let map = iommu_ioas_map_file { fd: -1, ..Default::default() };
        assert!(print(Command::IoasMapFile, map.as_bytes()).to_string().contains("fd=-1"));
        let info = iommu_hw_info { size: 40, ..Default::default() };
        assert_eq!(
            print(Command::GetHwInfo, info.as_bytes()).to_string(),
            "IOMMU_GET_HW_INFO {size=40, flags=0, dev_id=0, data_len=0, data_uptr=NULL, \
             out_data_type=IOMMU_HW_INFO_TYPE_NONE, out_max_pasid_log2=0, \
             __reserved=[0, 0, 0], out_capabilities=0}"
        );
        assert_eq!(
            print(Command::VfioSetIommu, &u64::from(VFIO_TYPE1v2_IOMMU).to_ne_bytes()).to_string(),
            "VFIO_SET_IOMMU VFIO_TYPE1v2_IOMMU"
        );
        assert_eq!(print(Command::VfioGetApiVersion, &[]).to_string(), "VFIO_GET_API_VERSION");
        let header = vfio_info_cap_header { id: 1, version: 1, next: 0 };
        let capability =
            vfio_iommu_type1_info_cap_iova_range { header, nr_iovas: 2, ..Default::default() };
        let layout = <vfio_iommu_type1_info_cap_iova_range as crate::AbiStruct>::LAYOUT;
        assert_eq!(
            print_struct(layout, capability.as_bytes()).to_string(),
            "{header={id=VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version=1, next=0}, nr_iovas=2, \
             reserved=0}"
        );
    }

    #[test]
    fn numbers_that_are_no_command() {
        assert_eq!(IoctlName(0x3b85).to_string(), "IOMMU_IOAS_MAP");
        assert_eq!(IoctlName(0x3bff).to_string(), "_IOC(_IOC_NONE, 0x3b, 0xff, 0x0)");
        assert_eq!(IoctlName(0x8004_3b85).to_string(), "_IOC(_IOC_READ, 0x3b, 0x85, 0x4)");
    }

    proptest! {
        /// Whatever the bytes are, each field that is wholly there is shown by name.
        #[test]
        fn any_bytes(
            row in 0..COMMANDS.len(),
            before in proptest::collection::vec(any::<u8>(), 0..100),
            after in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let info = COMMANDS[row];
            let shown = print_call(info.command, &before, &after).to_string();
            prop_assert!(shown.starts_with(info.name));
            for field in info.layout().map_or(&[][..], |layout| layout.fields) {
                let there = field.end() <= before.len();
                let hidden = matches!(field.show.how, How::Pad | How::TestBody) || field.size == 0;
                if there && !hidden {
                    let named = std::format!("{}=", field.name);
                    prop_assert!(shown.contains(&named), "{}", shown);
                }
            }
        }
    }
}
