//! The columns of Linux's own files under `/sys/kernel/debug/iommu/intel`, so that `diff` with the kernel's text is empty.
//!
//! Each function writes the content of one file. [`all`] writes them one after another, each after a line `## NAME`.
//! Where Linux takes something out of a driver's memory that no table holds, the idle value is written.

use super::Written;
use crate::image::Memory;
use crate::model::{Attachment, Context, Mode, Model, Requester, Unit};
use crate::tables::{self, Budget, Leaf, Stage, Top, Visit};
use spec::context::TranslationType;
use spec::regs::{REGISTERS, offset};
use spec::scalable::PasidTranslation;
use spec::{PhysAddr, Segment, SourceId};
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::ControlFlow;

/// The files about units.
const FILES: [&str; 4] =
    ["dmar_translation_struct", "iommu_regset", "invalidation_queue", "ir_translation_struct"];

/// Entries that Linux looks at in an interrupt table.
const INTERRUPT_ENTRIES: u32 = 65536;

/// Every file, each after its name.
///
/// # Errors
/// When `out` cannot be written.
pub fn all(out: &mut dyn Write, memory: &Memory, model: &Model) -> Written {
    for name in FILES {
        writeln!(out, "## {name}")?;
        file(out, model, name)?;
    }
    for device in devices(model) {
        let folder = device.pasid.map_or(String::new(), |pasid| format!("/{pasid:x}"));
        let name = format!("{:04x}:{}{folder}", device.segment.0, device.source);
        writeln!(out, "## /sys/kernel/debug/iommu/intel/{name}/domain_translation_struct")?;
        domain_translation_struct(out, memory, model, device)?;
    }
    Ok(())
}

/// The units that Linux makes use of: those that translate with at least one depth of tables.
fn units(model: &Model) -> impl Iterator<Item = &Unit> {
    model.units.iter().filter(|unit| unit.registers.cap().is_none_or(|cap| cap.sagaw() != 0))
}

/// Whose page table is shown: a folder of its own in Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Its segment.
    pub segment: Segment,
    /// Its source id.
    pub source: SourceId,
    /// With this PASID; `None` is without any, which Linux keeps as PASID 0.
    pub pasid: Option<u32>,
}

/// Every device with a context entry, and every PASID of it but 0, ascending.
#[must_use]
pub fn devices(model: &Model) -> BTreeSet<Device> {
    let mut found = BTreeSet::new();
    for unit in units(model) {
        for requester in &unit.requesters {
            let (segment, source) = (unit.registers.segment, requester.source);
            found.insert(Device { segment, source, pasid: None });
            let pasids = requester.attachments.iter().filter_map(|attachment| attachment.pasid);
            let others = pasids.map(|pasid| pasid.number).filter(|number| *number != 0);
            found.extend(others.map(|number| Device { segment, source, pasid: Some(number) }));
        }
    }
    found
}

/// The page tables of `source`, in every segment that knows it, or in all when none does.
///
/// # Errors
/// When `out` cannot be written.
pub fn domains_of(out: &mut dyn Write, memory: &Memory, model: &Model, source: SourceId) -> Written {
    let mut shown = devices(model);
    shown.retain(|device| device.source == source);
    if shown.is_empty() {
        let segments = units(model).map(|unit| unit.registers.segment);
        shown.extend(segments.map(|segment| Device { segment, source, pasid: None }));
    }
    shown.into_iter().try_for_each(|device| domain_translation_struct(out, memory, model, device))
}

/// One of [`FILES`].
fn file(out: &mut dyn Write, model: &Model, name: &str) -> Written {
    match name {
        "dmar_translation_struct" => dmar_translation_struct(out, model),
        "iommu_regset" => iommu_regset(out, model),
        "invalidation_queue" => invalidation_queue(out, model),
        _ => ir_translation_struct(out, model),
    }
}

