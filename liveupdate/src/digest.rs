//! Digests of hardware's tables as they will be after the cut-off, for the handover (see `spec::handover`).
//!
//! A unit's digest goes over its root table, its context tables and then the PASID structures of its requesters, each in
//! the order of their records; what the cut-off will clear counts as zero. A domain's goes over its table frames, without
//! the bits that hardware writes on its own.

use crate::book::{Book, PasidRun, Stage};
use crate::host::{NoMemory, TableMemory};
use crate::mode::Place;
use crate::roots;
use spec::scalable::PASID_TABLE_ENTRIES;
use spec::xxh64::Hasher;

/// Words of a PASID entry.
const PASID_WORDS: usize = 8;

/// PASID directories and tables in the order of their records, each with the index of the requester that lists it: the
/// directory first, then its tables.
pub(crate) fn pasid_runs<'a>(book: &'a Book<'_>) -> impl Iterator<Item = (usize, &'a PasidRun)> {
    book.requesters.iter().flat_map(move |(index, kept)| {
        let own = move |r: &&PasidRun| r.unit == kept.unit && Some(r.directory) == kept.entry.directory();
        let runs = move || book.pasid_runs.iter().map(|(_, r)| r).filter(own);
        let directory = runs().filter(|r| r.first_pasid.is_none());
        directory.chain(runs().filter(|r| r.first_pasid.is_some())).map(move |run| (index, run))
    })
}

/// Digest of a unit's tables.
pub(crate) fn unit<M: TableMemory>(memory: &M, book: &Book<'_>, unit: usize) -> Result<u64, NoMemory> {
    let Some(kept) = book.units.get(unit) else { return Ok(0) };
    let mut hasher = Hasher::new(0);
    for place in kept.mode.places() {
        let stays = book.context_of(unit, place).is_some();
        let at = place.pointer_at(kept.root);
        for offset in (0..kept.mode.pointer_bytes()).step_by(8) {
            hasher.update_words(&[if stays { memory.read(at.plus(offset))? } else { 0 }]);
        }
    }
    for (_, run) in book.contexts.iter().filter(|(_, c)| c.unit == unit) {
        let place = Place { bus: run.bus, half: run.half };
        for source in place.sources(kept.mode) {
            let stays = book.is_owned(kept.id.segment, source);
            let entry = roots::context_entry(memory, kept.mode, run.table, source.devfn())?;
            let words = if stays { entry.raw() } else { [0; 4] };
            hasher.update_words(&words[..kept.mode.entry_bytes() as usize / 8]);
        }
    }
    for (_, run) in pasid_runs(book).filter(|(_, r)| r.unit == unit) {
        match run.first_pasid {
            None => directory(memory, book, run, &mut hasher)?,
            Some(first) => pasid_table(memory, book, run, first, &mut hasher)?,
        }
    }
    Ok(hasher.finish())
}

/// A directory: entries of preserved tables, and zero for all others, also beyond the size in the context entry.
fn directory<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    run: &PasidRun,
    hasher: &mut Hasher,
) -> Result<(), NoMemory> {
    for index in 0..run.extent.bytes() / 8 {
        let first = (index * PASID_TABLE_ENTRIES) as u32;
        let stays = book.pasid_run(run.unit, run.directory, Some(first)).is_some();
        let word = if stays { memory.read(run.directory.plus(8 * index))? } else { 0 };
        hasher.update_words(&[word]);
    }
    Ok(())
}

fn pasid_table<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    run: &PasidRun,
    first: u32,
    hasher: &mut Hasher,
) -> Result<(), NoMemory> {
    let index = u64::from(first) / PASID_TABLE_ENTRIES;
    let stay = book.pasids_in_table(run.unit, run.directory, index, |_| true);
    for pasid in first..first + PASID_TABLE_ENTRIES as u32 {
        let mut words = [0; PASID_WORDS];
        if stay.contains(pasid) {
            memory.read_words(roots::pasid_entry_at(run.extent.start(), pasid), &mut words)?;
        }
        hasher.update_words(&words);
    }
    Ok(())
}

/// Digest of a domain's table frames and their number.
pub(crate) fn domain<M: TableMemory>(
    memory: &M,
    book: &Book<'_>,
    domain: usize,
) -> Result<(u64, u64), NoMemory> {
    let mut hasher = Hasher::new(0);
    let mut frames = 0;
    let mut chunk = [0; 64];
    let kept = !written_by_hardware(book, domain);
    for run in book.tables.iter().filter(|t| t.domain == domain) {
        frames += run.extent.count();
        for offset in (0..run.extent.bytes()).step_by(size_of_val(&chunk)) {
            memory.read_words(run.extent.start().plus(offset), &mut chunk)?;
            chunk.iter_mut().for_each(|word| *word &= kept);
            hasher.update_words(&chunk);
        }
    }
    Ok((hasher.finish(), frames))
}

/// The bits of a domain's table words that hardware writes on its own: accessed and dirty (VT-d 3.6.2, 3.7.2).
fn written_by_hardware(book: &Book<'_>, domain: usize) -> u64 {
    match book.domains.get(domain).map(|d| d.stage) {
        Some(Stage::First) => 0b11 << 5,
        Some(Stage::Second) if book.attachments.iter().any(|(_, a)| a.uses(domain) && a.entry.ssade()) => {
            0b11 << 8
        }
        _ => 0,
    }
}
