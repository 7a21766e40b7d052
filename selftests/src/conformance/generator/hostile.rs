//! Calls that are wrong: every field with any value, sizes of other releases, memory that is not
//! there, descriptors of something else, numbers that are no command.

use ioctl_abi::Command;
use ioctl_abi::command::{COMMANDS, Info};
use ioctl_abi::layout::{Field, How};
use ioctl_abi::selftest::{IOMMU_TEST_OP_PASID_ATTACH, TestOp};

use super::super::arena::{self, PAGE};
use super::super::reply::number;
use super::super::rng::Rng;
use super::super::step::{Argument, Call, Patch, Place, Value};
use super::draft::Draft;
use super::state::{Kind, State};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] = &[
    (6, any_command),
    (4, any_operation),
    (3, no_command),
    (2, bad_pointer),
    (2, on_something_else),
    (2, read_or_write),
    (1, map_nothing),
];

/// Any command with any fields.
fn any_command(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let info = *rng.pick(COMMANDS);
    info.layout()?;
    let mut call = Draft::new(info.command).call(state);
    fill(&mut call, info, state, rng);
    Some(call.into())
}

/// Any operation of the selftest with any fields.
fn any_operation(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let op = rng.below(26) as u32;
    // See `bounds`: it must be known what is attached.
    if op == IOMMU_TEST_OP_PASID_ATTACH {
        return None;
    }
    let mut call = Draft::test(op, state.wild_id(rng)).call(state);
    let Call::Ioctl { argument: Argument::Struct { bytes, patches, .. }, .. } = &mut call else {
        return None;
    };
    let body = TestOp::find(op).and_then(|op| op.body);
    for field in body.map_or(&[][..], |(_, layout)| layout.fields) {
        let value = any_value(field, state, rng);
        put(bytes, patches, 16 + field.offset, field.size, value);
    }
    Some(call.into())
}

/// A field's value that has a meaning of that kind, right or wrong.
fn any_value(field: &Field, state: &State, rng: &mut Rng) -> Value {
    let some = |rng: &mut Rng| -> u64 {
        *rng.pick(&[
            0,
            0,
            1,
            2,
            3,
            4,
            8,
            0x800,
            PAGE,
            0x100_0000,
            1 << 31,
            1 << 32,
            u64::MAX,
            i64::MAX as u64,
            0xffff_ffff,
            0xffff_f000,
        ])
    };
    match field.show.how {
        How::Id => state.wild_id(rng),
        How::Pointer => {
            let good = state.memory(rng).0;
            Value::from(*rng.pick(&[
                arena::BUFFER,
                good,
                good,
                0,
                arena::FORBIDDEN,
                arena::READ_ONLY_BUFFER,
                arena::BUFFER + arena::BUFFER_PAGES * PAGE - 4,
                u64::MAX,
                0xffff_8000_0000_0000,
                1,
            ]))
        }
        How::Flags(set) => {
            let known = set.constants.iter().fold(0, |all, constant| all | constant.value);
            let bit = 1 << rng.below(32);
            let none = *rng.pick(&[0, known, bit, u64::MAX]);
            rng.any(set.constants)
                .map_or(none, |one| if rng.chance(60) { one.value } else { none })
                .into()
        }
        How::Enum(sets) => {
            let wild = rng.below(8);
            let set = rng.pick(sets);
            rng.any(set.constants)
                .filter(|_| rng.clone().chance(70))
                .map_or(wild, |one| one.value)
                .into()
        }
        How::Fd => {
            let fd = rng.any(&state.files).map_or(3, |(fd, _)| fd.literal);
            Value::from(*rng.pick(&[fd, 0, 99, u64::MAX, state.context().literal]))
        }
        How::Hex if rng.chance(50) => match state.area(rng) {
            Some(area) => *rng.pick(&[area.iova, area.length.into()]),
            None => state.iova(rng).into(),
        },
        _ => some(rng).into(),
    }
}

fn put(bytes: &mut [u8], patches: &mut Vec<Patch>, offset: usize, size: usize, value: Value) {
    let width = size.min(8);
    let Some(field) = bytes.get_mut(offset..offset + width) else { return };
    field.copy_from_slice(&value.literal.to_le_bytes()[..width]);
    patches.retain(|patch| usize::from(patch.offset) != offset);
    if value.from.is_some() {
        patches.push(Patch { offset: offset as u16, width: width as u8, value });
    }
}

fn fill(call: &mut Call, info: &Info, state: &State, rng: &mut Rng) {
    let Call::Ioctl { argument: Argument::Struct { bytes, patches, .. }, .. } = call else {
        return;
    };
    for field in info.layout().map_or(&[][..], |layout| layout.fields) {
        let must_be_zero = matches!(field.show.how, How::Reserved | How::Size | How::Pad);
        if !must_be_zero || rng.chance(2) {
            let value = any_value(field, state, rng);
            put(bytes, patches, field.offset, field.size, value);
        }
    }
}

fn no_command(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let request = match rng.below(5) {
        // Of this letter, close to those that are.
        0 => 0x3b00 | rng.below(256) as u32,
        1 => 0x3b7c + rng.below(32) as u32,
        2 => 0x4000_0000 | rng.pick(COMMANDS).ioctl,
        3 => 0x0008_0000 | rng.pick(COMMANDS).ioctl,
        _ => 0xc008_3b00 | rng.below(256) as u32,
    };
    // Not the letters of others, which mean something to files of theirs.
    let argument = Argument::Struct {
        bytes: (0..64).map(|at| if at == 0 { 64 } else { 0 }).collect(),
        patches: Vec::new(),
        place: Place::Guarded,
    };
    let (pokes, watch) = (Vec::new(), Vec::new());
    Some(Call::Ioctl { fd: state.context(), request, argument, pokes, watch }.into())
}

