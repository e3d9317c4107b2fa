//! Functions that keep translations of their own (PCIe ATS): switched on where device and unit both have it, so that all of
//! the story is told of such devices too.

use super::devices::requester;
use super::host::Kernel;
use super::trouble::Trouble;
use crate::pci::ats::Ats;
use crate::platform::Platform;
use crate::text;
use iommu::DeviceTlb;
use liveupdate::host::{MaySleep, Unit};
use spec::{Requester, Segment, SourceId};

/// Switches ATS of an attached function on, where there is any: its unit first, then the device.
pub(crate) fn allow<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    source: SourceId,
) -> Result<(), Trouble> {
    let platform = kernel.platform();
    let Some(ats) = find(platform, requester(source)) else { return Ok(()) };
    let able = |unit: &iommu::VtdUnit<'_, _>| unit.ecap().dt() && unit.has_queue();
    if !kernel.iommu.unit_of(requester(source)).is_some_and(able) || !kernel.other_ids(source).is_empty() {
        return Ok(());
    }
    let enabled = kernel.iommu.enable_device_tlb(ctx, requester(source), tlb(ats));
    enabled.map_err(Trouble::at("let a device keep translations"))?;
    ats.enable(platform);
    platform.log(format_args!("{} keeps translations of its own", text::source(source)));
    Ok(())
}

/// What is known of a requester whose ATS is on. Only reads.
pub(crate) fn state<P: Platform + ?Sized>(platform: &P, requester: Requester) -> Option<DeviceTlb> {
    find(platform, requester).filter(|ats| ats.is_enabled(platform)).map(tlb)
}

/// Switches ATS of a requester off. Says whether it is.
pub(crate) fn off<P: Platform + ?Sized>(platform: &P, requester: Requester) -> bool {
    let Some(ats) = find(platform, requester) else { return false };
    ats.disable(platform);
    !ats.is_enabled(platform)
}

/// A function whose capabilities have no end is taken to have none.
fn find<P: Platform + ?Sized>(platform: &P, requester: Requester) -> Option<Ats> {
    let here = requester.segment == Segment(0);
    here.then(|| Ats::find(platform, requester.source).ok().flatten()).flatten()
}

fn tlb(ats: Ats) -> DeviceTlb {
    // No virtual functions here: each is its own physical one.
    DeviceTlb { physical_function: ats.function, queue_depth: ats.queue_depth }
}
