//! From a unit's registers down to its context and PASID entries.

use super::{
    Attachment, Builder, Context, ContextTable, Mode, Pasid, Problem, Requester, Route, Space, Unit,
    interrupts,
};
use crate::image;
use crate::registers::Registers;
use crate::tables::{Stage, Top};
use spec::context::{self, ContextEntry, TranslationType};
use spec::regs::table_mode;
use spec::root::{self, RootEntry, ScalableRootEntry};
use spec::scalable::{
    CONTEXT_ENTRIES, PASID_TABLE_ENTRIES, PasidDirectoryEntry, PasidEntry, PasidTranslation,
    ScalableContextEntry,
};
use spec::{PAGE_SIZE, PhysAddr, SourceId};
use std::collections::BTreeMap;

/// Requesters that a unit may have: a context entry for each source id.
const BUSES: u64 = root::ENTRIES;

impl Builder<'_> {
    /// Reads a unit.
    pub(super) fn unit(&mut self, registers: Registers) -> Unit {
        let rtaddr = registers.rtaddr();
        let mode = rtaddr.map(|rtaddr| match rtaddr.ttm() {
            table_mode::LEGACY => Mode::Legacy,
            table_mode::SCALABLE => Mode::Scalable,
            table_mode::ABORT_DMA => Mode::AbortDma,
            other => Mode::Reserved(other),
        });
        let interrupts = interrupts::table(self.memory, &registers, self.limits);
        let queue = interrupts::queue(self.memory, &registers);
        let mut unit = Unit {
            mode,
            translating: registers.gsts().map(|gsts| gsts.tes()),
            requesters: Vec::new(),
            context_tables: Vec::new(),
            interrupts,
            queue,
            problems: Vec::new(),
            problems_left_off: 0,
            pasids_left_off: false,
            registers,
        };
        // With a null pointer and translation off there is no table: firmware or a kernel that does not use the unit.
        let used = rtaddr.is_some_and(|rtaddr| rtaddr.rta() != 0) || unit.translating == Some(true);
        if let (Some(mode @ (Mode::Legacy | Mode::Scalable)), Some(rtaddr), true) = (mode, rtaddr, used) {
            self.root_table(&mut unit, rtaddr.table(), mode);
        }
        unit
    }

    fn root_table(&mut self, unit: &mut Unit, table: PhysAddr, mode: Mode) {
        let Ok(words) = image::table(self.memory, table) else {
            self.problem(unit, table, "root table".into(), "the image does not hold it".into());
            return;
        };
        for bus in 0..BUSES {
            let entry = [words[2 * bus as usize], words[2 * bus as usize + 1]];
            let at = table.plus(16 * bus);
            let bus = bus as u8;
            match mode {
                Mode::Scalable => self.scalable_bus(unit, bus, at, entry),
                _ => self.legacy_bus(unit, bus, at, entry),
            }
        }
    }

    fn legacy_bus(&mut self, unit: &mut Unit, bus: u8, at: PhysAddr, raw: [u64; 2]) {
        let entry = RootEntry::from_raw(raw);
        if !entry.present() {
            return;
        }
        let reserved = [raw[0] & RootEntry::RESERVED[0], raw[1] & RootEntry::RESERVED[1]];
        self.judge_reserved(unit, at, &format!("root entry of bus {bus:#04x}"), &reserved);
        let table = entry.context_table();
        unit.context_tables.push(ContextTable { at: table, bus, upper: false });
        let Ok(words) = image::table(self.memory, table) else {
            self.missing(unit, table, format!("context table of bus {bus:#04x}"));
            return;
        };
        for devfn in 0..context::ENTRIES {
            let pair = [words[2 * devfn as usize], words[2 * devfn as usize + 1]];
            let entry = ContextEntry::from_raw(pair);
            if !entry.present() {
                continue;
            }
            let source = SourceId::from_raw(u16::from(bus) << 8 | devfn as u16);
            let context_at = table.plus(16 * devfn);
            let reserved = [pair[0] & ContextEntry::RESERVED[0], pair[1] & ContextEntry::RESERVED[1]];
            self.judge_reserved(unit, context_at, &format!("context entry of {source}"), &reserved);
            let route = match entry.translation_type() {
                TranslationType::PassThrough => Route::PassThrough,
                TranslationType::Reserved => Route::Refused,
                _ => self.space(Top {
                    stage: Stage::Second,
                    table: entry.top_table(),
                    levels: entry.levels(),
                    through: None,
                }),
            };
            if route == Route::Refused {
                self.problem(unit, context_at, format!("context entry of {source}"), "reserved type".into());
            }
            unit.requesters.push(Requester {
                source,
                root_at: at,
                root: raw,
                context_at,
                context: Context::Legacy(entry),
                attachments: vec![Attachment { pasid: None, domain_id: entry.domain_id().0, route }],
                pasid_tables: Vec::new(),
            });
        }
    }

    fn scalable_bus(&mut self, unit: &mut Unit, bus: u8, at: PhysAddr, raw: [u64; 2]) {
        let entry = ScalableRootEntry::from_raw(raw);
        let reserved = [raw[0] & ScalableRootEntry::RESERVED[0], raw[1] & ScalableRootEntry::RESERVED[1]];
        if entry.lp() || entry.up() {
            self.judge_reserved(unit, at, &format!("root entry of bus {bus:#04x}"), &reserved);
        }
        for (present, pointer, upper) in [(entry.lp(), entry.lctp(), false), (entry.up(), entry.uctp(), true)]
        {
            if !present {
                continue;
            }
            let table = PhysAddr::new(pointer << 12);
            unit.context_tables.push(ContextTable { at: table, bus, upper });
            let Ok(words) = image::table(self.memory, table) else {
                let half = if upper { "upper" } else { "lower" };
                self.missing(unit, table, format!("{half} context table of bus {bus:#04x}"));
                continue;
            };
            for slot in 0..CONTEXT_ENTRIES {
                let from = 4 * slot as usize;
                let four = [words[from], words[from + 1], words[from + 2], words[from + 3]];
                let entry = ScalableContextEntry::from_raw(four);
                if !entry.present() {
                    continue;
                }
                let devfn = slot as u16 | u16::from(upper) << 7;
                let source = SourceId::from_raw(u16::from(bus) << 8 | devfn);
                let context_at = table.plus(32 * slot);
                let mut reserved = four;
                for (word, mask) in reserved.iter_mut().zip(ScalableContextEntry::RESERVED) {
                    *word &= mask;
                }
                self.judge_reserved(unit, context_at, &format!("context entry of {source}"), &reserved);
                let mut requester = Requester {
                    source,
                    root_at: at,
                    root: raw,
                    context_at,
                    context: Context::Scalable(entry),
                    attachments: Vec::new(),
                    pasid_tables: Vec::new(),
                };
                self.pasids(unit, &mut requester, entry);
                unit.requesters.push(requester);
            }
        }
    }

    /// Reads the PASID directory of a requester and the tables below it.
    fn pasids(&mut self, unit: &mut Unit, requester: &mut Requester, context: ScalableContextEntry) {
        if self.pasids >= self.limits.pasids {
            unit.pasids_left_off = true;
            return;
        }
        let entries = context.directory_entries();
        requester.pasid_tables.push((context.directory(), 8 * entries));
        for page in 0..(8 * entries).div_ceil(PAGE_SIZE) {
            let at = context.directory().plus(page * PAGE_SIZE);
            let per_page = PAGE_SIZE / 8;
            // A directory of 128 entries has less than a page.
            let count = entries.saturating_sub(page * per_page).min(per_page) as usize;
            let mut words = vec![0; count];
            if audit::Image::read(self.memory, at, &mut words).is_err() {
                self.missing(unit, at, format!("PASID directory of {}", requester.source));
                continue;
            }
            for (slot, &raw) in words.iter().enumerate() {
                let entry = PasidDirectoryEntry::from_raw(raw);
                if entry.present() {
                    let number = page * per_page + slot as u64;
                    self.pasid_table(unit, requester, context, number, at.plus(8 * slot as u64), entry);
                }
            }
        }
    }

    fn pasid_table(
        &mut self,
        unit: &mut Unit,
        requester: &mut Requester,
        context: ScalableContextEntry,
        number: u64,
        directory_at: PhysAddr,
        directory: PasidDirectoryEntry,
    ) {
        let table = directory.table();
        if self.pasids >= self.limits.pasids {
            unit.pasids_left_off = true;
            return;
        }
        self.pasids += PASID_TABLE_ENTRIES as usize;
        requester.pasid_tables.push((table, PAGE_SIZE));
        let Ok(words) = image::table(self.memory, table) else {
            self.missing(unit, table, format!("PASID table of {}", requester.source));
            return;
        };
        for (slot, raw) in words.as_chunks::<8>().0.iter().enumerate() {
            let entry = PasidEntry::from_raw(*raw);
            if !entry.present() {
                continue;
            }
            let pasid = (number << 6) as u32 | slot as u32;
            let at = table.plus(64 * slot as u64);
            let subject = || format!("PASID entry {pasid} of {}", requester.source);
            let mut reserved = *raw;
            for (word, mask) in reserved.iter_mut().zip(PasidEntry::RESERVED) {
                *word &= mask;
            }
            if reserved.iter().any(|word| *word != 0) {
                self.judge_reserved(unit, at, &subject(), &reserved);
            }
            let route = self.pasid_route(entry);
            if route == Route::Refused {
                self.problem(unit, at, subject(), "reserved type".into());
            }
            requester.attachments.push(Attachment {
                pasid: Some(Pasid {
                    number: pasid,
                    is_rid_pasid: u64::from(pasid) == context.rid_pasid(),
                    directory_at,
                    directory: directory.raw(),
                    at,
                    entry,
                }),
                domain_id: entry.domain_id().0,
                route,
            });
        }
    }

    fn pasid_route(&mut self, entry: PasidEntry) -> Route {
        match pasid_top(entry) {
            Some(top) => self.space(top),
            None if entry.translation() == PasidTranslation::PassThrough => Route::PassThrough,
            None => Route::Refused,
        }
    }

    /// The number of the page table `top`, each once.
    fn space(&mut self, top: Top) -> Route {
        let known = self.known.get(&top).copied();
        let number = known.unwrap_or_else(|| {
            self.tops.push((top, 0));
            self.known.insert(top, self.tops.len() - 1);
            self.tops.len() - 1
        });
        self.tops[number].1 += 1;
        Route::Space(number)
    }

    fn missing(&self, unit: &mut Unit, at: PhysAddr, subject: String) {
        self.problem(unit, at, subject, "the image does not hold it".into());
    }

    fn judge_reserved(&self, unit: &mut Unit, at: PhysAddr, subject: &str, reserved: &[u64]) {
        if reserved.iter().all(|word| *word == 0) {
            return;
        }
        let words: Vec<String> = reserved.iter().map(|word| format!("{word:#x}")).collect();
        let what = format!("reserved bits are set: hardware faults here ({})", words.join(" "));
        self.problem(unit, at, subject.to_owned(), what);
    }

    fn problem(&self, unit: &mut Unit, at: PhysAddr, subject: String, what: String) {
        if unit.problems.len() < self.limits.problems {
            unit.problems.push(Problem { at, subject, what });
        } else {
            unit.problems_left_off += 1;
        }
    }
}

