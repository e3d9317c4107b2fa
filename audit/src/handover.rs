//! Reading the container: the KHO tree, then our records, as foreign bytes.
//!
//! [`Handover::locate`] reads the tree and the records' header (magic and version first, then bounds).
//! [`Handover::verify`] proves the digest, every record's length and the counts; the inspector may show a handover that
//! fails it. [`Handover::records`] iterates. Nothing here follows a pointer inside a record.

use crate::error::Unreadable;
use crate::image::{self, FRAME_WORDS, Image};
use core::mem::size_of;
use spec::handover::{
    Alias, Attachment, Container, ContextTable, DeviceTlb, Domain, DomainIdUse, DomainTables, Header,
    InterruptEntry, InterruptTable, MAGIC, MAX_BYTES, OLDEST_READABLE, PasidTables, RecordHeader, Region,
    Release, RequesterRecord, SUBNODE, Scratch, Unit, VERSION, kind, least_body,
};
use spec::kho::Root;
use spec::xxh64::Hasher;
use spec::{PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, IntoBytes};

const HEADER_BYTES: u64 = size_of::<Header>() as u64;
const RECORD_HEADER_BYTES: u64 = size_of::<RecordHeader>() as u64;
/// Index of the word that holds the digest.
const DIGEST_WORD: u64 = core::mem::offset_of!(Header, digest) as u64 / 8;

/// One record with its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// Who hands over.
    Release(Release),
    /// Memory that the incoming kernel boots in.
    Scratch(Scratch),
    /// A unit that stays on.
    Unit(Unit),
    /// A context table that stays.
    ContextTable(ContextTable),
    /// A region.
    Region(Region),
    /// A domain.
    Domain(Domain),
    /// A run of a domain's tables.
    DomainTables(DomainTables),
    /// The id of a domain on a unit.
    DomainId(DomainIdUse),
    /// A requester.
    Requester(RequesterRecord),
    /// Another source id of a requester.
    Alias(Alias),
    /// The frames of the handover itself.
    Container(Container),
    /// A run of a requester's PASID structures.
    PasidTables(PasidTables),
    /// One PASID of a requester.
    Attachment(Attachment),
    /// A device that keeps translations.
    DeviceTlb(DeviceTlb),
    /// A unit's interrupt table.
    InterruptTable(InterruptTable),
    /// An entry of it that stays.
    InterruptEntry(InterruptEntry),
    /// A kind that this reader does not know.
    Unknown {
        /// The kind.
        kind: u16,
    },
}

/// A record and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Address of the record's header.
    pub at: PhysAddr,
    /// Length in bytes, header included.
    pub bytes: u64,
    /// The content.
    pub record: Record,
}

/// How many records of each kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// [`Release`] records.
    pub releases: u64,
    /// [`Scratch`] records.
    pub scratch: u64,
    /// [`Unit`] records.
    pub units: u64,
    /// [`ContextTable`] records.
    pub context_tables: u64,
    /// [`Region`] records.
    pub regions: u64,
    /// [`Domain`] records.
    pub domains: u64,
    /// [`DomainTables`] records.
    pub domain_tables: u64,
    /// [`DomainIdUse`] records.
    pub domain_ids: u64,
    /// [`RequesterRecord`] records.
    pub requesters: u64,
    /// [`Alias`] records.
    pub aliases: u64,
    /// [`Container`] records.
    pub containers: u64,
    /// [`PasidTables`] records.
    pub pasid_tables: u64,
    /// [`Attachment`] records.
    pub attachments: u64,
    /// [`DeviceTlb`] records.
    pub device_tlbs: u64,
    /// [`InterruptTable`] records.
    pub interrupt_tables: u64,
    /// [`InterruptEntry`] records.
    pub interrupt_entries: u64,
    /// Records of kinds that this reader does not know.
    pub unknown: u64,
    /// Frames that [`DomainTables`] records declare together; saturates.
    pub table_frames: u64,
    /// Frames that [`PasidTables`] records declare together; saturates.
    pub pasid_frames: u64,
}

