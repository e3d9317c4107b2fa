//! Opening a handover: foreign data until proven otherwise.
//!
//! The address of the FDT is an allegation, and so is every address behind it. The container's version comes first, then
//! lengths and digest, then the records, each by its own length; unknown kinds are skipped. What comes out is a book whose
//! references all hold; what it says about hardware is checked by the audit, not here.

mod error;
mod interrupts;
mod pasids;
mod records;

pub use error::{OpenError, Part};

use crate::adoptable::NotAdoptable;
use crate::book::{Attached, Book, ContextRun, Domain, Kept, KeptUnit, Region, Storage};
use crate::freeze::MAX_SCRATCH;
use crate::host::{Adoptable, NoMemory, TableMemory};
use crate::mutant::{self, Mutant};
use crate::radix::{self, MapError};
use records::{BODY_WORDS, Body};
use spec::handover::{self, Header, RecordHeader};
use spec::kho::Root;
use spec::xxh64::Hasher;
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr, UnitId};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of an FDT that are looked at: KHO gives it one frame.
const FDT_BYTES: usize = PAGE_SIZE as usize;
/// Largest number of nodes that a preserved-memory map may have.
const MAX_MAP_NODES: u64 = 1 << 18;

/// A handover whose records hold together. Nothing in it has been held against hardware yet.
#[derive(Debug)]
pub struct Opened<'s> {
    pub(crate) book: Book<'s>,
    pub(crate) fdt: PhysAddr,
    map: PhysAddr,
    blob: Extent,
    container: Option<Extent>,
    release: [u8; 64],
    update: u64,
    sealed_at: u64,
    scratch: [Option<Extent>; MAX_SCRATCH],
    skipped: u32,
}

/// Opens the handover whose FDT is alleged to lie at `fdt`.
///
/// # Errors
/// [`OpenError`], the first thing found wrong.
pub fn open<'s, M: TableMemory>(
    memory: &M,
    fdt: PhysAddr,
    storage: Storage<'s>,
) -> Result<Opened<'s>, OpenError> {
    let (map, blob_at, blob_bytes) = read_fdt(memory, fdt)?;
    let header = read_header(memory, blob_at, blob_bytes)?;
    let frames = Extent::new(blob_at.frame(), blob_bytes.div_ceil(PAGE_SIZE));
    let blob = frames.ok_or(OpenError::Length { part: Part::Blob, bytes: blob_bytes })?;
    let mut opened = Opened {
        book: Book::new(storage),
        fdt,
        map,
        blob,
        container: None,
        release: [0; 64],
        update: 0,
        sealed_at: 0,
        scratch: [None; MAX_SCRATCH],
        skipped: 0,
    };
    opened.read_records(memory, blob_at, &header)?;
    if opened.update == 0 {
        return Err(OpenError::NoRelease);
    }
    opened.check_pasids()?;
    opened.check_device_tlbs()?;
    opened.check_apart()?;
    opened.check_tokens()?;
    Ok(opened)
}

/// Map, blob and blob length, as the FDT alleges them.
fn read_fdt<M: TableMemory>(memory: &M, at: PhysAddr) -> Result<(PhysAddr, PhysAddr, u64), OpenError> {
    if !at.is_aligned(PAGE_SIZE) || at.get() == 0 {
        return Err(OpenError::Nowhere(Part::Fdt, at));
    }
    let mut words = [0; FDT_BYTES / 8];
    memory.read_words(at, &mut words).map_err(|e| OpenError::Nowhere(Part::Fdt, e.at))?;
    let root = Root::parse(words.as_bytes()).map_err(OpenError::Kho)?;
    let blob = root.blob(handover::SUBNODE).ok_or(OpenError::NoHandover)?;
    if !blob.data.is_aligned(PAGE_SIZE) {
        return Err(OpenError::Nowhere(Part::Blob, blob.data));
    }
    Ok((root.memory_map(), blob.data, blob.bytes))
}

