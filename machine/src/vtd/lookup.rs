//! Which way a request takes (VT-d 3.4): root and context entry in legacy mode; root, context, PASID directory and PASID
//! entry in scalable mode. Each step is answered by a cache where it can be.

use super::cache::{Context, ContextAnswer, Directory, DirectoryAnswer, Route};
use super::unit::Unit;
use crate::fabric::Fabric;
use spec::SourceId;
use spec::context::{ContextEntry, TranslationType};
use spec::fault::Reason;
use spec::root::{RootEntry, ScalableRootEntry};
use spec::scalable::{
    self, PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry, first_stage_mode,
};

impl Unit {
    /// The way of a request with `pasid`, or without one. `Err` is the reason of the refusal and whether it is kept from
    /// being recorded.
    pub(super) fn context(
        &mut self,
        source: SourceId,
        pasid: Option<u32>,
        fabric: &mut Fabric,
    ) -> ContextAnswer {
        let loud = |reason| Err((reason, false));
        match (self.root.ttm(), pasid) {
            (0, None) => self.legacy_context(source, fabric),
            (0, Some(_)) => loud(Reason::MODE_PASID_REQUEST),
            (1, _) if self.config.ecap.smts() => self.scalable_context(source, pasid, fabric),
            // Abort-DMA mode and what is reserved.
            _ => loud(Reason::SCALABLE_ROOT_POINTER),
        }
    }

    fn legacy_context(&mut self, source: SourceId, fabric: &mut Fabric) -> ContextAnswer {
        if let Some(answer) = self.caches.context(source) {
            return answer;
        }
        let answer = self.read_context(source, fabric);
        if answer.is_ok() || self.config.cap.cm() {
            self.caches.keep_context(source, answer);
        }
        answer
    }

    fn read_context(&self, source: SourceId, fabric: &mut Fabric) -> ContextAnswer {
        const ENTRY: u64 = 16;
        let loud = |reason| (reason, false);
        let root = self.load_all(self.root.table().get() + ENTRY * u64::from(source.bus()), fabric);
        let root = RootEntry::from_raw(root.ok_or(loud(Reason::ROOT_ACCESS))?);
        if !root.present() {
            return Err(loud(Reason::ROOT_NOT_PRESENT));
        }
        if any(root.raw(), RootEntry::RESERVED) || self.is_beyond_host(root.ctp()) {
            return Err(loud(Reason::ROOT_RESERVED));
        }
        let entry = self.load_all(root.context_table().get() + ENTRY * u64::from(source.devfn()), fabric);
        let entry = ContextEntry::from_raw(entry.ok_or(loud(Reason::CONTEXT_ACCESS))?);
        let quiet = entry.fpd();
        if !entry.present() {
            return Err((Reason::CONTEXT_NOT_PRESENT, quiet));
        }
        let wide_domain = entry.did() >= u64::from(self.config.cap.domain_ids());
        if any(entry.raw(), ContextEntry::RESERVED) || self.is_beyond_host(entry.ssptptr()) || wide_domain {
            return Err((Reason::CONTEXT_RESERVED, quiet));
        }
        let route = self.route(entry).ok_or((Reason::CONTEXT_INVALID, quiet))?;
        self.note_oddities(entry, route, fabric);
        let device_tlb = entry.translation_type() == TranslationType::SecondStageDeviceTlb;
        let page_requests = false;
        Ok(Context { domain: entry.did() as u16, route, quiet, scalable: false, device_tlb, page_requests })
    }

    fn route(&self, entry: ContextEntry) -> Option<Route> {
        if !self.config.cap.supports_levels(entry.levels()) {
            return None;
        }
        let second = Route::SecondStage { top: entry.top_table().get(), levels: entry.levels() };
        match entry.translation_type() {
            TranslationType::SecondStage => Some(second),
            TranslationType::SecondStageDeviceTlb => self.config.ecap.dt().then_some(second),
            TranslationType::PassThrough => self.config.ecap.pt().then_some(Route::PassThrough),
            TranslationType::Reserved => None,
        }
    }

    /// Rules for software that hardware does not enforce.
    fn note_oddities(&self, entry: ContextEntry, route: Route, fabric: &mut Fabric) {
        let highest = (2..=6).rev().find(|&levels| self.config.cap.supports_levels(levels));
        if route == Route::PassThrough && Some(entry.levels()) != highest {
            fabric.misuse(self.config.id, "a pass-through entry without the largest address width");
        }
        if self.config.cap.cm() && entry.did() == 0 {
            fabric.misuse(self.config.id, "domain id 0 on a unit with caching mode");
        }
    }

