//! The model for people: units, requesters, domains, handovers. Ranges are merged; every leaf with `verbose`.

use super::Written;
use crate::image::Memory;
use crate::kho::Kho;
use crate::model::{
    Attachment, Context, Interrupts, Model, Problem, Queue, Requester, Route, Space, Unit, descriptor_name,
    pasid_translation_words, translation_type_words,
};
use crate::reach::Reach;
use crate::tables::{self, Budget, Visit};
use crate::translate::{Outcome, Refused, Translation};
use audit::handover::Record;
use spec::interrupt::source_check;
use spec::{Extent, SourceId};
use std::io::Write;
use std::ops::ControlFlow;

/// What is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Only what concerns this requester.
    pub source: Option<SourceId>,
    /// Every leaf, every descriptor, every run.
    pub verbose: bool,
}

/// Ranges of a domain that are shown unless `verbose`.
const RANGES: usize = 32;
/// Preserved runs that are shown unless `verbose`.
const RUNS: usize = 16;

/// Bytes in words: exact where four digits do (`1032 KiB`), rounded otherwise (`1.5 TiB`).
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let exact = (bytes.max(1).trailing_zeros() / 10) as usize;
    if bytes >> (10 * exact) < 10_000 {
        return format!("{} {}", bytes >> (10 * exact), units[exact]);
    }
    let power = (bytes.ilog2() / 10) as usize;
    format!("{:.1} {}", bytes as f64 / (1_u64 << (10 * power)) as f64, units[power])
}

/// The whole model.
///
/// # Errors
/// When `out` cannot be written.
pub fn all(out: &mut dyn Write, memory: &Memory, model: &Model, options: Options) -> Written {
    if options.source.is_none() {
        let runs = memory.runs().len();
        let parts = if runs == 1 { "piece" } else { "pieces" };
        writeln!(out, "image: {}, {} of memory in {runs} {parts}", memory.form(), size(memory.bytes()))?;
        for note in memory.notes() {
            writeln!(out, "  note: {note}")?;
        }
    }
    if model.units.is_empty() {
        writeln!(out, "no registers are known, so no tables: give --registers or --rtaddr")?;
    }
    for (number, unit) in model.units.iter().enumerate() {
        writeln!(out)?;
        unit_text(out, memory, model, number, unit, options)?;
    }
    let concerned = |number: usize| {
        options.source.is_none_or(|source| model.users[number].iter().any(|(_, user, _)| *user == source))
    };
    for (number, space) in model.spaces.iter().enumerate().filter(|(number, _)| concerned(*number)) {
        writeln!(out)?;
        space_text(out, memory, model, number, space, options)?;
    }
    if options.source.is_none() {
        for kho in &model.handovers {
            writeln!(out)?;
            kho_text(out, kho, options)?;
        }
    }
    for problem in &model.problems {
        writeln!(out, "\nPROBLEM  {problem}")?;
    }
    Ok(())
}

fn problems(out: &mut dyn Write, problems: &[Problem], left_off: u64) -> Written {
    for problem in problems {
        writeln!(out, "  PROBLEM  {problem}")?;
    }
    if left_off > 0 {
        writeln!(out, "  PROBLEM  {left_off} more")?;
    }
    Ok(())
}

