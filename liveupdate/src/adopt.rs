//! The incoming side: check against running hardware, adopt in place, retrieve by token, finish.
//!
//! A domain that fails its checks is blocked alone: its requesters' entries are cleared and forgotten, the rest goes on.
//! Nothing here switches translation off, and nothing gives a requester more than it had (I8).

use crate::book::{Book, Domain, DomainState, Kept, Region, Token};
use crate::freeze::run_audit;
use crate::host::{Atomic, Forget, Host, MaySleep, NoMemory, TimedOut, Unit};
use crate::interrupts;
use crate::list::List;
use crate::open::Opened;
use crate::prune::{CutOffEvent, prune};
use crate::roots::{self, ENTRY_BYTES};
use crate::walk::{self, Visit};
use spec::{DomainId, Extent, PhysAddr, Requester, UnitId};

/// Tables that one domain has at most: a terabyte of them.
const MAX_TABLES: u64 = 1 << 28;

/// A handover that was held against running hardware. Domains with findings are marked to be blocked.
#[derive(Debug)]
pub struct Checked<'s> {
    opened: Opened<'s>,
    /// What the audit checked.
    pub report: audit::Report,
    /// How many violations it found.
    pub violations: u32,
}

/// What adoption did, as it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptEvent {
    /// The unit runs on under this kernel.
    Adopted(UnitId),
    /// The machine has no such unit: its domains are blocked, that is lost.
    UnitMissing(UnitId),
    /// A domain failed its checks and is blocked.
    Blocked(Token),
    /// The driver could not reserve a domain's id (I5): the domain is blocked.
    DomainIdTaken(UnitId, DomainId),
    /// An entry was cleared, stays, and so on.
    Entry(CutOffEvent),
}

/// A retrieved domain: its tables are the host's from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrievedDomain {
    /// Its name.
    pub token: Token,
    /// Its top table.
    pub top_table: PhysAddr,
    /// Levels of its tables.
    pub levels: u8,
}

/// A retrieved requester: its driver takes the device over without reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrievedRequester {
    /// Its name.
    pub token: Token,
    /// Who it is.
    pub requester: Requester,
    /// Name of its domain, which was retrieved before.
    pub domain: Token,
    /// The domain's id on the requester's unit.
    pub domain_id: DomainId,
    /// The unit.
    pub unit: UnitId,
}

/// Why something cannot be retrieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetrieveError {
    /// Nothing of this kind was handed over under that token.
    Unknown(Token),
    /// It was retrieved before.
    Twice(Token),
    /// It failed its checks and was blocked.
    Blocked(Token),
    /// The requester's domain comes first.
    DomainFirst {
        /// The requester.
        requester: Requester,
        /// Its domain.
        domain: Token,
    },
}

impl core::fmt::Display for RetrieveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unknown(t) => write!(f, "nothing of this kind was handed over under token {t}"),
            Self::Twice(t) => write!(f, "{t} was retrieved before"),
            Self::Blocked(t) => write!(f, "{t} failed its checks and is blocked"),
            Self::DomainFirst { requester, domain } => {
                write!(f, "retrieve domain {domain} before its requester {requester}")
            }
        }
    }
}
impl core::error::Error for RetrieveError {}

