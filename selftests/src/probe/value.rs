//! Values in a program: numbers, names, and sums of them.

use std::collections::BTreeMap;

use ioctl_abi::layout::{Constant, How, Layout};

/// What a program has named so far.
#[derive(Default, Clone)]
pub(super) struct Names {
    /// `$name`: ids, counters, results.
    pub values: BTreeMap<String, u64>,
    /// `@name`: addresses of memory.
    pub addresses: BTreeMap<String, u64>,
}

impl Names {
    /// The value of `text`: terms joined by `+`, `-` or `|`.
    pub(super) fn value(&self, text: &str, layout: Option<&Layout>) -> Result<u64, String> {
        let mut sum = 0_u64;
        let mut rest = text;
        let mut operator = '+';
        loop {
            // A leading minus belongs to the number.
            let end = rest
                .char_indices()
                .find(|&(at, c)| at > 0 && matches!(c, '+' | '-' | '|'))
                .map_or(rest.len(), |(at, _)| at);
            let term = self.term(&rest[..end], layout)?;
            sum = match operator {
                '+' => sum.wrapping_add(term),
                '-' => sum.wrapping_sub(term),
                _ => sum | term,
            };
            let Some(next) = rest[end..].chars().next() else { return Ok(sum) };
            operator = next;
            rest = &rest[end + 1..];
        }
    }

    fn term(&self, term: &str, layout: Option<&Layout>) -> Result<u64, String> {
        if let Some(name) = term.strip_prefix('$') {
            return self.values.get(name).copied().ok_or_else(|| format!("no value ${name}"));
        }
        if let Some(name) = term.strip_prefix('@') {
            return self.addresses.get(name).copied().ok_or_else(|| format!("no memory @{name}"));
        }
        if term == "max" {
            return Ok(u64::MAX);
        }
        let (negative, digits) = term.strip_prefix('-').map_or((false, term), |rest| (true, rest));
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        };
        if let Some(number) = number {
            return Ok(if negative { number.wrapping_neg() } else { number });
        }
        constant(term, layout).ok_or_else(|| format!("unknown name {term}"))
    }
}

/// A constant of the header, looked for in the sets that the struct's fields name.
fn constant(name: &str, layout: Option<&Layout>) -> Option<u64> {
    let find = |constants: &[Constant]| {
        constants.iter().find(|constant| constant.name == name).map(|found| found.value)
    };
    layout?.fields.iter().find_map(|field| match field.show.how {
        How::Flags(set) => find(set.constants),
        How::Enum(sets) => sets.iter().find_map(|set| find(set.constants)),
        _ => None,
    })
}
