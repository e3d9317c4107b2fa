//! Programming of a unit, the same accesses for either: root table, translation on and off, invalidations by register.

use anyhow::{Result, ensure};
use machine::Probe;
use spec::SourceId;
use spec::regs::{Ccmd, Ecap, Gcmd, Gsts, IotlbCommand, Iva, RootAddr, offset};

/// Something with a unit's registers. A write returns when what it started is done.
pub trait Registers {
    /// Reads the register of 4 or 8 bytes at `at`.
    ///
    /// # Errors
    /// When the hardware is gone.
    fn read(&mut self, at: u64, bytes: u64) -> Result<u64>;
    /// Writes it.
    ///
    /// # Errors
    /// When the hardware is gone.
    fn write(&mut self, at: u64, bytes: u64, value: u64) -> Result<()>;
}

impl Registers for Probe {
    fn read(&mut self, at: u64, bytes: u64) -> Result<u64> {
        Ok(Self::read(self, at, bytes))
    }
    fn write(&mut self, at: u64, bytes: u64, value: u64) -> Result<()> {
        Self::write(self, at, bytes, value);
        Ok(())
    }
}

/// What to make a unit forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget {
    /// Everything.
    All,
    /// The context of one source, and all translations of the domain that it had.
    Source(SourceId, u16),
    /// All translations of a domain.
    Domain(u16),
    /// Translations of `2^order` pages of a domain; `leaf_only` as the hint IH.
    Pages {
        /// Domain id.
        domain: u16,
        /// An address within.
        iova: u64,
        /// Binary logarithm of the number of pages.
        order: u8,
        /// Non-leaf entries did not change.
        leaf_only: bool,
    },
}

fn status(unit: &mut dyn Registers) -> Result<Gsts> {
    Ok(Gsts::from_raw(unit.read(offset::GSTS, 4)? as u32))
}

fn command(unit: &mut dyn Registers, change: impl Fn(Gcmd) -> Gcmd) -> Result<Gsts> {
    let command = change(status(unit)?.as_command());
    unit.write(offset::GCMD, 4, command.raw().into())?;
    status(unit)
}

/// Makes `root` the root table.
///
/// # Errors
/// When the unit does not say so.
pub fn set_root(unit: &mut dyn Registers, root: RootAddr) -> Result<()> {
    unit.write(offset::RTADDR, 8, root.raw())?;
    let status = command(unit, |c| c.with_srtp(true))?;
    ensure!(status.rtps(), "the root table was not taken");
    Ok(())
}

/// Switches translation on or off.
///
/// # Errors
/// When the unit does not say so.
pub fn translate(unit: &mut dyn Registers, on: bool) -> Result<()> {
    let status = command(unit, |c| c.with_te(on))?;
    ensure!(status.tes() == on, "translation was not switched");
    Ok(())
}

/// Makes the unit forget, through its registers.
///
/// # Errors
/// When the unit does not finish.
pub fn forget(unit: &mut dyn Registers, what: Forget) -> Result<()> {
    let none = IotlbCommand::ZERO.with_ivt(true);
    match what {
        Forget::All => {
            contexts(unit, Ccmd::ZERO.with_icc(true).with_cirg(1))?;
            translations(unit, none.with_iirg(1))
        }
        Forget::Source(source, domain) => {
            let sid = u64::from(source.raw());
            contexts(unit, Ccmd::ZERO.with_icc(true).with_cirg(3).with_sid(sid).with_did(domain.into()))?;
            translations(unit, none.with_iirg(2).with_did(domain.into()))
        }
        Forget::Domain(domain) => translations(unit, none.with_iirg(2).with_did(domain.into())),
        Forget::Pages { domain, iova, order, leaf_only } => {
            let at = ecap(unit)?.iva_offset();
            let iva = Iva::ZERO.with_am(order.into()).with_ih(leaf_only).with_addr(iova >> 12);
            unit.write(at, 8, iva.raw())?;
            translations(unit, none.with_iirg(3).with_did(domain.into()))
        }
    }
}

fn ecap(unit: &mut dyn Registers) -> Result<Ecap> {
    Ok(Ecap::from_raw(unit.read(offset::ECAP, 8)?))
}

fn contexts(unit: &mut dyn Registers, command: Ccmd) -> Result<()> {
    unit.write(offset::CCMD, 8, command.raw())?;
    ensure!(!Ccmd::from_raw(unit.read(offset::CCMD, 8)?).icc(), "contexts were not invalidated");
    Ok(())
}

fn translations(unit: &mut dyn Registers, command: IotlbCommand) -> Result<()> {
    let at = ecap(unit)?.iotlb_offset();
    unit.write(at, 8, command.raw())?;
    ensure!(!IotlbCommand::from_raw(unit.read(at, 8)?).ivt(), "translations were not invalidated");
    Ok(())
}
