//! The report, for a terminal and for scripts.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{Check, Report, State};

const GOOD: Style = AnsiColor::Green.on_default();
const FAIR: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const BOLD: Style = Style::new().bold();

/// Columns of the text that follows a check's mark.
const INDENT: &str = "    ";

/// As JSON, one object.
pub fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report)
        .unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
}

/// As text of at most `width` columns, with colours (which `anstream` takes off where they do not
/// belong). `all` shows at length what is in order, too.
pub fn text(report: &Report, width: usize) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "softiommu {} on Linux {} ({}), as uid {}\n",
        report.version, report.kernel, report.architecture, report.uid
    );
    for check in &report.checks {
        write_check(&mut out, check, width);
    }
    out.push('\n');
    for (what, works) in [("softiommu run", report.run), ("softiommu serve", report.serve)] {
        let (style, verdict) =
            if works { (GOOD, "works here") } else { (BAD, "does not work here") };
        let _ = writeln!(out, "{BOLD}{what:<16}{BOLD:#} {style}{verdict}{style:#}");
    }
    out
}

fn write_check(out: &mut String, check: &Check, width: usize) {
    let (style, mark) = match check.state {
        State::Ok => (GOOD, "ok"),
        State::Degraded => (FAIR, "--"),
        State::Missing => (BAD, "no"),
    };
    let _ = writeln!(out, "{style}{mark}{style:#}  {BOLD}{}{BOLD:#}", check.title);
    if check.state == State::Ok {
        // One line, beside the title, where both fit.
        out.pop();
        let used = 4 + check.title.len() + 2;
        if used + check.found.len() <= width {
            let _ = writeln!(out, ": {}", check.found);
        } else {
            out.push('\n');
            write_wrapped(out, "", &check.found, width);
        }
        return;
    }
    write_wrapped(out, "", &check.found, width);
    if let Some(cost) = &check.cost {
        write_wrapped(out, "costs: ", cost, width);
    }
    if let Some(remedy) = &check.remedy {
        write_wrapped(out, "to get it: ", remedy, width);
    }
}

/// Words of `text` after `label`, in lines that do not pass `width` unless one word does.
fn write_wrapped(out: &mut String, label: &str, text: &str, width: usize) {
    let mut line = format!("{INDENT}{label}");
    let begin = INDENT.len() + 2;
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.len() + 1 + word.len() > width {
            out.push_str(&line);
            out.push('\n');
            line = " ".repeat(begin);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(&line);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let missing = Check::ok("root", "superuser", "uid 1000")
            .missing("`softiommu serve` has to begin as root; `run` does not", "sudo, for `serve`");
        Report {
            version: "1.2",
            kernel: "7.3.4".into(),
            architecture: "x86_64".into(),
            uid: 1000,
            run: true,
            serve: false,
            checks: vec![Check::ok("memfd", "memory files", "one was made and mapped"), missing],
        }
    }

    #[test]
    fn lines_keep_to_the_width() {
        let shown = anstream::adapter::strip_str(&text(&report(), 44)).to_string();
        assert!(shown.lines().skip(1).all(|line| line.len() <= 44), "{shown}");
        assert!(shown.contains("ok  memory files: "), "{shown}");
        assert!(shown.contains("to get it: sudo, for `serve`"), "{shown}");
        assert!(shown.contains("softiommu serve  does not work here"), "{shown}");
    }

    #[test]
    fn scripts_find_what_people_read() {
        let value: serde_json::Value = serde_json::from_str(&json(&report())).unwrap();
        assert_eq!(value["run"], true);
        assert_eq!(value["checks"][1]["name"], "root");
        assert_eq!(value["checks"][1]["state"], "missing");
        assert_eq!(value["checks"][0]["remedy"], serde_json::Value::Null);
    }
}
