//! PASIDs of requesters in scalable mode: attached to domains, to a guest's tables, or to all of memory; and detached.
//!
//! A requester and its aliases have equal context entries, so they share one PASID directory; so do requesters that share
//! an alias, which hardware cannot tell apart there. A PASID entry exists once per directory: written for the first of its
//! requesters, cleared with the last, and all of them must mean the same by it.
//!
//! Taking over is in [`crate::import`], what is booked of all this in `places`.

use crate::Hal;
use crate::config::Capability;
use crate::domain::DomainHandle;
use crate::driver::{Attached, Books, Iommu, PasidUse};
use crate::error::{AttachError, DomainError};
use crate::forget::{Gone, Tag};
use crate::pasid::{Attachment, Directory, GuestTables};
use crate::requesters::distinct;
use crate::table::format::Stage;
use crate::unit::VtdUnit;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use liveupdate::host::{Atomic, MaySleep, Unit};
use spec::scalable::{PasidEntry, pasid_type};
use spec::{DomainId, Iova, PAGE_SIZE, PhysAddr, Requester, SourceId};

impl<H: Hal> Iommu<'_, H> {
    /// Attaches one PASID of a requester and all its aliases to a domain. PASID 0 is that of requests without PASID, as
    /// for [`Self::attach`]. The same aliases are named for every PASID.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed (I7).
    pub fn attach_pasid(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        pasid: u32,
        domain: DomainHandle,
    ) -> Result<(), AttachError> {
        self.attach_as(ctx, requester, aliases, pasid, Attachment::Domain(domain))
    }

    /// Attaches one PASID of a requester to first-stage tables that somebody else keeps, nested in a second-stage domain.
    /// Who changes those tables calls [`Self::forget_nested`].
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn attach_nested(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        pasid: u32,
        first: GuestTables,
        parent: DomainHandle,
    ) -> Result<(), AttachError> {
        self.attach_as(ctx, requester, aliases, pasid, Attachment::Nested { first, parent })
    }

    /// Lets the requests with one PASID of a requester pass unchanged: it reaches all of memory.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn attach_pass_through(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        pasid: u32,
    ) -> Result<(), AttachError> {
        self.attach_as(ctx, requester, aliases, pasid, Attachment::PassThrough)
    }

    /// Detaches one PASID of a requester; with the last one, the requester. Where requesters share an alias, the entry
    /// stays until the last of them detaches it.
    ///
    /// # Errors
    /// [`AttachError`]. After [`AttachError::TimedOut`] the entries are not present, but the PASID counts as attached:
    /// detach again to try again.
    pub fn detach_pasid(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        pasid: u32,
    ) -> Result<(), AttachError> {
        let found = self.books.borrow().requesters.get(&requester).map(|attached| {
            (attached.pasids.contains_key(&pasid), attached.pasids.len(), attached.directory.is_some())
        });
        match found {
            None => Err(AttachError::NotAttached(requester)),
            Some((_, _, false)) => Err(AttachError::LegacyMode(requester)),
            Some((false, ..)) => Err(AttachError::PasidNotAttached { requester, pasid }),
            Some((true, 1, _)) => self.detach(ctx, requester),
            Some(_) => self.detach_then_forget(ctx, requester, Some(&[pasid]), |ctx| {
                self.detach_pasids(ctx, requester, &[pasid])
            }),
        }
    }

    /// Makes hardware forget what it cached of a guest's first-stage tables: they changed.
    ///
    /// # Errors
    /// [`AttachError::PasidNotAttached`] when the PASID is not nested, [`AttachError::NotAttached`],
    /// [`AttachError::TimedOut`].
    pub fn forget_nested(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        pasid: u32,
    ) -> Result<(), AttachError> {
        let books = self.books.borrow();
        let attached = books.requesters.get(&requester).ok_or(AttachError::NotAttached(requester))?;
        let nested = |used: &&PasidUse| matches!(used.what, Attachment::Nested { .. });
        let used = attached.pasids.get(&pasid).filter(nested);
        let used = used.ok_or(AttachError::PasidNotAttached { requester, pasid })?;
        let unit = &self.units()[attached.unit];
        // One address of the whole range; more pages than can be named make it the whole PASID.
        let whole = u8::MAX;
        unit.locked(ctx, |atomic| {
            unit.forget_pages(atomic, Tag::Pasid(used.id, pasid), Iova::default(), whole)
        })?;
        Ok(())
    }

    /// The attached PASIDs of a requester, in ascending order. In legacy mode there is only PASID 0.
    #[must_use]
    pub fn pasids(&self, requester: Requester) -> Vec<(u32, Attachment)> {
        let books = self.books.borrow();
        let attached = books.requesters.get(&requester);
        let pasids = attached.into_iter().flat_map(|attached| &attached.pasids);
        pasids.map(|(pasid, used)| (*pasid, used.what)).collect()
    }

    /// The index of the unit of a requester, which must run in scalable mode.
    pub(crate) fn scalable_unit(&self, requester: Requester) -> Result<usize, AttachError> {
        let unit = self.unit_index(requester).ok_or(AttachError::NoUnit(requester))?;
        if self.units()[unit].config().mode.is_scalable() {
            Ok(unit)
        } else {
            Err(AttachError::LegacyMode(requester))
        }
    }

    pub(crate) fn attach_as(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        pasid: u32,
        what: Attachment,
    ) -> Result<(), AttachError> {
        let index = self.scalable_unit(requester)?;
        let unit = &self.units()[index];
        let mut books = self.books.borrow_mut();
        let sources = distinct(requester, aliases);
        let place = books.place(requester, &sources, pasid, what)?;
        let directory = place.directory.and_then(|at| books.directories.get(&at)).cloned();
        check_pasid(unit, requester, directory.as_ref(), pasid)?;
        // Every reason to refuse, before an id is taken.
        self.pasid_entry(&books, index, requester, what, DomainId(0))?;
        let (id, new) = match place.shared {
            Some(used) => (used.id, false),
            None => books.id_for(unit.id(), index, what)?,
        };
        let entry = self.pasid_entry(&books, index, requester, what, id)?;
        let write = Writing { requester, pasid, entry, shared: place.shared.is_some() };
        let written = write_entries(unit, ctx, &place.fresh, directory.as_ref(), write);
        match written {
            Ok(directory) => {
                let at = directory.at();
                books.directories.insert(at, directory);
                if let (Attachment::Domain(domain), true) = (what, new) {
                    books.domains.get_mut(&domain).into_iter().for_each(|d| d.add_id(index, id));
                }
                let attached = books.requesters.entry(requester).or_insert_with(|| Attached {
                    unit: index,
                    sources,
                    pasids: BTreeMap::new(),
                    directory: Some(at),
                });
                attached.pasids.insert(pasid, PasidUse { what, id });
                Ok(())
            }
            Err(e) => {
                match e {
                    _ if !new => {}
                    // Hardware may have cached under this id.
                    AttachError::TimedOut(_) => books.ids[index].shelve(id),
                    _ => books.ids[index].release(id),
                }
                Err(match e {
                    AttachError::Occupied { source, .. } => AttachError::Occupied { requester, source },
                    other => other,
                })
            }
        }
    }

    /// Takes `pasids` from a requester; all of them: the requester goes as a whole. They are attached.
    pub(crate) fn detach_pasids(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        pasids: &[u32],
    ) -> Result<(), AttachError> {
        let mut books = self.books.borrow_mut();
        let attached = books.requesters.get(&requester).ok_or(AttachError::NotAttached(requester))?.clone();
        let at = attached.directory.ok_or(AttachError::LegacyMode(requester))?;
        let directory = books.directories.get(&at).ok_or(AttachError::NotAttached(requester))?.clone();
        let unit = &self.units()[attached.unit];
        let whole = pasids.len() == attached.pasids.len();
        let alone = |source: &&SourceId| books.users(requester, **source).next().is_none();
        let sources: Vec<SourceId> =
            attached.sources.iter().filter(alone).copied().filter(|_| whole).collect();
        let last: Vec<u32> =
            pasids.iter().copied().filter(|p| books.shared(requester, at, *p).is_none()).collect();
        let gone: Vec<Gone> = last.iter().filter_map(|p| books.gone(&attached, *p)).collect();
        unit.detach_contexts(ctx, &sources, |atomic| {
            directory.clear_present(unit.hal(), &last)?;
            unit.forget_entries(atomic, &sources, &gone)?;
            directory.wipe(unit.hal(), &last)?;
            Ok(())
        })?;
        if let Some(attached) = books.requesters.get_mut(&requester) {
            attached.pasids.retain(|pasid, _| !pasids.contains(pasid));
        }
        if whole {
            books.requesters.remove(&requester);
            if !books.requesters.values().any(|other| other.directory == Some(at)) {
                books.directories.remove(&at);
                unit.dissolve_directory(ctx, &directory)?;
            }
        }
        for pasid in last {
            if let Some(used) = attached.pasids.get(&pasid) {
                books.let_go(attached.unit, *used);
            }
        }
        Ok(())
    }

    /// The PASID entry for an attachment.
    ///
    /// # Errors
    /// [`AttachError`] with what speaks against it.
    pub(crate) fn pasid_entry(
        &self,
        books: &Books,
        index: usize,
        requester: Requester,
        what: Attachment,
        id: DomainId,
    ) -> Result<PasidEntry, AttachError> {
        let unit = &self.units()[index];
        let (cap, choices) = (unit.cap(), unit.choices());
        let entry = PasidEntry::ZERO.with_present(true).with_did(u64::from(id.0));
        // Walks see what the processor wrote, where they can (VT-d 9.6); elsewhere the host flushes.
        let entry = entry.with_pwsnp(unit.ecap().smpwcs());
        // Where the second stage is not walked: the widest that hardware knows.
        let widest = (3..=5).rev().find(|levels| cap.supports_levels(*levels)).unwrap_or(4);
        let widest = u64::from(widest) - 2;
        let second = |entry: PasidEntry, top: PhysAddr, levels: u8| {
            entry.with_aw(u64::from(levels) - 2).with_ssptptr(top.frame().number())
        };
        let first = |entry: PasidEntry, top: PhysAddr, levels: u8| {
            entry.with_fspm(u64::from(levels) - 4).with_fsptptr(top.frame().number())
        };
        let domain = |handle| {
            let domain = books.domains.get(&handle).ok_or(AttachError::NoDomain(requester))?;
            self.suits(index, domain.shape())?;
            Ok::<_, AttachError>((domain.top(), domain.shape()))
        };
        match what {
            Attachment::Domain(handle) => {
                let (top, shape) = domain(handle)?;
                Ok(match shape.stage {
                    Stage::Second => second(entry, top, shape.levels).with_pgtt(pasid_type::SECOND_STAGE),
                    // QEMU bounds first-stage addresses by the width of the second stage.
                    Stage::First => {
                        first(entry.with_aw(widest), top, shape.levels).with_pgtt(pasid_type::FIRST_STAGE)
                    }
                })
            }
            Attachment::Nested { first: tables, parent } => {
                let (top, shape) = domain(parent)?;
                if !choices.nested {
                    return Err(AttachError::Lacks { requester, what: Capability::Nested });
                }
                if shape.stage != Stage::Second {
                    return Err(DomainError::Stage { unit: unit.id(), stage: shape.stage }.into());
                }
                let fits = tables.top.get() % PAGE_SIZE == 0 && tables.top.get() >> shape.input_bits == 0;
                if !fits || !choices.walks(cap, Stage::First, tables.levels) {
                    return Err(DomainError::Levels { unit: unit.id(), levels: tables.levels }.into());
                }
                let entry = second(entry, top, shape.levels).with_pgtt(pasid_type::NESTED);
                Ok(first(entry, PhysAddr::new(tables.top.get()), tables.levels))
            }
            Attachment::PassThrough => {
                if !choices.pass_through {
                    return Err(AttachError::Lacks { requester, what: Capability::PassThrough });
                }
                // Nothing is walked, but the width bounds addresses (VT-d 9.6).
                Ok(entry.with_aw(widest).with_pgtt(pasid_type::PASS_THROUGH))
            }
        }
    }
}

