//! Which outcomes each call had: the errnos, and successes by what the call was for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reply::Reply;
use super::show;
use super::step::Call;

/// Counts by a call's name and its outcome.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Coverage(pub BTreeMap<String, BTreeMap<String, u64>>);

impl Coverage {
    /// Counts a call.
    pub fn count(&mut self, call: &Call, reply: &Reply) {
        if let Call::Child(calls) = call {
            for (call, reply) in calls.iter().zip(&reply.child) {
                self.count(call, reply);
            }
        }
        let outcome = match reply.errno() {
            Some(errno) => format!("{errno:?}"),
            None if reply.result > 0 => "positive".to_owned(),
            None => "0".to_owned(),
        };
        let outcomes = self.0.entry(show::name(call)).or_default();
        *outcomes.entry(outcome).or_default() += 1;
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (name, outcomes) in &other.0 {
            for (outcome, count) in outcomes {
                let mine = self.0.entry(name.clone()).or_default();
                *mine.entry(outcome.clone()).or_default() += count;
            }
        }
    }

    /// A line for each call: its outcomes on both sides, with those that one side lacks marked.
    pub fn table(&self, other: &Self) -> String {
        let mut text = String::new();
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let none = BTreeMap::new();
        for name in names {
            let (left, right) =
                (self.0.get(name).unwrap_or(&none), other.0.get(name).unwrap_or(&none));
            let outcomes: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
            text.push_str(&format!("{name}:"));
            for outcome in outcomes {
                let (l, r) = (left.get(outcome), right.get(outcome));
                match (l, r) {
                    (Some(l), Some(r)) if l == r => text.push_str(&format!(" {outcome} {l}")),
                    (l, r) => text.push_str(&format!(
                        " {outcome} {}/{}",
                        l.unwrap_or(&0),
                        r.unwrap_or(&0)
                    )),
                }
            }
            text.push('\n');
        }
        text
    }
}
