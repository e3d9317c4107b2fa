//! Random tables of scalable mode above the paging tables: root and context entries, PASID directories and tables. Requests
//! carry no PASID here, so the first entry of each directory and table counts. And entries of the first stage.

use crate::mode::Mode;
use crate::rig::SOURCES;
use crate::tables::{ARENA, CONTEXTS, ROOT, Tables, Words, domain, pair};
use spec::SourceId;
use spec::root::ScalableRootEntry;
use spec::scalable::{PasidDirectoryEntry, PasidEntry, ScalableContextEntry, pasid_type};

const DIRECTORIES: u64 = ARENA + 0x5000;
const PASID_TABLES: u64 = ARENA + 0xa000;

/// The PASID table of `source`.
fn pasid_table(source: SourceId) -> u64 {
    PASID_TABLES + (number(source) << 12)
}

fn directory(source: SourceId) -> u64 {
    DIRECTORIES + (number(source) << 12)
}

fn number(source: SourceId) -> u64 {
    SOURCES.iter().position(|&s| s == source).map_or(0, |i| i as u64)
}

impl Tables {
    pub(crate) fn scalable_root_entry(&mut self, bus: u64) -> Words {
        let (low, high) = (CONTEXTS[bus as usize], CONTEXTS[bus as usize + 2]);
        let entry = ScalableRootEntry::ZERO.with_lp(true).with_lctp(low >> 12);
        let mut entry = entry.with_up(true).with_uctp(high >> 12).raw();
        let half = self.chance.below(2) as usize;
        match self.chance.weighted(&[96, 1, 1, 1]) {
            0 => {}
            1 => entry[half] &= !1,
            2 => entry[half] |= 1 << self.chance.one_of(&[1, 5, 11]),
            _ => entry[half] = self.bad_frame() | 1,
        }
        pair(ROOT + 16 * bus, entry)
    }

    pub(crate) fn scalable_context_entry(&mut self, source: SourceId) -> Words {
        let entry = ScalableContextEntry::ZERO.with_present(true).with_pasiddirptr(directory(source) >> 12);
        let entry = entry.with_fpd(self.chance.percent(6)).with_pdts(self.chance.below(8));
        let entry = entry.with_paside(self.chance.percent(20)).with_rid_priv(self.chance.percent(4));
        let mut raw = entry.raw();
        match self.chance.weighted(&[86, 3, 3, 3, 3, 2]) {
            0 => {}
            1 => raw[0] &= !1,
            2 => raw[0] |= 1 << (5 + self.chance.below(4)),
            3 => raw[1 + self.chance.below(3) as usize] |= 1 << (21 + self.chance.below(43)),
            4 => raw[0] = self.bad_frame() | 1,
            _ => raw[1] |= 1 << self.chance.below(20),
        }
        let half = if source.devfn() < 0x80 { 0 } else { 2 };
        let at = CONTEXTS[usize::from(source.bus()) + half] + 32 * (u64::from(source.devfn()) % 0x80);
        words(at, &raw)
    }

    /// The entries that a request without PASID meets, in directory and table.
    pub(crate) fn pasid_entries(&mut self, source: SourceId) -> Words {
        if !self.mode.is_scalable() {
            return Words::new();
        }
        let up = PasidDirectoryEntry::ZERO.with_present(true).with_smptblptr(pasid_table(source) >> 12);
        let mut up = up.with_fpd(self.chance.percent(4)).raw();
        match self.chance.weighted(&[93, 2, 3, 2]) {
            0 => {}
            1 => up &= !1,
            2 => up |= 1 << self.chance.one_of(&[2, 5, 11, 49, 51]),
            _ => up = self.bad_frame() | 1,
        }
        let mut words = words(pasid_table(source), &self.pasid_entry());
        words.insert(directory(source), up);
        words
    }

    fn pasid_entry(&mut self) -> [u64; 8] {
        let (aw, top, did) = self.top_table();
        let entry = PasidEntry::ZERO.with_present(true).with_did(did).with_aw(aw);
        let entry = match (self.chance.percent(8), self.mode) {
            (true, _) => entry.with_pgtt(pasid_type::PASS_THROUGH),
            (false, Mode::FirstStage) => entry.with_pgtt(pasid_type::FIRST_STAGE).with_fsptptr(top >> 12),
            (false, _) => entry.with_pgtt(pasid_type::SECOND_STAGE).with_ssptptr(top >> 12),
        };
        let entry = entry.with_fpd(self.chance.percent(8));
        let mut raw = entry.raw();
        match self.chance.weighted(&[84, 3, 4, 4, 5]) {
            0 => {}
            1 => raw[0] &= !1,
            2 => raw = entry.with_pgtt(self.chance.below(8)).raw(),
            3 => {
                // A width of 30 bits would make addresses within one leaf canonical or not, see `canonical_by_second`.
                let lowest = u64::from(self.mode == Mode::FirstStage);
                let aw = lowest + self.chance.below(8 - lowest);
                raw = entry.with_aw(aw).with_did(domain(top, aw)).raw();
            }
            _ => {
                let reserved = PasidEntry::RESERVED;
                let word = self.chance.below(8) as usize;
                raw[word] |= reserved[word] & 1 << self.chance.below(64);
            }
        }
        raw
    }

    /// A first-stage entry that points at `target`.
    pub(crate) fn first_stage_entry(&mut self, target: u64) -> u64 {
        // Present, writable, for users; and lacking one of these.
        let rights = [7, 5, 3, 6][self.chance.weighted(&[84, 8, 4, 4])];
        let entry = target | rights;
        match self.chance.weighted(&[60, 35, 5]) {
            0 => entry,
            1 => entry | 1 << self.chance.one_of(&[3, 4, 5, 6, 8, 9, 11, 52, 55, 58, 62, 63]),
            _ => {
                let address_bit = u64::from(self.mode.width()) + self.chance.below(4);
                entry | 1 << self.chance.one_of(&[7, 12, 13, 20, 21, 29, address_bit])
            }
        }
    }
}

fn words(at: u64, raw: &[u64]) -> Words {
    (at..).step_by(8).zip(raw.iter().copied()).collect()
}
