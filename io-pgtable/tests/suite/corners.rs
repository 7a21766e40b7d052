//! The first and the last IOVA, every page size and level, and what has to be refused.

use super::{RW, last_iova, sizes};
use io_pgtable::{Config, Error, Format, Heap, Kind, Prot, Table};

pub(crate) fn every_size_at_both_ends<F: Format>(config: Config) {
    let heap = Heap::new();
    let last = last_iova::<F>(&config);
    for lg2 in sizes::<F>(&config) {
        let bytes = 1u64 << lg2;
        let mut table = Table::<F, _>::new(&heap, config).unwrap();
        let top = ((config.oa_bits < 64) as u64) << (config.oa_bits % 64);
        for iova in [0, last - (bytes - 1), bytes] {
            let pas = [top.wrapping_sub(bytes), 0];
            for &pa in if cfg!(miri) { &pas[..1] } else { &pas } {
                // The page at `bytes` does not exist where one page fills half of the table.
                if iova == bytes && bytes > last >> 2 {
                    continue;
                }
                table.map(iova, pa, bytes, RW, u64::MAX).unwrap();
                for offset in [0, 1, bytes / 2, bytes - 1] {
                    let found = table.translate(iova + offset).unwrap();
                    assert_eq!((found.pa, found.lg2), (pa + offset, lg2), "{iova:#x} {pa:#x}");
                    assert_eq!(found.prot, RW);
                }
                if let Some(before) = iova.checked_sub(1) {
                    assert!(table.translate(before).is_err());
                }
                let walk = table.walk(iova).unwrap();
                let (leaf, above) = walk.steps.split_last().unwrap();
                assert_eq!((leaf.kind, leaf.lg2, leaf.pa), (Kind::Leaf, lg2, pa));
                assert!(above.iter().all(|step| step.kind == Kind::Table));
                assert_eq!(walk.to_string().lines().count(), walk.steps.len());
                let mut taken = 0;
                let took = table.unmap_with(iova, bytes, |entry| {
                    assert_eq!(entry.pa, pa + taken);
                    taken += entry.len;
                });
                assert_eq!((took, taken), (Ok(bytes), bytes));
            }
        }
    }
    assert_eq!((heap.pages(), heap.bytes()), (0, 0));
}

pub(crate) fn refusals<F: Format>(config: Config) {
    let mut table = Table::<F, _>::new(Heap::new(), config).unwrap();
    let small = 1u64 << sizes::<F>(&config)[0];
    let last = last_iova::<F>(&config);
    let before = table.footprint();
    let unaligned = |bits| Err(Error::Unaligned { bits, page_size: small });
    assert_eq!(table.map(1, 0, small, RW, u64::MAX), unaligned(1 | small));
    assert_eq!(table.map(0, 1, small, RW, u64::MAX), unaligned(1 | small));
    assert_eq!(table.map(0, 0, small + 1, RW, u64::MAX), unaligned(small | 1));
    assert_eq!(table.map(0, 0, 0, RW, u64::MAX), Err(Error::OutOfRange { iova: 0, len: 0 }));
    assert_eq!(table.map(0, 0, small, RW, 1), Err(Error::NoPageSize { mask: 1 }));
    assert_eq!(
        table.map(0, 0, small, Prot::empty(), u64::MAX).err(),
        (!F::FIELDS.iter().all(|field| {
            field.values.is_empty() || field.values.iter().any(|(prot, _)| prot.is_empty())
        }))
        .then_some(Error::Unsupported { prot: Prot::empty() })
    );
    let _ = table.unmap(0, small);
    let iova = last - (small - 1);
    let wraps = Err(Error::OutOfRange { iova, len: 2 * small });
    assert_eq!(table.map(iova, 0, 2 * small, RW, u64::MAX), wraps);
    assert_eq!(table.unmap(iova, 2 * small).map(|_| ()), wraps);
    if config.oa_bits < 64 {
        let pa = 1 << config.oa_bits;
        let error = Err(Error::OutputTooLarge { pa: pa - small, len: 2 * small });
        assert_eq!(table.map(0, pa - small, 2 * small, RW, u64::MAX), error);
    }
    if F::SIGN_EXTENDED {
        let hole = 1 << (config.iova_bits - 1);
        assert!(table.map(hole, 0, small, RW, u64::MAX).is_err());
        assert!(table.map(hole - small, 0, 2 * small, RW, u64::MAX).is_err());
        assert!(table.translate(hole).is_err());
    }
    table.map(0, 0, small, RW, u64::MAX).unwrap();
    assert_eq!(table.map(0, 0, small, RW, u64::MAX), Err(Error::Exists { iova: 0 }));
    assert_eq!(table.unmap(0, small), Ok(small));
    assert_eq!(table.unmap(0, small), Ok(0));
    assert!(table.footprint().0 - before.0 <= usize::from(F::MAX_LEVELS));
    for bad in [
        Config { levels: 0, ..config },
        Config { levels: F::MAX_LEVELS + 1, ..config },
        Config { iova_bits: 65, ..config },
        Config { iova_bits: 3, ..config },
        Config { page_sizes: 0, ..config },
        Config { dynamic_top: !F::DYNAMIC_TOP, ..config },
    ] {
        if bad != config {
            assert!(matches!(Table::<F, _>::new(Heap::new(), bad), Err(Error::BadConfig)));
        }
    }
}

