//! The model against what an independent walker wrote down of the same memory.

mod common;

use common::{WITH_UNIT, folders, model_of, text};
use holdover_inspect::image::Memory;
use holdover_inspect::kho::Kho;
use holdover_inspect::model::{Attachment, Context, Mode, Model, Requester, Route, Unit};
use holdover_inspect::tables::{self, Budget, Hardware, Visit};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::ControlFlow;

/// The walker's text, from our model.
fn walk_text(memory: &Memory, model: &Model) -> String {
    let mut text = String::new();
    let unit = &model.units[0];
    let r = &unit.registers;
    let (gsts, mode) = (r.gsts().unwrap(), unit.mode.unwrap());
    writeln!(
        text,
        "VER {:#x} CAP {:#x} ECAP {:#x} GSTS {:#x} RTADDR {:#x} FSTS {:#x} FECTL {:#x} IQH {:#x} IQT {:#x} IQA {:#x} IRTA {:#x}",
        r.version().unwrap().raw(), r.cap().unwrap().raw(), r.ecap().unwrap().raw(), gsts.raw(),
        r.rtaddr().unwrap().raw(), r.read32(0x34).unwrap(), r.read32(0x38).unwrap(), r.iqh().unwrap().raw(),
        r.iqt().unwrap().raw(), r.iqa().unwrap().raw(), r.irta().unwrap().raw(),
    )
    .unwrap();
    let bit = u8::from;
    writeln!(
        text,
        " TES={} RTPS={} QIES={} IRES={} IRTPS={} TTM={}",
        bit(gsts.tes()),
        bit(gsts.rtps()),
        bit(gsts.qies()),
        bit(gsts.ires()),
        bit(gsts.irtps()),
        u8::from(mode == Mode::Scalable),
    )
    .unwrap();
    for table in &unit.context_tables {
        let kind = if mode == Mode::Scalable { "sm-ctx" } else { "ctx" };
        let first = if table.upper { 128 } else { 0 };
        writeln!(text, "root[{:#x}] {kind} table {:#x} devfn>={first}", table.bus, table.at.get()).unwrap();
        let here = |requester: &&Requester| {
            requester.source.bus() == table.bus
                && (mode == Mode::Legacy || (requester.source.devfn() >= 0x80) == table.upper)
        };
        for requester in unit.requesters.iter().filter(here) {
            requester_text(&mut text, memory, model, requester);
        }
    }
    let interrupts = unit.interrupts.as_ref().unwrap();
    writeln!(
        text,
        "IRTE table {:#x} size {} present {}",
        interrupts.at.get(),
        interrupts.size,
        interrupts.entries.len()
    )
    .unwrap();
    totals(&mut text, unit, model);
    text
}

fn requester_text(text: &mut String, memory: &Memory, model: &Model, requester: &Requester) {
    match requester.context {
        Context::Legacy(entry) => {
            write!(
                text,
                "  {} FPD={} TT={} slpt={:#x} AW={} ({}-level) DID={}",
                requester.source,
                u8::from(entry.fpd()),
                entry.tt(),
                entry.top_table().get(),
                entry.aw(),
                entry.levels(),
                entry.did(),
            )
            .unwrap();
            space_text(text, memory, model, &requester.attachments[0]);
        }
        Context::Scalable(entry) => {
            let bit = u8::from;
            writeln!(
                text,
                "  {} FPD={} DTE={} PASIDE={} PRE={} PDTS={} ({} dir entries) pasiddir={:#x} RID_PASID={:#x}",
                requester.source,
                bit(entry.fpd()),
                bit(entry.dte()),
                bit(entry.paside()),
                bit(entry.pre()),
                entry.pdts(),
                entry.directory_entries(),
                entry.directory().get(),
                entry.rid_pasid(),
            )
            .unwrap();
            for attachment in &requester.attachments {
                let pasid = attachment.pasid.unwrap();
                let (entry, kind) = (pasid.entry, ["", "FL", "SL", "NEST", "PT"]);
                write!(
                    text,
                    "    PASID {:#x} PGTT={} ({}) AW={} DID={} slpt={:#x} flpt={:#x} FLPM={}",
                    pasid.number,
                    entry.pgtt(),
                    kind[entry.pgtt() as usize],
                    entry.aw(),
                    entry.did(),
                    entry.second_stage_table().get(),
                    entry.first_stage_table().get(),
                    entry.fspm(),
                )
                .unwrap();
                space_text(text, memory, model, attachment);
            }
        }
    }
}

