//! The incoming side: check against running hardware, adopt in place. What follows is in [`crate::retrieve`] and
//! [`crate::finish`].
//!
//! What fails its checks is blocked alone: the entries of a bad domain are cleared and forgotten, PASID by PASID, the rest
//! goes on. Nothing here switches translation off, and nothing gives a requester more than it had (I8).

use crate::adoptable::NotAdoptable;
use crate::book::{Attached, Book, DomainState, Kept, Token};
use crate::freeze::run_audit;
use crate::host::{Host, MaySleep, Unit};
use crate::interrupts;
use crate::mode::Mode;
use crate::mutant;
use crate::open::Opened;
use crate::prune::{CutOffEvent, prune};
use crate::retrieve::Incoming;
use crate::roots;
use audit::{Finding, Item, What};
use spec::{DomainId, Frame, PhysAddr, UnitId};

/// A handover that was held against running hardware. What has findings is marked to be blocked.
#[derive(Debug)]
pub struct Checked<'s> {
    opened: Opened<'s>,
    /// What the audit checked.
    pub report: audit::Report,
    /// How many violations it found.
    pub violations: u32,
}

/// Why a handover cannot be adopted at all. The host fails closed: see [`crate::block_all`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckError {
    /// The auditor cannot read what was opened.
    Unreadable(audit::Unreadable),
    /// This kernel does not drive what was handed over.
    NotAdoptable(NotAdoptable),
}

impl core::fmt::Display for CheckError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unreadable(e) => e.fmt(f),
            Self::NotAdoptable(e) => write!(f, "this kernel does not go with the handover: {e}"),
        }
    }
}
impl core::error::Error for CheckError {}

/// What adoption did, as it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptEvent {
    /// The unit runs on under this kernel.
    Adopted(UnitId),
    /// The machine has no such unit: its domains are blocked, that is lost.
    UnitMissing(UnitId),
    /// A domain failed its checks and is blocked.
    Blocked(Token),
    /// A requester in scalable mode failed its checks and is blocked, with all its PASIDs. Its domains may be sound.
    RequesterBlocked(Token),
    /// The driver could not reserve a domain's id (I5): the domain is blocked.
    DomainIdTaken(UnitId, DomainId),
    /// An entry was cleared, stays, and so on.
    Entry(CutOffEvent),
}

