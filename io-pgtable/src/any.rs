//! Tables without their format's type, for a driver that learns the format at run time.

use crate::{
    Barrier, Config, Error, Format, Memory, Prot, Reader, Step, Table, Taken, Translation, Walk,
};
use alloc::boxed::Box;

/// A [`Table`] of any format. Each method is the table's method of the same name.
///
/// ```
/// # use io_pgtable::{AmdV1, AnyTable, Error, Format, Heap, Prot, Table, VtdSecond};
/// fn table(vendor: &str) -> Result<Box<dyn AnyTable>, Error> {
///     Ok(match vendor {
///         "amd" => Box::new(Table::<AmdV1, _>::new(Heap::new(), AmdV1::config())?),
///         _ => Box::new(Table::<VtdSecond, _>::new(Heap::new(), VtdSecond::config())?),
///     })
/// }
/// for (vendor, name) in [("amd", "amd_v1"), ("intel", "vtd_second")] {
///     let mut table = table(vendor)?;
///     assert_eq!(table.name(), name);
///     table.map(0x1000, 0x5000, 0x1000, Prot::READ, u64::MAX)?;
///     // A device on another thread; a page may be given to someone else when it has passed.
///     let reader = table.reader();
///     assert_eq!(reader.translate(0x1008)?.pa, 0x5008);
///     assert_eq!(table.unmap(0x1000, 0x1000)?, 0x1000);
///     let barrier = table.barrier();
///     assert!(table.passed(barrier), "nobody is inside of a section");
/// }
/// # Ok::<(), Error>(())
/// ```
pub trait AnyTable: Send + Sync {
    /// The format's name.
    fn name(&self) -> &'static str;
    /// The table's shape.
    fn config(&self) -> &Config;
    /// The page sizes that the table can use.
    fn page_sizes(&self) -> u64;
    /// The permissions that the format has a field for.
    fn permissions(&self) -> Prot;
    /// Physical address of the top table and number of levels.
    fn top(&self) -> (u64, u8);
    /// Pages and bytes taken.
    fn footprint(&self) -> (usize, usize);
    /// See [`Table::map`].
    fn map(&mut self, iova: u64, pa: u64, len: u64, prot: Prot, sizes: u64) -> Result<(), Error>;
    /// See [`Table::unmap`].
    fn unmap(&mut self, iova: u64, len: u64) -> Result<u64, Error>;
    /// See [`Table::unmap_with`].
    fn unmap_with(
        &mut self,
        iova: u64,
        len: u64,
        taken: &mut dyn FnMut(Taken),
    ) -> Result<u64, Error>;
    /// See [`Table::translate`].
    fn translate(&self, iova: u64) -> Result<Translation, Error>;
    /// See [`Table::access`].
    fn access(&self, iova: u64, prot: Prot) -> Result<Translation, Error>;
    /// See [`Table::walk`].
    fn walk(&self, iova: u64) -> Result<Walk, Error>;
    /// See [`Table::visit`].
    fn visit(&self, iova: u64, len: u64, f: &mut dyn FnMut(&Step)) -> Result<(), Error>;
    /// See [`Table::read_dirty`].
    fn read_dirty(
        &self,
        iova: u64,
        len: u64,
        clear: bool,
        sink: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error>;
    /// See [`Table::cut`].
    fn cut(&mut self, at: u64) -> Result<bool, Error>;
    /// See [`Table::merge`].
    fn merge(&mut self, iova: u64, len: u64, page_sizes: u64) -> Result<usize, Error>;
    /// See [`Table::barrier`].
    fn barrier(&mut self) -> Barrier;
    /// See [`Table::passed`].
    fn passed(&self, barrier: Barrier) -> bool;
    /// See [`Table::reader`].
    fn reader(&self) -> Box<dyn AnyReader>;
}

impl<F: Format, M: Memory + 'static> AnyTable for Table<F, M> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn config(&self) -> &Config {
        self.config()
    }

    fn page_sizes(&self) -> u64 {
        self.page_sizes()
    }

    fn permissions(&self) -> Prot {
        F::FIELDS.iter().fold(Prot::empty(), |all, field| all | field.care)
    }

    fn top(&self) -> (u64, u8) {
        self.top()
    }

    fn footprint(&self) -> (usize, usize) {
        self.footprint()
    }

    fn map(&mut self, iova: u64, pa: u64, len: u64, prot: Prot, sizes: u64) -> Result<(), Error> {
        self.map(iova, pa, len, prot, sizes)
    }

    fn unmap(&mut self, iova: u64, len: u64) -> Result<u64, Error> {
        self.unmap(iova, len)
    }

    fn unmap_with(
        &mut self,
        iova: u64,
        len: u64,
        taken: &mut dyn FnMut(Taken),
    ) -> Result<u64, Error> {
        self.unmap_with(iova, len, taken)
    }

    fn translate(&self, iova: u64) -> Result<Translation, Error> {
        self.translate(iova)
    }

    fn access(&self, iova: u64, prot: Prot) -> Result<Translation, Error> {
        self.access(iova, prot)
    }

    fn walk(&self, iova: u64) -> Result<Walk, Error> {
        self.walk(iova)
    }

    fn visit(&self, iova: u64, len: u64, f: &mut dyn FnMut(&Step)) -> Result<(), Error> {
        self.visit(iova, len, f)
    }

    fn read_dirty(
        &self,
        iova: u64,
        len: u64,
        clear: bool,
        sink: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        self.read_dirty(iova, len, clear, sink)
    }

    fn cut(&mut self, at: u64) -> Result<bool, Error> {
        self.cut(at)
    }

    fn merge(&mut self, iova: u64, len: u64, page_sizes: u64) -> Result<usize, Error> {
        self.merge(iova, len, page_sizes)
    }

    fn barrier(&mut self) -> Barrier {
        self.barrier()
    }

    fn passed(&self, barrier: Barrier) -> bool {
        self.passed(barrier)
    }

    fn reader(&self) -> Box<dyn AnyReader> {
        Box::new(self.reader())
    }
}

/// A [`Reader`] of any format. Each method is the reader's method of the same name.
pub trait AnyReader: Send {
    /// See [`Reader::translate`].
    fn translate(&self, iova: u64) -> Result<Translation, Error>;
    /// See [`Reader::access`].
    fn access(&self, iova: u64, prot: Prot) -> Result<Translation, Error>;
    /// See [`Reader::walk`].
    fn walk(&self, iova: u64) -> Result<Walk, Error>;
    /// See [`Reader::section`].
    fn section(&self, f: &mut dyn FnMut(&dyn AnyReader));
    /// Another reader of the same table.
    fn another(&self) -> Box<dyn AnyReader>;
}

impl<F: Format, M: Memory + 'static> AnyReader for Reader<F, M> {
    fn translate(&self, iova: u64) -> Result<Translation, Error> {
        self.translate(iova)
    }

    fn access(&self, iova: u64, prot: Prot) -> Result<Translation, Error> {
        self.access(iova, prot)
    }

    fn walk(&self, iova: u64) -> Result<Walk, Error> {
        self.walk(iova)
    }

    fn section(&self, f: &mut dyn FnMut(&dyn AnyReader)) {
        self.section(|reader| f(reader));
    }

    fn another(&self) -> Box<dyn AnyReader> {
        Box::new(self.clone())
    }
}
