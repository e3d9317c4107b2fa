//! What each release links beside the library: entry code, memory functions, heap, panic handler, and what it knows of
//! itself. It is included by every release, because a library that is also tested on a host must not define these.
#![allow(unsafe_code)]

use core::fmt::Write;
use core::panic::PanicInfo;
use holdover_kernel::boot::{self, Entry, Kernel};
use holdover_kernel::hw::exit::{Exit, exit};
use holdover_kernel::hw::heap::KernelHeap;
use holdover_kernel::hw::serial::Serial;
use holdover_kernel::hw::traps::{self, Origin};
use holdover_kernel::image::Note;

core::arch::global_asm!(include_str!("rt.s"));

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    static text_start: u8;
    static text_end: u8;
    static stack_guard: u8;
    static stack_top: u8;
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap::empty();

/// What predecessors check before they load this image.
#[used]
#[unsafe(link_section = ".note.holdover")]
static NOTE: Note = Note::new(
    crate::RELEASE,
    spec::handover::OLDEST_READABLE,
    spec::handover::VERSION,
    crate::HOME,
    crate::ADOPTS,
);

/// First Rust function: on this kernel's own stack, with the entry code's tables.
#[unsafe(no_mangle)]
extern "C" fn kernel_entry(successor: u32, address: u64) -> ! {
    // SAFETY: first and only call; this part of the scratch area is the heap's alone.
    unsafe { HEAP.initialise(crate::HOME.heap()) };
    let guard = &raw const stack_guard as u64;
    let kernel = alloc::boxed::Box::leak(alloc::boxed::Box::new(Kernel {
        release: crate::RELEASE,
        home: crate::HOME,
        adopts: crate::ADOPTS,
        image_start: &raw const image_start as u64,
        image_end: &raw const image_end as u64,
        stack_guard: guard,
        origin: Origin {
            release: crate::RELEASE,
            text_start: &raw const text_start as u64,
            text_end: &raw const text_end as u64,
            stack_start: guard + spec::PAGE_SIZE,
            stack_end: &raw const stack_top as u64,
        },
    }));
    boot::run(kernel, if successor == 0 { Entry::Pvh(address) } else { Entry::Successor(address) })
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    traps::enter_report(Exit::Panic);
    let _ = writeln!(Serial, "\n*** kernel {}: {info}", traps::release());
    exit(Exit::Panic)
}
