//! The table of results, and the ratios that the crate is held to.

use crate::{DIRTY, MAP, OPS, TRANSLATE, Times, UNMAP, WORKS};
use std::collections::BTreeMap;

/// What was measured for one format or peer at one piece of work.
struct Row {
    entries: f64,
    ours: Times,
    plain: Option<Times>,
}

impl Row {
    fn each(&self, op: usize) -> f64 {
        self.ours.0[op] / self.entries
    }

    /// How many times as long as the same on plain words.
    fn ratio(&self, op: usize) -> Option<f64> {
        let ratio = self.ours.0[op] / self.plain?.0[op];
        (ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }
}

pub(crate) struct Report {
    only: Vec<String>,
    rows: BTreeMap<(&'static str, String), Row>,
    memory: (f64, String),
}

const PEERS: [&str; 2] = ["page_table_multiarch", "x86_64 crate"];

impl Report {
    /// A report of the rows that hold all of the words.
    pub(crate) fn new(only: Vec<String>) -> Self {
        println!("fastest round: ns per 4 KiB of the range, ns per entry, times the plain words");
        Self { only, rows: BTreeMap::new(), memory: (0.0, String::new()) }
    }

    pub(crate) fn wants(&self, name: &str, work: &str) -> bool {
        let row = format!("{work} {name}");
        self.only.iter().all(|word| row.contains(word))
    }

    pub(crate) fn memory(&mut self, name: &str, ratio: f64) {
        if ratio > self.memory.0 {
            self.memory = (ratio, name.to_string());
        }
    }

    pub(crate) fn add(
        &mut self,
        name: &str,
        work: &'static str,
        entries: u64,
        lg2: u32,
        ours: Times,
        plain: Option<Times>,
    ) {
        let row = Row { entries: entries as f64, ours, plain };
        print!("{work:12} {name:21}");
        for (op, label) in OPS.iter().enumerate().filter(|(op, _)| row.each(*op).is_finite()) {
            let each = row.each(op);
            let per_4k = each / (f64::from(lg2) - 12.0).exp2();
            print!(" {label} {per_4k:.3e} {each:6.2}");
            if let Some(ratio) = row.ratio(op) {
                print!(" {ratio:5.2}x");
            }
            print!(";");
        }
        println!();
        self.rows.insert((work, name.to_string()), row);
    }

    /// Says why there is no row.
    pub(crate) fn none(&self, name: &str, work: &str, why: &str) {
        println!("{work:12} {name:21} {why}");
    }

    /// Each format's row for `work`.
    fn formats(&self, work: &str) -> impl Iterator<Item = (&str, &Row)> {
        let ours = |name: &str| !PEERS.contains(&name) && !name.contains("reader");
        self.rows
            .iter()
            .filter(move |((w, name), _)| *w == work && ours(name))
            .map(|((_, name), row)| (name.as_str(), row))
    }

    /// The worst of all formats' numbers.
    fn worst<'r>(numbers: impl Iterator<Item = (&'r str, Option<f64>)>) -> (&'r str, f64) {
        let numbers = numbers.filter_map(|(name, number)| Some((name, number?)));
        numbers.fold(("", 0.0), |worst, row| if row.1 > worst.1 { row } else { worst })
    }

    /// What the issue of a change is judged by: for each goal the worst format.
    pub(crate) fn measures(&self) {
        if !self.only.is_empty() {
            return;
        }
        for op in [MAP, UNMAP, TRANSLATE] {
            let each = |name: &str| self.rows[&(WORKS[1].name, name.to_string())].each(op);
            let peers = each(PEERS[0]).min(each(PEERS[1]));
            let slowest = Self::worst(
                self.formats(WORKS[1].name).map(|(name, row)| (name, Some(row.each(op)))),
            );
            let goal = if op == TRANSLATE { "none" } else { "3.00" };
            let label = OPS[op];
            println!(
                "measure {label}_256x4k_times_as_fast_as_the_better_peer_slowest_{} {:.2} goal {goal}",
                slowest.0,
                peers / slowest.1
            );
        }
        for (label, work, op, goal) in [
            ("map_256x4k_to_stores", WORKS[1].name, MAP, 2.0),
            ("unmap_256x4k_to_stores", WORKS[1].name, UNMAP, 2.0),
            ("map_1gib_to_stores", WORKS[3].name, MAP, 1.5),
            ("unmap_1gib_to_stores", WORKS[3].name, UNMAP, 1.5),
            ("dirty_1gib_to_scan", WORKS[3].name, DIRTY, 2.0),
        ] {
            let (name, ratio) =
                Self::worst(self.formats(work).map(|(name, row)| (name, row.ratio(op))));
            println!("measure {label}_worst_{name} {ratio:.2} goal {goal:.2}");
        }
        // More entries than a cache holds cost more for plain words, too: growth beyond theirs is ours.
        for op in [MAP, UNMAP, DIRTY] {
            let (name, growth) = Self::worst(self.formats(WORKS[1].name).map(|(name, small)| {
                let large = self.rows.get(&(WORKS[3].name, name.to_string()));
                let growth = large.and_then(|large| Some(large.ratio(op)? / small.ratio(op)?));
                (name, growth)
            }));
            let label = OPS[op];
            println!("measure {label}_entry_growth_256_to_1gib_worst_{name} {growth:.2} goal 1.10");
        }
        let (ratio, name) = &self.memory;
        println!("measure memory_to_entries_worst_{name} {ratio:.4} goal 1.0100");
    }
}
