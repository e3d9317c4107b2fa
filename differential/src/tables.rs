//! Random tables: valid in the main, and wrong in every way that entries can be wrong.
//!
//! All paging tables come out of a small pool, some frames for each level, which all requesters share, so that few words
//! give many walks. Only some indices are in use, and addresses are made of these.

use crate::chance::Chance;
use crate::mode::Mode;
use crate::rig::{DATA, MEMORY, SOURCES};
use spec::context::ContextEntry;
use spec::regs::RootAddr;
use spec::root::RootEntry;
use spec::{SourceId, second_stage};
use std::collections::BTreeMap;

/// Where all tables lie.
pub const ARENA: u64 = 0x10_0000;
/// Bytes of it.
pub const ARENA_BYTES: u64 = 64 << 12;
pub(crate) const ROOT: u64 = ARENA;
/// Context tables: of bus 0 and bus 1, and in scalable mode those of the upper halves.
pub(crate) const CONTEXTS: [u64; 4] = [ARENA + 0x1000, ARENA + 0x2000, ARENA + 0x3000, ARENA + 0x4000];
const POOL: u64 = ARENA + 0x10_000;
/// Frames for the tables of each level.
const LEVEL_FRAMES: u64 = 3;
const LEVELS: u64 = 4;
/// Indices within a paging table that are in use.
const INDICES: [u64; 4] = [0, 1, 5, 511];
/// An address without memory behind it, and without a device.
const HOLE: u64 = 0x800_0000;
/// Interrupt messages go here.
const INTERRUPTS: u64 = 0xfee0_0000;

/// Words to write, by address.
pub type Words = BTreeMap<u64, u64>;

/// Makes tables and addresses for one mode.
pub struct Tables {
    pub(crate) mode: Mode,
    pub(crate) chance: Chance,
}

impl Tables {
    /// Tables for `mode`, out of `chance`.
    #[must_use]
    pub fn new(mode: Mode, chance: Chance) -> Self {
        Self { mode, chance }
    }

    /// The root table's address: nearly always that of the tables.
    pub fn root(&mut self) -> RootAddr {
        let table = if self.chance.percent(1) { HOLE } else { ROOT };
        RootAddr::ZERO.with_rta(table >> 12).with_ttm(self.mode.is_scalable().into())
    }

    /// Everything anew: each word of the arena.
    pub fn all(&mut self) -> Words {
        let mut words: Words = (ARENA..ARENA + ARENA_BYTES).step_by(8).map(|at| (at, 0)).collect();
        for bus in 0..2 {
            words.extend(self.root_entry(bus));
        }
        for source in SOURCES {
            words.extend(self.context_entry(source));
            words.extend(self.pasid_entries(source));
        }
        for level in 0..LEVELS {
            for frame in 0..LEVEL_FRAMES {
                for index in INDICES {
                    words.insert(table(level, frame) + 8 * index, self.paging_entry(level));
                }
            }
        }
        words
    }

    /// One entry anew, of any kind, likely on the way of `iova`. With a source when it is the PASID entry of that source,
    /// which must be invalidated before the source asks again: QEMU looks at part of such an entry at each request and at
    /// the rest when the context entry is read, so that in between it sees neither the old entry nor the new one.
    pub fn change(&mut self, iova: u64) -> (Words, Option<SourceId>) {
        let words = match self.chance.weighted(&[80, 15, 5]) {
            0 => {
                let level = self.chance.weighted(&[50, 25, 15, 10]) as u64;
                let index = second_stage::index(iova, level as u8);
                let index = if INDICES.contains(&index) { index } else { self.chance.one_of(&INDICES) };
                let at = self.some_table(level) + 8 * index;
                Words::from([(at, self.paging_entry(level))])
            }
            1 => {
                let source = self.chance.one_of(&SOURCES);
                if self.mode.is_scalable() && self.chance.percent(60) {
                    return (self.pasid_entries(source), Some(source));
                }
                self.context_entry(source)
            }
            _ => {
                let bus = self.chance.below(2);
                self.root_entry(bus)
            }
        };
        (words, None)
    }

    /// An address that the tables may map, a multiple of 8.
    pub fn iova(&mut self) -> u64 {
        let mut iova = self.chance.below(512) * 8;
        let levels = (self.mode.width() - 12) / 9;
        let levels = if self.chance.percent(60) { 3 } else { levels };
        for level in 0..levels {
            let index = match self.chance.weighted(&[97, 3]) {
                0 => self.chance.one_of(&INDICES),
                // Most entries are zero.
                _ => self.chance.below(512),
            };
            iova |= index << (12 + 9 * level);
        }
        let iova = if self.mode == Mode::FirstStage { canonical(iova) } else { iova };
        match self.chance.weighted(&[91, 5, 2, 2]) {
            0 => iova,
            1 => iova ^ 1 << (30 + self.chance.below(34)),
            2 => INTERRUPTS + self.chance.below(1 << 17) * 8,
            // Where the machine has memory, for sources that pass through.
            _ => DATA + self.chance.below((MEMORY - DATA) / 8) * 8,
        }
    }

    pub(crate) fn some_table(&mut self, level: u64) -> u64 {
        table(level, self.chance.below(LEVEL_FRAMES))
    }

