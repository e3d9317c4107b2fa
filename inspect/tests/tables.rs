//! Page tables of every format and depth, made at random, against the list of mappings they were made from.

mod common;

use common::folder;
use common::synthetic::Pages;
use holdover_inspect::model::{FindKho, Limits, Model};
use holdover_inspect::reach;
use holdover_inspect::registers::{self, Registers, USUAL_BASE};
use holdover_inspect::tables::{Access, Hardware, Stage};
use holdover_inspect::translate::{Asker, Outcome, translate};
use proptest::prelude::*;
use spec::fault::Reason;
use spec::{PhysAddr, SourceId};
use std::collections::BTreeMap;

const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const PASIDS: u64 = 0x4000;
const TOP: u64 = 0x1_0000;

/// How requests get to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Legacy,
    ScalableSecond,
    ScalableFirst,
}

impl Way {
    fn stage(self) -> Stage {
        if self == Self::ScalableFirst { Stage::First } else { Stage::Second }
    }
}

/// A mapping: its index at each level (lowest last), the level of its leaf, its target and what it lets pass.
#[derive(Debug, Clone)]
struct Mapping {
    indices: Vec<u64>,
    level: u8,
    frame: u64,
    access: Access,
}

/// What was mapped: bytes, target, access.
type Mapped = BTreeMap<u64, (u64, u64, Access)>;

fn bits(stage: Stage, access: Access, leaf_above_0: bool) -> u64 {
    let large = if leaf_above_0 { 0x80 } else { 0 };
    large
        | match stage {
            Stage::Second => u64::from(access.read) | u64::from(access.write) << 1,
            // Present, user, and writable or not.
            Stage::First => 0b101 | u64::from(access.write) << 1,
        }
}

/// Builds a unit with one requester, 00:00.0, whose table holds the mappings; those that get in each other's way are left
/// out. `narrow` is what the entry of each top slot lets pass.
fn build(way: Way, levels: u8, mappings: &[Mapping], narrow: &BTreeMap<u64, Access>) -> (Pages, Mapped) {
    let (mut pages, mut mapped) = (Pages::default(), Mapped::new());
    let stage = way.stage();
    pages.set(ROOT, CONTEXT | 1);
    match way {
        Way::Legacy => {
            pages.set(CONTEXT, TOP | 1);
            pages.set(CONTEXT + 8, 7 << 8 | u64::from(levels - 2));
        }
        _ => {
            pages.set(CONTEXT, DIRECTORY | 1);
            pages.set(DIRECTORY, PASIDS | 1);
            pages.set(PASIDS + 8, 7);
            let aw = u64::from(levels.min(4) - 2) << 2;
            pages.set(
                PASIDS,
                if stage == Stage::Second {
                    TOP | 2 << 6 | u64::from(levels - 2) << 2 | 1
                } else {
                    aw | 1 << 6 | 1
                },
            );
            if stage == Stage::First {
                pages.set(PASIDS + 16, TOP | if levels == 5 { 4 } else { 0 });
            }
        }
    }
    pages.zero(TOP);
    let mut tables: BTreeMap<Vec<u64>, u64> = BTreeMap::from([(Vec::new(), TOP)]);
    let mut leaves: BTreeMap<Vec<u64>, ()> = BTreeMap::new();
    for mapping in mappings {
        let depth = usize::from(levels - mapping.level);
        let path = mapping.indices[..depth].to_vec();
        let clash =
            (1..=depth).any(|length| leaves.contains_key(&path[..length])) || tables.contains_key(&path);
        if clash {
            continue;
        }
        let top_access =
            if depth > 1 { narrow.get(&path[0]).copied().unwrap_or(Access::ALL) } else { Access::ALL };
        let mut table = TOP;
        for length in 1..depth {
            let next = TOP + 0x1000 * tables.len() as u64;
            let known = *tables.entry(path[..length].to_vec()).or_insert(next);
            pages.zero(known);
            let passes = if length == 1 { top_access } else { Access::ALL };
            pages.set(table + 8 * path[length - 1], known | bits(stage, passes, false));
            table = known;
        }
        let span = 1_u64 << (12 + 9 * u32::from(mapping.level));
        let target = (mapping.frame << 12) & !(span - 1);
        pages.set(table + 8 * path[depth - 1], target | bits(stage, mapping.access, mapping.level > 0));
        leaves.insert(path.clone(), ());
        let iova = (0..)
            .zip(&path)
            .fold(0_u64, |iova, (step, index)| iova | index << (12 + 9 * u32::from(levels - 1 - step as u8)));
        let width = 12 + 9 * u32::from(levels);
        let high = stage == Stage::First && iova >> (width - 1) == 1;
        let iova = if high { iova | u64::MAX << width } else { iova };
        mapped.insert(iova, (span, target, mapping.access.and(top_access)));
    }
    (pages, mapped)
}

