//! Handovers: a sealed one of a real run with changes, or records that are anything.
//!
//! The first byte says which, and which run. The digest over the records is made right afterwards, so that what stands
//! behind it is reached; everything else may contradict itself.

use crate::files::{LIMITS, chosen, show};
use crate::sparse::Sparse;
use audit::handover::Handover;
use audit::{Finding, Scratch, Stage, UnitState};
use inspect::image::{self, Memory, Options};
use inspect::model::{FindKho, Model};
use inspect::registers::{Registers, USUAL_BASE};
use inspect::tables::Hardware;
use liveupdate::Room;
use spec::handover::{Header, SUBNODE};
use spec::kho::{Blob, write_root};
use spec::{PAGE_SIZE, PhysAddr, Segment, UnitId};
use zerocopy::IntoBytes;

/// Sealed handovers, tables and registers along with them: of a run on QEMU, and of runs on the built-in machine
/// (`machine/tests/samples.rs`) that have every kind of record between them.
const SEALED: [&[u8]; 4] = [
    include_bytes!("../../inspect/tests/data/ours/reach.pages.zst"),
    include_bytes!("../../inspect/tests/data/ours/legacy.pages.zst"),
    include_bytes!("../../inspect/tests/data/ours/scalable.pages.zst"),
    include_bytes!("../../inspect/tests/data/ours/pasids.pages.zst"),
];
/// The digest's place in the header.
const DIGEST: u64 = std::mem::offset_of!(Header, digest) as u64;
/// Words of working memory for an audit.
const ROOM: u64 = 1 << 18;

struct Base {
    memory: Sparse,
    units: Vec<UnitState>,
    fdt: PhysAddr,
    map: PhysAddr,
    records: PhysAddr,
    /// Bytes up to the end of the records' frames.
    room: u64,
}

fn bases() -> &'static [Base; 4] {
    // Sparse counts its reads in a cell: each thread has bases of its own.
    thread_local! { static BASES: &'static [Base; 4] = Box::leak(Box::new(SEALED.map(make))); }
    BASES.with(|bases| *bases)
}

fn make(sealed: &[u8]) -> Base {
    let whole = image::from_bytes(sealed.to_vec(), Options::default()).expect("an image");
    let registers = registers_of(&whole);
    let unit = UnitState {
        id: UnitId { segment: Segment(0), register_base: USUAL_BASE },
        cap: registers.cap().expect("CAP"),
        ecap: registers.ecap().expect("ECAP"),
        status: registers.gsts().expect("GSTS"),
        root: registers.rtaddr().expect("RTADDR"),
        interrupts: registers.irta(),
    };
    let model = Model::build(&whole, vec![registers], Hardware::default(), FindKho::Scan, LIMITS);
    let kho = &model.handovers[0];
    let records = kho.records.as_ref().expect("records");
    let mut pages = Vec::new();
    for run in whole.runs() {
        for at in (run.start..run.start + run.bytes).step_by(PAGE_SIZE as usize) {
            let mut words = [0; 512];
            whole.read_bytes(PhysAddr::new(at), words.as_mut_bytes()).expect("a page of the image");
            pages.push((at, words.into()));
        }
    }
    Base {
        memory: Sparse::of(pages),
        units: vec![unit],
        fdt: kho.at,
        map: kho.map,
        records: records.at,
        room: records.header.bytes.next_multiple_of(PAGE_SIZE),
    }
}

fn registers_of(memory: &Memory) -> Registers {
    let mut window = [0; 0x230];
    memory.read_bytes(PhysAddr::new(USUAL_BASE), &mut window).expect("registers");
    Registers::from_window("dmar0".into(), USUAL_BASE, &window).expect("a window")
}

pub(crate) fn run(data: &[u8]) {
    let [kind, rest @ ..] = data else { return };
    let base = &bases()[usize::from(kind >> 1 & 3)];
    let mut memory = base.memory.clone();
    if kind % 2 == 0 {
        memory.change(rest);
    } else {
        replace(&mut memory, base, rest);
    }
    seal(&mut memory, base.fdt);
    let opened = open(&memory, base.fdt);
    let _ = memory.reads();
    let verified = Handover::locate(&memory, base.fdt).and_then(|handover| handover.verify());
    assert!(!opened || verified.is_ok(), "opened, and yet {:?}", verified.err());
    audited(&memory, base);
    if *kind >= 0xc0 && chosen(data) {
        let image = memory.image();
        let mut window = [0; 0x230];
        let registers = image
            .read_bytes(PhysAddr::new(USUAL_BASE), &mut window)
            .ok()
            .and_then(|()| Registers::from_window("dmar0".into(), USUAL_BASE, &window).ok());
        let model = Model::build(
            &image,
            registers.into_iter().collect(),
            Hardware::default(),
            FindKho::At(base.fdt),
            LIMITS,
        );
        show(&image, &model);
    }
}

