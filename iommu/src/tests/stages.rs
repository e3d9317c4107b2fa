//! What each kind of PASID entry reaches, and how its mappings are forgotten: first stage, nested, reduced.

use super::pasid::{BASE, FIRST, SCALABLE, context, domain, entry, reached};
use super::{requester, rich, rich_fake, running_as, source};
use crate::domain::DomainHandle;
use crate::error::{AttachError, DomainError, MapError};
use crate::fake::scalable::{DENIED, FIRST_STAGE, NO_CONTEXT, NO_PASID};
use crate::fake::{Done, Fake, QEMU_CAP, UNIT};
use crate::pasid::{Attachment, GuestTables};
use crate::table::format::{Access, Stage};
use crate::{Config, Iommu, ReduceError};
use liveupdate::host::{MaySleep, TableMemory};
use spec::regs::{Cap, Ecap};
use spec::{Extent, Iova, PhysAddr};

#[test]
fn first_stage_addresses_reach_to_the_end_of_the_lower_half() {
    for levels in [4, 5] {
        let (fake, mut ctx) =
            (Fake::new(Cap::from_raw(rich().0).with_mgaw(56).raw(), rich().1), MaySleep::at_thread_start());
        let iommu = running_as(&fake, &mut ctx, FIRST);
        let domain = iommu.create_domain(&mut ctx, &[UNIT], Some(levels)).expect("domain");
        let last = (1 << (11 + 9 * u32::from(levels))) - 0x1000;
        let to = PhysAddr::new(0x9000);
        iommu.map(&mut ctx, domain, Iova::new(last), to, 0x1000, Access::READ).expect("map");
        let beyond = iommu.map(&mut ctx, domain, Iova::new(last + 0x1000), to, 0x1000, Access::READ);
        assert!(matches!(beyond, Err(MapError::OutOfRange { .. })), "{beyond:?}");
        iommu.attach(&mut ctx, requester(0, 2, 0), &[], domain).expect("attach");
        assert_eq!(fake.dma(source(0, 2, 0), last + 0x123, false), Ok(0x9123), "{levels} levels");
    }
}

#[test]
fn walks_are_told_to_snoop_only_where_they_can() {
    for snoop in [false, true] {
        let ecap = Ecap::from_raw(rich().1).with_smpwcs(snoop);
        let (fake, mut ctx) = (Fake::new(rich().0, ecap.raw()), MaySleep::at_thread_start());
        let iommu = running_as(&fake, &mut ctx, FIRST);
        let one = domain(&iommu, &mut ctx, 1);
        iommu.attach(&mut ctx, requester(0, 2, 0), &[], one).expect("attach");
        let context = context(&iommu, source(0, 2, 0));
        assert_eq!(entry(&fake, context, 0).1.pwsnp(), snoop, "the bit is reserved where they cannot");
    }
}

#[test]
fn first_stage_pages_are_forgotten_under_every_pasid_that_has_the_domain() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, FIRST);
    let shared = domain(&iommu, &mut ctx, 1);
    let (a, b) = (requester(0, 2, 0), requester(0, 3, 0));
    iommu.attach(&mut ctx, a, &[], shared).expect("attach");
    iommu.attach_pasid(&mut ctx, a, &[], 6, shared).expect("attach");
    iommu.attach_pasid(&mut ctx, b, &[], 6, shared).expect("attach");
    let all = [(a.source, None), (a.source, Some(6)), (b.source, Some(6))];
    assert!(all.iter().all(|(source, pasid)| reached(&fake, *source, *pasid) == Ok(1)));
    fake.done();
    assert_eq!(iommu.unmap(&mut ctx, shared, Iova::new(0x1000), 0x1000), Ok(0x1000));
    let page = |pasid| Done::PasidTranslations { g: 3, domain: 1, pasid, page: 1, order: 0 };
    assert_eq!(fake.done(), [page(0), Done::Wait, page(6), Done::Wait]);
    assert!(all.iter().all(|(source, pasid)| reached(&fake, *source, *pasid) == Err(FIRST_STAGE)));
    assert_eq!(fake.dma(a.source, 0x2000, true), Ok(BASE + 0x2000), "its neighbour is still there");
    // More pages than can be named: the whole PASID.
    fake.with_unit(|u| u.cap = u.cap.with_psi(false));
    iommu.unmap(&mut ctx, shared, Iova::new(0x2000), 0x1000).expect("unmap");
    let whole = |pasid| Done::PasidTranslations { g: 2, domain: 1, pasid, page: 0, order: 0 };
    assert_eq!(fake.done(), [whole(0), Done::Wait, whole(6), Done::Wait]);
}