fn unit_text(
    out: &mut dyn Write,
    memory: &Memory,
    model: &Model,
    number: usize,
    unit: &Unit,
    options: Options,
) -> Written {
    let registers = &unit.registers;
    writeln!(out, "unit {number}: {} at {:#x}", registers.name, registers.base)?;
    let on = |on: Option<bool>| match on {
        Some(true) => "on",
        Some(false) => "OFF",
        None => "not known",
    };
    let mode = unit.mode.map_or_else(|| "not known".to_owned(), |mode| mode.to_string());
    write!(out, "  translation {}, mode {mode}", on(unit.translating))?;
    if let Some(root) = unit.root_table() {
        write!(out, ", root table {root}")?;
    }
    writeln!(out)?;
    if let (Some(cap), Some(ecap)) = (registers.cap(), registers.ecap()) {
        let levels: Vec<String> = (3..=5)
            .filter(|levels| cap.supports_levels(*levels))
            .map(|levels: u8| levels.to_string())
            .collect();
        writeln!(
            out,
            "  capabilities {:#x} {:#x}: requests of {} bits, {}, {} domain ids",
            cap.raw(),
            ecap.raw(),
            cap.mgaw() + 1,
            if levels.is_empty() { "no translation".into() } else { levels.join(" or ") + " levels" },
            cap.domain_ids(),
        )?;
    }
    if options.source.is_none() {
        if let Some(queue) = &unit.queue {
            queue_text(out, queue, on(queue.on), options)?;
        }
        for (number, record) in registers.faults() {
            let kind = format!("{:?}", record.request()).to_lowercase();
            let reason = spec::fault::Reason(record.fr() as u8);
            let (source, page) = (record.source(), record.page());
            writeln!(out, "  fault record {number}: {source}, {kind} of {page:#x}: {reason}")?;
        }
    }
    if let Some(table) = &unit.interrupts {
        interrupts_text(out, table, on(table.on), options)?;
    }
    let shown = |requester: &&Requester| options.source.is_none_or(|source| source == requester.source);
    writeln!(out, "  requesters: {}", unit.requesters.len())?;
    for requester in unit.requesters.iter().filter(shown) {
        requester_text(out, memory, model, requester, options)?;
    }
    if let Some(source) = options.source.filter(|_| !unit.requesters.iter().any(|r| shown(&r))) {
        writeln!(out, "    {source} has no context entry")?;
    }
    if unit.pasids_left_off {
        writeln!(out, "  PROBLEM  more PASID entries than are read at once: the rest is left off")?;
    }
    problems(out, &unit.problems, unit.problems_left_off)
}

fn requester_text(
    out: &mut dyn Write,
    _memory: &Memory,
    model: &Model,
    requester: &Requester,
    options: Options,
) -> Written {
    let source = requester.source;
    match requester.context {
        Context::Legacy(entry) => {
            let kind = translation_type_words(entry.translation_type());
            let [attachment] = requester.attachments.as_slice() else { return Ok(()) };
            writeln!(out, "    {source}  {}", attachment_text(model, attachment, kind))?;
        }
        Context::Scalable(entry) => {
            let flags =
                [(entry.dte(), "device-TLB"), (entry.paside(), "PASID"), (entry.pre(), "page requests")];
            let allowed: Vec<&str> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
            let allowed =
                if allowed.is_empty() { String::new() } else { format!(", allows {}", allowed.join(", ")) };
            let (directory, entries) = (entry.directory(), entry.directory_entries());
            writeln!(out, "    {source}  PASID directory {directory} of {entries} entries{allowed}")?;
            for attachment in &requester.attachments {
                let Some(pasid) = attachment.pasid else { continue };
                let kind = pasid_translation_words(pasid.entry.translation());
                let own = if pasid.is_rid_pasid { " (requests without PASID)" } else { "" };
                let text = attachment_text(model, attachment, kind);
                writeln!(out, "      PASID {}{own}  {text}", pasid.number)?;
            }
        }
    }
    if options.verbose {
        let words: Vec<String> =
            requester.context.words().iter().rev().map(|word| format!("{word:#018x}")).collect();
        writeln!(out, "      context entry at {}: {}", requester.context_at, words.join(":"))?;
    }
    Ok(())
}

fn attachment_text(model: &Model, attachment: &Attachment, kind: &str) -> String {
    let id = attachment.domain_id;
    match attachment.route {
        Route::Space(number) => {
            let mapped = model.spaces.get(number).map_or(0, |space| space.mapped);
            format!("domain {number} (id {id}), {kind}, {} mapped", size(mapped))
        }
        Route::PassThrough => format!("PASS-THROUGH (id {id}): reaches all of memory"),
        Route::Refused => format!("{kind} (id {id}): hardware refuses every request"),
    }
}