/// Records that are anything, behind a header that describes them.
fn replace(memory: &mut Sparse, base: &Base, data: &[u8]) {
    let [count, data @ ..] = data else { return };
    let header_bytes = size_of::<Header>() as u64;
    let bytes = (header_bytes + data.len() as u64 / 8 * 8).min(base.room);
    let mut header = [0; size_of::<Header>() / 8];
    if audit::Image::read(memory, base.records, &mut header).is_err() {
        return;
    }
    let mut blob =
        Header { bytes, records: u32::from(*count), ..zerocopy::transmute!(header) }.as_bytes().to_vec();
    blob.extend_from_slice(data);
    for (index, word) in blob.as_chunks::<8>().0.iter().take((bytes / 8) as usize).enumerate() {
        let at = base.records.get() + 8 * index as u64;
        memory.page(at & !0xfff)[(at % PAGE_SIZE / 8) as usize] = u64::from_le_bytes(*word);
    }
    let mut page = [0; PAGE_SIZE as usize];
    let named = Blob { name: SUBNODE, data: base.records, bytes };
    write_root(&mut page, base.map, &[named]).expect("a small tree");
    memory.page(base.fdt.get()).as_mut_bytes().copy_from_slice(&page);
}

/// Makes the digest over the records right, where there is one.
fn seal(memory: &mut Sparse, fdt: PhysAddr) {
    let Ok(handover) = Handover::locate(memory, fdt) else { return };
    let Ok(digest) = handover.digest() else { return };
    let at = handover.start().get() + DIGEST;
    if at.is_multiple_of(8) {
        memory.page(at & !0xfff)[(at % PAGE_SIZE / 8) as usize] = digest;
    }
}

/// Whether the core takes it.
fn open(memory: &Sparse, fdt: PhysAddr) -> bool {
    let mut room = Room::<24>::new();
    let _ = memory.reads();
    let opened = liveupdate::open(memory, fdt, room.storage());
    let steps = memory.reads();
    assert!(steps <= 100_000, "{steps} reads to open a few KiB");
    if let Ok(opened) = &opened {
        let _ = opened.for_each_preserved(memory, &mut |_| {});
        let _ = memory.reads();
        let _ = (opened.release(), opened.requesters().count(), opened.regions().count());
    }
    opened.is_ok()
}

fn audited(memory: &Sparse, base: &Base) {
    let Ok(needed) = Scratch::words_needed(memory, base.fdt) else { return };
    if needed > ROOM {
        return;
    }
    let mut words = vec![0; needed as usize];
    for stage in [Stage::Sealed, Stage::Arrived] {
        let _ = memory.reads();
        let mut found = 0_u64;
        let mut seen = |finding: Finding| {
            found += 1;
            assert!(!finding.to_string().is_empty());
        };
        let report =
            audit::audit(memory, base.fdt, &base.units, stage, &mut Scratch::new(&mut words), &mut seen);
        if let Ok(report) = report {
            assert_eq!(report.violations(), found, "every violation is passed on, once");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the changes would be made to something that nobody reads far into.
    #[test]
    fn every_base_opens_and_the_auditor_finds_nothing_in_it() {
        for (number, base) in bases().iter().enumerate() {
            assert!(open(&base.memory, base.fdt), "{number}");
            let needed = Scratch::words_needed(&base.memory, base.fdt).expect("records");
            assert!(needed <= ROOM, "{number}: {needed} words");
            let mut words = vec![0; needed as usize];
            let scratch = &mut Scratch::new(&mut words);
            // The run on QEMU was caught before its cut-off.
            let stage = if number == 0 { Stage::Sealed } else { Stage::Arrived };
            let mut none = |finding| panic!("{number}: {finding}");
            let report = audit::audit(&base.memory, base.fdt, &base.units, stage, scratch, &mut none);
            assert!(report.is_ok(), "{number}: {report:?}");
        }
    }
}
