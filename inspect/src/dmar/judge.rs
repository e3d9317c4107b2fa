//! What is odd about a DMAR table.

use super::{Oddity, Report, ScopePart, Weight, kind_name};
use spec::dmar::{Dmar, Scope, Structure, flag, kind, scope_kind};
use spec::{PAGE_SIZE, Segment};
use std::collections::{BTreeMap, BTreeSet};

/// Below this lie the BIOS and what it uses.
const ONE_MEBIBYTE: u64 = 1 << 20;

pub(super) fn say(report: &mut Report, offset: usize, kind: &'static str, weight: Weight, what: String) {
    report.oddities.push(Oddity { offset, kind, weight, what });
}

/// The table's header.
pub(super) fn header(report: &mut Report, table: &Dmar<'_>) {
    let header = table.header();
    let mut odd = |weight, what| say(report, 0, "", weight, what);
    if !table.checksum_holds() {
        odd(Weight::Refuse, "checksum: the table's bytes do not sum to zero".into());
    }
    if header.revision == 0 {
        odd(Weight::Odd, "revision 0".into());
    }
    let bits = table.address_bits();
    if !(32..=64).contains(&bits) {
        odd(Weight::Refuse, format!("host address width of {bits} bits"));
    }
    let known =
        flag::INTR_REMAP | flag::X2APIC_OPT_OUT | flag::DMA_CTRL_PLATFORM_OPT_IN | flag::REMAP_OPT_OUT;
    if header.flags & !known != 0 {
        odd(Weight::Odd, format!("unknown flags {:#x}", header.flags & !known));
    }
    if header.flags & flag::INTR_REMAP == 0 {
        let more = if header.flags & flag::X2APIC_OPT_OUT != 0 { ", but asks not to use x2APIC" } else { "" };
        odd(
            Weight::Odd,
            format!("firmware says that there is no interrupt remapping (INTR_REMAP clear){more}"),
        );
    }
    if header.flags & flag::REMAP_OPT_OUT != 0 {
        odd(Weight::Odd, "firmware asks not to use remapping".into());
    }
    let text = |bytes: &[u8]| bytes.iter().all(|byte| (0x20..0x7f).contains(byte) || *byte == 0);
    if !text(&header.oem_id) || !text(&header.oem_table_id) || !text(&header.creator_id) {
        odd(Weight::Odd, "bytes in the header that are no text".into());
    }
    if header.oem_id.iter().all(|byte| matches!(byte, 0 | b' ')) {
        odd(Weight::Odd, "OEM id is blank".into());
    }
}

/// A device scope of a structure of kind `of`.
pub(super) fn scope(report: &mut Report, of: u16, scope: &Scope<'_>) {
    let header = scope.header;
    let mut odd = |weight, what| say(report, scope.offset, "scope", weight, what);
    if !(scope_kind::PCI_ENDPOINT..=scope_kind::ACPI_NAMESPACE).contains(&header.kind) {
        odd(Weight::Odd, format!("unknown kind of device scope {}", header.kind));
    }
    if let Some(hop) = scope.path().iter().find(|hop| hop.device > 0x1f || hop.function > 7) {
        odd(Weight::Refuse, format!("path through device {:#x}, function {:#x}", hop.device, hop.function));
    }
    if of != kind::SIDP && header.flags != 0 {
        odd(Weight::Odd, format!("flags {:#x} where they are reserved", header.flags));
    }
}

