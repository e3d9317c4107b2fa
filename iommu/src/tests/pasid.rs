//! PASIDs of requesters: attached, detached, shared, refused; the shape of their entries and the order of stores.

use super::{CONFIG, requester, rich, rich_fake, running, running_as, running_in, source};
use crate::config::Capability;
use crate::domain::DomainHandle;
use crate::error::{AttachError, DomainError, MapError};
use crate::fake::scalable::{NO_CONTEXT, NO_PASID};
use crate::fake::{Done, Fake, SECOND, Stuck, UNIT};
use crate::pasid::{Attachment, GuestTables};
use crate::table::format::{Access, Stage};
use crate::{Config, Iommu, Mode};
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, TableMemory};
use spec::regs::{Cap, Ecap};
use spec::scalable::{PasidDirectoryEntry, PasidEntry, ScalableContextEntry, directory_index, table_index};
use spec::{DomainId, Iova, PhysAddr, SourceId};

pub(super) const SCALABLE: Config = Config { mode: Mode::SecondStage, ..CONFIG };
pub(super) const FIRST: Config = Config { mode: Mode::FirstStage, ..CONFIG };
pub(super) const BASE: u64 = 0x10_0000;

/// A domain whose first pages lead to `BASE * n`.
pub(super) fn domain(iommu: &Iommu<'_, Fake>, ctx: &mut MaySleep, n: u64) -> DomainHandle {
    let domain = iommu.create_domain(ctx, &[UNIT], None).expect("domain");
    fill(iommu, ctx, domain, n);
    domain
}

pub(super) fn fill(iommu: &Iommu<'_, Fake>, ctx: &mut MaySleep, domain: DomainHandle, n: u64) {
    let to = PhysAddr::new(BASE * n);
    iommu.map(ctx, domain, Iova::new(0), to, 0x4000, Access::READ_WRITE).expect("map");
}

/// Which domain, by the number it was filled with, a request goes to.
pub(super) fn reached(fake: &Fake, source: SourceId, pasid: Option<u32>) -> Result<u64, u8> {
    fake.dma_with(source, pasid, 0x1000, true).map(|to| to / BASE)
}

pub(super) fn context(iommu: &Iommu<'_, Fake>, source: SourceId) -> ScalableContextEntry {
    iommu.units()[0].scalable_context_entry(source).expect("tables in memory").unwrap_or_default()
}

/// The PASID entry that a context entry leads to, and where it lies.
pub(super) fn entry(fake: &Fake, context: ScalableContextEntry, pasid: u32) -> (PhysAddr, PasidEntry) {
    let at = context.directory().plus(8 * directory_index(pasid));
    let table = PasidDirectoryEntry::from_raw(fake.read(at).expect("directory"));
    assert!(table.present());
    let at = table.table().plus(64 * table_index(pasid));
    let mut words = [0; 8];
    fake.read_words(at, &mut words).expect("table");
    (at, PasidEntry::from_raw(words))
}

