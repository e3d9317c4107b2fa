//! Exceptions. None is expected, so each ends the run: with all registers in readable form on the serial port.
//!
//! Every vector has a stack of its own for its report: an exception while another one is reported, also of a broken
//! stack, harms nothing of the first. A task state segment has only seven stacks that the processor can switch to by
//! itself. The vectors that break things (debug, NMI, double fault, general protection, page fault, machine check) have
//! one each, the rest share the seventh; the stub moves from there to the vector's own stack before it calls anything.
#![allow(unsafe_code)]

use super::cpu::{self, HARDWARE_STACKS, Vectors};
use super::exit::{Exit, exit};
use super::serial::Serial;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

const STUB_STRIDE: usize = 8;
const REPORT_STACK: usize = 8192;
const HARDWARE_STACK: usize = 1024;
/// Vectors 0 to 31 one by one; all others, which nothing raises, together.
const REPORT_STACKS: usize = 33;
/// Words that the stub saves: 15 registers, the stub's return address, an error code (of some vectors), 5 by hardware.
const SAVED: usize = 22;
/// Words of the interrupted stack that are searched for return addresses.
const SHOWN: usize = 128;

#[repr(C, align(16))]
struct Stacks<const N: usize, const BYTES: usize>(UnsafeCell<[[u8; BYTES]; N]>);

// SAFETY: only ever used as stacks, by hardware and by the stubs below, never through a reference.
unsafe impl<const N: usize, const BYTES: usize> Sync for Stacks<N, BYTES> {}

static REPORTS: Stacks<REPORT_STACKS, REPORT_STACK> =
    Stacks(UnsafeCell::new([[0; REPORT_STACK]; REPORT_STACKS]));
static ENTRIES: Stacks<HARDWARE_STACKS, HARDWARE_STACK> =
    Stacks(UnsafeCell::new([[0; HARDWARE_STACK]; HARDWARE_STACKS]));

// A stub is a call, whose return address tells the vector. The common part saves the registers, copies what is saved to
// the vector's own stack, and goes on there.
global_asm!(
    ".pushsection .text.traps,\"ax\",@progbits",
    ".balign 16",
    "holdover_trap_stubs:",
    ".rept 256",
    "call holdover_trap",
    ".balign {stride}",
    ".endr",
    "holdover_trap:",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp; push r8",
    "push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "cld",
    "mov rbx, [rsp + 15 * 8]",
    "lea rcx, [rip + holdover_trap_stubs]",
    "sub rbx, rcx",
    "shr rbx, 3",
    "mov eax, {stacks} - 1",
    "cmp ebx, eax",
    "cmovb eax, ebx",
    "inc eax",
    "imul rax, rax, {stack}",
    "lea rcx, [rip + {reports}]",
    "add rax, rcx",
    "lea rdi, [rax - {saved} * 8]",
    "mov rsi, rsp",
    "mov ecx, {saved}",
    "rep movsq",
    "lea rsp, [rax - {saved} * 8]",
    "mov edi, ebx",
    "mov rsi, rsp",
    "xor ebp, ebp",
    "call {report}",
    "ud2",
    ".popsection",
    stride = const STUB_STRIDE,
    stacks = const REPORT_STACKS,
    stack = const REPORT_STACK,
    saved = const SAVED,
    reports = sym REPORTS,
    report = sym report,
);

unsafe extern "C" {
    #[link_name = "holdover_trap_stubs"]
    static STUBS: u8;
}

/// What a dump says of the kernel that it comes from.
#[derive(Debug)]
pub struct Origin {
    /// Release string.
    pub release: &'static str,
    /// First byte of its text.
    pub text_start: u64,
    /// Byte after its text.
    pub text_end: u64,
    /// First byte of its stack.
    pub stack_start: u64,
    /// Byte after its stack.
    pub stack_end: u64,
}

static ORIGIN: AtomicPtr<Origin> = AtomicPtr::new(core::ptr::null_mut());
static DEPTH: AtomicU32 = AtomicU32::new(0);

/// Installs the handlers of all vectors.
pub fn install(origin: &'static Origin) {
    ORIGIN.store(core::ptr::from_ref(origin).cast_mut(), Ordering::Relaxed);
    let base = ENTRIES.0.get() as u64;
    cpu::install(&Vectors {
        stubs: &raw const STUBS as u64,
        stride: STUB_STRIDE as u64,
        stacks: core::array::from_fn(|i| base + ((i + 1) * HARDWARE_STACK) as u64 - 16),
        stack_of: hardware_stack,
    });
}

/// Which of the processor's seven stacks a vector starts on.
fn hardware_stack(vector: u8) -> u8 {
    match vector {
        1 => 1,
        2 => 2,
        8 => 3,
        13 => 4,
        14 => 5,
        18 => 6,
        _ => 7,
    }
}