    fn root_entry(&mut self, bus: u64) -> Words {
        if self.mode.is_scalable() {
            return self.scalable_root_entry(bus);
        }
        let table = CONTEXTS[bus as usize];
        let entry = RootEntry::ZERO.with_present(true).with_ctp(table >> 12).raw();
        let entry = match self.chance.weighted(&[96, 1, 1, 1, 1]) {
            0 => entry,
            1 => [entry[0] & !1, entry[1]],
            2 => [entry[0] | 1 << self.chance.one_of(&[1, 5, 11]), entry[1]],
            3 => [entry[0], 1 << self.chance.below(64)],
            _ => [self.bad_frame() | 1, entry[1]],
        };
        pair(ROOT + 16 * bus, entry)
    }

    /// A frame with no memory behind it, or beyond the host's width.
    pub(crate) fn bad_frame(&mut self) -> u64 {
        if self.chance.percent(50) {
            HOLE
        } else {
            1 << (u64::from(self.mode.width()) + self.chance.below(4))
        }
    }

    fn context_entry(&mut self, source: SourceId) -> Words {
        if self.mode.is_scalable() {
            return self.scalable_context_entry(source);
        }
        let (aw, top, did) = self.top_table();
        let tt = [0, 2][self.chance.weighted(&[90, 10])];
        let entry = ContextEntry::ZERO.with_present(true).with_aw(aw).with_did(did).with_tt(tt);
        let entry = entry.with_ssptptr(top >> 12).with_fpd(self.chance.percent(10));
        let raw = entry.raw();
        let raw = match self.chance.weighted(&[85, 3, 3, 3, 3, 3]) {
            0 => raw,
            1 => entry.with_present(false).raw(),
            2 => entry.with_tt(self.chance.one_of(&[1, 3])).raw(),
            3 => {
                let aw = self.chance.below(8);
                entry.with_aw(aw).with_did(domain(top, aw)).raw()
            }
            4 => [raw[0] | 1 << (4 + self.chance.below(8)), raw[1]],
            _ => [raw[0], raw[1] | 1 << self.chance.one_of(&[3, 4, 5, 6, 7, 24, 30, 63])],
        };
        pair(self.context_address(source), raw)
    }

    /// A second-stage top table: its width code, its address, and a domain id. The same table gets the same domain id,
    /// and another table another one.
    pub(crate) fn top_table(&mut self) -> (u64, u64, u64) {
        let widths: &[u64] = match self.mode {
            Mode::Legacy39 => &[1],
            Mode::Legacy48 | Mode::SecondStage => &[1, 2],
            Mode::FirstStage => &[2],
        };
        let aw = self.chance.one_of(widths);
        let top = if self.chance.percent(3) { self.bad_frame() } else { self.some_table(aw + 1) };
        (aw, top, domain(top, aw))
    }

    fn context_address(&self, source: SourceId) -> u64 {
        CONTEXTS[usize::from(source.bus())] + 16 * u64::from(source.devfn())
    }

    fn paging_entry(&mut self, level: u64) -> u64 {
        let target = self.target(level);
        if self.mode == Mode::FirstStage {
            return self.first_stage_entry(target);
        }
        let rights = [3, 1, 2, 0][self.chance.weighted(&[84, 6, 6, 4])];
        let entry = target | rights;
        match self.chance.weighted(&[75, 21, 4]) {
            0 => entry,
            1 => entry | 1 << self.chance.one_of(&IGNORED),
            _ => {
                let address_bit = u64::from(self.mode.width()) + self.chance.below(3);
                entry | 1 << self.chance.one_of(&[7, 11, 12, 13, 20, 21, 29, 62, address_bit])
            }
        }
    }

    /// What an entry points at, with the bit of large leaves.
    fn target(&mut self, level: u64) -> u64 {
        const LARGE: u64 = 1 << 7;
        match (self.chance.weighted(&[70, 24, 3, 3]), level) {
            (0, 0) => DATA + (self.chance.below((MEMORY - DATA) >> 12) << 12),
            (0, _) | (1, 0 | 3) => self.some_table(level.max(1) - 1),
            (1, 1) => (DATA + (self.chance.below((MEMORY - DATA) >> 21) << 21)) | LARGE,
            (1, _) => self.chance.below(2) << 30 | LARGE,
            (2, _) => self.bad_frame(),
            // Never as a table: QEMU has registers of the processor there, and reads them.
            _ => self.chance.one_of(&[INTERRUPTS, INTERRUPTS + 0xf_f000]) | LARGE,
        }
    }
}

/// A domain id for a table that is used with a width code.
pub(crate) fn domain(top: u64, aw: u64) -> u64 {
    (top >> 12) % 0x1000 * 8 + aw
}

/// The paging table number `frame` of a level.
fn table(level: u64, frame: u64) -> u64 {
    POOL + ((LEVEL_FRAMES * level + frame) << 12)
}

/// Bits of a second-stage entry that hardware ignores where no feature gives them a meaning.
const IGNORED: [u64; 12] = [2, 3, 5, 6, 8, 9, 10, 52, 56, 60, 61, 63];

/// The address with all bits above the 48th like that one.
fn canonical(iova: u64) -> u64 {
    ((iova << 16) as i64 >> 16) as u64
}

pub(crate) fn pair(at: u64, words: [u64; 2]) -> Words {
    Words::from([(at, words[0]), (at + 8, words[1])])
}
