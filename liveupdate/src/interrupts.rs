//! Interrupt remapping across an update: the table of a preserved unit stays in place and in use, and with it the entries
//! of preserved requesters.
//!
//! The table's frames are kept with the unit, from the first requester on. Entries are not: drivers go on making,
//! re-pointing and freeing them until the freeze, which reads the table once more and seals what it finds. Whom an entry
//! belongs to is in the entry itself: whoever may ask by it ([`owner`]). The cut-off clears the others, whatever was
//! sealed: present bit first, then hardware forgets, then the rest is wiped.
//!
//! A unit whose host leaves [`Unit::interrupts`](crate::host::Unit::interrupts) out has no table here; if hardware remaps
//! interrupts all the same, its requesters cannot be preserved.

use crate::book::{Book, Kept, KeptUnit, RegionKind};
use crate::error::{FreezeError, PreserveError};
use crate::host::{Atomic, ForgetInterrupts, Host, MaySleep, NoMemory, TableMemory, TimedOut, Unit};
use crate::mutant::{self, Mutant};
use crate::outgoing::Outgoing;
use crate::prune::CutOffEvent;
use crate::roots;
use spec::interrupt::{ENTRY_BYTES, PostedEntry, RemappedEntry, entry_format, source_check};
use spec::regs::Irta;
use spec::xxh64::Hasher;
use spec::{Extent, PhysAddr, SourceId, UnitId};

/// The table that a unit uses now; `None` when it remaps no interrupts.
///
/// # Errors
/// The unit's id when it does, and the host does not say how.
fn table_in_use<U: Unit>(unit: &U) -> Result<Option<Irta>, UnitId> {
    if !unit.status().ires() {
        return Ok(None);
    }
    match unit.interrupts() {
        Some(interrupts) => Ok(Some(interrupts.interrupt_table())),
        None if mutant::on(Mutant::AbsentIsDone) => Ok(None),
        None => Err(unit.id()),
    }
}

impl<H: Host> Outgoing<'_, '_, H> {
    /// Marks the frames of a unit's interrupt table, if it has one and is not preserved yet. What is returned goes to
    /// [`Self::note_interrupts`] once a requester of the unit is preserved, or to [`Self::drop_interrupts`].
    pub(crate) fn keep_interrupts(
        &self,
        ctx: &mut MaySleep,
        unit: &H::Unit,
    ) -> Result<Option<Irta>, PreserveError> {
        let now = table_in_use(unit).map_err(PreserveError::InterruptsUnknown)?;
        if let Some((_, known)) = self.book.units.find(|u| u.id == unit.id()) {
            return if known.interrupts == now {
                Ok(None)
            } else {
                Err(PreserveError::InterruptsChanged(known.id))
            };
        }
        let Some(irta) = now else { return Ok(None) };
        let nowhere = NoMemory { at: irta.table() };
        let frames = irta.frames().ok_or(nowhere)?;
        if let Some(taken) = self.book.in_the_way(frames) {
            return Err(PreserveError::Overlap(taken));
        }
        self.host.reserve(ctx, frames)?;
        ctx.atomic(|atomic| self.host.commit(atomic, frames));
        Ok(Some(irta))
    }

    /// Records what [`Self::keep_interrupts`] marked.
    pub(crate) fn note_interrupts(&mut self, unit: UnitId, irta: Option<Irta>) {
        let index = self.book.units.find(|u| u.id == unit).map(|(i, _)| i);
        if let (Some(kept), Some(_)) = (index.and_then(|i| self.book.units.get_mut(i)), irta) {
            kept.interrupts = irta;
        }
    }

    /// Takes back what [`Self::keep_interrupts`] marked.
    pub(crate) fn drop_interrupts(&self, ctx: &mut MaySleep, irta: Option<Irta>) {
        if let Some(frames) = irta.and_then(Irta::frames) {
            self.host.release(ctx, frames);
        }
    }

    /// Freeze: that every preserved unit still uses the table that was preserved, or none, and that posted entries that
    /// stay have hardware write to preserved memory (I3).
    pub(crate) fn check_interrupts(&self) -> Result<(), FreezeError> {
        for (index, kept) in self.book.units.iter() {
            let drifted = |what| FreezeError::Drifted { requester: None, unit: kept.id, what };
            let unit = self.host.unit(kept.id).ok_or(drifted("the unit is gone"))?;
            let now =
                table_in_use(unit).map_err(|_| drifted("it remaps interrupts, and the host lost count"))?;
            if now != kept.interrupts {
                return Err(drifted("another interrupt table is in use, or none"));
            }
            let mut outside = None;
            for_each_kept(self.host, &self.book, index, &mut |entry| {
                let posted = entry.words[0] & 1 == 1
                    && RemappedEntry::from_raw(entry.words).im() == entry_format::POSTED;
                let to = Extent::one(PostedEntry::from_raw(entry.words).descriptor().frame());
                let region = self.book.regions.overlapping(to).and_then(|i| self.book.regions.get(i));
                let memory = region.is_some_and(|r| r.kind == RegionKind::Memory);
                if posted && !memory && outside.is_none() {
                    let requester = self.book.requesters.get(entry.owner).map(|k| k.requester);
                    outside = Some((requester.unwrap_or_default(), entry.index, to.start()));
                }
                Ok(())
            })?;
            if let Some((requester, index, descriptor)) = outside {
                return Err(FreezeError::PostedOutside { requester, index, descriptor });
            }
        }
        Ok(())
    }
}

