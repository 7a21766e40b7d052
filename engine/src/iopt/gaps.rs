//! Free IOVAs: the gaps between areas and reserved ranges, in a B-tree that knows of each subtree
//! how large the largest gap is. Finding the lowest gap that fits takes O(log n).
//!
//! One kind of node: entry `i` has a first IOVA and an extent (`last - first`), which is a gap's in
//! a leaf and the lowest first IOVA and the largest extent of a subtree elsewhere. Wide nodes,
//! because with a million areas the time goes into cache misses. All nodes are in one vector.

use std::ops::RangeInclusive;

/// Entries of a node.
const WIDTH: usize = 32;

/// A node's place in the vector.
type Index = u32;

struct Node {
    length: usize,
    leaf: bool,
    firsts: [u64; WIDTH],
    extents: [u64; WIDTH],
    /// Subtrees, unless it is a leaf.
    children: [Index; WIDTH],
}

impl Node {
    fn new(leaf: bool) -> Self {
        Self { length: 0, leaf, firsts: [0; WIDTH], extents: [0; WIDTH], children: [0; WIDTH] }
    }

    /// The last entry that begins at or before `iova`, or the first one.
    fn place(&self, iova: u64) -> usize {
        self.firsts[..self.length].partition_point(|&first| first <= iova).saturating_sub(1)
    }

    fn largest(&self) -> u64 {
        self.extents[..self.length].iter().copied().max().unwrap_or(0)
    }

    fn insert(&mut self, at: usize, first: u64, extent: u64, child: Index) {
        let end = self.length;
        self.firsts.copy_within(at..end, at + 1);
        self.extents.copy_within(at..end, at + 1);
        self.children.copy_within(at..end, at + 1);
        (self.firsts[at], self.extents[at], self.children[at]) = (first, extent, child);
        self.length += 1;
    }

    fn remove(&mut self, at: usize) {
        let end = self.length;
        self.firsts.copy_within(at + 1..end, at);
        self.extents.copy_within(at + 1..end, at);
        self.children.copy_within(at + 1..end, at);
        self.length -= 1;
    }

    /// Moves the entries from `at` on to the end of `to`.
    fn move_to(&mut self, at: usize, to: &mut Self) {
        for i in at..self.length {
            to.insert(to.length, self.firsts[i], self.extents[i], self.children[i]);
        }
        self.length = at;
    }
}

/// A free range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    first: u64,
    last: u64,
}

/// The free IOVAs of one IOAS.
pub(super) struct Gaps {
    nodes: Vec<Node>,
    unused: Vec<Index>,
    root: Index,
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
    pub(super) fn fit(&self, free: RangeInclusive<u64>) -> Option<u64> {
        let start = free.start().checked_next_multiple_of(self.alignment)? | self.offset;
        let fits = start < *free.end() && free.end() - start >= self.length - 1;
        fits.then_some(start)
    }
}

impl Default for Gaps {
    /// Everything is free.
    fn default() -> Self {
        let mut all = Node::new(true);
        all.insert(0, 0, u64::MAX, 0);
        Self { nodes: vec![all], unused: Vec::new(), root: 0 }
    }
}

impl Gaps {
    /// Makes `range` not free, whatever of it was free.
    pub(super) fn take(&mut self, range: &RangeInclusive<u64>) {
        let (first, last) = (*range.start(), *range.end());
        let mut from = last;
        // From the highest overlapping gap down.
        while let Some(gap) = self.before(from).filter(|gap| gap.last >= first) {
            match (gap.first < first, gap.last > last) {
                (false, false) => self.remove(gap.first),
                (true, false) => self.change(gap.first, Gap { last: first - 1, ..gap }),
                (false, true) => self.change(gap.first, Gap { first: last + 1, ..gap }),
                (true, true) => {
                    self.change(gap.first, Gap { last: first - 1, ..gap });
                    self.insert(Gap { first: last + 1, last: gap.last });
                }
            }
            match gap.first.checked_sub(1) {
                Some(below) if gap.first > first => from = below,
                _ => return,
            }
        }
    }

    /// Makes `range` free, of which nothing was.
    pub(super) fn give(&mut self, range: &RangeInclusive<u64>) {
        let (first, last) = (*range.start(), *range.end());
        let before = |byte: u64| self.before(byte);
        let below = first.checked_sub(1).and_then(|b| before(b).filter(|gap| gap.last == b));
        let above = last.checked_add(1).and_then(|b| before(b).filter(|gap| gap.first == b));
        match (below, above) {
            (None, None) => self.insert(Gap { first, last }),
            (Some(below), None) => self.change(below.first, Gap { last, ..below }),
            (None, Some(above)) => self.change(above.first, Gap { first, ..above }),
            (Some(below), Some(above)) => {
                self.remove(above.first);
                self.change(below.first, Gap { last: above.last, ..below });
            }
        }
    }

