//! What Linux's live update orchestrator leaves: sessions, files, and the folios of memfds.

use super::{Preserved, structure, text};
use crate::image::Memory;
use crate::model::Problem;
use spec::kho::luo::{
    BLOCK_BYTES, BlockHeader, Flb as FlbRecord, FlbHeader, LUO_COMPATIBLE, Luo as LuoRecord, LuoFile,
    LuoSession, MAX_BLOCKS, MEMFD_COMPATIBLE, Memfd as MemfdRecord, MemfdFolio, VmallocChunk,
    entries_per_block,
};
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr};
use std::collections::HashSet;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Sessions and files that are kept at most, all together.
const MAX_ENTRIES: usize = 1 << 16;
/// Folio runs that are kept at most for each memfd.
const MAX_RUNS: usize = 1 << 20;
/// Folios that are kept one by one.
const FIRST_FOLIOS: usize = 16;
/// Problems that are kept at most.
const MAX_PROBLEMS: usize = 256;

/// The orchestrator's state.
#[derive(Debug, Clone)]
pub struct Luo {
    /// Where it lies.
    pub at: PhysAddr,
    /// Its version.
    pub compatible: String,
    /// Live updates so far.
    pub updates: u64,
    /// First block of sessions.
    pub sessions_at: PhysAddr,
    /// List of file-lifecycle-bound objects.
    pub flbs_at: PhysAddr,
    /// Sessions.
    pub sessions: Vec<Session>,
    /// File-lifecycle-bound objects.
    pub flbs: Vec<Flb>,
    /// The blocks that sessions and files lie in.
    pub blocks: Vec<PhysAddr>,
}

/// A session.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its name.
    pub name: String,
    /// The block it lies in.
    pub block: PhysAddr,
    /// First block of its files.
    pub files_at: PhysAddr,
    /// Files that it claims.
    pub count: u64,
    /// Its files.
    pub files: Vec<File>,
}

/// A preserved file.
#[derive(Debug, Clone)]
pub struct File {
    /// Name of its handler.
    pub compatible: String,
    /// What the handler left.
    pub data: u64,
    /// The name under which it is retrieved.
    pub token: u64,
    /// For memfds: what the handler left, read.
    pub memfd: Option<Memfd>,
}

/// A preserved memfd.
#[derive(Debug, Clone)]
pub struct Memfd {
    /// The record.
    pub record: MemfdRecord,
    /// Its first folios, in the order of the file.
    pub first: Vec<MemfdFolio>,
    /// Folios read.
    pub folios: u64,
    /// Folios whose first frame is not preserved.
    pub not_preserved: u64,
    /// Frames of its folios, merged, in the order of the file.
    pub runs: Vec<Extent>,
}

/// A file-lifecycle-bound object.
#[derive(Debug, Clone)]
pub struct Flb {
    /// Its name.
    pub name: String,
    /// What its owner left.
    pub data: u64,
    /// Files that hold it.
    pub count: u64,
}

/// What is carried along.
struct Reader<'a> {
    memory: &'a Memory,
    preserved: &'a Preserved,
    problems: &'a mut Vec<Problem>,
    /// Blocks read so far: each belongs to one chain only.
    blocks: Vec<PhysAddr>,
    seen: HashSet<u64>,
    entries: usize,
}

/// Reads the orchestrator's state.
pub(super) fn read(
    memory: &Memory,
    at: PhysAddr,
    preserved: &Preserved,
    problems: &mut Vec<Problem>,
) -> Option<Luo> {
    let mut reader =
        Reader { memory, preserved, problems, blocks: Vec::new(), seen: HashSet::new(), entries: 0 };
    let record: LuoRecord = reader.take(at, "orchestrator's state")?;
    let compatible = text(&record.compatible);
    if compatible != LUO_COMPATIBLE {
        reader.say(at, "orchestrator's state", format!("version {compatible:?}, not {LUO_COMPATIBLE:?}"));
        return None;
    }
    let sessions_at = PhysAddr::new(record.sessions_pa);
    let mut sessions = Vec::new();
    for (block, session) in reader.chain::<LuoSession>(sessions_at, "session") {
        let files_at = PhysAddr::new(session.files);
        let files = reader.chain::<LuoFile>(files_at, "file");
        let files: Vec<File> = files.into_iter().map(|(_, file)| reader.file(&file)).collect();
        if files.len() as u64 != session.count {
            let what = format!("it claims {} files, {} are there", session.count, files.len());
            reader.say(files_at, "session", what);
        }
        sessions.push(Session { name: text(&session.name), block, files_at, count: session.count, files });
    }
    let flbs_at = PhysAddr::new(record.flbs_pa);
    let flbs = reader.flbs(flbs_at);
    Some(Luo {
        at,
        compatible,
        updates: record.liveupdate_num,
        sessions_at,
        flbs_at,
        sessions,
        flbs,
        blocks: reader.blocks,
    })
}