/// An entry that stays.
pub(crate) struct KeptEntry {
    pub(crate) index: u32,
    /// Position of its requester in the book.
    pub(crate) owner: usize,
    pub(crate) words: [u64; 2],
}

/// Calls `f` with every present entry of the unit at `unit` that belongs to a preserved requester, by index.
pub(crate) fn for_each_kept<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    unit: usize,
    f: &mut dyn FnMut(KeptEntry) -> Result<(), NoMemory>,
) -> Result<(), NoMemory> {
    let Some(irta) = book.units.get(unit).and_then(|u| u.interrupts) else { return Ok(()) };
    for index in 0..irta.entries() {
        let words = load(memory, entry_at(irta, index))?;
        if let Some(owner) = Some(words).filter(is_present).and_then(|words| owner(book, unit, words)) {
            f(KeptEntry { index, owner, words })?;
        }
    }
    Ok(())
}

/// Digest of a unit's interrupt table as it will be after the cut-off, and the number of entries that stay.
pub(crate) fn digest<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    unit: usize,
) -> Result<(u64, u32), NoMemory> {
    let mut hasher = Hasher::new(0);
    let mut kept = 0;
    let irta = book.units.get(unit).and_then(|u| u.interrupts);
    for index in 0..irta.map_or(0, Irta::entries) {
        let words = load(memory, entry_at(irta.unwrap_or(Irta::ZERO), index))?;
        let stays = is_present(&words) && owner(book, unit, words).is_some();
        kept += u32::from(stays);
        hasher.update_words(if stays { &words } else { &[0; 2] });
    }
    Ok((hasher.finish(), kept))
}

/// The preserved requester of the unit at `unit` that an entry belongs to: the first one, if several share a source-id.
///
/// It is the one whose source-id the entry names; where bits of the function number do not count, all functions that it
/// could be must be its own. A range of buses is for what lies behind a bridge: the first and the last must both be buses of
/// source-ids of one requester. An entry by which anybody may ask belongs to nobody.
pub(crate) fn owner(book: &Book<'_>, unit: usize, words: [u64; 2]) -> Option<usize> {
    let entry = RemappedEntry::from_raw(words);
    let any_source = |index: usize, is: &dyn Fn(SourceId) -> bool| {
        let mut found = false;
        book.for_each_source(index, &mut |source| found |= is(source));
        found
    };
    let owns = |index: usize| match entry.svt() {
        source_check::SOURCE_ID => {
            let ignored = [0, 0b100, 0b110, 0b111][(entry.sq() & 3) as usize];
            (0..8).filter(|bits| bits & !ignored == 0).all(|bits| {
                let named = SourceId::from_raw(entry.source().raw() & !ignored | bits);
                any_source(index, &|source| source == named)
            })
        }
        source_check::BUS_RANGE => {
            let (first, last) = entry.buses();
            let on = |bus| any_source(index, &|source| source.bus() == bus);
            first <= last && on(first) && on(last)
        }
        _ => false,
    };
    let mut requesters = book.requesters.iter().filter(|(_, k)| k.unit == unit);
    requesters.find(|(index, _)| owns(*index)).map(|(index, _)| index)
}

/// Clears every present interrupt entry of a unit that `keep` does not hold for, and all of them where the unit is not in
/// the book. Nothing happens on a unit that remaps no interrupts.
pub(crate) fn prune<H: Host>(
    host: &H,
    book: &Book<'_>,
    index: Option<usize>,
    unit: &H::Unit,
    atomic: &Atomic,
    keep: &dyn Fn(usize, &Kept) -> bool,
    report: &mut dyn FnMut(CutOffEvent),
) {
    let Some(interrupts) = unit.interrupts().filter(|_| unit.status().ires()) else { return };
    let irta = interrupts.interrupt_table();
    let known = index.and_then(|i| book.units.get(i));
    if known.is_some_and(|known| known.interrupts != Some(irta)) {
        // The handover speaks of another table: whose memory this one is nobody knows. The audit said so.
        return;
    }
    let stays = |words: [u64; 2]| {
        let owner = index.and_then(|unit| owner(book, unit, words));
        owner.and_then(|i| Some((i, book.requesters.get(i)?))).is_some_and(|(i, kept)| keep(i, kept))
    };
    clear_present(host, unit.id(), irta, &stays, report);
    match interrupts.forget_interrupts(atomic, ForgetInterrupts::Everything) {
        Ok(_) => report(CutOffEvent::Confirmed(unit.id())),
        Err(timed_out) => report(CutOffEvent::NotConfirmed(timed_out)),
    }
    wipe(host, irta, report);
}