/// A guest's first-stage tables, in four pages of a domain from 0x10000 on: one page at 0 that leads to `page`.
fn guest_tables(fake: &Fake, ctx: &mut MaySleep, iommu: &Iommu<'_, Fake>, parent: DomainHandle, page: u64) {
    use crate::Hal;
    let run = fake.allocate(ctx, 4, 1).expect("frames");
    iommu.map(ctx, parent, Iova::new(0x1_0000), run.start(), 0x4000, Access::READ_WRITE).expect("map");
    for level in 0..4_u64 {
        let next = if level == 3 { page } else { 0x1_1000 + 0x1000 * level };
        fake.write(run.start().plus(0x1000 * level), next | 7).expect("table");
    }
}

#[test]
fn nested_tables_are_walked_through_the_second_stage_and_forgotten_when_either_changes() {
    for narrow_queue in [false, true] {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let iommu = running_as(&fake, &mut ctx, Config { narrow_queue, ..SCALABLE });
        let parent = domain(&iommu, &mut ctx, 1);
        guest_tables(&fake, &mut ctx, &iommu, parent, 0x2000);
        let who = requester(0, 2, 0);
        let guest = GuestTables { top: Iova::new(0x1_0000), levels: 4 };
        iommu.attach_nested(&mut ctx, who, &[], 8, guest, parent).expect("attach");
        assert_eq!(fake.dma_with(who.source, Some(8), 0x123, true), Ok(BASE + 0x2123));
        // The guest changes its tables, and says so.
        let (table, _) = iommu.translate(parent, Iova::new(0x1_3000)).expect("mapped");
        fake.write(table, 0x3000 | 7).expect("table");
        assert_eq!(fake.dma_with(who.source, Some(8), 0x123, true), Ok(BASE + 0x2123), "cached");
        iommu.forget_nested(&mut ctx, who, 8).expect("forget");
        assert_eq!(fake.dma_with(who.source, Some(8), 0x123, true), Ok(BASE + 0x3123));
        // The second stage changes.
        iommu.unmap(&mut ctx, parent, Iova::new(0x3000), 0x1000).expect("unmap");
        assert_eq!(fake.dma_with(who.source, Some(8), 0x123, true), Err(FIRST_STAGE));
        assert_eq!(iommu.destroy_domain(&mut ctx, parent), Err(DomainError::InUse(who)));
        assert_eq!(iommu.domain_id(parent, UNIT), None, "nested in, but not attached to");
        iommu.detach_pasid(&mut ctx, who, 8).expect("detach");
        assert_eq!(fake.with_unit(|u| u.cached_domains().len()), 0);
        let absent = AttachError::NotAttached(who);
        assert_eq!(iommu.forget_nested(&mut ctx, who, 8), Err(absent));
        iommu.destroy_domain(&mut ctx, parent).expect("destroy");
    }
}

#[test]
fn the_same_guest_tables_have_one_id_for_every_pasid_until_the_last_is_detached() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let parent = domain(&iommu, &mut ctx, 1);
    guest_tables(&fake, &mut ctx, &iommu, parent, 0x2000);
    let (a, b) = (requester(0, 2, 0), requester(0, 3, 0));
    let guest = |top| GuestTables { top: Iova::new(top), levels: 4 };
    let did = |who: spec::Requester, pasid| entry(&fake, context(&iommu, who.source), pasid).1.did();
    for (who, pasid, top) in [(a, 8, 0x1_0000), (a, 9, 0x1_0000), (b, 8, 0x1_0000), (b, 9, 0x1_1000)] {
        iommu.attach_nested(&mut ctx, who, &[], pasid, guest(top), parent).expect("attach");
    }
    let id = did(a, 8);
    assert_eq!((did(a, 9), did(b, 8)), (id, id));
    assert_ne!(did(b, 9), id, "other tables, another id");
    iommu.detach_pasid(&mut ctx, a, 8).expect("detach");
    iommu.detach(&mut ctx, b).expect("detach");
    assert_eq!(fake.dma_with(a.source, Some(9), 0x123, true), Ok(BASE + 0x2123), "its tables are in use");
    iommu.attach_nested(&mut ctx, b, &[], 9, guest(0x1_1000), parent).expect("attach");
    assert_ne!(did(b, 9), id, "and so is their id");
    iommu.detach(&mut ctx, a).expect("detach");
    iommu.attach_nested(&mut ctx, a, &[], 7, guest(0x1_2000), parent).expect("attach");
    assert_eq!(did(a, 7), id, "it is free again");
}

