//! Sets of addresses against one another.

use super::{Change, Difference};
use crate::format::text::size;
use crate::model::{Model, Range, Route};
use crate::tables::Access;
use spec::{Extent, Frame, SourceId};
use std::collections::BTreeMap;

/// Frames that are preserved in one image only.
pub(super) fn preserved(a: &Model, b: &Model) -> Vec<Difference> {
    let (before, after) = (frames(a), frames(b));
    let mut found = Vec::new();
    let mut say = |runs: Vec<Extent>, change: fn(String) -> Change| {
        for run in runs {
            let what = format!("{run}, {}", size(run.bytes()));
            found.push(Difference { subject: "preserved memory".into(), change: change(what) });
        }
    };
    say(without(&before, &after), Change::Removed);
    say(without(&after, &before), Change::Added);
    found
}

/// The preserved runs of all handovers, ascending and merged.
fn frames(model: &Model) -> Vec<Extent> {
    let mut runs: Vec<Extent> =
        model.handovers.iter().flat_map(|kho| &kho.preserved.extents).copied().collect();
    runs.sort_unstable();
    let mut merged: Vec<Extent> = Vec::new();
    for run in runs {
        if let Some(last) = merged.last_mut().filter(|last| run.first() <= last.end()) {
            let end = last.end().max(run.end());
            *last = Extent::new(last.first(), end.number() - last.first().number()).unwrap_or(*last);
        } else {
            merged.push(run);
        }
    }
    merged
}

/// The frames of `runs` that `others` lacks. Both ascend.
fn without(runs: &[Extent], others: &[Extent]) -> Vec<Extent> {
    let mut found = Vec::new();
    for run in runs {
        let mut at = run.first();
        let from = others.partition_point(|other| other.end() <= at);
        for other in others[from..].iter().take_while(|other| other.first() < run.end()) {
            found.extend(between(at, other.first()));
            at = at.max(other.end());
        }
        found.extend(between(at, run.end()));
    }
    found
}

fn between(first: Frame, end: Frame) -> Option<Extent> {
    Extent::new(first, end.number().saturating_sub(first.number()))
}

/// Who asks: unit by register base, source id, PASID.
type Asker = (u64, SourceId, Option<u32>);

/// Where each asker's requests go.
fn askers(model: &Model) -> BTreeMap<Asker, usize> {
    let mut askers = BTreeMap::new();
    for unit in &model.units {
        for requester in &unit.requesters {
            for attachment in &requester.attachments {
                if let Route::Space(space) = attachment.route {
                    let pasid = attachment.pasid.map(|pasid| pasid.number);
                    askers.insert((unit.registers.base, requester.source, pasid), space);
                }
            }
        }
    }
    askers
}

/// Addresses that are translated differently, for every pair of page tables that the same requesters use.
pub(super) fn translated(a: &Model, b: &Model) -> Vec<Difference> {
    let after = askers(b);
    let mut pairs: BTreeMap<(usize, usize), Vec<Asker>> = BTreeMap::new();
    for (asker, space) in askers(a) {
        if let Some(other) = after.get(&asker) {
            pairs.entry((space, *other)).or_default().push(asker);
        }
    }
    let mut found = Vec::new();
    for ((before, after), askers) in pairs {
        let (Some(before), Some(after)) = (a.spaces.get(before), b.spaces.get(after)) else { continue };
        let names: Vec<String> = askers.iter().take(8).map(|(_, source, _)| source.to_string()).collect();
        let more = if askers.len() > 8 { " ..." } else { "" };
        for piece in compare(&before.ranges, &after.ranges) {
            let end = piece.iova.wrapping_add(piece.bytes - 1);
            let subject = format!("{}{more}, {:#x} to {end:#x}", names.join(" "), piece.iova);
            let words = |(target, access): (u64, Access)| format!("{} {target:#x}", access.letters());
            let change = match (piece.from, piece.to) {
                (Some(from), Some(to)) => Change::Changed { from: words(from), to: words(to) },
                (Some(from), None) => Change::Removed(words(from)),
                (None, Some(to)) => Change::Added(words(to)),
                (None, None) => continue,
            };
            found.push(Difference { subject, change });
            if found.len() >= super::KEPT {
                return found;
            }
        }
    }
    found
}

