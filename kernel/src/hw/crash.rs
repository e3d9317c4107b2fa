//! Ways to fail on purpose: what a test needs to see that the kernel's own failures are reported.
#![allow(unsafe_code)]

use super::physical;
use core::arch::asm;

/// Fails in the way named: `null`, `text`, `data`, `stack`, `broken-stack`, `opcode`, `divide` or `panic`. Returns
/// when there is no such way.
pub fn now(kind: &str) {
    match kind {
        // SAFETY: none of these is meant to be sound: each faults, and the fault ends the run.
        "null" => unsafe { physical::store64(8, 1) },
        // SAFETY: see above.
        "text" => unsafe { physical::store8(now as *const () as u64, 0) },
        // SAFETY: see above.
        "data" => unsafe { asm!("call {}", in(reg) &raw const RETURN, clobber_abi("C")) },
        // SAFETY: see above.
        "stack" => unsafe { asm!("2: push rax", "jmp 2b", options(noreturn)) },
        // SAFETY: see above.
        "opcode" => unsafe { asm!("ud2", options(noreturn)) },
        // SAFETY: see above.
        "divide" => unsafe {
            asm!("xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _)
        },
        // SAFETY: see above. A stack pointer that is not canonical: the fault cannot be reported on it.
        "broken-stack" => unsafe { asm!("movabs rsp, 0x0100000000000000", "push rax", options(noreturn)) },
        "panic" => panic!("asked for on the command line"),
        _ => {}
    }
}

/// A return instruction among the constants.
static RETURN: u8 = 0xc3;
