//! Map and unmap as hardware sees them: with caches that go stale, caching mode, write buffers, and invalidations that
//! are not confirmed.

use super::{requester, running, source};
use crate::domain::DomainHandle;
use crate::error::MapError;
use crate::fake::{Done, Fake, QEMU_CAP, QEMU_ECAP, Stuck};
use crate::table::format::Access;
use crate::{DomainError, Iommu};
use liveupdate::host::MaySleep;
use spec::regs::Cap;
use spec::{Iova, PhysAddr};

const MIB: u64 = 1 << 20;
const DEVICE: (u8, u8, u8) = (0, 2, 0);

fn attached(iommu: &Iommu<'_, Fake>, ctx: &mut MaySleep) -> DomainHandle {
    let unit = iommu.units()[0].registers.id;
    let domain = iommu.create_domain(ctx, &[unit], None).expect("domain");
    iommu.attach(ctx, requester(DEVICE.0, DEVICE.1, DEVICE.2), &[], domain).expect("attach");
    domain
}

fn map(
    iommu: &Iommu<'_, Fake>,
    ctx: &mut MaySleep,
    domain: DomainHandle,
    iova: u64,
    bytes: u64,
) -> Result<(), MapError> {
    iommu.map(ctx, domain, Iova::new(iova), PhysAddr::new(0x1_0000_0000 + iova), bytes, Access::READ_WRITE)
}

fn dma(fake: &Fake, iova: u64) -> Result<u64, u8> {
    fake.dma(source(DEVICE.0, DEVICE.1, DEVICE.2), iova, true)
}

#[test]
fn what_is_unmapped_is_forgotten_by_hardware_before_unmap_returns() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    map(&iommu, &mut ctx, domain, 2 * MIB, 4 * MIB).expect("map");
    assert_eq!(dma(&fake, 2 * MIB + 0x1234), Ok(0x1_0000_0000 + 2 * MIB + 0x1234));
    assert_eq!(dma(&fake, 4 * MIB), Ok(0x1_0000_0000 + 4 * MIB));
    fake.done();
    // One page out of a large leaf: named as a page; the rest is still there.
    assert_eq!(iommu.unmap(&mut ctx, domain, Iova::new(2 * MIB + 0x1000), 0x1000), Ok(0x1000));
    assert_eq!(fake.done(), [Done::Translations { g: 3, domain: 1, page: 0x201, order: 0 }, Done::Wait]);
    assert_eq!(dma(&fake, 2 * MIB + 0x1234), Err(5));
    assert!(dma(&fake, 2 * MIB).is_ok() && dma(&fake, 2 * MIB + 0x2000).is_ok());
    assert_eq!(iommu.unmap(&mut ctx, domain, Iova::new(0), 8 * MIB), Ok(4 * MIB - 0x1000));
    assert_eq!(dma(&fake, 4 * MIB), Err(5));
    assert_eq!(iommu.unmap(&mut ctx, domain, Iova::new(0), 8 * MIB), Ok(0), "nothing is left");
    assert_eq!(iommu.translate(domain, Iova::new(4 * MIB)), None);
}

#[test]
fn a_range_is_forgotten_to_its_last_page_wherever_it_starts() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    for (first, pages) in [(1, 2), (3, 1), (3, 2), (5, 7), (7, 1), (511, 2), (1, 1023), (0, 1), (2, 6)] {
        map(&iommu, &mut ctx, domain, first * 0x1000, pages * 0x1000).expect("map");
        let touch = |page: u64| dma(&fake, page * 0x1000);
        assert!((first..first + pages).all(|page| touch(page).is_ok()));
        assert_eq!(
            iommu.unmap(&mut ctx, domain, Iova::new(first * 0x1000), pages * 0x1000),
            Ok(pages * 0x1000)
        );
        assert!((first..first + pages).all(|page| touch(page).is_err()), "{first} + {pages}");
    }
}

#[test]
fn mapping_needs_no_invalidation_unless_hardware_caches_what_is_absent() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    fake.done();
    map(&iommu, &mut ctx, domain, 0, MIB).expect("map");
    assert_eq!(fake.done(), []);

    let (fake, mut ctx) = (Fake::new(QEMU_CAP | 1 << 7, QEMU_ECAP), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    assert_eq!(dma(&fake, 0x3000), Err(1));
    let domain = attached(&iommu, &mut ctx);
    assert_eq!(dma(&fake, 0x3000), Err(5), "the entry is seen though its absence was cached");
    map(&iommu, &mut ctx, domain, 0, MIB).expect("map");
    assert_eq!(dma(&fake, 0x3000), Ok(0x1_0000_3000), "the page is seen though its absence was cached");
}

#[test]
fn a_write_buffer_is_flushed_after_entries_appear() {
    let (fake, mut ctx) = (Fake::new(QEMU_CAP | 1 << 4, QEMU_ECAP), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    assert_eq!(dma(&fake, 0x3000), Err(5));
    map(&iommu, &mut ctx, domain, 0, MIB).expect("map");
    assert_eq!(dma(&fake, 0x3000), Ok(0x1_0000_3000));
}

#[test]
fn an_unmap_that_hardware_does_not_confirm_is_an_error_and_its_tables_are_not_used_again() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    let frames = || {
        let mut frames = 0;
        iommu.domain_tables(domain, &mut |run| frames += run.count()).expect("domain");
        frames
    };
    map(&iommu, &mut ctx, domain, 0, 0x1000).expect("map");
    assert_eq!(frames(), 4);
    fake.with_unit(|u| u.stuck = Stuck::Invalidations);
    let e = iommu.unmap(&mut ctx, domain, Iova::new(0), 0x1000).expect_err("stuck");
    assert!(matches!(e, MapError::TimedOut(_)), "{e}");
    assert_eq!(iommu.translate(domain, Iova::new(0)), None);
    fake.with_unit(|u| u.stuck = Stuck::No);
    map(&iommu, &mut ctx, domain, 0, 0x1000).expect("map");
    assert_eq!(frames(), 4 + 3, "three tables may still be walked and stay booked");
}

