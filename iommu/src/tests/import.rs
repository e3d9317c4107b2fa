//! Requesters of scalable mode taken over from a predecessor: compared, not written; what differs is refused.

use super::{CONFIG, requester, rich_fake, running_as, setup, source};
use crate::domain::DomainHandle;
use crate::error::{AttachError, DomainError, MapError};
use crate::fake::scalable::{NO_CONTEXT, NO_PASID};
use crate::fake::{Fake, UNIT};
use crate::pasid::{Attachment, GuestTables};
use crate::table::format::{Access, Stage};
use crate::{Config, Iommu, Mode, Setup};
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, TableMemory};
use spec::scalable::{PasidDirectoryEntry, ScalableContextEntry};
use spec::{DomainId, Extent, Iova, PhysAddr, Requester, SourceId};

const KEPT: Requester = Requester { segment: super::SEGMENT, source: SourceId::new(1, 0x13, 0) };
const ALIAS: [SourceId; 1] = [SourceId::new(1, 0, 0)];
const GUEST: GuestTables = GuestTables { top: Iova::new(0x2000), levels: 4 };

/// A domain that a predecessor left.
#[derive(Debug, Clone)]
struct Left {
    stage: Stage,
    top: PhysAddr,
    id: DomainId,
    tables: Vec<Extent>,
}

fn config(mode: Mode) -> Config {
    Config { mode, pasid_directory: 3, ..CONFIG }
}

/// What a predecessor leaves: `KEPT` with a second-stage domain at PASID 0, a first-stage one at 70, a nested one at 71.
fn left_behind(fake: &Fake, ctx: &mut MaySleep, mode: Mode) -> [Left; 2] {
    let iommu = running_as(fake, ctx, config(mode));
    let domains = [(Stage::Second, 1_u64), (Stage::First, 2)].map(|(stage, n)| {
        let domain = iommu.create_staged_domain(ctx, stage, &[UNIT], None).expect("domain");
        let to = PhysAddr::new(0x10_0000 * n);
        iommu.map(ctx, domain, Iova::new(0), to, 0x4000, Access::READ_WRITE).expect("map");
        domain
    });
    iommu.attach_pasid(ctx, KEPT, &ALIAS, 0, domains[0]).expect("attach");
    iommu.attach_pasid(ctx, KEPT, &ALIAS, 70, domains[1]).expect("attach");
    iommu.attach_nested(ctx, KEPT, &ALIAS, 71, GUEST, domains[0]).expect("attach");
    domains.map(|domain| {
        let mut tables = Vec::new();
        iommu.domain_tables(domain, &mut |run| tables.push(run)).expect("domain");
        Left {
            stage: iommu.stage(domain).expect("domain"),
            top: iommu.top_table(domain).expect("domain"),
            id: iommu.domain_id(domain, UNIT).expect("attached"),
            tables,
        }
    })
}

fn successor<'f>(
    fake: &'f Fake,
    ctx: &mut MaySleep,
    mode: Mode,
    left: &[Left],
) -> (Iommu<'f, Fake>, Vec<DomainHandle>) {
    fake.0.borrow_mut().units[1].status = spec::regs::Gsts::ZERO;
    let setup = Setup { config: Config { pasid_directory: 0, ..config(mode) }, ..setup() };
    let iommu = Iommu::take_over(fake, ctx, setup).expect("take over");
    let import = |left: &Left| {
        let ids = [(UNIT, left.id)];
        iommu.import_staged_domain(ctx, left.stage, left.top, 4, &ids, &left.tables).expect("import")
    };
    let domains = left.iter().map(import).collect();
    (iommu, domains)
}

fn all(domains: &[DomainHandle]) -> [(u32, Attachment); 3] {
    [
        (0, Attachment::Domain(domains[0])),
        (70, Attachment::Domain(domains[1])),
        (71, Attachment::Nested { first: GUEST, parent: domains[0] }),
    ]
}

