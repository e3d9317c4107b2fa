//! What a fake unit does in scalable mode: contexts, PASID entries and translations, each in a cache that goes stale.

use super::{Done, FakeUnit, Frames, Leaf};
use crate::fake::Quirks;
use spec::first_stage::FirstStageEntry;
use spec::invalidation::{
    PasidCacheInvalidate, PasidIotlbInvalidate, pasid_cache_granularity, pasid_iotlb_granularity,
};
use spec::regs::RootAddr;
use spec::scalable::{
    PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry, directory_index, table_index,
};
use spec::second_stage::{SecondStageEntry, index, span};
use spec::{PAGE_SIZE, SourceId};

/// Reasons, shortened to what tests tell apart.
pub(crate) const NO_CONTEXT: u8 = 0x40;
pub(crate) const NO_PASID: u8 = 0x50;
pub(crate) const FIRST_STAGE: u8 = 0x70;
pub(crate) const DENIED: u8 = 0x80;

impl FakeUnit {
    /// A request with a PASID or without, as the unit serves it.
    pub(super) fn dma_scalable(
        &mut self,
        frames: &mut Frames,
        source: SourceId,
        pasid: Option<u32>,
        iova: u64,
        write: bool,
    ) -> Result<u64, u8> {
        let context = self.scalable_context(frames, source)?;
        if pasid.is_some() && !context.paside() {
            return Err(NO_CONTEXT);
        }
        let pasid = pasid.unwrap_or(context.rid_pasid() as u32);
        let entry = self.pasid_entry(frames, source, context, pasid)?;
        self.incoherent += u32::from(self.ecap.smpwcs() && !entry.pwsnp());
        let leaf = match entry.translation() {
            PasidTranslation::PassThrough => return Ok(iova),
            PasidTranslation::Reserved(_) => return Err(NO_PASID),
            other => self.scalable_leaf(frames, entry, other, pasid, iova)?,
        };
        let allowed = if write { leaf.write } else { leaf.read };
        if allowed { Ok(leaf.to + iova % PAGE_SIZE) } else { Err(DENIED) }
    }

    fn words<const N: usize>(&self, frames: &Frames, at: u64) -> [u64; N] {
        core::array::from_fn(|i| self.see(frames, at + 8 * i as u64))
    }

    fn scalable_context(&mut self, frames: &Frames, source: SourceId) -> Result<ScalableContextEntry, u8> {
        let mut entry = self.wide_contexts.get(&source.raw()).copied();
        if entry.is_none() {
            let devfn = u64::from(source.devfn());
            let root = RootAddr::from_raw(self.root).table().get();
            let half = self.see(frames, root + 16 * u64::from(source.bus()) + 8 * (devfn / 128));
            let found = match half & 1 {
                0 => [0; 4],
                _ => self.words(frames, (half & !0xfff) + 32 * (devfn % 128)),
            };
            if found[0] & 1 == 1 || self.cap.cm() {
                self.wide_contexts.insert(source.raw(), found);
            }
            entry = Some(found);
        }
        let entry = ScalableContextEntry::from_raw(entry.unwrap_or_default());
        if entry.present() { Ok(entry) } else { Err(NO_CONTEXT) }
    }

    fn pasid_entry(
        &mut self,
        frames: &Frames,
        source: SourceId,
        context: ScalableContextEntry,
        pasid: u32,
    ) -> Result<PasidEntry, u8> {
        let key = (source.raw(), pasid);
        let mut entry = self.pasids.get(&key).copied();
        if entry.is_none() {
            let mut found = [0; 8];
            if directory_index(pasid) < context.directory_entries() {
                let at = context.directory().get() + 8 * directory_index(pasid);
                let directory = PasidDirectoryEntry::from_raw(self.see(frames, at));
                if directory.present() {
                    found = self.words(frames, directory.table().get() + 64 * table_index(pasid));
                }
            }
            if found[0] & 1 == 1 || self.cap.cm() {
                self.pasids.insert(key, found);
            }
            entry = Some(found);
        }
        let entry = PasidEntry::from_raw(entry.unwrap_or_default());
        if entry.present() { Ok(entry) } else { Err(NO_PASID) }
    }

    fn scalable_leaf(
        &mut self,
        frames: &mut Frames,
        entry: PasidEntry,
        translation: PasidTranslation,
        pasid: u32,
        iova: u64,
    ) -> Result<Leaf, u8> {
        let tag = match translation {
            PasidTranslation::SecondStage => None,
            _ => Some(pasid),
        };
        let key = (entry.domain_id().0, tag, iova / PAGE_SIZE);
        if let Some(cached) = self.translations.get(&key) {
            return cached.ok_or(FIRST_STAGE);
        }
        let second = (entry.second_stage_table().get(), entry.second_stage_levels());
        let found = match translation {
            PasidTranslation::SecondStage => self.second_stage(frames, second, iova),
            PasidTranslation::Nested => self.first_stage(frames, entry, Some(second), iova),
            _ => self.first_stage(frames, entry, None, iova),
        };
        if found.is_some() || self.cap.cm() {
            self.translations.insert(key, found);
        }
        found.ok_or(FIRST_STAGE)
    }

