//! Accessed and dirty state: set by accesses, read into bitmaps, carried over by cut and merge.

use super::{RW, contents, sizes};
use io_pgtable::{Bitmap, Config, Error, Format, Heap, Memory, Prot, Table};

/// What is dirty in `len` bytes at `iova`.
pub(crate) fn dirty<F: Format, M: Memory>(
    table: &Table<F, M>,
    iova: u64,
    len: u64,
    clear: bool,
) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    table.read_dirty(iova, len, clear, |first, len| ranges.push((first, len))).unwrap();
    ranges
}

pub(crate) fn by_granule<F: Format>(config: Config) {
    let mut table = Table::<F, _>::new(Heap::new(), config).unwrap();
    let small = 1u64 << sizes::<F>(&config)[0];
    let (pages, iova) = (80, small * 1024);
    table.map(iova, 0, pages * small, RW, small).unwrap();
    table.map(iova + 2 * pages * small, 0, small, Prot::READ, small).unwrap();
    assert_eq!(dirty(&table, iova, pages * small, true), []);
    let written = [0, 3, 31, 32, 63, 64, 79];
    for page in written {
        table.access(iova + page * small + 5, Prot::WRITE).unwrap();
        table.access(iova + (page + 1) % pages * small, Prot::READ).unwrap();
    }
    let denied = Error::Denied { iova: iova + 2 * pages * small, prot: Prot::READ };
    assert_eq!(table.access(iova + 2 * pages * small, Prot::WRITE), Err(denied));
    assert!(matches!(table.access(0, Prot::READ), Err(Error::NotMapped { iova: 0 })));
    let tracks = F::DIRTY.mask != 0;
    let expected: Vec<_> =
        written.iter().filter(|_| tracks).map(|page| (iova + page * small, small)).collect();
    // Reading does not clear, whatever the granule; clearing clears what was in the range only.
    for lg2 in [0, 1, 4] {
        let mut words = [0; 2];
        let mut bits = Bitmap::new(iova, small.trailing_zeros() + lg2, &mut words);
        table.read_dirty(iova, pages * small, false, |first, len| bits.mark(first, len)).unwrap();
        for granule in 0..pages >> lg2 {
            let any = tracks && written.iter().any(|page| page >> lg2 == granule);
            assert_eq!(words[granule as usize / 64] >> (granule % 64) & 1 != 0, any);
        }
    }
    assert_eq!(dirty(&table, iova, pages * small, false), expected);
    assert_eq!(dirty(&table, iova, 4 * small, true), expected[..2.min(expected.len())]);
    assert_eq!(dirty(&table, iova, pages * small, true), expected[2.min(expected.len())..]);
    assert_eq!(dirty(&table, iova, pages * small, true), []);
    // A page that was cleaned can be written again.
    table.access(iova, RW).unwrap();
    assert_eq!(dirty(&table, iova, small, true), &expected[..1.min(expected.len())]);
}

pub(crate) fn cut_and_merge<F: Format>(config: Config) {
    let heap = Heap::new();
    let sizes = sizes::<F>(&config);
    let small = 1u64 << sizes[0];
    for &lg2 in &sizes[1..] {
        let bytes = 1u64 << lg2;
        // Not at 0 and with another offset in physical memory, where there is room for that.
        let base = if bytes > u64::MAX >> (67 - config.iova_bits) { 0 } else { bytes };
        let pa = if lg2 + 2 > config.oa_bits { 0 } else { 3 * bytes };
        let mut table = Table::<F, _>::new(&heap, config).unwrap();
        table.map(base, pa, bytes, RW, bytes).unwrap();
        let whole = contents(&table);
        let pages = heap.pages();

        assert_eq!(table.cut(base), Ok(false));
        assert_eq!(table.cut(base + small), Ok(true));
        table.cut(base + bytes / 2).unwrap();
        assert_eq!(table.cut(base + bytes / 2), Ok(false));
        assert_eq!(table.cut(base + small), Ok(false));
        assert_eq!(dirty(&table, base, bytes, false), [], "cutting writes nothing");
        for offset in [0, small - 1, small, bytes / 2 - 1, bytes / 2, bytes - 1] {
            let found = table.translate(base + offset).unwrap();
            assert_eq!((found.pa, found.prot), (pa + offset, RW));
        }
        assert_ne!(table.merge(base, bytes, u64::MAX), Ok(0));
        assert_eq!(contents(&table), whole, "cut and merge undo each other");
        assert_eq!(heap.pages(), pages);

        // A mark goes to all the parts of what was written, and from a part to the whole.
        table.access(base + bytes - 1, RW).unwrap();
        let tracks = F::DIRTY.mask != 0;
        // Whichever of its entries hardware marked, the page is dirty wherever a read begins or ends.
        for part in [base, base + bytes / 2 - small, base + bytes - small] {
            let expected: &[_] = if tracks { &[(part, small)] } else { &[] };
            assert_eq!(dirty(&table, part, small, true), expected);
        }
        table.cut(base + small).unwrap();
        let parts: u64 = dirty(&table, base, bytes, true).iter().map(|(_, len)| len).sum();
        assert_eq!(parts, if tracks { bytes } else { 0 });
        table.access(base, RW).unwrap();
        table.merge(base, bytes, u64::MAX).unwrap();
        let expected: &[_] = if tracks { &[(base, bytes)] } else { &[] };
        assert_eq!(dirty(&table, base, bytes, false), expected);

        // Pages that permit different things stay apart.
        table.unmap(base, bytes).unwrap();
        table.map(base, pa, small, Prot::READ, small).unwrap();
        table.map(base + small, pa + small, bytes - small, RW, u64::MAX).unwrap();
        table.merge(base, bytes, u64::MAX).unwrap();
        assert_eq!(table.translate(base).unwrap().prot, Prot::READ);
        assert_eq!(table.translate(base + small).unwrap().prot, RW);
    }
    assert_eq!(heap.pages(), 0);
}

/// Where nobody tracks, entries are as if used already, and nothing is ever reported.
pub(crate) fn untracked<F: Format>(config: Config) {
    let config = Config { track: false, ..config };
    let mut table = Table::<F, _>::new(Heap::new(), config).unwrap();
    let small = 1u64 << sizes::<F>(&config)[0];
    table.map(0, 0, small, RW, u64::MAX).unwrap();
    let before = table.translate(0).unwrap();
    assert_eq!(before.prot, RW);
    assert_eq!(table.access(0, RW), Ok(before), "nothing is marked");
    assert_eq!(dirty(&table, 0, small, true), []);
}
