//! What was heard: the whole recording in a strip, and the waveform around each jump.

use super::timeline::px;
use crate::judge::Judgement;
use crate::report::Update;
use crate::sound::{Break, Frame, RATE};
use crate::table;
use maud::{Markup, html};
use std::ops::Range;

const WIDTH: f64 = 960.0;
/// Columns that a waveform is reduced to: each shows the least and the greatest of its samples.
const COLUMNS: usize = 960;
/// Samples shown before the jump and after adoption: a third of the gap, at least 20 ms, at most 100 ms.
const MARGIN: [usize; 2] = [RATE as usize / 50, RATE as usize / 10];

/// All pictures of the sound.
pub(super) fn section(judgement: &Judgement, recording: &[Frame]) -> Markup {
    let (heard, report) = (&judgement.heard, &judgement.report);
    let Some(start) = heard.start.filter(|_| !recording.is_empty()) else {
        return html! { section { h2 { "What was heard" } p.bad { "There is no recording of the tune." } } };
    };
    // Frame number n of the stream is this far into the recording.
    let place = |frames: u64| (start + frames as usize).saturating_sub(heard.phase).min(recording.len());
    let gaps: Vec<Range<usize>> =
        report.updates.iter().map(|u| place(u.frames_at_jump)..place(u.frames_at_adoption)).collect();
    html! {
        section {
            h2 { "What was heard" }
            ul.legend {
                li { i.gap {} "played in the gap" }
                @if heard.discontinuities > 0 { li { i.break {} "not the tune" } }
            }
            (picture(recording, 0..recording.len(), &gaps, &heard.breaks, 70.0, "The whole recording"))
            @for (update, gap) in report.updates.iter().zip(&gaps) {
                h3 { "Around the jump, " (update.outgoing) " → " (update.incoming) }
                p { (words(update)) }
                (picture(recording, around(gap, recording.len()), &gaps, &heard.breaks, 150.0, "The waveform around the jump"))
            }
        }
    }
}

fn words(update: &Update) -> String {
    format!(
        "{} samples were played in the gap of {}, out of memory that no kernel was watching.",
        table::thousands(update.samples_in_gap()),
        table::duration(update.gap_ns())
    )
}

/// The gap with a margin on both sides.
fn around(gap: &Range<usize>, length: usize) -> Range<usize> {
    let margin = ((gap.end - gap.start.min(gap.end)) / 3).clamp(MARGIN[0], MARGIN[1]);
    gap.start.saturating_sub(margin)..(gap.end + margin).min(length)
}

fn picture(
    recording: &[Frame],
    shown: Range<usize>,
    gaps: &[Range<usize>],
    breaks: &[Break],
    height: f64,
    label: &str,
) -> Markup {
    let span = shown.len().max(1) as f64;
    let x =
        |at: usize| WIDTH * (at.clamp(shown.start, shown.end.max(shown.start)) - shown.start) as f64 / span;
    let seconds = |at: usize| at as f64 / f64::from(RATE);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", height + 18.0)) role="img" aria-label=(label) {
            @for gap in gaps.iter().filter(|g| g.start < shown.end && g.end > shown.start) {
                rect.gap x=(px(x(gap.start))) y="0" width=(px((x(gap.end) - x(gap.start)).max(1.0))) height=(height) {}
            }
            line.axis x1="0" x2=(WIDTH) y1=(height / 2.0) y2=(height / 2.0) {}
            path.wave d=(path(recording, &shown, height)) {}
            @for found in breaks.iter().filter(|b| b.at < shown.end && b.at + b.wrong >= shown.start) {
                rect.break x=(px(x(found.at))) y="0" width=(px((x(found.at + found.wrong) - x(found.at)).max(2.0))) height=(height) {}
            }
            text.soft x="0" y=(height + 14.0) { (format!("{:.3} s", seconds(shown.start))) }
            text.soft x=(WIDTH) y=(height + 14.0) text-anchor="end" { (format!("{:.3} s", seconds(shown.end))) }
        }
    }
}

/// A line up and down through the extremes of each column, left channel. Few samples are joined one by one.
fn path(recording: &[Frame], shown: &Range<usize>, height: f64) -> String {
    let samples = &recording[shown.start.min(recording.len())..shown.end.min(recording.len())];
    let y = |value: i16| height / 2.0 - f64::from(value) / 32768.0 * height / 2.0;
    let each = samples.len().div_ceil(COLUMNS).max(1);
    let step = WIDTH / samples.len().div_ceil(each).max(1) as f64;
    let mut out = String::new();
    for (column, chunk) in samples.chunks(each).enumerate() {
        let (low, high) = chunk
            .iter()
            .fold((i16::MAX, i16::MIN), |(low, high), [left, _]| (low.min(*left), high.max(*left)));
        let at = px(step * (column as f64 + 0.5));
        let letter = if column == 0 { 'M' } else { 'L' };
        out.push_str(&format!("{letter}{at} {}", px(y(high))));
        if low != high {
            out.push_str(&format!("L{at} {}", px(y(low))));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_bounded_number_of_points_however_long_the_recording() {
        let recording = vec![[100, 0]; 500_000];
        let long = path(&recording, &(0..500_000), 100.0);
        assert!(long.matches(['M', 'L']).count() <= 2 * COLUMNS, "{}", long.len());
        assert_eq!(path(&recording, &(0..3), 100.0).matches(['M', 'L']).count(), 3);
        assert_eq!(path(&recording, &(0..0), 100.0), "");
        assert_eq!(path(&[], &(5..9), 100.0), "");
    }

    #[test]
    fn loud_samples_stay_within_the_picture() {
        let path = path(&[[i16::MIN, 0], [i16::MAX, 0]], &(0..2), 100.0);
        assert!(path.starts_with("M240.0 100.0L720.0 0.0"), "{path}");
    }

    #[test]
    fn the_margin_never_leaves_the_recording() {
        assert_eq!(around(&(10..20), 1000), 0..980);
        assert_eq!(around(&(10..20), 25), 0..25);
        assert_eq!(around(&(6000..12000), 100_000), 4000..14000);
        assert_eq!(around(&(60_000..120_000), 1_000_000), 55_200..124_800);
    }
}