impl Counts {
    /// Takes one record in.
    fn add(&mut self, record: &Record) {
        let count = match record {
            Record::Release(_) => &mut self.releases,
            Record::Scratch(_) => &mut self.scratch,
            Record::Unit(_) => &mut self.units,
            Record::ContextTable(_) => &mut self.context_tables,
            Record::Region(_) => &mut self.regions,
            Record::Domain(_) => &mut self.domains,
            Record::DomainTables(run) => {
                self.table_frames = self.table_frames.saturating_add(run.bytes / PAGE_SIZE);
                &mut self.domain_tables
            }
            Record::DomainId(_) => &mut self.domain_ids,
            Record::Requester(_) => &mut self.requesters,
            Record::Alias(_) => &mut self.aliases,
            Record::Container(_) => &mut self.containers,
            Record::PasidTables(run) => {
                self.pasid_frames = self.pasid_frames.saturating_add(run.bytes / PAGE_SIZE);
                &mut self.pasid_tables
            }
            Record::Attachment(_) => &mut self.attachments,
            Record::DeviceTlb(_) => &mut self.device_tlbs,
            Record::InterruptTable(_) => &mut self.interrupt_tables,
            Record::InterruptEntry(_) => &mut self.interrupt_entries,
            Record::Unknown { .. } => &mut self.unknown,
        };
        *count = count.saturating_add(1);
    }
}

/// A handover in a memory image.
pub struct Handover<'i, I: ?Sized> {
    image: &'i I,
    fdt: PhysAddr,
    map: PhysAddr,
    start: PhysAddr,
    header: Header,
}

// Without a demand on the image, which a derived implementation would make.
impl<I: ?Sized> core::fmt::Debug for Handover<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { image: _, fdt, map, start, header } = self;
        f.debug_struct("Handover")
            .field("fdt", fdt)
            .field("map", map)
            .field("start", start)
            .field("header", header)
            .finish()
    }
}
impl<I: ?Sized> Clone for Handover<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<I: ?Sized> Copy for Handover<'_, I> {}

impl<'i, I: Image + ?Sized> Handover<'i, I> {
    /// Reads the KHO tree at `fdt` and the header of our records, and checks version and bounds.
    ///
    /// # Errors
    /// [`Unreadable`]: what is wrong with the tree or the header, and where.
    pub fn locate(image: &'i I, fdt: PhysAddr) -> Result<Self, Unreadable> {
        let root = read_fdt(image, fdt)?;
        let start = root.records;
        let part = "records";
        if !start.is_aligned(8) || start.checked_add(root.bytes).is_none() {
            return Err(Unreadable::Misplaced { part, at: start });
        }
        if root.bytes < HEADER_BYTES {
            return Err(Unreadable::Length { at: start, bytes: root.bytes, room: MAX_BYTES });
        }
        let header: Header = image::structure(image, start).map_err(Unreadable::missing(part))?;
        check_header(&header, start, root.bytes)?;
        Ok(Self { image, fdt, map: root.map, start, header })
    }

    /// Proves the digest and the counts, and that every record lies within the records.
    ///
    /// # Errors
    /// [`Unreadable`]: the first thing found wrong.
    pub fn verify(&self) -> Result<Counts, Unreadable> {
        let found = self.digest()?;
        if found != self.header.digest {
            return Err(Unreadable::Digest { at: self.start, sealed: self.header.digest, found });
        }
        let counts = self.count()?;
        if counts.releases != 1 {
            return Err(Unreadable::Release { at: self.start, found: counts.releases });
        }
        Ok(counts)
    }

    /// Counts the records of each kind.
    ///
    /// # Errors
    /// [`Unreadable`]: a record's length is wrong, or the header's count lies.
    pub fn count(&self) -> Result<Counts, Unreadable> {
        let mut counts = Counts::default();
        let mut found = 0u64;
        for located in self.records() {
            counts.add(&located?.record);
            found = found.saturating_add(1);
        }
        let claimed = u64::from(self.header.records);
        if found == claimed { Ok(counts) } else { Err(Unreadable::Count { at: self.start, claimed, found }) }
    }