#[test]
fn nested_tables_that_cannot_be_are_refused() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, SCALABLE);
    let parent = domain(&iommu, &mut ctx, 1);
    let first = iommu.create_staged_domain(&mut ctx, Stage::First, &[UNIT], None).expect("domain");
    let who = requester(0, 2, 0);
    let mut attach = |top, levels, parent| {
        iommu.attach_nested(&mut ctx, who, &[], 0, GuestTables { top: Iova::new(top), levels }, parent)
    };
    let levels = |levels| Err(AttachError::Domain(DomainError::Levels { unit: UNIT, levels }));
    assert_eq!(attach(0x1000, 3, parent), levels(3));
    assert_eq!(attach(0x1800, 4, parent), levels(4), "no page");
    assert_eq!(attach(1 << 48, 4, parent), levels(4), "beyond the second stage");
    let stage = DomainError::Stage { unit: UNIT, stage: Stage::First };
    assert_eq!(attach(0x1000, 4, first), Err(AttachError::Domain(stage)));
    assert_eq!(attach(0x1000, 4, DomainHandle(99)), Err(AttachError::NoDomain(who)));
    assert_eq!(attach(0x1000, 5, parent), Ok(()));
}

#[test]
fn caching_mode_and_write_buffers_hide_no_new_entry() {
    for (cap, narrow_queue) in [(1 << 7, false), (1 << 7, true), (1 << 4, false)] {
        let (fake, mut ctx) = (Fake::new(rich().0 | cap, rich().1), MaySleep::at_thread_start());
        let iommu = running_as(&fake, &mut ctx, Config { narrow_queue, ..FIRST });
        let who = requester(0, 2, 0);
        assert_eq!(reached(&fake, who.source, None), Err(NO_CONTEXT));
        let one = domain(&iommu, &mut ctx, 1);
        iommu.attach(&mut ctx, who, &[], one).expect("attach");
        assert_eq!(reached(&fake, who.source, None), Ok(1), "the context entry is seen");
        assert_eq!(reached(&fake, who.source, Some(70)), Err(NO_PASID));
        let other = domain(&iommu, &mut ctx, 2);
        iommu.attach_pasid(&mut ctx, who, &[], 70, other).expect("attach");
        assert_eq!(reached(&fake, who.source, Some(70)), Ok(2), "the PASID entry is seen");
        assert_eq!(fake.dma(who.source, 0x8000, true), Err(FIRST_STAGE));
        let to = PhysAddr::new(0x9000);
        iommu.map(&mut ctx, one, Iova::new(0x8000), to, 0x1000, Access::READ).expect("map");
        assert_eq!(fake.dma(who.source, 0x8000, false), Ok(0x9000), "the page is seen");
        assert_eq!(fake.dma(who.source, 0x8000, true), Err(DENIED));
    }
    assert_eq!(QEMU_CAP & (1 << 7 | 1 << 4), 0);
}

#[test]
fn a_requester_that_is_reduced_to_its_reserved_memory_keeps_no_pasid() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let iommu = running_as(&fake, &mut ctx, FIRST);
    let other = domain(&iommu, &mut ctx, 2);
    let (who, aliases) = (requester(0, 2, 0), [source(0, 3, 0)]);
    let reserved = [Extent::from_bytes(PhysAddr::new(0x7000_0000), 0x2000).expect("a run")];
    let e = iommu.reduce(&mut ctx, who, &aliases, &reserved);
    assert_eq!(e, Err(ReduceError::NotAttached(who)));
    // Not even one whose requests without PASID have no domain to be taken from.
    iommu.attach_pasid(&mut ctx, who, &aliases, 5, other).expect("attach");
    for pass_through in [false, true] {
        if pass_through {
            iommu.detach_pasid(&mut ctx, who, 0).expect("detach");
            iommu.attach_pass_through(&mut ctx, who, &aliases, 0).expect("attach");
        }
        let reduced = iommu.reduce(&mut ctx, who, &aliases, &reserved).expect("reduce");
        assert_eq!(iommu.pasids(who), [(0, Attachment::Domain(reduced))]);
        for source in [who.source, aliases[0]] {
            assert_eq!(fake.dma(source, 0x7000_1000, true), Ok(0x7000_1000));
            assert_eq!(fake.dma(source, 0x1000, true), Err(FIRST_STAGE));
            assert_eq!(reached(&fake, source, Some(5)), Err(NO_PASID));
        }
        if !pass_through {
            iommu.attach_pasid(&mut ctx, who, &aliases, 5, other).expect("attach");
        }
    }
}
