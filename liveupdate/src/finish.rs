//! The end of an update: what nobody retrieved is cut off, PASID by PASID, and its frames go back to the host.
//!
//! The driver goes on meanwhile, and may have attached others: only entries that are still what was sealed are touched.

use crate::adopt::is_done;
use crate::book::{Attached, Book, Domain, DomainState, Kept, PasidRun, Region};
use crate::device_tlb::{Devices, Gone, forget_and_report};
use crate::host::{Atomic, Forget, Host, MaySleep, NoMemory, TimedOut, Unit};
use crate::interrupts;
use crate::list::List;
use crate::mode::{Context, Mode};
use crate::prune::CutOffEvent;
use crate::retrieve::Incoming;
use crate::roots::{self, PASID_BYTES};
use crate::walk::{self, Stray, Tree, Visit};
use spec::{Extent, PhysAddr, Requester, SourceId};

/// Tables that one domain has at most: a terabyte of them.
const MAX_TABLES: u64 = 1 << 28;

impl<H: Host> Incoming<'_, '_, H> {
    /// Ownership is normal again. What was not retrieved is cut off first: requesters, and PASIDs of requesters that were.
    /// Then the frames of what was not retrieved and of the handover itself go back to the host, unless a retrieved domain
    /// still maps them or hardware did not confirm that it forgot. Root and context tables stay with the units' driver, as
    /// do PASID directories and tables of retrieved requesters. Says how many requesters were cut off.
    pub fn finish(mut self, ctx: &mut MaySleep, report: &mut dyn FnMut(CutOffEvent)) -> u32 {
        let (host, book) = (self.host, &self.opened.book);
        let mut cut = 0;
        let mut forgotten = true;
        let report = &mut |event| {
            forgotten &= is_done(&event);
            report(event);
        };
        for (index, kept) in book.requesters.iter() {
            let mut left = book.attachments_of(index).filter(|(_, a)| !a.retrieved && book.is_sound(a));
            if left.next().is_none() {
                continue;
            }
            let Some(unit) = book.units.get(kept.unit).and_then(|u| host.unit(u.id)) else { continue };
            unit.locked(ctx, |atomic| match kept.retrieved {
                false => {
                    book.for_each_source(index, &mut |source| {
                        // An alias that somebody retrieved shares stays.
                        if !book.owners(kept.requester.segment, source).any(|(_, k)| k.retrieved) {
                            cut_off_one(host, unit, atomic, kept, source, report);
                        }
                    });
                }
                true => cut_off_pasids(host, book, unit, atomic, (index, kept), report),
            });
            cut += u32::from(!kept.retrieved);
        }
        let keep = |index: usize, k: &Kept| k.retrieved && book.is_any_sound(index);
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
        for run in book.tables.iter().filter(|t| !t.in_region) {
            let retrieved = book.domains.get(run.domain).is_some_and(|d| d.state == DomainState::Retrieved);
            if !retrieved {
                host.give_back(ctx, run.extent);
            }
        }
        for (_, run) in book.pasid_runs.iter().filter(|(_, r)| !book.has_retrieved_user(r)) {
            host.give_back(ctx, run.extent);
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
        // What a nested domain reaches, its parent maps.
        let physical = |d: &&Domain| d.state == DomainState::Retrieved && d.parent.is_none();
        for domain in book.domains.iter().map(|(_, d)| d).filter(physical) {
            let stray = |stray| match stray {
                Stray::OverBudget(at) => NoMemory { at },
                Stray::BeyondParent(at) => NoMemory { at: PhysAddr::new(at.get()) },
            };
            let walked = walk::walk(host, Tree::alone(domain), MAX_TABLES, stray, &mut |visit| {
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

impl Book<'_> {
    /// Whether a retrieved requester has this PASID directory or table.
    fn has_retrieved_user(&self, run: &PasidRun) -> bool {
        let user = |k: &Kept| k.retrieved && k.unit == run.unit && k.entry.directory() == Some(run.directory);
        self.requesters.find(user).is_some()
    }
}

/// Clears one source-id's entry: present bit, forget, wipe. An entry that is not the sealed one any more stays alone.
fn cut_off_one<H: Host>(
    host: &H,
    unit: &H::Unit,
    atomic: &Atomic,
    kept: &Kept,
    source: SourceId,
    report: &mut dyn FnMut(CutOffEvent),
) {
    let requester = Requester::new(kept.requester.segment, source);
    let (mode, forget) = match kept.entry {
        Context::Legacy(entry) => (Mode::Legacy, Forget::Requester { source, domain: entry.domain_id() }),
        // Its PASIDs may have as many domain ids.
        Context::Scalable(_) => (Mode::Scalable, Forget::Everything),
    };
    let done = roots::find(host, mode, unit.root().table(), source).and_then(|found| {
        let Some((table, entry)) = found.filter(|(_, e)| *e == kept.entry) else { return Ok(()) };
        let at = mode.entry_at(table, source.devfn());
        roots::clear_present(host, at)?;
        report(CutOffEvent::Cleared { requester, entry });
        let forgotten = forget_and_report(unit, atomic, forget, report);
        if entry.allows_device_tlb() {
            Devices::new(host, unit, !forgotten).forget(atomic, requester, report);
        }
        roots::wipe(host, at, mode.entry_bytes())
    });
    done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
}

/// Clears the entries of those PASIDs of a retrieved requester that nobody retrieved: present bits, forget, wipe. Where it
/// shares its directory, what a requester that shares it retrieved stays.
fn cut_off_pasids<H: Host>(
    host: &H,
    book: &Book<'_>,
    unit: &H::Unit,
    atomic: &Atomic,
    (index, kept): (usize, &Kept),
    report: &mut dyn FnMut(CutOffEvent),
) {
    let Context::Scalable(context) = kept.entry else { return };
    let requester = kept.requester;
    let retrieved = |a: &Attached| {
        let mut sharing = book.attachments_in(kept.unit, context.directory());
        sharing.any(|other| other.pasid == a.pasid && other.retrieved)
    };
    let left = || book.attachments_of(index).map(|(_, a)| a).filter(|a| !retrieved(a) && book.is_sound(a));
    let mut cleared = Gone::None;
    for attached in left() {
        let pasid = attached.pasid;
        let done = roots::find_pasid(host, context, pasid).and_then(|found| {
            let Some((table, entry)) = found.filter(|(_, e)| *e == attached.entry) else { return Ok(()) };
            roots::clear_present(host, roots::pasid_entry_at(table, pasid))?;
            cleared = cleared.and(pasid);
            report(CutOffEvent::PasidCleared { requester, pasid, entry });
            Ok(())
        });
        done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
    }
    if cleared == Gone::None {
        return;
    }
    let forgotten = forget_and_report(unit, atomic, Forget::Everything, report);
    if context.dte() {
        let mut devices = Devices::new(host, unit, !forgotten);
        // Those that share the directory had these PASIDs too.
        for (_, kept) in book.requesters.iter().filter(|(_, k)| k.retrieved && k.shares(kept)) {
            if !devices.forget_pasids(atomic, kept, cleared, report) {
                cut_off_one(host, unit, atomic, kept, kept.requester.source, report);
            }
        }
    }
    for pasid in left().map(|a| a.pasid) {
        let done = roots::find_pasid(host, context, pasid).and_then(|found| match found {
            Some((table, entry)) if !entry.present() => {
                roots::wipe(host, roots::pasid_entry_at(table, pasid), PASID_BYTES)
            }
            _ => Ok(()),
        });
        done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
    }
}
