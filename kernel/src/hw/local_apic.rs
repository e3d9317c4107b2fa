//! The local APIC: interrupts are let in for moments only, and counted by vector.
//!
//! Besides these moments the processor's own flag keeps everything out, and what arrives waits in the controller's IRR: also
//! across the jump, as nothing here resets the controller. Handlers do nothing but count and say that they are done.
//!
//! In xAPIC mode its registers are memory; in x2APIC mode, which is never left again, they are model-specific registers, and the
//! processor has an id of 32 bits.
#![allow(unsafe_code)]

use super::{cpu, physical};
use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use scenario::platform::LocalInterrupts;

const BASE: u64 = 0xfee0_0000;
/// Registers by their offset; as model-specific registers they follow from the first one, 16 bytes each.
const FIRST_MSR: u32 = 0x800;
const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const LOGICAL_DESTINATION: u64 = 0xd0;
const SPURIOUS: u64 = 0xf0;
/// Switched on; vector of spurious interrupts.
const ON: u32 = 1 << 8 | 0xff;

/// The model-specific register with base and mode, and its bit for x2APIC mode.
const MODE: u32 = 0x1b;
const EXTENDED: u64 = 1 << 10;
/// CPUID leaf 1, ECX: the processor has x2APIC mode.
const HAS_X2APIC: u32 = 1 << 21;

/// Vectors from here on are devices'.
const FIRST: u8 = 0x30;
const STUB_STRIDE: usize = 8;
/// Which of the processor's stacks handlers run on: the one that exceptions without a stack of their own start on. No two
/// handlers run at once, and an exception in one ends the run.
const STACK: u8 = 7;

/// Whether the controller is in x2APIC mode.
static X2APIC: AtomicBool = AtomicBool::new(false);

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
    "cmp byte ptr [rip + {extended}], 0",
    "jne 2f",
    "mov ecx, {done}",
    "mov dword ptr [rcx], 0",
    "jmp 3f",
    "2:",
    "push rdx",
    "mov ecx, {done_msr}",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "pop rdx",
    "3:",
    "pop rcx; pop rax",
    "add rsp, 8",
    "iretq",
    ".popsection",
    stride = const STUB_STRIDE,
    counts = sym COUNTS,
    extended = sym X2APIC,
    done = const BASE + END_OF_INTERRUPT,
    done_msr = const msr(END_OF_INTERRUPT),
);

unsafe extern "C" {
    #[link_name = "holdover_interrupt_stubs"]
    static STUBS: u8;
}

/// The processor's controller, once [`install`] ran.
#[derive(Debug)]
pub struct LocalApic;

const fn msr(register: u64) -> u32 {
    FIRST_MSR + (register >> 4) as u32
}

/// Settles which mode the controller is in. x2APIC mode is entered where that is wanted and the processor has it; a kernel that
/// finds it on goes on with it.
pub fn choose_mode(x2apic: bool) {
    // SAFETY: every processor with 64 bits has this leaf and this register.
    let (leaf, mode) = unsafe { (__cpuid(1), load_msr(MODE)) };
    if x2apic && leaf.ecx & HAS_X2APIC != 0 && mode & EXTENDED == 0 {
        // SAFETY: the processor has the mode, and nobody else drives the controller.
        unsafe { store_msr(MODE, mode | EXTENDED) };
    }
    // SAFETY: as above.
    let mode = unsafe { load_msr(MODE) };
    X2APIC.store(mode & EXTENDED != 0, Ordering::Relaxed);
}

/// Reads a register of the controller.
pub(super) fn read(register: u64) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: in x2APIC mode the registers are there, and reading one has no effect.
        unsafe { load_msr(msr(register)) as u32 }
    } else {
        // SAFETY: the registers are mapped as a device; reading one has no effect.
        unsafe { physical::load32(BASE + register) }
    }
}

/// Writes a register of the controller, which nobody else drives.
pub(super) fn write(register: u64, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: in x2APIC mode the registers are there. None that is written here reaches memory.
        unsafe { store_msr(msr(register), value.into()) };
    } else {
        // SAFETY: the registers are mapped as a device.
        unsafe { physical::store32(BASE + register, value) };
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The processor has it.
unsafe fn load_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller says so.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The processor has it, and takes this value; what it does is what the caller wants.
unsafe fn store_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller says so.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}

/// Routes the vectors of devices to handlers that count, and switches the controller on if it is off. What waits in it goes
/// on waiting.
pub fn install() {
    let stubs = &raw const STUBS as u64;
    for vector in FIRST..=u8::MAX {
        cpu::route(vector, stubs + STUB_STRIDE as u64 * u64::from(vector), STACK);
    }
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, ON);
}

impl LocalInterrupts for LocalApic {
    fn id(&self) -> u32 {
        // In xAPIC mode the id is in the upper byte.
        if X2APIC.load(Ordering::Relaxed) { read(ID) } else { read(ID) >> 24 }
    }

    fn logical(&self) -> Option<u32> {
        X2APIC.load(Ordering::Relaxed).then(|| read(LOGICAL_DESTINATION))
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
