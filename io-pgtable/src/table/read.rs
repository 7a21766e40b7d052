//! Translation, accesses as a device makes them, and walks for people.

use super::{Reader, Shared, Table};
use crate::raw::Tab;
use crate::{Config, Error, Format, Kind, Memory, Prot};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{Ordering::*, fence};

/// Where an IOVA leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address of the byte at the IOVA.
    pub pa: u64,
    /// What the entry permits.
    pub prot: Prot,
    /// log2 of the size of the page that the entry maps, in bytes.
    pub lg2: u32,
    /// The leaf as it stands in memory.
    pub entry: u64,
}

/// One step of a walk: an entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The manual's number for the level.
    pub level: i8,
    /// Index of the entry in its table.
    pub index: usize,
    /// First IOVA that the entry covers, without sign extension.
    pub iova: u64,
    /// The entry as it stands in memory.
    pub entry: u64,
    /// What it is.
    pub kind: Kind,
    /// For a table its physical address, for a leaf the page's.
    pub pa: u64,
    /// log2 of the bytes that the entry covers; for a leaf, of the page's size.
    pub lg2: u32,
    /// For a table the manual's number of the next level; for others the entry's own.
    pub next: i8,
    /// For a leaf, what it permits.
    pub prot: Prot,
}

impl Step {
    pub(crate) fn new<F: Format>(level: u8, index: usize, iova: u64, entry: u64) -> Self {
        let (kind, shift) = (F::kind(level, entry), F::shift(level));
        let leaf = kind == Kind::Leaf;
        let lg2 = if leaf { F::leaf_lg2(level, entry) } else { shift };
        let pa = match kind {
            Kind::Table => F::table_pa(level, entry),
            Kind::Leaf => F::leaf_pa(level, entry) & !Config::low(lg2),
            Kind::Absent | Kind::Reserved => 0,
        };
        let next = if kind == Kind::Table { F::hw_level(level - 1) } else { F::hw_level(level) };
        let prot = if leaf { F::prot(entry) } else { Prot::empty() };
        let iova = iova & !Config::low(shift);
        Self { level: F::hw_level(level), index, iova, entry, kind, pa, lg2, next, prot }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, index, entry, pa, lg2, next, prot, .. } = self;
        write!(f, "level {level}, index {index:#x}, {entry:#018x} = ")?;
        match self.kind {
            Kind::Absent => f.write_str("absent"),
            Kind::Table => write!(f, "table at {pa:#x}, next level {next}"),
            Kind::Leaf => {
                let unit = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][*lg2 as usize / 10];
                write!(f, "page of {} {unit} at {pa:#x}, {prot}", 1_u32 << (lg2 % 10))
            }
            Kind::Reserved => f.write_str("reserved"),
        }
    }
}

/// A walk from the top to the entry that ends it. Displays as a line for each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The entries met, the top table's first.
    pub steps: Vec<Step>,
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// The entry that ends a walk.
pub(super) struct Found<'a> {
    pub(super) level: u8,
    pub(super) tab: Tab<'a>,
    pub(super) index: usize,
    pub(super) entry: u64,
    pub(super) kind: Kind,
}