impl Reader<'_> {
    fn say(&mut self, at: PhysAddr, subject: &str, what: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { at, subject: subject.into(), what });
        }
    }

    fn take<T: FromBytes + IntoBytes + FromZeros>(&mut self, at: PhysAddr, subject: &str) -> Option<T> {
        let value = structure(self.memory, at);
        if value.is_none() {
            self.say(at, subject, "the image does not hold it".into());
        } else if !self.preserved.holds(at) {
            self.say(at, subject, "it is not preserved".into());
        }
        value
    }

    /// The entries of a chain of blocks, each with the block it lies in.
    fn chain<T: FromBytes + IntoBytes + FromZeros>(
        &mut self,
        first: PhysAddr,
        subject: &str,
    ) -> Vec<(PhysAddr, T)> {
        let mut found = Vec::new();
        let mut next = first;
        for _ in 0..MAX_BLOCKS {
            if next.get() == 0 {
                return found;
            }
            if !next.is_aligned(BLOCK_BYTES) || !self.seen.insert(next.get()) {
                self.say(next, subject, "a block that is not aligned, or was met before".into());
                return found;
            }
            let Some(header) = self.take::<BlockHeader>(next, subject) else { return found };
            self.blocks.push(next);
            let room = entries_per_block(size_of::<T>()) as u64;
            if header.count > room {
                self.say(next, subject, format!("{} entries in a block for {room}", header.count));
            }
            for entry in 0..header.count.min(room) {
                let behind = BlockHeader::BYTES as u64 + entry * size_of::<T>() as u64;
                let Some(entry) = structure(self.memory, next.plus(behind)) else { return found };
                self.entries += 1;
                if self.entries > MAX_ENTRIES {
                    self.say(next, subject, format!("more than {MAX_ENTRIES} entries: the rest is left off"));
                    return found;
                }
                found.push((next, entry));
            }
            next = PhysAddr::new(header.next);
        }
        self.say(next, subject, format!("more than {MAX_BLOCKS} blocks: the rest is left off"));
        found
    }

    fn file(&mut self, file: &LuoFile) -> File {
        let compatible = text(&file.compatible);
        let memfd = (compatible == MEMFD_COMPATIBLE).then(|| self.memfd(PhysAddr::new(file.data))).flatten();
        File { compatible, data: file.data, token: file.token, memfd }
    }

    fn memfd(&mut self, at: PhysAddr) -> Option<Memfd> {
        let record: MemfdRecord = self.take(at, "memfd")?;
        let mut memfd = Memfd { record, first: Vec::new(), folios: 0, not_preserved: 0, runs: Vec::new() };
        let order = u32::from(record.folios.order).min(20);
        let mut pages_left = u64::from(record.folios.total_pages);
        let mut next = PhysAddr::new(record.folios.first);
        let mut chunks = HashSet::new();
        while next.get() != 0 && pages_left > 0 && memfd.folios < record.nr_folios {
            if !chunks.insert(next.get()) {
                self.say(next, "list of folios", "it leads in circles".into());
                break;
            }
            let Some(chunk) = self.take::<VmallocChunk>(next, "list of folios") else { break };
            for &area in chunk.phys.iter().take_while(|area| **area != 0) {
                for page in 0..(1_u64 << order).min(pages_left) {
                    self.folios(PhysAddr::new(area).plus(page * PAGE_SIZE), &mut memfd);
                }
                pages_left = pages_left.saturating_sub(1 << order);
                if pages_left == 0 {
                    break;
                }
            }
            next = PhysAddr::new(chunk.next);
        }
        if memfd.folios != record.nr_folios {
            let what = format!("it claims {} folios, {} can be read", record.nr_folios, memfd.folios);
            self.say(at, "memfd", what);
        }
        if memfd.not_preserved > 0 {
            self.say(at, "memfd", format!("{} folios are not preserved", memfd.not_preserved));
        }
        Some(memfd)
    }

    /// The folios that one page lists.
    fn folios(&mut self, page: PhysAddr, memfd: &mut Memfd) {
        let mut words = [0; 512];
        if audit::Image::read(self.memory, page, &mut words).is_err() {
            self.say(page, "list of folios", "the image does not hold it".into());
            return;
        }
        for raw in words.as_chunks::<2>().0 {
            if memfd.folios >= memfd.record.nr_folios {
                return;
            }
            memfd.folios += 1;
            let folio = MemfdFolio::from_raw(*raw);
            if memfd.first.len() < FIRST_FOLIOS {
                memfd.first.push(folio);
            }
            let frame = Frame::new(folio.pfn());
            if !self.preserved.holds(frame.start()) {
                memfd.not_preserved += 1;
            }
            let Some(one) = Extent::new(frame, 1) else { continue };
            if let Some(last) = memfd.runs.last_mut().filter(|last| last.end() == frame) {
                *last = Extent::new(last.first(), last.count() + 1).unwrap_or(one);
            } else if memfd.runs.len() < MAX_RUNS {
                memfd.runs.push(one);
            }
        }
    }

    fn flbs(&mut self, at: PhysAddr) -> Vec<Flb> {
        if at.get() == 0 {
            return Vec::new();
        }
        let Some(header) = self.take::<FlbHeader>(at, "file-lifecycle-bound objects") else {
            return Vec::new();
        };
        let room = header.pgcnt.saturating_mul(PAGE_SIZE).saturating_sub(FlbHeader::BYTES as u64);
        let count = header.count.min(room / FlbRecord::BYTES as u64).min(MAX_ENTRIES as u64);
        let mut found = Vec::new();
        for number in 0..count {
            let behind = FlbHeader::BYTES as u64 + number * FlbRecord::BYTES as u64;
            let Some(flb) = structure::<FlbRecord>(self.memory, at.plus(behind)) else { break };
            found.push(Flb { name: text(&flb.name), data: flb.data, count: flb.count });
        }
        found
    }
}