fn queue_text(out: &mut dyn Write, queue: &Queue, on: &str, options: Options) -> Written {
    let known = |index: Option<u64>| index.map_or_else(|| "not known".to_owned(), |index| index.to_string());
    let bits = if queue.wide { 256 } else { 128 };
    writeln!(
        out,
        "  invalidation queue {on}, at {}: {} descriptors of {bits} bits, head {}, tail {}",
        queue.at,
        queue.size,
        known(queue.head),
        known(queue.tail),
    )?;
    if let Some(missing) = queue.missing {
        writeln!(out, "  PROBLEM  invalidation queue at {missing}: the image does not hold it")?;
    }
    for (index, descriptor) in queue.descriptors.iter().enumerate() {
        let pending = queue.is_pending(index as u64);
        if pending || (options.verbose && descriptor[0] != 0) {
            let state = if pending { "PENDING" } else { "done" };
            let (name, [low, high, ..]) = (descriptor_name(descriptor), descriptor);
            writeln!(out, "    {index:5}  {state:7}  {high:016x}:{low:016x}  {name}")?;
        }
    }
    Ok(())
}

fn interrupts_text(out: &mut dyn Write, table: &Interrupts, on: &str, options: Options) -> Written {
    let asks = |sid: u64, svt: u64| match svt {
        source_check::NONE => "ANYONE".to_owned(),
        source_check::SOURCE_ID => SourceId::from_raw(sid as u16).to_string(),
        source_check::BUS_RANGE => format!("buses {:02x} to {:02x}", sid >> 8, sid & 0xff),
        _ => "reserved check".to_owned(),
    };
    let shown = |sid: u64, svt: u64| {
        options.source.is_none_or(|source| match svt {
            source_check::SOURCE_ID => sid == u64::from(source.raw()),
            source_check::BUS_RANGE => (sid >> 8..=sid & 0xff).contains(&u64::from(source.bus())),
            _ => true,
        })
    };
    writeln!(
        out,
        "  interrupt remapping {on}, table at {}: {} of {} entries present",
        table.at,
        table.entries.len(),
        table.size
    )?;
    for (index, entry) in table.remapped().filter(|(_, entry)| shown(entry.sid(), entry.svt())) {
        let to = if table.extended { entry.dst() } else { u64::from(entry.xapic_destination()) };
        let who = asks(entry.sid(), entry.svt());
        writeln!(out, "    {index:5}  {who}: vector {:#04x} to processor {to:#x}", entry.v())?;
    }
    for (index, entry) in table.posted().filter(|(_, entry)| shown(entry.sid(), entry.svt())) {
        let (who, at) = (asks(entry.sid(), entry.svt()), entry.descriptor());
        writeln!(out, "    {index:5}  {who}: vector {:#04x} posted at {at}", entry.vv())?;
    }
    problems(out, &table.problems, 0)
}

