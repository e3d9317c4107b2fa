//! How much memory an input may cost.

use peak_alloc::PeakAlloc;
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that one byte of input may have allocated.
pub const PER_BYTE: usize = 256;

/// One measurement at a time: the allocator counts for the whole process.
static MEASURING: Mutex<()> = Mutex::new(());

/// Runs `work`.
///
/// # Panics
/// When it had more than `limit` bytes allocated at once.
pub fn bounded(limit: usize, work: impl FnOnce()) {
    let _one = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    work();
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(peak <= limit, "{peak} bytes were allocated at once; {limit} are allowed");
}