fn context_slot(fake: &Fake, iommu: &Iommu<'_, Fake>, source: SourceId) -> PhysAddr {
    let half = u64::from(source.devfn()) / 128;
    let root = iommu.units()[0].root_table().plus(16 * u64::from(source.bus()) + 8 * half);
    PhysAddr::new((fake.read(root).expect("root") & !0xfff) + 32 * (u64::from(source.devfn()) % 128))
}

#[test]
fn a_successor_takes_over_every_pasid_of_a_requester_while_it_runs() {
    for mode in [Mode::SecondStage, Mode::FirstStage] {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let left = left_behind(&fake, &mut ctx, mode);
        let reach = |pasid| fake.dma_with(ALIAS[0], pasid, 0x1000, true);
        assert_eq!((reach(None), reach(Some(70))), (Ok(0x10_1000), Ok(0x20_1000)));
        let (iommu, domains) = successor(&fake, &mut ctx, mode, &left);
        iommu.reserve_domain_id(UNIT, DomainId(3)).expect("the nested one's");
        let before = fake.memory();
        iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &all(&domains)).expect("import");
        assert_eq!(fake.memory(), before, "entries are compared, not written");
        assert_eq!((reach(None), reach(Some(70))), (Ok(0x10_1000), Ok(0x20_1000)));
        assert!(!fake.with_unit(|u| u.translation_went_off));
        assert_eq!((iommu.domain_of(KEPT), iommu.pasids(KEPT)), (Some(domains[0]), all(&domains).to_vec()));
        assert!(iommu.reserve_domain_id(UNIT, DomainId(3)).is_err(), "claimed");
        // Then as any other: unmapped, more PASIDs in the directory's own size, detached.
        assert_eq!(iommu.unmap(&mut ctx, domains[1], Iova::new(0x1000), 0x1000), Err(MapError::Frozen));
        assert!(left.iter().all(|left| iommu.hold_mappings(left.top, false)));
        assert_eq!(iommu.unmap(&mut ctx, domains[1], Iova::new(0x1000), 0x1000), Ok(0x1000));
        assert!(reach(Some(70)).is_err());
        iommu.attach_pasid(&mut ctx, KEPT, &ALIAS, 0xffff, domains[0]).expect("attach");
        assert_eq!(reach(Some(0xffff)), Ok(0x10_1000));
        let e = iommu.attach_pasid(&mut ctx, KEPT, &ALIAS, 0x1_0000, domains[0]);
        assert!(matches!(e, Err(AttachError::PasidRange { limit: 0x1_0000, .. })), "{e:?}");
        iommu.detach_pasid(&mut ctx, KEPT, 70).expect("detach");
        assert_eq!(reach(Some(70)), Err(NO_PASID));
        assert_eq!(iommu.domain_id(domains[1], UNIT), Some(left[1].id), "an imported domain keeps its id");
        iommu.detach(&mut ctx, KEPT).expect("detach");
        assert_eq!(reach(None), Err(NO_CONTEXT));
        domains.iter().for_each(|domain| iommu.destroy_domain(&mut ctx, *domain).expect("destroy"));
        assert_eq!(fake.with_unit(|u| u.cached_domains().len()), 0);
    }
}

#[test]
fn import_requester_is_the_import_of_pasid_0_alone() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let left = left_behind(&fake, &mut ctx, Mode::SecondStage);
    let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &left);
    let e = iommu.import_requester(&mut ctx, KEPT, &ALIAS, domains[0]);
    assert_eq!(e, Err(AttachError::PasidMismatch { requester: KEPT, pasid: 70 }), "it has more");
    // As after a cut-off that left PASID 0 alone.
    let directory = iommu.units()[0].scalable_context_entry(KEPT.source).expect("table").expect("entry");
    fake.write(directory.directory().plus(8), 0).expect("directory");
    iommu.import_requester(&mut ctx, KEPT, &ALIAS, domains[0]).expect("import");
    assert_eq!(iommu.requesters(), [(KEPT, domains[0])]);
    assert_eq!(iommu.import_requester(&mut ctx, KEPT, &ALIAS, domains[0]), Err(AttachError::Attached(KEPT)));
}

