//! Page requests of a preserved device (PCIe PRI): answered while kernels run, stopped by the freeze, on again when it fails
//! or after adoption, so that none is lost and none answered twice. The device and the machine's trace count.
//!
//! Whatever is asked for is mapped, so that every answer is that the page is there.

use super::Mutant;
use super::devices::requester;
use super::host::{Kernel, Machine};
use super::scene::Scene;
use super::trouble::Trouble;
use crate::pci::ats::Pri;
use crate::platform::Platform;
use crate::text;
use iommu::page_requests::SUCCESS;
use iommu::{AttachError, VtdUnit};
use liveupdate::host::{MaySleep, PageRequests, TimedOut, Unit};
use spec::regs::offset;
use spec::{PhysAddr, Requester, Segment};

/// Groups that are answered before an update, and again after it.
const ANSWERS: u32 = 24;
/// Longest wait for them, in nanoseconds.
const LIMIT: u64 = 200_000_000;

/// The page request capability of a requester, where it has one.
fn find<P: Platform + ?Sized>(platform: &P, who: Requester) -> Option<Pri> {
    let here = who.segment == Segment(0);
    here.then(|| Pri::find(platform, who.source).ok().flatten()).flatten()
}

/// Lets a device that keeps translations ask for pages, where device and unit both have that. The first of a unit brings the
/// unit's queue.
pub(crate) fn start<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    who: Requester,
) -> Result<(), Trouble> {
    let platform = kernel.platform();
    let able = |unit: &&VtdUnit<'_, Machine<'_, P>>| unit.ecap().prs() && unit.config().mode.is_scalable();
    let Some(unit) = kernel.iommu.unit_of(who).filter(able) else { return Ok(()) };
    if kernel.iommu.device_tlb(who).is_none() || find(platform, who).is_none() {
        return Ok(());
    }
    let of_unit = |other: &Requester| kernel.iommu.unit_of(*other).is_some_and(|u| u.id() == unit.id());
    if !kernel.asking.borrow().iter().any(of_unit) {
        unit.start_page_requests(ctx).map_err(Trouble::at("give a unit a queue for page requests"))?;
    }
    kernel.asking.borrow_mut().push(who);
    kernel.resume(ctx, who).map_err(Trouble::at("let a device ask for pages"))?;
    platform.log(format_args!("{} asks for pages", text::requester(who)));
    Ok(())
}

/// The first kernel: the preserved devices may ask, where they can.
pub(crate) fn start_all<P: Platform + ?Sized>(
    scene: &Scene<'_, '_, P>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let edus = scene.cast.edus[..scene.cast.kept()].iter().map(|actor| actor.requester);
    edus.chain([requester(scene.cast.audio)]).try_for_each(|who| start(scene.kernel, ctx, who))
}

/// Answers what comes until that was so many groups, or for some time.
pub(crate) fn serve<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let platform = kernel.platform();
    let (start, mut answered) = (platform.now(), 0);
    while !kernel.asking.borrow().is_empty() && answered < ANSWERS {
        for unit in kernel.iommu.units() {
            let served = unit.locked(ctx, |atomic| unit.serve_page_requests(atomic, &mut |_| SUCCESS));
            answered += served.map_err(Trouble::at("answer page requests"))?.answered;
        }
        if platform.now().saturating_sub(start) > LIMIT {
            break;
        }
        platform.relax();
    }
    Ok(())
}

/// The run is over: nobody asks any more, and everything is answered.
pub(crate) fn end<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let asking = kernel.asking.take();
    asking.into_iter().try_for_each(|who| stop(kernel, ctx, who)).map_err(Trouble::at("stop page requests"))
}

fn stop<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    who: Requester,
) -> Result<(), TimedOut> {
    find(kernel.platform(), who).into_iter().for_each(|pri| pri.disable(kernel.platform()));
    let stopped = kernel.iommu.stop_page_requests(ctx, who, &mut |_| SUCCESS);
    stopped.map(drop).map_err(|error| in_time(kernel, who, error))
}

/// What the core is told of an error of the driver.
fn in_time<P: Platform + ?Sized>(kernel: &Kernel<'_, '_, P>, who: Requester, error: AttachError) -> TimedOut {
    let unit = kernel.iommu.unit_of(who).map(Unit::id).unwrap_or_default();
    match error {
        AttachError::TimedOut(timed_out) => timed_out,
        _ => TimedOut { unit, what: "switching page requests over", waited: 0 },
    }
}

/// [`Mutant::DroppedPageRequests`]: what a unit's queue holds is passed over.
fn drop_all<P: Platform + ?Sized>(kernel: &Kernel<'_, '_, P>, who: Requester) {
    let Some(unit) = kernel.iommu.unit_of(who).map(Unit::id) else { return };
    let at = |register| PhysAddr::new(unit.register_base).plus(register);
    let platform = kernel.platform();
    platform.mmio_write64(at(offset::PQH), platform.mmio_read64(at(offset::PQT)));
}

impl<P: Platform + ?Sized> PageRequests for Kernel<'_, '_, P> {
    fn stop(&self, ctx: &mut MaySleep, who: Requester) -> Result<(), TimedOut> {
        if Mutant::of(self.platform()) == Some(Mutant::DroppedPageRequests) {
            drop_all(self, who);
        }
        stop(self, ctx, who)
    }

    fn resume(&self, ctx: &mut MaySleep, who: Requester) -> Result<(), TimedOut> {
        let allowed = self.iommu.enable_page_requests(ctx, who);
        allowed.map_err(|error| in_time(self, who, error))?;
        find(self.platform(), who).into_iter().for_each(|pri| pri.enable(self.platform()));
        Ok(())
    }
}
