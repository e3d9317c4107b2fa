//! Who can read or write a frame, through which entries; and what hardware itself reads there.
//!
//! [`reach`] goes through every page table whose ranges touch the frame, and names every leaf that leads there, for every
//! requester that uses the table. Requesters in pass-through reach every frame, and so does everybody behind a unit that
//! does not translate. [`roles`] says what the frame is to
//! hardware or to a handover: a table, a queue, preserved memory.

use crate::image::Memory;
use crate::model::{Model, Route, Space};
use crate::tables::{self, Access, Budget, Leaf, Step, Visit};
use spec::{PAGE_SIZE, PhysAddr, SourceId};
use std::ops::ControlFlow;

/// Ways that are kept at most; more are counted.
const MAX_WAYS: usize = 1 << 16;

/// A way by which a requester reaches a frame.
#[derive(Debug, Clone)]
pub struct Way {
    /// Number of the unit.
    pub unit: usize,
    /// Who.
    pub source: SourceId,
    /// With which PASID.
    pub pasid: Option<u32>,
    /// Address of the context entry.
    pub context_at: PhysAddr,
    /// Address of the PASID entry.
    pub pasid_at: Option<PhysAddr>,
    /// By which I/O address (the frame's first byte, or the first one that leads there).
    pub iova: u64,
    /// What may be done.
    pub access: Access,
    /// The entries that lead there, top first; none in pass-through.
    pub path: Vec<Step>,
}

/// Who reaches a frame.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Ways, by unit and requester.
    pub ways: Vec<Way>,
    /// Ways that were not kept.
    pub left_off: u64,
    /// Page tables of which the image lacks a part: there may be more ways.
    pub uncertain: Vec<usize>,
    /// Units whose tables above the page tables are not known or damaged: there may be more ways.
    pub uncertain_units: Vec<usize>,
    /// Units that do not translate: whoever is behind one reaches every frame.
    pub off: Vec<usize>,
}

/// Who can read or write the frame at `at`.
#[must_use]
pub fn reach(memory: &Memory, model: &Model, at: PhysAddr) -> Reach {
    let frame = at.frame().start();
    let mut found = Reach::default();
    let mut leaves: Vec<Option<Vec<Found>>> = vec![None; model.spaces.len()];
    for (unit, number) in model.units.iter().zip(0..) {
        if unit.translating == Some(false) {
            found.off.push(number);
        }
        if unit.mode.is_none() || !unit.problems.is_empty() || unit.pasids_left_off {
            found.uncertain_units.push(number);
        }
        for requester in &unit.requesters {
            for attachment in &requester.attachments {
                let way = |iova, access, path| Way {
                    unit: number,
                    source: requester.source,
                    pasid: attachment.pasid.map(|pasid| pasid.number),
                    context_at: requester.context_at,
                    pasid_at: attachment.pasid.map(|pasid| pasid.at),
                    iova,
                    access,
                    path,
                };
                match attachment.route {
                    Route::PassThrough => found.add(way(frame.get(), Access::ALL, Vec::new())),
                    Route::Refused => {}
                    Route::Space(space) => {
                        let here = leaves[space].get_or_insert_with(|| {
                            let table = &model.spaces[space];
                            if !table.troubles.is_empty() {
                                found.uncertain.push(space);
                            }
                            leaves_to(memory, model, table, frame)
                        });
                        for (iova, access, path) in here.iter() {
                            found.add(way(*iova, *access, path.clone()));
                        }
                    }
                }
            }
        }
    }
    found
}

/// An address that leads to the frame, what may be done, and the entries.
type Found = (u64, Access, Vec<Step>);

impl Reach {
    /// Whether nobody can reach the frame but those who are named.
    #[must_use]
    pub const fn is_certain(&self) -> bool {
        self.uncertain.is_empty() && self.uncertain_units.is_empty()
    }

    fn add(&mut self, way: Way) {
        if self.ways.len() < MAX_WAYS {
            self.ways.push(way);
        } else {
            self.left_off += 1;
        }
    }
}

