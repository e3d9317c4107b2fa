//! Interrupt remapping of a fake unit: entries are cached until the unit is told to forget, and every request is answered
//! with the vector that came of it, or not at all.

use super::machine::{Machine, Step};
use super::unit::FakeUnit;
use liveupdate::host::{Atomic, ForgetInterrupts, Forgotten, InterruptRemapping, TimedOut};
use spec::interrupt::{PostedEntry, RemappedEntry};
use spec::regs::Irta;
use spec::{PhysAddr, SourceId};

/// 512 entries: two frames.
pub const SIZE: u64 = 8;

impl Machine {
    /// Switches interrupt remapping of a unit on, with an empty table of two frames.
    pub fn remap_interrupts(&self, unit: usize) -> PhysAddr {
        let (first, second) = (self.table(), self.table());
        assert_eq!(first.plus(4096), second);
        let unit = &self.units[unit];
        unit.irta.set(Some(Irta::ZERO.with_irta(first.get() >> 12).with_s(SIZE)));
        unit.status.set(unit.status.get().with_ires(true).with_irtps(true));
        first
    }

    pub fn put_interrupt(&self, unit: usize, index: u32, words: [u64; 2]) {
        let at = self.units[unit].irta.get().unwrap().table().plus(16 * u64::from(index));
        self.set(at.plus(8), words[1]);
        self.set(at, words[0]);
    }

    pub fn interrupt_words(&self, unit: usize, index: u32) -> [u64; 2] {
        let at = self.units[unit].irta.get().unwrap().table().plus(16 * u64::from(index));
        [self.get(at), self.get(at.plus(8))]
    }

    /// An interrupt request: the vector, unless it is blocked.
    pub fn interrupt(&self, unit: usize, source: SourceId, index: u32) -> Option<u64> {
        let unit = &self.units[unit];
        assert!(unit.status.get().ires(), "interrupts pass as they are");
        let at = unit.irta.get().unwrap().table().plus(16 * u64::from(index));
        let read = || [self.get(at), self.get(at.plus(8))];
        let words = unit.cached_interrupts.borrow().get(&index).copied().unwrap_or_else(read);
        let entry = RemappedEntry::from_raw(words);
        if !entry.present() {
            return None;
        }
        unit.cached_interrupts.borrow_mut().insert(index, words);
        (entry.source() == source || entry.svt() != 1).then_some(entry.v())
    }
}

/// An entry for one source-id.
pub fn msi(source: SourceId, vector: u64) -> [u64; 2] {
    let entry = RemappedEntry::ZERO.with_present(true).with_v(vector).with_dst(0x300);
    entry.with_sid(u64::from(source.raw())).with_svt(1).raw()
}

/// A posted entry for one source-id.
pub fn posted(source: SourceId, descriptor: u64) -> [u64; 2] {
    let entry = PostedEntry::ZERO.with_present(true).with_im(true).with_vv(0x33);
    let entry = entry.with_pda_low(descriptor >> 6 & 0x3ff_ffff).with_pda_high(descriptor >> 32);
    entry.with_sid(u64::from(source.raw())).with_svt(1).raw()
}

impl InterruptRemapping for FakeUnit {
    fn interrupt_table(&self) -> Irta {
        self.irta.get().expect("only asked of a unit that has one")
    }
    fn forget_interrupts(&self, _: &Atomic, what: ForgetInterrupts) -> Result<Forgotten, TimedOut> {
        self.shared.step(Step::ForgetInterrupts(self.id));
        assert_eq!(what, ForgetInterrupts::Everything);
        if self.hangs.get() {
            return Err(TimedOut { unit: self.id, what: "interrupts", waited: 1_000_000 });
        }
        self.cached_interrupts.borrow_mut().clear();
        Ok(Forgotten::observed())
    }
    fn disable_interrupts(&self, _: &Atomic) -> Result<(), TimedOut> {
        self.shared.step(Step::InterruptsOff(self.id));
        self.status.set(self.status.get().with_ires(false));
        Ok(())
    }
}
