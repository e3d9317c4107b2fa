//! Writing the handover's records.
//!
//! Records are emitted in an order in which every reference points backwards. The same emission runs twice: once to
//! learn the length, once into memory with the digest taken on the way.

use crate::book::{Book, RegionKind, Stage};
use crate::digest;
use crate::host::{NoMemory, TableMemory};
use crate::interrupts;
use crate::mode::Context;
use spec::handover::{self, Header, RecordHeader, domain_format, kind, pasid_tables_kind};
use spec::xxh64::Hasher;
use spec::{Extent, PhysAddr};
use zerocopy::{Immutable, IntoBytes};

/// What of a handover does not stand in the book.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) release: &'a str,
    pub(crate) update: u64,
    pub(crate) sealed_at: u64,
    pub(crate) scratch: &'a [Extent],
    /// The frames of the handover itself; any before they are allocated.
    pub(crate) container: Extent,
}

/// A unit's registers at the seal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registers {
    pub(crate) cap: u64,
    pub(crate) ecap: u64,
    pub(crate) root: u64,
}

impl Registers {
    /// For a dry run, where the content does not matter.
    pub(crate) const ZERO: Self = Self { cap: 0, ecap: 0, root: 0 };
}

/// Takes the words of a blob, one after the other.
type Sink<'a> = dyn FnMut(u64) -> Result<(), NoMemory> + 'a;

/// Counts the words and records of an emission.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Length {
    pub(crate) words: u64,
    pub(crate) records: u32,
}

/// Emits every record into `sink`; says how much it was.
pub(crate) fn emit<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    about: &About<'_>,
    registers: &dyn Fn(usize) -> Registers,
    sink: &mut Sink<'_>,
) -> Result<Length, NoMemory> {
    let mut out = Emitter { sink, length: Length::default() };
    let mut release = [0; 64];
    let longest = about.release.len().min(release.len() - 1);
    let kept = (0..=longest).rev().find(|i| about.release.is_char_boundary(*i)).unwrap_or(0);
    release[..kept].copy_from_slice(&about.release.as_bytes()[..kept]);
    let (update, sealed_at) = (about.update, about.sealed_at);
    out.record(kind::RELEASE, &handover::Release { update, release, sealed_at })?;
    let (start, bytes) = (about.container.start().get(), about.container.bytes());
    out.record(kind::CONTAINER, &handover::Container { start, bytes })?;
    for run in about.scratch {
        out.record(kind::SCRATCH, &handover::Scratch { start: run.start().get(), bytes: run.bytes() })?;
    }
    units(memory, book, registers, &mut out)?;
    for region in book.regions.iter() {
        let kind = match region.kind {
            RegionKind::Memory => handover::region_kind::MEMORY,
            RegionKind::Device => handover::region_kind::DEVICE,
        };
        let (start, bytes) = (region.extent.start().get(), region.extent.bytes());
        let record = handover::Region { token: region.token.0, start, bytes, kind, reserved: 0 };
        out.record(self::kind::REGION, &record)?;
    }
    domains(memory, book, &mut out)?;
    requesters(book, &mut out)?;
    pasids(book, &mut out)?;
    interrupts(memory, book, &mut out)?;
    Ok(out.length)
}

fn units<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    registers: &dyn Fn(usize) -> Registers,
    out: &mut Emitter<'_, '_>,
) -> Result<(), NoMemory> {
    for (index, unit) in book.units.iter() {
        let seen = registers(index);
        let record = handover::Unit {
            register_base: unit.id.register_base,
            cap: seen.cap,
            ecap: seen.ecap,
            root: seen.root,
            digest: digest::unit(memory, book, index)?,
            segment: unit.id.segment.0,
            reserved0: [0; 3],
            reserved1: [0; 2],
        };
        out.record(kind::UNIT, &record)?;
    }
    for (_, run) in book.contexts.iter() {
        let (table, unit) = (run.table.get(), book.units.ordinal(run.unit));
        let record = handover::ContextTable { table, unit, bus: run.bus, half: run.half, reserved: 0 };
        out.record(kind::CONTEXT_TABLE, &record)?;
    }
    Ok(())
}

