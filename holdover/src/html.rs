//! The result as a page: one file that needs nothing else, light or dark as the reader prefers.

mod timeline;
mod waveform;

use crate::judge::Judgement;
use crate::report::{Audit, CutOff, Report};
use crate::sound::Frame;
use crate::table;
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("html/style.css");

/// The page for a run.
#[must_use]
pub fn page(judgement: &Judgement, recording: &[Frame]) -> String {
    let report = &judgement.report;
    let title = format!("Live update {}", table::kernels(report));
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { (verdict(report)) h1 { (title) } p.where { (place(report)) } }
                main {
                    (numbers(report))
                    @if !report.findings.is_empty() { (findings(report)) }
                    (waveform::section(judgement, recording))
                    (timeline::section(report))
                    (requesters(report))
                    (faults(report))
                    section { h2 { "Interrupts" } p { (table::interrupts(report)) "." } }
                    @if report.page_requests.raised > 0 {
                        section { h2 { "Page requests" } p { (table::page_requests(&report.page_requests)) "." } }
                    }
                    (audits(report))
                    (evidence(report))
                }
                footer { p { "holdover " (env!("CARGO_PKG_VERSION")) " · " (report.schema) } }
            }
        }
    };
    markup.into_string()
}

fn verdict(report: &Report) -> Markup {
    let class = if report.clean() { "verdict good" } else { "verdict bad" };
    html! { p class=(class) role="status" { (table::verdict_words(report)) } }
}

fn place(report: &Report) -> Markup {
    let asked = &report.asked;
    html! {
        (table::machine(report)) " · " (report.mode) " mode · " (asked.address_width) " bit · " (table::size(asked.memory_bytes)) " · scenario " (asked.scenario)
        @if asked.icount { " · counted instructions" }
        @if !asked.poison { " · memory not poisoned" }
        @if let Some(mutant) = &asked.mutant { " · " strong.bad { "mistake put in: " (mutant) } }
    }
}

fn numbers(report: &Report) -> Markup {
    let blocked: u64 = report.cut_off.iter().map(|c| c.attempts_blocked).sum();
    let through: u64 = report.cut_off.iter().map(|c| c.attempts_let_through).sum();
    let w = &report.witness;
    html! {
        dl.numbers {
            (number("gap", &table::duration(report.gap_ns), &gap_words(report), true))
            (number("samples", &table::thousands(w.samples), &format!("heard, {} of them in the gap", table::thousands(w.samples_in_gap)), w.samples > 0))
            (number("discontinuities", &table::thousands(w.discontinuities), "in what was heard", w.discontinuities == 0))
            (number("blocked", &table::thousands(blocked), &format!("attempts after the cut-off, {} let through", table::thousands(through)), through == 0))
            (number("faults", &table::thousands(report.faults.preserved), "on preserved requesters", report.faults.preserved == 0))
            (number("translation", if report.translation_enabled_throughout { "on" } else { "not shown on" }, "throughout, by the machine's trace", report.translation_enabled_throughout))
        }
    }
}

fn gap_words(report: &Report) -> String {
    let words = "without a kernel that drives the hardware";
    if report.updates.len() > 1 {
        format!("{words}: {}", table::gaps(report).join(" and "))
    } else {
        words.to_owned()
    }
}

fn number(name: &str, value: &str, words: &str, good: bool) -> Markup {
    html! { div class=(if good { "" } else { "bad" }) { dt { (name) } dd { strong { (value) } span { (words) } } } }
}

fn findings(report: &Report) -> Markup {
    html! {
        section {
            h2 { "What is wrong" }
            table {
                tbody { @for f in &report.findings { tr.bad { th scope="row" { (f.kind.name()) } td { (f.words) } } } }
            }
        }
    }
}

fn requesters(report: &Report) -> Markup {
    html! {
        section {
            h2 { "What was preserved, what was cut off" }
            table {
                thead { tr { th { "Preserved" } th.number { "domain" } th { "token" } th.number { "translated" } th.number { "blocked" } } }
                tbody { @for p in &report.preserved {
                    @let traffic = report.evidence.traffic.iter().find(|t| t.requester == p.requester && t.pasid.is_none());
                    tr {
                        th scope="row" { code { (table::with_aliases(&p.requester, &p.aliases)) } } td.number { (p.domain_id) } td { code { (table::token(&p.token)) } }
                        td.number { (table::thousands(traffic.map_or(0, |t| t.translated))) }
                        td.number { (table::thousands(traffic.map_or(0, |t| t.blocked))) }
                    }
                } }
            }
            table {
                thead { tr { th { "Cut off" } th { "on a list" } th.number { "blocked" } th.number { "let through" } th { "its target memory" } } }
                tbody { @for c in &report.cut_off { (cut_off(c)) } }
            }
            @if !report.reduced.is_empty() { (reduced(report)) }
            @if !report.streams.is_empty() { (streams(report)) }
            @if !report.pasids_cut_off.is_empty() { (pasids_cut_off(report)) }
        }
    }
}

