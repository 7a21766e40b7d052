//! Walks a table in a dump of a machine's memory, and says every level's raw entry.
//!
//! Usage: `walk_dump FORMAT TOP LEVELS IOVA... < dump`, numbers in hexadecimal but for LEVELS. FORMAT is
//! one of amd_v1, vtd_second, x86_64, riscv, s390. Each line of the dump is an address and a word, or
//! several that follow each other: `12340000: 0000000012341003 0 0 …`.

use io_pgtable::{AmdV1, Config, Dump, Format, RiscV, S390, VtdSecond, X86_64};
use std::error::Error;
use std::io::{BufRead, stdin};

fn hex(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
}

fn walk<F: Format>(dump: &Dump, top: u64, levels: u8, iovas: &[u64]) -> Result<(), Box<dyn Error>> {
    let last = levels.checked_sub(1).filter(|_| levels <= F::MAX_LEVELS).ok_or("bad LEVELS")?;
    let iova_bits = (F::shift(last) + F::index_lg2(last)).min(64);
    let config = Config { iova_bits, levels, dynamic_top: false, ..F::config() };
    for iova in iovas {
        println!("{} {iova:#x}\n{}", F::NAME, dump.walk::<F>(top, &config, *iova)?);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [format, top, levels, iovas @ ..] = args.as_slice() else {
        return Err("usage: walk_dump FORMAT TOP LEVELS IOVA... < dump".into());
    };
    let mut dump = Dump::new();
    for line in stdin().lock().lines() {
        let line = line?;
        let Some((address, words)) = line.split_once(':') else { continue };
        let words: Result<Vec<u64>, _> = words.split_whitespace().map(hex).collect();
        dump.add(hex(address.trim())?, words?);
    }
    let iovas = iovas.iter().map(|iova| hex(iova)).collect::<Result<Vec<_>, _>>()?;
    let (top, levels) = (hex(top)?, levels.parse()?);
    match format.as_str() {
        "amd_v1" => walk::<AmdV1>(&dump, top, levels, &iovas),
        "vtd_second" => walk::<VtdSecond>(&dump, top, levels, &iovas),
        "x86_64" => walk::<X86_64>(&dump, top, levels, &iovas),
        "riscv" => walk::<RiscV>(&dump, top, levels, &iovas),
        "s390" => walk::<S390>(&dump, top, levels, &iovas),
        other => Err(format!("unknown format {other}").into()),
    }
}
