//! The unit's caches (VT-d 6.2): context entries by source, translations and non-leaf entries by domain id.
//!
//! Entries come in by DMA and go by invalidation, and by nothing else but lack of room: what software changed in memory
//! meanwhile goes unnoticed. With caching mode, refusals are cached too (VT-d 6.1).

use crate::dice::Dice;
use crate::trace::Invalidation;
use spec::fault::Reason;
use spec::{SourceId, second_stage};
use std::collections::BTreeMap;

use super::walk::{Leaf, Refusal, Table};

/// Domain id that refusals of caching mode are tagged with (VT-d 6.1).
const REFUSED_DOMAIN: u16 = 0;

/// A context entry as the unit understood it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Domain id.
    pub domain: u16,
    /// Where requests go.
    pub route: Route,
    /// Faults of this source are not recorded (FPD).
    pub quiet: bool,
    /// Scalable mode: faults have other reasons.
    pub scalable: bool,
    /// The device may keep translations of its own.
    pub device_tlb: bool,
    /// The device may ask for pages.
    pub page_requests: bool,
}

/// What a context entry does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Unchanged to memory.
    PassThrough,
    /// Through the second-stage table.
    SecondStage {
        /// Physical address of the top table.
        top: u64,
        /// Levels of the table, 3 to 5.
        levels: u8,
    },
    /// Through the first-stage table.
    FirstStage {
        /// Physical address of the top table.
        top: u64,
        /// Levels of the table, 4 or 5.
        levels: u8,
        /// Bits of an address, above which all are the same.
        width: u8,
        /// The PASID, a part of the tag of what is cached.
        pasid: u32,
    },
    /// Through the first-stage table, whose addresses and output go through the second-stage table.
    Nested {
        /// Address of the first stage's top table, to be translated.
        first: u64,
        /// Its levels.
        first_levels: u8,
        /// Physical address of the second stage's top table.
        second: u64,
        /// Its levels.
        second_levels: u8,
        /// The PASID.
        pasid: u32,
    },
}

/// A context entry of scalable mode as the unit understood it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directory {
    /// Physical address of the PASID directory.
    pub table: u64,
    /// Its entries.
    pub entries: u64,
    /// The PASID of requests without one.
    pub own_pasid: u32,
    /// Requests with PASID are served (PASIDE).
    pub serves_pasids: bool,
    /// Faults of this source are not recorded (FPD).
    pub quiet: bool,
    /// The device may keep translations of its own (DTE).
    pub device_tlb: bool,
    /// The device may ask for pages (PRE).
    pub page_requests: bool,
}

/// What a look-up of a source's directory gives.
pub type DirectoryAnswer = Result<Directory, (Reason, bool)>;

/// What a look-up of a source's context gives.
pub type ContextAnswer = Result<Context, (Reason, bool)>;

/// What a look-up of a page gives.
pub type PageAnswer = Result<Leaf, Refusal>;

/// What cached translations are told apart by, besides their address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// Domain id.
    pub domain: u16,
    /// The source, on units where translations are not shared within a domain.
    pub source: Option<SourceId>,
    /// The PASID, of translations that a first stage took part in.
    pub pasid: Option<u32>,
}

/// Context cache, IOTLB and paging-structure cache of one unit.
#[derive(Debug)]
pub struct Caches {
    contexts: BTreeMap<u16, ContextAnswer>,
    directories: BTreeMap<u16, DirectoryAnswer>,
    /// By source and PASID.
    pasids: BTreeMap<(u16, u32), ContextAnswer>,
    /// By tag, level and page number at that level.
    pages: BTreeMap<(Tag, u8, u64), PageAnswer>,
    /// By tag, the table's level, and the number of the span it serves.
    tables: BTreeMap<(Tag, u8, u64), Table>,
    room: usize,
    coarse: bool,
}

