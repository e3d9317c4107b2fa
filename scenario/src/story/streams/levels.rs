//! A mistake: after the seal, the streaming device's entry says four levels of tables where there are five, as a kernel would
//! write it that knows no others.

use super::super::drive;
use super::super::host::Kernel;
use super::super::trouble::Trouble;
use super::Streams;
use crate::platform::Platform;
use liveupdate::host::TableMemory;
use spec::PhysAddr;
use spec::context::ContextEntry;
use spec::root::{RootEntry, ScalableRootEntry};
use spec::scalable::{
    CONTEXT_ENTRIES, PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry,
    first_stage_mode,
};

/// AW of four levels (VT-d 9.3, 9.6).
const FOUR_LEVELS: u64 = 2;

impl<'p, P: Platform + ?Sized> Streams<'p, P> {
    /// Takes a level from the entry of requests without PASID, behind everybody's back.
    pub(crate) fn lose_a_level(&self, kernel: &Kernel<'_, 'p, P>) -> Result<(), Trouble> {
        let unit = kernel.iommu.unit_of(self.who);
        let root = unit.ok_or(Trouble::new("lose a level", "no unit watches the device"))?.root_table();
        let (bus, devfn) = (u64::from(self.who.source.bus()), u64::from(self.who.source.devfn()));
        if !drive::config(self.platform)?.mode.is_scalable() {
            let entry = RootEntry::from_raw(read(kernel, root.plus(16 * bus))?);
            let at = entry.context_table().plus(16 * devfn);
            let entry = ContextEntry::from_raw(read(kernel, at)?).with_aw(FOUR_LEVELS);
            return write(kernel, at, &entry.raw());
        }
        let entry = ScalableRootEntry::from_raw(read(kernel, root.plus(16 * bus))?);
        let half = if devfn < CONTEXT_ENTRIES { entry.lctp() } else { entry.uctp() };
        let at = PhysAddr::new((half << 12) + 32 * (devfn % CONTEXT_ENTRIES));
        let directory = ScalableContextEntry::from_raw(read(kernel, at)?).directory();
        let [first] = read(kernel, directory)?;
        let at = PasidDirectoryEntry::from_raw(first).table();
        let entry = PasidEntry::from_raw(read(kernel, at)?);
        let entry = match entry.translation() {
            PasidTranslation::FirstStage => entry.with_fspm(first_stage_mode::FOUR_LEVELS),
            _ => entry.with_aw(FOUR_LEVELS),
        };
        write(kernel, at, &entry.raw())
    }
}

fn read<P: Platform + ?Sized, const N: usize>(
    kernel: &Kernel<'_, '_, P>,
    at: PhysAddr,
) -> Result<[u64; N], Trouble> {
    let mut words = [0; N];
    kernel.machine.read_words(at, &mut words).map_err(Trouble::at("lose a level"))?;
    Ok(words)
}

fn write<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    at: PhysAddr,
    words: &[u64],
) -> Result<(), Trouble> {
    for (index, word) in words.iter().enumerate() {
        kernel.machine.write(at.plus(8 * index as u64), *word).map_err(Trouble::at("lose a level"))?;
    }
    Ok(())
}
