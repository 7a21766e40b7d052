//! Answers for people.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::inspect::{
    AreaReport, ContextReport, Detail, FrameReport, IoasReport, ObjectReport, PinReport,
    SourceReport, WalkReport,
};

use super::protocol::{Dma, Fault, Reply, Show};
use super::warnings::Warning;

/// `reply` as lines.
pub fn render(reply: &Reply) -> String {
    match reply {
        Reply::Show(report) => show(report),
        Reply::Walk(report) => walk(report),
        Reply::Frames(frames) => all_frames(frames),
        Reply::Dma(Dma { fault: Some(fault), .. }) => format!("{}\n", fault_line(fault)),
        Reply::Dma(Dma { bytes, fault: None }) => dump(0, bytes),
        Reply::Error(why) => format!("{why}\n"),
    }
}

/// Why a DMA ended.
pub fn fault_line(fault: &Fault) -> String {
    let Fault { iova, write, reason, requested } = fault;
    let what = if *write { "write" } else { "read" };
    let then = match requested {
        Some(group) => format!("page request {group} went to the fault queue"),
        None => "aborted".to_owned(),
    };
    format!("{what} fault at IOVA {iova:#x}: {reason}; {then}")
}

/// Sixteen bytes a line, counted from `first`.
pub fn dump(first: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, sixteen) in (first..).step_by(16).zip(bytes.chunks(16)) {
        let hex: Vec<String> = sixteen.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown = |&byte: &u8| if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'.' };
        let plain = String::from_utf8(sixteen.iter().map(shown).collect()).unwrap_or_default();
        let _ = writeln!(text, "{line:08x}: {:<47}  {plain}", hex.join(" "));
    }
    text
}