/// The header, once magic, version, length and digest hold.
fn read_header<M: TableMemory>(memory: &M, at: PhysAddr, bytes: u64) -> Result<Header, OpenError> {
    let nowhere = |e: NoMemory| OpenError::Nowhere(Part::Blob, e.at);
    let mut words = [0; size_of::<Header>() / 8];
    memory.read_words(at, &mut words).map_err(nowhere)?;
    let header = Header::read_from_bytes(words.as_bytes()).map_err(|_| OpenError::NoHandover)?;
    if header.magic != handover::MAGIC {
        return Err(OpenError::Magic(header.magic));
    }
    let unreadable = header.oldest_reader > handover::VERSION || header.version < handover::OLDEST_READABLE;
    if unreadable && !mutant::on(Mutant::VersionLast) {
        return Err(OpenError::Version { needs: header.oldest_reader, reads: handover::VERSION });
    }
    let least = size_of::<Header>() as u64;
    if header.bytes != bytes || bytes % 8 != 0 || bytes < least || bytes > handover::MAX_BYTES {
        return Err(OpenError::Length { part: Part::Blob, bytes: header.bytes });
    }
    let mut hasher = Hasher::new(0);
    hasher.update(Header { digest: 0, ..header }.as_bytes());
    for offset in (least..bytes).step_by(8) {
        hasher.update_words(&[memory.read(at.plus(offset)).map_err(nowhere)?]);
    }
    let found = hasher.finish();
    if found != header.digest {
        return Err(OpenError::Digest { sealed: header.digest, found });
    }
    Ok(header)
}