/// A structure by itself.
pub(super) fn structure(
    report: &mut Report,
    structure: &Structure<'_>,
    offset: usize,
    bytes: usize,
    scopes: &[ScopePart],
) {
    let name = kind_name(structure.kind());
    if !bytes.is_multiple_of(4) {
        say(report, offset, name, Weight::Odd, format!("length {bytes} not multiple of 4"));
    }
    if !offset.is_multiple_of(4) {
        say(report, offset, name, Weight::Odd, format!("starts at {offset:#x}, not aligned to 4"));
    }
    match structure {
        Structure::Drhd { drhd, .. } => {
            let base = drhd.register_base.get();
            if base == 0 {
                say(report, offset, name, Weight::Refuse, "register base 0".into());
            } else if !base.is_multiple_of(PAGE_SIZE) {
                say(
                    report,
                    offset,
                    name,
                    Weight::Refuse,
                    format!("register base {base:#x} not page-aligned"),
                );
            } else if drhd.size > 15 || drhd.registers().is_none() {
                let what = format!("a register set of 2^{} pages", drhd.size);
                say(report, offset, name, Weight::Refuse, what);
            }
            let pci = |scope: &&ScopePart| {
                matches!(scope.number, scope_kind::PCI_ENDPOINT | scope_kind::PCI_SUB_HIERARCHY)
            };
            if drhd.includes_all() && scopes.iter().any(|scope| pci(&scope)) {
                let what = "a catch-all unit that names PCI devices besides".into();
                say(report, offset, name, Weight::Odd, what);
            }
            if !drhd.includes_all() && scopes.is_empty() {
                let what = "neither catch-all nor with any device scope: it sees nobody's requests".into();
                say(report, offset, name, Weight::Odd, what);
            }
            let remaps = report.flags & flag::INTR_REMAP != 0;
            if !remaps && scopes.iter().any(|scope| scope.number == scope_kind::IOAPIC) {
                let what = "I/O APIC scopes although INTR_REMAP is clear".into();
                say(report, offset, name, Weight::Odd, what);
            }
        }
        Structure::Rmrr { rmrr, .. } => {
            region(report, offset, rmrr.base.get(), rmrr.limit.get());
            if scopes.is_empty() {
                say(report, offset, name, Weight::Odd, "reserved region of no device".into());
            }
        }
        Structure::Unknown { kind, bytes } => {
            let what = format!("unknown type {kind}, {} bytes", bytes.len());
            say(report, offset, name, Weight::Odd, what);
        }
        Structure::Andd { name: device, .. } if !device.starts_with('\\') => {
            say(report, offset, name, Weight::Odd, "a device name that is no full path".into());
        }
        _ => {}
    }
}

/// A reserved region.
fn region(report: &mut Report, offset: usize, base: u64, limit: u64) {
    let mut odd = |weight, what| say(report, offset, "RMRR", weight, what);
    if base == 0 && limit == 0 {
        odd(Weight::Refuse, "reserved region 0 to 0".into());
    } else if limit < base {
        odd(Weight::Refuse, format!("reserved region turned round ({base:#x} to {limit:#x})"));
    }
    if !base.is_multiple_of(PAGE_SIZE) || !limit.wrapping_add(1).is_multiple_of(PAGE_SIZE) {
        odd(Weight::Refuse, format!("reserved region not page-aligned ({base:#x} to {limit:#x})"));
    } else if limit >= base && limit < ONE_MEBIBYTE {
        odd(Weight::Odd, format!("reserved region below 1 MiB ({base:#x} to {limit:#x})"));
    }
    let wide = report.address_bits;
    if wide < 64 && limit >> wide != 0 {
        let what = format!("reserved region ends beyond {wide} bits of host address ({limit:#x})");
        say(report, offset, "RMRR", Weight::Refuse, what);
    }
}

/// Structures among one another.
pub(super) fn whole(report: &mut Report, table: &Dmar<'_>) {
    units(report, table);
    regions(report, table);
    nodes(report, table);
    acpi_devices(report, table);
    enumeration(report);
}

/// The structures that can be read, with their offsets.
fn readable<'a>(table: &Dmar<'a>) -> Vec<(usize, Structure<'a>)> {
    let mut found = Vec::new();
    let mut structures = table.structures();
    loop {
        let offset = structures.offset();
        match structures.next() {
            Some(Ok(structure)) => found.push((offset, structure)),
            Some(Err(_)) => {}
            None => return found,
        }
    }
}

fn units(report: &mut Report, table: &Dmar<'_>) {
    let mut bases: BTreeMap<u64, usize> = BTreeMap::new();
    // For each segment: the catch-all unit seen so far.
    let mut segments: BTreeMap<Segment, Option<usize>> = BTreeMap::new();
    for (offset, structure) in readable(table) {
        let Structure::Drhd { drhd, .. } = structure else { continue };
        let unit = drhd.unit();
        if let Some(other) = bases.insert(unit.register_base, offset).filter(|_| unit.register_base != 0) {
            let what = format!("the register base of the DRHD at {other:#x} again");
            say(report, offset, "DRHD", Weight::Refuse, what);
        }
        let catch_all = segments.entry(unit.segment).or_default();
        match (*catch_all, drhd.includes_all()) {
            (Some(other), true) => {
                let what =
                    format!("a second catch-all unit of segment {:04x}, after {other:#x}", unit.segment.0);
                say(report, offset, "DRHD", Weight::Refuse, what);
            }
            (Some(other), false) => {
                let what = format!("it follows the catch-all unit of its segment, at {other:#x}");
                say(report, offset, "DRHD", Weight::Odd, what);
            }
            (None, true) => *catch_all = Some(offset),
            (None, false) => {}
        }
    }
    if segments.is_empty() {
        say(report, 0, "", Weight::Refuse, "no remapping unit".into());
    }
    for (segment, _) in segments.iter().filter(|(_, catch_all)| catch_all.is_none()) {
        let what =
            format!("no catch-all unit on segment {:04x}: who is not named is not translated", segment.0);
        say(report, 0, "", Weight::Odd, what);
    }
}