/// Adjacent addresses that are translated differently in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    iova: u64,
    bytes: u64,
    from: Option<(u64, Access)>,
    to: Option<(u64, Access)>,
}

/// What `range` makes of `iova`, and how many bytes from there on it covers.
fn at(range: Option<&Range>, iova: u64) -> (Option<(u64, Access)>, u64) {
    match range {
        None => (None, u64::MAX),
        Some(range) if iova < range.iova => (None, range.iova - iova),
        Some(range) => {
            let within = iova - range.iova;
            (Some((range.target.get().wrapping_add(within), range.access)), range.bytes - within)
        }
    }
}

/// The pieces in which two lists of ranges differ. Both ascend.
fn compare(a: &[Range], b: &[Range]) -> Vec<Piece> {
    let mut found: Vec<Piece> = Vec::new();
    let (mut i, mut j, mut iova) = (0, 0, 0_u64);
    while a.get(i).is_some() || b.get(j).is_some() {
        let ((from, left), (to, right)) = (at(a.get(i), iova), at(b.get(j), iova));
        let bytes = left.min(right);
        if from != to {
            let joins = found.last_mut().filter(|last| {
                let next = |side: Option<(u64, Access)>, now: Option<(u64, Access)>| match (side, now) {
                    (None, None) => true,
                    (Some((start, old)), Some((start2, new))) => {
                        old == new && start.wrapping_add(last.bytes) == start2
                    }
                    _ => false,
                };
                last.iova.wrapping_add(last.bytes) == iova && next(last.from, from) && next(last.to, to)
            });
            match joins {
                Some(last) => last.bytes = last.bytes.saturating_add(bytes),
                None => found.push(Piece { iova, bytes, from, to }),
            }
        }
        let Some(next) = iova.checked_add(bytes) else { break };
        iova = next;
        i += usize::from(a.get(i).is_some_and(|range| range.iova.saturating_add(range.bytes) <= iova));
        j += usize::from(b.get(j).is_some_and(|range| range.iova.saturating_add(range.bytes) <= iova));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::PhysAddr;

    fn range(iova: u64, target: u64, bytes: u64) -> Range {
        Range { iova, target: PhysAddr::new(target), bytes, access: Access::ALL, level: 0 }
    }

    #[test]
    fn pieces_are_what_differs_and_nothing_else() {
        let a = [range(0x1000, 0x10_0000, 0x4000), range(0x8000, 0x20_0000, 0x1000)];
        assert_eq!(compare(&a, &a), []);
        // Split where nothing changes, bent in one page, one more page at the end, one range gone.
        let b = [
            range(0x1000, 0x10_0000, 0x1000),
            range(0x2000, 0x30_0000, 0x1000),
            range(0x3000, 0x10_2000, 0x3000),
        ];
        let all = Access::ALL;
        let expected = [
            Piece { iova: 0x2000, bytes: 0x1000, from: Some((0x10_1000, all)), to: Some((0x30_0000, all)) },
            Piece { iova: 0x5000, bytes: 0x1000, from: None, to: Some((0x10_4000, all)) },
            Piece { iova: 0x8000, bytes: 0x1000, from: Some((0x20_0000, all)), to: None },
        ];
        assert_eq!(compare(&a, &b), expected);
    }

    #[test]
    fn frames_of_one_side_only_are_found() {
        let run = |first, count| Extent::new(Frame::new(first), count).unwrap();
        let (a, b) = ([run(0, 10), run(20, 5)], [run(3, 2), run(8, 14)]);
        assert_eq!(without(&a, &b), [run(0, 3), run(5, 3), run(22, 3)]);
        assert_eq!(without(&b, &a), [run(10, 10)]);
    }
}
