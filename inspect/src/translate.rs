//! One translation, step by step as hardware makes it (VT-d 3.4, 3.6 to 3.8), or the fault it ends with (VT-d 7.1.3).
//!
//! [`translate`] follows a request from RTADDR to the leaf, notes every entry that is read on the way, and says what a
//! read and what a write would come to. It is written after the manual and shares nothing with the model's walk. Where the
//! image lacks an entry that hardware would read, the answer is that it cannot be known.

mod paging;

use crate::image::{self, Memory};
use crate::registers::Registers;
use crate::tables::{Access, Hardware};
use spec::context::{ContextEntry, TranslationType};
use spec::fault::Reason;
use spec::regs::{Cap, Ecap, table_mode};
use spec::root::{RootEntry, ScalableRootEntry};
use spec::scalable::{
    PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry, directory_index, table_index,
};
use spec::{PhysAddr, SourceId};
use std::fmt;
use std::str::FromStr;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Its source id.
    pub source: SourceId,
    /// The PASID that its request carries.
    pub pasid: Option<u32>,
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        self.pasid.map_or(Ok(()), |pasid| write!(f, " with PASID {pasid}"))
    }
}

/// Parses `[SEGMENT:]BUS:DEVICE.FUNCTION`, all in hex.
///
/// # Errors
/// In words.
pub fn parse_source(text: &str) -> Result<SourceId, String> {
    let wrong = || format!("{text:?} is no requester: expected BUS:DEVICE.FUNCTION in hex, as in 00:1f.2");
    let (front, function) = text.split_once('.').ok_or_else(wrong)?;
    let mut parts = front.rsplit(':');
    let number = |text: Option<&str>, limit: u8| {
        let number = text.and_then(|text| u8::from_str_radix(text, 16).ok());
        number.filter(|number| *number <= limit).ok_or_else(wrong)
    };
    let (device, bus) = (number(parts.next(), 0x1f)?, number(parts.next(), 0xff)?);
    let segment = parts.next().map_or(Some(0), |segment| u16::from_str_radix(segment, 16).ok());
    if segment.is_none() || parts.next().is_some() {
        return Err(wrong());
    }
    Ok(SourceId::new(bus, device, number(Some(function), 7)?))
}

impl FromStr for Asker {
    type Err = String;

    /// `[SEGMENT:]BUS:DEVICE.FUNCTION[:PASID]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let dot = text.find('.').unwrap_or(text.len());
        let colon = text[dot..].find(':').map(|colon| dot + colon);
        let (front, pasid) = colon.map_or((text, None), |colon| (&text[..colon], Some(&text[colon + 1..])));
        let pasid = pasid.map(|pasid| {
            let digits = pasid.strip_prefix("0x");
            let number = digits.map_or_else(|| pasid.parse(), |digits| u32::from_str_radix(digits, 16));
            let number = number.ok().filter(|number| *number < 1 << 20);
            number.ok_or_else(|| format!("{pasid:?} is no PASID: it has 20 bits"))
        });
        Ok(Self { source: parse_source(front)?, pasid: pasid.transpose()? })
    }
}

/// Something that hardware reads on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is read, in words.
    pub what: String,
    /// Where it lies; `None` for registers.
    pub at: Option<PhysAddr>,
    /// The words read.
    pub raw: Vec<u64>,
    /// What it says.
    pub says: String,
}

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The code that the fault record would carry; `None` when nothing is recorded.
    pub reason: Option<Reason>,
    /// Why, with the facts.
    pub why: String,
}

/// What it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The address is translated.
    Translated {
        /// What it becomes.
        target: PhysAddr,
        /// Bytes of the leaf that translates it; `None` when nothing is translated.
        leaf: Option<u64>,
        /// What a read comes to.
        read: Result<(), Refused>,
        /// What a write comes to.
        write: Result<(), Refused>,
    },
    /// Refused, whatever was asked for.
    Refused {
        /// A read.
        read: Refused,
        /// A write.
        write: Refused,
    },
    /// A write there is an interrupt message, no DMA.
    Interrupt,
    /// The image lacks something that hardware would read.
    Unknown {
        /// What, and where.
        what: String,
    },
}