#[test]
fn a_map_that_hardware_does_not_confirm_is_undone() {
    let (fake, mut ctx) = (Fake::new(QEMU_CAP | 1 << 7, QEMU_ECAP), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    map(&iommu, &mut ctx, domain, 0x5000, 0x1000).expect("map");
    let top = iommu.top_table(domain).expect("domain");
    let before = fake.memory();
    fake.with_unit(|u| u.stuck = Stuck::Invalidations);
    let e = map(&iommu, &mut ctx, domain, 4 * MIB, 3 * MIB).expect_err("stuck");
    assert!(matches!(e, MapError::TimedOut(_)), "{e}");
    let after = fake.memory();
    let queue = fake.with_unit(|u| u.iqa >> 12);
    for (frame, words) in before.iter().filter(|(frame, _)| **frame != queue) {
        assert_eq!(after.get(frame), Some(words), "frame {frame:#x}");
    }
    assert_eq!(before.len(), after.len(), "no table was left behind");
    assert_eq!(iommu.domain_at(top), Some(domain));
    assert_eq!(iommu.translate(domain, Iova::new(4 * MIB)), None);
    assert!(iommu.translate(domain, Iova::new(0x5000)).is_some());
}

#[test]
fn held_mappings_are_refused_until_they_are_released() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    map(&iommu, &mut ctx, domain, 0, MIB).expect("map");
    let top = iommu.top_table(domain).expect("domain");
    assert!(iommu.hold_mappings(top, true));
    let before = fake.memory();
    assert_eq!(map(&iommu, &mut ctx, domain, 2 * MIB, MIB), Err(MapError::Frozen));
    assert_eq!(iommu.unmap(&mut ctx, domain, Iova::new(0), MIB), Err(MapError::Frozen));
    assert_eq!(fake.memory(), before);
    assert!(iommu.translate(domain, Iova::new(0)).is_some() && dma(&fake, 0).is_ok());
    assert!(iommu.hold_mappings(top, false));
    assert_eq!(iommu.unmap(&mut ctx, domain, Iova::new(0), MIB), Ok(MIB));
    assert!(!iommu.hold_mappings(PhysAddr::new(0), true), "no domain has this top table");
}

#[test]
fn a_domain_has_the_largest_width_and_leaves_that_its_units_have_in_common() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let narrow = Cap::from_raw(QEMU_CAP).with_sagaw(2).with_mgaw(38).with_sslps(1);
    fake.0.borrow_mut().units[1].cap = narrow;
    let iommu = running(&fake, &mut ctx);
    let units = [iommu.units()[0].registers.id, iommu.units()[1].registers.id];
    let both = iommu.create_domain(&mut ctx, &units, None).expect("domain");
    assert_eq!(iommu.levels(both), Some(3));
    let wide = iommu.create_domain(&mut ctx, &units[..1], None).expect("domain");
    assert_eq!(iommu.levels(wide), Some(4));
    let e = iommu.create_domain(&mut ctx, &units, Some(4)).expect_err("one cannot");
    assert_eq!(e, DomainError::Levels { unit: units[1], levels: 4 });
    let e = iommu.create_domain(&mut ctx, &units[..1], Some(5)).expect_err("none can");
    assert_eq!(e, DomainError::Levels { unit: units[0], levels: 5 });
    assert_eq!(
        map(&iommu, &mut ctx, both, 1 << 39, 0x1000),
        Err(MapError::OutOfRange { bits: 39, last: (1 << 39) + 0xfff })
    );
    // DMAR.HAW bounds where mappings may lead.
    let beyond = iommu.map(&mut ctx, wide, Iova::new(0), PhysAddr::new(1 << 39), 0x1000, Access::READ);
    assert_eq!(beyond, Err(MapError::OutOfRange { bits: 39, last: (1 << 39) + 0xfff }));
    // A domain made for both goes to either; one made for the wide unit does not go to the narrow one.
    iommu.attach(&mut ctx, requester(0, 0x1f, 0), &[], both).expect("attach");
    assert!(iommu.attach(&mut ctx, requester(0, 0x1f, 0), &[], wide).is_err());
    iommu.detach(&mut ctx, requester(0, 0x1f, 0)).expect("detach");
    assert!(iommu.attach(&mut ctx, requester(0, 0x1f, 0), &[], wide).is_err());
}

#[test]
fn no_address_is_given_out_that_the_unit_takes_no_request_for() {
    // As on units of 36 bits whose tables have three levels, for 39.
    let cap = Cap::from_raw(QEMU_CAP).with_sagaw(2).with_mgaw(35);
    let (fake, mut ctx) = (Fake::new(cap.raw(), QEMU_ECAP), MaySleep::at_thread_start());
    let iommu = running(&fake, &mut ctx);
    let domain = attached(&iommu, &mut ctx);
    let beyond = MapError::OutOfRange { bits: 36, last: (1 << 36) + 0xfff };
    assert_eq!(map(&iommu, &mut ctx, domain, 1 << 36, 0x1000), Err(beyond));
    assert_eq!(map(&iommu, &mut ctx, domain, (1 << 36) - 0x1000, 0x1000), Ok(()));
}
