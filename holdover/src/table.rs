//! The result for people: a few short tables and the verdict, with colour where the terminal has it.

use crate::judge::{count, in_words};
use crate::report::{Audit, CutOff, Outcome, PageRequests, Report};
use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use std::fmt::{self, Write};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The result as text with escape sequences for colour; print it through `anstream`, which removes them where they are
/// not wanted.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let written = heading(&mut out, report)
        .and_then(|()| requesters(&mut out, report))
        .and_then(|()| facts(&mut out, report))
        .and_then(|()| timeline(&mut out, report))
        .and_then(|()| verdict(&mut out, report));
    debug_assert!(written.is_ok(), "a string takes everything");
    out
}

fn heading(out: &mut String, report: &Report) -> fmt::Result {
    let asked = &report.asked;
    write!(out, "{BOLD}Live update {}{BOLD:#} on {}", kernels(report), machine(report))?;
    if !report.mode.is_empty() {
        write!(out, ", {} mode", report.mode)?;
    }
    write!(out, ", {} bit, {}, scenario {}", asked.address_width, size(asked.memory_bytes), asked.scenario)?;
    if let Some(mutant) = &asked.mutant {
        write!(out, ", {BAD}mistake put in: {mutant}{BAD:#}")?;
    }
    writeln!(out, "\n")
}

/// The kernels of the run with arrows between them.
pub(crate) fn kernels(report: &Report) -> String {
    let mut names = vec![or_nothing(&report.releases.outgoing)];
    names.extend(report.updates.iter().map(|u| or_nothing(&u.incoming)));
    names.join(" → ")
}

fn or_nothing(name: &str) -> &str {
    if name.is_empty() { "nothing" } else { name }
}

/// The machine as people call it.
pub(crate) fn machine(report: &Report) -> String {
    match report.machine.as_str() {
        "qemu" => format!("QEMU {}", report.machine_version),
        "builtin" => format!("the built-in machine {}", report.machine_version),
        other => format!("{other} {}", report.machine_version),
    }
}

fn requesters(out: &mut String, report: &Report) -> fmt::Result {
    if !report.preserved.is_empty() {
        let mut table = table(["Preserved", "domain", "token"], &[1]);
        for p in &report.preserved {
            table.add_row([with_aliases(&p.requester, &p.aliases), p.domain_id.to_string(), token(&p.token)]);
        }
        writeln!(out, "{}\n", indented(&table))?;
    }
    if !report.cut_off.is_empty() {
        let mut table =
            table(["Cut off", "on a list", "blocked", "let through", "its target memory"], &[2, 3]);
        for c in &report.cut_off {
            let CutOff { requester, listed, attempts_blocked, memory_intact, attempts_let_through, .. } = c;
            table.add_row([
                requester.clone(),
                if *listed { "yes" } else { "no" }.to_owned(),
                thousands(*attempts_blocked),
                thousands(*attempts_let_through),
                if *memory_intact { "intact" } else { "CHANGED" }.to_owned(),
            ]);
        }
        writeln!(out, "{}\n", indented(&table))?;
    }
    if !report.reduced.is_empty() {
        let mut table = table(["Reduced", "to", "within", "outside"], &[2, 3]);
        for r in &report.reduced {
            let regions: Vec<_> = r.regions.iter().map(|[start, bytes]| format!("{start}+{bytes}")).collect();
            let (within, outside) = (thousands(r.attempts_within), thousands(r.attempts_outside));
            table.add_row([r.requester.clone(), regions.join(" "), within, outside]);
        }
        writeln!(out, "{}\n", indented(&table))?;
    }
    streams(out, report)
}

fn streams(out: &mut String, report: &Report) -> fmt::Result {
    if !report.streams.is_empty() {
        let mut table =
            table(["Streams", "PASID", "through", "numbers", "in the gap", "lost"], &[1, 3, 4, 5]);
        for s in &report.streams {
            let numbers = [s.sent, s.sent_in_gap, s.lost].map(thousands);
            let [sent, gap, lost] = numbers;
            table.add_row([s.requester.clone(), pasid(s.pasid), s.through.clone(), sent, gap, lost]);
        }
        writeln!(out, "{}\n", indented(&table))?;
    }
    if !report.pasids_cut_off.is_empty() {
        let mut table =
            table(["Cut off", "PASID", "through", "blocked", "let through", "its target memory"], &[1, 3, 4]);
        for c in &report.pasids_cut_off {
            table.add_row([
                c.requester.clone(),
                c.pasid.to_string(),
                c.through.clone(),
                thousands(c.attempts_blocked),
                thousands(c.attempts_let_through),
                if c.memory_intact { "intact" } else { "CHANGED" }.to_owned(),
            ]);
        }
        writeln!(out, "{}\n", indented(&table))?;
    }
    Ok(())
}

/// A PASID, or that there is none.
pub(crate) fn pasid(pasid: Option<u32>) -> String {
    pasid.map_or_else(|| "none".to_owned(), |pasid| pasid.to_string())
}

/// A requester, with the ids that its requests may carry besides.
pub(crate) fn with_aliases(requester: &str, aliases: &[String]) -> String {
    if aliases.is_empty() { requester.to_owned() } else { format!("{requester} ({})", aliases.join(", ")) }
}

