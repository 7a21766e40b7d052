//! Addresses in reports: `"0x…"` in JSON, for its numbers lose bits above 2^53 in many readers.

use serde::{Deserialize as _, Deserializer, Serializer, de::Error};

pub(crate) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.strip_prefix("0x").ok_or_else(|| D::Error::custom("no 0x"))?;
    u64::from_str_radix(digits, 16).map_err(D::Error::custom)
}
