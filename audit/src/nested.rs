//! One address through a second stage: what a first stage below it (nested) points with, its table pointers and leaves,
//! are not physical addresses but the parent's.

use crate::audit::Audit;
use crate::image::{self, Image};
use crate::scratch::MAX_LEVELS;
use spec::handover::domain_format;
use spec::second_stage::{SecondStageEntry, index, span};
use spec::{PAGE_SIZE, PhysAddr};

impl<I: Image + ?Sized> Audit<'_, '_, '_, I> {
    /// Where the second stage of the domain `parent` leads `address`; `None` when it does not translate it. Only tables
    /// that the parent declared are entered; whether it may lead there is judged with the parent's own leaves.
    pub(crate) fn through(&self, parent: u32, address: u64) -> Option<u64> {
        let (_, domain) = self.reader.domain(parent)?;
        let walkable = domain.format == domain_format::SECOND_STAGE && (3..=5).contains(&domain.levels);
        let top = domain.levels.checked_sub(1).filter(|_| walkable)?;
        if address.checked_div(span(top))? >= spec::second_stage::ENTRIES {
            return None;
        }
        let mut table = domain.top_table;
        for level in (0..=top).rev().take(MAX_LEVELS) {
            let run = self.index().run_holding(table / PAGE_SIZE)?;
            if run.domain() != Some(parent) || table % PAGE_SIZE != 0 {
                return None;
            }
            let at = PhysAddr::new(table).checked_add(index(address, level).saturating_mul(8))?;
            let entry = SecondStageEntry::from_raw(image::word(self.image, at).ok()?);
            if !entry.is_present() {
                return None;
            }
            if entry.is_leaf(level) {
                let within = span(level).saturating_sub(1);
                return Some(entry.address().get() & !within | address & within);
            }
            table = entry.address().get();
        }
        None
    }
}