#[test]
fn every_pasid_of_a_requester_goes_to_its_own_domain_and_all_others_are_blocked() {
    for config in [SCALABLE, FIRST, Config { narrow_queue: true, ..SCALABLE }] {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let iommu = running_as(&fake, &mut ctx, config);
        let domains = [1, 2, 3].map(|n| domain(&iommu, &mut ctx, n));
        // Both halves of the bus, and an alias on another.
        let (who, aliases) = (requester(1, 0x12, 0), [source(1, 0, 0), source(2, 3, 1)]);
        for (pasid, domain) in [(0, domains[0]), (5, domains[1]), (0x1fff, domains[2])] {
            iommu.attach_pasid(&mut ctx, who, &aliases, pasid, domain).expect("attach");
        }
        for source in [who.source, aliases[0], aliases[1]] {
            assert_eq!(reached(&fake, source, None), Ok(1), "{source}");
            assert_eq!(reached(&fake, source, Some(5)), Ok(2));
            assert_eq!(reached(&fake, source, Some(0x1fff)), Ok(3));
            assert_eq!(reached(&fake, source, Some(6)), Err(NO_PASID));
            assert_eq!(reached(&fake, source, Some(0x2005)), Err(NO_PASID), "beyond the directory");
            assert_eq!(context(&iommu, source), context(&iommu, who.source), "aliases have equal entries");
        }
        assert_eq!(reached(&fake, source(1, 0x12, 1), None), Err(NO_CONTEXT));
        assert_eq!(
            reached(&fake, source(1, 2, 0), None),
            Err(NO_CONTEXT),
            "the same place in the other half"
        );
        assert_eq!(fake.with_unit(|u| u.incoherent), 0, "walks snoop where they can");
        assert_eq!(iommu.domain_of(who), Some(domains[0]));
        let all = [(0, domains[0]), (5, domains[1]), (0x1fff, domains[2])];
        assert_eq!(iommu.pasids(who), all.map(|(pasid, domain)| (pasid, Attachment::Domain(domain))));

        iommu.detach_pasid(&mut ctx, who, 5).expect("detach");
        assert_eq!(reached(&fake, aliases[1], Some(5)), Err(NO_PASID));
        assert_eq!(
            (reached(&fake, who.source, None), reached(&fake, who.source, Some(0x1fff))),
            (Ok(1), Ok(3))
        );
        assert_eq!(iommu.domain_id(domains[1], UNIT), None);
        iommu.detach(&mut ctx, who).expect("detach");
        for source in [who.source, aliases[0], aliases[1]] {
            assert_eq!(reached(&fake, source, None), Err(NO_CONTEXT));
            assert_eq!(context(&iommu, source), ScalableContextEntry::ZERO);
        }
        assert_eq!(fake.with_unit(|u| u.cached_domains().len()), 0);
        assert_eq!(iommu.requesters(), []);
    }
}

#[test]
fn attach_in_scalable_mode_is_to_attach_pasid_0() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let (one, other) = (domain(&iommu, &mut ctx, 1), domain(&iommu, &mut ctx, 2));
    let who = requester(0, 2, 0);
    iommu.attach(&mut ctx, who, &[], one).expect("attach");
    assert_eq!((reached(&fake, who.source, None), iommu.requesters()), (Ok(1), Vec::from([(who, one)])));
    assert_eq!(iommu.attach(&mut ctx, who, &[], other), Err(AttachError::Attached(who)));
    iommu.attach_pasid(&mut ctx, who, &[], 7, other).expect("attach");
    assert_eq!(
        iommu.attach_pasid(&mut ctx, who, &[], 7, one),
        Err(AttachError::PasidInUse { requester: who, pasid: 7 })
    );
    assert_eq!(iommu.destroy_domain(&mut ctx, other), Err(DomainError::InUse(who)));
    let aliases = iommu.attach_pasid(&mut ctx, who, &[source(0, 3, 0)], 8, one);
    assert_eq!(aliases, Err(AttachError::Aliases(who)));
    iommu.detach_pasid(&mut ctx, who, 0).expect("detach");
    assert_eq!(
        (reached(&fake, who.source, None), reached(&fake, who.source, Some(7))),
        (Err(NO_PASID), Ok(2))
    );
    assert_eq!((iommu.domain_of(who), iommu.requesters()), (None, Vec::new()));
    let absent = AttachError::PasidNotAttached { requester: who, pasid: 0 };
    assert_eq!(iommu.detach_pasid(&mut ctx, who, 0), Err(absent));
    iommu.attach(&mut ctx, who, &[], one).expect("again");
    assert_eq!(reached(&fake, who.source, None), Ok(1));
    iommu.detach_pasid(&mut ctx, who, 7).expect("detach");
    iommu.detach_pasid(&mut ctx, who, 0).expect("the last one");
    assert_eq!(iommu.detach_pasid(&mut ctx, who, 0), Err(AttachError::NotAttached(who)));
    assert_eq!(reached(&fake, who.source, None), Err(NO_CONTEXT));
}