fn cut_off(c: &CutOff) -> Markup {
    let class = if c.memory_intact && c.attempts_let_through == 0 { "" } else { "bad" };
    html! {
        tr class=(class) {
            th scope="row" { code { (c.requester) } }
            td { @if c.listed { "yes" } @else { "no" } }
            td.number { (table::thousands(c.attempts_blocked)) }
            td.number { (table::thousands(c.attempts_let_through)) }
            td { @if c.memory_intact { "intact" } @else { "changed" } }
        }
    }
}

fn reduced(report: &Report) -> Markup {
    html! {
        table {
            thead { tr { th { "Reduced" } th { "to reserved memory" } th.number { "within" } th.number { "outside" } } }
            tbody { @for r in &report.reduced {
                tr class=(if r.attempts_outside == 0 { "" } else { "bad" }) {
                    th scope="row" { code { (r.requester) } }
                    td { @for [start, bytes] in &r.regions { code { (start) "+" (bytes) } " " } }
                    td.number { (table::thousands(r.attempts_within)) }
                    td.number { (table::thousands(r.attempts_outside)) }
                }
            } }
        }
    }
}

fn streams(report: &Report) -> Markup {
    html! {
        table {
            thead { tr { th { "Streams" } th { "PASID" } th { "through" } th.number { "numbers" } th.number { "in the gap" } th.number { "lost" } } }
            tbody { @for s in &report.streams {
                tr class=(if s.lost == 0 && s.complete && s.grown != Some(false) { "" } else { "bad" }) {
                    th scope="row" { code { (s.requester) } }
                    td { (table::pasid(s.pasid)) }
                    td { (s.through) @if s.grown == Some(true) { ", and a page mapped after adoption" } }
                    td.number { (table::thousands(s.sent)) }
                    td.number { (table::thousands(s.sent_in_gap)) }
                    td.number { (table::thousands(s.lost)) }
                }
            } }
        }
    }
}

fn pasids_cut_off(report: &Report) -> Markup {
    html! {
        table {
            thead { tr { th { "PASIDs cut off" } th { "PASID" } th { "before through" } th.number { "blocked" } th.number { "let through" } th { "its target memory" } } }
            tbody { @for c in &report.pasids_cut_off {
                tr class=(if c.memory_intact && c.attempts_let_through == 0 { "" } else { "bad" }) {
                    th scope="row" { code { (c.requester) } }
                    td { (c.pasid) }
                    td { (c.through) }
                    td.number { (table::thousands(c.attempts_blocked)) }
                    td.number { (table::thousands(c.attempts_let_through)) }
                    td { @if c.memory_intact { "intact" } @else { "changed" } }
                }
            } }
        }
    }
}

fn faults(report: &Report) -> Markup {
    let f = &report.faults;
    html! {
        section {
            h2 { "Faults" }
            p {
                (f.preserved) " on preserved requesters, " (f.cut_off) " on requesters that were cut off, " (f.unattributed)
                " unattributed" @if f.overflows > 0 { "; records were lost " (f.overflows) " times" } "."
            }
            @if !report.evidence.faults.is_empty() {
                table {
                    thead { tr { th { "Requester" } th { "address" } th { "access" } th.number { "reason" } th { "in words" } th { "recorded" } } }
                    tbody { @for f in &report.evidence.faults {
                        tr class=(if f.who == "cut_off" { "" } else { "bad" }) {
                            th scope="row" { code { (f.requester) } } td { code { (f.address) } }
                            td { @if f.write { "write" } @else { "read" } } td.number { (format!("{:#x}", f.reason)) } td { (f.words) }
                            td { @if f.in_gap { "in the gap" } @else { "after adoption" } }
                        }
                    } }
                }
            }
        }
    }
}

