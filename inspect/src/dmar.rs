//! A DMAR table in words: every structure with its offset and its device scopes, and everything odd about it.
//!
//! `examine` reads a table as far as it can be read. What is odd is judged by weight: [`Weight::Refuse`] is what a
//! kernel must not act upon, [`Weight::Odd`] what it must be written to expect. The judging of structures among one
//! another is in `judge`.

mod judge;
mod show;

pub use show::{json, text};

use spec::dmar::{Dmar, Scope, Structure, flag, kind, scope_kind};
use std::fmt;

/// How much an oddity matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Real tables are like that: software must expect it.
    Odd,
    /// A kernel must refuse this structure, or the table.
    Refuse,
}

/// Something odd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oddity {
    /// Offset in the table of what it is about; 0 is the table as a whole.
    pub offset: usize,
    /// Kind of the structure there; empty for the table.
    pub kind: &'static str,
    /// How much it matters.
    pub weight: Weight,
    /// What is odd, in words.
    pub what: String,
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_empty() {
            return f.write_str(&self.what);
        }
        write!(f, "{}@{:#x}: {}", self.kind, self.offset, self.what)
    }
}

/// A structure in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Offset in the table.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
    /// Its kind as a number.
    pub number: u16,
    /// Its kind: `DRHD`, `RMRR`, ...
    pub kind: &'static str,
    /// Its fields by name.
    pub fields: Vec<(&'static str, String)>,
    /// Its device scopes.
    pub scopes: Vec<ScopePart>,
}

/// A device scope in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopePart {
    /// Offset in the table.
    pub offset: usize,
    /// Its kind in words.
    pub kind: String,
    /// Its kind as a number.
    pub number: u8,
    /// What the device is called elsewhere.
    pub enumeration_id: u8,
    /// Byte 2: properties in a SIDP.
    pub flags: u8,
    /// Start bus and hops: `00:1c.0/00.1`.
    pub path: String,
    /// The bus that the path starts on.
    pub start_bus: u8,
    /// Number of hops.
    pub hops: usize,
}

/// A table in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Length in bytes, as the table says.
    pub bytes: usize,
    /// Revision.
    pub revision: u8,
    /// OEM id, OEM table id, creator, with what is no text escaped.
    pub makers: [String; 3],
    /// Widest address of DMA, in bits.
    pub address_bits: u32,
    /// Flags of the table.
    pub flags: u8,
    /// Structures in the order of the table.
    pub parts: Vec<Part>,
    /// Everything odd, in the order of the table.
    pub oddities: Vec<Oddity>,
}

impl Report {
    /// Whether a kernel must refuse something.
    #[must_use]
    pub fn must_refuse(&self) -> bool {
        self.oddities.iter().any(|oddity| oddity.weight == Weight::Refuse)
    }
}

/// Reads a table.
///
/// # Errors
/// When the bytes do not even open with a header of a DMAR table; in words.
pub fn examine(bytes: &[u8]) -> Result<Report, String> {
    let table = Dmar::parse(bytes).map_err(|error| error.to_string())?;
    let header = table.header();
    let maker = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let mut report = Report {
        bytes: table.bytes().len(),
        revision: header.revision,
        makers: [maker(&header.oem_id), maker(&header.oem_table_id), maker(&header.creator_id)],
        address_bits: table.address_bits(),
        flags: header.flags,
        parts: Vec::new(),
        oddities: Vec::new(),
    };
    judge::header(&mut report, &table);
    if bytes.len() > report.bytes {
        let more = bytes.len() - report.bytes;
        judge::say(&mut report, 0, "", Weight::Odd, format!("{more} bytes follow the table"));
    }
    let mut structures = table.structures();
    loop {
        let offset = structures.offset();
        let Some(structure) = structures.next() else { break };
        match structure {
            Ok(structure) => {
                let bytes = structures.offset() - offset;
                part(&mut report, &structure, offset, bytes);
            }
            Err(error) => {
                // What fails within a structure does not keep the next one from being read, but the walk is over.
                let what = format!("{error}; nothing behind it was read");
                judge::say(&mut report, error.offset, "structure", Weight::Refuse, what);
            }
        }
    }
    judge::whole(&mut report, &table);
    report.oddities.sort_by_key(|oddity| oddity.offset);
    Ok(report)
}