fn clear_present<M: TableMemory>(
    memory: &M,
    unit: UnitId,
    irta: Irta,
    stays: &dyn Fn([u64; 2]) -> bool,
    report: &mut dyn FnMut(CutOffEvent),
) {
    let mut unreachable = None;
    for index in 0..irta.entries() {
        let at = entry_at(irta, index);
        let done = load(memory, at).and_then(|words| {
            if !is_present(&words) || stays(words) {
                return Ok(());
            }
            roots::clear_present(memory, at)?;
            report(CutOffEvent::InterruptCleared { unit, index: index as u16, entry: words });
            Ok(())
        });
        unreachable = unreachable.or(done.err());
    }
    unreachable.into_iter().for_each(|e| report(CutOffEvent::Unreachable(e)));
}

/// Wipes what is left of entries that are not present.
fn wipe<M: TableMemory>(memory: &M, irta: Irta, report: &mut dyn FnMut(CutOffEvent)) {
    let mut unreachable = None;
    for index in 0..irta.entries() {
        let at = entry_at(irta, index);
        let done = load(memory, at).and_then(|words| {
            let empty = is_present(&words) || words == [0; 2];
            if empty { Ok(()) } else { roots::wipe(memory, at, ENTRY_BYTES) }
        });
        unreachable = unreachable.or(done.err());
    }
    unreachable.into_iter().for_each(|e| report(CutOffEvent::Unreachable(e)));
}

/// Switches interrupt remapping off on a unit with nothing preserved, if it is on.
pub(crate) fn switch_off<U: Unit>(unit: &U, atomic: &Atomic, report: &mut dyn FnMut(CutOffEvent)) {
    let Some(interrupts) = unit.interrupts().filter(|_| unit.status().ires()) else { return };
    match interrupts.disable_interrupts(atomic) {
        Ok(()) => report(CutOffEvent::InterruptsOff(unit.id())),
        Err(timed_out) => report(CutOffEvent::NotConfirmed(timed_out)),
    }
}

/// Finish: clears the entries of whoever `keep` does not hold for, on every unit of the handover.
pub(crate) fn finish<H: Host>(
    host: &H,
    book: &Book<'_>,
    ctx: &mut MaySleep,
    keep: &dyn Fn(usize, &Kept) -> bool,
    report: &mut dyn FnMut(CutOffEvent),
) {
    for (index, kept) in book.units.iter() {
        let Some(unit) = host.unit(kept.id) else { continue };
        unit.locked(ctx, |atomic| {
            let mut left = false;
            let walked = for_each_kept(host, book, index, &mut |entry| {
                left |= book.requesters.get(entry.owner).is_some_and(|k| !keep(entry.owner, k));
                Ok(())
            });
            if left || walked.is_err() {
                prune(host, book, Some(index), unit, atomic, keep, report);
            }
        });
    }
}

/// Has a unit forget interrupt entries once more, if it remaps interrupts.
pub(crate) fn forget_again<U: Unit>(unit: &U, atomic: &Atomic) -> Result<(), TimedOut> {
    match unit.interrupts().filter(|_| unit.status().ires()) {
        Some(interrupts) => interrupts.forget_interrupts(atomic, ForgetInterrupts::Everything).map(drop),
        None => Ok(()),
    }
}

/// Calls `f` with the present entries of the requester at `requester`; says how many there are.
pub(crate) fn of_requester<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    requester: usize,
    unit: usize,
    f: &mut dyn FnMut(u16, [u64; 2]),
) -> u32 {
    let mut count = 0;
    // A table that cannot be read failed the audit: nothing of it is anybody's.
    let _ = for_each_kept(memory, book, unit, &mut |entry| {
        if entry.owner == requester {
            f(entry.index as u16, entry.words);
            count += 1;
        }
        Ok(())
    });
    count
}

/// Whether a finding speaks of an entry that adoption clears anyhow, or is explained by one that does: nothing of ours is
/// blocked for it.
pub(crate) fn is_harmless(finding: &audit::Finding) -> bool {
    use audit::{Item, What};
    match finding.what {
        What::InterruptNotOwned { .. } => true,
        What::Differs { item: Item::InterruptDigest, .. } => finding.requester.is_some(),
        _ => false,
    }
}

/// The frames of a unit's interrupt table.
pub(crate) fn frames(unit: &KeptUnit) -> Option<Extent> {
    unit.interrupts.and_then(Irta::frames)
}

fn entry_at(irta: Irta, index: u32) -> PhysAddr {
    irta.table().plus(ENTRY_BYTES * u64::from(index))
}

fn load<M: TableMemory>(memory: &M, at: PhysAddr) -> Result<[u64; 2], NoMemory> {
    let mut words = [0; 2];
    memory.read_words(at, &mut words)?;
    Ok(words)
}

fn is_present(words: &[u64; 2]) -> bool {
    words[0] & 1 == 1
}