impl<'s> Opened<'s> {
    /// Holds the handover against the running hardware. Findings about a domain, or about an entry that leads to it, mark
    /// that domain; findings about the context entry or the PASID directory of a requester in scalable mode mark the
    /// requester; findings about a unit mark every domain on it; an entry of somebody else's is simply cleared at adoption.
    ///
    /// # Errors
    /// [`CheckError`]: nothing may be adopted.
    pub fn check<H: Host>(
        mut self,
        host: &H,
        scratch: &mut audit::Scratch<'_>,
        findings: &mut dyn FnMut(Finding),
    ) -> Result<Checked<'s>, CheckError> {
        self.adoptable_by(&host.adoptable()).map_err(CheckError::NotAdoptable)?;
        let mut violations = 0;
        let fdt = self.fdt;
        let report = run_audit(host, fdt, audit::Stage::Arrived, scratch, &mut |finding| {
            violations += 1;
            self.mark(&finding);
            findings(finding);
        });
        let report = report.map_err(CheckError::Unreadable)?;
        Ok(Checked { opened: self, report, violations })
    }

    /// Marks what a finding speaks against.
    fn mark(&mut self, finding: &Finding) {
        if interrupts::is_harmless(finding) {
            return;
        }
        match finding.what {
            // Somebody else's entries, cleared at adoption.
            What::PasidNotListed { .. } | What::PasidTableNotListed { .. } => return,
            // Explained by a finding before.
            What::Differs { item: Item::UnitDigest, .. } if finding.requester.is_some() => return,
            _ => {}
        }
        let owner = finding.requester.and_then(|r| self.book.owners(r.segment, r.source).next());
        let owner = owner.map(|(index, kept)| (index, *kept));
        if let Some((_, kept)) = owner.filter(|(_, k)| k.entry.directory().is_some()) {
            // What leads to the PASIDs is wrong: all of them, whatever their domains.
            if finding.domain.is_none() || self.leads_to_pasids(PhysAddr::new(finding.at).frame()) {
                return self.block_requester(&kept);
            }
        }
        let domain = finding.domain.and_then(|token| self.book.domains.find(|d| d.token.0 == token));
        if let Some(index) = domain.map(|(i, _)| i).or(owner.map(|(_, k)| k.domain)) {
            return self.block(|_, other| other == index);
        }
        if finding.requester.is_some() {
            return; // somebody else's entry: cleared at adoption
        }
        match finding.unit.map(|id| self.book.units.find(|u| u.id == id).map(|(i, _)| i)) {
            Some(Some(unit)) => self.block(|book, domain| book.uses(unit, domain)),
            Some(None) => {} // a unit that was not handed over: none of ours is behind it
            None => self.block(|_, _| true),
        }
    }

    /// Whether a frame holds context entries or a PASID directory of the handover.
    fn leads_to_pasids(&self, frame: Frame) -> bool {
        let context = self.book.contexts.find(|c| c.table.frame() == frame);
        let directory = || self.book.pasid_runs.find(|r| r.first_pasid.is_none() && r.extent.contains(frame));
        context.is_some() || directory().is_some()
    }

    /// Marks every domain that `which` holds for, and those that lie below them.
    fn block(&mut self, which: impl Fn(&Book<'_>, usize) -> bool) {
        for index in 0..self.book.domains.capacity() {
            let parent = self.book.domains.get(index).and_then(|d| d.parent);
            if which(&self.book, index) || parent.is_some_and(|parent| which(&self.book, parent)) {
                if let Some(domain) = self.book.domains.get_mut(index) {
                    domain.state = DomainState::Blocked;
                }
            }
        }
    }

    /// Marks requesters that have no entry any more, because their devices did not answer.
    fn block_cut_off<H: Host>(&mut self, host: &H, report: &mut dyn FnMut(AdoptEvent)) {
        for index in 0..self.book.requesters.capacity() {
            let Some(kept) = self.book.requesters.get(index).copied() else { continue };
            let may_lack_it = kept.device_tlb.is_some() && kept.entry.directory().is_some();
            if !may_lack_it || !self.book.is_any_sound(index) {
                continue;
            }
            let unit = self.book.units.get(kept.unit).and_then(|unit| host.unit(unit.id));
            let there = unit.is_some_and(|unit| {
                let found = roots::find(host, Mode::Scalable, unit.root().table(), kept.requester.source);
                found.is_ok_and(|found| found.is_some_and(|(_, entry)| entry.present()))
            });
            if there {
                continue;
            }
            for slot in 0..self.book.attachments.capacity() {
                let own = self.book.attachments.get_mut(slot).filter(|a| a.requester == index);
                own.into_iter().for_each(|a| a.blocked = true);
            }
            report(AdoptEvent::RequesterBlocked(kept.token));
        }
    }

    /// Marks all PASIDs of a requester, and of those that share its directory.
    fn block_requester(&mut self, kept: &Kept) {
        for index in 0..self.book.attachments.capacity() {
            let owner = self.book.attachments.get(index).and_then(|a| self.book.requesters.get(a.requester));
            if owner.is_some_and(|owner| owner.shares(kept)) {
                self.book.attachments.get_mut(index).into_iter().for_each(|a| a.blocked = true);
            }
        }
    }
}