#[test]
fn entries_say_what_the_specification_wants_of_each_kind() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let second = iommu.create_staged_domain(&mut ctx, Stage::Second, &[UNIT], Some(3)).expect("domain");
    let first = iommu.create_staged_domain(&mut ctx, Stage::First, &[UNIT], Some(5)).expect("domain");
    let guest = GuestTables { top: Iova::new(0x3000), levels: 4 };
    let who = requester(0, 2, 0);
    iommu.attach(&mut ctx, who, &[], second).expect("attach");
    iommu.attach_pasid(&mut ctx, who, &[], 1, first).expect("attach");
    iommu.attach_nested(&mut ctx, who, &[], 2, guest, second).expect("attach");
    iommu.attach_pass_through(&mut ctx, who, &[], 3).expect("attach");
    let context = context(&iommu, who.source);
    assert_eq!((context.rid_pasid(), context.pdts(), context.paside()), (0, 0, true));
    assert_eq!(context.raw()[1..], [0; 3]);
    let top = |domain| iommu.top_table(domain).expect("domain").frame().number();
    let plain = |id: u64| PasidEntry::ZERO.with_present(true).with_did(id).with_pwsnp(true);
    let expected = [
        plain(1).with_pgtt(2).with_aw(1).with_ssptptr(top(second)),
        plain(2).with_pgtt(1).with_aw(2).with_fspm(1).with_fsptptr(top(first)),
        plain(3).with_pgtt(3).with_aw(1).with_ssptptr(top(second)).with_fsptptr(3),
        plain(4).with_pgtt(4).with_aw(2),
    ];
    for (pasid, expected) in (0..).zip(expected) {
        assert_eq!(entry(&fake, context, pasid).1, expected, "PASID {pasid}");
    }
    assert_eq!(fake.dma_with(who.source, Some(3), 0x1234_5678, true), Ok(0x1234_5678));
    iommu.detach(&mut ctx, who).expect("detach");
    for id in 1..=4 {
        iommu.reserve_domain_id(UNIT, DomainId(id)).expect("ids of all kinds are free again");
    }
}

#[test]
fn an_entry_appears_present_bit_last_and_goes_present_bit_first_and_the_caches_forget_in_order() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let second = domain(&iommu, &mut ctx, 1);
    let first = iommu.create_staged_domain(&mut ctx, Stage::First, &[UNIT], None).expect("domain");
    let queue = fake.with_unit(|u| u.iqa) >> 12;
    let log = || {
        let done = fake.done().into_iter();
        done.filter(|d| !matches!(d, Done::Store { at, .. } if at >> 12 == queue)).collect::<Vec<_>>()
    };
    let store = |at: PhysAddr, value| Done::Store { at: at.get(), value };
    fake.0.borrow_mut().log_stores = true;
    log();
    // Function 1 of device 0x10: upper half, entry 1.
    let who = requester(3, 0x10, 1);
    iommu.attach(&mut ctx, who, &[], second).expect("attach");
    let context = context(&iommu, who.source);
    let (at, words) = entry(&fake, context, 0);
    let table = PhysAddr::new(at.get() & !0xfff);
    let root = iommu.units()[0].root_table().plus(16 * 3 + 8);
    let contexts = PhysAddr::new(fake.read(root).expect("root") & !0xfff);
    let slot = contexts.plus(32);
    let mut expected: Vec<Done> =
        (0..8).rev().map(|i| store(at.plus(8 * i), words.raw()[i as usize])).collect();
    expected.push(store(context.directory(), table.get() | 1));
    expected.extend((0..4).rev().map(|i| store(slot.plus(8 * i), context.raw()[i as usize])));
    expected.push(store(root, contexts.get() | 1));
    assert_eq!(log(), expected);

    iommu.attach_pasid(&mut ctx, who, &[], 1, first).expect("attach");
    let (other, words) = entry(&fake, context, 1);
    let stores: Vec<Done> = (0..8).rev().map(|i| store(other.plus(8 * i), words.raw()[i as usize])).collect();
    assert_eq!(log(), stores);
    iommu.detach_pasid(&mut ctx, who, 1).expect("detach");
    let mut expected = Vec::from([
        store(other, words.raw()[0] & !1),
        Done::Pasids { g: 1, domain: 2, pasid: 1 },
        Done::Wait,
        Done::PasidTranslations { g: 2, domain: 2, pasid: 1, page: 0, order: 0 },
        Done::Wait,
    ]);
    expected.extend((0..8).rev().map(|i| store(other.plus(8 * i), 0)));
    assert_eq!(log(), expected);

    let words = entry(&fake, context, 0).1.raw();
    iommu.detach(&mut ctx, who).expect("detach");
    let mut expected = Vec::from([
        store(slot, context.raw()[0] & !1),
        store(at, words[0] & !1),
        Done::Context { g: 3, source: who.source.raw(), domain: 0 },
        Done::Wait,
        Done::Pasids { g: 1, domain: 1, pasid: 0 },
        Done::Wait,
        Done::Translations { g: 2, domain: 1, page: 0, order: 0 },
        Done::Wait,
    ]);
    expected.extend((0..8).rev().map(|i| store(at.plus(8 * i), 0)));
    expected.extend((0..4).rev().map(|i| store(slot.plus(8 * i), 0)));
    expected.push(store(context.directory(), 0));
    assert_eq!(log(), expected);
}