fn audits(report: &Report) -> Markup {
    let (before, after) = (&report.audit.before_jump, &report.audit.after_jump);
    let mut rows: Vec<(&str, &str)> = before
        .checked
        .iter()
        .chain(&after.checked)
        .map(|c| (c.invariant.as_str(), c.what.as_str()))
        .collect();
    rows.sort_by_key(|(invariant, what)| (invariant.len(), *invariant, *what));
    rows.dedup();
    let count = |audit: &Audit, row: &(&str, &str)| {
        let found = audit.checked.iter().find(|c| (c.invariant.as_str(), c.what.as_str()) == *row);
        found.map_or_else(|| "–".to_owned(), |c| table::thousands(c.count))
    };
    html! {
        section {
            h2 { "Audit" }
            p { "Before the jump " (table::audit(before)) "; after the jump " (table::audit(after)) "." }
            table {
                thead { tr { th { "Invariant" } th { "checked" } th.number { "before the jump" } th.number { "after the jump" } } }
                tbody { @for row in &rows {
                    tr { th scope="row" { (row.0) } td { (row.1) } td.number { (count(before, row)) } td.number { (count(after, row)) } }
                } }
            }
            @for (audit, words) in [(before, "before the jump"), (after, "after the jump")] {
                @if !audit.violations.is_empty() {
                    h3.bad { "Violations " (words) }
                    ul { @for v in &audit.violations { li.bad { (table::violation(v)) } } }
                }
            }
        }
    }
}

fn evidence(report: &Report) -> Markup {
    let e = &report.evidence;
    let yes = |good: bool, words: (&'static str, &'static str)| {
        if good {
            html! { (words.0) }
        } else {
            html! { strong.bad { (words.1) } }
        }
    };
    html! {
        section {
            h2 { "Witnesses in memory" }
            ul {
                @for t in &e.transfers {
                    li { "Transfer of " code { (t.requester) } ": " (yes(t.busy_at_jump, ("in flight at the jump", "idle at the jump"))) ", "
                        (yes(t.complete, ("ended after it", "did not end"))) ", " (yes(t.correct, ("arrived whole", "arrived wrong"))) "." }
                }
                @for c in &e.captures {
                    li { "Capture of " code { (c.requester) } ": " (table::thousands(c.frames)) " frames under the incoming kernel, "
                        (yes(c.complete, ("without a hole", "with a hole"))) "." }
                }
                @for c in &e.contents {
                    li { "Preserved memory " code { (table::token(&c.token)) } ": " (yes(c.intact, ("as it was left", "changed"))) "." }
                }
            }
            h2 { "Handover" }
            ul { @for u in &report.updates { @if let Some(h) = &u.handover {
                li { (u.outgoing) " → " (u.incoming) ": " (table::thousands(h.preserved_frames)) " frames in " (table::thousands(h.extents))
                    " extents, " (table::thousands(h.blob_bytes)) " sealed bytes, digest " code { (h.digest) } }
            } } }
            h2 { "Units" }
            ul { @for u in &e.units { li { code { (u.unit) } ", version " (u.version) ", CAP " code { (u.cap) } ", ECAP " code { (u.ecap) } } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn pages() -> [String; 2] {
        let tune = samples::tune();
        [samples::record(), samples::dirty_record()].map(|record| {
            let judgement = crate::judge::judge(&samples::settings().asked(), &record, &tune);
            page(&judgement, record.sound.as_deref().unwrap_or_default())
        })
    }

    #[test]
    fn a_page_needs_nothing_from_anywhere_else() {
        for page in pages() {
            for outside in ["http:", "https:", "src=", "url(", "@import", "<link", "<script"] {
                assert!(!page.contains(outside), "{outside}");
            }
        }
    }

    #[test]
    fn the_verdict_stands_first_and_findings_only_where_there_are_some() {
        let [clean, dirty] = pages();
        assert!(clean.contains("verdict good") && !clean.contains("What is wrong"));
        assert!(dirty.contains("verdict bad") && dirty.contains("What is wrong"));
        assert!(dirty.find("verdict bad").unwrap() < dirty.find("<h1>").unwrap());
    }

    #[test]
    fn words_of_a_kernel_cannot_become_markup() {
        let mut record = samples::record();
        record.serial.line(r#"@{"event":"refused","step":"<script>","why":"\"&\""}"#);
        let judgement = crate::judge::judge(&samples::settings().asked(), &record, &samples::tune());
        let page = page(&judgement, &[]);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
    }

    #[test]
    fn every_element_that_is_opened_is_closed() {
        for page in pages() {
            for element in ["svg", "table", "section", "g", "ul", "text", "tr", "td", "main"] {
                let opened = page.matches(&format!("<{element}>")).count()
                    + page.matches(&format!("<{element} ")).count();
                let closed = page.matches(&format!("</{element}>")).count();
                assert_eq!(opened, closed, "{element}");
            }
        }
    }
}