impl Opened<'_> {
    fn read_records<M: TableMemory>(
        &mut self,
        memory: &M,
        at: PhysAddr,
        header: &Header,
    ) -> Result<(), OpenError> {
        let mut offset = size_of::<Header>() as u64;
        for ordinal in 0..header.records {
            let left = header.bytes - offset;
            let record = read_record_header(memory, at.plus(offset), left)?;
            let mut body = Body { ordinal, kind: record.kind, words: [0; BODY_WORDS] };
            let length = record.bytes as usize - size_of::<RecordHeader>();
            if handover::least_body(record.kind).is_some_and(|least| length < least) {
                return Err(body.wrong("shorter than any release writes it"));
            }
            let known = (length / 8).min(BODY_WORDS);
            memory
                .read_words(at.plus(offset + 8), &mut body.words[..known])
                .map_err(|e| OpenError::Nowhere(Part::Record, e.at))?;
            self.take(&body)?;
            offset += u64::from(record.bytes);
        }
        if offset != header.bytes {
            return Err(OpenError::Length { part: Part::Blob, bytes: header.bytes });
        }
        Ok(())
    }

    /// That every device that may keep translations is described.
    fn check_device_tlbs(&self) -> Result<(), OpenError> {
        let lacks = |k: &Kept| k.entry.allows_device_tlb() && k.device_tlb.is_none();
        match self.book.requesters.find(lacks) {
            Some((_, kept)) => Err(OpenError::NoDeviceTlb(kept.requester)),
            None => Ok(()),
        }
    }

    /// That no frame is used for two things. Sorts: many scattered runs take little longer than few.
    fn check_apart(&mut self) -> Result<(), OpenError> {
        let book = &mut self.book;
        if mutant::on(Mutant::Quadratic) {
            mutant::compare_all(book)?;
        }
        book.regions.sort();
        book.tables.sort();
        if let Some(region) = book.regions.first_overlap().and_then(|i| book.regions.get(i + 1)) {
            return Err(OpenError::Overlap(region.extent));
        }
        for index in 0..book.tables.len() {
            let Some(run) = book.tables.get(index).copied() else { continue };
            let nested = book.domains.get(run.domain).is_some_and(|d| d.parent.is_some());
            let in_region = nested && book.in_memory_region(run.extent);
            book.tables.get_mut(index).into_iter().for_each(|t| t.in_region = in_region);
        }
        if let Some(run) = book.tables.first_overlap().and_then(|i| book.tables.get(i + 1)) {
            return Err(OpenError::Overlap(run.extent));
        }
        let count = book.collect_runs(self.container)?;
        for pair in book.runs[..count].windows(2) {
            if let [Some(a), Some(b)] = pair {
                if a.overlaps(*b) {
                    return Err(OpenError::Overlap(*b));
                }
            }
        }
        Ok(())
    }

    /// That no token names two things. Leaves the regions ordered by token: that is how they are retrieved.
    fn check_tokens(&mut self) -> Result<(), OpenError> {
        let book = &mut self.book;
        book.regions.sort_by_key(|r| r.token);
        let regions = || book.regions.iter().map(|r| r.token);
        if let Some((token, _)) = regions().zip(regions().skip(1)).find(|(a, b)| a == b) {
            return Err(OpenError::TokenTwice(token));
        }
        let mut users =
            book.domains.iter().map(|(_, d)| d.token).chain(book.requesters.iter().map(|(_, k)| k.token));
        match users.find(|token| book.region_named(*token).is_some()) {
            Some(token) => Err(OpenError::TokenTwice(token)),
            None => Ok(()),
        }
    }

    /// Release string of the kernel that wrote the handover.
    #[must_use]
    pub fn release(&self) -> &str {
        let text = self.release.split(|b| *b == 0).next().unwrap_or_default();
        core::str::from_utf8(text).unwrap_or("(not text)")
    }

    /// Ordinal of the update, from 1.
    #[must_use]
    pub fn update(&self) -> u64 {
        self.update
    }

    /// When the handover was sealed, in nanoseconds.
    #[must_use]
    pub fn sealed_at(&self) -> u64 {
        self.sealed_at
    }

    /// Records of kinds that this release does not know.
    #[must_use]
    pub fn skipped(&self) -> u32 {
        self.skipped
    }

    /// The memory that the outgoing kernel set aside for the incoming one.
    pub fn scratch(&self) -> impl Iterator<Item = Extent> + '_ {
        self.scratch.iter().flatten().copied()
    }

    /// All frames of the handover itself, where it says so.
    #[must_use]
    pub fn container(&self) -> Option<Extent> {
        self.container
    }

    /// The frames that hold the records.
    #[must_use]
    pub fn blob(&self) -> Extent {
        self.blob
    }

    /// Calls `f` with every preserved run, in no particular order: to be reserved before anything else is allocated.
    ///
    /// # Errors
    /// [`MapError`]; `f` may have been called for a part, and nothing may be adopted.
    pub fn for_each_preserved<M: TableMemory>(
        &self,
        memory: &M,
        f: &mut dyn FnMut(Extent),
    ) -> Result<(), MapError> {
        radix::for_each_preserved(memory, self.map, MAX_MAP_NODES, f)
    }

    /// Every region handed over.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.book.regions.iter()
    }

    /// Every domain handed over.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.book.domains.iter().map(|(_, d)| d)
    }

    /// Every requester handed over, with its unit.
    pub fn requesters(&self) -> impl Iterator<Item = (UnitId, &Kept)> {
        let unit = |k: &Kept| self.book.units.get(k.unit).map(|u| u.id).unwrap_or_default();
        self.book.requesters.iter().map(move |(_, k)| (unit(k), k))
    }

    /// Every PASID handed over with the requester under `token`; in legacy mode there is one, 0.
    pub fn pasids(&self, token: crate::book::Token) -> impl Iterator<Item = &Attached> {
        let index = self.book.requesters.find(|k| k.token == token).map(|(i, _)| i);
        self.book.attachments.iter().map(|(_, a)| a).filter(move |a| Some(a.requester) == index)
    }

    /// That a kernel which can adopt `able` can adopt this. A kernel that cannot fails closed: see
    /// [`crate::block_all`].
    ///
    /// # Errors
    /// The first thing that it cannot adopt.
    pub fn adoptable_by(&self, able: &Adoptable) -> Result<(), NotAdoptable> {
        self.book.adoptable_by(able)
    }

    /// Every unit that was left running, with its root table.
    pub fn units(&self) -> impl Iterator<Item = &KeptUnit> {
        self.book.units.iter().map(|(_, u)| u)
    }

    /// Every context table that stays, with its unit: the driver's from adoption on.
    pub fn context_tables(&self) -> impl Iterator<Item = (UnitId, &ContextRun)> {
        let unit = |c: &ContextRun| self.book.units.get(c.unit).map(|u| u.id).unwrap_or_default();
        self.book.contexts.iter().map(move |(_, c)| (unit(c), c))
    }

    /// Calls `f` with every unit that was left running.
    pub fn for_each_unit(&self, f: &mut dyn FnMut(UnitId)) {
        self.book.units.iter().for_each(|(_, u)| f(u.id));
    }

    /// Whether `frame` holds a table of the handover: what the next step will read.
    #[must_use]
    pub fn is_table(&self, frame: Frame) -> bool {
        self.book.tables.overlapping(Extent::one(frame)).is_some()
            || self.book.unit_table_in(Extent::one(frame)).is_some()
    }
}

fn read_record_header<M: TableMemory>(
    memory: &M,
    at: PhysAddr,
    left: u64,
) -> Result<RecordHeader, OpenError> {
    if left < size_of::<RecordHeader>() as u64 {
        return Err(OpenError::Length { part: Part::Record, bytes: left });
    }
    let word = memory.read(at).map_err(|e| OpenError::Nowhere(Part::Record, e.at))?;
    let record = RecordHeader::read_from_bytes(word.as_bytes())
        .map_err(|_| OpenError::Length { part: Part::Record, bytes: left })?;
    let bytes = u64::from(record.bytes);
    if bytes < size_of::<RecordHeader>() as u64 || bytes % 8 != 0 || bytes > left {
        return Err(OpenError::Length { part: Part::Record, bytes });
    }
    Ok(record)
}
