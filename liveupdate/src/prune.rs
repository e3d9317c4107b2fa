//! The cut-off of one unit: every translation entry that no preserved requester owns goes, and hardware forgets it.
//!
//! The tables are walked, hardware's own truth, never a list of devices: root and context tables in either mode here, the
//! PASID structures of preserved requesters in [`crate::prune_pasids`]. Present bits are cleared first, each in one store,
//! whatever the length of the entry; then hardware is made to forget, with proof; then the rest of the entries is wiped.
//! Nothing here allocates, sleeps or fails: what could not be done is in the report, and the next kernel does all of it
//! again before it adopts.

use crate::book::{Attached, Book, Kept};
use crate::device_tlb::{self, Devices};
use crate::host::{Atomic, Forget, Forgotten, Host, NoMemory, RequesterKind, TimedOut, Unit};
use crate::mode::{Context, Mode, Place};
use crate::mutant::{self, Mutant};
use crate::roots;
use spec::scalable::PasidEntry;
use spec::{PhysAddr, Requester, UnitId};

/// What a cut-off did, as it happens. Receivers must neither allocate nor sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOffEvent {
    /// A requester's entry was cleared.
    Cleared {
        /// Who is cut off. It need not be on any list of devices.
        requester: Requester,
        /// Its entry before.
        entry: Context,
    },
    /// The entry of one PASID of a preserved requester was cleared; the requester itself stays.
    PasidCleared {
        /// Whose PASID.
        requester: Requester,
        /// Which.
        pasid: u32,
        /// Its entry before.
        entry: PasidEntry,
    },
    /// A preserved entry stays.
    Stays(Requester),
    /// A requester's device did not answer that it forgot the translations it keeps. Its cleared entry blocks them: a
    /// requester that was to go on, and lost but some of its PASIDs, is cut off by this.
    DeviceSilent {
        /// Who.
        requester: Requester,
        /// Its ATS is off now.
        off: bool,
    },
    /// Hardware has forgotten everything on this unit that was cleared.
    Confirmed(UnitId),
    /// Hardware did not confirm in time: it may still use what it cached, until the next kernel makes it forget.
    NotConfirmed(TimedOut),
    /// Nothing is preserved on this unit: translation is off, as after a normal shutdown.
    SwitchedOff(UnitId),
    /// A present entry of the unit's interrupt table was cleared: it belonged to no preserved requester.
    InterruptCleared {
        /// The unit.
        unit: UnitId,
        /// The entry's index.
        index: u16,
        /// The entry before.
        entry: [u64; 2],
    },
    /// Nothing is preserved on this unit: interrupt remapping is off, as after a normal shutdown.
    InterruptsOff(UnitId),
    /// A table could not be reached; the entry that leads to it was cleared instead, where there is one.
    Unreachable(NoMemory),
}

/// Cuts off everything on `unit` that `keep` does not hold for, among the preserved PASIDs of the unit at `index`;
/// everything, where the unit is not in the book. The tables are those that hardware reads, in the mode that it runs in; in
/// a mode without tables nothing translates.
pub(crate) fn prune<H: Host>(
    host: &H,
    book: &Book<'_>,
    index: Option<usize>,
    unit: &H::Unit,
    atomic: &Atomic,
    keep: &dyn Fn(&Attached) -> bool,
    report: &mut dyn FnMut(CutOffEvent),
) {
    let root = unit.root();
    let pruning = Mode::of(root).map(|mode| {
        // Records of another mode speak of other tables.
        let index = index.filter(|i| book.units.get(*i).is_some_and(|u| u.mode == mode));
        Pruning { host, book, index, unit: unit.id(), root: root.table(), mode, keep }
    });
    if let Some(pruning) = &pruning {
        pruning.clear_present(report);
        pruning.clear_pasids(report);
    }
    let forgotten = match mutant::on(Mutant::NoInvalidation) {
        true => Ok(Forgotten::observed()),
        false => unit.forget(atomic, Forget::Everything),
    };
    let lost = forgotten.is_err();
    report(match forgotten {
        Ok(_) => CutOffEvent::Confirmed(unit.id()),
        Err(timed_out) => CutOffEvent::NotConfirmed(timed_out),
    });
    if let Some(pruning) = &pruning {
        let mut devices = Devices::new(host, unit, lost);
        device_tlb::forget_cleared(pruning, &mut devices, atomic, report);
        device_tlb::forget_pasids(pruning, &mut devices, atomic, report);
    }
    // Also when the wait ran out: no walk reads an entry that is not present, and what hardware cached is whole. What is
    // left behind would only look like damage to the next kernel.
    if let Some(pruning) = &pruning {
        pruning.wipe(report);
        pruning.wipe_pasids(report);
    }
}