impl Outcome {
    /// Whether a read or a write gets through.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Translated { read, write, .. } if read.is_ok() || write.is_ok())
    }
}

/// A translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// Who asks.
    pub asker: Asker,
    /// For which address.
    pub iova: u64,
    /// What hardware reads.
    pub steps: Vec<Step>,
    /// What comes of it.
    pub outcome: Outcome,
    /// Faults of this requester are not recorded (FPD in an entry on the way).
    pub unrecorded: bool,
}

/// How the way ended early.
type Ended = Outcome;

fn refused(reason: Reason, why: impl Into<String>) -> Ended {
    both(Refused { reason: Some(reason), why: why.into() })
}

/// Reads and writes are refused alike.
fn both(refused: Refused) -> Ended {
    Outcome::Refused { read: refused.clone(), write: refused }
}

fn unknown(what: &str, at: PhysAddr) -> Ended {
    Outcome::Unknown { what: format!("the image does not hold the {what} at {at}") }
}

/// Follows a request through one unit.
#[must_use]
pub fn translate(
    memory: &Memory,
    registers: &Registers,
    hardware: Hardware,
    asker: Asker,
    iova: u64,
) -> Translation {
    let cap = registers.cap().unwrap_or(Cap::ZERO.with_sagaw(0b1110).with_mgaw(0x3f));
    let ecap = registers.ecap().unwrap_or(Ecap::from_raw(u64::MAX));
    let mut tracer = Tracer { memory, hardware, cap, ecap, steps: Vec::new(), unrecorded: false };
    let outcome = tracer.run(registers, asker, iova).unwrap_or_else(|ended| ended);
    Translation { asker, iova, steps: tracer.steps, outcome, unrecorded: tracer.unrecorded }
}

struct Tracer<'m> {
    memory: &'m Memory,
    hardware: Hardware,
    cap: Cap,
    ecap: Ecap,
    steps: Vec<Step>,
    unrecorded: bool,
}

/// First byte of the addresses that are interrupt messages.
const INTERRUPTS: u64 = 0xfee0_0000;
/// The first byte behind them.
const INTERRUPTS_END: u64 = 0xfef0_0000;

