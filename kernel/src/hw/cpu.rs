//! The processor: segments, task state, interrupt table, control registers.
#![allow(unsafe_code)]

use core::arch::asm;
use core::cell::UnsafeCell;

/// Selector of the code segment, here and in the entry code.
pub const CODE: u16 = 0x08;
/// Selector of the data segment.
pub const DATA: u16 = 0x10;
const TASK: u16 = 0x18;

const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
const INTERRUPT_GATE: u64 = 0x8e << 40;
const TASK_AVAILABLE: u64 = 0x89 << 40;

/// Exception stacks that the processor itself can switch to: this many slots has a task state segment.
pub const HARDWARE_STACKS: usize = 7;

#[repr(C, packed(4))]
struct TaskState {
    reserved0: u32,
    privilege_stacks: [u64; 3],
    reserved1: u64,
    interrupt_stacks: [u64; HARDWARE_STACKS],
    reserved2: u64,
    reserved3: u16,
    port_bitmap: u16,
}

#[repr(C, align(16))]
struct Tables {
    segments: [u64; 5],
    task: TaskState,
    gates: [[u64; 2]; 256],
}

struct Shared(UnsafeCell<Tables>);

// SAFETY: written once by `install`, on the only processor, before any exception is expected; read by hardware after.
unsafe impl Sync for Shared {}

static TABLES: Shared = Shared(UnsafeCell::new(Tables {
    segments: [0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, 0, 0],
    task: TaskState {
        reserved0: 0,
        privilege_stacks: [0; 3],
        reserved1: 0,
        interrupt_stacks: [0; HARDWARE_STACKS],
        reserved2: 0,
        reserved3: 0,
        port_bitmap: size_of::<TaskState>() as u16,
    },
    gates: [[0; 2]; 256],
}));

/// Where the 256 vectors go.
#[derive(Debug, Clone, Copy)]
pub struct Vectors {
    /// Address of the stub of vector 0.
    pub stubs: u64,
    /// Bytes from one stub to the next.
    pub stride: u64,
    /// Highest address of each stack that the processor switches to.
    pub stacks: [u64; HARDWARE_STACKS],
    /// Which of them a vector uses: 1 to 7.
    pub stack_of: fn(u8) -> u8,
}

/// Loads this kernel's own segments, task state and interrupt table.
pub fn install(vectors: &Vectors) {
    // SAFETY: one processor, called once, and no table is in use by hardware yet: the entry code has its own.
    let tables = unsafe { &mut *TABLES.0.get() };
    let task = &raw const tables.task as u64;
    let limit = size_of::<TaskState>() as u64 - 1;
    tables.segments[3] = limit | (task & 0xff_ffff) << 16 | TASK_AVAILABLE | (task >> 24 & 0xff) << 56;
    tables.segments[4] = task >> 32;
    tables.task.interrupt_stacks = vectors.stacks;
    for (vector, gate) in (0u8..=255).zip(&mut tables.gates) {
        *gate = gate_to(vectors.stubs + vectors.stride * u64::from(vector), (vectors.stack_of)(vector));
    }
    let segments = pointer(&raw const tables.segments as u64, size_of_val(&tables.segments));
    let gates = pointer(&raw const tables.gates as u64, size_of_val(&tables.gates));
    // SAFETY: code and data descriptors are those that the entry code runs with, so no segment register goes stale.
    unsafe { asm!("lgdt [{}]", in(reg) &segments, options(nostack, preserves_flags)) };
    // SAFETY: the descriptor at TASK was made above and is not busy.
    unsafe { asm!("ltr {:x}", in(reg) TASK, options(nostack, preserves_flags)) };
    // SAFETY: all 256 gates lead to stubs that never return.
    unsafe { asm!("lidt [{}]", in(reg) &gates, options(nostack, preserves_flags)) };
}

/// The gate of a handler that runs with interrupts off on the processor's stack `stack`, 1 to 7.
fn gate_to(handler: u64, stack: u8) -> [u64; 2] {
    let low = handler & 0xffff | u64::from(CODE) << 16 | u64::from(stack) << 32 | INTERRUPT_GATE;
    [low | (handler >> 16 & 0xffff) << 48, handler >> 32]
}

/// Sends a vector to another handler. Interrupts are off, and nothing raises the vector meanwhile.
pub fn route(vector: u8, handler: u64, stack: u8) {
    // SAFETY: one processor, which looks at a gate only when its vector is raised.
    let tables = unsafe { &mut *TABLES.0.get() };
    tables.gates[usize::from(vector)] = gate_to(handler, stack);
}

/// The ten bytes that `lgdt` and `lidt` read.
fn pointer(base: u64, bytes: usize) -> [u16; 5] {
    let part = |shift: u32| (base >> shift) as u16;
    [bytes as u16 - 1, part(0), part(16), part(32), part(48)]
}

/// Loads a root table of page tables; forgets all cached translations of pages that are not global (there are none).
///
/// # Safety
/// The tables map everything that this kernel uses, with the rights it needs.
pub unsafe fn load_page_tables(root: u64) {
    // SAFETY: the caller says so.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Control registers 0, 2, 3 and 4, for a dump.
#[must_use]
pub fn control_registers() -> [u64; 4] {
    let (cr0, cr2, cr3, cr4);
    // SAFETY: reading control registers in ring 0 has no effect.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr2", "mov {}, cr3", "mov {}, cr4",
            out(reg) cr0, out(reg) cr2, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags));
    }
    [cr0, cr2, cr3, cr4]
}

/// Lets the other hyperthread, or the emulator, go on while we poll.
pub fn relax() {
    core::hint::spin_loop();
}

/// Stops the processor for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off this waits for ever, which is what is asked for.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Enters the successor.
///
/// # Safety
/// A checked image is loaded, `entry` lies in its text, which is mapped for execution, and `parameters` is the address of
/// its boot parameters. Nothing of this kernel runs after this.
pub unsafe fn enter(entry: u64, parameters: u64) -> ! {
    // SAFETY: the caller says so. The successor's first instructions switch to its own tables and stack.
    unsafe { asm!("cli", "cld", "jmp {}", in(reg) entry, in("rdi") parameters, options(noreturn)) }
}
