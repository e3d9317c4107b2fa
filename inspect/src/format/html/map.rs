//! A map of physical memory: tables, preserved runs and targets of DMA, one lane each.
//!
//! Memory is mostly empty space, so the axis is cut: pieces within a megabyte of one another form a cluster, and each
//! cluster gets width by the logarithm of its length. Within a cluster the scale is true.

use crate::format::text::size;
use crate::image::Memory;
use crate::model::Model;
use maud::{Markup, html};
use spec::PAGE_SIZE;

/// Pieces that are drawn at most in each lane.
const PIECES: usize = 4000;
/// Gaps shorter than this do not cut the axis.
const GAP: u64 = 1 << 20;
/// Width of the drawing.
const WIDTH: f64 = 1000.0;
/// Width of a cut.
const CUT: f64 = 6.0;
/// Height of a lane, and from one to the next.
const LANE: (f64, f64) = (18.0, 26.0);

/// Something that lies somewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    start: u64,
    end: u64,
    what: String,
}

/// Part of the axis.
struct Cluster {
    start: u64,
    end: u64,
    left: f64,
    width: f64,
}

/// The map, unless there is nothing to draw.
pub(super) fn section(memory: &Memory, model: &Model) -> Markup {
    let lanes = [
        ("tables", "tables", tables(model)),
        ("preserved", "preserved", preserved(model)),
        ("targets of DMA", "target", targets(model)),
    ];
    let mut all: Vec<(u64, u64)> =
        lanes.iter().flat_map(|(_, _, pieces)| pieces).map(|piece| (piece.start, piece.end)).collect();
    all.sort_unstable();
    let clusters = clusters(&all);
    if clusters.is_empty() {
        return html! {};
    }
    let height = LANE.1 * lanes.len() as f64 + 30.0;
    html! {
        section {
            h2 { "Physical memory" }
            p { (size(memory.bytes())) " in the image. The axis is cut where nothing lies; a piece says what it is when pointed at." }
            svg.map viewBox=(format!("0 0 {} {height}", WIDTH + 110.0)) role="img" aria-label="Map of physical memory" {
                @for (lane, (name, class, pieces)) in lanes.iter().enumerate() {
                    text.lane x="0" y=(LANE.1 * lane as f64 + 13.0) { (name) }
                    @for cluster in &clusters {
                        rect.ground x=(format!("{:.2}", cluster.left + 110.0)) y=(LANE.1 * lane as f64)
                            width=(format!("{:.2}", cluster.width)) height=(LANE.0) {}
                    }
                    @for piece in pieces { (rect(piece, class, lane, &clusters)) }
                }
                @for cluster in &clusters {
                    @if cluster.width > 60.0 {
                        text.tick x=(format!("{:.2}", cluster.left + 110.0)) y=(height - 10.0) { (format!("{:#x}", cluster.start)) }
                    }
                }
            }
        }
    }
}

fn rect(piece: &Piece, class: &str, lane: usize, clusters: &[Cluster]) -> Markup {
    let index = clusters.partition_point(|cluster| cluster.start <= piece.start);
    let Some(cluster) = index.checked_sub(1).and_then(|index| clusters.get(index)) else { return html! {} };
    let scale = cluster.width / (cluster.end - cluster.start).max(1) as f64;
    let left = cluster.left + (piece.start - cluster.start) as f64 * scale;
    let width = ((piece.end - piece.start) as f64 * scale).max(0.8);
    html! {
        rect class=(class) x=(format!("{:.2}", left + 110.0)) y=(LANE.1 * lane as f64) width=(format!("{width:.2}")) height=(LANE.0)
            data-phys=(format!("{:x}", piece.start)) data-bytes=(format!("{:x}", piece.end - piece.start)) {
            title { (piece.what) ", " (format!("{:#x} to {:#x}", piece.start, piece.end - 1)) ", " (size(piece.end - piece.start)) }
        }
    }
}