impl Tracer<'_> {
    fn run(&mut self, registers: &Registers, asker: Asker, iova: u64) -> Result<Outcome, Ended> {
        match registers.gsts() {
            Some(gsts) => {
                let says = if gsts.tes() { "translation is on" } else { "translation is off" };
                self.note("GSTS", vec![u64::from(gsts.raw())], says.into());
                if !gsts.tes() {
                    return Ok(unchanged(iova));
                }
            }
            None => self.note("GSTS", Vec::new(), "not known: translation is taken to be on".into()),
        }
        let Some(rtaddr) = registers.rtaddr() else {
            return Err(Outcome::Unknown { what: "RTADDR is not known".into() });
        };
        let table = rtaddr.table();
        let interrupt = (INTERRUPTS..INTERRUPTS_END).contains(&iova);
        match rtaddr.ttm() {
            table_mode::LEGACY => {
                self.note("RTADDR", vec![rtaddr.raw()], format!("root table at {table}, legacy mode"));
                if asker.pasid.is_some() {
                    return Err(refused(Reason::MODE_PASID_REQUEST, "the unit is in legacy mode"));
                }
                if interrupt {
                    return Ok(Outcome::Interrupt);
                }
                self.legacy(table, asker, iova)
            }
            table_mode::SCALABLE => {
                self.note("RTADDR", vec![rtaddr.raw()], format!("root table at {table}, scalable mode"));
                if interrupt && asker.pasid.is_none() {
                    return Ok(Outcome::Interrupt);
                }
                self.scalable(table, asker, iova)
            }
            table_mode::ABORT_DMA => {
                self.note("RTADDR", vec![rtaddr.raw()], "abort-DMA mode".into());
                Err(both(Refused { reason: None, why: "the unit aborts every DMA".into() }))
            }
            other => Err(refused(Reason::SCALABLE_ROOT_POINTER, format!("RTADDR.TTM is {other}: reserved"))),
        }
    }

    fn note(&mut self, what: &str, raw: Vec<u64>, says: String) {
        self.steps.push(Step { what: what.into(), at: None, raw, says });
    }

    /// Reads an entry of `N` words and notes it; what it says is filled in by [`says`](Self::says).
    fn entry<const N: usize>(&mut self, what: &str, at: PhysAddr) -> Result<[u64; N], Ended> {
        let mut raw = [0; N];
        audit::Image::read(self.memory, at, &mut raw).map_err(|_| unknown(what, at))?;
        self.steps.push(Step { what: what.into(), at: Some(at), raw: raw.to_vec(), says: String::new() });
        Ok(raw)
    }

    fn says(&mut self, says: String) {
        if let Some(step) = self.steps.last_mut() {
            step.says = says;
        }
    }

    fn legacy(&mut self, table: PhysAddr, asker: Asker, iova: u64) -> Result<Outcome, Ended> {
        let source = asker.source;
        let raw = self.entry("root entry", table.plus(16 * u64::from(source.bus())))?;
        let root = RootEntry::from_raw(raw);
        if !root.present() {
            self.says("not present".into());
            return Err(refused(
                Reason::ROOT_NOT_PRESENT,
                format!("bus {:#04x} has no root entry", source.bus()),
            ));
        }
        self.says(format!("context table at {}", root.context_table()));
        reserved(&raw, &RootEntry::RESERVED, Reason::ROOT_RESERVED)?;
        let raw = self.entry("context entry", root.context_table().plus(16 * u64::from(source.devfn())))?;
        let context = ContextEntry::from_raw(raw);
        self.unrecorded |= context.fpd();
        if !context.present() {
            self.says("not present".into());
            return Err(refused(Reason::CONTEXT_NOT_PRESENT, format!("{source} has no context entry")));
        }
        let (kind, levels, id) = (context.translation_type(), context.levels(), context.did());
        let words = crate::model::translation_type_words(kind);
        self.says(match kind {
            TranslationType::PassThrough | TranslationType::Reserved => format!("{words}, domain id {id}"),
            _ => format!("{words}, {levels} levels from {}, domain id {id}", context.top_table()),
        });
        reserved(&raw, &ContextEntry::RESERVED, Reason::CONTEXT_RESERVED)?;
        let invalid = |why: String| Err(refused(Reason::CONTEXT_INVALID, why));
        match kind {
            TranslationType::Reserved => return invalid("its translation type is reserved".into()),
            TranslationType::PassThrough if !self.ecap.pt() => {
                return invalid("the unit has no pass-through (ECAP.PT)".into());
            }
            TranslationType::SecondStageDeviceTlb if !self.ecap.dt() => {
                return invalid("the unit has no device-TLB support (ECAP.DT)".into());
            }
            TranslationType::PassThrough => {
                self.width(iova, 64, Reason::ADDRESS_BEYOND_WIDTH)?;
                return Ok(unchanged(iova));
            }
            _ => {}
        }
        if !self.cap.supports_levels(levels) {
            return invalid(format!("the unit serves no tables of {levels} levels (CAP.SAGAW)"));
        }
        self.width(iova, 12 + 9 * u32::from(levels), Reason::ADDRESS_BEYOND_WIDTH)?;
        self.second_stage(context.top_table(), levels, iova, &paging::LEGACY)
    }

    /// Refuses an address that is wider than the unit or the table translates.
    fn width(&self, iova: u64, table: u32, reason: Reason) -> Result<(), Ended> {
        let unit = self.cap.mgaw() as u32 + 1;
        let bits = unit.min(table);
        if bits < 64 && iova >> bits != 0 {
            return Err(refused(reason, format!("{iova:#x} has more than {bits} bits")));
        }
        Ok(())
    }

    fn scalable(&mut self, table: PhysAddr, asker: Asker, iova: u64) -> Result<Outcome, Ended> {
        let source = asker.source;
        let raw = self.entry("root entry", table.plus(16 * u64::from(source.bus())))?;
        let root = ScalableRootEntry::from_raw(raw);
        let upper = source.devfn() >= 0x80;
        let (half, present, pointer) =
            if upper { ("upper", root.up(), root.uctp()) } else { ("lower", root.lp(), root.lctp()) };
        if !present {
            self.says(format!("{half} half not present"));
            let why = format!("bus {:#04x} has no {half} context table", source.bus());
            return Err(refused(Reason::SCALABLE_ROOT_NOT_PRESENT, why));
        }
        let contexts = PhysAddr::new(pointer << 12);
        self.says(format!("{half} context table at {contexts}"));
        reserved(&raw, &ScalableRootEntry::RESERVED, Reason::SCALABLE_ROOT_RESERVED)?;
        let raw = self.entry("context entry", contexts.plus(32 * u64::from(source.devfn() % 0x80)))?;
        let context = ScalableContextEntry::from_raw(raw);
        self.unrecorded |= context.fpd();
        if !context.present() {
            self.says("not present".into());
            let why = format!("{source} has no context entry");
            return Err(refused(Reason::SCALABLE_CONTEXT_NOT_PRESENT, why));
        }
        let (directory, entries) = (context.directory(), context.directory_entries());
        self.says(format!("PASID directory of {entries} entries at {directory}"));
        reserved(&raw, &ScalableContextEntry::RESERVED, Reason::SCALABLE_CONTEXT_RESERVED)?;
        let pasid = match asker.pasid {
            Some(_) if !context.paside() => {
                return Err(refused(Reason::PASID_DISABLED, "requests with PASID are not served (PASIDE)"));
            }
            Some(pasid) => pasid,
            None if self.ecap.rps() => context.rid_pasid() as u32,
            None => 0,
        };
        if u64::from(pasid >> 6) >= entries {
            let reason = if asker.pasid.is_some() { Reason::PASID_TOO_LARGE } else { Reason::RID_PASID };
            return Err(refused(reason, format!("PASID {pasid} is beyond a directory of {entries} entries")));
        }
        self.pasid(directory, pasid, asker, iova)
    }

    fn pasid(&mut self, directory: PhysAddr, pasid: u32, asker: Asker, iova: u64) -> Result<Outcome, Ended> {
        let [raw] = self.entry("PASID directory entry", directory.plus(8 * directory_index(pasid)))?;
        let entry = PasidDirectoryEntry::from_raw(raw);
        self.unrecorded |= entry.fpd();
        if !entry.present() {
            self.says("not present".into());
            return Err(refused(Reason::PASID_DIRECTORY_NOT_PRESENT, format!("no table for PASID {pasid}")));
        }
        self.says(format!("PASID table at {}", entry.table()));
        reserved(&[raw], &[PasidDirectoryEntry::RESERVED], Reason::PASID_DIRECTORY_RESERVED)?;
        let raw = self.entry("PASID entry", entry.table().plus(64 * table_index(pasid)))?;
        let entry = PasidEntry::from_raw(raw);
        self.unrecorded |= entry.fpd();
        if !entry.present() {
            self.says("not present".into());
            return Err(refused(Reason::PASID_NOT_PRESENT, format!("PASID {pasid} has no entry")));
        }
        let words = crate::model::pasid_translation_words(entry.translation());
        self.says(format!("PASID {pasid}: {words}, domain id {}", entry.did()));
        reserved(&raw, &PasidEntry::RESERVED, Reason::PASID_RESERVED)?;
        let user = asker.pasid.is_some() || !self.privileged_without_pasid();
        self.by_type(entry, user, iova)
    }

    /// Whether requests without PASID are privileged (RID_PRIV of the context entry, read before).
    fn privileged_without_pasid(&self) -> bool {
        let context = self.steps.iter().find(|step| step.what == "context entry");
        let raw = context.and_then(|step| <[u64; 4]>::try_from(step.raw.as_slice()).ok());
        self.ecap.rprivs() && raw.is_some_and(|raw| ScalableContextEntry::from_raw(raw).rid_priv())
    }

    fn by_type(&mut self, entry: PasidEntry, user: bool, iova: u64) -> Result<Outcome, Ended> {
        let invalid = |why: String| Err(refused(Reason::PASID_INVALID, why));
        let levels = entry.second_stage_levels();
        let second = matches!(entry.translation(), PasidTranslation::SecondStage | PasidTranslation::Nested);
        if second && !self.cap.supports_levels(levels) {
            return invalid(format!("the unit serves no second-stage tables of {levels} levels (CAP.SAGAW)"));
        }
        match entry.translation() {
            PasidTranslation::Reserved(value) => invalid(format!("translation type {value} is reserved")),
            PasidTranslation::PassThrough if !self.ecap.pt() => {
                invalid("the unit has no pass-through (ECAP.PT)".into())
            }
            PasidTranslation::PassThrough => {
                self.width(iova, 64, Reason::SCALABLE_BEYOND_WIDTH)?;
                Ok(unchanged(iova))
            }
            PasidTranslation::SecondStage if !self.ecap.ssts() => {
                invalid("the unit has no second stage in scalable mode (ECAP.SSTS)".into())
            }
            PasidTranslation::SecondStage => {
                self.width(iova, 64, Reason::SCALABLE_BEYOND_WIDTH)?;
                self.width(iova, 12 + 9 * u32::from(levels), Reason::SECOND_STAGE_BEYOND_WIDTH)?;
                self.second_stage(entry.second_stage_table(), levels, iova, &paging::SCALABLE)
            }
            PasidTranslation::FirstStage if !self.ecap.fsts() => {
                invalid("the unit has no first stage (ECAP.FSTS)".into())
            }
            PasidTranslation::Nested if !self.ecap.nest() => {
                invalid("the unit has no nested translation (ECAP.NEST)".into())
            }
            PasidTranslation::FirstStage => self.first_stage(entry, None, user, iova),
            PasidTranslation::Nested => {
                self.first_stage(entry, Some((entry.second_stage_table(), levels)), user, iova)
            }
        }
    }
}