fn bad_pointer(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let at = *rng.pick(&[
        0,
        1,
        arena::FORBIDDEN,
        arena::STRUCT + arena::STRUCT_PAGES * PAGE,
        arena::STRUCT + arena::STRUCT_PAGES * PAGE - 2,
        u64::MAX,
        0xffff_8000_0000_0000,
        0x7fff_ffff_f000,
    ]);
    let request = rng.pick(COMMANDS).ioctl;
    let (pokes, watch) = (Vec::new(), Vec::new());
    let argument = Argument::Value(at);
    Some(Call::Ioctl { fd: state.context(), request, argument, pokes, watch }.into())
}

/// A descriptor that is no iommufd.
fn other_descriptor(state: &State, rng: &mut Rng) -> Value {
    let mut all = vec![Value::from(0_u64), Value::from(99_u64), Value::from(u64::MAX)];
    all.extend(state.accesses.iter().map(|access| access.fd));
    all.extend(state.objects.iter().filter_map(|object| match object.kind {
        Kind::FaultQueue | Kind::Veventq => object.other,
        _ => None,
    }));
    all.extend(state.files.iter().map(|(fd, _)| *fd));
    all.extend(&state.dmabufs);
    *rng.pick(&all)
}

fn on_something_else(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let info = *rng.pick(COMMANDS);
    info.layout()?;
    let fd = other_descriptor(state, rng);
    let mut call = Draft::new(info.command).call_on(fd);
    fill(&mut call, info, state, rng);
    Some(call.into())
}

fn read_or_write(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let event = rng.any(&state.objects).and_then(|object| object.other);
    let access = state.access(rng).map(|access| access.fd);
    let fd = event.or(access).filter(|fd| fd.literal > 2)?;
    let len = rng.below(100);
    // Not too often: where an event file is FUSE's, bad memory is found before the file is asked.
    let at = match rng.below(20) {
        0 => arena::FORBIDDEN,
        1 => arena::READ_ONLY_BUFFER,
        2 => arena::BUFFER + arena::BUFFER_PAGES * PAGE - 10,
        _ => arena::BUFFER,
    };
    Some(match rng.below(3) {
        0 => Call::Poll { fd, events: -1 }.into(),
        1 => Call::Read { fd, at, len }.into(),
        _ => {
            let poke = super::super::step::Poke { at, bytes: vec![0; 16], patches: vec![] };
            Call::Write { fd, poke, len: len.min(32) }.into()
        }
    })
}

/// mmap(2) of an iommufd where it offers nothing.
fn map_nothing(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(
        Call::Mmap {
            fd: if rng.chance(80) { state.context() } else { state.access(rng)?.fd },
            at: arena::DEVICE,
            len: PAGE * (1 + rng.below(3)),
            prot: 1,
            flags: libc::MAP_SHARED,
            offset: (PAGE * *rng.pick(&[0, 1, 2, 16, 1 << 20])).into(),
        }
        .into(),
    )
}

/// Makes one thing of a call wrong.
pub(super) fn spoil(call: &mut Call, state: &State, rng: &mut Rng) {
    let context_less = matches!(call, Call::Ioctl { .. });
    if !context_less {
        return;
    }
    let Call::Ioctl { fd, request, argument: Argument::Struct { bytes, patches, place }, .. } =
        call
    else {
        return;
    };
    let Some(command) = Command::from_ioctl(*request) else { return };
    let Some(layout) = command.info().layout() else { return };
    match rng.below(100) {
        0..55 => {
            let field = rng.pick(layout.fields);
            if matches!(field.show.how, How::TestBody) {
                let op = number(bytes, 4, 4) as u32;
                let body = TestOp::find(op).and_then(|op| op.body);
                if let Some(field) = body.and_then(|(_, layout)| rng.any(layout.fields)) {
                    let value = any_value(field, state, rng);
                    put(bytes, patches, 16 + field.offset, field.size, value);
                }
            } else if !matches!(field.show.how, How::Size) {
                let value = any_value(field, state, rng);
                put(bytes, patches, field.offset, field.size, value);
            }
        }
        55..75 => resize(bytes, patches, command.info(), rng),
        75..88 => {
            *place = match rng.below(2) {
                0 => Place::ReadOnly,
                _ => Place::Cut(1 + rng.below(bytes.len() as u64) as u16),
            };
        }
        88..94 => *fd = other_descriptor(state, rng),
        94..97 => *request ^= *rng.pick(&[1, 2, 1 << 16, 1 << 30]),
        _ => {
            // Something else where the struct has nothing to say: its last bytes.
            if let Some(last) = bytes.last_mut() {
                *last ^= 1 << rng.below(8);
            }
        }
    }
}

/// A struct of another release: shorter, or longer with zeros or something else behind.
fn resize(bytes: &mut Vec<u8>, patches: &mut Vec<Patch>, info: &Info, rng: &mut Rng) {
    let size = match rng.below(8) {
        0 => info.smallest,
        1 => info.smallest.saturating_sub(1 + rng.below(4) as usize),
        2 => rng.below(8) as usize,
        3 => bytes.len().saturating_sub(4),
        4 => bytes.len() + 8,
        5 => bytes.len() + 1 + rng.below(64) as usize,
        6 => 4096 - rng.below(2) as usize,
        _ => 4096 + rng.below(200) as usize,
    };
    let longer = size > bytes.len();
    bytes.resize(size.max(4), 0);
    if longer && rng.chance(40) {
        let at = bytes.len() - 1 - rng.below(3).min(bytes.len() as u64 - 5) as usize;
        bytes[at] = 1;
    }
    patches.retain(|patch| usize::from(patch.offset + u16::from(patch.width)) <= size);
    put(bytes, patches, 0, 4, Value::from(size as u64));
}
