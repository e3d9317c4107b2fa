//! The cut-off of one unit: every translation entry that no preserved requester owns goes, and hardware forgets it.
//!
//! The tables are walked, hardware's own truth, never a list of devices. Present bits are cleared first, each in one
//! store; then hardware is made to forget, with proof; then the rest of the entries is wiped. Nothing here allocates,
//! sleeps or fails: what could not be done is in the report, and the next kernel does all of it again before it adopts.

use crate::book::{Book, Kept};
use crate::host::{Atomic, Forget, Host, NoMemory, TimedOut, Unit};
use crate::roots::{self, ENTRY_BYTES};
use spec::context::ContextEntry;
use spec::{PhysAddr, Requester, SourceId, UnitId, context, root};

/// What a cut-off did, as it happens. Receivers must neither allocate nor sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOffEvent {
    /// A requester's entry was cleared.
    Cleared {
        /// Who is cut off. It need not be on any list of devices.
        requester: Requester,
        /// Its entry before.
        entry: ContextEntry,
    },
    /// A preserved entry stays.
    Stays(Requester),
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
    /// A table could not be reached; its root entry was cleared instead, where it has one.
    Unreachable(NoMemory),
}

/// Cuts off everything on `unit` that `keep` does not hold for, among the preserved requesters of the unit at `index`;
/// everything, where the unit is not in the book.
pub(crate) fn prune<H: Host>(
    host: &H,
    book: &Book<'_>,
    index: Option<usize>,
    unit: &H::Unit,
    atomic: &Atomic,
    keep: &dyn Fn(&Kept) -> bool,
    report: &mut dyn FnMut(CutOffEvent),
) {
    let pruning = Pruning { host, book, index, unit: unit.id(), root: unit.root().table(), keep };
    pruning.clear_present(report);
    match unit.forget(atomic, Forget::Everything) {
        Ok(_) => report(CutOffEvent::Confirmed(unit.id())),
        Err(timed_out) => report(CutOffEvent::NotConfirmed(timed_out)),
    }
    // Also when the wait ran out: no walk reads an entry that is not present, and what hardware cached is whole. What is
    // left behind would only look like damage to the next kernel.
    pruning.wipe(report);
}

struct Pruning<'a, 's, H: Host> {
    host: &'a H,
    book: &'a Book<'s>,
    index: Option<usize>,
    unit: UnitId,
    root: PhysAddr,
    keep: &'a dyn Fn(&Kept) -> bool,
}

impl<H: Host> Pruning<'_, '_, H> {
    /// Clears present bits, and reports who goes and who stays.
    fn clear_present(&self, report: &mut dyn FnMut(CutOffEvent)) {
        for bus in 0..=u8::MAX {
            let at = self.root.plus(ENTRY_BYTES * u64::from(bus));
            let done = roots::root_entry(self.host, self.root, bus).and_then(|entry| {
                if !entry.present() {
                    return Ok(());
                }
                let table = entry.context_table();
                let stays = self.table_stays(bus, table);
                // The whole table goes with its root entry: only the account reads it then.
                let cleared = self.clear_entries(bus, table, stays, report);
                if !stays || cleared.is_err() {
                    roots::clear_present(self.host, at)?;
                }
                cleared
            });
            done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
        }
    }

    fn clear_entries(
        &self,
        bus: u8,
        table: PhysAddr,
        stays: bool,
        report: &mut dyn FnMut(CutOffEvent),
    ) -> Result<(), NoMemory> {
        for devfn in 0..=u8::MAX {
            let entry = roots::context_entry(self.host, table, devfn)?;
            if !entry.present() {
                continue;
            }
            let requester = self.requester(bus, devfn);
            if stays && self.entry_stays(requester) {
                report(CutOffEvent::Stays(requester));
                continue;
            }
            if stays {
                roots::clear_present(self.host, table.plus(ENTRY_BYTES * u64::from(devfn)))?;
            }
            report(CutOffEvent::Cleared { requester, entry });
        }
        Ok(())
    }

    /// Wipes what is left of cleared entries.
    fn wipe(&self, report: &mut dyn FnMut(CutOffEvent)) {
        for bus in 0..=u8::MAX {
            let at = self.root.plus(ENTRY_BYTES * u64::from(bus));
            let done = roots::root_entry(self.host, self.root, bus).and_then(|entry| {
                if !entry.present() {
                    return if entry.raw() == [0; 2] { Ok(()) } else { roots::wipe(self.host, at) };
                }
                self.wipe_entries(bus, entry.context_table())
            });
            done.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
        }
    }

    fn wipe_entries(&self, bus: u8, table: PhysAddr) -> Result<(), NoMemory> {
        for devfn in 0..context::ENTRIES {
            let entry = roots::context_entry(self.host, table, devfn as u8)?;
            let stays = entry.present() && self.entry_stays(self.requester(bus, devfn as u8));
            if !stays && entry.raw() != [0; 2] {
                roots::wipe(self.host, table.plus(ENTRY_BYTES * devfn))?;
            }
        }
        Ok(())
    }

    fn requester(&self, bus: u8, devfn: u8) -> Requester {
        Requester::new(self.unit.segment, SourceId::from_raw(u16::from(bus) << 8 | u16::from(devfn)))
    }

    /// Whether the context table of `bus` is preserved and still has a requester to keep.
    fn table_stays(&self, bus: u8, table: PhysAddr) -> bool {
        let (book, Some(index)) = (self.book, self.index) else { return false };
        let kept = |k: &Kept| k.unit == index && (self.keep)(k);
        book.context_of(index, bus).is_some_and(|(_, c)| c.table == table)
            && (book.requesters.iter().any(|(_, k)| k.requester.source.bus() == bus && kept(k))
                || book.aliases.iter().any(|(_, a)| {
                    a.source.bus() == bus && book.requesters.get(a.requester).is_some_and(kept)
                }))
    }

    fn entry_stays(&self, requester: Requester) -> bool {
        let mut owners = self.book.owners(requester.segment, requester.source);
        owners.any(|k| Some(k.unit) == self.index && (self.keep)(k))
    }
}

const _: () = assert!(root::ENTRIES == 256 && context::ENTRIES == 256);
