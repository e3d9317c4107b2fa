//! Opening a handover: foreign data until proven otherwise.
//!
//! The address of the FDT is an allegation, and so is every address behind it. The container's version comes first, then
//! lengths and digest, then the records, each by its own length; unknown kinds are skipped. What comes out is a book whose
//! references all hold; what it says about hardware is checked by the audit, not here.

mod error;
mod interrupts;

pub use error::{OpenError, Part};

use crate::book::{
    AliasOf, Book, ContextRun, Domain, DomainState, Kept, KeptUnit, Region, RegionKind, Storage, TableRun,
    Token,
};
use crate::freeze::MAX_SCRATCH;
use crate::host::{NoMemory, TableMemory};
use crate::radix::{self, MapError};
use spec::context::ContextEntry;
use spec::handover::{self, Header, RecordHeader, kind};
use spec::kho::Root;
use spec::xxh64::Hasher;
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr, Requester, Segment, SourceId, UnitId};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of an FDT that are looked at: KHO gives it one frame.
const FDT_BYTES: usize = PAGE_SIZE as usize;
/// Words of the largest record body that this release knows.
const BODY_WORDS: usize = 11;
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
    if header.oldest_reader > handover::VERSION || header.version < handover::OLDEST_READABLE {
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

/// The body of one record, zero-extended or cut to what this release knows.
struct Body {
    ordinal: u32,
    kind: u16,
    words: [u64; BODY_WORDS],
}

impl Body {
    fn parse<T: FromBytes>(&self) -> Result<T, OpenError> {
        T::read_from_prefix(self.words.as_bytes()).map(|(t, _)| t).map_err(|_| self.wrong("too short"))
    }

    fn wrong(&self, what: &'static str) -> OpenError {
        OpenError::Record { ordinal: self.ordinal, kind: self.kind, what }
    }

    fn extent(&self, start: u64, bytes: u64) -> Result<Extent, OpenError> {
        Extent::from_bytes(PhysAddr::new(start), bytes).ok_or(self.wrong("not a run of whole frames"))
    }

    fn table(&self, at: u64) -> Result<PhysAddr, OpenError> {
        self.extent(at, PAGE_SIZE).map(Extent::start)
    }
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

    /// That no frame is used for two things. Sorts: many scattered runs take little longer than few.
    fn check_apart(&mut self) -> Result<(), OpenError> {
        let book = &mut self.book;
        book.regions.sort();
        book.tables.sort();
        if let Some(region) = book.regions.first_overlap().and_then(|i| book.regions.get(i + 1)) {
            return Err(OpenError::Overlap(region.extent));
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

    /// Takes one record into the book.
    fn take(&mut self, body: &Body) -> Result<(), OpenError> {
        match body.kind {
            kind::RELEASE => {
                let record: handover::Release = body.parse()?;
                if self.update != 0 || record.update == 0 {
                    return Err(body.wrong("a second release, or update 0"));
                }
                (self.release, self.update, self.sealed_at) =
                    (record.release, record.update, record.sealed_at);
                Ok(())
            }
            kind::SCRATCH => {
                let record: handover::Scratch = body.parse()?;
                let slot = self.scratch.iter_mut().find(|s| s.is_none());
                *slot.ok_or(body.wrong("too many scratch areas"))? =
                    Some(body.extent(record.start, record.bytes)?);
                Ok(())
            }
            kind::CONTAINER => self.take_container(body),
            kind::UNIT => self.take_unit(body),
            kind::CONTEXT_TABLE => self.take_context(body),
            kind::REGION => self.take_region(body),
            kind::DOMAIN => self.take_domain(body),
            kind::DOMAIN_TABLES => self.take_tables(body),
            kind::DOMAIN_ID => self.check_domain_id(body),
            kind::REQUESTER => self.take_requester(body),
            kind::ALIAS => self.take_alias(body),
            kind::INTERRUPT_TABLE => self.take_interrupt_table(body),
            kind::INTERRUPT_ENTRY => self.check_interrupt_entry(body),
            _ => {
                self.skipped += 1;
                Ok(())
            }
        }
    }

    fn take_container(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Container = body.parse()?;
        let frames = body.extent(record.start, record.bytes)?;
        if self.container.is_some() || !frames.covers(self.blob) || !frames.contains(self.fdt.frame()) {
            return Err(body.wrong("listed twice, or not where the handover lies"));
        }
        self.container = Some(frames);
        Ok(())
    }

    fn take_unit(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Unit = body.parse()?;
        let id = UnitId { segment: Segment(record.segment), register_base: record.register_base };
        let root = spec::regs::RootAddr::from_raw(record.root);
        if self.book.units.find(|u| u.id == id).is_some() {
            return Err(body.wrong("the unit is listed twice"));
        }
        if root.ttm() != 0 {
            return Err(body.wrong("the unit is in a mode that this release does not adopt"));
        }
        self.book.units.insert(KeptUnit {
            id,
            root: body.table(root.table().get())?,
            interrupts: None,
            requesters: 0,
        })?;
        Ok(())
    }

    fn take_context(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::ContextTable = body.parse()?;
        let unit = self.book.units.at_ordinal(record.unit).ok_or(body.wrong("no such unit"))?;
        if record.half != 0 || self.book.context_of(unit, record.bus).is_some() {
            return Err(body.wrong("the bus is listed twice, or in halves"));
        }
        let table = body.table(record.table)?;
        self.book.contexts.insert(ContextRun { unit, bus: record.bus, table, users: 0 })?;
        Ok(())
    }

    fn take_region(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Region = body.parse()?;
        let extent = body.extent(record.start, record.bytes)?;
        let kind = match record.kind {
            handover::region_kind::MEMORY => RegionKind::Memory,
            handover::region_kind::DEVICE => RegionKind::Device,
            _ => return Err(body.wrong("a region of unknown kind")),
        };
        if record.token == 0 {
            return Err(body.wrong("a token that is zero"));
        }
        // Overlaps and tokens used twice show when all regions are in order.
        self.book.regions.push(Region::new(Token(record.token), extent, kind))?;
        Ok(())
    }

    fn take_domain(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Domain = body.parse()?;
        let token = self.token(body, record.token)?;
        if record.format != handover::domain_format::SECOND_STAGE || !(3..=5).contains(&record.levels) {
            return Err(body.wrong("tables of a format or depth that this release does not know"));
        }
        let top_table = body.table(record.top_table)?;
        if self.book.domains.find(|d| d.top_table == top_table).is_some() {
            return Err(body.wrong("the top table is another domain's"));
        }
        let state = DomainState::Kept;
        self.book.domains.insert(Domain { token, top_table, levels: record.levels, state })?;
        Ok(())
    }

    fn take_tables(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::DomainTables = body.parse()?;
        let domain = self.book.domains.at_ordinal(record.domain).ok_or(body.wrong("no such domain"))?;
        let extent = body.extent(record.start, record.bytes)?;
        self.book.tables.push(TableRun { domain, extent })?;
        Ok(())
    }

    /// Domain ids stand in the context entries too; here only the references are checked.
    fn check_domain_id(&self, body: &Body) -> Result<(), OpenError> {
        let record: handover::DomainIdUse = body.parse()?;
        let known = self.book.domains.at_ordinal(record.domain).is_some()
            && self.book.units.at_ordinal(record.unit).is_some();
        if known { Ok(()) } else { Err(body.wrong("no such domain or unit")) }
    }

    fn take_requester(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::RequesterRecord = body.parse()?;
        let token = self.token(body, record.token)?;
        let unit = self.book.units.at_ordinal(record.unit).ok_or(body.wrong("no such unit"))?;
        let domain = self.book.domains.at_ordinal(record.domain).ok_or(body.wrong("no such domain"))?;
        let requester = Requester::new(Segment(record.segment), SourceId::from_raw(record.source));
        if self.book.units.get(unit).is_none_or(|u| u.id.segment != requester.segment) {
            return Err(body.wrong("the requester's segment is not its unit's"));
        }
        if self.book.is_kept(requester) {
            return Err(body.wrong("the requester is listed twice"));
        }
        let entry = ContextEntry::from_raw(record.context);
        let attached = self.book.domains.get(domain).is_some_and(|d| d.top_table == entry.top_table());
        if !entry.present() || !attached {
            return Err(body.wrong("the context entry does not lead to the requester's domain"));
        }
        let kept = Kept { token, requester, entry, unit, domain, retrieved: false };
        self.check_shared(body, &kept, requester.source)?;
        self.book.requesters.insert(kept)?;
        if let Some(unit) = self.book.units.get_mut(unit) {
            unit.requesters += 1;
        }
        self.count_context(body, unit, requester.source)
    }

    fn take_alias(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Alias = body.parse()?;
        let requester = self.book.requesters.at_ordinal(record.requester);
        let requester = requester.ok_or(body.wrong("no such requester"))?;
        let source = SourceId::from_raw(record.source);
        let Some(kept) = self.book.requesters.get(requester).copied() else { return Ok(()) };
        let twice = self.book.aliases.find(|a| a.requester == requester && a.source == source).is_some();
        if twice || source == kept.requester.source {
            return Err(body.wrong("the alias is listed twice"));
        }
        self.check_shared(body, &kept, source)?;
        self.book.aliases.insert(AliasOf { requester, source })?;
        self.count_context(body, kept.unit, source)
    }

    /// Requesters that share a source-id share its entry: unit, domain and all.
    fn check_shared(&self, body: &Body, kept: &Kept, source: SourceId) -> Result<(), OpenError> {
        let same = |k: &Kept| (k.unit, k.domain, k.entry) == (kept.unit, kept.domain, kept.entry);
        match self.book.owners(kept.requester.segment, source).all(same) {
            true => Ok(()),
            false => Err(body.wrong("it shares a source-id with a requester of another domain")),
        }
    }

    /// A source-id needs the context table of its bus.
    fn count_context(&mut self, body: &Body, unit: usize, source: SourceId) -> Result<(), OpenError> {
        let index = self.book.context_of(unit, source.bus()).map(|(i, _)| i);
        let run = index.and_then(|i| self.book.contexts.get_mut(i));
        run.ok_or(body.wrong("the bus has no context table in the handover"))?.users += 1;
        Ok(())
    }

    fn token(&self, body: &Body, raw: u64) -> Result<Token, OpenError> {
        let token = Token(raw);
        if raw == 0 || self.book.names_user(token) {
            return Err(body.wrong("a token that is zero or used twice"));
        }
        Ok(token)
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