fn registers_of(way: Way) -> Registers {
    let mut window = std::fs::read(folder("min-sm-sl").join("vtd-regs.bin")).unwrap();
    let mode = if way == Way::Legacy { 0 } else { 0x400 };
    window[0x20..0x28].copy_from_slice(&(ROOT | mode).to_le_bytes());
    let all = 0x80d2_008c_222f_0606_u64 | 0xe00 | 0x3f << 16 | 1 << 60;
    window[0x08..0x10].copy_from_slice(&all.to_le_bytes());
    window[0x10..0x18].copy_from_slice(&(0x4998_80f0_0f4a_u64 | 1 << 46 | 1 << 47).to_le_bytes());
    registers::parse(&window, USUAL_BASE).unwrap().remove(0)
}

fn mapping(way: Way) -> impl Strategy<Value = Mapping> {
    let index = prop::sample::select(vec![0_u64, 1, 2, 255, 256, 511]);
    let access = if way == Way::ScalableFirst {
        prop::sample::select(vec![Access::ALL, Access { read: true, write: false }])
    } else {
        let (read, write) = (Access { read: true, write: false }, Access { read: false, write: true });
        prop::sample::select(vec![Access::ALL, read, write])
    };
    // Not among the interrupt messages, where no translation may lead.
    (prop::collection::vec(index, 5), 0_u8..3, 0x10_0000_u64..0x100_0000, access)
        .prop_map(|(indices, level, frame, access)| Mapping { indices, level, frame, access })
}

fn any_table() -> impl Strategy<Value = (Way, u8, Vec<Mapping>, BTreeMap<u64, Access>)> {
    let way = prop::sample::select(vec![Way::Legacy, Way::ScalableSecond, Way::ScalableFirst]);
    way.prop_flat_map(|way| {
        let levels = if way == Way::ScalableFirst { 4_u8..6 } else { 3_u8..6 };
        let read_only = Just(Access { read: true, write: false });
        let narrow = prop::collection::btree_map(prop::sample::select(vec![0_u64, 1, 511]), read_only, 0..2);
        (Just(way), levels, prop::collection::vec(mapping(way), 0..24), narrow)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
    ))]

    #[test]
    fn walk_translation_and_reach_know_every_mapping_and_no_other((way, levels, mappings, narrow) in any_table()) {
        let (pages, mapped) = build(way, levels, &mappings, &narrow);
        let memory = pages.memory();
        let unit = registers_of(way);
        let model = Model::build(&memory, vec![unit.clone()], Hardware::default(), FindKho::No, Limits::default());
        prop_assert_eq!(&model.units[0].problems, &Vec::new());
        let [space] = model.spaces.as_slice() else { panic!("{:?}", model.spaces) };
        prop_assert_eq!((space.top.stage, space.top.levels), (way.stage(), levels));
        prop_assert_eq!(&space.troubles, &Vec::new());
        prop_assert_eq!(space.leaf_count(), mapped.len() as u64);
        prop_assert_eq!(space.mapped, mapped.values().map(|(bytes, ..)| bytes).sum::<u64>());
        // Every mapping lies within one range, and ranges hold nothing more.
        prop_assert_eq!(space.ranges.iter().map(|range| range.bytes).sum::<u64>(), space.mapped);
        let asker = Asker { source: SourceId::from_raw(0), pasid: None };
        let ask = |iova| translate(&memory, &unit, Hardware::default(), asker, iova).outcome;
        for (&iova, &(bytes, target, access)) in &mapped {
            let range = space.ranges.iter().find(|range| iova >= range.iova && iova - range.iova < range.bytes).unwrap();
            prop_assert_eq!(range.target.get() + (iova - range.iova), target);
            prop_assert_eq!(range.access, access);
            for offset in [0, bytes - 1] {
                if (0xfee0_0000..0xfef0_0000).contains(&(iova + offset)) {
                    continue;
                }
                let Outcome::Translated { target: found, leaf, read, write } = ask(iova + offset) else {
                    panic!("{iova:#x}: {:?}", ask(iova + offset))
                };
                prop_assert_eq!((found.get(), leaf), (target + offset, Some(bytes)));
                prop_assert_eq!((read.is_ok(), write.is_ok()), (access.read, access.write));
            }
            let next = iova.wrapping_add(bytes);
            let is_mapped = mapped.range(..=next).next_back().is_some_and(|(start, (bytes, ..))| next - start < *bytes);
            if !is_mapped {
                prop_assert!(!ask(next).passes() || (0xfee0_0000..0xfef0_0000).contains(&next), "{:#x}", next);
            }
            let found = reach::reach(&memory, &model, PhysAddr::new(target));
            prop_assert!(found.ways.iter().any(|way| way.iova == iova && way.access == access));
            prop_assert_eq!(
                found.ways.len(),
                mapped.values().filter(|(bytes, other, _)| (*other..other + bytes).contains(&target)).count()
            );
        }
    }
}

