//! Programming of a unit, the same accesses for either: root table, translation on and off, invalidations by register or
//! through the queue.

use anyhow::{Result, anyhow, ensure};
use machine::Probe;
use spec::SourceId;
use spec::invalidation::{
    ContextInvalidate, IotlbInvalidate, PasidCacheInvalidate, PasidIotlbInvalidate, Wait, granularity, kind,
    pasid_cache_granularity, pasid_iotlb_granularity,
};
use spec::regs::{Ccmd, Ecap, Fsts, Gcmd, Gsts, IotlbCommand, Iqa, Iva, RootAddr, offset};

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
    /// The word of memory at `at`.
    ///
    /// # Errors
    /// When the hardware is gone.
    fn load(&mut self, at: u64) -> Result<u64>;
    /// Sets it.
    ///
    /// # Errors
    /// When the hardware is gone.
    fn store(&mut self, at: u64, word: u64) -> Result<()>;
}

impl Registers for Probe {
    fn read(&mut self, at: u64, bytes: u64) -> Result<u64> {
        Ok(Self::read(self, at, bytes))
    }
    fn write(&mut self, at: u64, bytes: u64, value: u64) -> Result<()> {
        Self::write(self, at, bytes, value);
        Ok(())
    }
    fn load(&mut self, at: u64) -> Result<u64> {
        Self::load(self, at).map_err(|hole| anyhow!("no memory at {:#x}", hole.0))
    }
    fn store(&mut self, at: u64, word: u64) -> Result<()> {
        Self::store(self, at, word).map_err(|hole| anyhow!("no memory at {:#x}", hole.0))
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
    /// First-stage translations of a domain and PASID 0.
    Pasid(u16),
    /// First-stage translations of `2^order` pages of these.
    PasidPages {
        /// Domain id.
        domain: u16,
        /// An address within.
        iova: u64,
        /// Binary logarithm of the number of pages.
        order: u8,
    },
}

/// Where the queue lies, of one page.
pub const QUEUE: u64 = 0x19_0000;
const STATUS: u64 = 0x19_1000;

/// The invalidation queue, as software keeps it. One for all units that get the same descriptors.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    wide: bool,
    scalable: bool,
    tail: u64,
    waits: u64,
}

impl Queue {
    /// A queue, with descriptors of 256 bits if `wide`; in scalable mode there are PASID entries to forget.
    #[must_use]
    pub fn new(wide: bool, scalable: bool) -> Self {
        Self { wide, scalable, tail: 0, waits: 0 }
    }

    /// Switches the queue of a unit on.
    ///
    /// # Errors
    /// When the unit does not say so.
    pub fn start(&self, unit: &mut dyn Registers) -> Result<()> {
        let iqa = Iqa::ZERO.with_iqa(QUEUE >> 12).with_dw(self.wide);
        unit.write(offset::IQT, 8, 0)?;
        unit.write(offset::IQA, 8, iqa.raw())?;
        ensure!(command(unit, |c| c.with_qie(true))?.qies(), "the queue was not switched on");
        // Not before: QEMU shows the address from here on only.
        let taken = unit.read(offset::IQA, 8)?;
        ensure!(taken == iqa.raw(), "the queue's address {:#x} reads {taken:#x}", iqa.raw());
        Ok(())
    }

    /// Makes a unit forget. Gives the queue as it is afterwards, for all units alike.
    ///
    /// # Errors
    /// When the unit does not finish.
    pub fn forget(mut self, unit: &mut dyn Registers, what: Forget) -> Result<Self> {
        self.waits += 1;
        let wait = Wait::ZERO.with_kind(kind::WAIT).with_sw(true).with_staddr(STATUS >> 2);
        let mut descriptors = self.descriptors(what);
        descriptors.push(wait.with_stdata(self.waits).raw());
        for [low, high] in descriptors {
            let words = [low, high, 0, 0];
            let words = if self.wide { &words[..] } else { &words[..2] };
            for (at, &word) in (QUEUE + self.tail..).step_by(8).zip(words) {
                unit.store(at, word)?;
            }
            self.tail = (self.tail + 8 * words.len() as u64) % 4096;
        }
        unit.write(offset::IQT, 8, self.tail)?;
        let status = unit.load(STATUS)? & 0xffff_ffff;
        let fsts = Fsts::from_raw(unit.read(offset::FSTS, 4)? as u32);
        ensure!(status == self.waits, "wait {} did not complete: {status}, {fsts:?}", self.waits);
        Ok(self)
    }

    fn descriptors(&self, what: Forget) -> Vec<[u64; 2]> {
        let contexts = ContextInvalidate::ZERO.with_kind(kind::CONTEXT);
        let pasids = PasidCacheInvalidate::ZERO.with_kind(kind::PASID_CACHE);
        let pages = IotlbInvalidate::ZERO.with_kind(kind::IOTLB);
        let first = PasidIotlbInvalidate::ZERO.with_kind(kind::PASID_IOTLB);
        let mut all = match what {
            Forget::All => vec![
                contexts.with_g(granularity::GLOBAL).raw(),
                pasids.with_g(pasid_cache_granularity::GLOBAL).raw(),
                pages.with_g(granularity::GLOBAL).raw(),
            ],
            Forget::Source(source, domain) => {
                let (sid, did) = (u64::from(source.raw()), u64::from(domain));
                vec![
                    contexts.with_g(granularity::SELECTIVE).with_sid(sid).with_did(did).raw(),
                    pasids.with_g(pasid_cache_granularity::DOMAIN).with_did(did).raw(),
                    pages.with_g(granularity::DOMAIN).with_did(did).raw(),
                ]
            }
            Forget::Domain(domain) => vec![pages.with_g(granularity::DOMAIN).with_did(domain.into()).raw()],
            Forget::Pages { domain, iova, order, leaf_only } => {
                let pages = pages.with_g(granularity::SELECTIVE).with_did(domain.into());
                vec![pages.with_am(order.into()).with_ih(leaf_only).with_addr(iova >> 12).raw()]
            }
            Forget::Pasid(domain) => {
                vec![first.with_g(pasid_iotlb_granularity::PASID).with_did(domain.into()).raw()]
            }
            Forget::PasidPages { domain, iova, order } => {
                let first = first.with_g(pasid_iotlb_granularity::PAGE).with_did(domain.into());
                vec![first.with_am(order.into()).with_addr(iova >> 12).raw()]
            }
        };
        all.retain(|raw| self.scalable || raw[0] & 0xf != kind::PASID_CACHE);
        all
    }
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
        Forget::Pasid(_) | Forget::PasidPages { .. } => Err(anyhow!("there is no register for {what:?}")),
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
