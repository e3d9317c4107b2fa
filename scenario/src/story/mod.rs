//! The story of an update, told once for every platform: set up devices that bear witness, preserve some and not others,
//! freeze, cut off, jump; arrive, open, poison, adopt, retrieve, judge.
//!
//! [`run`] is one kernel's whole life. The first kernel is given no handover; each later one is given the address that
//! its predecessor left. It ends with a jump, for the platform to carry out, or with a verdict.

mod arrive;
mod ats;
mod devices;
mod drive;
mod fault_log;
mod host;
mod interrupts;
mod judge;
mod mutant;
mod notes;
mod pages;
mod plan;
mod poison;
mod reduced;
mod scene;
mod store;
mod streams;
mod trouble;
mod units;
mod update;

use crate::event::Event;
use crate::platform::{Mark, Platform};
use alloc::string::ToString;
use liveupdate::host::MaySleep;
use scene::Scene;
use spec::PhysAddr;
use trouble::Trouble;

pub use iommu::Mode;
pub use mutant::Mutant;

/// How a kernel's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum End {
    /// Everything is cut off and interrupts are off: jump into the successor, with this handover.
    Jump {
        /// Address of the handover's FDT.
        fdt: PhysAddr,
    },
    /// There is no successor, or there was no update.
    Over(Verdict),
}

/// How it went, as far as this kernel can tell. The command judges by more than the kernels' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing failed.
    Completed,
    /// An update was refused before the point of no return; devices go on.
    Refused,
    /// Something failed.
    Failed,
}

/// One kernel's life. `update` counts the updates that lie behind: 0 in the first kernel.
pub fn run<P: Platform + ?Sized>(platform: &P, handover: Option<PhysAddr>, update: u64) -> End {
    if handover.is_some() {
        platform.mark(Mark::Arrived);
    }
    let home = platform.home();
    platform.event(&Event::Boot {
        kernel: platform.release().to_string(),
        update,
        home_start: home.start().get(),
        home_bytes: home.bytes(),
        memory_bytes: platform.memory_map().iter().filter(|r| r.usable).map(|r| r.bytes).sum(),
        at: platform.now(),
    });
    live(platform, handover, update).unwrap_or_else(|trouble| {
        platform.event(&Event::Failed { step: trouble.step.to_string(), why: trouble.why });
        End::Over(Verdict::Failed)
    })
}

fn live<P: Platform + ?Sized>(platform: &P, handover: Option<PhysAddr>, update: u64) -> Result<End, Trouble> {
    let mut ctx = MaySleep::at_thread_start();
    let machine = host::Machine::new(platform);
    let units = units::find(platform)?;
    let mut room = store::room();
    let mut log = fault_log::FaultLog::new(&units);
    let opened = handover.map(|fdt| arrive::open(&machine, fdt, &mut room, &mut log));
    if let Some(Err(_)) = opened {
        machine.only.set(platform.spare());
    }
    let buses = host::Buses(crate::pci::Topology::discover(platform, &[]), devices::told_of(platform));
    let setup = units.setup(&buses, drive::config(platform)?);
    let iommu = match opened {
        Some(_) => iommu::Iommu::take_over(&machine, &mut ctx, setup),
        None => iommu::Iommu::probe(&machine, &mut ctx, setup),
    };
    let iommu = iommu.map_err(Trouble::at("start the driver"))?;
    let kernel = host::Kernel::new(&machine, &iommu, &buses);
    let scene = match opened {
        Some(Ok(opened)) => arrive::adopt(&kernel, &mut ctx, opened, log, units.reserved().to_vec()),
        Some(Err(trouble)) => Err(trouble),
        None => Scene::start(&kernel, &mut ctx, log, units.reserved().to_vec()),
    };
    let mut scene = match scene {
        Ok(scene) => scene,
        Err(trouble) if handover.is_some() => {
            arrive::fail_closed(&kernel, &mut ctx);
            return Err(trouble);
        }
        Err(trouble) => return Err(trouble),
    };
    if handover.is_some() {
        scene.wait_for_edus()?;
        interrupts::after(&mut scene, &mut ctx)?;
        pages::serve(scene.kernel, &mut ctx)?;
        judge::update(&mut scene, &mut ctx)?;
    }
    if platform.successor_home().is_some() {
        scene.rearm(&mut ctx)?;
        return update::run(scene, ctx, update + 1);
    }
    judge::performance(&mut scene)?;
    pages::end(scene.kernel, &mut ctx)?;
    over(scene, update, Verdict::Completed)
}

/// The witnesses are judged: devices stop.
fn over<P: Platform + ?Sized>(
    scene: Scene<'_, '_, P>,
    update: u64,
    verdict: Verdict,
) -> Result<End, Trouble> {
    let platform = scene.platform();
    platform.mark(Mark::Over);
    scene.stop()?;
    let kernel = platform.release().to_string();
    platform.event(&Event::Done { kernel, update, at: platform.now() });
    Ok(End::Over(verdict))
}