/// Whether a PASID can be attached at all.
fn check_pasid<H: Hal>(
    unit: &VtdUnit<'_, H>,
    requester: Requester,
    directory: Option<&Directory>,
    pasid: u32,
) -> Result<(), AttachError> {
    let bits = unit.choices().pasid_bits;
    if pasid != 0 && bits == 0 {
        return Err(AttachError::Lacks { requester, what: Capability::Pasid });
    }
    let room = Directory::limit(directory.map_or(unit.config().pdts(), |directory| directory.pdts()));
    let limit = room.min(1 << bits);
    if pasid < limit { Ok(()) } else { Err(AttachError::PasidRange { requester, pasid, limit }) }
}

/// A PASID entry to be written.
#[derive(Clone, Copy)]
struct Writing {
    requester: Requester,
    pasid: u32,
    entry: PasidEntry,
    /// It is there already, as another requester has it.
    shared: bool,
}

/// Writes a PASID entry, and the context entries of `fresh` that lead to its directory, all or nothing. The directory.
fn write_entries<H: Hal>(
    unit: &VtdUnit<'_, H>,
    ctx: &mut MaySleep,
    fresh: &[SourceId],
    directory: Option<&Directory>,
    Writing { requester, pasid, entry, shared }: Writing,
) -> Result<Directory, AttachError> {
    let missing = unit.missing_tables(fresh)?;
    let there = directory.map_or(Ok(PasidEntry::ZERO), |directory| directory.load(unit.hal(), pasid))?;
    if there.present() && !shared {
        return Err(AttachError::PasidInUse { requester, pasid });
    }
    let frames = unit.pasid_frames(ctx, directory, pasid)?;
    if let Err(e) = unit.reserve_frames(ctx, frames.reserve + missing.len() as u64) {
        unit.return_frames(ctx, frames);
        return Err(e);
    }
    let contexts = unit.plan_contexts(fresh, &missing)?;
    let plan = unit.plan_pasid(directory, frames, pasid)?;
    let context = plan.directory.context.raw();
    let install = |atomic: &Atomic| -> Result<(), AttachError> {
        if !shared {
            unit.install_pasid(&plan, entry)?;
        }
        unit.install(&contexts, context)?;
        Ok(unit.announce_pasid(atomic, fresh, entry.domain_id())?)
    };
    unit.locked(ctx, |atomic| {
        install(atomic).inspect_err(|_| {
            unit.withdraw(&contexts);
            if !shared {
                unit.withdraw_pasid(&plan);
            }
        })
    })?;
    Ok(plan.directory)
}