fn facts(out: &mut String, report: &Report) -> fmt::Result {
    let (w, f) = (&report.witness, &report.faults);
    let sound = format!(
        "{}, {} of them in the gap, {}",
        count(w.samples, "sample"),
        thousands(w.samples_in_gap),
        plural(w.discontinuities, "discontinuity", "discontinuities")
    );
    let faults =
        format!("{} on preserved, {} on cut off, {} unattributed", f.preserved, f.cut_off, f.unattributed);
    let on =
        if report.translation_enabled_throughout { "on throughout" } else { "NOT shown to be on throughout" };
    let pages = report.page_requests;
    let pages = (pages.raised > 0).then(|| ("Pages", page_requests(&pages)));
    let facts = [
        ("Sound", sound),
        ("Faults", faults),
        ("Interrupts", interrupts(report)),
        ("Translation", on.to_owned()),
        ("Audit", format!("before the jump {}", audit(&report.audit.before_jump))),
        ("", format!("after the jump {}", audit(&report.audit.after_jump))),
        ("Gap", gap(report)),
    ];
    for (name, value) in facts.into_iter().chain(pages) {
        writeln!(out, "  {name:<12} {value}")?;
    }
    writeln!(out)
}

/// `7 sent, 3 delivered before, 1 raised in the gap, 3 after, 0 lost, 0 misdirected`.
pub(crate) fn interrupts(report: &Report) -> String {
    let i = &report.interrupts;
    if i.sent == 0 {
        return "none: the kernels poll".to_owned();
    }
    format!(
        "{} sent, delivered {} before, {} raised in the gap, {} after; {} lost, {} misdirected",
        i.sent, i.delivered_before, i.delivered_in_gap, i.delivered_after, i.lost, i.misdirected
    )
}

/// `120 raised, answered 60 before, 60 after; 0 lost, 0 twice`.
pub(crate) fn page_requests(p: &PageRequests) -> String {
    format!(
        "{} raised, answered {} before, {} after; {} lost, {} twice",
        p.raised, p.answered_before, p.answered_after, p.lost, p.answered_twice
    )
}

/// `9 checks of 1,200 items, 0 violations`.
pub(crate) fn audit(audit: &Audit) -> String {
    let items = audit.checked.iter().map(|c| c.count).sum();
    let checks = count(audit.checked.len() as u64, "check");
    format!("{checks} of {}, {}", count(items, "item"), count(audit.violations.len() as u64, "violation"))
}

/// The gap, and each one where there are several.
fn gap(report: &Report) -> String {
    let each = gaps(report);
    match each.len() {
        0 => "none".to_owned(),
        1 => each[0].clone(),
        _ => format!("{} ({})", duration(report.gap_ns), each.join(" + ")),
    }
}

/// The length of each gap that ended.
pub(crate) fn gaps(report: &Report) -> Vec<String> {
    report.updates.iter().filter(|u| u.adopted_ns > u.jump_ns).map(|u| duration(u.gap_ns())).collect()
}

fn timeline(out: &mut String, report: &Report) -> fmt::Result {
    if report.timeline.is_empty() {
        return Ok(());
    }
    let mut table = table(["Phase", "kernel", "start", "duration"], &[2, 3]);
    for p in &report.timeline {
        table.add_row([p.phase.clone(), p.kernel.clone(), duration(p.start_ns), duration(p.duration_ns)]);
    }
    writeln!(out, "{}\n", indented(&table))
}

fn verdict(out: &mut String, report: &Report) -> fmt::Result {
    let style = if report.clean() { GOOD } else { BAD };
    writeln!(out, "{style}{}{style:#}", verdict_words(report))?;
    for finding in &report.findings {
        writeln!(out, "  {BAD}{}{BAD:#} {DIM}·{DIM:#} {}", finding.kind.name(), finding.words)?;
    }
    Ok(())
}

/// The verdict in one line.
pub(crate) fn verdict_words(report: &Report) -> String {
    let found = count(report.findings.len() as u64, "finding");
    match report.outcome {
        Outcome::Completed if report.findings.is_empty() => {
            "Completed. Nothing was lost, and nothing that was cut off came through.".to_owned()
        }
        Outcome::Completed => format!("Completed with {found}."),
        Outcome::Refused => format!("Refused, {found}."),
        Outcome::Failed => format!("Failed, {found}."),
    }
}

fn table<const N: usize>(header: [&str; N], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.map(str::to_owned));
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn indented(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|l| format!(" {}", l.trim_end())).collect();
    lines.join("\n")
}

/// A token with the letters that it is made of, where it is: `0x617564696f202020 (audio)`.
#[must_use]
pub fn token(text: &str) -> String {
    let letters =
        text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(u64::to_be_bytes);
    match letters {
        Some(letters) if letters.iter().all(|b| b.is_ascii_graphic() || *b == b' ') => {
            format!("{text} ({})", String::from_utf8_lossy(&letters).trim())
        }
        _ => text.to_owned(),
    }
}

/// A number with commas.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { many })
}

/// Nanoseconds in the unit that suits them.
#[must_use]
pub fn duration(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// Bytes in the unit that suits them.
#[must_use]
pub fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift > 0 && bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{} bytes", thousands(bytes))
}

/// A violation in one line, for tables.
#[must_use]
pub fn violation(violation: &scenario::event::Violation) -> String {
    in_words(violation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn numbers_durations_and_sizes_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [7, 1_500, 18_800_000, 2_000_000_000].map(duration),
            ["7 ns", "1.5 µs", "18.8 ms", "2.00 s"]
        );
        assert_eq!([512 << 20, 6 << 30, 4096, 5].map(size), ["512 MiB", "6 GiB", "4 KiB", "5 bytes"]);
    }

    #[test]
    fn a_token_made_of_letters_is_shown_with_them() {
        assert_eq!(token("0x617564696f202020"), "0x617564696f202020 (audio)");
        for plain in ["0x17", "0xffffffffffffffff", "audio", "0x6175646z"] {
            assert_eq!(token(plain), plain);
        }
    }

    #[test]
    fn a_clean_run_reads_like_this() {
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&samples::clean())).to_string());
    }

    #[test]
    fn a_run_with_findings_reads_like_this() {
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&samples::dirty())).to_string());
    }
}
