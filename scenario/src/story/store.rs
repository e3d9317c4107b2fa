//! Storage for the core's book and the auditor: taken once, of a fixed size.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// How much may be preserved in this kernel.
pub(crate) type Room = liveupdate::Room<64>;

/// Words of working memory for the auditor: half a megabyte.
const AUDIT_WORDS: usize = 64 << 10;

/// Room for one update.
pub(crate) fn room() -> Box<Room> {
    Box::new(Room::new())
}

/// Working memory for one audit.
pub(crate) fn audit_words() -> Vec<u64> {
    vec![0; AUDIT_WORDS]
}
