//! Device-TLBs: translations that a device keeps for itself (PCIe ATS), allowed by a bit of its context entry and forgotten
//! by invalidations that the unit carries to the device (VT-d 4.1, 6.5.2.5).
//!
//! After the IOTLB the device-TLBs of a domain are invalidated, each device by itself, so that one that does not answer is
//! known by name. Such a device is cut off: its entry is cleared and forgotten, which blocks whatever it still has, and the
//! host is told to switch its ATS off ([`crate::Hal::device_tlb_off`]). Nobody waits for it.

use crate::Hal;
use crate::config::Capability;
use crate::domain::DomainHandle;
use crate::driver::{Books, Iommu};
use crate::error::AttachError;
use crate::queue::Descriptor;
use crate::unit::VtdUnit;
use alloc::vec::Vec;
pub use liveupdate::host::DeviceTlb;
use liveupdate::host::{Atomic, Forget, MaySleep, TimedOut, Unit};
use spec::invalidation::{DeviceTlbInvalidate, PasidDeviceTlbInvalidate, kind, pasid_device_tlb_granularity};
use spec::{DomainId, Iova, PAGE_SIZE, Requester, SourceId};

/// Most pages that an invalidation names, as a binary logarithm; beyond, it names them all.
const LARGEST_ORDER: u8 = 51;

/// A requester whose device-TLB may hold translations of a domain, and under which PASIDs.
#[derive(Debug, Clone)]
pub(crate) struct User {
    requester: Requester,
    unit: usize,
    tlb: DeviceTlb,
    pasids: Vec<u32>,
}

impl Books {
    /// Whose device-TLBs may hold translations of a domain.
    pub(crate) fn device_tlbs_of(&self, domain: DomainHandle) -> Vec<User> {
        let user = |(&requester, &tlb): (&Requester, &DeviceTlb)| {
            let attached = self.requesters.get(&requester)?;
            let used = attached.pasids.iter().filter(|(_, used)| used.what.domain() == Some(domain));
            let pasids: Vec<u32> = used.map(|(pasid, _)| *pasid).collect();
            (!pasids.is_empty()).then_some(User { requester, unit: attached.unit, tlb, pasids })
        };
        self.device_tlbs.iter().filter_map(user).collect()
    }

    fn device_tlb_user(&self, requester: Requester) -> Option<User> {
        let (attached, tlb) = (self.requesters.get(&requester)?, *self.device_tlbs.get(&requester)?);
        Some(User { requester, unit: attached.unit, tlb, pasids: attached.pasids.keys().copied().collect() })
    }
}

