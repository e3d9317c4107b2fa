//! A table's report as text and as JSON.

use super::{Part, Report, Weight};
use serde_json::{Value, json};
use spec::dmar::flag;
use std::io::{self, Write};

/// Names of the flags that are set.
fn flags(flags: u8) -> Vec<&'static str> {
    let names = [
        (flag::INTR_REMAP, "INTR_REMAP"),
        (flag::X2APIC_OPT_OUT, "X2APIC_OPT_OUT"),
        (flag::DMA_CTRL_PLATFORM_OPT_IN, "DMA_CTRL_PLATFORM_OPT_IN"),
        (flag::REMAP_OPT_OUT, "REMAP_OPT_OUT"),
    ];
    names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect()
}

/// The report for people.
///
/// # Errors
/// When `out` cannot be written.
pub fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let [oem, table, creator] = &report.makers;
    writeln!(out, "DMAR table, {} bytes, revision {}", report.bytes, report.revision)?;
    writeln!(out, "  made by \"{oem}\" \"{table}\", creator \"{creator}\"")?;
    writeln!(out, "  host addresses of {} bits", report.address_bits)?;
    let names = flags(report.flags);
    let names = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    writeln!(out, "  flags {:#x}: {names}", report.flags)?;
    for part in &report.parts {
        writeln!(out)?;
        structure(out, part)?;
    }
    if report.oddities.is_empty() {
        return writeln!(out, "\nnothing odd");
    }
    writeln!(out)?;
    for oddity in &report.oddities {
        let weight = if oddity.weight == Weight::Refuse { "REFUSE" } else { "odd" };
        writeln!(out, "{weight:6}  {oddity}")?;
    }
    Ok(())
}

fn structure(out: &mut dyn Write, part: &Part) -> io::Result<()> {
    let fields: Vec<String> = part.fields.iter().map(|(name, value)| format!("{name} {value}")).collect();
    writeln!(out, "{:#05x}  {}  {}", part.offset, part.kind, fields.join(", "))?;
    for scope in &part.scopes {
        let id =
            if scope.enumeration_id == 0 { String::new() } else { format!(", id {}", scope.enumeration_id) };
        let flags = if scope.flags == 0 { String::new() } else { format!(", flags {:#x}", scope.flags) };
        writeln!(out, "       {:#05x}  {} {}{id}{flags}", scope.offset, scope.kind, scope.path)?;
    }
    Ok(())
}

/// The report for programs: schema `holdover.dmar/1`.
#[must_use]
pub fn json(report: &Report) -> Value {
    let parts: Vec<Value> = report.parts.iter().map(part).collect();
    let oddities: Vec<Value> = report
        .oddities
        .iter()
        .map(|oddity| {
            json!({
                "offset": oddity.offset,
                "kind": oddity.kind,
                "refuse": oddity.weight == Weight::Refuse,
                "what": oddity.what,
            })
        })
        .collect();
    json!({
        "schema": "holdover.dmar/1",
        "bytes": report.bytes,
        "revision": report.revision,
        "oem_id": report.makers[0],
        "oem_table_id": report.makers[1],
        "creator_id": report.makers[2],
        "host_address_bits": report.address_bits,
        "flags": flags(report.flags),
        "structures": parts,
        "oddities": oddities,
        "must_refuse": report.must_refuse(),
    })
}

fn part(part: &Part) -> Value {
    let fields: serde_json::Map<String, Value> = part
        .fields
        .iter()
        .map(|(name, value)| (name.replace([' ', '-'], "_"), Value::from(value.as_str())))
        .collect();
    let scopes: Vec<Value> = part
        .scopes
        .iter()
        .map(|scope| {
            json!({
                "offset": scope.offset,
                "kind": scope.kind,
                "kind_number": scope.number,
                "enumeration_id": scope.enumeration_id,
                "flags": scope.flags,
                "path": scope.path,
            })
        })
        .collect();
    json!({
        "offset": part.offset,
        "bytes": part.bytes,
        "kind": part.kind,
        "kind_number": part.number,
        "fields": fields,
        "scopes": scopes,
    })
}
