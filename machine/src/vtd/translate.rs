//! A request's way through a unit (VT-d 3.4 to 3.8): what it is translated by, as `lookup` finds it, and the stages of that,
//! answered by a cache where they can be.

use super::cache::{Context, PageAnswer, Route, Tag};
use super::first;
use super::unit::{Outcome, Unit};
use super::walk::{self, Access, Leaf, Refusal, Rules, Table};
use crate::device_tlb::Kept;
use crate::fabric::Fabric;
use crate::memory::{PAGE, View};
use crate::trace::TraceLine;
use spec::fault::Reason;
use spec::regs::offset;
use spec::{SourceId, second_stage};

/// Writes in this range are interrupt messages, never memory (VT-d 3.14).
const INTERRUPT_RANGE: core::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// Protected memory has this granularity here.
const PROTECTED_ALIGN: u64 = 2 << 20;

/// What a device asks for.
#[derive(Debug, Clone, Copy)]
struct Request {
    source: SourceId,
    pasid: Option<u32>,
    iova: u64,
    write: bool,
}

impl Unit {
    /// Where a request of `source` for `bytes` bytes at `iova`, within one page, goes, with a PASID or without. The trace hears
    /// of it.
    pub(crate) fn translate_as(
        &mut self,
        source: SourceId,
        pasid: Option<u32>,
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
        let request = Request { source, pasid, iova, write };
        let context = match self.context(source, pasid, fabric) {
            Ok(context) => context,
            Err((reason, quiet)) => return self.refuse(request, reason, quiet, fabric),
        };
        if let Some(reason) = self.input_fault(context, iova) {
            return self.refuse_walked(request, reason, context.quiet, fabric);
        }
        match self.output(source, context, iova, write, fabric) {
            Ok(output) => {
                if context.route == Route::PassThrough && self.is_protected(output, bytes) {
                    fabric.trace.push(TraceLine::Dropped { at, source, address: output, write });
                    return Outcome::Refused;
                }
                self.let_through(request, output, bytes, fabric);
                Outcome::To(output)
            }
            Err(reason) => self.refuse_walked(request, reason, context.quiet, fabric),
        }
    }