/// The page table that a PASID entry names; `None` for those that name none.
#[must_use]
pub(crate) fn pasid_top(entry: PasidEntry) -> Option<Top> {
    let first = Top {
        stage: Stage::First,
        table: entry.first_stage_table(),
        levels: entry.first_stage_levels(),
        through: None,
    };
    match entry.translation() {
        PasidTranslation::FirstStage => Some(first),
        PasidTranslation::SecondStage => Some(Top {
            stage: Stage::Second,
            table: entry.second_stage_table(),
            levels: entry.second_stage_levels(),
            through: None,
        }),
        PasidTranslation::Nested => {
            let through = Some((entry.second_stage_table(), entry.second_stage_levels()));
            Some(Top { through, ..first })
        }
        PasidTranslation::PassThrough | PasidTranslation::Reserved(_) => None,
    }
}

/// Domain ids of one unit: hardware tags what it caches with them, so that one id must mean one page table (VT-d 6.2.1).
pub(super) fn judge_domain_ids(unit: &mut Unit, spaces: &[Space]) {
    let ids = unit.registers.cap().map_or(1 << 16, |cap| cap.domain_ids());
    // First stage and nested are tagged with the PASID as well.
    let mut used: BTreeMap<(u16, Option<u32>), (usize, SourceId)> = BTreeMap::new();
    let mut found = Vec::new();
    for requester in &unit.requesters {
        for attachment in &requester.attachments {
            let id = attachment.domain_id;
            let at = attachment.pasid.map_or(requester.context_at, |pasid| pasid.at);
            let mut say = |what| {
                found.push(Problem { at, subject: format!("domain id {id} of {}", requester.source), what });
            };
            if u32::from(id) >= ids {
                say(format!("the unit tells {ids} ids apart"));
            }
            let Route::Space(space) = attachment.route else { continue };
            let tagged = spaces.get(space).is_some_and(|space| space.top.stage == Stage::First);
            let tag = (id, attachment.pasid.filter(|_| tagged).map(|pasid| pasid.number));
            match used.get(&tag) {
                Some((other, first)) if *other != space => {
                    say(format!("used for another page table by {first}: cached translations get mixed up"));
                }
                _ => {
                    used.insert(tag, (space, requester.source));
                }
            }
        }
    }
    let room = 256_usize.saturating_sub(unit.problems.len());
    unit.problems_left_off += found.len().saturating_sub(room) as u64;
    found.truncate(room);
    unit.problems.extend(found);
}