impl<F: Format, M: Memory> Shared<F, M> {
    /// Walks to the entry that ends the way of `iova`, an address without sign extension. `None` when
    /// the top does not reach so far (or there is none any more).
    #[inline(always)]
    pub(super) fn find(&self, iova: u64) -> Result<Option<Found<'_>>, Error> {
        let Some((level, tab)) = self.top() else { return Ok(None) };
        // What is wider than the table's IOVAs was refused, and others' tops reach as far as those.
        if F::DYNAMIC_TOP && iova >> F::shift(level) >> tab.lg2() != 0 {
            return Ok(None);
        }
        self.find_from(level, tab, iova).map(Some)
    }

    /// The rest of a walk, from `tab` on.
    #[inline(always)]
    pub(super) fn find_from<'a>(
        &'a self,
        level: u8,
        tab: Tab<'a>,
        iova: u64,
    ) -> Result<Found<'a>, Error> {
        let found = |level, tab: Tab<'a>, index, entry| {
            Ok(Found { level, tab, index, entry, kind: F::kind(level, entry) })
        };
        let index = tab.index(iova, F::shift(level));
        let mut entry = tab.load(index);
        if level == 0 || !F::is_table(level, entry) {
            return found(level, tab, index, entry);
        }
        // The levels below in a loop that the compiler unrolls, so that shifts and masks are constants.
        for below in (0..F::MAX_LEVELS - 1).rev() {
            if below < level {
                let tab = self.child(below + 1, entry, iova)?;
                let index = tab.index(iova, F::shift(below));
                entry = tab.load(index);
                if below == 0 || !F::is_table(below, entry) {
                    return found(below, tab, index, entry);
                }
            }
        }
        Err(Error::Malformed { iova, entry })
    }

    /// The lowest table that has entries for both IOVAs, `tab` or one below it: the way down that a
    /// change of that range can take at once. An entry that the range may cover wholly is not
    /// followed, because it could become a page, or absent.
    #[inline]
    pub(super) fn common<'a>(
        &'a self,
        level: u8,
        tab: Tab<'a>,
        first: u64,
        last: u64,
    ) -> Result<(u8, Tab<'a>), Error> {
        let differ = first ^ last;
        let stops =
            |level| differ >> F::shift(level) != 0 || differ == Config::low(F::shift(level));
        // Once it is too wide for the entries of a level, it is for those below.
        let lowest = if F::MAX_LEVELS == 1 || !stops(1) {
            0
        } else {
            (1..F::MAX_LEVELS).take_while(|&level| stops(level)).count() as u8
        };
        if level <= lowest {
            return Ok((level, tab));
        }
        let mut entry = tab.load(tab.index(first, F::shift(level)));
        if !F::is_table(level, entry) {
            return Ok((level, tab));
        }
        for below in (0..F::MAX_LEVELS - 1).rev() {
            if below < level {
                let tab = self.child(below + 1, entry, first)?;
                if below == lowest {
                    return Ok((below, tab));
                }
                entry = tab.load(tab.index(first, F::shift(below)));
                if !F::is_table(below, entry) {
                    return Ok((below, tab));
                }
            }
        }
        Err(Error::Malformed { iova: first, entry })
    }

    #[inline(always)]
    fn leaf(&self, iova: u64) -> Result<(Found<'_>, Translation), Error> {
        let Some(at) = Config::translated::<F>(self.iovas, iova) else {
            return Err(Error::OutOfRange { iova, len: 1 });
        };
        let Some(found) = self.find(at)? else { return Err(Error::NotMapped { iova }) };
        match found.kind {
            Kind::Leaf => {
                let entry = found.entry;
                let lg2 = F::leaf_lg2(found.level, entry);
                let offset = Config::low(lg2);
                let pa = F::leaf_pa(found.level, entry) & !offset | at & offset;
                Ok((found, Translation { pa, prot: F::prot(entry), lg2, entry }))
            }
            Kind::Absent => Err(Error::NotMapped { iova }),
            Kind::Table | Kind::Reserved => Err(Error::Malformed { iova, entry: found.entry }),
        }
    }

    /// Translates as a device does for an access of `prot`, and leaves its marks in the entry.
    fn access(&self, iova: u64, prot: Prot) -> Result<Translation, Error> {
        let dirty = prot.contains(Prot::WRITE);
        self.mark(iova, dirty, |translation| {
            let has = translation.prot;
            if has.contains(prot) { Ok(()) } else { Err(Error::Denied { iova, prot: has }) }
        })
    }

    /// Marks the entry accessed and, if it is to be, dirty, unless `may` objects.
    fn mark(
        &self,
        iova: u64,
        dirty: bool,
        may: impl Fn(&Translation) -> Result<(), Error>,
    ) -> Result<Translation, Error> {
        loop {
            let (found, translation) = self.leaf(iova)?;
            may(&translation)?;
            if !self.config.track {
                return Ok(translation);
            }
            let old = translation.entry;
            let mut new = old | F::ACCESSED;
            if dirty {
                new = F::DIRTY.mark(new);
            }
            if new == old {
                return Ok(translation);
            }
            let word = found.tab.at(found.index);
            if word.compare_exchange(old, new, SeqCst, Relaxed).is_err() {
                continue;
            }
            // `cut` and `merge` look for marks in what they replaced after replacing it: if the entry
            // is still in its place now, they will find ours; if not, it has to be made again.
            fence(SeqCst);
            let again = self.leaf(iova)?.0;
            if core::ptr::eq(again.tab.at(again.index), word) {
                return Ok(Translation { entry: new, ..translation });
            }
        }
    }

    fn walk(&self, iova: u64) -> Result<Walk, Error> {
        let (at, _) = self.config.range::<F>(iova, 1)?;
        let mut steps = Vec::new();
        let Some((mut level, mut tab)) = self.top() else { return Ok(Walk { steps }) };
        if at > Self::reach(level, tab) {
            return Ok(Walk { steps });
        }
        loop {
            let index = tab.index(at, F::shift(level));
            let step = Step::new::<F>(level, index, at, tab.load(index));
            steps.push(step);
            if step.kind != Kind::Table || level == 0 {
                break;
            }
            tab = self.child(level, step.entry, iova)?;
            level -= 1;
        }
        Ok(Walk { steps })
    }

    /// Shows every entry that is not absent between `first` and `last`, in the order of a walk.
    fn visit(&self, (first, last): (u64, u64), f: &mut dyn FnMut(&Step)) -> Result<(), Error> {
        match self.top() {
            Some((level, tab)) if first <= Self::reach(level, tab) => {
                let last = last.min(Self::reach(level, tab));
                self.visit_table(level, tab, (first, last), f)
            }
            _ => Ok(()),
        }
    }

    fn visit_table(
        &self,
        level: u8,
        tab: Tab<'_>,
        (first, last): (u64, u64),
        f: &mut dyn FnMut(&Step),
    ) -> Result<(), Error> {
        let shift = F::shift(level);
        for index in tab.index(first, shift)..=tab.index(last, shift) {
            let entry = tab.load(index);
            if F::kind(level, entry) == Kind::Absent {
                continue;
            }
            let iova = super::entry_iova(tab, shift, first, index);
            let step = Step::new::<F>(level, index, iova, entry);
            f(&step);
            if step.kind == Kind::Table && level > 0 {
                let child = self.child(level, step.entry, iova)?;
                let range = (first.max(iova), last.min(iova | Config::low(shift)));
                self.visit_table(level - 1, child, range, f)?;
            }
        }
        Ok(())
    }
}

