//! What programs reached of the uAPI: each call's outcomes, and what it was asked for when it
//! succeeded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ioctl_abi::layout::{Direction, Field, How, Layout};
use ioctl_abi::selftest::TestOp;
use serde::{Deserialize, Serialize};

use super::reply::{Reply, number};
use super::step::{Argument, Call};
use super::{rules, show};

/// Counts by a call's name and by what happened.
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// What was reached, and how often.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Coverage {
    /// Each call's outcomes: errnos, 0, or a positive number.
    outcomes: Counts,
    /// The shapes of those that succeeded: `flags=A|B type=C`, as far as the struct has such fields,
    /// or how long it was where that is not today's length.
    shapes: Counts,
}

fn bump(counts: &mut Counts, name: String, what: String, by: u64) {
    *counts.entry(name).or_default().entry(what).or_default() += by;
}

impl Coverage {
    /// Counts a call.
    pub fn count(&mut self, call: &Call, reply: &Reply) {
        if let Call::Child(calls) = call {
            for (call, reply) in calls.iter().zip(&reply.child) {
                self.count(call, reply);
            }
        }
        let outcome = match reply.errno() {
            Some(errno) => format!("{errno:?}"),
            None if reply.result > 0 => "positive".to_owned(),
            None => "0".to_owned(),
        };
        bump(&mut self.outcomes, show::name(call), outcome, 1);
        if let Some(shape) = shape(call).filter(|shape| reply.ok() && !shape.is_empty()) {
            bump(&mut self.shapes, show::name(call), shape, 1);
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in
            [(&mut self.outcomes, &other.outcomes), (&mut self.shapes, &other.shapes)]
        {
            for (name, counts) in theirs {
                for (what, count) in counts {
                    bump(mine, name.clone(), what.clone(), *count);
                }
            }
        }
    }

    /// A line for each call, its outcomes on both sides, with those that one side lacks marked; and
    /// below it a line for each shape of those that succeeded.
    pub fn table(&self, other: &Self) -> String {
        let mut text = String::new();
        let names: BTreeSet<_> = self.outcomes.keys().chain(other.outcomes.keys()).collect();
        for name in names {
            let of = |counts: &Counts| counts.get(name).cloned().unwrap_or_default();
            let _ = write!(text, "{name}:");
            for (outcome, counts) in both(&of(&self.outcomes), &of(&other.outcomes)) {
                let _ = write!(text, " {outcome} {counts}");
            }
            text.push('\n');
            for (shape, counts) in both(&of(&self.shapes), &of(&other.shapes)) {
                let _ = writeln!(text, "    {shape}: {counts}");
            }
        }
        text
    }
}

/// How often each thing happened on two sides: one number if they agree.
fn both<'a>(
    left: &'a BTreeMap<String, u64>,
    right: &'a BTreeMap<String, u64>,
) -> Vec<(&'a String, String)> {
    let all: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    all.into_iter()
        .map(|what| {
            let (left, right) = (left.get(what).unwrap_or(&0), right.get(what).unwrap_or(&0));
            let same = left == right;
            (what, if same { left.to_string() } else { format!("{left}/{right}") })
        })
        .collect()
}

/// What a call asks for, by the fields of its struct that hold names.
fn shape(call: &Call) -> Option<String> {
    let (command, op) = rules::command(call)?;
    let Call::Ioctl { argument: Argument::Struct { bytes, .. }, .. } = call else { return None };
    let layout = command.info().layout()?;
    let mut shape = String::new();
    named(&mut shape, layout, bytes);
    let body = op.and_then(TestOp::find).and_then(|op| op.body);
    let at = layout.fields.iter().find(|field| matches!(field.show.how, How::TestBody));
    if let (Some((_, body)), Some(at)) = (body, at) {
        named(&mut shape, body, bytes.get(at.offset..).unwrap_or_default());
    }
    // The selftest's struct has today's length or is refused.
    if bytes.len() != layout.size && op.is_none() {
        let which = if bytes.len() < layout.size { "an older struct" } else { "a longer struct" };
        let _ = write!(shape, "{}{which}", if shape.is_empty() { "" } else { " " });
    }
    Some(shape)
}

/// Adds the fields of a struct that the caller fills with names.
fn named(shape: &mut String, layout: &'static Layout, bytes: &[u8]) {
    for field in layout.fields {
        let there = bytes.len() >= field.end() && field.name != "op";
        if !there || field.show.direction == Direction::Out {
            continue;
        }
        if let Some(value) = value(field, number(bytes, field.offset, field.size)) {
            let space = if shape.is_empty() { "" } else { " " };
            let _ = write!(shape, "{space}{}={value}", field.name);
        }
    }
}

/// The names that a field holds; `None` if it holds no names. Bits and values without any name are
/// told by that alone.
fn value(field: &Field, value: u64) -> Option<String> {
    match field.show.how {
        How::Enum(sets) => {
            let name = sets.iter().find_map(|set| set.name_of(value));
            Some(name.unwrap_or("?").to_owned())
        }
        How::Flags(set) => {
            let mut left = value;
            let mut names = Vec::new();
            for constant in set.constants {
                if constant.value != 0 && left & constant.value == constant.value {
                    left &= !constant.value;
                    names.push(constant.name);
                }
            }
            if left != 0 {
                names.push("?");
            }
            Some(if names.is_empty() { "0".to_owned() } else { names.join("|") })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ioctl_abi::iommufd::*;
    use zerocopy::IntoBytes;

    use super::super::step::{Place, Value};
    use super::*;

    fn map(flags: u32, longer: usize) -> Call {
        let map = iommu_ioas_map { size: 40, flags, ..Default::default() };
        let mut bytes = map.as_bytes().to_vec();
        bytes.resize(bytes.len() + longer, 0);
        let argument = Argument::Struct { bytes, patches: Vec::new(), place: Place::Guarded };
        let (fd, request) = (Value::from(4_u64), IOMMU_IOAS_MAP);
        Call::Ioctl { fd, request, argument, pokes: Vec::new(), watch: Vec::new() }
    }

    #[test]
    fn successes_are_told_apart_by_what_was_asked_for() {
        let (mut left, mut right) = (Coverage::default(), Coverage::default());
        let readable = map(IOMMU_IOAS_MAP_READABLE, 0);
        for side in [&mut left, &mut right] {
            side.count(&readable, &Reply::of(0));
            side.count(&readable, &Reply::of(-i64::from(libc::EINVAL)));
        }
        let mut more = Coverage::default();
        more.count(&map(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE, 8), &Reply::of(0));
        left.add(&more);
        assert_eq!(
            left.table(&right),
            "IOMMU_IOAS_MAP: 0 2/1 EINVAL 1\n    \
             flags=IOMMU_IOAS_MAP_READABLE: 1\n    \
             flags=IOMMU_IOAS_MAP_WRITEABLE|IOMMU_IOAS_MAP_READABLE a longer struct: 1/0\n"
        );
    }
}