impl Caches {
    /// Empty caches with room for so many translations, and as many non-leaf entries.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            contexts: BTreeMap::new(),
            directories: BTreeMap::new(),
            pasids: BTreeMap::new(),
            pages: BTreeMap::new(),
            tables: BTreeMap::new(),
            room,
            coarse: false,
        }
    }

    /// The caches, forgetting pages as [`crate::Caching::coarse`] says.
    #[must_use]
    pub fn coarse(self, coarse: bool) -> Self {
        Self { coarse, ..self }
    }

    /// The cached context of `source`.
    #[must_use]
    pub fn context(&self, source: SourceId) -> Option<ContextAnswer> {
        self.contexts.get(&source.raw()).copied()
    }

    /// Caches what was found for `source`. Refusals are for units with caching mode alone.
    pub fn keep_context(&mut self, source: SourceId, answer: ContextAnswer) {
        self.contexts.insert(source.raw(), answer);
    }

    /// The cached directory of `source`, in scalable mode.
    #[must_use]
    pub fn directory(&self, source: SourceId) -> Option<DirectoryAnswer> {
        self.directories.get(&source.raw()).copied()
    }

    /// Caches what was found for `source`.
    pub fn keep_directory(&mut self, source: SourceId, answer: DirectoryAnswer) {
        self.directories.insert(source.raw(), answer);
    }

    /// The cached PASID entry of `source` and `pasid`.
    #[must_use]
    pub fn pasid(&self, source: SourceId, pasid: u32) -> Option<ContextAnswer> {
        self.pasids.get(&(source.raw(), pasid)).copied()
    }

    /// Caches what was found for `source` and `pasid`.
    pub fn keep_pasid(&mut self, source: SourceId, pasid: u32, answer: ContextAnswer) {
        self.pasids.insert((source.raw(), pasid), answer);
    }

    /// The cached translation of `iova`, of whatever page size.
    #[must_use]
    pub fn page(&self, tag: Tag, iova: u64) -> Option<PageAnswer> {
        (0..=second_stage::HIGHEST_LEAF_LEVEL)
            .find_map(|level| self.pages.get(&(tag, level, iova / second_stage::span(level))).copied())
    }

    /// Caches a translation, or, on units with caching mode, its refusal.
    pub fn keep_page(&mut self, tag: Tag, iova: u64, answer: PageAnswer, dice: &mut Dice) {
        let level = answer.map_or(0, |leaf| leaf.level);
        make_room(&mut self.pages, self.room, dice);
        self.pages.insert((tag, level, iova / second_stage::span(level)), answer);
    }

    /// The lowest cached table on the way to `iova`, below `levels` levels.
    #[must_use]
    pub fn lowest_table(&self, tag: Tag, iova: u64, levels: u8) -> Option<Table> {
        let number = |level: u8| iova / second_stage::span(level + 1);
        (0..levels - 1).find_map(|level| self.tables.get(&(tag, level, number(level))).copied())
    }

    /// Caches a table that a walk passed.
    pub fn keep_table(&mut self, tag: Tag, iova: u64, table: Table, dice: &mut Dice) {
        make_room(&mut self.tables, self.room, dice);
        self.tables.insert((tag, table.level, iova / second_stage::span(table.level + 1)), table);
    }

    /// Forgets. Nothing more than what is named (VT-d 6.5.2).
    pub fn forget(&mut self, what: Invalidation) {
        match what {
            Invalidation::Contexts => {
                self.contexts.clear();
                self.directories.clear();
            }
            Invalidation::ContextsOfDomain(domain) => {
                self.contexts.retain(|_, answer| domain_of(answer) != domain);
                // Context entries of scalable mode name no domain.
                self.directories.clear();
            }
            Invalidation::ContextOf { domain, source, mask } => {
                let ignored = function_bits(mask);
                let other = |cached: u16| (cached ^ source.raw()) & !ignored != 0;
                self.contexts.retain(|&cached, answer| other(cached) || domain_of(answer) != domain);
                self.directories.retain(|&cached, _| other(cached));
            }
            Invalidation::Pasids => self.pasids.clear(),
            Invalidation::PasidsOfDomain(domain) => {
                self.pasids.retain(|_, answer| domain_of(answer) != domain);
            }
            Invalidation::PasidOf { domain, pasid } => {
                self.pasids.retain(|key, answer| key.1 != pasid || domain_of(answer) != domain);
            }
            Invalidation::Translations => {
                self.pages.clear();
                self.tables.clear();
            }
            Invalidation::TranslationsOfDomain(domain) => {
                self.pages.retain(|key, _| key.0.domain != domain);
                self.tables.retain(|key, _| key.0.domain != domain);
            }
            Invalidation::Pages { domain, start, order, leaf_only } => {
                let end = start.saturating_add(spec::PAGE_SIZE << order);
                let hit = |key: &(Tag, u8, u64), span: u64| {
                    let first_stage = key.0.pasid.is_some();
                    let overlaps = key.2.saturating_mul(span) < end
                        && start < key.2.saturating_add(1).saturating_mul(span);
                    key.0.domain == domain && (first_stage || overlaps)
                };
                let low = |page: u64| page as u8 & !(((1u64 << order) - 1) as u8);
                let agrees = |key: &(Tag, u8, u64)| {
                    let page = key.2 * (second_stage::span(key.1) / spec::PAGE_SIZE);
                    key.0.domain == domain && low(page) == low(start / spec::PAGE_SIZE)
                };
                let coarse = self.coarse;
                self.pages.retain(|key, _| !(hit(key, second_stage::span(key.1)) || coarse && agrees(key)));
                if !leaf_only {
                    self.tables.retain(|key, _| !hit(key, second_stage::span(key.1 + 1)));
                }
            }
            Invalidation::TranslationsOfPasid { domain, pasid } => {
                self.pages.retain(|key, _| key.0.domain != domain || key.0.pasid != Some(pasid));
            }
            Invalidation::PagesOfPasid { domain, pasid, start, order } => {
                let last = start.saturating_add((spec::PAGE_SIZE << order) - 1);
                self.pages.retain(|key, _| {
                    let span = second_stage::span(key.1);
                    let (low, high) = (key.2 * span, key.2 * span + (span - 1));
                    let overlaps = low <= last && start <= high;
                    key.0.domain != domain || key.0.pasid != Some(pasid) || !overlaps
                });
            }
            Invalidation::InterruptEntries(_) | Invalidation::DeviceTlb(_) => {}
        }
    }
}

