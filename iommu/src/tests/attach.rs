//! Requesters: attached with aliases, detached, shared, refused, and taken over; and the order of stores to their entries.

use super::{requester, running, setup, source};
use crate::domain::DomainHandle;
use crate::error::{AttachError, DomainError, MapError};
use crate::fake::{Done, Fake, QEMU_CAP, QEMU_ECAP, SECOND, Stuck, UNIT};
use crate::table::format::Access;
use crate::{Iommu, Origin};
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, TableMemory, Unit};
use spec::context::ContextEntry;
use spec::{DomainId, Extent, Iova, PhysAddr, Requester, SourceId};

fn domain(iommu: &Iommu<'_, Fake>, ctx: &mut MaySleep) -> DomainHandle {
    let domain = iommu.create_domain(ctx, &[UNIT], None).expect("domain");
    iommu.map(ctx, domain, Iova::new(0), PhysAddr::new(0x10_0000), 0x4000, Access::READ).expect("map");
    domain
}

fn reaches(fake: &Fake, source: SourceId) -> bool {
    fake.dma(source, 0x1000, false).is_ok()
}

fn entry(iommu: &Iommu<'_, Fake>, source: SourceId) -> ContextEntry {
    iommu.units()[0].context_entry(source).expect("tables in memory").unwrap_or_default()
}

#[test]
fn an_attached_requester_and_its_aliases_are_translated_and_nobody_else() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = domain(&iommu, &mut ctx);
    let aliases = [source(1, 0, 0), source(1, 0, 0), source(1, 3, 0)];
    iommu.attach(&mut ctx, requester(1, 3, 0), &aliases, domain).expect("attach");
    assert!(reaches(&fake, source(1, 3, 0)) && reaches(&fake, source(1, 0, 0)));
    assert_eq!(fake.dma(source(1, 4, 0), 0x1000, false), Err(2));
    assert_eq!(fake.dma(source(0, 2, 0), 0x1000, false), Err(1));
    let there = entry(&iommu, source(1, 0, 0));
    assert_eq!((there.levels(), there.domain_id(), there.tt()), (4, DomainId(1), 0));
    assert_eq!(Some(there.top_table()), iommu.top_table(domain));
    assert_eq!(iommu.requesters(), [(requester(1, 3, 0), domain)]);
    iommu.detach(&mut ctx, requester(1, 3, 0)).expect("detach");
    assert!(!reaches(&fake, source(1, 3, 0)) && !reaches(&fake, source(1, 0, 0)));
    assert_eq!(entry(&iommu, source(1, 0, 0)), ContextEntry::ZERO);
    assert_eq!(fake.with_unit(|u| u.cached_domains().len()), 0);
    assert_eq!(iommu.domain_id(domain, UNIT), None);
    assert_eq!(iommu.detach(&mut ctx, requester(1, 3, 0)), Err(AttachError::NotAttached(requester(1, 3, 0))));
}

#[test]
fn an_entry_appears_with_its_present_bit_last_and_goes_with_its_present_bit_first() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = domain(&iommu, &mut ctx);
    let queue = fake.with_unit(|u| u.iqa);
    let stores = |done: Vec<Done>| -> Vec<Done> {
        done.into_iter().filter(|d| !matches!(d, Done::Store { at, .. } if at >> 12 == queue >> 12)).collect()
    };
    fake.0.borrow_mut().log_stores = true;
    fake.done();
    iommu.attach(&mut ctx, requester(0, 2, 0), &[], domain).expect("attach");
    let words = entry(&iommu, source(0, 2, 0)).raw();
    let root = iommu.units()[0].root_table().get();
    let table = fake.read(PhysAddr::new(root)).expect("root") & !0xfff;
    let at = table + 16 * 0x10;
    let store = |at, value| Done::Store { at, value };
    let expected = [store(at + 8, words[1]), store(at, words[0]), store(root + 8, 0), store(root, table | 1)];
    assert_eq!(stores(fake.done()), expected);
    iommu.detach(&mut ctx, requester(0, 2, 0)).expect("detach");
    let forgotten = [
        Done::Context { g: 3, source: 0x10, domain: 1 },
        Done::Wait,
        Done::Translations { g: 2, domain: 1, page: 0, order: 0 },
        Done::Wait,
    ];
    let mut expected = Vec::from([store(at, words[0] & !1)]);
    expected.extend(forgotten);
    expected.extend([store(at + 8, 0), store(at, 0)]);
    assert_eq!(stores(fake.done()), expected);
}