#[test]
fn directories_have_the_size_that_is_asked_for_and_hold_the_pasids_that_follow_from_it() {
    for pdts in 0..=8_u8 {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let iommu = running_as(&fake, &mut ctx, Config { pasid_directory: pdts, ..SCALABLE });
        let domain = domain(&iommu, &mut ctx, 1);
        let before = (fake.memory(), fake.frames_given());
        let who = requester(0, 2, 0);
        let limit = 1_u32 << (13 + pdts.min(7));
        iommu.attach_pasid(&mut ctx, who, &[], limit - 1, domain).expect("the last one");
        let e = iommu.attach_pasid(&mut ctx, who, &[], limit, domain);
        assert_eq!(e, Err(AttachError::PasidRange { requester: who, pasid: limit, limit }));
        assert_eq!(u8::try_from(context(&iommu, who.source).pdts()), Ok(pdts.min(7)));
        assert_eq!(reached(&fake, who.source, Some(limit - 1)), Ok(1));
        iommu.detach(&mut ctx, who).expect("detach");
        assert_eq!(fake.frames_given(), before.1, "all frames came back");
        let after = fake.memory();
        let queue = fake.with_unit(|u| u.iqa) >> 12;
        let root = iommu.units()[0].root_table().frame().number();
        let quiet = |(frame, _): &(&u64, &Vec<u64>)| ![queue, queue + 1, root].contains(*frame);
        assert!(
            after.iter().filter(quiet).eq(before.0.iter().filter(quiet)),
            "and every other word is as before"
        );
    }
}