fn domain_of(answer: &ContextAnswer) -> u16 {
    answer.map_or(REFUSED_DOMAIN, |context| context.domain)
}

/// Function bits that a mask leaves out of a comparison: bit 2, bits 2:1, bits 2:0 (VT-d 6.5.2.1, FM).
fn function_bits(mask: u8) -> u16 {
    [0b000, 0b100, 0b110, 0b111][usize::from(mask & 3)]
}

fn make_room<V>(map: &mut BTreeMap<(Tag, u8, u64), V>, room: usize, dice: &mut Dice) {
    if map.len() >= room.max(1) {
        let victim = dice.between(0, map.len() as u64 - 1) as usize;
        if let Some(key) = map.keys().nth(victim).copied() {
            map.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: Leaf = Leaf { output: 0x5000, level: 0, read: true, write: true, dirty: true };

    fn tag(domain: u16) -> Tag {
        Tag { domain, source: None, pasid: None }
    }

    fn context(domain: u16) -> ContextAnswer {
        Ok(Context {
            domain,
            route: Route::PassThrough,
            quiet: false,
            scalable: false,
            device_tlb: false,
            page_requests: false,
        })
    }

    #[test]
    fn a_page_invalidation_drops_large_pages_that_it_touches_and_leaves_neighbours() {
        let (mut caches, mut dice) = (Caches::new(64), Dice::new(1));
        caches.keep_page(tag(7), 0x1000, Ok(LEAF), &mut dice);
        caches.keep_page(tag(7), 0x20_0000, Ok(Leaf { level: 1, ..LEAF }), &mut dice);
        caches.keep_page(tag(8), 0x20_0000, Ok(LEAF), &mut dice);
        caches.forget(Invalidation::Pages { domain: 7, start: 0x3f_f000, order: 0, leaf_only: false });
        assert!(caches.page(tag(7), 0x1fff).is_some());
        assert!(caches.page(tag(7), 0x20_0000).is_none());
        assert!(caches.page(tag(8), 0x20_0000).is_some());
    }

    #[test]
    fn a_coarse_page_invalidation_drops_pages_far_away_with_the_same_low_bits() {
        for coarse in [false, true] {
            let (mut caches, mut dice) = (Caches::new(64).coarse(coarse), Dice::new(1));
            caches.keep_page(tag(7), 0x12_3000, Ok(LEAF), &mut dice);
            caches.keep_page(tag(7), 0x12_8000, Ok(LEAF), &mut dice);
            caches.forget(Invalidation::Pages { domain: 7, start: 0x72_0000, order: 2, leaf_only: false });
            assert_eq!(caches.page(tag(7), 0x12_3000).is_none(), coarse);
            assert!(caches.page(tag(7), 0x12_8000).is_some());
        }
    }

    #[test]
    fn the_leaf_hint_keeps_tables_and_its_absence_drops_them() {
        let (mut caches, mut dice) = (Caches::new(64), Dice::new(1));
        let table = Table { address: 0x9000, level: 0, read: true, write: true };
        caches.keep_table(tag(7), 0x1000, table, &mut dice);
        let pages = |leaf_only| Invalidation::Pages { domain: 7, start: 0x1000, order: 0, leaf_only };
        caches.forget(pages(true));
        assert_eq!(caches.lowest_table(tag(7), 0x1f_ffff, 3), Some(table));
        assert_eq!(caches.lowest_table(tag(7), 0x20_0000, 3), None);
        caches.forget(pages(false));
        assert_eq!(caches.lowest_table(tag(7), 0x1000, 3), None);
    }

    #[test]
    fn a_context_goes_only_when_source_and_domain_both_agree() {
        let mut caches = Caches::new(64);
        let source = SourceId::new(0, 3, 5);
        caches.keep_context(source, context(7));
        let forget = |domain, function, mask| Invalidation::ContextOf {
            domain,
            source: SourceId::new(0, 3, function),
            mask,
        };
        caches.forget(forget(8, 5, 0));
        caches.forget(forget(7, 4, 0));
        caches.forget(forget(7, 4, 2));
        assert!(caches.context(source).is_some());
        caches.forget(forget(7, 1, 1));
        assert!(caches.context(source).is_none(), "function bit 2 is masked");
    }

    #[test]
    fn a_full_cache_evicts_one_entry_for_another() {
        let (mut caches, mut dice) = (Caches::new(4), Dice::new(1));
        for page in 0..9 {
            caches.keep_page(tag(1), page << 12, Ok(LEAF), &mut dice);
        }
        assert_eq!((0..9).filter(|page| caches.page(tag(1), page << 12).is_some()).count(), 4);
    }
}
