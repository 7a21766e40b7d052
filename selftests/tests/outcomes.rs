//! The table of outcomes in docs/conformance.md, held to what was recorded from Linux: an error that
//! one of `golden/`'s programs got is in the table, and in no list of errors that are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Outcomes = BTreeMap<String, BTreeSet<String>>;

fn is_errno(word: &str) -> bool {
    word.len() > 2
        && word.starts_with('E')
        && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}

/// What a line of a golden file says: the call's name, and the errors it got.
fn recorded(line: &str) -> Option<(String, Vec<String>)> {
    let (call, result) = line.rsplit_once(": ")?;
    // A loop's head; lines of several calls say their results in another way.
    let call =
        call.strip_prefix("for ").map_or(Some(call), |call| Some(call.split_once(": ")?.1))?;
    let call = ["fork: ", "alarm: "].iter().fold(call, |call, head| call.trim_start_matches(head));
    if call.contains(';') {
        return None;
    }
    let mut words = call.split_whitespace();
    let first = words.next()?;
    let first = first.split_once('.').map_or(first, |(_, call)| call);
    let name = match first {
        "test" => format!("IOMMU_TEST_OP_{}", words.next()?),
        name if name.starts_with("IOMMU_") || name.starts_with("VFIO_") => name.to_owned(),
        _ => return None,
    };
    let words = result.split(|c: char| !c.is_ascii_alphanumeric());
    Some((name, words.filter(|word| is_errno(word)).map(str::to_owned).collect()))
}

/// The rows `| call | words |` of the document between two of its lines.
fn rows(document: &str, from: &str, to: &str) -> Outcomes {
    let (_, rest) = document.split_once(from).expect("the table's beginning");
    let (table, _) = rest.split_once(to).expect("the table's end");
    let mut rows = Outcomes::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let outcomes = cells[1].split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let outcomes = outcomes.filter(|word| is_errno(word) || *word == "success");
        let row = rows.entry(cells[0].trim().trim_matches('`').to_owned()).or_default();
        row.extend(outcomes.map(str::to_owned));
    }
    rows
}

#[test]
fn the_table_has_what_was_recorded() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document =
        std::fs::read_to_string(here.join("../docs/conformance.md")).expect("the document");
    let seen = rows(&document, "<!-- outcomes -->", "<!-- end -->");
    let unseen = rows(&document, "<!-- unseen -->", "<!-- end of unseen -->");
    assert!(seen.len() > 40 && unseen.len() > 5, "{} and {} rows", seen.len(), unseen.len());
    let mut wrong = BTreeSet::new();
    for (call, errors) in &unseen {
        let Some(row) = seen.get(call) else { continue };
        wrong.extend(errors.intersection(row).map(|e| format!("{call} {e}: seen and unseen")));
    }
    let mut lines = 0;
    for file in std::fs::read_dir(here.join("golden/linux-7.3")).expect("what was recorded") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("a text");
        for (call, errors) in text.lines().filter_map(recorded) {
            lines += 1;
            let row = seen.get(&call);
            for error in errors {
                if row.is_none_or(|row| !row.contains(&error)) {
                    wrong.insert(format!("{call} {error}: recorded, and not in the table"));
                }
            }
        }
    }
    assert!(lines > 500, "only {lines} lines were understood");
    assert!(wrong.is_empty(), "docs/conformance.md: {wrong:#?}");
}
