//! The typed window on one unit's registers, and the one bounded wait that everything here uses.

use crate::Hal;
use liveupdate::host::TimedOut;
use spec::regs::{Cap, Ecap, Fsts, Gcmd, Gsts, RootAddr, Version, offset};
use spec::{PhysAddr, UnitId};

/// How long hardware may take for one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// By the clock, in nanoseconds.
    pub nanoseconds: u64,
    /// By the number of looks, in case the clock stands still.
    pub looks: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { nanoseconds: 100_000_000, looks: 10_000_000 }
    }
}

/// The registers of one unit.
#[derive(Debug)]
pub struct Registers<'h, H> {
    /// The machine.
    pub hal: &'h H,
    /// The unit.
    pub id: UnitId,
    /// Bound of every wait.
    pub patience: Patience,
}

impl<H> Clone for Registers<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<H> Copy for Registers<'_, H> {}

impl<H: Hal> Registers<'_, H> {
    /// Address of the register at `offset`.
    #[must_use]
    pub fn at(&self, offset: u64) -> PhysAddr {
        PhysAddr::new(self.id.register_base.wrapping_add(offset))
    }
    /// A 32-bit register.
    #[must_use]
    pub fn read32(&self, offset: u64) -> u32 {
        self.hal.read32(self.at(offset))
    }
    /// A 64-bit register.
    #[must_use]
    pub fn read64(&self, offset: u64) -> u64 {
        self.hal.read64(self.at(offset))
    }
    /// Writes a 32-bit register.
    pub fn write32(&self, offset: u64, value: u32) {
        self.hal.write32(self.at(offset), value);
    }
    /// Writes a 64-bit register.
    pub fn write64(&self, offset: u64, value: u64) {
        self.hal.write64(self.at(offset), value);
    }
    /// Version.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::from_raw(self.read32(offset::VER))
    }
    /// Capabilities.
    #[must_use]
    pub fn cap(&self) -> Cap {
        Cap::from_raw(self.read64(offset::CAP))
    }
    /// Extended capabilities.
    #[must_use]
    pub fn ecap(&self) -> Ecap {
        Ecap::from_raw(self.read64(offset::ECAP))
    }
    /// Global status.
    #[must_use]
    pub fn status(&self) -> Gsts {
        Gsts::from_raw(self.read32(offset::GSTS))
    }
    /// Root table address.
    #[must_use]
    pub fn root(&self) -> RootAddr {
        RootAddr::from_raw(self.read64(offset::RTADDR))
    }
    /// Fault status.
    #[must_use]
    pub fn fault_status(&self) -> Fsts {
        Fsts::from_raw(self.read32(offset::FSTS))
    }

    /// Gives one global command and waits for its effect in the status. The command is made from the present status
    /// without its one-shot bits, so that nothing else changes (VT-d 11.4.4).
    ///
    /// # Errors
    /// [`TimedOut`] naming `what`.
    pub fn command(
        &self,
        what: &'static str,
        change: impl FnOnce(Gcmd) -> Gcmd,
        done: impl Fn(Gsts) -> bool,
    ) -> Result<(), TimedOut> {
        let command = change(self.status().as_command());
        self.write32(offset::GCMD, command.raw());
        self.wait(what, || done(self.status()))
    }

    /// Polls until `done`, bounded by clock and by number of looks.
    ///
    /// # Errors
    /// [`TimedOut`] naming `what`.
    pub fn wait(&self, what: &'static str, mut done: impl FnMut() -> bool) -> Result<(), TimedOut> {
        let start = self.hal.now();
        let mut waited = 0;
        for _ in 0..self.patience.looks {
            if done() {
                return Ok(());
            }
            waited = self.hal.now().saturating_sub(start);
            if waited > self.patience.nanoseconds {
                break;
            }
            self.hal.relax();
        }
        // A last look: this processor may have been away between the look and the clock.
        if done() { Ok(()) } else { Err(TimedOut { unit: self.id, what, waited }) }
    }
}
