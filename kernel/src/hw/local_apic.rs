//! The local APIC: interrupts are let in for moments only, and counted by vector.
//!
//! Besides these moments the processor's own flag keeps everything out, and what arrives waits in the controller's IRR: also
//! across the jump, as nothing here resets the controller. Handlers do nothing but count and say that they are done.
#![allow(unsafe_code)]

use super::{cpu, physical};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};
use scenario::platform::LocalInterrupts;

const BASE: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
/// Switched on; vector of spurious interrupts.
const ON: u32 = 1 << 8 | 0xff;

/// Vectors from here on are devices'.
const FIRST: u8 = 0x30;
const STUB_STRIDE: usize = 8;
/// Which of the processor's stacks handlers run on: the one that exceptions without a stack of their own start on. No two
/// handlers run at once, and an exception in one ends the run.
const STACK: u8 = 7;

static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

// A stub is a call, whose return address tells the vector.
global_asm!(
    ".pushsection .text.interrupts,\"ax\",@progbits",
    ".balign 16",
    "holdover_interrupt_stubs:",
    ".rept 256",
    "call holdover_interrupt",
    ".balign {stride}",
    ".endr",
    "holdover_interrupt:",
    "push rax; push rcx",
    "mov rax, [rsp + 2 * 8]",
    "lea rcx, [rip + holdover_interrupt_stubs]",
    "sub rax, rcx",
    "shr rax, 3",
    "lea rcx, [rip + {counts}]",
    "lock inc qword ptr [rcx + rax * 8]",
    "mov ecx, {done}",
    "mov dword ptr [rcx], 0",
    "pop rcx; pop rax",
    "add rsp, 8",
    "iretq",
    ".popsection",
    stride = const STUB_STRIDE,
    counts = sym COUNTS,
    done = const BASE + END_OF_INTERRUPT,
);

unsafe extern "C" {
    #[link_name = "holdover_interrupt_stubs"]
    static STUBS: u8;
}

/// The processor's controller, once [`install`] ran.
#[derive(Debug)]
pub struct LocalApic;

/// Routes the vectors of devices to handlers that count, and switches the controller on if it is off. What waits in it goes
/// on waiting.
pub fn install() {
    let stubs = &raw const STUBS as u64;
    for vector in FIRST..=u8::MAX {
        cpu::route(vector, stubs + STUB_STRIDE as u64 * u64::from(vector), STACK);
    }
    // SAFETY: the local APIC's registers are mapped as a device, and nobody else drives it.
    unsafe { physical::store32(BASE + TASK_PRIORITY, 0) };
    // SAFETY: as above.
    unsafe { physical::store32(BASE + SPURIOUS, ON) };
}

impl LocalInterrupts for LocalApic {
    fn id(&self) -> u8 {
        // SAFETY: reading the register has no effect.
        (unsafe { physical::load32(BASE + ID) } >> 24) as u8
    }

    fn take_pending(&self) {
        // SAFETY: every vector from FIRST on has a handler that leaves all registers as they were, on a stack of its own;
        // sources of lower ones are masked. Memory that handlers write to is not hidden from the compiler.
        unsafe { asm!("sti", "nop", "pause", "nop", "cli") };
    }

    fn delivered(&self, vector: u8) -> u64 {
        COUNTS[usize::from(vector)].load(Ordering::Relaxed)
    }
}