impl<'s> Opened<'s> {
    /// Holds the handover against the running hardware. Findings that concern a domain or requester mark that domain;
    /// findings about a unit mark every domain on it; an entry of somebody else's is simply cleared at adoption.
    ///
    /// # Errors
    /// The auditor cannot read what was opened: nothing may be adopted.
    pub fn check<H: Host>(
        mut self,
        host: &H,
        scratch: &mut audit::Scratch<'_>,
        findings: &mut dyn FnMut(audit::Finding),
    ) -> Result<Checked<'s>, audit::Unreadable> {
        let mut violations = 0;
        let fdt = self.fdt;
        let report = run_audit(host, fdt, audit::Stage::Arrived, scratch, &mut |finding| {
            violations += 1;
            self.mark(&finding);
            findings(finding);
        })?;
        Ok(Checked { opened: self, report, violations })
    }

    /// Marks the domains that a finding speaks against.
    fn mark(&mut self, finding: &audit::Finding) {
        if interrupts::is_harmless(finding) {
            return;
        }
        let domain = finding.domain.and_then(|token| self.book.domains.find(|d| d.token.0 == token));
        let owner =
            finding.requester.and_then(|r| self.book.owners(r.segment, r.source).next()).map(|k| k.domain);
        if let Some(index) = domain.map(|(i, _)| i).or(owner) {
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

    /// Marks every domain that `which` holds for.
    fn block(&mut self, which: impl Fn(&Book<'_>, usize) -> bool) {
        for index in 0..self.book.domains.capacity() {
            if which(&self.book, index) {
                if let Some(domain) = self.book.domains.get_mut(index) {
                    domain.state = DomainState::Blocked;
                }
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
        let mut forgotten = true;
        for (index, kept) in book.units.iter() {
            let Some(unit) = host.unit(kept.id) else {
                forgotten = false;
                continue;
            };
            let keep = |kept: &Kept| is_sound(book.domains.get(kept.domain));
            let report_entry = &mut |event| {
                forgotten &= is_done(&event);
                report(AdoptEvent::Entry(event));
            };
            unit.locked(ctx, |atomic| {
                prune(host, book, Some(index), unit, atomic, &keep, report_entry);
                let keep = |_: usize, kept: &Kept| keep(kept);
                interrupts::prune(host, book, Some(index), unit, atomic, &keep, report_entry);
            });
            report(AdoptEvent::Adopted(kept.id));
        }
        Incoming { host, opened: self.opened, forgotten }
    }

    fn reserve_domain_ids<H: Host>(
        &mut self,
        host: &H,
        reserve: &mut dyn FnMut(UnitId, DomainId) -> bool,
        report: &mut dyn FnMut(AdoptEvent),
    ) {
        for index in 0..self.opened.book.requesters.capacity() {
            let book = &self.opened.book;
            let Some(kept) = book.requesters.get(index).copied() else { continue };
            let first = book.requesters.find(|k| k.unit == kept.unit && k.domain == kept.domain);
            let Some(unit) = book.units.get(kept.unit).map(|u| u.id) else { continue };
            // Several requesters of one domain share its id: it is reserved once.
            if first.is_none_or(|(i, _)| i != index) || host.unit(unit).is_none() {
                continue;
            }
            if !reserve(unit, kept.entry.domain_id()) {
                report(AdoptEvent::DomainIdTaken(unit, kept.entry.domain_id()));
                self.opened.block(|_, domain| domain == kept.domain);
            }
        }
    }
}

fn is_sound(domain: Option<&Domain>) -> bool {
    domain.is_some_and(|d| d.state != DomainState::Blocked)
}

/// Whether hardware will not use what the event speaks of any more.
fn is_done(event: &CutOffEvent) -> bool {
    !matches!(event, CutOffEvent::NotConfirmed(_) | CutOffEvent::Unreachable(_))
}

/// An adopted handover, until [`Incoming::finish`].
#[derive(Debug)]
pub struct Incoming<'h, 's, H: Host> {
    host: &'h H,
    opened: Opened<'s>,
    /// Every unit confirmed that it forgot what adoption cleared.
    forgotten: bool,
}

impl<'s, H: Host> Incoming<'_, 's, H> {
    /// The memory region under `token`.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub fn retrieve_region(&mut self, token: Token) -> Result<Extent, RetrieveError> {
        let index = self.opened.book.region_named(token);
        let region = index.and_then(|i| self.opened.book.regions.get_mut(i));
        let region = region.ok_or(RetrieveError::Unknown(token))?;
        if region.retrieved {
            return Err(RetrieveError::Twice(token));
        }
        region.retrieved = true;
        Ok(region.extent)
    }

    /// The domain under `token`; `run` is called with every run of its table frames, `id` with its id on each unit.
    ///
    /// # Errors
    /// [`RetrieveError`]; neither is called then.
    pub fn retrieve_domain(
        &mut self,
        token: Token,
        run: &mut dyn FnMut(Extent),
        id: &mut dyn FnMut(UnitId, DomainId),
    ) -> Result<RetrievedDomain, RetrieveError> {
        let book = &mut self.opened.book;
        let index = book.domains.find(|d| d.token == token).map(|(i, _)| i);
        let index = index.ok_or(RetrieveError::Unknown(token))?;
        let domain = book.domains.get_mut(index).ok_or(RetrieveError::Unknown(token))?;
        match domain.state {
            DomainState::Kept => domain.state = DomainState::Retrieved,
            DomainState::Retrieved => return Err(RetrieveError::Twice(token)),
            DomainState::Blocked => return Err(RetrieveError::Blocked(token)),
        }
        let (top_table, levels) = (domain.top_table, domain.levels);
        book.tables.iter().filter(|t| t.domain == index).for_each(|t| run(t.extent));
        for (unit_index, unit) in book.units.iter() {
            let user = book.requesters.find(|k| k.unit == unit_index && k.domain == index);
            if let Some((_, kept)) = user {
                id(unit.id, kept.entry.domain_id());
            }
        }
        Ok(RetrievedDomain { token, top_table, levels })
    }

    /// The requester under `token`, with `alias` called for each alias.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub fn retrieve_requester(
        &mut self,
        token: Token,
        alias: &mut dyn FnMut(spec::SourceId),
    ) -> Result<RetrievedRequester, RetrieveError> {
        let book = &mut self.opened.book;
        let found = book.requesters.find(|k| k.token == token).map(|(i, k)| (i, *k));
        let (index, kept) = found.ok_or(RetrieveError::Unknown(token))?;
        let domain = *book.domains.get(kept.domain).ok_or(RetrieveError::Unknown(token))?;
        match domain.state {
            _ if kept.retrieved => return Err(RetrieveError::Twice(token)),
            DomainState::Blocked => return Err(RetrieveError::Blocked(token)),
            DomainState::Kept => {
                return Err(RetrieveError::DomainFirst { requester: kept.requester, domain: domain.token });
            }
            DomainState::Retrieved => {}
        }
        if let Some(entry) = book.requesters.get_mut(index) {
            entry.retrieved = true;
        }
        book.aliases.iter().filter(|(_, a)| a.requester == index).for_each(|(_, a)| alias(a.source));
        Ok(RetrievedRequester {
            token,
            requester: kept.requester,
            domain: domain.token,
            domain_id: kept.entry.domain_id(),
            unit: book.units.get(kept.unit).map(|u| u.id).unwrap_or_default(),
        })
    }

    /// Calls `f` with the index and the words of every interrupt entry of the requester under `token`, which was retrieved
    /// before: they are in place and in use. Says how many there are.
    ///
    /// # Errors
    /// [`RetrieveError::Unknown`], also of a requester that was not retrieved.
    pub fn retrieve_interrupts(
        &self,
        token: Token,
        f: &mut dyn FnMut(u16, [u64; 2]),
    ) -> Result<u32, RetrieveError> {
        let book = &self.opened.book;
        let found = book.requesters.find(|k| k.token == token && k.retrieved);
        let (index, kept) = found.ok_or(RetrieveError::Unknown(token))?;
        Ok(interrupts::of_requester(self.host, book, index, kept.unit, f))
    }

    /// Calls `f` with the tokens of everything handed over: regions, domains, requesters.
    pub fn for_each_token(&self, f: &mut dyn FnMut(Token)) {
        self.opened.book.regions.iter().for_each(|r| f(r.token));
        self.opened.book.domains.iter().for_each(|(_, d)| f(d.token));
        self.opened.book.requesters.iter().for_each(|(_, k)| f(k.token));
    }

    /// What was opened: regions, domains, requesters, units, as they were handed over.
    #[must_use]
    pub fn opened(&self) -> &Opened<'s> {
        &self.opened
    }

    /// Whether the domain under `token` failed its checks.
    #[must_use]
    pub fn is_blocked(&self, token: Token) -> bool {
        self.opened.book.domains.find(|d| d.token == token && d.state == DomainState::Blocked).is_some()
    }

    /// Ownership is normal again. Whoever was not retrieved is cut off first; then the frames of what was not retrieved
    /// and of the handover itself go back to the host, unless a retrieved domain still maps them or hardware did not
    /// confirm that it forgot. Root and context tables stay with the units' driver. Says how many requesters were cut
    /// off.
    pub fn finish(mut self, ctx: &mut MaySleep, report: &mut dyn FnMut(CutOffEvent)) -> u32 {
        let (host, book) = (self.host, &self.opened.book);
        let mut cut = 0;
        let mut forgotten = true;
        let report = &mut |event| {
            forgotten &= is_done(&event);
            report(event);
        };
        let left = |k: &Kept| !k.retrieved && is_sound(book.domains.get(k.domain));
        for (index, kept) in book.requesters.iter().filter(|(_, k)| left(k)) {
            let Some(unit) = book.units.get(kept.unit).and_then(|u| host.unit(u.id)) else { continue };
            unit.locked(ctx, |atomic| {
                book.for_each_source(index, &mut |source| {
                    // An alias that somebody retrieved shares stays.
                    if !book.owners(kept.requester.segment, source).any(|k| k.retrieved) {
                        cut_off_one(host, unit, atomic, kept, source, report);
                    }
                });
            });
            cut += 1;
        }
        let keep = |_: usize, k: &Kept| k.retrieved && is_sound(book.domains.get(k.domain));
        interrupts::finish(host, book, ctx, &keep, report);
        if !self.forgotten {
            self.forget_again(ctx, report);
        }
        if forgotten {
            self.give_back(ctx);
        }
        cut
    }

    /// Asks every unit once more to forget what adoption cleared. A unit that is missing cannot.
    fn forget_again(&self, ctx: &mut MaySleep, report: &mut dyn FnMut(CutOffEvent)) {
        for (_, kept) in self.opened.book.units.iter() {
            let missing =
                TimedOut { unit: kept.id, what: "invalidation of a unit that is missing", waited: 0 };
            let done = match self.host.unit(kept.id) {
                Some(unit) => unit.locked(ctx, |atomic| {
                    let done = unit.forget(atomic, Forget::Everything).map(drop);
                    done.and(interrupts::forget_again(unit, atomic))
                }),
                None => Err(missing),
            };
            report(match done {
                Ok(()) => CutOffEvent::Confirmed(kept.id),
                Err(timed_out) => CutOffEvent::NotConfirmed(timed_out),
            });
        }
    }

    /// Gives back the frames of everything that was not retrieved and that no retrieved domain maps.
    fn give_back(&mut self, ctx: &mut MaySleep) {
        self.mark_mapped();
        let (host, book) = (self.host, &self.opened.book);
        for run in book.tables.iter() {
            let retrieved = book.domains.get(run.domain).is_some_and(|d| d.state == DomainState::Retrieved);
            if !retrieved {
                host.give_back(ctx, run.extent);
            }
        }
        for region in book.regions.iter().filter(|r| r.is_left() && !r.mapped) {
            host.give_back(ctx, region.extent);
        }
        if let Some(container) = self.opened.container() {
            host.give_back(ctx, container);
        }
    }

    /// Marks the regions that a retrieved domain maps: one walk over each, whatever the number of regions. Tables that
    /// cannot be read count as mapping everything.
    fn mark_mapped(&mut self) {
        let (host, book) = (self.host, &mut self.opened.book);
        if !book.regions.iter().any(Region::is_left) {
            return;
        }
        book.regions.sort();
        let regions = &mut book.regions;
        for (_, domain) in book.domains.iter().filter(|(_, d)| d.state == DomainState::Retrieved) {
            let over = |at| NoMemory { at };
            let walked = walk::walk(host, domain.top_table, domain.levels, MAX_TABLES, over, &mut |visit| {
                if let Visit::Leaf(_, target) = visit {
                    mark(regions, target);
                }
                Ok(())
            });
            if walked.is_err() {
                regions.iter_mut().for_each(|r| r.mapped = true);
            }
        }
    }
}

