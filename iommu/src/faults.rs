//! Faults that a unit recorded: read, attributed, cleared (VT-d 7.2, 11.4.7).

use crate::Hal;
use crate::registers::Registers;
use core::fmt;
use spec::fault::Reason;
use spec::regs::{FaultRecord, Fsts, offset};
use spec::{Requester, UnitId};

/// One fault, as the unit recorded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The unit.
    pub unit: UnitId,
    /// Who asked.
    pub requester: Requester,
    /// Why it was refused.
    pub reason: Reason,
    /// Address of the page that was asked for; for interrupt requests (reasons 0x20 to 0x2f) the raw index field.
    pub address: u64,
    /// Whether it was a write; otherwise a read (or an atomic operation).
    pub write: bool,
    /// The PASID, when the request carried one.
    pub pasid: Option<u32>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.write { "write" } else { "read" };
        write!(
            f,
            "unit {}: {access} of {:#x} by {} refused: {}",
            self.unit, self.address, self.requester, self.reason
        )
    }
}

/// What one reading of the fault records brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultSummary {
    /// Faults read and cleared.
    pub recorded: u32,
    /// The unit had no free record for at least one fault: that one is lost. The bit was cleared.
    pub overflow: bool,
    /// A record still holds a fault although every record was read as often as is allowed: read again later.
    pub pending: bool,
}

/// Rounds over all records in one reading: a requester that faults for ever must not keep the reader for ever.
const ROUNDS: u32 = 4;
/// Bit F of a record, in the record's last 32 bits.
const F_IN_LAST_WORD: u32 = 1 << 31;

/// Reads all pending records, hands each to `f`, clears them, and at last the overflow bit. Bounded.
pub fn harvest<H: Hal>(registers: &Registers<'_, H>, f: &mut dyn FnMut(Fault)) -> FaultSummary {
    let cap = registers.cap();
    let mut summary = FaultSummary::default();
    for _ in 0..ROUNDS {
        let status = registers.fault_status();
        if status.ppf() {
            let first = u64::from(status.fri());
            for i in 0..cap.fault_records() {
                let at = cap.fault_record_offset((first + i) % cap.fault_records());
                if let Some(fault) = take(registers, at) {
                    summary.recorded += 1;
                    f(fault);
                }
            }
        }
        // Records first, then the overflow bit: while it is set nothing is recorded, so nothing is overwritten either.
        if status.pfo() {
            summary.overflow = true;
            registers.write32(offset::FSTS, Fsts::ZERO.with_pfo(true).raw());
        }
        summary.pending = registers.fault_status().ppf();
        if !summary.pending {
            break;
        }
    }
    summary
}

/// The record at `at`, if it holds a fault, which is cleared then.
fn take<H: Hal>(registers: &Registers<'_, H>, at: u64) -> Option<Fault> {
    let record = FaultRecord::from_raw([registers.read64(at), registers.read64(at + 8)]);
    if !record.f() {
        return None;
    }
    registers.write32(at + 12, F_IN_LAST_WORD);
    let reason = Reason(record.fr() as u8);
    let interrupt = (0x20..0x30).contains(&reason.0);
    Some(Fault {
        unit: registers.id,
        requester: Requester::new(registers.id.segment, record.source()),
        reason,
        address: if interrupt { record.page() >> 48 } else { record.page() },
        write: !record.t1() && !record.t2(),
        // Without PP the PASID field means nothing (QEMU leaves ones there).
        pasid: record.pp().then_some(record.pv() as u32),
    })
}
