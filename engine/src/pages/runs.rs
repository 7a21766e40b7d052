//! Which pages of an [`super::Pages`] are pinned, by which pin, and by how many users.
//!
//! Nearly always one pin covers everything, and then there is one [`Run`] and no map. Users that
//! pin parts cut runs; when the parts are given back the runs grow together again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::memory::Pin;

/// Pages that follow each other, in the same pin and with the same number of users.
#[derive(Clone)]
pub(crate) struct Run {
    pub(super) length: u64,
    pub(crate) users: u32,
    /// The first page's number in `pin`.
    pub(super) at: u64,
    pub(crate) pin: Arc<dyn Pin>,
    pub(crate) since: Instant,
}

#[derive(Default)]
pub(super) struct Runs {
    /// The only run.
    single: Option<(u64, Run)>,
    /// All runs by their first page, when `single` is not used.
    many: BTreeMap<u64, Run>,
}

impl Runs {
    pub(super) fn is_empty(&self) -> bool {
        self.single.is_none() && self.many.is_empty()
    }

    /// The run that covers `pages` and nothing else, without a search.
    pub(super) fn exactly(&mut self, pages: &Range<u64>) -> Option<&mut Run> {
        match &mut self.single {
            Some((start, run)) if *start == pages.start && *start + run.length == pages.end => {
                Some(run)
            }
            _ => None,
        }
    }

    /// Adds a run where there is none.
    pub(super) fn insert(&mut self, start: u64, run: Run) {
        if self.is_empty() {
            self.single = Some((start, run));
        } else {
            self.spill();
            self.many.insert(start, run);
        }
    }

    /// The runs that overlap `pages`, with their first pages.
    pub(super) fn overlapping(&self, pages: &Range<u64>) -> impl Iterator<Item = (u64, &Run)> {
        let (start, end) = (pages.start, pages.end);
        let single = self.single.iter().map(|(first, run)| (*first, run));
        let from = self.many.range(..=start).next_back().map_or(start, |(&first, _)| first);
        let many = self.many.range(from..end.max(from)).map(|(&first, run)| (first, run));
        single.chain(many).filter(move |(first, run)| *first < end && *first + run.length > start)
    }

    /// The parts of `pages` that have no run.
    pub(super) fn holes(&self, pages: &Range<u64>) -> Vec<Range<u64>> {
        let mut holes = Vec::new();
        let mut at = pages.start;
        for (first, run) in self.overlapping(pages) {
            if first > at {
                holes.push(at..first);
            }
            at = first + run.length;
        }
        if at < pages.end {
            holes.push(at..pages.end);
        }
        holes
    }

    /// Changes the number of users of `pages`, all of which have runs, and answers the runs that
    /// have none any more.
    pub(super) fn change(&mut self, pages: &Range<u64>, by: i32) -> Vec<Run> {
        self.spill();
        self.cut(pages.start);
        self.cut(pages.end);
        let mut gone = Vec::new();
        for (&first, run) in self.many.range_mut(pages.clone()) {
            run.users = run.users.saturating_add_signed(by);
            if run.users == 0 {
                gone.push(first);
            }
        }
        let gone = gone.iter().filter_map(|first| self.many.remove(first)).collect();
        self.join(pages);
        gone
    }

    /// Takes the only run out.
    pub(super) fn take_single(&mut self) -> Option<Run> {
        self.single.take().map(|(_, run)| run)
    }

    fn spill(&mut self) {
        if let Some((start, run)) = self.single.take() {
            self.many.insert(start, run);
        }
    }

    /// Makes a run that covers `page` and the one before into two.
    fn cut(&mut self, page: u64) {
        let Some((&first, run)) = self.many.range_mut(..page).next_back() else { return };
        if first + run.length <= page {
            return;
        }
        let rest =
            Run { length: first + run.length - page, at: run.at + (page - first), ..run.clone() };
        run.length = page - first;
        self.many.insert(page, rest);
    }

    /// Makes one of runs around `pages` that differ in nothing.
    fn join(&mut self, pages: &Range<u64>) {
        let from = self.many.range(..pages.start).next_back().map_or(pages.start, |(&k, _)| k);
        let firsts: Vec<u64> = self.many.range(from..=pages.end).map(|(&first, _)| first).collect();
        let mut kept = None;
        for first in firsts {
            if let Some(before) = kept
                && self.follows(before, first)
                && let Some(run) = self.many.remove(&first)
                && let Some(before) = self.many.get_mut(&before)
            {
                before.length += run.length;
            } else {
                kept = Some(first);
            }
        }
        if self.many.len() == 1 {
            self.single = self.many.pop_first();
        }
    }

    fn follows(&self, first: u64, second: u64) -> bool {
        let (Some(a), Some(b)) = (self.many.get(&first), self.many.get(&second)) else {
            return false;
        };
        first + a.length == second
            && a.at + a.length == b.at
            && a.users == b.users
            && Arc::ptr_eq(&a.pin, &b.pin)
    }
}