fn regions(report: &mut Report, table: &Dmar<'_>) {
    let mut seen: Vec<(usize, u64, u64)> = Vec::new();
    for (offset, structure) in readable(table) {
        let Structure::Rmrr { rmrr, .. } = structure else { continue };
        let (base, limit) = (rmrr.base.get(), rmrr.limit.get());
        let other = seen.iter().find(|(_, first, last)| base <= *last && *first <= limit);
        if let Some((other, ..)) = other {
            let what = format!("overlaps the reserved region at {other:#x}");
            say(report, offset, "RMRR", Weight::Odd, what);
        }
        seen.push((offset, base, limit));
    }
}

/// RHSA: the memory node of each unit.
fn nodes(report: &mut Report, table: &Dmar<'_>) {
    let mut units: BTreeSet<u64> = BTreeSet::new();
    let mut named: BTreeMap<u64, (usize, u32)> = BTreeMap::new();
    for (offset, structure) in readable(table) {
        match structure {
            Structure::Drhd { drhd, .. } => {
                units.insert(drhd.register_base.get());
            }
            Structure::Rhsa { rhsa } => {
                named.insert(rhsa.register_base.get(), (offset, rhsa.proximity_domain.get()));
            }
            _ => {}
        }
    }
    for (base, (offset, _)) in named.iter().filter(|(base, _)| !units.contains(base)) {
        say(report, *offset, "RHSA", Weight::Odd, format!("RHSA base {base:#x} names no DRHD"));
    }
    let known = units.iter().filter(|base| named.contains_key(base)).count();
    if known > 0 && known < units.len() {
        say(report, 0, "", Weight::Odd, format!("RHSA for {known} of {} units only", units.len()));
    }
    let domains: BTreeSet<u32> = named.values().map(|(_, domain)| *domain).collect();
    if named.len() > 1 && domains.len() == 1 {
        say(report, 0, "", Weight::Odd, format!("all {} RHSA claim one proximity domain", named.len()));
    }
}

/// ANDD: device scopes name them by number.
fn acpi_devices(report: &mut Report, table: &Dmar<'_>) {
    let mut devices: BTreeMap<u8, usize> = BTreeMap::new();
    for (offset, structure) in readable(table) {
        let Structure::Andd { andd, .. } = structure else { continue };
        if let Some(other) = devices.insert(andd.device_number, offset) {
            let what = format!("device number {} again, after {other:#x}", andd.device_number);
            say(report, offset, "ANDD", Weight::Odd, what);
        }
    }
    let (first, last) = (devices.keys().next().copied(), devices.keys().last().copied());
    if let (Some(first), Some(last)) = (first, last)
        && usize::from(last - first) + 1 != devices.len()
    {
        let numbers: Vec<String> = devices.keys().map(|number| format!("{number:x}")).collect();
        say(report, 0, "", Weight::Odd, format!("gaps between ANDD numbers: {}", numbers.join(" ")));
    }
    let named: Vec<(usize, u8)> = report
        .parts
        .iter()
        .flat_map(|part| &part.scopes)
        .filter(|scope| scope.number == scope_kind::ACPI_NAMESPACE)
        .map(|scope| (scope.offset, scope.enumeration_id))
        .collect();
    for (offset, number) in named.into_iter().filter(|(_, number)| !devices.contains_key(number)) {
        say(
            report,
            offset,
            "scope",
            Weight::Odd,
            format!("names ACPI device {number}, which no ANDD describes"),
        );
    }
}

/// I/O APICs and HPETs are known by number: twice the same number is one too many.
fn enumeration(report: &mut Report) {
    let mut seen: BTreeMap<(u8, u8), Vec<usize>> = BTreeMap::new();
    for scope in report.parts.iter().filter(|part| part.number == kind::DRHD).flat_map(|part| &part.scopes) {
        if matches!(scope.number, scope_kind::IOAPIC | scope_kind::HPET) {
            seen.entry((scope.number, scope.enumeration_id)).or_default().push(scope.offset);
        }
    }
    for ((number, id), offsets) in seen.into_iter().filter(|(_, offsets)| offsets.len() > 1) {
        let what = format!("{} scopes of {} id {id}", offsets.len(), super::scope_kind_words(number));
        say(report, offsets[0], "scope", Weight::Odd, what);
    }
}