fn show(report: &Show) -> String {
    let Show { pid, program, age, engine, warnings, warnings_lost } = report;
    let mut text = format!("softiommu {pid}, for {}: {program}\n", seconds(*age));
    if engine.contexts.is_empty() {
        text += "no context is open\n";
    }
    engine.contexts.iter().for_each(|report| context(&mut text, report));
    if !engine.payers.is_empty() {
        text += "accounting\n";
    }
    for payer in &engine.payers {
        let limit = match (&*payer.mode, payer.limit_pages) {
            ("unlimited", _) => "no limit (CAP_IPC_LOCK)".to_owned(),
            (mode, Some(limit)) => format!("limit {limit} pages, by {mode}"),
            (mode, None) => format!("limit none, by {mode}"),
        };
        let (pid, uid, pinned) = (payer.pid, payer.uid, payer.pinned_pages);
        let _ = writeln!(text, "  pid {pid} (uid {uid}): {pinned} pages pinned, {limit}");
    }
    for user in &engine.users {
        let (uid, locked) = (user.uid, user.locked_pages);
        let _ = writeln!(text, "  uid {uid}: {locked} pages count against the limit by user");
    }
    match (warnings.len(), warnings_lost) {
        (0, _) => text += "no warnings\n",
        (all, 0) => {
            let _ = writeln!(text, "{}", count(all, "warning"));
        }
        (kept, lost) => {
            let _ = writeln!(text, "the last {kept} warnings ({lost} before)");
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    for warning in warnings {
        let fields = warning.fields.iter().map(|(name, value)| format!(" {name}={value}"));
        let fields: String = fields.collect();
        let Warning { time, level, message, .. } = warning;
        let ago = seconds((now - time).max(0.0));
        let _ = writeln!(text, "  {ago} ago, {level}: {message}{fields}");
    }
    text
}

fn context(text: &mut String, report: &ContextReport) {
    let ContextReport { id, node, rlimit_mode, objects } = report;
    let _ = writeln!(text, "context {id}: {node}, accounts by {rlimit_mode}");
    objects.iter().for_each(|report| object(text, report));
}

fn object(text: &mut String, report: &ObjectReport) {
    let faults = |faults: bool| if faults { ", with a fault queue" } else { "" };
    let what = match &report.detail {
        Detail::Access { ioas, pins } => {
            let pins = if *pins { ", may pin" } else { "" };
            match ioas {
                Some(ioas) => format!("access to IOAS {ioas}{pins}"),
                None => format!("access, attached to nothing{pins}"),
            }
        }
        Detail::Device { name, driver, vdevice, attached } => {
            let mut line = format!("device {name} ({driver})");
            if attached.is_empty() {
                line += ", attached to nothing: DMA is blocked";
            }
            for at in attached {
                if at.pasid != 0 {
                    let _ = write!(line, ", PASID {}", at.pasid);
                }
                let _ = write!(line, " -> HWPT {} -> IOAS {}", at.hwpt, at.ioas);
            }
            if let Some(id) = vdevice {
                let _ = write!(line, ", vDEVICE {id}");
            }
            line
        }
        Detail::FaultQueue { unread, unanswered } => {
            format!("fault queue: {unread} groups to be read, {unanswered} to be answered")
        }
        Detail::HwQueue { viommu, queue_type, index } => {
            format!("hardware queue {index} of type {queue_type}, vIOMMU {viommu}")
        }
        Detail::HwptPaging { ioas, automatic, driver, flags, page_sizes, faults: queue } => {
            let made = if *automatic { "automatic" } else { "the user's" };
            let flags: String = flags.iter().map(|flag| format!(", {flag}")).collect();
            let (sizes, queue) = (sizes(*page_sizes), faults(*queue));
            format!("HWPT of IOAS {ioas} ({driver}, {made}{flags}), pages of {sizes}{queue}")
        }
        Detail::HwptNested { parent, faults: queue } => {
            format!("nested HWPT on HWPT {parent}{}", faults(*queue))
        }
        Detail::Ioas(report) => ioas_line(report),
        Detail::SelftestDevice { device: Some(id) } => format!("selftest's handle of device {id}"),
        Detail::SelftestDevice { device: None } => "selftest's handle of no device".to_owned(),
        Detail::Vdevice { viommu, device, virt_id } => {
            format!("vDEVICE {virt_id:#x} of vIOMMU {viommu}: {device}")
        }
        Detail::Veventq { viommu, event_type } => {
            format!("event queue of type {event_type}, vIOMMU {viommu}")
        }
        Detail::Viommu { parent } => format!("vIOMMU on HWPT {parent}"),
    };
    let _ = writeln!(text, "  {:>4}  {what}", report.id);
    if let Detail::Ioas(report) = &report.detail {
        report.areas.iter().for_each(|report| area(text, report));
        let hidden = report.area_count - report.areas.len().min(report.area_count);
        if hidden != 0 {
            let _ = writeln!(text, "        {hidden} areas are not shown: --areas, --from");
        }
    }
}

fn ioas_line(report: &IoasReport) -> String {
    if report.busy {
        return "IOAS: a command holds it, and does not end".to_owned();
    }
    let IoasReport { domains, accesses, alignment, huge_pages, area_count, mapped, .. } = report;
    let large = if *huge_pages { "" } else { ", large pages off" };
    format!(
        "IOAS: {}, {}; {}, {}; alignment {alignment}{large}",
        count(*area_count, "area"),
        size(*mapped),
        count(*domains, "domain"),
        count(*accesses, "access").replace("accesss", "accesses"),
    )
}

fn area(text: &mut String, report: &AreaReport) {
    let AreaReport { iova, length, read, write, source, pins, .. } = report;
    let (read, write) = (if *read { 'r' } else { '-' }, if *write { 'w' } else { '-' });
    let last = iova + (length - 1);
    let _ = writeln!(
        text,
        "        {iova:#x}-{last:#x} ({}) {read}{write} = {}",
        size(*length),
        origin(source)
    );
    if pins.is_empty() {
        text.push_str("          not pinned: no domain and no access needs it\n");
    }
    for pin in pins {
        let PinReport { iova: at, pages, users, .. } = pin;
        let held = held(&pin.held, pin.reason.as_deref(), pin.age);
        let part = if *pages * 4096 < *length { format!(" at {at:#x}") } else { String::new() };
        let users = if *users == 1 { String::new() } else { format!(", {users} users") };
        let _ = writeln!(text, "          {pages} pages{part} {held}{users}");
    }
    if report.access_pins != 0 {
        let _ = writeln!(text, "          {} pins of accesses", report.access_pins);
    }
    if report.hw_queues != 0 {
        let _ = writeln!(text, "          {} hardware queues keep it", report.hw_queues);
    }
    if report.unmapping {
        text.push_str("          being unmapped: waits for accesses\n");
    }
}

fn origin(source: &SourceReport) -> String {
    let SourceReport { owner, pid, address, call, caller, copied, age } = source;
    let place = if pid.is_some() { "VA" } else { "offset" };
    let copied = if *copied { "IOMMU_IOAS_COPY of " } else { "" };
    let ago = seconds(*age);
    format!("{owner} {place} {address:#x}, {copied}{call} by pid {caller} {ago} ago")
}

fn held(held: &str, reason: Option<&str>, age: f64) -> String {
    let words = match held {
        "pinned" => "pinned by the kernel",
        "shared" => "shared: the very pages are mapped here, and stay in their frames",
        "mapped" => "NOT PINNED, mapped here: what the file has at the time",
        "window" => "NOT PINNED, a window on the VA",
        "copy" => "NOT PINNED, a copy",
        other => other,
    };
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("{words}{reason}, for {}", seconds(age))
}

fn walk(report: &WalkReport) -> String {
    let (Some(hwpt), Some(ioas)) = (report.hwpt, report.ioas) else {
        return "nothing is attached: the IOMMU blocks the device\n".to_owned();
    };
    let mut text = format!("HWPT {hwpt}, IOAS {ioas}\n");
    for stage in &report.stages {
        let _ = writeln!(text, "{} stage, IOVA {:#x}", stage.stage, stage.input);
        for step in &stage.steps {
            let _ = writeln!(text, "  {}", step.text);
        }
        let _ = writeln!(text, "  {}", stage.result);
    }
    if let Some(physical) = &report.physical {
        let dirty = if report.dirty { ", dirty" } else { "" };
        let _ = writeln!(text, "physical address {physical}{dirty}");
    }
    report.frame.iter().for_each(|report| frame(&mut text, report));
    text
}

fn all_frames(frames: &[FrameReport]) -> String {
    if frames.is_empty() {
        return "no context has this frame pinned\n".to_owned();
    }
    let mut text = String::new();
    for report in frames {
        frame(&mut text, report);
        if let Some(bytes) = &report.bytes {
            text += &dump(0, &hex::decode(bytes).unwrap_or_default());
        }
    }
    text
}

fn frame(text: &mut String, report: &FrameReport) {
    let FrameReport { context, ioas, iova, hwpts, source, reason, age, .. } = report;
    let held = held(&report.held, reason.as_deref(), *age);
    let hwpts: Vec<String> = hwpts.iter().map(u32::to_string).collect();
    let tables = match &hwpts[..] {
        [] => "in no table".to_owned(),
        ids => format!("in the tables of HWPT {}", ids.join(", ")),
    };
    let _ = writeln!(text, "{}", origin(source));
    let _ = writeln!(text, "  context {context}, IOAS {ioas}, IOVA {iova:#x}, {tables}");
    let _ = writeln!(text, "  {held}");
    if report.current == Some(false) {
        text.push_str("  the process has another page at that address now, or none\n");
    }
}

fn seconds(age: f64) -> String {
    match age {
        age if age < 1.0 => format!("{:.0} ms", age * 1000.0),
        age if age < 120.0 => format!("{age:.1} s"),
        age if age < 7200.0 => format!("{:.0} min", age / 60.0),
        age => format!("{:.1} h", age / 3600.0),
    }
}

/// With the largest unit that divides it.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// Page sizes, those that follow each other as a range.
fn sizes(bitmap: u64) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for bit in (0..64).filter(|bit| bitmap & 1 << bit != 0) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == bit => *last = bit,
            _ => ranges.push((bit, bit)),
        }
    }
    let shown = ranges.iter().map(|&(first, last)| match last - first {
        0 => size(1 << first),
        _ => format!("{} to {}", size(1 << first), size(1 << last)),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_the_unit_that_divides_them() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1000), "1000 bytes");
        assert_eq!(size(12 << 10), "12 KiB");
        assert_eq!(size(1 << 41), "2 TiB");
        assert_eq!(sizes(0x4020_3000), "4 KiB to 8 KiB, 2 MiB, 1 GiB");
    }

    #[test]
    fn bytes_are_shown_as_others_show_them() {
        let text = dump(0x1000, b"0123456789abcdef\x00z");
        assert_eq!(
            text,
            "00001000: 30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  0123456789abcdef\n\
             00001010: 00 7a                                            .z\n"
        );
    }

    #[test]
    fn faults_say_where_why_and_what_then() {
        let fault =
            Fault { iova: 0x2000, write: true, reason: "not mapped".into(), requested: None };
        assert_eq!(fault_line(&fault), "write fault at IOVA 0x2000: not mapped; aborted");
        let fault = Fault { requested: Some(3), write: false, ..fault };
        assert!(fault_line(&fault).ends_with("page request 3 went to the fault queue"));
    }
}