    /// Answers a device that asks for the translation of a page, to keep it; `None` where it gets none. That by itself is no
    /// fault: whatever it then asks for is.
    pub(crate) fn translation_request(
        &mut self,
        (source, pasid): (SourceId, Option<u32>),
        iova: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> Option<Kept> {
        if !self.status.tes() || INTERRUPT_RANGE.contains(&iova) {
            return None;
        }
        let context = self.context(source, pasid, fabric).ok().filter(|context| context.device_tlb)?;
        if self.input_fault(context, iova).is_some() {
            return None;
        }
        let leaf = self.page(self.tag(source, context), context.route, iova, write, fabric).ok()?;
        let permits = leaf.permits(write) && leaf.read && !INTERRUPT_RANGE.contains(&leaf.at(iova));
        permits.then(|| Kept { page: leaf.at(iova) & !(PAGE - 1), write: leaf.write })
    }

    /// Whether a request with an address that the device had translated passes: as it is, if its entry allows that
    /// (VT-d 4.1). No table below is looked at, nor what the PASID of the request leads to: a device that was not made to forget
    /// a PASID goes on with it.
    pub(crate) fn translated_request(
        &mut self,
        source: SourceId,
        iova: u64,
        output: u64,
        bytes: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> bool {
        if !self.status.tes() {
            fabric.trace.push(TraceLine::Dropped { at: fabric.now, source, address: output, write });
            return false;
        }
        let request = Request { source, pasid: None, iova: output, write };
        match self.context(source, None, fabric) {
            Ok(context) if context.device_tlb => {
                self.let_through(Request { iova, ..request }, output, bytes, fabric);
                return true;
            }
            Ok(context) => {
                let reason =
                    if context.scalable { Reason::DEVICE_TLB_DISABLED } else { Reason::REQUEST_TYPE_BLOCKED };
                self.refuse(request, reason, context.quiet, fabric);
            }
            Err((reason, quiet)) => {
                self.refuse(request, reason, quiet, fabric);
            }
        }
        false
    }

    /// Tells the trace that a request reached `output`.
    fn let_through(&self, request: Request, output: u64, bytes: u64, fabric: &mut Fabric) {
        let Request { source, pasid, iova, write } = request;
        let (at, unit) = (fabric.now, self.config.id);
        fabric.trace.push(TraceLine::Translated { at, unit, source, pasid, iova, output, bytes, write });
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
        let segment = self.config.id.segment;
        fabric.trace.push(TraceLine::Untranslated { at, segment, source, address, bytes, write });
        Outcome::To(address)
    }

    fn refuse(&mut self, request: Request, reason: Reason, quiet: bool, fabric: &mut Fabric) -> Outcome {
        self.refuse_showing(request, request.pasid, reason, quiet, fabric)
    }

    /// Refuses a request; the fault record shows the PASID `shown`.
    fn refuse_showing(
        &mut self,
        request: Request,
        shown: Option<u32>,
        reason: Reason,
        quiet: bool,
        fabric: &mut Fabric,
    ) -> Outcome {
        let Request { source, pasid, iova, write } = request;
        let reason = if self.config.quirks.legacy_reasons { legacy_reason(reason, write) } else { reason };
        let recorded = !quiet && self.faults.record_as(source, shown, iova, reason, write);
        let (at, unit) = (fabric.now, self.config.id);
        fabric.trace.push(TraceLine::Faulted { at, unit, source, pasid, iova, reason, write, recorded });
        Outcome::Refused
    }

    /// Refuses a request for which context and PASID entry were found.
    fn refuse_walked(
        &mut self,
        request: Request,
        reason: Reason,
        quiet: bool,
        fabric: &mut Fabric,
    ) -> Outcome {
        let shows_own = self.config.quirks.own_pasid_shown && self.root.ttm() == 1;
        let shown = request.pasid.or(shows_own.then_some(0));
        self.refuse_showing(request, shown, reason, quiet, fabric)
    }

    /// Why the input address cannot be translated at all, if so.
    fn input_fault(&self, context: Context, iova: u64) -> Option<Reason> {
        let unit = self.config.cap.mgaw() as u32 + 1;
        let beyond = |width: u32| iova.checked_shr(width).unwrap_or(0) != 0;
        let reason = |scalable| if context.scalable { scalable } else { Reason::ADDRESS_BEYOND_WIDTH };
        match context.route {
            Route::PassThrough if self.config.quirks.pass_through_unchecked => None,
            Route::PassThrough => {
                beyond(unit.min(u32::from(self.host_width))).then_some(reason(Reason::SCALABLE_BEYOND_WIDTH))
            }
            Route::SecondStage { .. } if beyond(unit) => Some(reason(Reason::SCALABLE_BEYOND_WIDTH)),
            Route::SecondStage { levels, .. } => {
                beyond(width(levels)).then_some(reason(Reason::SECOND_STAGE_BEYOND_WIDTH))
            }
            Route::FirstStage { width, .. } => {
                (!first::is_canonical(iova, width)).then_some(Reason::NOT_CANONICAL)
            }
            Route::Nested { first_levels, .. } => {
                (!first::is_canonical(iova, 12 + 9 * first_levels)).then_some(Reason::NOT_CANONICAL)
            }
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
        if context.route == Route::PassThrough {
            return Ok(iova);
        }
        let denied = |write| denied(context, write);
        let leaf = match self.page(self.tag(source, context), context.route, iova, write, fabric) {
            Ok(leaf) => leaf,
            Err(refusal) => return Err(reason(context, refusal, write)),
        };
        if !leaf.permits(write) {
            return Err(denied(write));
        }
        let output = leaf.at(iova);
        if INTERRUPT_RANGE.contains(&output) {
            return Err(if context.scalable {
                Reason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE
            } else {
                Reason::OUTPUT_IN_INTERRUPT_RANGE
            });
        }
        Ok(output)
    }

    fn tag(&self, source: SourceId, context: Context) -> Tag {
        let pasid = match context.route {
            Route::FirstStage { pasid, .. } | Route::Nested { pasid, .. } => Some(pasid),
            Route::PassThrough | Route::SecondStage { .. } => None,
        };
        Tag { domain: context.domain, source: (!self.config.caching.shared).then_some(source), pasid }
    }

    /// Whether a request without PASID of `source` for `iova` would be answered from what the unit has cached for it.
    pub(crate) fn has_cached(&self, source: SourceId, iova: u64, fabric: &Fabric) -> bool {
        match self.peek_context(source, fabric) {
            Some(context) => self.caches.page(self.tag(source, context), iova).is_some(),
            None => false,
        }
    }

    /// The domain id of what a request without PASID of `source` is translated by.
    pub(crate) fn domain(&self, source: SourceId, fabric: &Fabric) -> Option<u16> {
        Some(self.peek_context(source, fabric)?.domain)
    }

    fn page(&mut self, tag: Tag, route: Route, iova: u64, write: bool, fabric: &mut Fabric) -> PageAnswer {
        match self.caches.page(tag, iova) {
            // A first write to a page that was cached clean goes to memory for the dirty bit.
            Some(Ok(leaf)) if write && leaf.write && !leaf.dirty && !self.config.quirks.dirty_missed => {}
            Some(answer) => return answer,
            None => {}
        }
        let answer = match route {
            Route::SecondStage { top, levels } => self.second_walk(tag, top, levels, iova, write, fabric),
            Route::FirstStage { top, levels, .. } => self.first_walk(top, levels, iova, write, None, fabric),
            Route::Nested { first, first_levels, second, second_levels, .. } => {
                let below = Some((second, second_levels));
                self.first_walk(first, first_levels, iova, write, below, fabric)
            }
            Route::PassThrough => Err(Refusal::NotPresent),
        };
        let keeps = match answer {
            Ok(leaf) => self.config.caching.denied || serves(leaf, iova, write),
            Err(_) => self.config.cap.cm(),
        };
        if keeps {
            self.caches.keep_page(tag, iova, answer, &mut fabric.dice);
        }
        answer
    }

    fn rules(&self, write: bool) -> Rules {
        let access = if write { Access::Write } else { Access::Read };
        Rules {
            host_width: u32::from(self.host_width),
            large_leaves: self.config.cap.sslps(),
            snoop_control: self.config.ecap.sc() || self.config.quirks.snoop_ignored && self.root.ttm() == 1,
            permission_first: self.config.quirks.permission_first.then_some(access),
        }
    }

    fn second_walk(
        &mut self,
        tag: Tag,
        top: u64,
        levels: u8,
        iova: u64,
        write: bool,
        fabric: &mut Fabric,
    ) -> PageAnswer {
        let from_top = Table { address: top, level: levels - 1, read: true, write: true };
        let start = self.caches.lowest_table(tag, iova, levels).unwrap_or(from_top);
        let mut passed = Vec::new();
        let rules = self.rules(write);
        let answer = walk::walk(start, iova, rules, |at| self.load(at, fabric), |table| passed.push(table));
        for table in passed.into_iter().filter(|_| self.config.caching.tables) {
            self.caches.keep_table(tag, iova, table, &mut fabric.dice);
        }
        match answer {
            // The top table's address comes from the entry above all tables, which is what is wrong then.
            Err(Refusal::Unreadable(level)) if level + 1 == levels => Err(Refusal::TopUnreadable),
            other => other,
        }
    }

    /// A walk of first-stage tables that lie at physical addresses, or at addresses that `below`, a second stage's top
    /// table and its levels, translates.
    fn first_walk(
        &self,
        top: u64,
        levels: u8,
        iova: u64,
        write: bool,
        below: Option<(u64, u8)>,
        fabric: &mut Fabric,
    ) -> PageAnswer {
        let rules = first::Rules {
            host_width: u32::from(self.host_width),
            large_1g: self.config.cap.fs1gp(),
            write,
            permission_first: self.config.quirks.permission_first,
            dirty_missed: self.config.quirks.dirty_missed,
        };
        let mut tables = StageTables { unit: self, below, levels, fabric };
        let leaf = first::walk(top, levels, iova, rules, &mut tables)?;
        let Some(below) = below else { return Ok(leaf) };
        let second = tables.second(leaf.at(iova), below, write)?;
        // What is cached spans the smaller of the two leaves.
        let level = leaf.level.min(second.level);
        let output = second.at(leaf.at(iova)) & !(second_stage::span(level) - 1);
        Ok(Leaf { output, level, write: leaf.write && second.write, read: second.read, dirty: leaf.dirty })
    }

    /// One word of a table, as the unit's own walks see it.
    pub(super) fn load(&self, at: u64, fabric: &Fabric) -> Option<u64> {
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

/// First-stage tables in memory, and the second stage that their addresses go through, if one does.
struct StageTables<'a> {
    unit: &'a Unit,
    below: Option<(u64, u8)>,
    levels: u8,
    fabric: &'a mut Fabric,
}

impl StageTables<'_> {
    fn second(&self, at: u64, (top, levels): (u64, u8), write: bool) -> PageAnswer {
        if at.checked_shr(width(levels)).unwrap_or(0) != 0 {
            return Err(Refusal::Nested(Reason::NESTED_BEYOND_WIDTH));
        }
        let table = Table { address: top, level: levels - 1, read: true, write: true };
        let leaf =
            walk::walk(table, at, self.unit.rules(write), |at| self.unit.load(at, self.fabric), |_| ())
                .map_err(|refusal| Refusal::Nested(second_reason(refusal)))?;
        if leaf.permits(write) { Ok(leaf) } else { Err(Refusal::Nested(Reason::SECOND_STAGE_DENIED)) }
    }
}

impl first::Tables for StageTables<'_> {
    fn load(&mut self, at: u64, level: u8) -> Result<u64, Refusal> {
        let is_top = level + 1 == self.levels;
        let physical = match self.below {
            None => at,
            Some(below) => match self.second(at, below, false) {
                Ok(leaf) => leaf.at(at),
                Err(Refusal::Nested(Reason::SECOND_STAGE_DENIED)) if is_top => {
                    return Err(Refusal::Nested(Reason::NESTED_TOP_READ_DENIED));
                }
                Err(Refusal::Nested(Reason::SECOND_STAGE_DENIED)) => {
                    return Err(Refusal::Nested(Reason::NESTED_READ_DENIED));
                }
                Err(other) => return Err(other),
            },
        };
        let unreadable = if is_top { Refusal::TopUnreadable } else { Refusal::Unreadable(level) };
        self.unit.load(physical, self.fabric).ok_or(unreadable)
    }

    fn store(&mut self, at: u64, value: u64) -> Result<(), Refusal> {
        let physical = match self.below {
            None => at,
            Some(below) => match self.second(at, below, true) {
                Ok(leaf) => leaf.at(at),
                Err(Refusal::Nested(Reason::SECOND_STAGE_DENIED)) => {
                    return Err(Refusal::Nested(Reason::NESTED_WRITE_DENIED));
                }
                Err(other) => return Err(other),
            },
        };
        let stored = self.fabric.memory.store_snooped(physical, value);
        stored.map_err(|_| Refusal::Nested(Reason::FIRST_STAGE_UPDATE))
    }
}

/// Bits that `levels` levels translate.
fn width(levels: u8) -> u32 {
    12 + 9 * u32::from(levels)
}

/// Why a request was refused, by the stage that refused it.
fn reason(context: Context, refusal: Refusal, write: bool) -> Reason {
    match (context.route, refusal) {
        (_, Refusal::Nested(reason)) => reason,
        (Route::FirstStage { .. } | Route::Nested { .. }, _) => match refusal {
            Refusal::NotPresent => Reason::FIRST_STAGE_NOT_PRESENT,
            Refusal::Supervisor => Reason::USER_DENIED,
            Refusal::Reserved => Reason::FIRST_STAGE_RESERVED,
            Refusal::TopUnreadable => Reason::FIRST_STAGE_TOP,
            Refusal::Unreadable(_) => Reason::FIRST_STAGE_ACCESS,
            Refusal::ReadOnly | Refusal::Nested(_) => Reason::SCALABLE_WRITE_DENIED,
        },
        _ if context.scalable => second_reason(refusal),
        _ => match refusal {
            Refusal::Reserved => Reason::PAGING_RESERVED,
            Refusal::TopUnreadable => Reason::CONTEXT_INVALID,
            Refusal::Unreadable(_) => Reason::PAGING_ENTRY_ACCESS,
            _ => denied(context, write),
        },
    }
}

fn second_reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Reserved => Reason::SECOND_STAGE_RESERVED,
        Refusal::TopUnreadable => Reason::SECOND_STAGE_POINTER,
        Refusal::Unreadable(_) => Reason::SECOND_STAGE_ACCESS,
        Refusal::Nested(reason) => reason,
        Refusal::NotPresent | Refusal::Supervisor | Refusal::ReadOnly => Reason::SECOND_STAGE_DENIED,
    }
}