#[test]
fn what_differs_from_hardwares_tables_is_refused_and_nothing_is_booked() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let left = left_behind(&fake, &mut ctx, Mode::SecondStage);
    let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &left);
    let right = all(&domains);
    let mismatch = |pasid| AttachError::PasidMismatch { requester: KEPT, pasid };
    let nested = |top, levels, parent| {
        (71, Attachment::Nested { first: GuestTables { top: Iova::new(top), levels }, parent })
    };
    let stage = AttachError::Domain(DomainError::Stage { unit: UNIT, stage: Stage::First });
    let foreign = iommu.create_domain(&mut ctx, &[UNIT], None).expect("domain");
    let cases: Vec<(Vec<(u32, Attachment)>, AttachError)> = Vec::from([
        (right[..2].to_vec(), mismatch(71)),
        (right[1..].to_vec(), mismatch(0)),
        (Vec::from([right[0], right[1], right[2], (5, right[0].1)]), mismatch(5)),
        (Vec::from([right[0], right[0], right[1], right[2]]), mismatch(0)),
        (Vec::from([(0, right[1].1), right[1], right[2]]), mismatch(0)),
        (Vec::from([right[0], (70, right[0].1), right[2]]), mismatch(70)),
        (Vec::from([(0, Attachment::Domain(foreign)), right[1], right[2]]), mismatch(0)),
        (Vec::from([(0, Attachment::PassThrough), right[1], right[2]]), mismatch(0)),
        (Vec::from([right[0], right[1], (71, right[0].1)]), mismatch(71)),
        (Vec::from([(0, right[2].1), right[1], right[2]]), mismatch(0)),
        (Vec::from([right[0], right[1], nested(0x3000, 4, domains[0])]), mismatch(71)),
        (Vec::from([right[0], right[1], nested(0x2000, 5, domains[0])]), mismatch(71)),
        (Vec::from([right[0], right[1], nested(0x2000, 4, foreign)]), mismatch(71)),
        (Vec::from([right[0], right[1], nested(0x2000, 4, domains[1])]), stage),
    ]);
    let before = fake.memory();
    for (attachments, expected) in cases {
        let got = iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &attachments);
        assert_eq!(got, Err(expected), "{attachments:?}");
        assert_eq!(iommu.pasids(KEPT), []);
    }
    let elsewhere = |requester, source| Err(AttachError::Mismatch { requester, source });
    let stranger = requester(1, 0x14, 0);
    assert_eq!(iommu.import_pasids(&mut ctx, stranger, &ALIAS, &right), elsewhere(stranger, stranger.source));
    let unknown = [ALIAS[0], source(1, 0x15, 0)];
    assert_eq!(iommu.import_pasids(&mut ctx, KEPT, &unknown, &right), elsewhere(KEPT, unknown[1]));
    assert_eq!(iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &[]), elsewhere(KEPT, KEPT.source));
    assert_eq!(fake.memory(), before);
    // The nested entry's id has another owner by now: nothing is claimed.
    iommu.attach(&mut ctx, requester(0, 9, 0), &[], foreign).expect("attach");
    let taken = DomainError::DomainIdTaken { unit: UNIT, id: DomainId(3) };
    assert_eq!(iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &right), Err(AttachError::Domain(taken)));
    iommu.detach(&mut ctx, requester(0, 9, 0)).expect("detach");
    iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &right).expect("import");
}