#[test]
fn user_requests_need_the_user_bit_at_every_level() {
    let mapping = Mapping { indices: vec![0; 5], level: 0, frame: 0x10_0000, access: Access::ALL };
    let (mut pages, _) = build(Way::ScalableFirst, 4, &[mapping], &BTreeMap::new());
    pages.set(TOP, (TOP + 0x1000) | 0b011);
    let memory = pages.memory();
    let asker = Asker { source: SourceId::from_raw(0), pasid: None };
    let outcome =
        translate(&memory, &registers_of(Way::ScalableFirst), Hardware::default(), asker, 0).outcome;
    let Outcome::Refused { read, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(read.reason, Some(Reason::USER_DENIED));
}

#[test]
fn a_leaf_may_not_lead_to_where_interrupt_messages_go() {
    let mapping = Mapping { indices: vec![0; 5], level: 0, frame: 0xf_ee00, access: Access::ALL };
    for (way, reason) in [
        (Way::Legacy, Reason::OUTPUT_IN_INTERRUPT_RANGE),
        (Way::ScalableFirst, Reason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE),
    ] {
        let (pages, _) = build(way, 4, std::slice::from_ref(&mapping), &BTreeMap::new());
        let asker = Asker { source: SourceId::from_raw(0), pasid: None };
        let outcome = translate(&pages.memory(), &registers_of(way), Hardware::default(), asker, 0).outcome;
        let Outcome::Refused { read, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(read.reason, Some(reason));
    }
}

#[test]
fn requests_without_pasid_take_rid_pasid_and_requests_with_one_their_own() {
    let mapping = Mapping { indices: vec![0; 5], level: 0, frame: 0x10_0000, access: Access::ALL };
    let (mut pages, _) = build(Way::ScalableSecond, 4, &[mapping], &BTreeMap::new());
    // PASID 5 passes through, and is what requests without PASID take; PASIDs are served.
    pages.set(PASIDS + 64 * 5, 4 << 6 | 1);
    pages.set(CONTEXT, DIRECTORY | 1 << 3 | 1);
    pages.set(CONTEXT + 8, 5);
    let memory = pages.memory();
    let mut unit = registers_of(Way::ScalableSecond);
    let ecap = registers::named("ECAP").unwrap();
    unit.set(ecap, 0x4998_80f0_0f4a | 1 << 46 | 1 << 6 | 1 << 49);
    let ask = |pasid| {
        let asker = Asker { source: SourceId::from_raw(0), pasid };
        translate(&memory, &unit, Hardware::default(), asker, 0x123).outcome
    };
    let target = |outcome| match outcome {
        Outcome::Translated { target, .. } => target.get(),
        other => panic!("{other:?}"),
    };
    assert_eq!(target(ask(None)), 0x123, "RID_PASID is 5: pass-through");
    assert_eq!(target(ask(Some(0))), 0x1_0000_0123);
    let Outcome::Refused { read, .. } = ask(Some(1 << 19)) else { panic!("{:?}", ask(Some(1 << 19))) };
    assert_eq!(read.reason, Some(Reason::PASID_TOO_LARGE));
    let Outcome::Refused { read, .. } = ask(Some(6)) else { panic!("{:?}", ask(Some(6))) };
    assert_eq!(read.reason, Some(Reason::PASID_NOT_PRESENT));
}
