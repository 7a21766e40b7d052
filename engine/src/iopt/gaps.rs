//! Free IOVAs: the gaps between areas and reserved ranges, in a tree that knows in each subtree
//! how large the largest gap is. Finding the lowest gap that fits takes O(log n).
//!
//! A treap in one vector. An area that takes a piece of a gap's end changes the gap in place, which
//! is what mapping one range after another does.

use std::ops::RangeInclusive;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    start: u64,
    last: u64,
    /// The largest `last - start` in the subtree.
    extent: u64,
    priority: u32,
    left: u32,
    right: u32,
}

/// The free IOVAs of one IOAS.
pub(super) struct Gaps {
    nodes: Vec<Node>,
    unused: Vec<u32>,
    root: u32,
    random: u32,
    path: Vec<u32>,
}

/// What a free place must be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Bytes, at least 1.
    pub(super) length: u64,
    /// A power of two.
    pub(super) alignment: u64,
    /// Bits that are set in the start on top of the alignment.
    pub(super) offset: u64,
}

impl Wanted {
    /// The lowest start in a free range, if there is one. The kernel leaves a start alone that is
    /// the very last byte of the range.
    fn fit(&self, free: RangeInclusive<u64>) -> Option<u64> {
        let start = free.start().checked_next_multiple_of(self.alignment)? | self.offset;
        let fits = start < *free.end() && free.end() - start >= self.length - 1;
        fits.then_some(start)
    }
}

impl Default for Gaps {
    /// Everything is free.
    fn default() -> Self {
        let all = Node {
            start: 0,
            last: u64::MAX,
            extent: u64::MAX,
            priority: 0,
            left: NONE,
            right: NONE,
        };
        Self {
            nodes: vec![all],
            unused: Vec::new(),
            root: 0,
            random: 0x9e37_79b9,
            path: Vec::new(),
        }
    }
}

impl Gaps {
    /// Makes `range` not free, whatever of it was free.
    pub(super) fn take(&mut self, range: &RangeInclusive<u64>) {
        let (start, last) = (*range.start(), *range.end());
        if self.take_end(start, last) {
            return;
        }
        let (before, rest) = self.split(self.root, start);
        let (inside, after) = match last.checked_add(1) {
            Some(next) => self.split(rest, next),
            None => (rest, NONE),
        };
        let mut root = before;
        let mut tail = None;
        let mut insert = Vec::new();
        if let Some(gap) = self.last_of(before)
            && self.at(gap).last >= start
        {
            let Node { start: from, last: to, .. } = *self.at(gap);
            root = self.remove_last(before);
            self.unused.push(gap);
            if from < start {
                insert.push((from, start - 1));
            }
            tail = Some(to);
        }
        if let Some(gap) = self.last_of(inside) {
            tail = Some(self.at(gap).last);
        }
        self.free_all(inside);
        if let Some(to) = tail.filter(|&to| to > last) {
            insert.push((last + 1, to));
        }
        for (from, to) in insert {
            let node = self.make(from, to);
            root = self.merge(root, node);
        }
        self.root = self.merge(root, after);
    }

    /// Makes `range` free, of which nothing was.
    pub(super) fn give(&mut self, range: &RangeInclusive<u64>) {
        let (mut start, mut last) = (*range.start(), *range.end());
        let below = start.checked_sub(1).and_then(|byte| self.find(byte));
        let above = last.checked_add(1).and_then(|byte| self.find(byte));
        match (below, above) {
            (Some(gap), None) => {
                self.locate(self.at(gap).start);
                self.at_mut(gap).last = last;
                self.refresh_path();
            }
            (None, Some(gap)) => {
                // The order of the keys stays, as nothing lies between.
                self.locate(self.at(gap).start);
                self.at_mut(gap).start = start;
                self.refresh_path();
            }
            (below, above) => {
                if let (Some(below), Some(above)) = (below, above) {
                    start = self.at(below).start;
                    last = self.at(above).last;
                    self.take(&(start..=last));
                }
                let node = self.make(start, last);
                let (before, after) = self.split(self.root, start);
                let root = self.merge(before, node);
                self.root = self.merge(root, after);
            }
        }
    }