impl<H: Hal> Iommu<'_, H> {
    /// Allows an attached requester to keep translations. Whatever its device still keeps from earlier, it is made to forget
    /// first. The host switches ATS on in the device after this.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed. [`AttachError::DeviceSilent`] when the device does not answer: it is cut off.
    pub fn enable_device_tlb(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        tlb: DeviceTlb,
    ) -> Result<(), AttachError> {
        let mut books = self.books.borrow_mut();
        let (unit, id) = self.device_tlb_place(&books, requester)?;
        unit.locked(ctx, |atomic| {
            unit.switch_device_tlb(atomic, requester.source, id, true).inspect_err(|_| {
                let _ = unit.switch_device_tlb(atomic, requester.source, id, false);
            })
        })?;
        books.device_tlbs.insert(requester, tlb);
        let user = books.device_tlb_user(requester);
        drop(books);
        match user.map_or(Ok(true), |user| self.forget_in_device(ctx, &user, None))? {
            true => Ok(()),
            false => Err(AttachError::DeviceSilent(requester)),
        }
    }

    /// Allows it no longer. The host has switched ATS off in the device before this. Says whether the device answered; if
    /// not, it is cut off and no longer attached.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn disable_device_tlb(&self, ctx: &mut MaySleep, requester: Requester) -> Result<bool, AttachError> {
        let mut books = self.books.borrow_mut();
        let (unit, id) = self.device_tlb_place(&books, requester)?;
        let user = books.device_tlb_user(requester).ok_or(AttachError::NotAttached(requester))?;
        unit.locked(ctx, |atomic| unit.switch_device_tlb(atomic, requester.source, id, false))?;
        books.device_tlbs.remove(&requester);
        drop(books);
        self.forget_in_device(ctx, &user, None)
    }

    /// Books a requester that a predecessor allowed to keep translations, and that does.
    ///
    /// # Errors
    /// [`AttachError::Mismatch`] when its entry does not allow it; nothing has changed.
    pub fn import_device_tlb(&self, requester: Requester, tlb: DeviceTlb) -> Result<(), AttachError> {
        let mut books = self.books.borrow_mut();
        let (unit, _) = self.device_tlb_place(&books, requester)?;
        if !unit.device_tlb_allowed(requester.source)? {
            return Err(AttachError::Mismatch { requester, source: requester.source });
        }
        books.device_tlbs.insert(requester, tlb);
        Ok(())
    }

    /// What is known of a requester that is allowed to keep translations; `None` for one that is not.
    #[must_use]
    pub fn device_tlb(&self, requester: Requester) -> Option<DeviceTlb> {
        self.books.borrow().device_tlbs.get(&requester).copied()
    }

    /// Requesters that were cut off because their devices did not answer: each is handed to `f` and forgotten.
    pub fn take_silent(&self, f: &mut dyn FnMut(Requester)) {
        let silent = core::mem::take(&mut self.books.borrow_mut().silent);
        silent.into_iter().for_each(f);
    }

    /// The unit of a requester that can have a device-TLB, and the domain id of its requests without PASID.
    fn device_tlb_place(
        &self,
        books: &Books,
        requester: Requester,
    ) -> Result<(&VtdUnit<'_, H>, DomainId), AttachError> {
        let attached = books.requesters.get(&requester).ok_or(AttachError::NotAttached(requester))?;
        let unit = &self.units()[attached.unit];
        let lacks = |what| AttachError::Lacks { requester, what };
        if !unit.ecap().dt() {
            return Err(lacks(Capability::DeviceTlb));
        }
        if !unit.has_queue() {
            return Err(lacks(Capability::Queue));
        }
        if attached.sources.len() != 1 {
            return Err(AttachError::DeviceTlbAliases(requester));
        }
        Ok((unit, attached.pasids.get(&0).map_or(DomainId(0), |used| used.id)))
    }

    /// Makes the devices of `users` forget `2^order` pages, or all; cuts off those that do not answer.
    pub(crate) fn forget_in_devices(
        &self,
        ctx: &mut MaySleep,
        users: &[User],
        pages: (Iova, u8),
    ) -> Result<(), TimedOut> {
        for user in users {
            match self.forget_in_device(ctx, user, Some(pages)) {
                Ok(_) => {}
                Err(AttachError::TimedOut(e)) => return Err(e),
                // The entry lies where there is no memory: it cannot be cleared.
                Err(_) => {
                    let unit = self.units()[user.unit].id();
                    return Err(TimedOut {
                        unit,
                        what: "cutting off a device that does not answer",
                        waited: 0,
                    });
                }
            }
        }
        Ok(())
    }

    /// Makes one device forget; says whether it answered. If not it is cut off, and it stays so.
    pub(crate) fn forget_in_device(
        &self,
        ctx: &mut MaySleep,
        user: &User,
        pages: Option<(Iova, u8)>,
    ) -> Result<bool, AttachError> {
        let unit = &self.units()[user.unit];
        let source = user.requester.source;
        let asked =
            unit.locked(ctx, |atomic| unit.forget_in_device(atomic, source, user.tlb, &user.pasids, pages));
        if asked == Ok(true) {
            return Ok(true);
        }
        // On or off, the device is blocked by its entry from below on.
        let _ = self.hal().device_tlb_off(user.requester);
        let mut books = self.books.borrow_mut();
        books.device_tlbs.remove(&user.requester);
        books.silent.push(user.requester);
        let attached = books.requesters.contains_key(&user.requester);
        drop(books);
        if attached {
            self.detach(ctx, user.requester)?;
        }
        asked?;
        Ok(false)
    }

    /// Runs `detach`, which detaches these PASIDs of a requester, or all; then its device forgets them too. If it does not
    /// answer it is cut off altogether.
    pub(crate) fn detach_then_forget(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        pasids: Option<&[u32]>,
        detach: impl FnOnce(&mut MaySleep) -> Result<(), AttachError>,
    ) -> Result<(), AttachError> {
        let user = self.books.borrow().device_tlb_user(requester);
        detach(ctx)?;
        let Some(mut user) = user else { return Ok(()) };
        match pasids {
            Some(pasids) => user.pasids = pasids.to_vec(),
            None => {
                self.books.borrow_mut().device_tlbs.remove(&requester);
            }
        }
        self.forget_in_device(ctx, &user, None).map(drop)
    }
}