    fn scalable_context(
        &mut self,
        source: SourceId,
        pasid: Option<u32>,
        fabric: &mut Fabric,
    ) -> ContextAnswer {
        let (directory, is_new) = self.directory(source, fabric)?;
        let fault = |reason| Err((reason, directory.quiet));
        let number = match pasid {
            Some(_) if !directory.serves_pasids => return fault(Reason::PASID_DISABLED),
            Some(number) if u64::from(number) >= directory.entries * scalable::PASID_TABLE_ENTRIES => {
                return fault(Reason::PASID_TOO_LARGE);
            }
            Some(number) => number,
            None => directory.own_pasid,
        };
        if let Some(answer) = self.caches.pasid(source, number) {
            return answer;
        }
        let answer = self.read_pasid(directory, number, fabric).map_err(|(reason, quiet)| {
            if self.config.quirks.one_pasid_reason { (Reason::PASID_ACCESS, false) } else { (reason, quiet) }
        });
        if is_new && (answer.is_ok() || self.config.caching.pasids) {
            self.caches.keep_directory(source, Ok(directory));
        }
        let keeps = match answer {
            Ok(context) => self.config.caching.pasids || context.route == Route::PassThrough,
            Err(_) => self.config.cap.cm(),
        };
        if keeps {
            self.caches.keep_pasid(source, number, answer);
        }
        answer
    }

    /// What a request without PASID would be translated by, out of the caches as far as they go, and memory beyond.
    pub(super) fn peek_context(&self, source: SourceId, fabric: &Fabric) -> Option<Context> {
        if self.root.ttm() == 0 {
            return self.caches.context(source)?.ok();
        }
        let directory = self.caches.directory(source)?.ok()?;
        let cached = self.caches.pasid(source, directory.own_pasid);
        cached.unwrap_or_else(|| self.read_pasid(directory, directory.own_pasid, fabric)).ok()
    }

    /// The directory of `source`, and whether it comes from memory and is not cached yet.
    fn directory(&mut self, source: SourceId, fabric: &Fabric) -> Result<(Directory, bool), (Reason, bool)> {
        if let Some(answer) = self.caches.directory(source) {
            return answer.map(|directory| (directory, false));
        }
        let answer = self.read_directory(source, fabric);
        if answer.is_err() && self.config.cap.cm() {
            self.caches.keep_directory(source, answer);
        }
        answer.map(|directory| (directory, true))
    }

    /// Root and context entry of scalable mode (VT-d 9.2, 9.4).
    fn read_directory(&self, source: SourceId, fabric: &Fabric) -> DirectoryAnswer {
        const ROOT: u64 = 16;
        const ENTRY: u64 = 32;
        let loud = |reason| (reason, false);
        let root = self.load_all(self.root.table().get() + ROOT * u64::from(source.bus()), fabric);
        let root = ScalableRootEntry::from_raw(root.ok_or(loud(Reason::SCALABLE_ROOT_ACCESS))?);
        let half = usize::from(source.devfn() >= 0x80);
        let (present, table) = [(root.lp(), root.lctp()), (root.up(), root.uctp())][half];
        if !present {
            return Err(loud(Reason::SCALABLE_ROOT_NOT_PRESENT));
        }
        let reserved = |half: usize| {
            root.raw()[half] & ScalableRootEntry::RESERVED[half] != 0
                || self.is_beyond_host([root.lctp(), root.uctp()][half])
        };
        if reserved(half) || self.config.quirks.root_halves_checked && reserved(1 - half) {
            return Err(loud(Reason::SCALABLE_ROOT_RESERVED));
        }
        let index = u64::from(source.devfn()) % scalable::CONTEXT_ENTRIES;
        let entry = self.load_all((table << 12) + ENTRY * index, fabric);
        let entry = ScalableContextEntry::from_raw(entry.ok_or(loud(Reason::SCALABLE_CONTEXT_ACCESS))?);
        let quiet = entry.fpd();
        let fault = |reason| Err((reason, quiet));
        if !entry.present() {
            return fault(Reason::SCALABLE_CONTEXT_NOT_PRESENT);
        }
        // Without ECAP.RPS the field is reserved.
        let honoured = self.config.ecap.rps() || self.config.quirks.rid_pasid_honoured;
        let rid_pasid_reserved = !honoured && entry.rid_pasid() != 0;
        if any(entry.raw(), ScalableContextEntry::RESERVED)
            || self.is_beyond_host(entry.pasiddirptr())
            || rid_pasid_reserved
        {
            return fault(Reason::SCALABLE_CONTEXT_RESERVED);
        }
        if entry.dte() && !self.config.ecap.dt() || entry.pre() && !self.config.ecap.prs() {
            return fault(Reason::SCALABLE_CONTEXT_INVALID);
        }
        let entries = entry.directory_entries();
        let own_pasid = entry.rid_pasid() as u32;
        let bounded = !self.config.quirks.rid_pasid_honoured;
        if bounded && u64::from(own_pasid) >= entries * scalable::PASID_TABLE_ENTRIES {
            return fault(Reason::RID_PASID);
        }
        let (table, serves_pasids) = (entry.directory().get(), entry.paside());
        Ok(Directory {
            table,
            entries,
            own_pasid,
            serves_pasids,
            quiet,
            device_tlb: entry.dte(),
            page_requests: entry.pre(),
        })
    }