#[test]
fn pasids_that_hardware_does_not_serve_are_refused_by_name() {
    let ecap = Ecap::from_raw(rich().1);
    let (fake, mut ctx) = (Fake::new(rich().0, ecap.with_pss(9).raw()), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let one = domain(&iommu, &mut ctx, 1);
    let who = requester(0, 2, 0);
    let e = iommu.attach_pasid(&mut ctx, who, &[], 1024, one);
    assert_eq!(e, Err(AttachError::PasidRange { requester: who, pasid: 1024, limit: 1024 }));
    iommu.attach_pasid(&mut ctx, who, &[], 1023, one).expect("attach");

    // As QEMU has it: scalable mode, but no requests with PASID.
    let none = ecap.with_pasid(false).with_nest(false).with_pt(false);
    let (fake, mut ctx) = (Fake::new(rich().0, none.raw()), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let one = domain(&iommu, &mut ctx, 1);
    let lacks = |what| Err(AttachError::Lacks { requester: who, what });
    assert_eq!(iommu.attach_pasid(&mut ctx, who, &[], 1, one), lacks(Capability::Pasid));
    let guest = GuestTables { top: Iova::new(0), levels: 4 };
    assert_eq!(iommu.attach_nested(&mut ctx, who, &[], 0, guest, one), lacks(Capability::Nested));
    assert_eq!(iommu.attach_pass_through(&mut ctx, who, &[], 0), lacks(Capability::PassThrough));
    iommu.attach(&mut ctx, who, &[], one).expect("attach");
    assert!(!context(&iommu, who.source).paside());

    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let one = domain(&iommu, &mut ctx, 1);
    let legacy = Err(AttachError::LegacyMode(who));
    assert_eq!(iommu.attach_pasid(&mut ctx, who, &[], 0, one), legacy);
    iommu.attach(&mut ctx, who, &[], one).expect("attach");
    assert_eq!(iommu.detach_pasid(&mut ctx, who, 0), legacy);
}

#[test]
fn domains_are_of_a_stage_and_depth_that_the_unit_walks_in_its_mode() {
    let cap = Cap::from_raw(rich().0);
    let create = |cap: Cap, ecap: Ecap, mode, stage, levels| {
        let (fake, mut ctx) = (Fake::new(cap.raw(), ecap.raw()), MaySleep::at_thread_start());
        let iommu = running_in(&fake, &mut ctx, mode);
        let domain = iommu.create_staged_domain(&mut ctx, stage, &[UNIT, SECOND], levels);
        domain.map(|domain| (iommu.stage(domain), iommu.levels(domain)))
    };
    let ecap = Ecap::from_raw(rich().1);
    let (first, second) = (Stage::First, Stage::Second);
    let wrong = |stage| Err(DomainError::Stage { unit: UNIT, stage });
    let levels = |levels| Err(DomainError::Levels { unit: UNIT, levels });
    assert_eq!(create(cap, ecap, Mode::FirstStage, first, None), Ok((Some(first), Some(4))));
    assert_eq!(create(cap, ecap, Mode::SecondStage, first, Some(5)), Ok((Some(first), Some(5))));
    assert_eq!(create(cap, ecap, Mode::FirstStage, second, Some(3)), Ok((Some(second), Some(3))));
    assert_eq!(create(cap, ecap, Mode::Legacy, first, None), wrong(first));
    assert_eq!(create(cap, ecap.with_fsts(false), Mode::SecondStage, first, None), wrong(first));
    assert_eq!(create(cap, ecap.with_ssts(false), Mode::FirstStage, second, None), wrong(second));
    assert_eq!(create(cap, ecap, Mode::FirstStage, first, Some(3)), levels(3));
    assert_eq!(create(cap.with_fs5lp(false), ecap, Mode::FirstStage, first, Some(5)), levels(5));
    assert_eq!(create(cap, ecap, Mode::FirstStage, second, Some(5)), levels(5));
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, FIRST);
    let domain = iommu.create_domain(&mut ctx, &[UNIT], None).expect("domain");
    assert_eq!(iommu.stage(domain), Some(Stage::First));
    let to = PhysAddr::new(0x1000);
    let refused = iommu.map(&mut ctx, domain, Iova::new(0), to, 0x1000, Access::WRITE);
    assert_eq!(refused, Err(MapError::WriteOnly));
}

/// Attaches in a machine that has nothing yet, or a requester already, running out of memory at the n-th frame.
fn starved(pdts: u8, existing: bool) {
    for left in 0.. {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        // Chunks of one frame: every frame is an allocation of its own. A directory of several still is one.
        fake.0.borrow_mut().largest_run = 32;
        let iommu = running_as(&fake, &mut ctx, Config { pasid_directory: pdts, ..SCALABLE });
        let one = domain(&iommu, &mut ctx, 1);
        let (who, aliases) = (requester(4, 0, 0), [source(5, 0x1f, 0), source(6, 0, 0)]);
        if existing {
            iommu.attach_pasid(&mut ctx, who, &aliases, 0, one).expect("attach");
        }
        // Use up what is left of the unit's chunk.
        let spare: Vec<_> = core::iter::from_fn(|| iommu.units()[0].tables.borrow_mut().take()).collect();
        assert!(!spare.is_empty());
        let before = (fake.memory(), fake.frames_given(), iommu.pasids(who));
        fake.0.borrow_mut().frames_left = left;
        let Err(e) = iommu.attach_pasid(&mut ctx, who, &aliases, 0x1000, one) else {
            assert!(left > 0, "nothing was needed");
            assert_eq!(reached(&fake, aliases[0], Some(0x1000)), Ok(1));
            return;
        };
        assert!(matches!(e, AttachError::OutOfMemory { .. }), "{e}");
        let after = (fake.memory(), fake.frames_given(), iommu.pasids(who));
        assert!(after == before, "a trace was left with {left} frames");
        assert_eq!(iommu.domain_id(one, UNIT).is_some(), existing);
    }
}

#[test]
fn attaching_that_runs_out_of_memory_at_any_frame_changes_nothing() {
    for pdts in [0, 2, 3, 5] {
        starved(pdts, false);
        starved(pdts, true);
    }
}

#[test]
fn an_attach_that_hardware_does_not_confirm_is_undone_and_its_id_is_not_given_again() {
    let (fake, mut ctx) = (Fake::new(rich().0 | 1 << 7, rich().1), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let (one, other) = (domain(&iommu, &mut ctx, 1), domain(&iommu, &mut ctx, 2));
    let who = requester(0, 2, 0);
    let queue = fake.with_unit(|u| u.iqa) >> 12;
    let quiet = || {
        let mut memory = fake.memory();
        memory.remove(&queue);
        memory
    };
    for attached in [false, true] {
        let before = quiet();
        fake.with_unit(|u| u.stuck = Stuck::Invalidations);
        let (pasid, to) = if attached { (9, other) } else { (0, one) };
        let e = iommu.attach_pasid(&mut ctx, who, &[source(3, 0, 0)], pasid, to).expect_err("stuck");
        assert!(matches!(e, AttachError::TimedOut(_)), "{e}");
        assert!(quiet() == before, "attached before: {attached}");
        assert_eq!(iommu.domain_id(to, UNIT), None);
        fake.with_unit(|u| u.stuck = Stuck::No);
        iommu.attach_pasid(&mut ctx, who, &[source(3, 0, 0)], pasid, to).expect("attach");
    }
    assert_eq!(iommu.domain_id(one, UNIT), Some(DomainId(2)));
    assert_eq!(iommu.domain_id(other, UNIT), Some(DomainId(4)));
}

#[test]
fn a_detach_that_hardware_does_not_confirm_blocks_the_requester_and_can_be_tried_again() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let (one, other) = (domain(&iommu, &mut ctx, 1), domain(&iommu, &mut ctx, 2));
    let frames = fake.frames_given();
    let who = requester(0, 2, 0);
    iommu.attach(&mut ctx, who, &[], one).expect("attach");
    iommu.attach_pasid(&mut ctx, who, &[], 3, other).expect("attach");
    assert_eq!((reached(&fake, who.source, None), reached(&fake, who.source, Some(3))), (Ok(1), Ok(2)));
    let held = context(&iommu, who.source);
    fake.with_unit(|u| u.stuck = Stuck::Invalidations);
    for whole in [false, true] {
        let e = if whole { iommu.detach(&mut ctx, who) } else { iommu.detach_pasid(&mut ctx, who, 3) };
        assert!(matches!(e, Err(AttachError::TimedOut(_))), "{e:?}");
        let left = entry(&fake, held, 3).1;
        assert!(!left.present() && left.domain_id() == DomainId(2), "the rest is kept to try again");
        assert_eq!(context(&iommu, who.source).present(), !whole);
        assert_eq!(iommu.pasids(who).len(), 2);
    }
    fake.with_unit(|u| u.stuck = Stuck::No);
    iommu.detach_pasid(&mut ctx, who, 3).expect("detach");
    assert_eq!(entry(&fake, held, 3).1, PasidEntry::ZERO);
    iommu.detach(&mut ctx, who).expect("detach");
    assert_eq!(reached(&fake, who.source, None), Err(NO_CONTEXT));
    assert_eq!(fake.frames_given(), frames);
    assert_eq!(fake.with_unit(|u| u.cached_domains().len()), 0);
}

#[test]
fn requesters_that_share_an_alias_share_a_directory_until_the_last_one_goes() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let (one, other) = (domain(&iommu, &mut ctx, 1), domain(&iommu, &mut ctx, 2));
    let frames = fake.frames_given();
    let bridge = [source(1, 0, 0)];
    let (a, b, stranger) = (requester(1, 3, 0), requester(1, 4, 0), requester(1, 5, 0));
    iommu.attach(&mut ctx, a, &bridge, one).expect("attach");
    iommu.attach_pasid(&mut ctx, a, &bridge, 4, other).expect("attach");
    let before = fake.memory();
    let occupied = |requester, source| Err(AttachError::Occupied { requester, source });
    assert_eq!(iommu.attach(&mut ctx, b, &bridge, other), occupied(b, bridge[0]));
    assert_eq!(fake.memory(), before);
    iommu.attach(&mut ctx, b, &bridge, one).expect("the same domain");
    assert_eq!(context(&iommu, b.source), context(&iommu, a.source));
    iommu.attach(&mut ctx, stranger, &[], one).expect("attach");
    let both = [bridge[0], stranger.source];
    let e = iommu.attach(&mut ctx, requester(1, 6, 0), &both, one);
    assert_eq!(e, occupied(requester(1, 6, 0), stranger.source), "aliases of two directories");
    iommu.detach(&mut ctx, a).expect("detach");
    assert_eq!((reached(&fake, a.source, None), reached(&fake, bridge[0], None)), (Err(NO_CONTEXT), Ok(1)));
    assert_eq!(reached(&fake, bridge[0], Some(4)), Err(NO_PASID), "that one was of the first alone");
    assert_eq!(reached(&fake, b.source, None), Ok(1));
    iommu.detach(&mut ctx, b).expect("detach");
    assert_eq!(reached(&fake, bridge[0], None), Err(NO_CONTEXT));
    iommu.detach(&mut ctx, stranger).expect("detach");
    assert_eq!(iommu.domain_id(one, UNIT), None);
    assert_eq!(fake.frames_given(), frames);
}

#[test]
fn an_entry_that_the_driver_does_not_know_is_not_overwritten() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let one = domain(&iommu, &mut ctx, 1);
    let who = requester(0, 2, 0);
    iommu.attach(&mut ctx, who, &[], one).expect("attach");
    let (at, _) = entry(&fake, context(&iommu, who.source), 9);
    fake.write(at, 4 << 6 | 1).expect("pass-through by somebody else");
    let before = fake.memory();
    let e = iommu.attach_pasid(&mut ctx, who, &[], 9, one);
    assert_eq!(e, Err(AttachError::PasidInUse { requester: who, pasid: 9 }));
    assert_eq!(fake.memory(), before);
    let contexts = PhysAddr::new(fake.read(iommu.units()[0].root_table()).expect("root") & !0xfff);
    fake.write(contexts.plus(32 * 0x18), 1).expect("a context entry by somebody else");
    let before = fake.memory();
    let e = iommu.attach(&mut ctx, requester(0, 4, 0), &[source(0, 3, 0)], one);
    assert_eq!(e, Err(AttachError::Occupied { requester: requester(0, 4, 0), source: source(0, 3, 0) }));
    assert_eq!(fake.memory(), before);
}