    /// XXH64 of the records as they are now, the digest field taken as zero.
    ///
    /// # Errors
    /// [`Unreadable::Missing`].
    pub fn digest(&self) -> Result<u64, Unreadable> {
        let mut hasher = Hasher::new(0);
        let mut chunk = [0u64; 64];
        let words = self.header.bytes / 8;
        let mut done = 0u64;
        while done < words {
            let length = usize::try_from(words.saturating_sub(done)).unwrap_or(usize::MAX).min(chunk.len());
            let piece = chunk.get_mut(..length).unwrap_or_default();
            let at = self.start.plus(done.saturating_mul(8));
            self.image.read(at, piece).map_err(Unreadable::missing("records"))?;
            let digest = DIGEST_WORD.checked_sub(done).and_then(|index| usize::try_from(index).ok());
            if let Some(word) = digest.and_then(|index| piece.get_mut(index)) {
                *word = 0;
            }
            hasher.update_words(piece);
            done = done.saturating_add(length as u64).max(done.saturating_add(1));
        }
        Ok(hasher.finish())
    }

    /// The records in the order written. The first error ends the iteration.
    #[must_use]
    pub fn records(&self) -> Records<'i, I> {
        Records {
            image: self.image,
            at: self.start.plus(HEADER_BYTES),
            room: self.header.bytes.saturating_sub(HEADER_BYTES),
        }
    }

    /// The record at this address, which an iteration gave before.
    pub(crate) fn record_at(&self, at: PhysAddr) -> Option<Record> {
        let skipped = at.get().checked_sub(self.start.get())?;
        let room = self.header.bytes.checked_sub(skipped)?;
        Records { image: self.image, at, room }.next()?.ok().map(|located| located.record)
    }

    /// Address of the KHO tree.
    #[must_use]
    pub const fn fdt(&self) -> PhysAddr {
        self.fdt
    }
    /// Address of the root of the map of preserved memory, unchecked.
    #[must_use]
    pub const fn map(&self) -> PhysAddr {
        self.map
    }
    /// Address of the records.
    #[must_use]
    pub const fn start(&self) -> PhysAddr {
        self.start
    }
    /// The header of the records.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }
}

/// Iterator over the records of a handover.
pub struct Records<'i, I: ?Sized> {
    image: &'i I,
    at: PhysAddr,
    /// Bytes left.
    room: u64,
}

impl<I: Image + ?Sized> Iterator for Records<'_, I> {
    type Item = Result<Located, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        // Each round takes at least a record header off `room`.
        if self.room == 0 {
            return None;
        }
        let result = self.read_one();
        match result {
            Ok(located) => {
                self.at = self.at.plus(located.bytes);
                self.room = self.room.saturating_sub(located.bytes);
            }
            Err(_) => self.room = 0,
        }
        Some(result)
    }
}

