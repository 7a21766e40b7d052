//! Walks a table in a dump of a machine's memory, and says every level's raw entry.
//!
//! Usage: `walk_dump FORMAT TOP LEVELS IOVA... < dump`, numbers in hexadecimal but for LEVELS. FORMAT is
//! a name of the crate's list: amd_v1, vtd_second_4, x86_64_4, lpae_s2_4k_48, riscv_sv39, s390 and so
//! on; the number of levels is what LEVELS says. Each line of the dump is an address and a word, or
//! several that follow each other: `12340000: 0000000012341003 0 0 …`.

use io_pgtable::{Config, Dump, Format, for_each_format};
use std::error::Error;
use std::io::{BufRead, stdin};

fn hex(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
}

fn walk<F: Format>(
    dump: &Dump,
    config: Config,
    top: u64,
    levels: u8,
    iovas: &[u64],
) -> Result<(), Box<dyn Error>> {
    let last = levels.checked_sub(1).filter(|_| levels <= F::MAX_LEVELS).ok_or("bad LEVELS")?;
    let iova_bits = (F::shift(last) + F::index_lg2(last)).min(64);
    let config = Config { iova_bits, levels, dynamic_top: false, ..config };
    for iova in iovas {
        println!("{} {iova:#x}\n{}", F::NAME, dump.walk::<F>(top, &config, *iova)?);
    }
    Ok(())
}

macro_rules! rows {
    ($($name:ident: $format:ty, $config:expr;)*) => {
        fn walk_named(
            format: &str,
            dump: &Dump,
            (top, levels): (u64, u8),
            iovas: &[u64],
        ) -> Result<(), Box<dyn Error>> {
            match format {
                $(stringify!($name) => walk::<$format>(dump, $config, top, levels, iovas),)*
                other => Err(format!("unknown format {other}").into()),
            }
        }
    };
}

for_each_format!(rows);

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
    walk_named(format, &dump, (top, levels), &iovas)
}