/// Root, context and PASID entries.
///
/// # Errors
/// When `out` cannot be written.
pub fn dmar_translation_struct(out: &mut dyn Write, model: &Model) -> Written {
    for unit in units(model) {
        let name = &unit.registers.name;
        if unit.translating == Some(false) {
            writeln!(out, "DMA Remapping is not enabled on {name}")?;
            continue;
        }
        let root = unit.root_table().map_or(0, PhysAddr::get);
        writeln!(out, "IOMMU {name}: Root Table Address: {root:#x}")?;
        writeln!(out, "B.D.F\tRoot_entry\t\t\t\tContext_entry\t\t\t\tPASID\tPASID_table_entry")?;
        for requester in unit.requesters.iter().filter(|requester| linux_looks_at(unit, requester)) {
            for attachment in &requester.attachments {
                let (root, context) = (requester.root, requester.context.words());
                write!(out, "{}\t", requester.source)?;
                write!(out, "0x{:016x}:0x{:016x}\t", root[1], root[0])?;
                write!(out, "0x{:016x}:0x{:016x}\t", context[1], context[0])?;
                let raw = attachment.pasid.map_or([0; 8], |pasid| pasid.entry.raw());
                let number = attachment.pasid.map_or(-1, |pasid| i64::from(pasid.number));
                writeln!(out, "{number:<6}\t0x{:016x}:0x{:016x}:0x{:016x}", raw[2], raw[1], raw[0])?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Linux gives a bus up at the first half of it that has no context table.
fn linux_looks_at(unit: &Unit, requester: &Requester) -> bool {
    unit.mode != Some(Mode::Scalable) || requester.root[0] & 1 == 1
}

/// Registers.
///
/// # Errors
/// When `out` cannot be written.
pub fn iommu_regset(out: &mut dyn Write, model: &Model) -> Written {
    for unit in units(model) {
        let registers = &unit.registers;
        writeln!(out, "IOMMU: {} Register Base Address: {:x}", registers.name, registers.base)?;
        writeln!(out, "Name\t\t\tOffset\t\tContents")?;
        for bits in [32, 64] {
            for (name, at) in linux_registers(bits) {
                let value =
                    if bits == 32 { registers.read32(at).map(u64::from) } else { registers.read64(at) };
                if let Some(value) = value {
                    writeln!(out, "{name:<16}\t0x{at:02x}\t\t0x{value:016x}")?;
                }
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The registers that Linux prints, of this width, in its order.
fn linux_registers(bits: u32) -> Vec<(String, u64)> {
    // Not printed: the commands' and the logs' registers, and what lies beyond the memory type ranges.
    let hidden = [offset::CCMD, offset::AFLOG, offset::IQERCD];
    let shown = |at: u64| !hidden.contains(&at) && at <= offset::MTRRDEF && !(0xa0..=0xac).contains(&at);
    let mut list: Vec<(String, u64)> = REGISTERS
        .iter()
        .filter(|register| register.bits == bits && shown(register.offset))
        .map(|register| (register.name.to_owned(), register.offset))
        .collect();
    list.sort_by_key(|(_, at)| *at);
    if bits == 64 {
        let fixed = [
            "FIX64K_00000",
            "FIX16K_80000",
            "FIX16K_A0000",
            "FIX4K_C0000",
            "FIX4K_C8000",
            "FIX4K_D0000",
            "FIX4K_D8000",
            "FIX4K_E0000",
            "FIX4K_E8000",
            "FIX4K_F0000",
            "FIX4K_F8000",
        ];
        let fixed = fixed.iter().zip(offset::MTRR_FIXED);
        list.extend(fixed.map(|(name, at)| (format!("MTRR_{name}"), at)));
        for range in 0..10 {
            let at = offset::MTRR_VARIABLE + 16 * range;
            list.push((format!("MTRR_PHYSBASE{range}"), at));
            list.push((format!("MTRR_PHYSMASK{range}"), at + 8));
        }
    }
    list
}

/// The invalidation queue.
///
/// # Errors
/// When `out` cannot be written.
pub fn invalidation_queue(out: &mut dyn Write, model: &Model) -> Written {
    for unit in units(model) {
        let Some(queue) = &unit.queue else { continue };
        writeln!(out, "Invalidation queue on IOMMU: {}", unit.registers.name)?;
        let (head, tail) = (queue.head.unwrap_or(0), queue.tail.unwrap_or(0));
        writeln!(out, " Base: {:#x}\tHead: {head}\tTail: {tail}", queue.at.get())?;
        let more = if queue.wide { "\t\t\tqw2\t\t\tqw3" } else { "" };
        writeln!(out, "Index\t\tqw0\t\t\tqw1{more}\t\t\tstatus")?;
        for (index, words) in queue.descriptors.iter().enumerate() {
            write!(out, "{index:5}\t{:016x}\t{:016x}", words[0], words[1])?;
            if queue.wide {
                write!(out, "\t{:016x}\t{:016x}", words[2], words[3])?;
            }
            // The driver's own note: 1 while the descriptor is in use, 0 when it is free.
            writeln!(out, "\t{:016x}", u64::from(queue.is_pending(index as u64)))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The interrupt tables: remapped entries, then posted ones.
///
/// # Errors
/// When `out` cannot be written.
pub fn ir_translation_struct(out: &mut dyn Write, model: &Model) -> Written {
    for unit in units(model) {
        if unit.registers.ecap().is_some_and(|ecap| !ecap.ir()) {
            continue;
        }
        writeln!(out, "Remapped Interrupt supported on IOMMU: {}", unit.registers.name)?;
        match &unit.interrupts {
            Some(table) if table.on != Some(false) => {
                writeln!(out, " IR table address:{:x}", table.at.get())?;
                writeln!(out, " Entry SrcID   DstID    Vct IRTE_high\t\tIRTE_low")?;
                for (index, entry) in table.remapped().filter(|(index, _)| *index < INTERRUPT_ENTRIES) {
                    let [low, high] = entry.raw();
                    write!(out, " {index:<5} {} {:08x} {:02x}  ", entry.source(), entry.dst(), entry.v())?;
                    writeln!(out, "{high:016x}\t{low:016x}")?;
                }
            }
            _ => writeln!(out, "Interrupt Remapping is not enabled")?,
        }
        writeln!(out)?;
    }
    writeln!(out, "****\n")?;
    for unit in units(model) {
        if !unit.registers.cap().is_some_and(|cap| cap.pi()) {
            continue;
        }
        writeln!(out, "Posted Interrupt supported on IOMMU: {}", unit.registers.name)?;
        match &unit.interrupts {
            Some(table) => {
                writeln!(out, " IR table address:{:x}", table.at.get())?;
                writeln!(out, " Entry SrcID   PDA_high PDA_low  Vct IRTE_high\t\tIRTE_low")?;
                for (index, entry) in table.posted().filter(|(index, _)| *index < INTERRUPT_ENTRIES) {
                    let [low, high] = entry.raw();
                    let source = SourceId::from_raw(entry.sid() as u16);
                    let descriptor = entry.descriptor().get();
                    write!(out, " {index:<5} {source} {:08x} {:08x} ", descriptor >> 32, descriptor as u32)?;
                    writeln!(out, "{:02x}  {high:016x}\t{low:016x}", entry.vv())?;
                }
            }
            None => writeln!(out, "Interrupt Remapping is not enabled")?,
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The page table of a device: that of the first unit of its segment that has one for it. Units before it that do not
/// translate are named.
///
/// # Errors
/// When `out` cannot be written.
pub fn domain_translation_struct(
    out: &mut dyn Write,
    memory: &Memory,
    model: &Model,
    device: Device,
) -> Written {
    let Device { segment, source, pasid } = device;
    for unit in units(model).filter(|unit| unit.registers.segment == segment) {
        if unit.translating == Some(false) {
            writeln!(out, "DMA Remapping is not enabled on {}", unit.registers.name)?;
            continue;
        }
        // Both ascend: whoever shows every PASID shall not go through all of them for each.
        let known = unit.requesters.binary_search_by_key(&source, |known| known.source);
        let Some(requester) = known.ok().and_then(|known| unit.requesters.get(known)) else { continue };
        let number = |way: &Attachment| way.pasid.map_or(0, |pasid| pasid.number);
        let wanted = requester.attachments.binary_search_by_key(&pasid.unwrap_or(0), number);
        let Some(attachment) = wanted.ok().and_then(|way| requester.attachments.get(way)) else { continue };
        let Some(top) = linux_top(requester, attachment) else { continue };
        write!(out, "Device {:04x}:{source} ", segment.0)?;
        if let Some(pasid) = attachment.pasid {
            write!(out, "with pasid {:x} ", pasid.number)?;
        }
        writeln!(out, "@{:#x}", top.table.get())?;
        return page_table(out, memory, top);
    }
    Ok(())
}

/// The leaves of a page table, each with the entries that lead to it.
fn page_table(out: &mut dyn Write, memory: &Memory, top: Top) -> Written {
    let heads = ["IOVA_PFN", "PML5E", "PML4E", "PDPE", "PDE"];
    writeln!(
        out,
        "{:<17}\t{:<18}\t{:<18}\t{:<18}\t{:<18}\tPTE",
        heads[0], heads[1], heads[2], heads[3], heads[4]
    )?;
    let mut result = Ok(());
    // Linux looks at no reserved bits here.
    let _ = tables::walk(memory, top, None, &mut Budget::default(), &mut |visit| {
        if let Visit::Leaf(leaf) = visit {
            result = leaf_line(out, &leaf, top);
        }
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result
}

/// The page table that Linux shows for it: of nested ones the second stage; of any, as many levels as AW says.
fn linux_top(requester: &Requester, attachment: &Attachment) -> Option<Top> {
    let top = |stage, table, levels| Some(Top { stage, table, levels, through: None });
    match (requester.context, attachment.pasid) {
        (Context::Legacy(entry), _) => match entry.translation_type() {
            TranslationType::SecondStage | TranslationType::SecondStageDeviceTlb => {
                top(Stage::Second, entry.top_table(), entry.levels())
            }
            TranslationType::PassThrough | TranslationType::Reserved => None,
        },
        (Context::Scalable(_), Some(pasid)) => {
            let entry = pasid.entry;
            let levels = entry.second_stage_levels();
            match entry.translation() {
                PasidTranslation::FirstStage => top(Stage::First, entry.first_stage_table(), levels),
                PasidTranslation::SecondStage | PasidTranslation::Nested => {
                    top(Stage::Second, entry.second_stage_table(), levels)
                }
                PasidTranslation::PassThrough | PasidTranslation::Reserved(_) => None,
            }
        }
        (Context::Scalable(_), None) => None,
    }
}

/// One leaf with the entries above it; columns below the leaf stay away.
fn leaf_line(out: &mut dyn Write, leaf: &Leaf<'_>, top: Top) -> Written {
    let mut by_level = [0_u64; tables::MAX_LEVELS];
    for step in leaf.path {
        by_level[usize::from(step.level)] = step.raw;
    }
    // Linux sums the address up without extending its sign.
    let iova = leaf.iova & (u64::MAX >> (52 - 9 * u32::from(top.levels)));
    write!(out, "0x{:013x} |", iova >> 12)?;
    for (level, raw) in by_level.iter().enumerate().rev() {
        if level >= usize::from(leaf.level) || level >= 2 {
            write!(out, "\t0x{raw:016x}")?;
        }
    }
    writeln!(out)
}