fn domains<M: TableMemory>(memory: &M, book: &Book<'_>, out: &mut Emitter<'_, '_>) -> Result<(), NoMemory> {
    for (index, domain) in book.domains.iter() {
        let (digest, table_frames) = digest::domain(memory, book, index)?;
        let record = handover::Domain {
            token: domain.token.0,
            top_table: domain.top_table.get(),
            digest,
            table_frames,
            levels: domain.levels,
            format: match domain.stage {
                Stage::Second => domain_format::SECOND_STAGE,
                Stage::First => domain_format::FIRST_STAGE,
            },
            reserved: [0; 6],
        };
        out.record(kind::DOMAIN, &record)?;
    }
    for run in book.tables.iter() {
        let (start, bytes) = (run.extent.start().get(), run.extent.bytes());
        let domain = book.domains.ordinal(run.domain);
        out.record(kind::DOMAIN_TABLES, &handover::DomainTables { start, bytes, domain, reserved: 0 })?;
    }
    for (domain, _) in book.domains.iter() {
        for (unit, _) in book.units.iter() {
            let Some((_, user)) = book.attachments.find(|a| a.domain == domain && a.unit == unit) else {
                continue;
            };
            let record = handover::DomainIdUse {
                domain: book.domains.ordinal(domain),
                unit: book.units.ordinal(unit),
                id: user.domain_id.0,
                reserved: [0; 3],
            };
            out.record(kind::DOMAIN_ID, &record)?;
        }
    }
    Ok(())
}

fn requesters(book: &Book<'_>, out: &mut Emitter<'_, '_>) -> Result<(), NoMemory> {
    for (_, kept) in book.requesters.iter() {
        let [a, b, c, d] = kept.entry.raw();
        let record = handover::RequesterRecord {
            token: kept.token.0,
            context: [a, b],
            unit: book.units.ordinal(kept.unit),
            domain: book.domains.ordinal(kept.domain),
            segment: kept.requester.segment.0,
            source: kept.requester.source.raw(),
            reserved: 0,
            context_high: [c, d],
        };
        out.record(kind::REQUESTER, &record)?;
    }
    for (index, kept) in book.requesters.iter() {
        let Some(tlb) = kept.device_tlb else { continue };
        let record = handover::DeviceTlb {
            requester: book.requesters.ordinal(index),
            physical_function: tlb.physical_function.raw(),
            queue_depth: tlb.queue_depth,
            page_requests: kept.page_requests.into(),
            reserved: 0,
        };
        out.record(kind::DEVICE_TLB, &record)?;
    }
    for (_, alias) in book.aliases.iter() {
        let requester = book.requesters.ordinal(alias.requester);
        out.record(kind::ALIAS, &handover::Alias { requester, source: alias.source.raw(), reserved: 0 })?;
    }
    Ok(())
}

/// PASID structures and PASIDs of requesters in scalable mode. Requesters that share a directory list all of it each.
fn pasids(book: &Book<'_>, out: &mut Emitter<'_, '_>) -> Result<(), NoMemory> {
    for (requester, run) in digest::pasid_runs(book) {
        let (kind, first_pasid) = match run.first_pasid {
            None => (pasid_tables_kind::DIRECTORY, 0),
            Some(first) => (pasid_tables_kind::TABLE, first),
        };
        let (start, bytes) = (run.extent.start().get(), run.extent.bytes());
        let requester = book.requesters.ordinal(requester);
        let record = handover::PasidTables { start, bytes, requester, first_pasid, kind, reserved: 0 };
        out.record(self::kind::PASID_TABLES, &record)?;
    }
    for (index, kept) in book.requesters.iter() {
        let Context::Scalable(context) = kept.entry else { continue };
        let own = |pasid| book.attachments_of(index).any(|(_, a)| a.pasid == pasid);
        for (slot, attached) in book.attachments.iter() {
            if !book.requesters.get(attached.requester).is_some_and(|owner| owner.shares(kept)) {
                continue;
            }
            // Of those of others, each PASID once.
            let mut sharing = book.attachments_in(kept.unit, context.directory());
            let theirs = attached.requester != index;
            if theirs
                && (own(attached.pasid)
                    || sharing.find(|a| a.pasid == attached.pasid) != book.attachments.get(slot))
            {
                continue;
            }
            let record = handover::Attachment {
                entry: attached.entry.raw(),
                requester: book.requesters.ordinal(index),
                pasid: attached.pasid,
                domain: book.domains.ordinal(attached.domain),
                parent: attached.parent.map_or(0, |parent| book.domains.ordinal(parent) + 1),
                reserved: 0,
            };
            out.record(kind::ATTACHMENT, &record)?;
        }
    }
    Ok(())
}