#[test]
fn an_alias_whose_context_entry_differs_in_a_bit_is_no_alias() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let left = left_behind(&fake, &mut ctx, Mode::SecondStage);
    let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &left);
    let right = all(&domains);
    for source in [KEPT.source, ALIAS[0]] {
        let at = context_slot(&fake, &iommu, source);
        let words = [fake.read(at).expect("entry"), fake.read(at.plus(8)).expect("entry")];
        // A bit of each kind: fault processing, PASID enable, directory size, RID_PASID, present, reserved.
        for (word, bit) in [(0, 1), (0, 3), (0, 10), (1, 0), (0, 0), (0, 6), (1, 30)] {
            fake.write(at.plus(8 * word), words[word as usize] ^ 1 << bit).expect("entry");
            let got = iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &right);
            assert!(matches!(got, Err(AttachError::Mismatch { .. })), "{source} {word} {bit}: {got:?}");
            fake.write(at.plus(8 * word), words[word as usize]).expect("entry");
        }
    }
    // Both in the same way: what the predecessor chose for both stays.
    for source in [KEPT.source, ALIAS[0]] {
        let at = context_slot(&fake, &iommu, source);
        fake.write(at, fake.read(at).expect("entry") | 2 | 4).expect("entry");
    }
    let before = fake.memory();
    iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &right).expect("import");
    assert_eq!(fake.memory(), before);
    // A requester that shares the alias joins, and gets an entry equal to the others.
    let joins = requester(1, 0x16, 0);
    iommu.attach(&mut ctx, joins, &ALIAS, domains[0]).expect("attach");
    let entry = |source| iommu.units()[0].scalable_context_entry(source).expect("table").expect("entry");
    assert_eq!(entry(joins.source), entry(KEPT.source));
    assert_eq!(entry(ALIAS[0]), entry(KEPT.source));
    assert!(entry(joins.source) != ScalableContextEntry::ZERO);
}

#[test]
fn directories_that_point_out_of_memory_or_share_a_table_are_refused() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let left = left_behind(&fake, &mut ctx, Mode::SecondStage);
    let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &left);
    let right = all(&domains);
    let context = iommu.units()[0].scalable_context_entry(KEPT.source).expect("table").expect("entry");
    let last = context.directory().plus(8 * (context.directory_entries() - 1));
    assert_eq!(context.directory_entries(), 1024);
    let first = fake.read(context.directory()).expect("directory");
    fake.write(last, first).expect("directory");
    let got = iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &right);
    assert_eq!(got, Err(AttachError::Mismatch { requester: KEPT, source: KEPT.source }));
    let nowhere = PasidDirectoryEntry::ZERO.with_present(true).with_smptblptr(0x7_0000_0000);
    fake.write(last, nowhere.raw()).expect("directory");
    let got = iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &right);
    assert!(matches!(got, Err(AttachError::NoMemory(_))), "{got:?}");
}

#[test]
fn requesters_behind_one_bridge_are_imported_one_after_the_other() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let second = requester(1, 0x16, 0);
    let left = {
        let left = left_behind(&fake, &mut ctx, Mode::SecondStage);
        let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &left);
        iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &all(&domains)).expect("import");
        iommu.attach(&mut ctx, second, &ALIAS, domains[0]).expect("attach");
        left
    };
    let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &left);
    iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &all(&domains)).expect("import");
    // It has PASID 0; the others are those of the first, which it cannot be told apart from behind the bridge.
    iommu.import_requester(&mut ctx, second, &ALIAS, domains[0]).expect("import");
    iommu.detach(&mut ctx, KEPT).expect("detach");
    assert_eq!(fake.dma(second.source, 0x1000, true), Ok(0x10_1000));
    assert_eq!(fake.dma_with(second.source, Some(70), 0x1000, true), Err(NO_PASID));
    iommu.detach(&mut ctx, second).expect("detach");
    assert_eq!(fake.dma(ALIAS[0], 0x1000, true), Err(NO_CONTEXT));
}

