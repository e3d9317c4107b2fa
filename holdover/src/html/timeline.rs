//! The timeline of all kernels: a row for each phase, a colour for each kernel, a band for each gap.

use crate::report::{Phase, Report};
use crate::table;
use maud::{Markup, html};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 20.0;
const TOP: f64 = 26.0;
/// Narrowest bar that is still seen.
const BAR_MIN: f64 = 2.0;
/// Most phases that are drawn.
const ROWS_MAX: usize = 200;
/// Nanoseconds of the run that are shown before a jump and after an adoption in the close-up, at most; and as a share of
/// the gap.
const MARGIN_MAX: u64 = 100_000_000;
const MARGIN_SHARE: f64 = 0.35;

/// The whole run, and a close-up of each update.
pub(super) fn section(report: &Report) -> Markup {
    if report.timeline.is_empty() {
        return html! {};
    }
    let all: Vec<&Phase> = report.timeline.iter().take(ROWS_MAX).collect();
    let end = all.iter().map(|p| p.start_ns + p.duration_ns).max().unwrap_or(1).max(1);
    html! {
        section {
            h2 { "Timeline of the kernels" }
            (legend(report))
            (chart(report, &all, 0, end, "The whole run"))
            @for u in report.updates.iter().filter(|u| u.adopted_ns > u.jump_ns) {
                @let margin = ((u.gap_ns() as f64 * MARGIN_SHARE) as u64).min(MARGIN_MAX);
                @let (from, to) = (u.jump_ns.saturating_sub(margin), u.adopted_ns + margin);
                @let near: Vec<&Phase> = all.iter().copied().filter(|p| p.start_ns <= to && p.start_ns + p.duration_ns >= from).collect();
                h3 { "Close to the gap, " (u.outgoing) " → " (u.incoming) }
                (chart(report, &near, from, to, "The time around the gap"))
            }
        }
    }
}

fn legend(report: &Report) -> Markup {
    html! {
        ul.legend {
            @for (index, name) in kernels(report).iter().enumerate() { li { i class=(format!("k{}", index % 3)) {} (name) } }
            li { i.gap {} "gap: last instruction of the outgoing kernel to adoption" }
        }
    }
}

fn kernels(report: &Report) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for phase in &report.timeline {
        if !names.contains(&phase.kernel.as_str()) {
            names.push(&phase.kernel);
        }
    }
    names
}

fn chart(report: &Report, phases: &[&Phase], from: u64, to: u64, label: &str) -> Markup {
    let span = (to - from).max(1) as f64;
    let x = |at: u64| LEFT + (WIDTH - LEFT - RIGHT) * ((at.clamp(from, to) - from) as f64 / span);
    let bottom = TOP + ROW * phases.len() as f64;
    let names = kernels(report);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", bottom + 6.0)) role="img" aria-label=(label) {
            @for u in report.updates.iter().filter(|u| u.adopted_ns > u.jump_ns) {
                rect.gap x=(px(x(u.jump_ns))) y=(TOP - 4.0) width=(px((x(u.adopted_ns) - x(u.jump_ns)).max(1.0))) height=(bottom - TOP + 4.0) {}
            }
            @for tick in 0..=4u64 {
                @let at = from + (to - from) / 4 * tick;
                line.axis x1=(px(x(at))) x2=(px(x(at))) y1=(TOP - 4.0) y2=(bottom) {}
                text.soft x=(px(x(at))) y="14" text-anchor="middle" { (table::duration(at)) }
            }
            @for (row, phase) in phases.iter().enumerate() {
                @let y = TOP + ROW * row as f64;
                @let kernel = names.iter().position(|n| *n == phase.kernel).unwrap_or(0) % 3;
                @let (start, end) = (x(phase.start_ns), x(phase.start_ns + phase.duration_ns));
                text x=(LEFT - 10.0) y=(y + 13.0) text-anchor="end" { (phase.phase) }
                rect class=(format!("k{kernel}")) x=(px(start.min(WIDTH - RIGHT - BAR_MIN))) y=(y + 3.0) width=(px((end - start).max(BAR_MIN))) height="13" rx="2" {
                    title { (phase.kernel) ": " (phase.phase) ", " (table::duration(phase.duration_ns)) }
                }
                text.soft x=(px(WIDTH - RIGHT + 8.0)) y=(y + 13.0) { (table::duration(phase.duration_ns)) }
            }
        }
    }
}

/// A coordinate with as many digits as a screen shows.
pub(super) fn px(value: f64) -> String {
    format!("{value:.1}")
}