#[test]
fn requesters_that_share_an_alias_share_its_entry_until_the_last_one_goes() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let (one, other) = (domain(&iommu, &mut ctx), domain(&iommu, &mut ctx));
    let bridge = [source(1, 0, 0)];
    iommu.attach(&mut ctx, requester(1, 3, 0), &bridge, one).expect("attach");
    let before = fake.memory();
    let e = iommu.attach(&mut ctx, requester(1, 4, 0), &bridge, other).expect_err("another domain");
    assert_eq!(e, AttachError::Occupied { requester: requester(1, 4, 0), source: bridge[0] });
    assert_eq!(fake.memory(), before);
    assert_eq!(iommu.domain_id(other, UNIT), None);
    iommu.attach(&mut ctx, requester(1, 4, 0), &bridge, one).expect("the same domain");
    iommu.detach(&mut ctx, requester(1, 3, 0)).expect("detach");
    assert!(reaches(&fake, bridge[0]) && reaches(&fake, source(1, 4, 0)) && !reaches(&fake, source(1, 3, 0)));
    assert_eq!(iommu.domain_id(one, UNIT), Some(DomainId(1)));
    iommu.detach(&mut ctx, requester(1, 4, 0)).expect("detach");
    assert!(!reaches(&fake, bridge[0]));
    assert_eq!(iommu.domain_id(one, UNIT), None);
}

#[test]
fn an_entry_that_the_driver_does_not_know_is_not_overwritten() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = domain(&iommu, &mut ctx);
    iommu.attach(&mut ctx, requester(0, 2, 0), &[], domain).expect("attach");
    let table = fake.read(iommu.units()[0].root_table()).expect("root") & !0xfff;
    fake.write(PhysAddr::new(table + 16 * 0x18), 0x9).expect("pass-through by somebody else");
    let before = fake.memory();
    let aliases = [source(0, 3, 0), source(7, 0, 0)];
    let e = iommu.attach(&mut ctx, requester(0, 4, 0), &aliases, domain).expect_err("in use");
    assert_eq!(e, AttachError::Occupied { requester: requester(0, 4, 0), source: aliases[0] });
    assert_eq!(fake.memory(), before);
}

#[test]
fn attaching_without_memory_for_a_context_table_changes_nothing() {
    for left in 0..2 {
        let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
        fake.0.borrow_mut().largest_run = 2;
        let iommu = running(&fake, &mut ctx);
        let domain = domain(&iommu, &mut ctx);
        let before = (fake.memory(), fake.frames_given());
        // One frame of the unit's last run may be left over already: two buses need two, three need one more.
        fake.0.borrow_mut().frames_left = left;
        let aliases = [source(5, 0, 0), source(6, 0, 0), source(7, 0, 0)];
        let e = iommu.attach(&mut ctx, requester(4, 0, 0), &aliases, domain).expect_err("no memory");
        assert!(matches!(e, AttachError::OutOfMemory { .. }), "{e}");
        assert!((fake.memory(), fake.frames_given()) == before, "a trace was left with {left} frames");
        assert_eq!(iommu.domain_id(domain, UNIT), None);
        assert_eq!(iommu.requesters(), []);
        fake.0.borrow_mut().frames_left = u64::MAX;
        iommu.attach(&mut ctx, requester(4, 0, 0), &aliases, domain).expect("attach");
        assert_eq!(iommu.domain_id(domain, UNIT), Some(DomainId(1)));
    }
}

