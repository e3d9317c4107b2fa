//! The part that this kernel plays: the scenario's, over real hardware.
//!
//! Two options on the command line do without the scenario. `role=chain` only loads the successor and jumps, until the last
//! release ends the run. `crash=KIND` fails on purpose, in one of the ways that must give a readable report.

use crate::hardware::Hardware;
use crate::hw::crash;
use crate::hw::exit::Exit;
use alloc::string::{String, ToString};
use scenario::event::Event;
use scenario::platform::Platform;
use scenario::story::{self, End, Verdict};
use spec::PhysAddr;

/// Runs the kernel's part. Returns when this kernel is the last one, or when it cannot go on.
pub fn run(machine: &Hardware) -> Exit {
    if let Some(kind) = machine.option("crash") {
        crash::now(kind);
    }
    if machine.option("role") == Some("chain") {
        return chain(machine);
    }
    let boot = machine.boot();
    if boot.update > 0 {
        let gap = machine.now().saturating_sub(boot.left_at) / 1000;
        machine.log(format_args!("release {} left {gap} us ago", boot.predecessor));
    }
    match story::run(machine, boot.handover.map(PhysAddr::new), boot.update) {
        End::Jump { fdt } => {
            machine.jump(fdt.get());
            failed(machine, "jump", "no successor was loaded".to_string())
        }
        End::Over(Verdict::Completed) => Exit::Success,
        End::Over(Verdict::Refused | Verdict::Failed) => Exit::Failure,
    }
}

fn chain(machine: &Hardware) -> Exit {
    let (home, update) = (machine.home(), machine.boot().update);
    let kernel = machine.release().to_string();
    machine.event(&Event::Boot {
        kernel: kernel.clone(),
        update,
        home_start: home.start().get(),
        home_bytes: home.bytes(),
        memory_bytes: crate::memory::usable_bytes(machine.memory_map()),
        at: machine.now(),
    });
    if let Err(why) = machine.load_successor() {
        return failed(machine, "load the successor", why);
    }
    machine.jump(0);
    machine.event(&Event::Done { kernel, update, at: machine.now() });
    Exit::Success
}

fn failed(machine: &Hardware, step: &str, why: String) -> Exit {
    machine.event(&Event::Failed { step: step.to_string(), why });
    Exit::Failure
}
