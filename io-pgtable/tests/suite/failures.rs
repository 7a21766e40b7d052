//! Every operation that takes memory fails at every allocation, and then nothing has changed.

use super::{RW, contents, last_iova, sizes};
use io_pgtable::{Config, Error, Failing, Format, Heap, Memory, Table};

/// Runs `operation` with the first allocation failing, then the second, until it succeeds.
fn at_every_allocation<F: Format>(
    table: &mut Table<F, &Failing<Heap>>,
    memory: &Failing<Heap>,
    mut operation: impl FnMut(&mut Table<F, &Failing<Heap>>) -> Result<(), Error>,
) -> u32 {
    let before = (contents(table), memory.inner().pages(), table.top());
    for n in 0.. {
        memory.fail_after(n);
        let result = operation(table);
        memory.succeed();
        if result.is_ok() {
            return n;
        }
        assert_eq!(result, Err(Error::NoMemory));
        let after = (contents(table), memory.inner().pages(), table.top());
        assert_eq!(after, before, "after failure {n}");
    }
    unreachable!("the loop returns at the first success")
}

pub(crate) fn map<F: Format>(config: Config) {
    let memory = Failing::new(Heap::new());
    memory.fail_after(0);
    assert!(matches!(Table::<F, _>::new(&memory, config), Err(Error::NoMemory)));
    memory.succeed();
    let mut table = Table::<F, _>::new(&memory, config).unwrap();
    let sizes = sizes::<F>(&config);
    let small = 1u64 << sizes[0];
    let table_reach = small << F::index_lg2(0);
    // Small pages over three leaf tables, the first with something in it already; under Miri, over two.
    let (few, miri) = (3 * small, cfg!(miri));
    table.map(table_reach, 0, small, RW, u64::MAX).unwrap();
    let (start, len, tables) = if miri {
        (2 * table_reach - small, few, 1)
    } else {
        (table_reach + small, 2 * table_reach, 2)
    };
    let failed =
        at_every_allocation(&mut table, &memory, |table| table.map(start, small, len, RW, small));
    assert!(failed >= tables);
    // At the end, where a dynamic top has to grow.
    let len = if miri { few } else { table_reach + small };
    let iova = last_iova::<F>(&config) - (len - 1);
    let failed =
        at_every_allocation(&mut table, &memory, |table| table.map(iova, 0, len, RW, small));
    assert!(failed >= 2);
    // A map that meets a page of another one gives back its tables too.
    let before = (contents(&table), memory.inner().pages());
    let start = if miri { table_reach - 2 * small } else { small };
    let result = table.map(start, 0, table_reach + small - start, RW, small);
    assert_eq!(result, Err(Error::Exists { iova: table_reach }));
    assert_eq!((contents(&table), memory.inner().pages()), before);
    drop(table);
    assert_eq!(memory.inner().pages(), 0);
}

pub(crate) fn cut<F: Format>(config: Config) {
    let memory = Failing::new(Heap::new());
    let sizes = sizes::<F>(&config);
    let small = 1u64 << sizes[0];
    for &lg2 in &sizes[1..] {
        let mut table = Table::<F, _>::new(&memory, config).unwrap();
        let bytes = 1u64 << lg2;
        table.map(0, bytes, bytes, RW, bytes).unwrap();
        let borders = [small, bytes - small, bytes / 2];
        for &at in if cfg!(miri) { &borders[..1] } else { &borders } {
            at_every_allocation(&mut table, &memory, |table| table.cut(at).map(|_| ()));
            check(&table, at, bytes);
        }
    }
    assert_eq!(memory.inner().pages(), 0);
}

/// The page at 0 still leads where it did, and has a border at `at`.
fn check<F: Format, M: Memory>(table: &Table<F, M>, at: u64, bytes: u64) {
    for iova in [0, at - 1, at, bytes - 1] {
        assert_eq!(table.translate(iova).unwrap().pa, bytes + iova);
    }
    let lg2 = table.translate(at - 1).unwrap().lg2;
    assert_eq!((at - 1) | ((1 << lg2) - 1), at - 1, "the page before ends at the border");
    let lg2 = table.translate(at).unwrap().lg2;
    assert_eq!(at & ((1 << lg2) - 1), 0, "the page after begins there");
}