/// Cuts the axis. `all` ascends.
fn clusters(all: &[(u64, u64)]) -> Vec<Cluster> {
    let mut clusters: Vec<Cluster> = Vec::new();
    for &(start, end) in all {
        match clusters.last_mut() {
            Some(last) if start.saturating_sub(last.end) <= GAP => last.end = last.end.max(end),
            _ => clusters.push(Cluster { start, end, left: 0.0, width: 0.0 }),
        }
    }
    let weight = |cluster: &Cluster| ((cluster.end - cluster.start).max(PAGE_SIZE) as f64 / 2048.0).log2();
    let sum: f64 = clusters.iter().map(weight).sum();
    // Cuts may not eat up the drawing.
    let cut = CUT.min(WIDTH / 4.0 / clusters.len().max(1) as f64);
    let room = WIDTH - cut * clusters.len().saturating_sub(1) as f64;
    let mut left = 0.0;
    for cluster in &mut clusters {
        cluster.left = left;
        cluster.width = room * weight(cluster) / sum;
        left += cluster.width + cut;
    }
    clusters
}

/// Joins pieces that touch and are of one kind, so that the page stays small.
fn merged(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_unstable();
    let mut kept: Vec<Piece> = Vec::new();
    for piece in pieces {
        if let Some(last) = kept.last_mut().filter(|last| last.what == piece.what && piece.start <= last.end)
        {
            last.end = last.end.max(piece.end);
        } else if kept.len() < PIECES {
            kept.push(piece);
        }
    }
    kept
}

fn tables(model: &Model) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut add = |start: u64, bytes: u64, what: String| {
        let end = start.saturating_add(bytes.max(1));
        pieces.push(Piece { start, end, what });
    };
    for unit in &model.units {
        let name = &unit.registers.name;
        if let Some(root) = unit.root_table() {
            add(root.get(), PAGE_SIZE, format!("root table of {name}"));
        }
        for table in &unit.context_tables {
            add(table.at.get(), PAGE_SIZE, format!("context table of bus {:#04x}", table.bus));
        }
        for requester in &unit.requesters {
            for (start, bytes) in &requester.pasid_tables {
                add(start.get(), *bytes, format!("PASID tables of {}", requester.source));
            }
        }
        if let Some(table) = &unit.interrupts {
            add(table.at.get(), 16 * table.size, format!("interrupt table of {name}"));
        }
        if let Some(queue) = &unit.queue {
            add(
                queue.at.get(),
                queue.size << if queue.wide { 5 } else { 4 },
                format!("invalidation queue of {name}"),
            );
        }
    }
    for (number, space) in model.spaces.iter().enumerate() {
        for (at, _) in &space.frames {
            add(at.get(), PAGE_SIZE, format!("page tables of domain {number}"));
        }
    }
    merged(pieces)
}

fn preserved(model: &Model) -> Vec<Piece> {
    let runs = model.handovers.iter().flat_map(|kho| &kho.preserved.extents);
    let piece = |run: &spec::Extent| Piece {
        start: run.start().get(),
        end: run.start().get().saturating_add(run.bytes()),
        what: "preserved".into(),
    };
    merged(runs.map(piece).collect())
}

fn targets(model: &Model) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (number, space) in model.spaces.iter().enumerate() {
        pieces.extend(space.ranges.iter().map(|range| {
            let start = range.target.get();
            let what = format!("target of domain {number}, {}", range.access.letters());
            Piece { start, end: start.saturating_add(range.bytes), what }
        }));
    }
    merged(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_fill_the_drawing_and_keep_their_order() {
        let far: Vec<(u64, u64)> = (0..500).map(|i| (i << 30, (i << 30) + PAGE_SIZE)).collect();
        for pieces in [vec![(0, 4096)], vec![(0, 4096), (8192, 9000), (1 << 40, u64::MAX)], far] {
            let clusters = clusters(&pieces);
            let last = clusters.last().unwrap();
            assert!((last.left + last.width - WIDTH).abs() < 1e-6);
            assert!(clusters.iter().all(|cluster| cluster.width > 0.0));
            assert!(clusters.windows(2).all(|two| two[0].left + two[0].width <= two[1].left));
        }
        assert!(clusters(&[]).is_empty());
    }
}