/// The leaves of a page table that lead to `frame`.
fn leaves_to(memory: &Memory, model: &Model, space: &Space, frame: PhysAddr) -> Vec<Found> {
    let touches = |range: &crate::model::Range| {
        range.target.get() < frame.get().saturating_add(PAGE_SIZE)
            && range.target.get().saturating_add(range.bytes) > frame.get()
    };
    let mut found = Vec::new();
    if space.ranges_left_off == 0 && !space.ranges.iter().any(touches) {
        return found;
    }
    let mut budget = Budget::default();
    let _ = tables::walk(memory, space.top, Some(model.hardware), &mut budget, &mut |visit| {
        if let Visit::Leaf(leaf) = visit {
            match space.top.through {
                None => direct(&leaf, frame, &mut found),
                Some((second, levels)) => nested(memory, &leaf, second, levels, frame, &mut found),
            }
        }
        if found.len() < MAX_WAYS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

fn direct(leaf: &Leaf<'_>, frame: PhysAddr, found: &mut Vec<Found>) {
    if let Some(within) = frame.get().checked_sub(leaf.target.get()).filter(|within| *within < leaf.bytes()) {
        found.push((leaf.iova.wrapping_add(within), leaf.access, leaf.path.to_vec()));
    }
}

/// A leaf of a first stage, whose target the second stage moves.
fn nested(
    memory: &Memory,
    leaf: &Leaf<'_>,
    second: PhysAddr,
    levels: u8,
    frame: PhysAddr,
    found: &mut Vec<Found>,
) {
    let mut done = 0;
    while done < leaf.bytes() && found.len() < MAX_WAYS {
        let address = leaf.target.get().wrapping_add(done);
        let piece = tables::look_up(memory, second, levels, address);
        let bytes = piece.map_or(PAGE_SIZE, |(_, _, bytes)| bytes).min(leaf.bytes() - done);
        if let Some((target, access, _)) = piece
            && let Some(within) = frame.get().checked_sub(target.get()).filter(|within| *within < bytes)
        {
            let iova = leaf.iova.wrapping_add(done).wrapping_add(within);
            found.push((iova, leaf.access.and(access), leaf.path.to_vec()));
        }
        done += bytes;
    }
}

/// What the frame at `at` is to hardware and to handovers, in words.
#[must_use]
pub fn roles(model: &Model, at: PhysAddr) -> Vec<String> {
    let frame = at.frame();
    let within = |start: PhysAddr, bytes: u64| {
        let end = start.get().saturating_add(bytes.max(1)).saturating_sub(1) / PAGE_SIZE;
        start.frame() <= frame && frame.number() <= end
    };
    let mut roles = Vec::new();
    for unit in &model.units {
        let name = &unit.registers.name;
        if unit.root_table().is_some_and(|root| root.frame() == frame) && !unit.context_tables.is_empty() {
            roles.push(format!("root table of {name}"));
        }
        for table in unit.context_tables.iter().filter(|table| table.at.frame() == frame) {
            let half = if table.upper { ", upper half" } else { "" };
            roles.push(format!("context table of {name}, bus {:#04x}{half}", table.bus));
        }
        for requester in &unit.requesters {
            for (number, (start, bytes)) in requester.pasid_tables.iter().enumerate() {
                if within(*start, *bytes) {
                    let kind = if number == 0 { "PASID directory" } else { "PASID table" };
                    roles.push(format!("{kind} of {}", requester.source));
                }
            }
        }
        if unit.interrupts.as_ref().is_some_and(|table| within(table.at, 16 * table.size)) {
            roles.push(format!("interrupt table of {name}"));
        }
        if let Some(table) = &unit.interrupts {
            for (index, entry) in table.posted().filter(|(_, entry)| entry.descriptor().frame() == frame) {
                let at = entry.descriptor();
                roles.push(format!(
                    "interrupt entry {index} of {name} is posted to {at}: the unit writes there"
                ));
            }
        }
        let queue = unit.queue.as_ref();
        if queue.is_some_and(|queue| within(queue.at, queue.size << if queue.wide { 5 } else { 4 })) {
            roles.push(format!("invalidation queue of {name}"));
        }
    }
    for (number, space) in model.spaces.iter().enumerate() {
        for (_, level) in space.frames.iter().filter(|(at, _)| at.frame() == frame) {
            roles.push(format!("page table of level {level} of domain {number}, {}", space.format()));
        }
    }
    for kho in &model.handovers {
        handover_roles(kho, at, &mut roles);
    }
    roles
}

fn handover_roles(kho: &crate::kho::Kho, at: PhysAddr, roles: &mut Vec<String>) {
    let frame = at.frame();
    if kho.at.frame() == frame {
        roles.push(format!("root tree of the handover at {}", kho.at));
    }
    if kho.preserved.nodes.iter().any(|node| node.frame() == frame) {
        roles.push(format!("map of preserved memory of the handover at {}", kho.at));
    }
    for blob in &kho.blobs {
        if blob.at.frame() <= frame && at.get() < blob.at.get().saturating_add(blob.bytes) {
            roles.push(format!("blob {:?} of the handover at {}", blob.name, kho.at));
        }
    }
    for session in kho.luo.iter().flat_map(|luo| &luo.sessions) {
        for file in &session.files {
            let runs = file.memfd.iter().flat_map(|memfd| &memfd.runs);
            if runs.into_iter().any(|run| run.contains(frame)) {
                roles.push(format!("memfd {:#x} of session {:?}", file.token, session.name));
            }
        }
    }
    let preserved = if kho.preserved.holds(at) { "preserved" } else { "not preserved" };
    roles.push(format!("{preserved} by the handover at {}", kho.at));
}