    /// The lowest start inside `within` that fits.
    pub(super) fn lowest(&self, within: &RangeInclusive<u64>, wanted: Wanted) -> Option<u64> {
        self.lowest_in(self.root, within, wanted)
    }

    fn lowest_in(&self, tree: u32, within: &RangeInclusive<u64>, wanted: Wanted) -> Option<u64> {
        if tree == NONE || self.at(tree).extent < wanted.length - 1 {
            return None;
        }
        let Node { start, last, left, right, .. } = *self.at(tree);
        if start > *within.start()
            && let Some(found) = self.lowest_in(left, within, wanted)
        {
            return Some(found);
        }
        let (low, high) = (start.max(*within.start()), last.min(*within.end()));
        if low <= high
            && let Some(found) = wanted.fit(low..=high)
        {
            return Some(found);
        }
        if last >= *within.end() { None } else { self.lowest_in(right, within, wanted) }
    }

    /// All gaps, by rising start.
    #[cfg(test)]
    fn all(&self) -> Vec<RangeInclusive<u64>> {
        fn walk(gaps: &Gaps, tree: u32, out: &mut Vec<RangeInclusive<u64>>) {
            if tree != NONE {
                let node = *gaps.at(tree);
                walk(gaps, node.left, out);
                out.push(node.start..=node.last);
                walk(gaps, node.right, out);
            }
        }
        let mut out = Vec::new();
        walk(self, self.root, &mut out);
        out
    }

    /// Takes `start..=last` off one end of a gap without changing the tree's shape.
    fn take_end(&mut self, start: u64, last: u64) -> bool {
        let Some(gap) = self.locate(start) else { return false };
        let node = self.at_mut(gap);
        if node.start == start && last < node.last {
            node.start = last + 1;
        } else if node.last == last && start > node.start {
            node.last = start - 1;
        } else {
            return false;
        }
        self.refresh_path();
        true
    }

    /// The gap that `byte` is in.
    fn find(&self, byte: u64) -> Option<u32> {
        let mut tree = self.root;
        while tree != NONE {
            let node = self.at(tree);
            if byte < node.start {
                tree = node.left;
            } else if byte > node.last {
                tree = node.right;
            } else {
                return Some(tree);
            }
        }
        None
    }

    /// As [`Gaps::find`], and keeps the way to it for [`Gaps::refresh_path`].
    fn locate(&mut self, byte: u64) -> Option<u32> {
        self.path.clear();
        let mut tree = self.root;
        while tree != NONE {
            self.path.push(tree);
            let node = self.at(tree);
            if byte < node.start {
                tree = node.left;
            } else if byte > node.last {
                tree = node.right;
            } else {
                return Some(tree);
            }
        }
        None
    }

    fn refresh_path(&mut self) {
        while let Some(tree) = self.path.pop() {
            self.refresh(tree);
        }
    }

