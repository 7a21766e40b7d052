//! Random operations on a table of any format, with memory that runs out at random.
//!
//! Nothing may panic, leak, or leave a trace when it fails; what was mapped translates to where it was
//! mapped. Run it with `cargo +nightly fuzz run io_pgtable`.
#![no_main]

use arbitrary::Arbitrary;
use io_pgtable::{Config, Error, Failing, Format, Heap, Prot, Step, Table, for_each_format};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Op {
    Map { iova: u64, pa: u64, len: u64, prot: u8, sizes: u64, granules: bool },
    Unmap { iova: u64, len: u64 },
    Cut { iova: u64 },
    Merge { iova: u64, len: u64, sizes: u64 },
    Access { iova: u64, prot: u8 },
    Dirty { iova: u64, len: u64, clear: bool },
    Walk { iova: u64 },
    FailAfter { allocations: u8 },
    Reader { registered: bool },
}

#[derive(Arbitrary, Debug)]
struct Input {
    format: u8,
    ops: Vec<Op>,
}

/// The table's contents, half by half, so that all 64 bits are seen.
fn contents<F: Format>(table: &Table<F, &Failing<Heap>>) -> Vec<Step> {
    let (mut steps, config) = (Vec::new(), table.config());
    let half = 1u64 << (config.iova_bits - 1);
    let upper = if F::SIGN_EXTENDED { half.wrapping_neg() } else { half };
    for first in [0, upper] {
        let _ = table.visit(first, half, |step| steps.push(*step));
    }
    steps
}

fn run<F: Format>(config: Config, ops: &[Op]) {
    let memory = Failing::new(Heap::new());
    let Ok(mut table) = Table::<F, _>::new(&memory, config) else { return };
    // With a reader, entries are written another way.
    let mut reader = None;
    for op in ops {
        match *op {
            Op::Map { iova, pa, len, prot, sizes, granules } => {
                // Most random numbers are aligned to nothing: let half of them be.
                let (shift, mask) =
                    if granules { (F::GRANULE_LG2, 0x3ffff) } else { (0, 0x3fff_ffff) };
                let (iova, pa) = (iova >> shift << shift, pa >> shift << shift);
                let (len, prot) = ((len & mask) << shift, Prot::from_bits_truncate(prot.into()));
                let before = contents(&table);
                match table.map(iova, pa, len, prot, sizes) {
                    Ok(()) => {
                        for offset in [0, len / 2, len - 1] {
                            let found = table.translate(iova + offset).unwrap();
                            assert_eq!((found.pa, found.prot), (pa + offset, prot));
                        }
                    }
                    // A table with nothing in it may be gone; what is mapped must be the same.
                    Err(_) => assert_eq!(leaves(contents(&table)), leaves(before)),
                }
            }
            Op::Unmap { iova, len } => {
                if let Ok(bytes) = table.unmap(iova, len) {
                    assert!(bytes <= len);
                    assert_eq!(table.unmap(iova, len), Ok(0));
                }
            }
            Op::Cut { iova } => {
                let before = table.translate(iova).map(|found| (found.pa, found.prot));
                let cut = table.cut(iova);
                assert_eq!(table.translate(iova).map(|found| (found.pa, found.prot)), before);
                assert!(cut.is_err() || table.cut(iova) == Ok(false));
            }
            Op::Merge { iova, len, sizes } => {
                let before = table.translate(iova).map(|found| (found.pa, found.prot));
                let _ = table.merge(iova, len, sizes);
                assert_eq!(table.translate(iova).map(|found| (found.pa, found.prot)), before);
            }
            Op::Access { iova, prot } => {
                let prot = Prot::from_bits_truncate(prot.into());
                let result = table.access(iova, prot);
                assert!(!matches!(result, Err(Error::Malformed { .. })));
                if result.is_ok() && prot.contains(Prot::WRITE) && F::DIRTY.mask != 0 {
                    let mut found = false;
                    table.read_dirty(iova, 1, false, |_, _| found = true).unwrap();
                    assert!(found);
                }
            }
            Op::Dirty { iova, len, clear } => {
                let end = iova.saturating_add(len);
                let _ = table.read_dirty(iova, len, clear, |first, len| {
                    assert!(first >= iova && len <= end - first);
                });
            }
            Op::Walk { iova } => {
                let _ = table.walk(iova).map(|walk| walk.to_string());
            }
            Op::Reader { registered } => reader = registered.then(|| table.reader()),
            Op::FailAfter { allocations: 255 } => memory.succeed(),
            Op::FailAfter { allocations } => memory.fail_after(allocations.into()),
        }
    }
    drop(table);
    drop(reader);
    assert_eq!(memory.inner().pages(), 0);
}

fn leaves(steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().filter(|step| step.kind != io_pgtable::Kind::Table).collect()
}

macro_rules! rows {
    ($($name:ident: $format:ty, $config:expr;)*) => {
        fn any_format(input: &Input) {
            let rows: &[fn(&[Op])] = &[$(|ops| run::<$format>($config, ops)),*];
            rows[usize::from(input.format) % rows.len()](&input.ops);
        }
    };
}

for_each_format!(rows);

fuzz_target!(|input: Input| any_format(&input));