impl<I: Image + ?Sized> Records<'_, I> {
    fn read_one(&self) -> Result<Located, Unreadable> {
        let at = self.at;
        if self.room < RECORD_HEADER_BYTES {
            return Err(Unreadable::Length { at, bytes: RECORD_HEADER_BYTES, room: self.room });
        }
        let header: RecordHeader =
            image::structure(self.image, at).map_err(Unreadable::missing("records"))?;
        let bytes = u64::from(header.bytes);
        if bytes < RECORD_HEADER_BYTES || bytes > self.room || bytes % 8 != 0 {
            return Err(Unreadable::Length { at, bytes, room: self.room });
        }
        let record = match header.kind {
            kind::RELEASE => Record::Release(self.body(header.kind, bytes)?),
            kind::SCRATCH => Record::Scratch(self.body(header.kind, bytes)?),
            kind::UNIT => Record::Unit(self.body(header.kind, bytes)?),
            kind::CONTEXT_TABLE => Record::ContextTable(self.body(header.kind, bytes)?),
            kind::REGION => Record::Region(self.body(header.kind, bytes)?),
            kind::DOMAIN => Record::Domain(self.body(header.kind, bytes)?),
            kind::DOMAIN_TABLES => Record::DomainTables(self.body(header.kind, bytes)?),
            kind::DOMAIN_ID => Record::DomainId(self.body(header.kind, bytes)?),
            kind::REQUESTER => Record::Requester(self.body(header.kind, bytes)?),
            kind::ALIAS => Record::Alias(self.body(header.kind, bytes)?),
            kind::CONTAINER => Record::Container(self.body(header.kind, bytes)?),
            kind::PASID_TABLES => Record::PasidTables(self.body(header.kind, bytes)?),
            kind::ATTACHMENT => Record::Attachment(self.body(header.kind, bytes)?),
            kind::DEVICE_TLB => Record::DeviceTlb(self.body(header.kind, bytes)?),
            kind::INTERRUPT_TABLE => Record::InterruptTable(self.body(header.kind, bytes)?),
            kind::INTERRUPT_ENTRY => Record::InterruptEntry(self.body(header.kind, bytes)?),
            kind => Record::Unknown { kind },
        };
        Ok(Located { at, bytes, record })
    }

    fn body<T: FromBytes>(&self, kind: u16, bytes: u64) -> Result<T, Unreadable> {
        // A record may be longer than the fields that this reader knows, and as short as the first release wrote it.
        let length = bytes.saturating_sub(RECORD_HEADER_BYTES);
        let least = least_body(kind).unwrap_or(size_of::<T>());
        if length < least as u64 {
            return Err(Unreadable::Length { at: self.at, bytes, room: self.room });
        }
        image::structure_of(self.image, self.at.plus(RECORD_HEADER_BYTES), length)
            .map_err(Unreadable::missing("records"))
    }
}

/// What the KHO tree says.
struct Tree {
    map: PhysAddr,
    records: PhysAddr,
    bytes: u64,
}

fn read_fdt<I: Image + ?Sized>(image: &I, at: PhysAddr) -> Result<Tree, Unreadable> {
    let part = "KHO tree";
    if !at.is_aligned(8) || at.checked_add(PAGE_SIZE).is_none() {
        return Err(Unreadable::Misplaced { part, at });
    }
    let first = image::word(image, at).map_err(Unreadable::missing(part))?;
    // Big-endian: magic, then the total length.
    let [_, _, _, _, length @ ..] = first.to_ne_bytes();
    let bytes = u64::from(u32::from_be_bytes(length));
    if bytes > PAGE_SIZE {
        return Err(Unreadable::FdtTooLong { at, bytes });
    }
    let mut page = [0u64; FRAME_WORDS];
    let words = usize::try_from(bytes.div_ceil(8)).unwrap_or(FRAME_WORDS).max(1);
    let page = page.get_mut(..words).unwrap_or_default();
    image.read(at, page).map_err(Unreadable::missing(part))?;
    let root = Root::parse(page.as_bytes()).map_err(|error| Unreadable::Kho { at, error })?;
    let blob = root.blob(SUBNODE).ok_or(Unreadable::NoRecords { at })?;
    Ok(Tree { map: root.memory_map(), records: blob.data, bytes: blob.bytes })
}

/// Magic and version before anything else, then bounds.
fn check_header(header: &Header, at: PhysAddr, room: u64) -> Result<(), Unreadable> {
    if header.magic != MAGIC {
        return Err(Unreadable::Magic { at });
    }
    let (version, oldest_reader) = (header.version, header.oldest_reader);
    if version < OLDEST_READABLE || oldest_reader > VERSION {
        return Err(Unreadable::Version { at, version, oldest_reader });
    }
    let bytes = header.bytes;
    if bytes < HEADER_BYTES || bytes % 8 != 0 || bytes > room || bytes > MAX_BYTES {
        return Err(Unreadable::Length { at, bytes, room: room.min(MAX_BYTES) });
    }
    Ok(())
}