    fn at(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    fn at_mut(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    fn extent(&self, tree: u32) -> Option<u64> {
        (tree != NONE).then(|| self.at(tree).extent)
    }

    fn refresh(&mut self, tree: u32) {
        let node = *self.at(tree);
        let own = node.last - node.start;
        let below = self.extent(node.left).max(self.extent(node.right));
        self.at_mut(tree).extent = below.map_or(own, |extent| extent.max(own));
    }

    fn make(&mut self, start: u64, last: u64) -> u32 {
        // xorshift32: the shape needs to be random, not unpredictable.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let node = Node {
            start,
            last,
            extent: last - start,
            priority: self.random,
            left: NONE,
            right: NONE,
        };
        match self.unused.pop() {
            Some(index) => {
                *self.at_mut(index) = node;
                index
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    /// Two trees: gaps that start before `key`, and the others.
    fn split(&mut self, tree: u32, key: u64) -> (u32, u32) {
        if tree == NONE {
            return (NONE, NONE);
        }
        if self.at(tree).start < key {
            let (middle, after) = self.split(self.at(tree).right, key);
            self.at_mut(tree).right = middle;
            self.refresh(tree);
            (tree, after)
        } else {
            let (before, middle) = self.split(self.at(tree).left, key);
            self.at_mut(tree).left = middle;
            self.refresh(tree);
            (before, tree)
        }
    }

    /// One tree of two, all of `a` before all of `b`.
    fn merge(&mut self, a: u32, b: u32) -> u32 {
        if a == NONE {
            return b;
        }
        if b == NONE {
            return a;
        }
        if self.at(a).priority >= self.at(b).priority {
            let right = self.merge(self.at(a).right, b);
            self.at_mut(a).right = right;
            self.refresh(a);
            a
        } else {
            let left = self.merge(a, self.at(b).left);
            self.at_mut(b).left = left;
            self.refresh(b);
            b
        }
    }

    fn last_of(&self, mut tree: u32) -> Option<u32> {
        if tree == NONE {
            return None;
        }
        while self.at(tree).right != NONE {
            tree = self.at(tree).right;
        }
        Some(tree)
    }

    /// The tree without its last gap.
    fn remove_last(&mut self, tree: u32) -> u32 {
        let right = self.at(tree).right;
        if right == NONE {
            return self.at(tree).left;
        }
        let right = self.remove_last(right);
        self.at_mut(tree).right = right;
        self.refresh(tree);
        tree
    }

    fn free_all(&mut self, tree: u32) {
        if tree != NONE {
            let Node { left, right, .. } = *self.at(tree);
            self.free_all(left);
            self.free_all(right);
            self.unused.push(tree);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPAN: u64 = 256;

    fn wanted() -> impl Strategy<Value = Wanted> {
        (1..40_u64, 0..6_u32, 0..8_u64).prop_map(|(length, shift, offset)| Wanted {
            length,
            alignment: 1 << shift,
            offset,
        })
    }

    /// The model: one bool a byte, for bytes 0 to SPAN, all above is taken.
    fn model_lowest(free: &[bool], lo: u64, hi: u64, wanted: Wanted) -> Option<u64> {
        let mut at = lo;
        while at <= hi {
            if !free[at as usize] {
                at += 1;
                continue;
            }
            let end = (at..=hi).take_while(|&b| free[b as usize]).last()?;
            if let Some(found) = wanted.fit(at..=end) {
                return Some(found);
            }
            at = end + 1;
        }
        None
    }

    proptest! {
        #[test]
        fn behaves_like_a_bitmap(
            steps in prop::collection::vec((any::<bool>(), 0..SPAN, 1..32_u64), 1..80),
            searches in prop::collection::vec((wanted(), 0..SPAN, 0..SPAN), 1..20),
        ) {
            let mut gaps = Gaps::default();
            gaps.take(&(SPAN..=u64::MAX));
            let mut free = vec![true; SPAN as usize];
            for (take, start, length) in steps {
                let last = (start + length - 1).min(SPAN - 1);
                let range = start..=last;
                if take {
                    gaps.take(&range);
                    range.for_each(|b| free[b as usize] = false);
                } else if range.clone().all(|b| !free[b as usize]) {
                    gaps.give(&range);
                    range.for_each(|b| free[b as usize] = true);
                }
                let mut expect = Vec::new();
                let mut at = 0;
                while at < SPAN {
                    if free[at as usize] {
                        let end = (at..SPAN).take_while(|&b| free[b as usize]).last().unwrap();
                        expect.push(at..=end);
                        at = end;
                    }
                    at += 1;
                }
                prop_assert_eq!(gaps.all(), expect);
            }
            for (wanted, a, b) in searches {
                let (lo, hi) = (a.min(b), a.max(b));
                prop_assert_eq!(
                    gaps.lowest(&(lo..=hi), wanted),
                    model_lowest(&free, lo, hi, wanted)
                );
            }
        }
    }

    #[test]
    fn a_single_byte_is_never_chosen() {
        let mut gaps = Gaps::default();
        gaps.take(&(0..=4));
        gaps.take(&(6..=u64::MAX));
        let byte = Wanted { length: 1, alignment: 1, offset: 0 };
        assert_eq!(gaps.lowest(&(0..=u64::MAX), byte), None);
        gaps.give(&(6..=6));
        assert_eq!(gaps.lowest(&(0..=u64::MAX), byte), Some(5));
    }

    #[test]
    fn alignment_past_the_end_does_not_wrap() {
        let mut gaps = Gaps::default();
        gaps.take(&(0..=u64::MAX - 100));
        let wanted = Wanted { length: 2, alignment: 4096, offset: 0 };
        assert_eq!(gaps.lowest(&(0..=u64::MAX), wanted), None);
    }
}
