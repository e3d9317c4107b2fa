//! The end of a run: QEMU's `isa-debug-exit` device at port 0xf4 turns a written value v into exit status 2 v + 1.

use super::{cpu, port};

const DEBUG_EXIT: u16 = 0xf4;

/// How the run ended. QEMU's exit status is in the comment of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well: status 33.
    Success = 0x10,
    /// Refused or failed, with an event or a message that says why: status 35.
    Failure = 0x11,
    /// The kernel itself failed, by a panic: status 37.
    Panic = 0x12,
    /// The processor raised an exception: status 39.
    Exception = 0x13,
}

/// Ends the run. Without the device the processor stops for good.
pub fn exit(how: Exit) -> ! {
    port::write8(DEBUG_EXIT, how as u8);
    cpu::halt()
}
