//! Our entries against those that Linux 7.3 wrote for an emulated IOMMU.
//!
//! The recordings are `data/linux-7.3-*.txt`, made by `ci/record-iopte`: `map` lines say what was
//! mapped (IOVA, bytes, rights, runs of physical memory), `table` names the root and the levels,
//! `entry` lines give every entry that is not zero (table, index, value).

use io_pgtable::{AmdV1, Format, Heap, Kind, Memory, Prot, Table, VtdSecond, X86_64};
use std::collections::BTreeMap;

struct Map {
    iova: u64,
    prot: Prot,
    runs: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Recording {
    maps: Vec<Map>,
    root: u64,
    levels: u8,
    entries: BTreeMap<(u64, usize), u64>,
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .expect("a recording holds numbers")
}

fn recording(text: &str) -> Recording {
    let mut all = Recording::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "map" => all.maps.push(Map {
                iova: number(words[1]),
                prot: if words[3] == "rw" { Prot::READ | Prot::WRITE } else { Prot::READ },
                runs: words[4..]
                    .iter()
                    .map(|run| run.split_once('+').expect("address+bytes"))
                    .map(|(at, bytes)| (number(at), number(bytes)))
                    .collect(),
            }),
            "table" => (all.root, all.levels) = (number(words[2]), number(words[3]) as u8),
            "entry" => {
                let at = (number(words[1]), number(words[2]) as usize);
                all.entries.insert(at, number(words[3]));
            }
            other => panic!("what is {other}?"),
        }
    }
    assert!(!all.maps.is_empty() && !all.entries.is_empty());
    all
}

/// Maps what the kernel mapped, and compares the two trees entry by entry. `ours` turns an entry of
/// the kernel's into what the manual's fields say, without the bits that are the kernel's own;
/// `also` is what it adds to every mapping's rights.
fn compare<F: Format>(text: &str, also: Prot, ours: fn(u64, Kind) -> u64) {
    let recording = recording(text);
    let config = io_pgtable::Config { levels: recording.levels, track: false, ..F::config() };
    let mut table = Table::<F, _>::new(Heap::new(), config).expect("the format's own shape");
    for map in &recording.maps {
        let mut iova = map.iova;
        for &(pa, bytes) in &map.runs {
            table.map(iova, pa, bytes, map.prot | also, u64::MAX).expect("mapped once");
            iova += bytes;
        }
    }
    let (root, levels) = table.top();
    assert_eq!(levels, recording.levels);
    let mut seen = 0;
    let mut todo = vec![(root, recording.root, levels - 1)];
    while let Some((mine, theirs, level)) = todo.pop() {
        let words = table.memory().at(mine, 4096).expect("a table of ours").cast::<u64>();
        for index in 0..512 {
            let entry = table_word(words, index);
            let kernel = recording.entries.get(&(theirs, index)).copied().unwrap_or(0);
            let kind = F::kind(level, kernel);
            let place = format!("{} level {level} index {index}", F::NAME);
            assert_eq!(F::kind(level, entry), kind, "{place}: {entry:#x} for {kernel:#x}");
            seen += usize::from(kernel != 0);
            if kind == Kind::Table {
                let (below, kernels) = (F::table_pa(level, entry), F::table_pa(level, kernel));
                let moved = ours(kernel, kind) - kernels + below;
                assert_eq!(entry, moved, "{place}: {entry:#x} for {kernel:#x}");
                todo.push((below, kernels, level - 1));
            } else {
                assert_eq!(entry, ours(kernel, kind), "{place}: {entry:#x} for {kernel:#x}");
            }
        }
    }
    assert_eq!(seen, recording.entries.len(), "entries that our tree does not reach");
}

#[allow(unsafe_code)] // Reads a table as the hardware does: as words of memory.
fn table_word(words: std::ptr::NonNull<u64>, index: usize) -> u64 {
    // SAFETY: `words` is a live table page of 512 words, and nobody writes it meanwhile.
    unsafe { words.add(index).read() }
}

/// VT-d 9.8: bit 10 of an entry that points to a table is ignored; Linux marks its own tables with
/// it.
#[test]
fn vtd_second_stage_is_what_linux_writes() {
    compare::<VtdSecond>(include_str!("data/linux-7.3-vtd.txt"), Prot::empty(), |entry, kind| {
        match kind {
            Kind::Table => entry & !(1 << 10),
            _ => entry,
        }
    });
}

/// Nothing is forbidden to execute in Linux's tables. VT-d 9.7: bit 9 of an entry that points to a table is
/// ignored; Linux marks its own tables with it.
#[test]
fn vtd_first_stage_is_what_linux_writes() {
    let text = include_str!("data/linux-7.3-vtd-first.txt");
    compare::<X86_64>(text, Prot::EXECUTE, |entry, kind| match kind {
        Kind::Table => entry & !(1 << 9),
        _ => entry,
    });
}

#[test]
fn amd_v1_is_what_linux_writes() {
    compare::<AmdV1>(include_str!("data/linux-7.3-amd.txt"), Prot::SNOOP, |entry, _| entry);
}