impl<H: Hal> VtdUnit<'_, H> {
    /// Allows a requester to keep translations, or no longer. The bit is in the first word of its entry in either mode
    /// (VT-d 9.3 TT, 9.4 DTE), so that one store does it.
    fn switch_device_tlb(
        &self,
        atomic: &Atomic,
        source: SourceId,
        domain: DomainId,
        on: bool,
    ) -> Result<(), AttachError> {
        self.set_device_tlb_bit(source, on)?;
        let _ = self.forget(atomic, Forget::Requester { source, domain })?;
        Ok(())
    }

    /// Makes a device forget translations of requests with `pasids` (0: without PASID): `2^order` pages, or all. Says whether
    /// it answered.
    ///
    /// # Errors
    /// [`TimedOut`] when the unit did not say either in time.
    pub fn forget_in_device(
        &self,
        _atomic: &Atomic,
        source: SourceId,
        tlb: DeviceTlb,
        pasids: &[u32],
        pages: Option<(Iova, u8)>,
    ) -> Result<bool, TimedOut> {
        // Without a queue no device can be asked: it counts as silent, not as having answered.
        let Some(queue) = &self.queue else { return Ok(false) };
        let (address, size) = range(pages);
        let physical = self.physical(tlb);
        let depth = u64::from(tlb.queue_depth % 32);
        for &pasid in pasids {
            let without = DeviceTlbInvalidate::ZERO.with_mip(depth).with_s(size).with_addr(address);
            let with = PasidDeviceTlbInvalidate::ZERO.with_mip(depth).with_s(size).with_addr(address);
            let descriptor = match pasid {
                0 => Self::without_pasid(without, source, physical),
                _ => Self::with_pasid(with.with_pasid(u64::from(pasid)), source, physical),
            };
            if !queue.ask(&self.registers, source, descriptor)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a device forget everything, under every PASID that it may use. Says whether it answered.
    ///
    /// # Errors
    /// [`TimedOut`] when the unit did not say either in time.
    pub(crate) fn forget_all_in_device(
        &self,
        atomic: &Atomic,
        source: SourceId,
        tlb: DeviceTlb,
    ) -> Result<bool, TimedOut> {
        // Without a queue no device can be asked: it counts as silent, not as having answered.
        let Some(queue) = &self.queue else { return Ok(false) };
        if !self.forget_in_device(atomic, source, tlb, &[0], None)? {
            return Ok(false);
        }
        if self.choices().pasid_bits == 0 || !queue.is_wide() {
            return Ok(true);
        }
        let (address, size) = range(None);
        let all = PasidDeviceTlbInvalidate::ZERO.with_g(pasid_device_tlb_granularity::GLOBAL);
        let all = all.with_mip(u64::from(tlb.queue_depth % 32)).with_s(size).with_addr(address);
        queue.ask(&self.registers, source, Self::with_pasid(all, source, self.physical(tlb)))
    }

    fn physical(&self, tlb: DeviceTlb) -> u64 {
        if self.registers.ecap().dit() { u64::from(tlb.physical_function.raw()) } else { 0 }
    }

    fn without_pasid(d: DeviceTlbInvalidate, source: SourceId, physical: u64) -> Descriptor {
        let d = d.with_kind(kind::DEVICE_TLB).with_sid(u64::from(source.raw()));
        d.with_pfsid_low(physical & 0xf).with_pfsid_high(physical >> 4).raw()
    }

    fn with_pasid(d: PasidDeviceTlbInvalidate, source: SourceId, physical: u64) -> Descriptor {
        let d = d.with_kind(kind::PASID_DEVICE_TLB).with_sid(u64::from(source.raw()));
        d.with_pfsid_low(physical & 0xf).with_pfsid_high(physical >> 4).raw()
    }
}

/// Page number and size bit of an invalidation: more than one page is said by ones below the first zero bit of the page
/// number (PCIe 10.3.1).
fn range(pages: Option<(Iova, u8)>) -> (u64, bool) {
    // All ones but the highest: everything.
    let all = (1 << LARGEST_ORDER) - 1;
    match pages {
        Some((start, 0)) => (start.get() / PAGE_SIZE, false),
        Some((start, order)) if order < LARGEST_ORDER => {
            let page = (start.get() / PAGE_SIZE) >> order << order;
            (page | ((1 << (order - 1)) - 1), true)
        }
        _ => (all, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_pages_is_named_by_the_lowest_zero_bit_of_its_page_number() {
        let of = |start, order| range(Some((Iova::new(start), order)));
        assert_eq!(of(0x5000, 0), (5, false));
        assert_eq!(of(0x4000, 1), (4, true));
        assert_eq!(of(0x7000, 2), (0b101, true));
        assert_eq!(of(0x20_0000, 9), (0x2ff, true));
        assert_eq!(range(None), (0x7_ffff_ffff_ffff, true));
        assert_eq!(of(0, 52), range(None));
    }
}
