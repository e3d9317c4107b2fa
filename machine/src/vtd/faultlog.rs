//! Primary fault recording (VT-d 7.2.1): a ring of records, compression of a source's repeats, overflow.

use spec::SourceId;
use spec::fault::Reason;
use spec::regs::{FaultRecord, Fsts};

/// The fault records of one unit, with their part of the fault status register.
#[derive(Debug)]
pub struct FaultLog {
    records: Vec<FaultRecord>,
    next: usize,
    overflow: bool,
    /// First record filled since none was pending.
    first_pending: usize,
    /// QEMU shows ones in bits 119:104 of a record without PASID.
    pasid_leak: bool,
}

impl FaultLog {
    /// A log with `count` records (at least one), all empty.
    #[must_use]
    pub fn new(count: usize, pasid_leak: bool) -> Self {
        let records = vec![FaultRecord::ZERO; count.max(1)];
        Self { records, next: 0, overflow: false, first_pending: 0, pasid_leak }
    }

    /// Records a fault of a request without PASID, see [`record_as`](Self::record_as).
    pub fn record(&mut self, source: SourceId, address: u64, reason: Reason, write: bool) -> bool {
        self.record_as(source, None, address, reason, write)
    }

    /// Records a fault, unless it repeats a pending one of the same source or is lost. Says whether it was recorded.
    pub fn record_as(
        &mut self,
        source: SourceId,
        pasid: Option<u32>,
        address: u64,
        reason: Reason,
        write: bool,
    ) -> bool {
        if self.overflow {
            return false;
        }
        let sid = u64::from(source.raw());
        if self.records.iter().any(|r| r.f() && r.sid() == sid) {
            return false;
        }
        if self.records[self.next].f() {
            self.overflow = true;
            return false;
        }
        if !self.pending() {
            self.first_pending = self.next;
        }
        self.records[self.next] = FaultRecord::ZERO
            .with_fi(address >> 12)
            .with_sid(sid)
            .with_fr(u64::from(reason.0))
            .with_pp(pasid.is_some())
            .with_pv(pasid.map_or(if self.pasid_leak { 0xffff } else { 0 }, u64::from))
            .with_t1(!write)
            .with_f(true);
        self.next = (self.next + 1) % self.records.len();
        true
    }

    /// Some record holds a fault.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.records.iter().any(|r| r.f())
    }

    /// The log's bits of FSTS: PFO, PPF, FRI.
    #[must_use]
    pub fn status(&self) -> Fsts {
        let index = if self.pending() { self.first_pending as u32 & 0xff } else { 0 };
        Fsts::ZERO.with_pfo(self.overflow).with_ppf(self.pending()).with_fri(index)
    }

    /// Software wrote ones to FSTS.
    pub fn clear_status(&mut self, written: Fsts) {
        self.overflow &= !written.pfo();
    }

    /// The 64-bit half `half` (0 or 1) of record `index`; zero beyond the last.
    #[must_use]
    pub fn read(&self, index: usize, half: usize) -> u64 {
        self.records.get(index).map_or(0, |r| r.raw()[half & 1])
    }

    /// Software wrote a record's upper half: F is cleared by a one, everything else is read only.
    pub fn write_upper(&mut self, index: usize, value: u64) {
        if !FaultRecord::from_raw([0, value]).f() {
            return;
        }
        if let Some(record) = self.records.get_mut(index) {
            *record = record.with_f(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SourceId = SourceId::new(0, 4, 0);
    const B: SourceId = SourceId::new(1, 0, 0);
    const C: SourceId = SourceId::new(2, 0, 0);

    fn log(count: usize) -> FaultLog {
        FaultLog::new(count, false)
    }

    #[test]
    fn a_record_reads_as_the_manual_lays_it_out() {
        let mut log = log(1);
        assert!(log.record(A, 0x2_0abc, Reason::READ_DENIED, false));
        assert_eq!((log.read(0, 0), log.read(0, 1)), (0x2_0000, 0xc000_0006_0000_0020));
        assert_eq!(log.status().raw(), 2);
    }

    #[test]
    fn repeats_of_one_source_are_dropped_without_overflow() {
        let mut log = log(1);
        assert!(log.record(A, 0x1000, Reason::READ_DENIED, false));
        assert!(!log.record(A, 0x2000, Reason::READ_DENIED, false));
        assert!(!log.status().pfo());
    }

    #[test]
    fn a_fault_of_another_source_without_a_free_record_overflows_until_cleared() {
        let mut log = log(1);
        log.record(A, 0x1000, Reason::READ_DENIED, false);
        assert!(!log.record(B, 0x2000, Reason::WRITE_DENIED, true));
        assert!(log.status().pfo());
        log.write_upper(0, 1 << 63);
        assert!(!log.record(B, 0x2000, Reason::WRITE_DENIED, true), "lost while PFO is set");
        log.clear_status(Fsts::ZERO.with_pfo(true));
        assert!(log.record(B, 0x2000, Reason::WRITE_DENIED, true));
    }

    #[test]
    fn the_status_names_the_first_pending_record_of_a_ring() {
        let mut log = log(2);
        log.record(A, 0, Reason::READ_DENIED, false);
        log.write_upper(0, 1 << 63);
        log.record(B, 0, Reason::READ_DENIED, false);
        log.record(C, 0, Reason::READ_DENIED, false);
        assert_eq!(log.status().fri(), 1);
        log.write_upper(1, 0);
        assert_eq!(log.read(1, 1) >> 63, 1, "zeroes clear nothing");
    }
}