fn space_text(
    out: &mut dyn Write,
    memory: &Memory,
    model: &Model,
    number: usize,
    space: &Space,
    options: Options,
) -> Written {
    writeln!(out, "domain {number}: {}, top table {}", space.format(), space.top.table)?;
    if let Some((second, levels)) = space.top.through {
        writeln!(out, "  through a second stage of {levels} levels at {second}")?;
    }
    let users: Vec<String> = model.users[number]
        .iter()
        .take(64)
        .map(|(_, source, pasid)| match pasid {
            Some(pasid) if *pasid != 0 => format!("{source}:{pasid}"),
            _ => source.to_string(),
        })
        .collect();
    writeln!(out, "  used by {}", users.join(" "))?;
    let by_size: Vec<String> = ["4 KiB", "2 MiB", "1 GiB", "512 GiB", "256 TiB"]
        .iter()
        .zip(space.leaves)
        .filter(|(_, count)| *count > 0)
        .map(|(size, count)| format!("{count} of {size}"))
        .collect();
    let leaves =
        if by_size.is_empty() { "no leaves".to_owned() } else { format!("leaves {}", by_size.join(", ")) };
    writeln!(out, "  {} tables, {leaves}, {} mapped", space.table_count(), size(space.mapped))?;
    if options.verbose {
        leaves_text(out, memory, model, space)?;
    } else {
        for range in space.ranges.iter().take(RANGES) {
            let (end, access) = (range.iova.wrapping_add(range.bytes - 1), range.access.letters());
            writeln!(
                out,
                "    {:#014x} to {end:#014x}  {access}  {}",
                range.iova,
                target(range.target, range.bytes)
            )?;
        }
        let more = (space.ranges.len() as u64).saturating_sub(RANGES as u64) + space.ranges_left_off;
        if more > 0 {
            writeln!(out, "    and {more} more ranges (-v shows every leaf)")?;
        }
    }
    for trouble in &space.troubles {
        let (at, level, iova) = (trouble.at, trouble.level, trouble.iova);
        writeln!(out, "  PROBLEM  level {level} at {at}, for {iova:#x}: {}", trouble.fault)?;
    }
    if space.troubles_left_off > 0 {
        writeln!(out, "  PROBLEM  {} more", space.troubles_left_off)?;
    }
    Ok(())
}

fn target(target: spec::PhysAddr, bytes: u64) -> String {
    let end = target.get().wrapping_add(bytes - 1);
    format!("{:#012x} to {end:#012x}  {}", target.get(), size(bytes))
}

