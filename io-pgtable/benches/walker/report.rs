//! The table of results, and the ratios that the crate is held to.

use crate::{OPS, Times};
use std::collections::BTreeMap;

pub(crate) struct Report {
    rows: BTreeMap<(&'static str, String), (usize, Times)>,
    memory: (f64, String),
}

const PEERS: [&str; 2] = ["page_table_multiarch", "x86_64 crate"];

impl Report {
    pub(crate) fn new() -> Self {
        println!("fastest round; ns per 4 KiB of the range, ns per entry, ratio to plain words");
        Self { rows: BTreeMap::new(), memory: (0.0, String::new()) }
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
        entries: usize,
        lg2: u32,
        times: Times,
    ) {
        print!("{work:12} {name:21}");
        for (op, label) in OPS.iter().enumerate().filter(|(op, _)| times.ours[*op].is_finite()) {
            let each = times.ours[op] / entries as f64;
            let per_4k = each / (f64::from(lg2) - 12.0).exp2();
            print!(" {label} {per_4k:.3e} {each:6.2}");
            if times.plain[op].is_finite() && *label != "translate" {
                print!(" {:5.2}x", times.ratio(op));
            }
            print!(";");
        }
        println!();
        self.rows.insert((work, name.to_string()), (entries, times));
    }

    /// The worst ratio to plain words of all formats.
    fn worst(&self, work: &str, op: usize) -> (f64, &str) {
        let rows = self.rows.iter().filter(|((w, name), _)| *w == work && !is_peer(name));
        rows.map(|((_, name), (_, times))| (times.ratio(op), name.as_str()))
            .fold((0.0, ""), |worst, row| if row.0 > worst.0 { row } else { worst })
    }

    fn each(&self, work: &'static str, name: &str, op: usize) -> f64 {
        let (entries, times) = &self.rows[&(work, name.to_string())];
        times.ours[op] / *entries as f64
    }

    pub(crate) fn measures(&self) {
        for (op, label) in OPS.iter().enumerate().take(2) {
            let peers = PEERS.map(|peer| self.each("256 x 4K", peer, op));
            let ours = self.each("256 x 4K", "x86_64_4", op);
            let faster = peers[0].min(peers[1]) / ours;
            println!("measure {label}_256x4k_times_faster_than_peers {faster:.2} goal 3.00");
        }
        let plain = [
            ("map_256x4k_to_stores", "256 x 4K", 0, 2.0),
            ("unmap_256x4k_to_stores", "256 x 4K", 1, 2.0),
            ("map_1gib_to_stores", "1 GiB of 4K", 0, 1.5),
            ("unmap_1gib_to_stores", "1 GiB of 4K", 1, 1.5),
            ("dirty_1gib_to_scan", "1 GiB of 4K", 3, 2.0),
        ];
        for (label, work, op, goal) in plain {
            let (ratio, name) = self.worst(work, op);
            println!("measure {label}_worst_{name} {ratio:.2} goal {goal:.2}");
        }
        for (op, label) in OPS.iter().enumerate() {
            let small = self.each("256 x 4K", "x86_64_4", op);
            let growth = self.each("1 GiB of 4K", "x86_64_4", op) / small;
            println!("measure {label}_entry_1gib_to_256x4k {growth:.2} goal 1.50");
        }
        let (ratio, name) = &self.memory;
        println!("measure memory_to_entries_worst_{name} {ratio:.4} goal 1.0100");
    }
}

fn is_peer(name: &str) -> bool {
    PEERS.contains(&name)
}