#[test]
fn a_domain_under_another_id_or_of_another_depth_than_the_entry_says_is_a_mismatch() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let left = left_behind(&fake, &mut ctx, Mode::SecondStage);
    // Its translations would not be forgotten.
    for i in [0, 1] {
        let mut renamed = left.clone();
        renamed[i].id = DomainId(9);
        let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &renamed);
        let pasid = [0, 70][i];
        let got = iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &all(&domains));
        assert_eq!(got, Err(AttachError::PasidMismatch { requester: KEPT, pasid }));
    }
    let (iommu, domains) = successor(&fake, &mut ctx, Mode::SecondStage, &left[1..]);
    let ids = [(UNIT, left[0].id)];
    let flat = iommu.import_staged_domain(&mut ctx, Stage::Second, left[0].top, 3, &ids, &left[0].tables);
    let domains = [flat.expect("import"), domains[0]];
    let got = iommu.import_pasids(&mut ctx, KEPT, &ALIAS, &all(&domains));
    assert_eq!(got, Err(AttachError::PasidMismatch { requester: KEPT, pasid: 0 }));
}

#[test]
fn ids_of_nested_entries_are_claimed_all_or_none() {
    for reserved in [false, true] {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let iommu = running_as(&fake, &mut ctx, config(Mode::SecondStage));
        let parent = iommu.create_domain(&mut ctx, &[UNIT], None).expect("domain");
        let (other, who) = (GuestTables { top: Iova::new(0x5000), ..GUEST }, requester(0, 2, 0));
        let nested = [(1, GUEST), (2, other)];
        for (pasid, first) in nested {
            iommu.attach_nested(&mut ctx, who, &[], pasid, first, parent).expect("attach");
        }
        let mut tables = Vec::new();
        iommu.domain_tables(parent, &mut |run| tables.push(run)).expect("domain");
        let top = iommu.top_table(parent).expect("domain");
        let (iommu, _) = successor(&fake, &mut ctx, Mode::SecondStage, &[]);
        let parent = iommu.import_domain(&mut ctx, top, 4, &[], &tables).expect("import");
        let attachments = nested.map(|(pasid, first)| (pasid, Attachment::Nested { first, parent }));
        // The ids are 1 and 2; the second has an owner.
        let id = |id| iommu.reserve_domain_id(UNIT, DomainId(id));
        id(1).expect("free");
        let foreign = iommu.create_domain(&mut ctx, &[UNIT], None).expect("domain");
        iommu.attach(&mut ctx, requester(0, 3, 0), &[], foreign).expect("attach");
        assert_eq!(iommu.domain_id(foreign, UNIT), Some(DomainId(2)));
        if !reserved {
            iommu.release_domain_id(UNIT, DomainId(1)).expect("reserved");
        }
        let taken = DomainError::DomainIdTaken { unit: UNIT, id: DomainId(2) };
        let got = iommu.import_pasids(&mut ctx, who, &[], &attachments);
        assert_eq!(got, Err(AttachError::Domain(taken)));
        assert_eq!(id(1).is_ok(), !reserved, "as it was");
        iommu.detach(&mut ctx, requester(0, 3, 0)).expect("detach");
        iommu.import_pasids(&mut ctx, who, &[], &attachments).expect("import");
        assert!(iommu.release_domain_id(UNIT, DomainId(1)).is_err(), "an attachment's");
    }
}

#[test]
fn an_imported_domain_is_forgotten_under_pasids_that_nobody_has_imported_yet() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let left = left_behind(&fake, &mut ctx, Mode::FirstStage);
    let reach = || fake.dma_with(KEPT.source, Some(70), 0x1000, true);
    assert_eq!(reach(), Ok(0x20_1000));
    let (iommu, domains) = successor(&fake, &mut ctx, Mode::FirstStage, &left);
    assert!(iommu.hold_mappings(left[1].top, false));
    assert_eq!(iommu.unmap(&mut ctx, domains[1], Iova::new(0x1000), 0x1000), Ok(0x1000));
    assert!(reach().is_err());
}