/// The address as it came: nothing translates it.
fn unchanged(iova: u64) -> Outcome {
    Outcome::Translated { target: PhysAddr::new(iova), leaf: None, read: Ok(()), write: Ok(()) }
}

/// Refuses an entry with reserved bits.
fn reserved(raw: &[u64], mask: &[u64], reason: Reason) -> Result<(), Ended> {
    for (word, (raw, mask)) in raw.iter().zip(mask).enumerate() {
        if raw & mask != 0 {
            return Err(refused(reason, format!("bits {:#x} of word {word} are set", raw & mask)));
        }
    }
    Ok(())
}

/// What passes, as what a read and a write come to.
fn verdicts(
    access: Access,
    read: Reason,
    write: Reason,
    at: &str,
) -> (Result<(), Refused>, Result<(), Refused>) {
    let verdict = |passes: bool, reason, what| {
        let why = format!("{what} is not permitted at {at}");
        if passes { Ok(()) } else { Err(Refused { reason: Some(reason), why }) }
    };
    (verdict(access.read, read, "reading"), verdict(access.write, write, "writing"))
}

/// A word of the image, or why not.
fn word(memory: &Memory, what: &str, at: PhysAddr) -> Result<u64, Ended> {
    image::word(memory, at).map_err(|_| unknown(what, at))
}