pub(crate) struct Pruning<'a, 's, H: Host> {
    pub(crate) host: &'a H,
    pub(crate) book: &'a Book<'s>,
    pub(crate) index: Option<usize>,
    pub(crate) unit: UnitId,
    pub(crate) root: PhysAddr,
    pub(crate) mode: Mode,
    pub(crate) keep: &'a dyn Fn(&Attached) -> bool,
}

impl<H: Host> Pruning<'_, '_, H> {
    /// Clears present bits, and reports who goes and who stays.
    fn clear_present(&self, report: &mut dyn FnMut(CutOffEvent)) {
        for place in self.mode.places() {
            let done = roots::context_table(self.host, self.root, place).and_then(|table| {
                let Some(table) = table else { return Ok(()) };
                let stays = self.table_stays(place, table);
                // The whole table goes with its root entry: only the account reads it then.
                let cleared = self.clear_entries(place, table, stays, report);
                if (!stays && !mutant::on(Mutant::LateTables)) || cleared.is_err() {
                    roots::clear_present(self.host, place.pointer_at(self.root))?;
                }
                cleared
            });
            done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
        }
    }

    fn clear_entries(
        &self,
        place: Place,
        table: PhysAddr,
        stays: bool,
        report: &mut dyn FnMut(CutOffEvent),
    ) -> Result<(), NoMemory> {
        for source in place.sources(self.mode) {
            let entry = roots::context_entry(self.host, self.mode, table, source.devfn())?;
            if !entry.present() {
                continue;
            }
            let requester = Requester::new(self.unit.segment, source);
            let unlisted = mutant::on(Mutant::DeviceList)
                && self.host.aliases(requester, &mut |_| ()) == RequesterKind::Other;
            if unlisted || (stays && self.entry_stays(requester, entry)) {
                report(CutOffEvent::Stays(requester));
                continue;
            }
            if stays {
                roots::clear_present(self.host, self.mode.entry_at(table, source.devfn()))?;
            }
            report(CutOffEvent::Cleared { requester, entry });
        }
        Ok(())
    }

    /// Wipes what is left of cleared entries.
    fn wipe(&self, report: &mut dyn FnMut(CutOffEvent)) {
        for place in self.mode.places() {
            let done = roots::context_table(self.host, self.root, place).and_then(|table| match table {
                None => roots::wipe(self.host, place.pointer_at(self.root), self.mode.pointer_bytes()),
                Some(table) => self.wipe_entries(place, table),
            });
            done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
        }
    }

    fn wipe_entries(&self, place: Place, table: PhysAddr) -> Result<(), NoMemory> {
        for source in place.sources(self.mode) {
            let entry = roots::context_entry(self.host, self.mode, table, source.devfn())?;
            let requester = Requester::new(self.unit.segment, source);
            if !(entry.present() && self.entry_stays(requester, entry)) {
                let at = self.mode.entry_at(table, source.devfn());
                roots::wipe(self.host, at, self.mode.entry_bytes())?;
            }
        }
        Ok(())
    }

    /// Whether the context table of `place` is preserved and still has a requester to keep.
    fn table_stays(&self, place: Place, table: PhysAddr) -> bool {
        let (book, Some(index)) = (self.book, self.index) else { return false };
        let here = |source| self.mode.place(source) == place;
        let kept = |i: usize, k: &Kept| k.unit == index && self.requester_stays(i);
        book.context_of(index, place).is_some_and(|(_, c)| c.table == table)
            && (book.requesters.iter().any(|(i, k)| here(k.requester.source) && kept(i, k))
                || book.aliases.iter().any(|(_, a)| {
                    here(a.source) && book.requesters.get(a.requester).is_some_and(|k| kept(a.requester, k))
                }))
    }

    /// Whether the entry of a source-id is a preserved requester's. In scalable mode one that changed since is not: it may
    /// lead to other PASIDs than those that are looked through here.
    fn entry_stays(&self, requester: Requester, entry: Context) -> bool {
        let same = |k: &Kept| entry.directory().is_none() || k.entry == entry;
        let mut owners = self.book.owners(requester.segment, requester.source);
        owners.any(|(i, k)| Some(k.unit) == self.index && same(k) && self.requester_stays(i))
    }

    /// Whether the requester at `index` has a PASID to keep.
    pub(crate) fn requester_stays(&self, index: usize) -> bool {
        self.book.attachments_of(index).any(|(_, a)| (self.keep)(a))
    }
}