#[test]
fn an_attach_that_hardware_does_not_confirm_is_undone_and_its_id_is_not_given_again() {
    let (fake, mut ctx) = (Fake::new(QEMU_CAP | 1 << 7, QEMU_ECAP), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = domain(&iommu, &mut ctx);
    iommu.attach(&mut ctx, requester(0, 1, 0), &[], domain).expect("attach");
    iommu.detach(&mut ctx, requester(0, 1, 0)).expect("detach");
    let queue = fake.with_unit(|u| u.iqa) >> 12;
    let without_queue = || {
        let mut memory = fake.memory();
        memory.remove(&queue);
        memory
    };
    let before = without_queue();
    fake.with_unit(|u| u.stuck = Stuck::Invalidations);
    let e = iommu.attach(&mut ctx, requester(0, 2, 0), &[source(3, 0, 0)], domain).expect_err("stuck");
    assert!(matches!(e, AttachError::TimedOut(_)), "{e}");
    assert_eq!(without_queue(), before);
    assert_eq!(iommu.domain_of(requester(0, 2, 0)), None);
    fake.with_unit(|u| u.stuck = Stuck::No);
    iommu.attach(&mut ctx, requester(0, 2, 0), &[], domain).expect("attach");
    assert_eq!(iommu.domain_id(domain, UNIT), Some(DomainId(2)));
}

#[test]
fn a_detach_that_hardware_does_not_confirm_blocks_the_requester_and_can_be_tried_again() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = domain(&iommu, &mut ctx);
    iommu.attach(&mut ctx, requester(0, 2, 0), &[source(0, 3, 0)], domain).expect("attach");
    assert!(reaches(&fake, source(0, 2, 0)));
    fake.with_unit(|u| u.stuck = Stuck::Invalidations);
    let e = iommu.detach(&mut ctx, requester(0, 2, 0)).expect_err("stuck");
    assert!(matches!(e, AttachError::TimedOut(_)), "{e}");
    for source in [source(0, 2, 0), source(0, 3, 0)] {
        let left = entry(&iommu, source);
        assert!(!left.present() && left.domain_id() == DomainId(1), "the rest is kept to try again");
    }
    assert_eq!(iommu.destroy_domain(&mut ctx, domain), Err(DomainError::InUse(requester(0, 2, 0))));
    fake.with_unit(|u| u.stuck = Stuck::No);
    iommu.detach(&mut ctx, requester(0, 2, 0)).expect("detach");
    assert!(!reaches(&fake, source(0, 2, 0)));
    assert_eq!(entry(&iommu, source(0, 3, 0)), ContextEntry::ZERO);
    iommu.destroy_domain(&mut ctx, domain).expect("destroy");
}

#[test]
fn domain_ids_are_counted_per_unit_and_run_out_with_a_name() {
    let (fake, mut ctx) = (Fake::new(QEMU_CAP & !7, QEMU_ECAP), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let shared = iommu.create_domain(&mut ctx, &[UNIT, SECOND], None).expect("domain");
    iommu.reserve_domain_id(UNIT, DomainId(1)).expect("free");
    let taken = DomainError::DomainIdTaken { unit: UNIT, id: DomainId(1) };
    assert_eq!(iommu.reserve_domain_id(UNIT, DomainId(1)), Err(taken));
    iommu.attach(&mut ctx, requester(0, 2, 0), &[], shared).expect("attach");
    iommu.attach(&mut ctx, requester(0, 0x1f, 0), &[], shared).expect("attach");
    assert_eq!(iommu.domain_id(shared, UNIT), Some(DomainId(2)));
    assert_eq!(iommu.domain_id(shared, SECOND), Some(DomainId(1)), "reserved on the other unit only");
    for device in 3..16 {
        let domain = iommu.create_domain(&mut ctx, &[UNIT], None).expect("domain");
        iommu.attach(&mut ctx, requester(0, device, 0), &[], domain).expect("attach");
    }
    let last = iommu.create_domain(&mut ctx, &[UNIT], None).expect("domain");
    let before = (fake.memory(), fake.frames_given());
    let e = iommu.attach(&mut ctx, requester(0, 16, 0), &[], last).expect_err("16 ids, one never used");
    assert_eq!(e, AttachError::Domain(DomainError::NoDomainId(UNIT)));
    assert!((fake.memory(), fake.frames_given()) == before, "nothing has changed");
    iommu.release_domain_id(UNIT, DomainId(1)).expect("reserved");
    assert!(iommu.release_domain_id(UNIT, DomainId(2)).is_err(), "a domain's");
    iommu.attach(&mut ctx, requester(0, 16, 0), &[], last).expect("attach");
}

#[test]
fn a_destroyed_domain_gives_every_frame_back() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let before = fake.frames_given();
    let domain = domain(&iommu, &mut ctx);
    iommu.attach(&mut ctx, requester(0, 2, 0), &[], domain).expect("attach");
    assert_eq!(iommu.destroy_domain(&mut ctx, domain), Err(DomainError::InUse(requester(0, 2, 0))));
    iommu.detach(&mut ctx, requester(0, 2, 0)).expect("detach");
    let top = iommu.top_table(domain).expect("domain");
    iommu.hold_mappings(top, true);
    assert_eq!(iommu.destroy_domain(&mut ctx, domain), Err(DomainError::Frozen));
    iommu.hold_mappings(top, false);
    iommu.destroy_domain(&mut ctx, domain).expect("destroy");
    assert_eq!(fake.frames_given(), before);
    assert_eq!(iommu.destroy_domain(&mut ctx, domain), Err(DomainError::NoDomain));
}

