//! A request's way through a unit (VT-d 3.4, 3.7): root, context, second stage, each step answered by a cache where it can be.

use super::cache::{Context, ContextAnswer, PageAnswer, Route, Tag};
use super::unit::{Outcome, Unit};
use super::walk::{self, Access, Leaf, Refusal, Rules, Table};
use crate::fabric::Fabric;
use crate::memory::View;
use crate::trace::TraceLine;
use spec::context::{ContextEntry, TranslationType};
use spec::fault::Reason;
use spec::regs::offset;
use spec::root::RootEntry;
use spec::SourceId;

/// Writes in this range are interrupt messages, never memory (VT-d 3.14).
const INTERRUPT_RANGE: core::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// Protected memory has this granularity here.
const PROTECTED_ALIGN: u64 = 2 << 20;

impl Unit {
    /// Where a request of `source` for `bytes` bytes at `iova`, within one page, goes. The trace hears of it.
    pub(crate) fn translate(
        &mut self,
        source: SourceId,
        iova: u64,
        bytes: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> Outcome {
        let at = fabric.now;
        if INTERRUPT_RANGE.contains(&iova) {
            fabric.trace.push(TraceLine::Dropped { at, source, address: iova, write });
            return Outcome::NoMemory;
        }
        if !self.status.tes() {
            return self.direct(source, iova, bytes, write, fabric);
        }
        let context = match self.context(source, fabric) {
            Ok(context) => context,
            Err((reason, quiet)) => return self.refuse(source, iova, write, reason, quiet, fabric),
        };
        if iova.checked_shr(self.input_width(context.route)).unwrap_or(0) != 0 {
            return self.refuse(source, iova, write, Reason::ADDRESS_BEYOND_WIDTH, context.quiet, fabric);
        }
        match self.output(source, context, iova, write, fabric) {
            Ok(output) => {
                if context.route == Route::PassThrough && self.is_protected(output, bytes) {
                    fabric.trace.push(TraceLine::Dropped { at, source, address: output, write });
                    return Outcome::Refused;
                }
                let unit = self.config.id;
                fabric.trace.push(TraceLine::Translated { at, unit, source, iova, output, bytes, write });
                Outcome::To(output)
            }
            Err(reason) => self.refuse(source, iova, write, reason, context.quiet, fabric),
        }
    }

    /// With translation off: memory as it is, but for the protected ranges.
    fn direct(
        &self,
        source: SourceId,
        address: u64,
        bytes: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> Outcome {
        let at = fabric.now;
        if self.is_protected(address, bytes) {
            fabric.trace.push(TraceLine::Dropped { at, source, address, write });
            return Outcome::Refused;
        }
        fabric.trace.push(TraceLine::Untranslated { at, source, address, bytes, write });
        Outcome::To(address)
    }

    fn refuse(
        &mut self,
        source: SourceId,
        iova: u64,
        write: bool,
        reason: Reason,
        quiet: bool,
        fabric: &mut Fabric,
    ) -> Outcome {
        let recorded = !quiet && self.faults.record(source, iova, reason, write);
        let (at, unit) = (fabric.now, self.config.id);
        fabric.trace.push(TraceLine::Faulted { at, unit, source, iova, reason, write, recorded });
        Outcome::Refused
    }

    /// Bits of an input address that the route can map.
    fn input_width(&self, route: Route) -> u32 {
        let unit = self.config.cap.mgaw() as u32 + 1;
        match route {
            Route::PassThrough if self.config.quirks.pass_through_unchecked => 64,
            Route::PassThrough => unit.min(u32::from(self.host_width)),
            Route::SecondStage { levels, .. } => unit.min(12 + 9 * u32::from(levels)),
        }
    }

    fn context(&mut self, source: SourceId, fabric: &mut Fabric) -> ContextAnswer {
        if let Some(answer) = self.caches.context(source) {
            return answer;
        }
        let answer = self.read_context(source, fabric);
        if answer.is_ok() || self.config.cap.cm() {
            self.caches.keep_context(source, answer);
        }
        answer
    }

    fn read_context(&self, source: SourceId, fabric: &mut Fabric) -> ContextAnswer {
        const ENTRY: u64 = 16;
        let loud = |reason| (reason, false);
        if self.root.ttm() != 0 {
            // Scalable mode is not built: its root address is one that this unit cannot use.
            return Err(loud(Reason(0x30)));
        }
        let load = |at: u64| Some([self.load(at, fabric)?, self.load(at + 8, fabric)?]);
        let beyond_host = |frame: u64| frame >> (self.host_width - 12) != 0;
        let root = load(self.root.table().get() + ENTRY * u64::from(source.bus()));
        let root = RootEntry::from_raw(root.ok_or(loud(Reason::ROOT_ACCESS))?);
        if !root.present() {
            return Err(loud(Reason::ROOT_NOT_PRESENT));
        }
        if any(root.raw(), RootEntry::RESERVED) || beyond_host(root.ctp()) {
            return Err(loud(Reason::ROOT_RESERVED));
        }
        let entry = load(root.context_table().get() + ENTRY * u64::from(source.devfn()));
        let entry = ContextEntry::from_raw(entry.ok_or(loud(Reason::CONTEXT_ACCESS))?);
        let quiet = entry.fpd();
        if !entry.present() {
            return Err((Reason::CONTEXT_NOT_PRESENT, quiet));
        }
        let wide_domain = entry.did() >= u64::from(self.config.cap.domain_ids());
        if any(entry.raw(), ContextEntry::RESERVED) || beyond_host(entry.ssptptr()) || wide_domain {
            return Err((Reason::CONTEXT_RESERVED, quiet));
        }
        let route = self.route(entry).ok_or((Reason::CONTEXT_INVALID, quiet))?;
        self.note_oddities(entry, route, fabric);
        Ok(Context { domain: entry.did() as u16, route, quiet })
    }

    fn route(&self, entry: ContextEntry) -> Option<Route> {
        if !self.config.cap.supports_levels(entry.levels()) {
            return None;
        }
        let second = Route::SecondStage { top: entry.top_table().get(), levels: entry.levels() };
        match entry.translation_type() {
            TranslationType::SecondStage => Some(second),
            TranslationType::SecondStageDeviceTlb => self.config.ecap.dt().then_some(second),
            TranslationType::PassThrough => self.config.ecap.pt().then_some(Route::PassThrough),
            TranslationType::Reserved => None,
        }
    }

    /// Rules for software that hardware does not enforce.
    fn note_oddities(&self, entry: ContextEntry, route: Route, fabric: &mut Fabric) {
        let highest = (2..=6).rev().find(|&levels| self.config.cap.supports_levels(levels));
        if route == Route::PassThrough && Some(entry.levels()) != highest {
            fabric.misuse(self.config.id, "a pass-through entry without the largest address width");
        }
        if self.config.cap.cm() && entry.did() == 0 {
            fabric.misuse(self.config.id, "domain id 0 on a unit with caching mode");
        }
    }

    fn output(
        &mut self,
        source: SourceId,
        context: Context,
        iova: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> Result<u64, Reason> {
        let Route::SecondStage { top, levels } = context.route else { return Ok(iova) };
        let denied = if write { Reason::WRITE_DENIED } else { Reason::READ_DENIED };
        let leaf = match self.page(self.tag(source, context), top, levels, iova, write, fabric) {
            Ok(leaf) => leaf,
            Err(Refusal::NotPresent) => return Err(denied),
            Err(Refusal::Reserved) => return Err(Reason::PAGING_RESERVED),
            // The top table's address comes from the context entry, which is what is wrong then.
            Err(Refusal::Unreadable(level)) if level + 1 == levels => return Err(Reason::CONTEXT_INVALID),
            Err(Refusal::Unreadable(_)) => return Err(Reason::PAGING_ENTRY_ACCESS),
        };
        if !leaf.permits(write) {
            return Err(denied);
        }
        let output = leaf.at(iova);
        if INTERRUPT_RANGE.contains(&output) {
            return Err(Reason::OUTPUT_IN_INTERRUPT_RANGE);
        }
        Ok(output)
    }

    fn tag(&self, source: SourceId, context: Context) -> Tag {
        Tag { domain: context.domain, source: (!self.config.caching.shared).then_some(source) }
    }

    /// Whether a request of `source` for `iova` would be answered without a look at memory.
    pub(crate) fn has_cached(&self, source: SourceId, iova: u64) -> bool {
        match self.caches.context(source) {
            Some(Ok(context)) => self.caches.page(self.tag(source, context), iova).is_some(),
            _ => false,
        }
    }

    fn page(
        &mut self,
        tag: Tag,
        top: u64,
        levels: u8,
        iova: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> PageAnswer {
        if let Some(answer) = self.caches.page(tag, iova) {
            return answer;
        }
        let answer = self.walk(tag, top, levels, iova, write, fabric);
        let keeps = match answer {
            Ok(leaf) => self.config.caching.denied || serves(leaf, iova, write),
            Err(_) => self.config.cap.cm(),
        };
        if keeps {
            self.caches.keep_page(tag, iova, answer, &mut fabric.dice);
        }
        answer
    }

    fn walk(
        &mut self,
        tag: Tag,
        top: u64,
        levels: u8,
        iova: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> Result<Leaf, Refusal> {
        let access = if write { Access::Write } else { Access::Read };
        let rules = Rules {
            host_width: u32::from(self.host_width),
            large_leaves: self.config.cap.sslps(),
            snoop_control: self.config.ecap.sc(),
            permission_first: self.config.quirks.permission_first.then_some(access),
        };
        let from_top = Table { address: top, level: levels - 1, read: true, write: true };
        let start = self.caches.lowest_table(tag, iova, levels).unwrap_or(from_top);
        let mut passed = Vec::new();
        let answer = walk::walk(start, iova, rules, |at| self.load(at, fabric), |table| passed.push(table));
        for table in passed.into_iter().filter(|_| self.config.caching.tables) {
            self.caches.keep_table(tag, iova, table, &mut fabric.dice);
        }
        answer
    }

    /// One word of a table, as the unit's own walks see it.
    fn load(&self, at: u64, fabric: &Fabric) -> Option<u64> {
        let view = View::walker(self.config.ecap.c(), self.config.cap.rwbf(), fabric.now);
        fabric.memory.load_as(at, view).ok()
    }

    /// Whether a byte of the run lies in a protected range while protection is on (VT-d 11.4.8).
    fn is_protected(&self, address: u64, bytes: u64) -> bool {
        if !self.pmen.prs() {
            return false;
        }
        let hits = |base: u64, limit: u64| {
            let (base, last) = (base & !(PROTECTED_ALIGN - 1), limit | (PROTECTED_ALIGN - 1));
            base <= last && address <= last && base < address.saturating_add(bytes)
        };
        let plain = |at| self.plain.get(&at).copied().unwrap_or(0);
        let low = self.config.cap.plmr() && hits(plain(offset::PLMBASE), plain(offset::PLMLIMIT));
        low || self.config.cap.phmr() && hits(plain(offset::PHMBASE), plain(offset::PHMLIMIT))
    }
}

/// Whether the leaf lets the request through.
fn serves(leaf: Leaf, iova: u64, write: bool) -> bool {
    leaf.permits(write) && !INTERRUPT_RANGE.contains(&leaf.at(iova))
}

fn any(words: [u64; 2], mask: [u64; 2]) -> bool {
    words[0] & mask[0] != 0 || words[1] & mask[1] != 0
}