    /// The lowest start inside `within` that fits.
    pub(super) fn lowest(&self, within: &RangeInclusive<u64>, wanted: Wanted) -> Option<u64> {
        self.lowest_in(self.root, within, wanted)
    }

    fn lowest_in(&self, at: Index, within: &RangeInclusive<u64>, wanted: Wanted) -> Option<u64> {
        let node = self.node(at);
        for i in node.place(*within.start())..node.length {
            let first = node.firsts[i];
            if first > *within.end() {
                return None;
            }
            if node.extents[i] < wanted.length - 1 {
                continue;
            }
            let found = if node.leaf {
                let low = first.max(*within.start());
                let high = (first + node.extents[i]).min(*within.end());
                if low <= high { wanted.fit(low..=high) } else { None }
            } else {
                self.lowest_in(node.children[i], within, wanted)
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The last gap that begins at or before `iova`.
    fn before(&self, iova: u64) -> Option<Gap> {
        let mut node = self.node(self.root);
        loop {
            let i = node.place(iova);
            let first = *node.firsts[..node.length].get(i)?;
            if node.leaf {
                let last = first + node.extents[i];
                return (first <= iova).then_some(Gap { first, last });
            }
            node = self.node(node.children[i]);
        }
    }

    /// Replaces the gap at `first` by one that keeps its place among the others.
    fn change(&mut self, first: u64, gap: Gap) {
        self.change_in(self.root, first, gap);
    }

    fn change_in(&mut self, at: Index, first: u64, gap: Gap) {
        let node = self.node_mut(at);
        let i = node.place(first);
        if node.leaf {
            (node.firsts[i], node.extents[i]) = (gap.first, gap.last - gap.first);
        } else {
            let child = node.children[i];
            self.change_in(child, first, gap);
            self.refresh(at, i);
        }
    }

    fn insert(&mut self, gap: Gap) {
        let old = self.root;
        if let Some(second) = self.insert_in(old, gap) {
            let mut root = Node::new(false);
            for child in [old, second] {
                let node = self.node(child);
                root.insert(root.length, node.firsts[0], node.largest(), child);
            }
            self.root = self.add(root);
        }
    }

    /// Answers the second half of the node, if it had to be split.
    fn insert_in(&mut self, at: Index, gap: Gap) -> Option<Index> {
        let node = self.node(at);
        let (i, leaf) = (node.place(gap.first), node.leaf);
        if leaf {
            let i = i + usize::from(node.length > 0 && node.firsts[i] < gap.first);
            return self.insert_entry(at, i, gap.first, gap.last - gap.first, 0);
        }
        let second = self.insert_in(node.children[i], gap);
        self.refresh(at, i);
        let second = second?;
        let node = self.node(second);
        let (first, extent) = (node.firsts[0], node.largest());
        self.insert_entry(at, i + 1, first, extent, second)
    }

    fn insert_entry(
        &mut self,
        at: Index,
        i: usize,
        first: u64,
        extent: u64,
        child: Index,
    ) -> Option<Index> {
        let node = self.node_mut(at);
        if node.length < WIDTH {
            node.insert(i, first, extent, child);
            return None;
        }
        // IOVAs are mostly mapped upwards: a full node that grows at its end stays full.
        let half = if i == WIDTH { WIDTH - 1 } else { WIDTH / 2 };
        let mut second = Node::new(node.leaf);
        node.move_to(half, &mut second);
        if i <= half && half < WIDTH - 1 {
            node.insert(i, first, extent, child);
        } else {
            second.insert(i - half, first, extent, child);
        }
        Some(self.add(second))
    }

    fn remove(&mut self, first: u64) {
        self.remove_in(self.root, first);
        loop {
            let root = self.node(self.root);
            if root.leaf || root.length > 1 {
                return;
            }
            if root.length == 0 {
                *self.node_mut(self.root) = Node::new(true);
                return;
            }
            let only = root.children[0];
            self.unused.push(self.root);
            self.root = only;
        }
    }

    fn remove_in(&mut self, at: Index, first: u64) {
        let node = self.node_mut(at);
        let i = node.place(first);
        if node.leaf {
            node.remove(i);
            return;
        }
        let child = node.children[i];
        self.remove_in(child, first);
        if self.node(child).length > 0 {
            self.refresh(at, i);
        } else if self.node(at).length == 1 {
            // Empty as its only child is: the parent's to clear away.
            self.unused.push(child);
            self.node_mut(at).length = 0;
            return;
        }
        self.join(at, i);
    }

    /// Joins child `i` with the one after or before it when both are small.
    fn join(&mut self, at: Index, i: usize) {
        let node = self.node(at);
        let i = i.min(node.length.saturating_sub(2));
        if node.length < 2 {
            return;
        }
        let (a, b) = (node.children[i], node.children[i + 1]);
        let (a_length, b_length) = (self.node(a).length, self.node(b).length);
        if a_length > 0 && b_length > 0 && a_length + b_length > WIDTH / 2 {
            return;
        }
        let mut second = std::mem::replace(self.node_mut(b), Node::new(true));
        second.move_to(0, self.node_mut(a));
        self.unused.push(b);
        self.node_mut(at).remove(i + 1);
        self.refresh(at, i);
    }

    /// Brings what a node knows of its child `i` up to date.
    fn refresh(&mut self, at: Index, i: usize) {
        let child = self.node(self.node(at).children[i]);
        let (first, extent) = (child.firsts[0], child.largest());
        let node = self.node_mut(at);
        (node.firsts[i], node.extents[i]) = (first, extent);
    }

    fn add(&mut self, node: Node) -> Index {
        if let Some(index) = self.unused.pop() {
            *self.node_mut(index) = node;
            return index;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as Index
    }

    fn node(&self, index: Index) -> &Node {
        &self.nodes[index as usize]
    }

    fn node_mut(&mut self, index: Index) -> &mut Node {
        &mut self.nodes[index as usize]
    }

    /// All gaps, by rising start; every node is checked on the way.
    #[cfg(test)]
    fn all(&self) -> Vec<RangeInclusive<u64>> {
        fn walk(gaps: &Gaps, at: Index, out: &mut Vec<RangeInclusive<u64>>) {
            let node = gaps.node(at);
            for i in 0..node.length {
                let (first, extent) = (node.firsts[i], node.extents[i]);
                if node.leaf {
                    out.push(first..=first + extent);
                } else {
                    let child = gaps.node(node.children[i]);
                    assert!(child.length > 0, "an empty node");
                    assert_eq!((first, extent), (child.firsts[0], child.largest()));
                    walk(gaps, node.children[i], out);
                }
            }
        }
        let mut out = Vec::new();
        walk(self, self.root, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPAN: u64 = 2048;

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
            steps in prop::collection::vec((any::<bool>(), 0..SPAN, 1..12_u64), 1..1500),
            searches in prop::collection::vec((wanted(), 0..SPAN, 0..SPAN), 1..20),
        ) {
            let mut gaps = Gaps::default();
            gaps.take(&(SPAN..=u64::MAX));
            let mut free = vec![true; SPAN as usize];
            let steps_left = (0..steps.len()).rev();
            for ((take, start, length), left) in steps.into_iter().zip(steps_left) {
                let last = (start + length - 1).min(SPAN - 1);
                let range = start..=last;
                if take {
                    gaps.take(&range);
                    range.for_each(|b| free[b as usize] = false);
                } else if range.clone().all(|b| !free[b as usize]) {
                    gaps.give(&range);
                    range.for_each(|b| free[b as usize] = true);
                }
                if left % 64 != 0 {
                    continue;
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

    /// Many gaps, and then none: nodes are split, joined and given back at all depths.
    #[test]
    fn grows_and_shrinks() {
        let mut gaps = Gaps::default();
        gaps.take(&(0..=u64::MAX));
        let mut order: Vec<u64> = (0..20_000).collect();
        for round in 0..4_u64 {
            // Upwards, downwards, and mixed up (7919 is prime).
            match round {
                1 => order.reverse(),
                2 => order = (0..20_000).map(|i| i * 7919 % 20_000).collect(),
                _ => {}
            }
            for &i in &order {
                gaps.give(&(i * 10..=i * 10 + 5));
            }
            assert_eq!(gaps.all().len(), 20_000);
            let six = Wanted { length: 6, alignment: 1, offset: 0 };
            assert_eq!(gaps.lowest(&(150_003..=u64::MAX), six), Some(150_010));
            assert_eq!(gaps.lowest(&(0..=u64::MAX), Wanted { length: 7, ..six }), None);
            for &i in order.iter().rev().step_by(1 + round as usize % 2) {
                gaps.take(&(i * 10..=i * 10 + 5));
            }
            gaps.take(&(0..=u64::MAX));
            assert_eq!(gaps.all(), []);
        }
        assert_eq!(gaps.nodes.len(), gaps.unused.len() + 1);
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