impl<'s> Checked<'s> {
    /// What was opened.
    #[must_use]
    pub fn opened(&self) -> &Opened<'s> {
        &self.opened
    }

    /// Adopts every unit in place. A handover that was opened but not checked cannot be adopted:
    ///
    /// ```compile_fail,E0599
    /// # use liveupdate::{AdoptEvent, Opened, host::{Host, MaySleep}};
    /// fn wrong<H: Host>(opened: Opened<'_>, host: &H, ctx: &mut MaySleep) {
    ///     opened.adopt(host, ctx, &mut |_, _| true, &mut |_| ()); // nothing was checked: does not compile
    /// }
    /// ```
    /// ```
    /// # use liveupdate::{AdoptEvent, Checked, host::{Host, MaySleep}};
    /// fn right<H: Host>(checked: Checked<'_>, host: &H, ctx: &mut MaySleep) {
    ///     checked.adopt(host, ctx, &mut |_, _| true, &mut |_| ());
    /// }
    /// ```
    ///
    /// Domain ids are reserved, whatever does not belong there is cleared, hardware forgets.
    /// The host has given each unit its new invalidation queue before.
    ///
    /// `reserve` reserves a domain id in the driver, before it hands out any of its own.
    pub fn adopt<'h, H: Host>(
        mut self,
        host: &'h H,
        ctx: &mut MaySleep,
        reserve: &mut dyn FnMut(UnitId, DomainId) -> bool,
        report: &mut dyn FnMut(AdoptEvent),
    ) -> Incoming<'h, 's, H> {
        for index in 0..self.opened.book.units.capacity() {
            let Some(unit) = self.opened.book.units.get(index).map(|u| u.id) else { continue };
            if host.unit(unit).is_none() {
                report(AdoptEvent::UnitMissing(unit));
                self.opened.block(|book, domain| book.uses(index, domain));
            }
        }
        self.reserve_domain_ids(host, reserve, report);
        let book = &self.opened.book;
        for (_, domain) in book.domains.iter().filter(|(_, d)| d.state == DomainState::Blocked) {
            report(AdoptEvent::Blocked(domain.token));
        }
        let failed = |i| book.attachments_of(i).any(|(_, a)| a.blocked);
        for (_, kept) in book.requesters.iter().filter(|(i, _)| failed(*i)) {
            report(AdoptEvent::RequesterBlocked(kept.token));
        }
        let mut forgotten = true;
        for (index, kept) in book.units.iter() {
            let Some(unit) = host.unit(kept.id) else {
                forgotten = false;
                continue;
            };
            let keep = |attached: &Attached| book.is_sound(attached);
            let report_entry = &mut |event| {
                forgotten &= is_done(&event);
                report(AdoptEvent::Entry(event));
            };
            let keep_interrupts = |requester: usize, _: &Kept| book.is_any_sound(requester);
            unit.locked(ctx, |atomic| {
                prune(host, book, Some(index), unit, atomic, &keep, report_entry);
                interrupts::prune(host, book, Some(index), unit, atomic, &keep_interrupts, report_entry);
                mutant::fall_back(host, book, index, unit, atomic);
            });
            report(AdoptEvent::Adopted(kept.id));
        }
        self.opened.block_cut_off(host, report);
        Incoming { host, opened: self.opened, forgotten }
    }

    fn reserve_domain_ids<H: Host>(
        &mut self,
        host: &H,
        reserve: &mut dyn FnMut(UnitId, DomainId) -> bool,
        report: &mut dyn FnMut(AdoptEvent),
    ) {
        for index in 0..self.opened.book.attachments.capacity() {
            let book = &self.opened.book;
            let Some(kept) = book.attachments.get(index).copied() else { continue };
            let first = book.attachments.find(|a| (a.unit, a.domain) == (kept.unit, kept.domain));
            let Some(unit) = book.units.get(kept.unit).map(|u| u.id) else { continue };
            // All that lead to one domain share its id: it is reserved once.
            if first.is_none_or(|(i, _)| i != index) || host.unit(unit).is_none() {
                continue;
            }
            if !reserve(unit, kept.domain_id) {
                report(AdoptEvent::DomainIdTaken(unit, kept.domain_id));
                self.opened.block(|_, domain| domain == kept.domain);
            }
        }
    }
}

impl Book<'_> {
    /// Whether a PASID and all that it leads to passed the checks.
    pub(crate) fn is_sound(&self, attached: &Attached) -> bool {
        let sound = |index: usize| self.domains.get(index).is_some_and(|d| d.state != DomainState::Blocked);
        !attached.blocked && sound(attached.domain) && attached.parent.is_none_or(sound)
    }

    /// Whether any PASID of the requester at `index` passed the checks.
    pub(crate) fn is_any_sound(&self, index: usize) -> bool {
        self.attachments_of(index).any(|(_, a)| self.is_sound(a))
    }
}

/// Whether hardware will not use what the event speaks of any more.
pub(crate) fn is_done(event: &CutOffEvent) -> bool {
    !matches!(event, CutOffEvent::NotConfirmed(_) | CutOffEvent::Unreachable(_))
}