/// Every leaf with the entries that lead to it.
fn leaves_text(out: &mut dyn Write, memory: &Memory, model: &Model, space: &Space) -> Written {
    let mut result = Ok(());
    let hardware = Some(model.hardware);
    let _ = tables::walk(memory, space.top, hardware, &mut Budget::default(), &mut |visit| {
        let Visit::Leaf(leaf) = visit else { return ControlFlow::Continue(()) };
        let path: Vec<String> = leaf.path.iter().map(|step| format!("{:#x}", step.raw)).collect();
        result = writeln!(
            out,
            "    {:#014x}  {}  {:#012x}  {:5}  {}",
            leaf.iova,
            leaf.access.letters(),
            leaf.target.get(),
            size(leaf.bytes()),
            path.join(" "),
        );
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result
}

fn runs(out: &mut dyn Write, runs: &[Extent], options: Options) -> Written {
    let shown = if options.verbose { runs.len() } else { RUNS };
    for run in runs.iter().take(shown) {
        writeln!(out, "    {run}  {}", size(run.bytes()))?;
    }
    if runs.len() > shown {
        writeln!(out, "    and {} more", runs.len() - shown)?;
    }
    Ok(())
}

fn kho_text(out: &mut dyn Write, kho: &Kho, options: Options) -> Written {
    writeln!(
        out,
        "handover: tree at {}, {} bytes, map of preserved memory at {}",
        kho.at, kho.bytes, kho.map
    )?;
    if let Some(metadata) = &kho.metadata {
        let (from, count) = (&metadata.previous_release, metadata.kexec_count);
        writeln!(out, "  from {from:?}, handover number {count}")?;
    }
    for blob in &kho.blobs {
        let preserved = if blob.preserved { "preserved" } else { "NOT PRESERVED" };
        writeln!(out, "  blob {:?}: {} bytes at {}, {preserved}", blob.name, blob.bytes, blob.at)?;
    }
    let preserved = &kho.preserved;
    let orders: Vec<String> = preserved
        .by_order
        .iter()
        .map(|(order, count)| format!("{count} of {}", size(4096 << order)))
        .collect();
    writeln!(
        out,
        "  preserved: {} in {} runs; blocks: {}",
        size(preserved.frames().saturating_mul(4096)),
        preserved.extents.len(),
        if orders.is_empty() { "none".to_owned() } else { orders.join(", ") },
    )?;
    runs(out, &preserved.extents, options)?;
    if let Some(luo) = &kho.luo {
        writeln!(out, "  live update orchestrator {}, update number {}", luo.compatible, luo.updates)?;
        for session in &luo.sessions {
            writeln!(out, "  session {:?}: {} files", session.name, session.count)?;
            for file in &session.files {
                writeln!(out, "    file {:#x}: {}, data {:#x}", file.token, file.compatible, file.data)?;
                let Some(memfd) = &file.memfd else { continue };
                let (bytes, folios) = (memfd.record.size, memfd.folios);
                writeln!(
                    out,
                    "      memfd of {} in {folios} folios, {} runs",
                    size(bytes),
                    memfd.runs.len()
                )?;
                if options.verbose {
                    runs(out, &memfd.runs, options)?;
                }
            }
        }
        for flb in &luo.flbs {
            writeln!(
                out,
                "  bound object {:?}: data {:#x}, held by {} files",
                flb.name, flb.data, flb.count
            )?;
        }
    }
    if let Some(records) = &kho.records {
        let header = &records.header;
        let sealed = if records.counts.is_some() { "sealed: the digest holds" } else { "NOT SOUND" };
        writeln!(
            out,
            "  our records: {} at {}, {} bytes, version {}, {sealed}",
            header.records, records.at, header.bytes, header.version
        )?;
        for located in &records.records {
            writeln!(out, "    {}", record_text(&located.record))?;
        }
    }
    problems(out, &kho.problems, 0)
}

/// A record of ours in a line.
#[must_use]
pub fn record_text(record: &Record) -> String {
    match record {
        Record::Release(it) => {
            let end = it.release.iter().position(|byte| *byte == 0).unwrap_or(it.release.len());
            let name = it.release[..end].escape_ascii();
            format!("release \"{name}\", update {}, sealed at {} ns", it.update, it.sealed_at)
        }
        Record::Scratch(it) => format!("scratch {:#x}, {}", it.start, size(it.bytes)),
        Record::Unit(it) => format!("unit at {:#x}, root {:#x}", it.register_base, it.root),
        Record::ContextTable(it) => {
            format!("context table {:#x} of bus {:#04x}, unit {}", it.table, it.bus, it.unit)
        }
        Record::Region(it) => {
            let kind = if it.kind == spec::handover::region_kind::MEMORY { "memory" } else { "device range" };
            format!("region {:#x}: {kind} {:#x}, {}", it.token, it.start, size(it.bytes))
        }
        Record::Domain(it) => format!(
            "domain {:#x}: top table {:#x}, {} levels, {} table frames",
            it.token, it.top_table, it.levels, it.table_frames
        ),
        Record::DomainTables(it) => {
            format!("tables of domain {}: {:#x}, {}", it.domain, it.start, size(it.bytes))
        }
        Record::DomainId(it) => format!("domain {} has id {} on unit {}", it.domain, it.id, it.unit),
        Record::Requester(it) => {
            let source = SourceId::from_raw(it.source);
            format!("requester {:#x}: {source}, domain {}, unit {}", it.token, it.domain, it.unit)
        }
        Record::Alias(it) => format!("alias {} of requester {}", SourceId::from_raw(it.source), it.requester),
        Record::Container(it) => format!("container {:#x}, {}", it.start, size(it.bytes)),
        Record::Unknown { kind } => format!("unknown kind {kind}"),
        other => format!("{other:?}"),
    }
}

/// A translation for people.
///
/// # Errors
/// When `out` cannot be written.
pub fn translation(out: &mut dyn Write, translation: &Translation) -> Written {
    writeln!(out, "{} asks for {:#x}", translation.asker, translation.iova)?;
    for step in &translation.steps {
        let at = step.at.map_or_else(String::new, |at| format!(" at {at}"));
        let words: Vec<String> = step.raw.iter().rev().map(|word| format!("{word:#x}")).collect();
        let words = if words.is_empty() { String::new() } else { format!(" = {}", words.join(":")) };
        writeln!(out, "  {}{at}{words}", step.what)?;
        if !step.says.is_empty() {
            writeln!(out, "      {}", step.says)?;
        }
    }
    match &translation.outcome {
        Outcome::Translated { target, leaf, read, write } => {
            let leaf =
                leaf.map_or_else(|| "not translated".to_owned(), |leaf| format!("leaf of {}", size(leaf)));
            writeln!(out, "=> {target} ({leaf})")?;
            verdict(out, "read", read.as_ref().err())?;
            verdict(out, "write", write.as_ref().err())?;
        }
        Outcome::Refused { read, write } if read == write => verdict(out, "every request", Some(read))?,
        Outcome::Refused { read, write } => {
            verdict(out, "read", Some(read))?;
            verdict(out, "write", Some(write))?;
        }
        Outcome::Interrupt => writeln!(out, "=> an interrupt message, no DMA")?,
        Outcome::Unknown { what } => writeln!(out, "=> cannot be known: {what}")?,
    }
    if translation.unrecorded && !translation.outcome.passes() {
        writeln!(out, "   (FPD is set on the way: hardware records no fault)")?;
    }
    Ok(())
}

fn verdict(out: &mut dyn Write, what: &str, refused: Option<&Refused>) -> Written {
    match refused {
        None => writeln!(out, "   {what}: passes"),
        Some(Refused { reason: Some(reason), why }) => writeln!(out, "   {what}: fault, {reason}: {why}"),
        Some(Refused { reason: None, why }) => writeln!(out, "   {what}: refused: {why}"),
    }
}

/// Who reaches a frame, for people.
///
/// # Errors
/// When `out` cannot be written.
pub fn reach(out: &mut dyn Write, frame: spec::PhysAddr, roles: &[String], reach: &Reach) -> Written {
    writeln!(out, "frame {frame}")?;
    for role in roles {
        writeln!(out, "  is: {role}")?;
    }
    for way in &reach.ways {
        let pasid = way.pasid.map_or_else(String::new, |pasid| format!(" with PASID {pasid}"));
        let access = match way.access.letters() {
            "rw" => "reads and writes",
            "r-" => "reads",
            "-w" => "writes",
            _ => "may not touch",
        };
        writeln!(out, "  {}{pasid} {access} it by {:#x}", way.source, way.iova)?;
        let entry = |name: &str, at: spec::PhysAddr| format!("{name} at {at}");
        let mut path = vec![entry("context entry", way.context_at)];
        path.extend(way.pasid_at.map(|at| entry("PASID entry", at)));
        path.extend(
            way.path.iter().map(|step| format!("level {} at {} = {:#x}", step.level, step.at, step.raw)),
        );
        if way.path.is_empty() {
            path.push("pass-through".into());
        }
        writeln!(out, "      {}", path.join(", "))?;
    }
    if reach.left_off > 0 {
        writeln!(out, "  and {} more ways", reach.left_off)?;
    }
    for unit in &reach.off {
        writeln!(out, "  unit {unit} does not translate: everybody behind it reads and writes it")?;
    }
    if reach.ways.is_empty() && reach.off.is_empty() && reach.is_certain() {
        writeln!(out, "  no requester reaches it")?;
    }
    for unit in &reach.uncertain_units {
        writeln!(out, "  NOT KNOWN: tables of unit {unit} are missing or damaged; there may be more ways")?;
    }
    for space in &reach.uncertain {
        writeln!(out, "  NOT KNOWN: parts of domain {space} are missing or damaged; there may be more ways")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_exact_as_long_as_they_are_short() {
        let all = [0, 4096, 1032 << 10, 1 << 40, (1 << 40) + 4096, u64::MAX, 16936 << 10];
        let words = ["0 B", "4 KiB", "1032 KiB", "1 TiB", "1.0 TiB", "16.0 EiB", "16.5 MiB"];
        assert_eq!(all.map(size), words);
    }
}
