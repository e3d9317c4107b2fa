//! Where each release lives in physical memory.
//!
//! Two scratch areas are set aside for kernels: one is the running kernel's home, the other waits for its successor.
//! Nothing preserved ever lies in either, so an incoming kernel can overwrite all of its area without asking. Releases
//! A and C share an area and a link address: by the time C is loaded, nothing of A is left that anyone needs.
//!
//! ```text
//!   0x0010_0000  S0   release A, later C        0x0400_0000  S1   release B
//!
//!   inside an area, from its start:
//!     +0      image: text, constants, data, zeroed data, stacks     4 MiB
//!     +4 MiB  page tables                                           4 MiB
//!     +8 MiB  heap                                                 31 MiB
//!     -8 MiB  mailbox: the boot parameters, then the bundle         8 MiB, up to the end
//! ```
//!
//! The predecessor writes the image and the mailbox, and nothing else. This file has no dependencies, because the build
//! script reads the link addresses from it as well.

const MIB: u64 = 1 << 20;

/// Memory that belongs to one kernel at a time: an image, page tables, a heap and a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Address of the first byte; a multiple of 1 MiB, and the link address of the images that live here.
    pub start: u64,
    /// Address after the last byte; a multiple of 1 MiB.
    pub end: u64,
}

/// The area of releases A and C: 1 to 48 MiB.
pub const S0: Area = Area { start: MIB, end: 48 * MIB };
/// The area of release B: 64 to 111 MiB.
pub const S1: Area = Area { start: 64 * MIB, end: 111 * MIB };
/// Every scratch area. No kernel takes frames for anything else out of these.
pub const AREAS: [Area; 2] = [S0, S1];

const IMAGE_BYTES: u64 = 4 * MIB;
const TABLES_BYTES: u64 = 4 * MIB;
const MAILBOX_BYTES: u64 = 8 * MIB;

/// Bytes at the start of the mailbox that hold the boot parameters; the bundle follows.
pub const PARAMETER_BYTES: u64 = 16 * 1024;

// They lie apart, and within the smallest machine.
const _: () = assert!(S0.end <= S1.start && S1.end <= 256 * MIB);

impl Area {
    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }
    /// Whether all `bytes` bytes from `address` on lie in the area. An empty run lies nowhere.
    #[must_use]
    pub const fn holds(self, address: u64, bytes: u64) -> bool {
        match address.checked_add(bytes) {
            Some(end) => bytes > 0 && self.start <= address && end <= self.end,
            None => false,
        }
    }
    /// Where the image may lie, with its zeroed data and its stacks.
    #[must_use]
    pub const fn image(self) -> Area {
        Area { start: self.start, end: self.start + IMAGE_BYTES }
    }
    /// Where the kernel's page tables are taken from.
    #[must_use]
    pub const fn tables(self) -> Area {
        Area { start: self.image().end, end: self.image().end + TABLES_BYTES }
    }
    /// The heap.
    #[must_use]
    pub const fn heap(self) -> Area {
        Area { start: self.tables().end, end: self.mailbox().start }
    }
    /// What the predecessor leaves for the kernel that will live here.
    #[must_use]
    pub const fn mailbox(self) -> Area {
        Area { start: self.end - MAILBOX_BYTES, end: self.end }
    }
    /// The part of the mailbox that holds the boot parameters.
    #[must_use]
    pub const fn parameters(self) -> Area {
        Area { start: self.mailbox().start, end: self.mailbox().start + PARAMETER_BYTES }
    }
    /// The part of the mailbox that holds the bundle of further releases.
    #[must_use]
    pub const fn bundle(self) -> Area {
        Area { start: self.parameters().end, end: self.end }
    }
    /// The other area: the home of the successor of a kernel that lives here.
    #[must_use]
    pub const fn other(self) -> Area {
        if self.start == S0.start { S1 } else { S0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_area_follow_each_other_and_fill_it() {
        for area in AREAS {
            let parts = [area.image(), area.tables(), area.heap(), area.parameters(), area.bundle()];
            assert_eq!(parts[0].start, area.start);
            assert_eq!(parts[parts.len() - 1].end, area.end);
            for pair in parts.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
            }
            assert!(parts.iter().all(|p| p.bytes() > 0));
        }
    }

    #[test]
    fn a_run_that_wraps_or_is_empty_or_sticks_out_is_not_held() {
        assert!(S0.holds(S0.start, S0.bytes()));
        assert!(!S0.holds(S0.start, S0.bytes() + 1));
        assert!(!S0.holds(S0.start - 1, 2));
        assert!(!S0.holds(S0.start, 0));
        assert!(!S0.holds(S0.start, u64::MAX));
    }

    #[test]
    fn each_area_is_the_successor_of_the_other() {
        assert_eq!(S0.other(), S1);
        assert_eq!(S1.other(), S0);
    }
}