fn interrupts<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    out: &mut Emitter<'_, '_>,
) -> Result<(), NoMemory> {
    for (index, unit) in book.units.iter() {
        let Some(irta) = unit.interrupts else { continue };
        let unit = book.units.ordinal(index);
        let (digest, entries) = interrupts::digest(memory, book, index)?;
        out.record(
            kind::INTERRUPT_TABLE,
            &handover::InterruptTable { irta: irta.raw(), digest, unit, entries },
        )?;
        interrupts::for_each_kept(memory, book, index, &mut |kept| {
            let (requester, entry) = (book.requesters.ordinal(kept.owner), kept.words);
            let record = handover::InterruptEntry { entry, unit, requester, index: kept.index, reserved: 0 };
            out.record(kind::INTERRUPT_ENTRY, &record)
        })?;
    }
    Ok(())
}

/// Frames records and counts them.
struct Emitter<'s, 'a> {
    sink: &'s mut Sink<'a>,
    length: Length,
}

impl Emitter<'_, '_> {
    fn record<T: IntoBytes + Immutable>(&mut self, kind: u16, body: &T) -> Result<(), NoMemory> {
        let bytes = (size_of::<RecordHeader>() + size_of::<T>()) as u32;
        self.words(&RecordHeader { kind, version: 1, bytes })?;
        self.words(body)?;
        self.length.records += 1;
        Ok(())
    }

    fn words<T: IntoBytes + Immutable>(&mut self, item: &T) -> Result<(), NoMemory> {
        for word in words_of(item) {
            (self.sink)(word)?;
            self.length.words += 1;
        }
        Ok(())
    }
}

/// The 64-bit words of a record part, whose size is a multiple of 8.
fn words_of<T: IntoBytes + Immutable>(item: &T) -> impl Iterator<Item = u64> + '_ {
    item.as_bytes().chunks_exact(8).map(|c| {
        let mut word = [0; 8];
        word.copy_from_slice(c);
        u64::from_le_bytes(word)
    })
}

/// Writes a whole blob to `at`: header, records, digest. Returns the digest; `None`, and no blob, when the emission is not
/// of the length that was learnt, because interrupt entries came or went.
pub(crate) fn write_blob<M: TableMemory>(
    memory: &M,
    at: PhysAddr,
    length: &Length,
    book: &Book<'_>,
    about: &About<'_>,
    registers: &dyn Fn(usize) -> Registers,
) -> Result<Option<u64>, NoMemory> {
    let header = Header {
        magic: handover::MAGIC,
        version: handover::VERSION,
        oldest_reader: handover::OLDEST_READABLE,
        bytes: size_of::<Header>() as u64 + 8 * length.words,
        records: length.records,
        reserved0: 0,
        digest: 0,
        reserved1: [0; 3],
    };
    let mut hasher = Hasher::new(0);
    let mut next = at;
    let end = at.plus(header.bytes);
    let mut put = |word: u64| {
        if next >= end {
            return Ok(()); // counted below
        }
        hasher.update_words(&[word]);
        memory.write(next, word)?;
        next = next.plus(8);
        Ok(())
    };
    for word in words_of(&header) {
        put(word)?;
    }
    if emit(memory, book, about, registers, &mut put)? != *length {
        return Ok(None);
    }
    let digest = hasher.finish();
    memory.write(at.plus(core::mem::offset_of!(Header, digest) as u64), digest)?;
    Ok(Some(digest))
}