/// The reading operations, of the writer and of readers.
macro_rules! reads {
    ($type:ident, |$self:ident, $read:ident| $within:expr) => {
        impl<F: Format, M: Memory> $type<F, M> {
            /// Translates one IOVA; [`Error::NotMapped`] where there is nothing.
            #[inline]
            pub fn translate(&self, iova: u64) -> Result<Translation, Error> {
                let ($self, $read) = (self, || self.shared.leaf(iova).map(|(_, found)| found));
                $within
            }

            /// Translates for an access of `prot` and sets accessed and dirty bits as hardware does.
            pub fn access(&self, iova: u64, prot: Prot) -> Result<Translation, Error> {
                let ($self, $read) = (self, || self.shared.access(iova, prot));
                $within
            }

            /// Sets the accessed and dirty bits whatever the entry's rights are, as a test does that
            /// plays a device.
            pub fn mark_dirty(&self, iova: u64) -> Result<Translation, Error> {
                let ($self, $read) = (self, || self.shared.mark(iova, true, |_| Ok(())));
                $within
            }

            /// The raw entry of every level on the way of `iova`; shown to people, a line for each.
            ///
            /// ```
            /// # use io_pgtable::{AmdV1, Format, Heap, Kind, Prot, Table};
            /// let mut table = Table::<AmdV1, _>::new(Heap::new(), AmdV1::config())?;
            /// table.map(0x20_0000, 0x8000_0000, 0x20_0000, Prot::READ, u64::MAX)?;
            /// let walk = table.walk(0x20_1234)?;
            /// assert_eq!(
            ///     walk.steps[1].to_string(),
            ///     "level 2, index 0x1, 0x2000000080000001 = page of 2 MiB at 0x80000000, READ"
            /// );
            /// assert!(walk.to_string().starts_with("level 3, index 0x0, 0x6"));
            /// assert_eq!(table.walk(0)?.steps.last().map(|step| step.kind), Some(Kind::Absent));
            /// # Ok::<(), io_pgtable::Error>(())
            /// ```
            pub fn walk(&self, iova: u64) -> Result<Walk, Error> {
                let ($self, $read) = (self, || self.shared.walk(iova));
                $within
            }

            /// Shows every entry that is not absent and covers some of the `len` bytes at `iova`; a
            /// table's entry comes before those of the table.
            pub fn visit(&self, iova: u64, len: u64, f: impl FnMut(&Step)) -> Result<(), Error> {
                let range = self.shared.config.range::<F>(iova, len)?;
                let read = move || {
                    let mut f = f;
                    self.shared.visit(range, &mut f)
                };
                let ($self, $read) = (self, read);
                $within
            }
        }
    };
}

reads!(Table, |_table, read| read());
reads!(Reader, |reader, read| reader.seat.within(&reader.shared.epochs, read));

impl<F: Format, M: Memory> Reader<F, M> {
    /// Runs `f` as one read section: what is translated inside stays usable until `f` returns, for
    /// whoever waits for a [`Barrier`](crate::Barrier) before giving the page to someone else.
    pub fn section<R>(&self, f: impl FnOnce(&Self) -> R) -> R {
        self.seat.within(&self.shared.epochs, || f(self))
    }
}