/// The reason in legacy mode for what has another one in scalable mode.
fn legacy_reason(reason: Reason, write: bool) -> Reason {
    match reason {
        Reason::SCALABLE_ROOT_ACCESS => Reason::ROOT_ACCESS,
        Reason::SCALABLE_ROOT_NOT_PRESENT => Reason::ROOT_NOT_PRESENT,
        Reason::SCALABLE_ROOT_RESERVED => Reason::ROOT_RESERVED,
        Reason::SCALABLE_CONTEXT_ACCESS => Reason::CONTEXT_ACCESS,
        Reason::SCALABLE_CONTEXT_NOT_PRESENT => Reason::CONTEXT_NOT_PRESENT,
        Reason::SCALABLE_CONTEXT_RESERVED => Reason::CONTEXT_RESERVED,
        Reason::SCALABLE_CONTEXT_INVALID | Reason::SECOND_STAGE_POINTER => Reason::CONTEXT_INVALID,
        Reason::SECOND_STAGE_ACCESS => Reason::PAGING_ENTRY_ACCESS,
        Reason::SECOND_STAGE_RESERVED => Reason::PAGING_RESERVED,
        Reason::SECOND_STAGE_DENIED if write => Reason::WRITE_DENIED,
        Reason::SECOND_STAGE_DENIED => Reason::READ_DENIED,
        Reason::SCALABLE_BEYOND_WIDTH | Reason::SECOND_STAGE_BEYOND_WIDTH => Reason::ADDRESS_BEYOND_WIDTH,
        other => other,
    }
}

/// The reason of a leaf that does not permit the request.
fn denied(context: Context, write: bool) -> Reason {
    match (context.scalable, context.route, write) {
        (false, _, true) => Reason::WRITE_DENIED,
        (false, _, false) => Reason::READ_DENIED,
        (true, Route::SecondStage { .. }, _) => Reason::SECOND_STAGE_DENIED,
        (true, _, true) => Reason::SCALABLE_WRITE_DENIED,
        (true, _, false) => Reason::SCALABLE_READ_DENIED,
    }
}
