//! The heap, in its part of the kernel's own scratch area.
#![allow(unsafe_code)]

use crate::layout::Area;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use linked_list_allocator::Heap;

/// A global allocator for a kernel with one processor and interrupts off.
#[derive(Debug)]
pub struct KernelHeap(UnsafeCell<Heap>);

// SAFETY: one processor runs, and no interrupt or exception handler allocates (they never return), so no two calls
// ever overlap.
unsafe impl Sync for KernelHeap {}

impl KernelHeap {
    /// A heap without memory: every allocation fails until [`Self::initialise`].
    #[must_use]
    pub const fn empty() -> Self {
        Self(UnsafeCell::new(Heap::empty()))
    }

    /// Gives the heap its memory.
    ///
    /// # Safety
    /// Once; nothing else uses `memory`, ever; it is mapped for reading and writing from now on.
    pub unsafe fn initialise(&self, memory: Area) {
        // SAFETY: see the claim of `Sync`.
        let heap = unsafe { &mut *self.0.get() };
        // SAFETY: the caller gives the memory away.
        unsafe { heap.init(memory.start as *mut u8, memory.bytes() as usize) };
    }
}

// SAFETY: `Heap` hands out disjoint blocks of the memory given to it, aligned as asked for.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see the claim of `Sync`.
        let heap = unsafe { &mut *self.0.get() };
        heap.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: see the claim of `Sync`.
        let heap = unsafe { &mut *self.0.get() };
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller had this block from `alloc` with this layout.
            unsafe { heap.deallocate(block, layout) };
        }
    }
}