fn space_text(text: &mut String, memory: &Memory, model: &Model, attachment: &Attachment) {
    let Route::Space(number) = attachment.route else { panic!("no page table") };
    let space = &model.spaces[number];
    for (letter, counts) in [("L", space.leaves), ("T", space.tables)] {
        for (level, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            write!(text, " {letter}{}={count}", level + 1).unwrap();
        }
    }
    writeln!(text, " mapped={}KiB", space.mapped >> 10).unwrap();
    let _ =
        tables::walk(memory, space.top, Some(Hardware::default()), &mut Budget::default(), &mut |visit| {
            if let Visit::Leaf(leaf) = visit {
                writeln!(
                    text,
                    "      iova {:#014x} -> {:#012x} size 2^{} bits {:#x}",
                    leaf.iova,
                    leaf.target.get(),
                    leaf.bytes().ilog2(),
                    leaf.raw() & 0xfff,
                )
                .unwrap();
            }
            ControlFlow::Continue(())
        });
}

fn totals(text: &mut String, unit: &Unit, model: &Model) {
    let ids: BTreeSet<u16> =
        unit.requesters.iter().flat_map(|r| &r.attachments).map(|a| a.domain_id).collect();
    let frames: BTreeSet<_> = model.spaces.iter().flat_map(|s| &s.frames).map(|(at, _)| *at).collect();
    let leaves: u64 = model.spaces.iter().map(|space| space.leaf_count()).sum();
    write!(
        text,
        "{} context entries, {} domain ids, {} distinct page-table pages, {leaves} leaves;",
        unit.requesters.len(),
        ids.len(),
        frames.len(),
    )
    .unwrap();
}

#[test]
fn every_line_of_every_walk_is_found_again() {
    for image in WITH_UNIT {
        for folder in folders(image) {
            let (memory, model) = model_of(&folder, "reach.pages.zst");
            assert!(model.is_whole(), "{image}: {model:?}");
            let theirs = text(&folder, "walk.txt");
            let ours = walk_text(&memory, &model);
            assert_eq!(ours.lines().count(), theirs.lines().count(), "{image}");
            for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
                // The last line goes on about the walker itself.
                let theirs = theirs.split_inclusive(';').next().unwrap();
                assert_eq!(ours, theirs, "{image}, line {}", number + 1);
            }
        }
    }
}