/// A large page fits where small ones were, and a small one where a large one was.
pub(crate) fn no_tables_stay_in_the_way<F: Format>(config: Config) {
    let heap = Heap::new();
    let mut table = Table::<F, _>::new(&heap, config).unwrap();
    let sizes = sizes::<F>(&config);
    let small = 1u64 << sizes[0];
    for &lg2 in &sizes {
        let bytes = 1u64 << lg2;
        table.map(0, 0, small, RW, u64::MAX).unwrap();
        table.map(bytes / 2 / small * small + small, 0, small, RW, small).unwrap();
        assert_eq!(table.unmap(bytes / 2 / small * small + small, small), Ok(small));
        assert_eq!(table.unmap(0, small), Ok(small));
        table.map(0, 0, bytes, RW, bytes).unwrap();
        assert_eq!(table.translate(bytes - 1).unwrap().lg2, lg2);
        if lg2 != sizes[0] {
            assert_eq!(table.unmap(0, small), Err(Error::InsideEntry { iova: 0, lg2 }));
            assert_eq!(table.unmap(small, bytes), Err(Error::InsideEntry { iova: 0, lg2 }));
        }
        assert_eq!(table.unmap(0, bytes), Ok(bytes));
    }
    drop(table);
    assert_eq!(heap.pages(), 0);
}

/// The writer remembers where it was last. Whatever takes that table away, the next change goes where a
/// walk from the top finds it.
pub(crate) fn the_table_nearby_goes_away<F: Format>(config: Config) {
    let heap = Heap::new();
    let small = 1u64 << sizes::<F>(&config)[0];
    let region = small << F::index_lg2(0);
    let page = |table: &mut Table<F, &Heap>, iova: u64, pa: u64| {
        table.map(iova, pa, small, RW, small).unwrap();
        assert_eq!(table.translate(iova).unwrap().pa, pa, "{iova:#x}");
        assert!(table.walk(iova).unwrap().steps.last().unwrap().kind == Kind::Leaf);
    };
    let mut table = Table::<F, _>::new(&heap, config).unwrap();
    for round in 0..if cfg!(miri) { 1 } else { 2 } {
        // Unmap takes the table with its last page.
        page(&mut table, region, 0);
        page(&mut table, region + small, 5 * small);
        assert_eq!(table.unmap(region + small, small), Ok(small));
        assert_eq!(table.unmap(region, region), Ok(small));
        assert!(table.translate(region).is_err());
        page(&mut table, region + 2 * small, 7 * small);
        assert_eq!(table.unmap(region, 2 * region), Ok(small));
        // A large page takes an empty one.
        let large = config.page_sizes & F::page_sizes(&config) & region;
        if large != 0 {
            page(&mut table, region, 0);
            assert_eq!(table.unmap(region, small), Ok(small));
            table.map(region, 0, region, RW, region).unwrap();
            assert!(table.map(region, 0, small, RW, small).is_err());
            assert!(matches!(table.unmap(region, small), Err(Error::InsideEntry { .. })));
            // Cut makes one, merge takes it again.
            assert_eq!(table.cut(region + small), Ok(true));
            assert_eq!(table.unmap(region, small), Ok(small));
            page(&mut table, region, 0);
            table.merge(region, region, region).unwrap();
            assert!(matches!(table.unmap(region, small), Err(Error::InsideEntry { .. })));
            assert_eq!(table.unmap(region, region), Ok(region));
        }
        // And a map that fails takes what it made.
        let last = if cfg!(miri) { region + small } else { 2 * region - small };
        page(&mut table, last, 0);
        let result = table.map(region - small, 0, last - (region - small) + small, RW, small);
        assert_eq!(result, Err(Error::Exists { iova: last }));
        assert_eq!(table.unmap(last, small), Ok(small));
        page(&mut table, region, round * small);
        assert_eq!(table.unmap(0, 4 * region), Ok(small));
    }
    drop(table);
    assert_eq!(heap.pages(), 0);
}