    /// The page that second-stage tables give for an address.
    pub(super) fn second_stage(
        &self,
        frames: &Frames,
        (mut table, levels): (u64, u8),
        iova: u64,
    ) -> Option<Leaf> {
        for level in (0..levels).rev() {
            let next = SecondStageEntry::from_raw(self.see(frames, table + 8 * index(iova, level)));
            if !next.is_present() {
                break;
            }
            if next.is_leaf(level) {
                let to = next.address().get() + iova % span(level) / PAGE_SIZE * PAGE_SIZE;
                return Some(Leaf { to, read: next.r(), write: next.w() });
            }
            table = next.address().get();
        }
        None
    }

    /// The page that first-stage tables give, whose addresses go through the second stage if there is one. Accessed and
    /// dirty bits are set on the way, as if the page were written.
    fn first_stage(
        &self,
        frames: &mut Frames,
        entry: PasidEntry,
        second: Option<(u64, u8)>,
        iova: u64,
    ) -> Option<Leaf> {
        let levels = entry.first_stage_levels();
        // QEMU, which has four levels, takes the border of what is canonical from the second stage's width.
        let width = if second.is_none() && levels == 4 { entry.second_stage_levels() } else { levels };
        let border = 11 + 9 * u32::from(width);
        if iova >> border != 0 && iova >> border != u64::MAX >> border {
            return None;
        }
        let through = |frames: &Frames, at: u64| match second {
            None => Some(Leaf { to: at & !0xfff, read: true, write: true }),
            Some(second) => self.second_stage(frames, second, at),
        };
        let mut table = entry.first_stage_table().get();
        let mut write = true;
        for level in (0..levels).rev() {
            let at = through(frames, table)?.to + 8 * index(iova, level);
            let next = FirstStageEntry::from_raw(self.see(frames, at));
            if !next.is_present() || !next.us() {
                return None;
            }
            write &= next.rw();
            let leaf = next.is_leaf(level);
            let used = next.with_a(true).with_d(leaf || next.d());
            if let Some(words) = frames.get_mut(&(at / PAGE_SIZE)) {
                words[(at % PAGE_SIZE / 8) as usize] = used.raw();
            }
            if leaf {
                let to = next.address(level).get() + iova % span(level) / PAGE_SIZE * PAGE_SIZE;
                let page = through(frames, to)?;
                return Some(Leaf { to: page.to, read: page.read, write: write && page.write });
            }
            table = next.address(level).get();
        }
        None
    }

    /// Does a descriptor of PASID cache or PASID-based IOTLB; whether the unit accepts it.
    pub(super) fn pasid_descriptor(&mut self, words: [u64; 2], wide: bool) -> bool {
        let cache = words[0] & 0xf == spec::invalidation::kind::PASID_CACHE;
        match self.quirks {
            Quirks::Ignores => return true,
            Quirks::Refuses => return false,
            Quirks::None if self.rtaddr_mode() == 0 || (!cache && !wide) => return false,
            Quirks::None => {}
        }
        if cache {
            let d = PasidCacheInvalidate::from_raw(words);
            self.forget_pasids(d.g(), d.did() as u16, d.pasid() as u32);
        } else {
            let d = PasidIotlbInvalidate::from_raw(words);
            let (did, pasid) = (d.did() as u16, d.pasid() as u32);
            self.done.push(Done::PasidTranslations {
                g: d.g(),
                domain: did,
                pasid,
                page: d.addr(),
                order: d.am(),
            });
            self.buffered.clear();
            let paged = d.g() == pasid_iotlb_granularity::PAGE;
            self.translations.retain(|(domain, tag, page), _| {
                let named = *domain == did && *tag == Some(pasid);
                !(named && (!paged || page >> d.am() == d.addr() >> d.am()))
            });
        }
        true
    }

    fn forget_pasids(&mut self, g: u64, domain: u16, pasid: u32) {
        self.done.push(Done::Pasids { g, domain, pasid });
        self.buffered.clear();
        self.pasids.retain(|(_, p), words| {
            let tag = PasidEntry::from_raw(*words).domain_id().0;
            !match g {
                pasid_cache_granularity::GLOBAL => true,
                pasid_cache_granularity::DOMAIN => tag == domain,
                _ => tag == domain && *p == pasid,
            }
        });
    }

    fn rtaddr_mode(&self) -> u64 {
        RootAddr::from_raw(self.root).ttm()
    }

    pub(super) fn is_scalable(&self) -> bool {
        self.rtaddr_mode() == 1
    }
}