fn origin() -> Option<&'static Origin> {
    // SAFETY: only `install` stores there, and what it stores lives for ever.
    unsafe { ORIGIN.load(Ordering::Relaxed).cast_const().as_ref() }
}

/// Counts reports that are under way; the second one is cut short, the third one ends without a word.
pub fn enter_report(how: Exit) {
    match DEPTH.fetch_add(1, Ordering::Relaxed) {
        0 => {}
        1 => {
            let _ = writeln!(Serial, "\n*** and while that was reported, another failure: giving up");
            exit(how);
        }
        _ => exit(how),
    }
}

/// Release string of the running kernel, once [`install`] ran.
#[must_use]
pub fn release() -> &'static str {
    origin().map_or("?", |origin| origin.release)
}

/// The five words that hardware saves.
struct Interrupted {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

extern "C" fn report(vector: u32, saved: *const [u64; SAVED]) -> ! {
    // SAFETY: the stub passes the address of the words that it has just copied.
    let saved = unsafe { &*saved };
    enter_report(Exit::Exception);
    let (code, at) = if has_error_code(vector) { (Some(saved[16]), 17) } else { (None, 16) };
    let frame = Interrupted {
        rip: saved[at],
        cs: saved[at + 1],
        rflags: saved[at + 2],
        rsp: saved[at + 3],
        ss: saved[at + 4],
    };
    let [cr0, cr2, cr3, cr4] = cpu::control_registers();
    let _ = dump(vector, code, saved, &frame, [cr0, cr2, cr3, cr4]);
    exit(Exit::Exception)
}

fn has_error_code(vector: u32) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

fn dump(
    vector: u32,
    code: Option<u64>,
    saved: &[u64; SAVED],
    frame: &Interrupted,
    control: [u64; 4],
) -> core::fmt::Result {
    const NAMES: [&str; 15] = [
        "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax",
    ];
    let out = &mut Serial;
    writeln!(out, "\n*** kernel {}: exception {vector}, {}", release(), name(vector))?;
    match code {
        Some(code) if vector == 14 => {
            writeln!(out, "    {} at {:#018x}, error code {code:#x}", page_fault(code), control[1])?;
        }
        Some(code) => writeln!(out, "    error code {code:#x}")?,
        None => {}
    }
    writeln!(out, "    rip {:#018x}  cs {:#06x}  rflags {:#x}", frame.rip, frame.cs, frame.rflags)?;
    writeln!(out, "    rsp {:#018x}  ss {:#06x}", frame.rsp, frame.ss)?;
    for (i, (name, value)) in NAMES.iter().zip(saved).enumerate() {
        let end = if i % 3 == 2 { "\n" } else { "" };
        write!(out, "    {name:<3} {value:#018x}{end}")?;
    }
    writeln!(
        out,
        "    cr0 {:#x}  cr2 {:#x}  cr3 {:#x}  cr4 {:#x}",
        control[0], control[1], control[2], control[3]
    )?;
    callers(frame.rsp)
}

/// Shows what looks like return addresses near the top of the interrupted stack.
fn callers(rsp: u64) -> core::fmt::Result {
    let Some(origin) = origin() else { return Ok(()) };
    write!(Serial, "    stack words that point into the text:")?;
    let start = rsp.clamp(origin.stack_start, origin.stack_end).next_multiple_of(8);
    for at in (start..origin.stack_end).step_by(8).take(SHOWN) {
        // SAFETY: an aligned read within the kernel's stack, which is mapped.
        let value = unsafe { super::physical::load64(at) };
        if (origin.text_start..origin.text_end).contains(&value) {
            write!(Serial, " {value:#x}")?;
        }
    }
    writeln!(Serial)
}

fn page_fault(code: u64) -> &'static str {
    match (code & 0x10 != 0, code & 2 != 0, code & 1 != 0) {
        (true, _, false) => "instruction fetch from a page that is not mapped,",
        (true, _, true) => "instruction fetch from a page that is not executable,",
        (_, true, false) => "write to a page that is not mapped,",
        (_, true, true) => "write to a page that is read-only,",
        (_, false, false) => "read of a page that is not mapped,",
        (_, false, true) => "read that broke a rule of its page,",
    }
}

fn name(vector: u32) -> &'static str {
    const NAMES: [&str; 22] = [
        "divide error",
        "debug",
        "non-maskable interrupt",
        "breakpoint",
        "overflow",
        "bound range exceeded",
        "invalid opcode",
        "device not available",
        "double fault",
        "coprocessor overrun",
        "invalid task state",
        "segment not present",
        "stack segment fault",
        "general protection",
        "page fault",
        "reserved",
        "x87 floating point",
        "alignment check",
        "machine check",
        "SIMD floating point",
        "virtualization",
        "control protection",
    ];
    match vector {
        32.. => "an interrupt that nobody asked for",
        _ => NAMES.get(vector as usize).copied().unwrap_or("reserved"),
    }
}
