//! Page tables, and the tables above them: circles, tables that name themselves, addresses past the end, levels that
//! hardware does not have.
//!
//! The first byte says what hardware is like and how the tables are read; the rest makes the tables ([`crate::sparse`]).

use crate::files::{LIMITS, chosen, show};
use crate::sparse::{FIRST, Sparse};
use inspect::model::{FindKho, Model, Route};
use inspect::registers::{Registers, USUAL_BASE, named};
use inspect::tables::{self, Budget, Hardware, Stage, Top, Visit};
use inspect::translate::{Asker, Outcome, translate};
use spec::PhysAddr;
use spec::regs::{Cap, Ecap};
use std::ops::ControlFlow;

/// Pages that tables may lie in.
const PAGES: u8 = 24;
/// What a walk may read: more tables than there are pages.
const BUDGET: Budget = Budget { tables: 60, repeats: 12 };
/// Leaves that are held against a second reader.
const COMPARED: usize = 16;

pub(crate) fn run(data: &[u8]) {
    let [how, rest @ ..] = data else { return };
    let memory = Sparse::new(rest, PAGES);
    let stage = if how & 1 == 0 { Stage::Second } else { Stage::First };
    // Two to five levels; now and then a number that no table has.
    let levels = how >> 1 & 7;
    let nested = how & 0x10 != 0;
    let through = nested.then_some((PhysAddr::new(FIRST + 0x8000), 2 + (how >> 1 & 3)));
    walk(&memory, Top { stage, table: PhysAddr::new(FIRST), levels, through });
    // Every table above page tables may be full: much more to read, so not each time.
    if how & 0x80 == 0 {
        model(&memory, *how, chosen(data));
    }
}

/// One page table by itself.
fn walk(memory: &Sparse, top: Top) {
    let hardware = Hardware { address_bits: 46, snoop_control: true };
    let mut budget = BUDGET;
    let (mut tables, mut leaves, mut problems) = (0_u64, 0_u64, 0_u64);
    let mut first = Vec::new();
    let mut last = None;
    let _ = memory.reads();
    let _ = tables::walk(memory, top, Some(hardware), &mut budget, &mut |visit| {
        match visit {
            Visit::Table { path, .. } => {
                tables += 1;
                assert!(path.len() < usize::from(top.levels));
            }
            Visit::Leaf(leaf) => {
                leaves += 1;
                assert_eq!(leaf.path.len(), usize::from(top.levels - leaf.level));
                assert!(last < Some(leaf.iova), "leaves come in the order of addresses");
                last = Some(leaf.iova);
                if first.len() < COMPARED {
                    first.push((leaf.iova, leaf.target, leaf.access));
                }
            }
            Visit::Problem { .. } => problems += 1,
        }
        ControlFlow::Continue(())
    });
    let steps = memory.reads();
    let each = if top.through.is_some() { 6 } else { 1 };
    assert!(tables <= BUDGET.tables);
    assert!(leaves + problems <= 512 * BUDGET.tables + 1);
    assert!(steps <= each * (tables + problems + 1), "{steps} reads for {tables} tables");
    if top.stage == Stage::Second && top.through.is_none() {
        for (iova, target, access) in first {
            let found = tables::look_up(memory, top.table, top.levels, iova);
            assert_eq!(
                found.map(|(target, access, _)| (target, access)),
                Some((target, access)),
                "{iova:#x}"
            );
        }
    }
}

/// Everything below a root table.
fn model(memory: &Sparse, how: u8, closely: bool) {
    let mut unit = Registers::unknown("dmar0".into(), USUAL_BASE);
    let scalable = how & 0x20 != 0;
    // Claims of five levels on hardware of four, and the other way round.
    let widths = if how & 0x40 != 0 { 0b1110 } else { 0b0110 };
    let cap = Cap::ZERO.with_sagaw(widths).with_mgaw(if how & 0x40 != 0 { 56 } else { 47 }).with_nd(6);
    let ecap = Ecap::ZERO.with_pt(true).with_smts(scalable).with_nest(true).with_fsts(true).with_ssts(true);
    let rtaddr = FIRST | u64::from(scalable) << 10;
    for (name, value) in [("RTADDR", rtaddr), ("CAP", cap.raw()), ("ECAP", ecap.raw()), ("GSTS", 0xc000_0000)]
    {
        unit.set(named(name).expect("a register"), value);
    }
    let image = memory.image();
    let model = Model::build(&image, vec![unit], Hardware::default(), FindKho::No, LIMITS);
    assert!(model.spaces.iter().map(|space| space.table_count()).sum::<u64>() <= LIMITS.budget.tables);
    let attachments =
        model.units.iter().flat_map(|unit| &unit.requesters).map(|requester| requester.attachments.len());
    assert!(attachments.sum::<usize>() <= LIMITS.pasids.max(1 << 16));
    agree(&image, &model);
    if closely {
        show(&image, &model);
    }
}

/// What the walk found, a translation by itself finds too, or it says why not.
fn agree(image: &inspect::image::Memory, model: &Model) {
    let unit = &model.units[0];
    for requester in unit.requesters.iter().take(4) {
        for attachment in requester.attachments.iter().take(2) {
            let asker = Asker { source: requester.source, pasid: None };
            let range = match attachment.route {
                Route::Space(space) => model.spaces[space].ranges.first(),
                Route::PassThrough | Route::Refused => None,
            };
            let iova = range.map_or(0x1000, |range| range.iova);
            let translation = translate(image, &unit.registers, model.hardware, asker, iova);
            assert!(translation.steps.len() <= 4 + 5 * 6 + 6, "{} steps", translation.steps.len());
            let first = attachment.pasid.is_none_or(|pasid| pasid.is_rid_pasid);
            if let (Some(range), Outcome::Translated { target, .. }, true) =
                (range, &translation.outcome, first)
            {
                assert_eq!(*target, range.target, "{iova:#x}");
            }
        }
    }
}