/// Marks every region that shares a frame with `target`.
fn mark(regions: &mut List<'_, Region>, target: Extent) {
    let Some(first) = regions.overlapping(target) else { return };
    for index in first.. {
        match regions.get_mut(index).filter(|r| r.extent.overlaps(target)) {
            Some(region) => region.mapped = true,
            None => break,
        }
    }
}

/// Clears one source-id's entry: present bit, forget, wipe. An entry that is not the sealed one any more stays alone.
fn cut_off_one<H: Host>(
    host: &H,
    unit: &H::Unit,
    atomic: &Atomic,
    kept: &Kept,
    source: spec::SourceId,
    report: &mut dyn FnMut(CutOffEvent),
) {
    let requester = Requester::new(kept.requester.segment, source);
    let done = roots::find(host, unit.root().table(), source).and_then(|found| {
        let Some((table, entry)) = found.filter(|(_, e)| *e == kept.entry) else { return Ok(()) };
        let at = table.plus(ENTRY_BYTES * u64::from(source.devfn()));
        roots::clear_present(host, at)?;
        report(CutOffEvent::Cleared { requester, entry });
        match unit.forget(atomic, Forget::Requester { source, domain: entry.domain_id() }) {
            Ok(_) => report(CutOffEvent::Confirmed(unit.id())),
            Err(timed_out) => report(CutOffEvent::NotConfirmed(timed_out)),
        }
        roots::wipe(host, at)
    });
    done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
}
