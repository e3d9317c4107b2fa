//! The part that this kernel plays: it loads its successor, if there is one, and jumps.
//!
//! `crash=KIND` on the command line ends the run in one of the ways that must give a readable report.

use crate::hardware::Hardware;
use crate::hw::exit::Exit;
use crate::successor::Successor;
use crate::{hw::crash, memory};
use alloc::string::ToString;
use scenario::event::Event;
use scenario::platform::Platform;

/// Runs the kernel's part. Returns when this kernel is the last one, or when it cannot go on.
pub fn run(machine: &Hardware) -> Exit {
    let (home, update) = (machine.home(), machine.boot().update);
    machine.event(&Event::Boot {
        kernel: machine.release().to_string(),
        update,
        home_start: home.start().get(),
        home_bytes: home.bytes(),
        memory_bytes: memory::usable_bytes(machine.memory_map()),
        at: machine.now(),
    });
    if let Some(kind) = machine.option("crash") {
        crash::now(kind);
    }
    match Successor::load(machine) {
        Ok(Some(successor)) => successor.jump(machine, 0),
        Ok(None) => {
            machine.event(&Event::Done { kernel: machine.release().to_string(), update, at: machine.now() });
            Exit::Success
        }
        Err(error) => {
            machine.event(&Event::Failed { step: "load the successor".to_string(), why: error.to_string() });
            Exit::Failure
        }
    }
}