/// The name of a kind of structure.
#[must_use]
pub const fn kind_name(number: u16) -> &'static str {
    match number {
        kind::DRHD => "DRHD",
        kind::RMRR => "RMRR",
        kind::ATSR => "ATSR",
        kind::RHSA => "RHSA",
        kind::ANDD => "ANDD",
        kind::SATC => "SATC",
        kind::SIDP => "SIDP",
        _ => "unknown",
    }
}

/// Takes a structure in, with its scopes and what is odd about it by itself.
fn part(report: &mut Report, structure: &Structure<'_>, offset: usize, bytes: usize) {
    let number = structure.kind();
    let kind = kind_name(number);
    let mut scopes = Vec::new();
    for scope in structure.scopes() {
        match scope {
            Ok(scope) => {
                judge::scope(report, number, &scope);
                scopes.push(scope_part(&scope));
            }
            Err(error) => judge::say(report, error.offset, "scope", Weight::Refuse, error.to_string()),
        }
    }
    let fields = fields(structure);
    judge::structure(report, structure, offset, bytes, &scopes);
    report.parts.push(Part { offset, bytes, number, kind, fields, scopes });
}

fn scope_part(scope: &Scope<'_>) -> ScopePart {
    let header = scope.header;
    let hops: Vec<String> =
        scope.path().iter().map(|hop| format!("{:02x}.{:x}", hop.device, hop.function)).collect();
    ScopePart {
        offset: scope.offset,
        kind: scope_kind_words(header.kind),
        number: header.kind,
        enumeration_id: header.enumeration_id,
        flags: header.flags,
        path: format!("{:02x}:{}", header.start_bus, hops.join("/")),
        start_bus: header.start_bus,
        hops: scope.path().len(),
    }
}

fn scope_kind_words(number: u8) -> String {
    match number {
        scope_kind::PCI_ENDPOINT => "endpoint".into(),
        scope_kind::PCI_SUB_HIERARCHY => "bridge".into(),
        scope_kind::IOAPIC => "I/O APIC".into(),
        scope_kind::HPET => "HPET".into(),
        scope_kind::ACPI_NAMESPACE => "ACPI device".into(),
        other => format!("unknown kind {other}"),
    }
}

/// The fields of a structure, by name.
fn fields(structure: &Structure<'_>) -> Vec<(&'static str, String)> {
    let segment = |segment: u16| ("segment", format!("{segment:04x}"));
    match structure {
        Structure::Drhd { drhd, .. } => vec![
            segment(drhd.segment.get()),
            ("register base", format!("{:#x}", drhd.register_base.get())),
            ("register pages", 1_u64.checked_shl(u32::from(drhd.size)).unwrap_or(0).to_string()),
            ("catch-all", yes(drhd.flags & flag::INCLUDE_PCI_ALL != 0)),
        ],
        Structure::Rmrr { rmrr, .. } => {
            let (base, limit) = (rmrr.base.get(), rmrr.limit.get());
            let bytes = limit.checked_sub(base).and_then(|bytes| bytes.checked_add(1));
            vec![
                segment(rmrr.segment.get()),
                ("base", format!("{base:#x}")),
                ("limit", format!("{limit:#x}")),
                ("bytes", bytes.map_or_else(|| "none".into(), |bytes| bytes.to_string())),
            ]
        }
        Structure::Atsr { atsr, .. } => {
            vec![segment(atsr.segment.get()), ("all ports", yes(atsr.flags & flag::ALL_PORTS != 0))]
        }
        Structure::Rhsa { rhsa } => vec![
            ("register base", format!("{:#x}", rhsa.register_base.get())),
            ("proximity domain", rhsa.proximity_domain.get().to_string()),
        ],
        Structure::Andd { andd, name } => {
            vec![("device number", andd.device_number.to_string()), ("name", (*name).to_owned())]
        }
        Structure::Satc { satc, .. } => vec![
            segment(satc.segment.get()),
            ("translation cache required", yes(satc.flags & flag::ATC_REQUIRED != 0)),
        ],
        Structure::Sidp { sidp, .. } => vec![segment(sidp.segment.get())],
        Structure::Unknown { kind, bytes } => {
            vec![("kind", kind.to_string()), ("bytes", bytes.escape_ascii().to_string())]
        }
    }
}

fn yes(yes: bool) -> String {
    if yes { "yes".into() } else { "no".into() }
}
