//! `softiommu doctor`: what this machine offers to softiommu, what is missing, what that costs
//! and how to get it.
//!
//! Every check tries the thing itself. A kernel's version says little: distributions leave
//! modules out, containers filter system calls, sysctls and Yama forbid what the kernel could do.
//! A check may start a child process or a thread, and leaves nothing behind.
//!
//! | checks of | where |
//! |---|---|
//! | how calls reach us: seccomp, CUSE, FUSE, the nodes | [`fronts`] |
//! | other processes: ptrace, pidfd, reading their memory | [`process`] |
//! | pages that stay: io_uring, pagemap, map_files, limits | [`memory`] |
//!
//! [`show`] writes the report.

mod child;
mod fronts;
mod memory;
mod process;
mod show;

pub use show::{json, text};

use engine::Errno;
use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It works.
    Ok,
    /// It does not, and something else takes its place.
    Degraded,
    /// It does not, and what needs it does not work.
    Missing,
}

/// What a check is about, and what it found.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Stays the same from release to release, for scripts.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// How it came out.
    pub state: State,
    /// What was tried, and what came of it.
    pub found: String,
    /// What one does without, unless all is well.
    pub cost: Option<String>,
    /// How to get it, unless all is well.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, title: &'static str, found: impl Into<String>) -> Self {
        let (cost, remedy) = (None, None);
        Self { name, title, state: State::Ok, found: found.into(), cost, remedy }
    }

    /// Something else does its work.
    fn degraded(self, cost: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Degraded,
            cost: Some(cost.into()),
            remedy: Some(remedy.into()),
            ..self
        }
    }

    /// Nothing else does.
    fn missing(self, cost: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Missing, ..self.degraded(cost, remedy) }
    }
}

/// The machine, as this process sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// softiommu's version.
    pub version: &'static str,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub architecture: String,
    /// The effective user.
    pub uid: u32,
    /// Whether `softiommu run` works for this user.
    pub run: bool,
    /// Whether `softiommu serve` works for this user.
    pub serve: bool,
    /// All checks, in the order that they are shown in.
    pub checks: Vec<Check>,
}

/// What somebody wants to do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `softiommu run`.
    Run,
    /// `softiommu serve`.
    Serve,
}

/// Checks of which each must not be [`State::Missing`].
const RUN_NEEDS: &[&str] = &["architecture", "seccomp-notify", "process-memory", "memfd"];
const SERVE_NEEDS: &[&str] = &["architecture", "root", "process-memory", "ptrace-others", "memfd"];
/// `serve` takes one of these.
const SERVE_FRONTS: &[&str] = &["cuse", "fuse"];

impl Report {
    /// Examines this machine.
    ///
    /// To be called while this process has one thread: some checks fork.
    pub fn new() -> Self {
        let system = nix::sys::utsname::uname();
        let text = |of: &dyn Fn(&nix::sys::utsname::UtsName) -> String| {
            system.as_ref().map_or_else(|error| error.to_string(), of)
        };
        let mut checks = vec![process::architecture()];
        checks.extend(fronts::checks());
        checks.extend(process::checks());
        checks.extend(memory::checks());
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: text(&|system| system.release().to_string_lossy().into_owned()),
            architecture: text(&|system| system.machine().to_string_lossy().into_owned()),
            uid: nix::unistd::geteuid().as_raw(),
            run: false,
            serve: false,
            checks,
        };
        report.run = report.all_there(RUN_NEEDS);
        report.serve = report.all_there(SERVE_NEEDS)
            && SERVE_FRONTS.iter().any(|front| report.state(front) == State::Ok);
        report
    }

    /// Whether `purpose` works here, with fallbacks or without.
    pub fn works(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Run => self.run,
            Purpose::Serve => self.serve,
        }
    }

    fn state(&self, name: &str) -> State {
        self.checks
            .iter()
            .find(|check| check.name == name)
            .map_or(State::Missing, |check| check.state)
    }

    fn all_there(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.state(name) != State::Missing)
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

/// The first line of a file under `/proc` or `/sys`.
fn setting(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

/// "cannot open /dev/fuse: EACCES: Permission denied".
fn failed(what: &str, error: Errno) -> String {
    format!("cannot {what}: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(states: &[(&'static str, State)]) -> Report {
        let mut report = Report {
            version: "0",
            kernel: "7.3".into(),
            architecture: "x86_64".into(),
            uid: 0,
            run: false,
            serve: false,
            checks: Vec::new(),
        };
        for &(name, state) in states {
            report.checks.push(Check { state, ..Check::ok(name, "title", "found") });
        }
        report
    }

    #[test]
    fn every_name_that_is_needed_is_that_of_a_check() {
        let report = Report::new();
        for name in [RUN_NEEDS, SERVE_NEEDS, SERVE_FRONTS].concat() {
            assert!(report.checks.iter().any(|check| check.name == name), "{name}");
        }
    }

    #[test]
    fn names_are_unique_and_whatever_lacks_says_what_it_costs() {
        let report = Report::new();
        let mut names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.checks.len());
        for check in &report.checks {
            let lacks = check.state != State::Ok;
            assert_eq!((check.cost.is_some(), check.remedy.is_some()), (lacks, lacks), "{check:?}");
            assert!(!check.found.is_empty());
        }
    }

    #[test]
    fn what_is_missing_is_an_obstacle_and_what_is_degraded_is_not() {
        let degraded = report(&[("a", State::Ok), ("b", State::Degraded)]);
        assert!(degraded.all_there(&["a", "b"]));
        assert!(!degraded.all_there(&["a", "c"]), "a check that does not exist is no check");
        assert!(!report(&[("a", State::Missing)]).all_there(&["a"]));
    }

    #[test]
    fn nothing_is_left_behind() {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let _ = Report::new();
        let before = descriptors();
        let _ = Report::new();
        // Other tests of this process open and close theirs meanwhile.
        let begin = std::time::Instant::now();
        while descriptors() > before {
            assert!(begin.elapsed() < std::time::Duration::from_secs(20));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