/// The other walker's text about a handover, from our model.
fn kho_text(kho: &Kho) -> String {
    let mut text = String::new();
    writeln!(text, "KHO FDT at {:#x} totalsize {}", kho.at.get(), kho.bytes).unwrap();
    writeln!(text, "   /compatible kho-v4\n   /preserved-memory-map {:#x}", kho.map.get()).unwrap();
    for blob in &kho.blobs {
        writeln!(text, "   /{}/blob-size {:#x}", blob.name, blob.bytes).unwrap();
        writeln!(text, "   /{}/preserved-data {:#x}", blob.name, blob.at.get()).unwrap();
    }
    let preserved = &kho.preserved;
    writeln!(text, "preserved: {} pages; by order {:?}", preserved.frames(), preserved.by_order).unwrap();
    let extents: Vec<String> = preserved
        .extents
        .iter()
        .take(24)
        .map(|extent| format!("{:#x}-{:#x}", extent.start().get(), extent.end().start().get()))
        .collect();
    writeln!(text, " extents: {} (first 24 of {} extents)", extents.join(" "), preserved.extents.len())
        .unwrap();
    let luo = kho.luo.as_ref().unwrap();
    let python = |yes: bool| if yes { "True" } else { "False" };
    writeln!(
        text,
        "LUO @{:#x} preserved={} compat b'{}' num {} sessions {:#x} flbs {:#x}",
        luo.at.get(),
        python(preserved.holds(luo.at)),
        luo.compatible,
        luo.updates,
        luo.sessions_at.get(),
        luo.flbs_at.get(),
    )
    .unwrap();
    writeln!(
        text,
        " session block @{:#x} preserved={} next 0x0 count {}",
        luo.blocks[0].get(),
        python(preserved.holds(luo.blocks[0])),
        luo.sessions.len(),
    )
    .unwrap();
    for session in &luo.sessions {
        writeln!(
            text,
            "  session \"{}\" files {:#x} count {}",
            session.name,
            session.files_at.get(),
            session.count
        )
        .unwrap();
        for file in &session.files {
            let data = spec::PhysAddr::new(file.data);
            writeln!(
                text,
                "   file compat \"{}\" data {:#x} token {:#x} preserved={}",
                file.compatible,
                file.data,
                file.token,
                python(preserved.holds(data)),
            )
            .unwrap();
            let memfd = file.memfd.as_ref().unwrap();
            let record = &memfd.record;
            writeln!(
                text,
                "    memfd pos {} size {:#x} nr_folios {} kho_vmalloc first={:#x} total_pages={} flags={:#x} order={}",
                record.pos, record.size, record.nr_folios, record.folios.first, record.folios.total_pages,
                record.folios.flags, record.folios.order,
            )
            .unwrap();
            let first = &memfd.first[..4];
            let folios: Vec<String> =
                first.iter().map(|f| format!("('{:#x}', {}, {})", f.pfn(), f.flags(), f.index())).collect();
            let kept: Vec<&str> =
                first.iter().map(|f| python(preserved.holds(spec::Frame::new(f.pfn()).start()))).collect();
            writeln!(
                text,
                "    first folios (pfn,flags,index): [{}] preserved [{}]",
                folios.join(", "),
                kept.join(", ")
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn every_line_about_the_handover_is_found_again() {
    for folder in folders("kho") {
        let (_, model) = model_of(&folder, "kho.pages.zst");
        let [kho] = model.handovers.as_slice() else { panic!("{} handovers", model.handovers.len()) };
        assert_eq!(kho.problems, []);
        assert_eq!(kho.preserved.extents.len(), 29);
        assert_eq!(kho.preserved.frames(), 1036);
        let luo = kho.luo.as_ref().unwrap();
        let memfd = luo.sessions[0].files[0].memfd.as_ref().unwrap();
        assert_eq!((memfd.folios, memfd.not_preserved), (1024, 0));
        assert_eq!(kho_text(kho), text(&folder, "khowalk.txt"));
    }
}

#[test]
fn merged_leaves_are_the_same_leaves() {
    let (mut all, mut merged) = (0, 0);
    for image in WITH_UNIT {
        let (memory, model) = model_of(&common::folder(image), "reach.pages.zst");
        for space in &model.spaces {
            let hardware = Some(Hardware::default());
            let mut single = Vec::new();
            let _ = tables::walk(&memory, space.top, hardware, &mut Budget::default(), &mut |visit| {
                if let Visit::Leaf(leaf) = visit {
                    single.push((leaf.iova, leaf.target.get(), leaf.level, leaf.access));
                }
                ControlFlow::Continue(())
            });
            let mut spread = Vec::new();
            let _ = tables::walk_merged(&memory, space.top, hardware, &mut Budget::default(), &mut |visit| {
                if let Visit::Leaf(leaf) = visit {
                    merged += 1;
                    let each = leaf.bytes() / leaf.count;
                    spread.extend((0..leaf.count).map(|index| {
                        (leaf.iova + index * each, leaf.target.get() + index * each, leaf.level, leaf.access)
                    }));
                }
                ControlFlow::Continue(())
            });
            assert_eq!(single, spread, "{image}");
            all += single.len();
        }
    }
    assert!(merged < all, "{merged} of {all}");
}