/// What a predecessor leaves: a running unit, one domain with a requester and an alias.
fn left_behind(fake: &Fake, ctx: &mut MaySleep) -> (PhysAddr, Vec<Extent>) {
    let iommu = running(fake, ctx);
    let other = domain(&iommu, ctx);
    let kept = domain(&iommu, ctx);
    iommu.attach(ctx, requester(0, 9, 0), &[], other).expect("attach");
    iommu.attach(ctx, requester(1, 3, 0), &[source(1, 0, 0)], kept).expect("attach");
    let mut tables = Vec::new();
    iommu.domain_tables(kept, &mut |run| tables.push(run)).expect("domain");
    (iommu.top_table(kept).expect("domain"), tables)
}

const KEPT: Requester = Requester { segment: super::SEGMENT, source: SourceId::new(1, 3, 0) };

#[test]
fn a_successor_takes_domain_and_requester_over_while_they_run() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let (top, tables) = left_behind(&fake, &mut ctx);
    // The second unit was left off.
    fake.0.borrow_mut().units[1].status = spec::regs::Gsts::ZERO;
    assert!(reaches(&fake, KEPT.source));
    let iommu = Iommu::take_over(&fake, &mut ctx, setup()).expect("take over");
    assert_eq!(
        iommu.units().iter().map(|u| u.origin()).collect::<Vec<_>>(),
        [Origin::TakenOver, Origin::SetUp]
    );
    assert!(reaches(&fake, KEPT.source) && !fake.with_unit(|u| u.translation_went_off));
    let id = DomainId(2);
    iommu.reserve_domain_id(UNIT, id).expect("free");
    let domain = iommu.import_domain(&mut ctx, top, 4, &[(UNIT, id)], &tables).expect("import");
    let before = fake.memory();
    iommu.import_requester(&mut ctx, KEPT, &[source(1, 0, 0)], domain).expect("import");
    assert_eq!(fake.memory(), before, "entries are compared, not written");
    assert_eq!(iommu.domain_id(domain, UNIT), Some(id));
    // Held first, then as any other: mapped, unmapped, detached, destroyed.
    let map = |ctx: &mut MaySleep| {
        iommu.map(ctx, domain, Iova::new(0x10_0000), PhysAddr::new(0x20_0000), 0x1000, Access::READ)
    };
    assert_eq!(map(&mut ctx), Err(MapError::Frozen));
    assert!(iommu.hold_mappings(top, false));
    map(&mut ctx).expect("map");
    assert_eq!(fake.dma(KEPT.source, 0x10_0000, false), Ok(0x20_0000));
    assert_eq!(iommu.unmap(&mut ctx, domain, Iova::new(0), 0x20_0000), Ok(0x5000));
    assert!(!reaches(&fake, KEPT.source));
    iommu.detach(&mut ctx, KEPT).expect("detach");
    assert_eq!(iommu.domain_id(domain, UNIT), Some(id), "an imported domain keeps its id");
    // The fake gave tables in whole chunks; the import names the used part of one.
    let rest = fake.frames_given().len();
    iommu.destroy_domain(&mut ctx, domain).expect("destroy");
    assert!(fake.frames_given().len() < rest);
    iommu.reserve_domain_id(UNIT, id).expect("free again");
}

