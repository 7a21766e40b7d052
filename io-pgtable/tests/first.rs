//! First steps over every format: map, translate, refuse, unmap.

use io_pgtable::{Error, Format, Heap, Prot, Table, for_each_format};

fn first_steps<F: Format>(config: io_pgtable::Config) {
    let heap = Heap::new();
    let mut table = Table::<F, _>::new(&heap, config).unwrap();
    let base = heap.pages();
    let page = 1 << F::GRANULE_LG2;
    let (iova, len) = (1 << 24, 1 << 24);
    for pa in [1 << 24, 3 << 24, 7 * page] {
        table.map(iova, pa, len, Prot::READ | Prot::WRITE, u64::MAX).unwrap();
        for offset in [0, page - 1, page, len / 2 + 5, len - 1] {
            assert_eq!(table.translate(iova + offset).unwrap().pa, pa + offset);
        }
        assert_eq!(
            table.map(iova + len - page, 0, 2 * page, Prot::READ, u64::MAX),
            Err(Error::Exists { iova: iova + len - page })
        );
        assert_eq!(table.translate(iova + len), Err(Error::NotMapped { iova: iova + len }));
        assert_eq!(table.unmap(iova, len), Ok(len));
        assert_eq!(table.translate(iova), Err(Error::NotMapped { iova }));
    }
    assert!(heap.pages() <= base + 3);
    drop(table);
    assert_eq!(heap.pages(), 0);
}

macro_rules! rows {
    ($($name:ident: $format:ty, $config:expr;)*) => {$(
        #[test]
        fn $name() {
            first_steps::<$format>($config);
        }
    )*};
}

for_each_format!(rows);