    /// PASID directory and PASID entry (VT-d 9.5, 9.6).
    fn read_pasid(&self, directory: Directory, pasid: u32, fabric: &Fabric) -> ContextAnswer {
        const ENTRY: u64 = 64;
        let fault = |reason| (reason, directory.quiet);
        let at = directory.table + 8 * scalable::directory_index(pasid);
        let entry = self.load(at, fabric).ok_or(fault(Reason::PASID_DIRECTORY_ACCESS))?;
        let entry = PasidDirectoryEntry::from_raw(entry);
        let quiet = directory.quiet || entry.fpd();
        let fault = |reason| (reason, quiet);
        if !entry.present() {
            return Err(fault(Reason::PASID_DIRECTORY_NOT_PRESENT));
        }
        let checks = !self.config.quirks.pasid_reserved_ignored;
        if checks
            && (entry.raw() & PasidDirectoryEntry::RESERVED != 0 || self.is_beyond_host(entry.smptblptr()))
        {
            return Err(fault(Reason::PASID_DIRECTORY_RESERVED));
        }
        let entry = self.load_all(entry.table().get() + ENTRY * scalable::table_index(pasid), fabric);
        let entry = PasidEntry::from_raw(entry.ok_or(fault(Reason::PASID_ACCESS))?);
        let quiet = quiet || entry.fpd();
        let unusable = self.pasid_route(entry, pasid).is_none();
        if unusable && self.config.quirks.pasid_present_last {
            return Err((Reason::PASID_INVALID, quiet));
        }
        if !entry.present() {
            return Err((Reason::PASID_NOT_PRESENT, quiet));
        }
        if checks && self.has_reserved(entry) {
            return Err((Reason::PASID_RESERVED, quiet));
        }
        let route = self.pasid_route(entry, pasid).ok_or((Reason::PASID_INVALID, quiet))?;
        let Directory { device_tlb, page_requests, .. } = directory;
        Ok(Context { domain: entry.did() as u16, route, quiet, scalable: true, device_tlb, page_requests })
    }

    fn has_reserved(&self, entry: PasidEntry) -> bool {
        let second = matches!(entry.translation(), PasidTranslation::SecondStage | PasidTranslation::Nested);
        let first = matches!(entry.translation(), PasidTranslation::FirstStage | PasidTranslation::Nested);
        any(entry.raw(), PasidEntry::RESERVED)
            || second && self.is_beyond_host(entry.ssptptr())
            || first && self.is_beyond_host(entry.fsptptr())
            || entry.did() >= u64::from(self.config.cap.domain_ids())
    }

    fn pasid_route(&self, entry: PasidEntry, pasid: u32) -> Option<Route> {
        let (cap, ecap) = (self.config.cap, self.config.ecap);
        let five = entry.fspm() == first_stage_mode::FIVE_LEVELS && cap.fs5lp();
        let first_fits = entry.fspm() == first_stage_mode::FOUR_LEVELS || five;
        let second_fits = cap.supports_levels(entry.second_stage_levels());
        let (second, levels) = (entry.second_stage_table().get(), entry.second_stage_levels());
        let (first, first_levels) = (entry.first_stage_table().get(), entry.first_stage_levels());
        let translation = match entry.translation() {
            PasidTranslation::FirstStage | PasidTranslation::Nested
                if self.config.quirks.second_stage_only =>
            {
                PasidTranslation::SecondStage
            }
            other => other,
        };
        match translation {
            PasidTranslation::SecondStage if ecap.ssts() && second_fits => {
                Some(Route::SecondStage { top: second, levels })
            }
            PasidTranslation::FirstStage if ecap.fsts() && first_fits => {
                let width = match self.config.quirks.canonical_by_second {
                    true => (30 + 9 * entry.aw()).min(cap.mgaw() + 1) as u8,
                    false => 12 + 9 * first_levels,
                };
                Some(Route::FirstStage { top: first, levels: first_levels, width, pasid })
            }
            PasidTranslation::Nested if ecap.nest() && first_fits && second_fits => {
                Some(Route::Nested { first, first_levels, second, second_levels: levels, pasid })
            }
            PasidTranslation::PassThrough => ecap.pt().then_some(Route::PassThrough),
            _ => None,
        }
    }

    fn is_beyond_host(&self, frame: u64) -> bool {
        frame >> (self.host_width - 12) != 0
    }

    pub(super) fn load_all<const N: usize>(&self, at: u64, fabric: &Fabric) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (address, word) in (at..).step_by(8).zip(&mut words) {
            *word = self.load(address, fabric)?;
        }
        Some(words)
    }
}

fn any<const N: usize>(words: [u64; N], mask: [u64; N]) -> bool {
    words.iter().zip(mask).any(|(word, bits)| word & bits != 0)
}