#[test]
fn an_import_that_does_not_match_hardware_is_refused() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let (top, tables) = left_behind(&fake, &mut ctx);
    let iommu = Iommu::take_over(&fake, &mut ctx, setup()).expect("take over");
    let id = DomainId(2);
    let mut import = |top, levels, ids: &[(spec::UnitId, DomainId)], tables: &[Extent]| {
        iommu.import_domain(&mut ctx, top, levels, ids, tables)
    };
    let elsewhere = PhysAddr::new(0x9999_9000);
    assert_eq!(import(elsewhere, 4, &[(UNIT, id)], &tables), Err(DomainError::TopTable(elsewhere)));
    assert_eq!(
        import(top, 4, &[(UNIT, DomainId(0))], &tables),
        Err(DomainError::DomainIdTaken { unit: UNIT, id: DomainId(0) })
    );
    assert_eq!(
        import(top, 4, &[(UNIT, id), (UNIT, id)], &tables),
        Err(DomainError::DomainIdTaken { unit: UNIT, id })
    );
    assert_eq!(import(top, 9, &[(UNIT, id)], &tables), Err(DomainError::Levels { unit: UNIT, levels: 9 }));
    let nowhere = spec::UnitId { register_base: 0, ..UNIT };
    assert_eq!(import(top, 4, &[(nowhere, id)], &tables), Err(DomainError::NoUnit(nowhere)));
    let domain = import(top, 4, &[(UNIT, id)], &tables).expect("import");
    assert_eq!(import(top, 4, &[(UNIT, DomainId(3))], &tables), Err(DomainError::TopTable(top)), "twice");
    let mismatch = |requester, source| Err(AttachError::Mismatch { requester, source });
    let stranger = requester(0, 9, 0);
    assert_eq!(iommu.import_requester(&mut ctx, stranger, &[], domain), mismatch(stranger, stranger.source));
    // The right table under another id than the entry has: its translations would not be forgotten.
    let wrong = Iommu::take_over(&fake, &mut ctx, setup()).expect("take over");
    let renamed = wrong.import_domain(&mut ctx, top, 4, &[(UNIT, DomainId(3))], &tables).expect("import");
    assert_eq!(wrong.import_requester(&mut ctx, KEPT, &[], renamed), mismatch(KEPT, KEPT.source));
    let absent = source(1, 5, 0);
    assert_eq!(iommu.import_requester(&mut ctx, KEPT, &[absent], domain), mismatch(KEPT, absent));
    let foreign = requester(0, 0x1f, 0);
    assert_eq!(iommu.import_requester(&mut ctx, foreign, &[], domain), mismatch(foreign, foreign.source));
    iommu.import_requester(&mut ctx, KEPT, &[], domain).expect("import");
    assert_eq!(iommu.import_requester(&mut ctx, KEPT, &[], domain), Err(AttachError::Attached(KEPT)));
}

#[test]
fn a_requester_goes_to_the_unit_that_names_it_or_to_the_catch_all_of_its_segment() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    assert_eq!(iommu.unit_of(requester(0, 0x1f, 0)).map(Unit::id), Some(SECOND));
    assert_eq!(iommu.unit_of(requester(0, 0x1f, 1)).map(Unit::id), Some(UNIT));
    let elsewhere = Requester::new(spec::Segment(3), source(0, 2, 0));
    assert!(iommu.unit_of(elsewhere).is_none());
    let domain = domain(&iommu, &mut ctx);
    assert_eq!(iommu.attach(&mut ctx, elsewhere, &[], domain), Err(AttachError::NoUnit(elsewhere)));
}
