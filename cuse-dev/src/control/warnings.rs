//! What the daemon warned of, kept for who asks later.
//!
//! A warning goes to the log when it happens; whoever looks at a running daemon has not read that.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// How many are kept.
const KEPT: usize = 1000;

/// Something that went wrong, or is not as it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// When, in seconds since 1970.
    pub time: f64,
    /// `WARN` or `ERROR`.
    pub level: String,
    /// What.
    pub message: String,
    /// With which values.
    pub fields: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    kept: VecDeque<Warning>,
    lost: u64,
}

/// The warnings so far: a layer of the subscriber that logs. Copies share what they keep.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<State>>);

impl Warnings {
    /// What is kept, oldest first, and how many older ones are not.
    pub fn all(&self) -> (Vec<Warning>, u64) {
        let state = self.0.lock();
        (state.kept.iter().cloned().collect(), state.lost)
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > tracing::Level::WARN {
            return;
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, fields } = fields;
        let mut state = self.0.lock();
        if state.kept.len() == KEPT {
            state.kept.pop_front();
            state.lost += 1;
        }
        state.kept.push_back(Warning { time, level: level.to_string(), message, fields });
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    fields: BTreeMap<String, String>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.insert(field.name().to_owned(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn warnings_are_kept_with_their_fields_and_the_oldest_go_first() {
        let warnings = Warnings::default();
        let subscriber = tracing_subscriber::registry().with(warnings.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("no warning");
            tracing::warn!(
                iova = format_args!("{:#x}", 4096),
                pid = 7,
                "memory was {}",
                "unmapped"
            );
            for _ in 0..KEPT {
                tracing::error!(reason = "text", "more");
            }
        });
        let (kept, lost) = warnings.all();
        assert_eq!((kept.len(), lost), (KEPT, 1));
        assert_eq!(kept[0].fields["reason"], "text");
        let warnings = Warnings::default();
        let subscriber = tracing_subscriber::registry().with(warnings.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(
                iova = format_args!("{:#x}", 4096),
                pid = 7,
                "memory was {}",
                "unmapped"
            );
        });
        let (kept, _) = warnings.all();
        assert_eq!(kept[0].message, "memory was unmapped");
        assert_eq!(kept[0].fields["iova"], "0x1000");
        assert_eq!(kept[0].fields["pid"], "7");
        assert_eq!(kept[0].level, "WARN");
    }
}
