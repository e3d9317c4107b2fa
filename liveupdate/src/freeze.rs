//! Freeze: the last step that may fail.
//!
//! Hardware's tables are read once more and compared with what was preserved; the handover is written into frames of its
//! own; the auditor reads it back from memory and holds it against hardware. Only then is it sealed. Whatever fails,
//! [`Outgoing`] comes back as it was.

use crate::book::first_of_table;
use crate::error::{FreezeError, Full};
use crate::host::{Adoptable, Host, KeepError, MaySleep, RequesterKind, TableMemory, Unit};
use crate::mode::{Context, Mode};
use crate::outgoing::Outgoing;
use crate::radix;
use crate::requester::Sources;
use crate::reserved::ReservedMemory;
use crate::roots;
use crate::wire::{self, About, Registers};
use spec::handover::{self, Header};
use spec::{Extent, PAGE_SIZE, PhysAddr, SourceId, UnitId};

/// Most units that one machine may have.
pub const MAX_UNITS: usize = 64;
/// Most scratch areas that a handover names.
pub const MAX_SCRATCH: usize = 8;
/// Room for the FDT of the container, in bytes: one frame, as KHO has it.
const FDT_BYTES: usize = 512;

/// What a freeze needs besides what is preserved.
#[derive(Debug)]
pub struct FreezeInput<'a> {
    /// Release string of this kernel; 63 bytes of it are kept.
    pub release: &'a str,
    /// Ordinal of this update, from 1.
    pub update: u64,
    /// The memory that the next kernel boots in.
    pub scratch: &'a [Extent],
    /// The requesters that firmware reserved memory for, and what becomes of those that are not preserved.
    pub reserved: ReservedMemory<'a>,
    /// What the next kernel can take over: its image says so.
    pub successor: Adoptable,
}

/// The sealed handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Container {
    /// All its frames.
    pub frames: Extent,
    /// Its records.
    pub blob: PhysAddr,
    /// Length of the records in bytes.
    pub blob_bytes: u64,
    /// Its FDT: what the next kernel is told.
    pub fdt: PhysAddr,
    /// Digest over the records.
    pub digest: u64,
    /// Number of preserved frames, the container's among them.
    pub preserved_frames: u64,
    /// Number of preserved runs.
    pub runs: usize,
}

/// A sealed handover, and the right to cut off and jump. Nothing that is reachable from here on allocates, sleeps or fails.
#[derive(Debug)]
#[must_use = "cut off and jump, or unfreeze"]
pub struct Sealed<'h, 's, H: Host> {
    pub(crate) outgoing: Outgoing<'h, 's, H>,
    /// Where the handover lies.
    pub container: Container,
    /// What the audit checked.
    pub audit: audit::Report,
}

/// Freezing failed: everything is unfrozen, and the outgoing side goes on.
#[derive(Debug)]
pub struct NotFrozen<'h, 's, H: Host> {
    /// As it was before the attempt.
    pub outgoing: Outgoing<'h, 's, H>,
    /// Why.
    pub why: FreezeError,
}

impl<'h, 's, H: Host> Outgoing<'h, 's, H> {
    /// Seals what is preserved.
    ///
    /// `scratch` is the auditor's working memory; `findings` gets every violation that it finds.
    ///
    /// # Errors
    /// [`NotFrozen`] with the reason and with everything as it was.
    #[allow(clippy::result_large_err)] // the error is the whole outgoing side, handed back
    pub fn freeze(
        mut self,
        ctx: &mut MaySleep,
        input: &FreezeInput<'_>,
        scratch: &mut audit::Scratch<'_>,
        findings: &mut dyn FnMut(audit::Finding),
    ) -> Result<Sealed<'h, 's, H>, NotFrozen<'h, 's, H>> {
        match self.try_freeze(ctx, input, scratch, findings) {
            Ok((container, audit)) => Ok(Sealed { outgoing: self, container, audit }),
            Err(why) => {
                self.resume_page_requests(ctx);
                Err(NotFrozen { outgoing: self, why })
            }
        }
    }

    fn try_freeze(
        &mut self,
        ctx: &mut MaySleep,
        input: &FreezeInput<'_>,
        scratch: &mut audit::Scratch<'_>,
        findings: &mut dyn FnMut(audit::Finding),
    ) -> Result<(Container, audit::Report), FreezeError> {
        check_input(self.host, input)?;
        self.book.adoptable_by(&input.successor)?;
        self.check_nested()?;
        self.check_unchanged(ctx)?;
        self.check_interrupts()?;
        self.check_reserved(ctx, input.reserved)?;
        self.stop_page_requests(ctx)?;
        let about = About {
            release: input.release,
            update: input.update,
            sealed_at: self.host.now(),
            scratch: input.scratch,
            container: Extent::one(spec::Frame::new(0)),
        };
        let draft = self.draft(ctx, &about)?;
        let about = About { container: draft.frames, ..about };
        let sealed = self.write(&about, &draft).and_then(|container| {
            let report = self.audited(container.fdt, scratch, findings)?;
            Ok((container, report))
        });
        match sealed {
            Ok(sealed) => Ok(sealed),
            Err(why) => {
                draft.discard(self.host, ctx);
                Err(why)
            }
        }
    }

    /// That every nested domain has a PASID: the handover says by those what lies below what.
    fn check_nested(&self) -> Result<(), FreezeError> {
        let unused = |index: usize| self.book.attachments.find(|a| a.domain == index).is_none();
        let mut nested = self.book.domains.iter().filter(|(_, d)| d.parent.is_some());
        match nested.find(|(index, _)| unused(*index)) {
            Some((_, domain)) => Err(FreezeError::NestedUnused(domain.token)),
            None => Ok(()),
        }
    }

    /// That hardware still does what was preserved: same roots, tables, entries and aliases.
    fn check_unchanged(&self, ctx: &mut MaySleep) -> Result<(), FreezeError> {
        for (index, kept) in self.book.units.iter() {
            let drifted = |what| FreezeError::Drifted { requester: None, unit: kept.id, what };
            let unit = self.host.unit(kept.id).ok_or(drifted("the unit is gone"))?;
            self.check_aliases(index, kept.id)?;
            unit.locked(ctx, |_| {
                if !unit.status().tes() {
                    return Err(drifted("translation is off"));
                }
                if unit.root().table() != kept.root || Mode::of(unit.root()) != Some(kept.mode) {
                    return Err(drifted("another root table or mode is in use"));
                }
                self.check_entries(index, unit)
            })?;
        }
        Ok(())
    }

    /// That every requester of the unit at `unit_index` is still a PCI function and has no alias that was not preserved.
    fn check_aliases(&self, unit_index: usize, unit: UnitId) -> Result<(), FreezeError> {
        for (index, kept) in self.book.requesters.iter().filter(|(_, k)| k.unit == unit_index) {
            let drifted = |what| FreezeError::Drifted { requester: Some(kept.requester), unit, what };
            let mut now = Sources::new(kept.requester.source);
            if self.host.aliases(kept.requester, &mut |s| now.add(s)) == RequesterKind::Other {
                return Err(drifted("the function is gone"));
            }
            let recorded = self.sources_at(index, kept.requester.source);
            if now.too_many || now.iter().any(|s| !recorded.iter().any(|r| r == s)) {
                return Err(drifted("it has an alias that was not preserved"));
            }
        }
        Ok(())
    }

    /// That the entries of every requester of the unit at `unit_index` are those that were preserved.
    fn check_entries(&self, unit_index: usize, unit: &H::Unit) -> Result<(), FreezeError> {
        let Some(mode) = self.book.units.get(unit_index).map(|u| u.mode) else { return Ok(()) };
        for (index, kept) in self.book.requesters.iter().filter(|(_, k)| k.unit == unit_index) {
            let requester = Some(kept.requester);
            let drifted = |what| FreezeError::Drifted { requester, unit: unit.id(), what };
            for source in self.sources_at(index, kept.requester.source).iter() {
                let table = self.book.context_for(unit_index, source).map(|(_, c)| c.table);
                match roots::find(self.host, mode, unit.root().table(), source)? {
                    Some((at, entry)) if Some(at) == table && entry == kept.entry => {}
                    _ => return Err(drifted("its context entry changed")),
                }
            }
            let Context::Scalable(context) = kept.entry else { continue };
            for (_, attached) in self.book.attachments_of(index) {
                let first = Some(first_of_table(attached.pasid));
                let run = self.book.pasid_run(unit_index, context.directory(), first);
                let table = run.map(|(_, r)| r.extent.start());
                match roots::find_pasid(self.host, context, attached.pasid)? {
                    Some((at, entry)) if Some(at) == table && entry == attached.entry => {}
                    _ => return Err(drifted("a PASID entry of it changed")),
                }
            }
        }
        Ok(())
    }

    /// The source-ids recorded for the requester at `index`.
    fn sources_at(&self, index: usize, own: SourceId) -> Sources {
        let mut recorded = Sources::new(own);
        self.book.for_each_source(index, &mut |s| recorded.add(s));
        recorded
    }

    /// Gets and marks the frames of the handover, sized by a dry run.
    fn draft(&mut self, ctx: &mut MaySleep, about: &About<'_>) -> Result<Draft, FreezeError> {
        let length = wire::emit(self.host, &self.book, about, &|_| Registers::ZERO, &mut |_| Ok(()))?;
        let blob_bytes = size_of::<Header>() as u64 + 8 * length.words;
        if blob_bytes > handover::MAX_BYTES {
            return Err(FreezeError::TooLarge("the list of what is preserved"));
        }
        let runs = self.book.collect_runs(None)?;
        let nodes = radix::count_nodes(&self.book.runs[..runs]) + radix::NODES_PER_RUN;
        let blob_frames = blob_bytes.div_ceil(PAGE_SIZE);
        let frames = self.host.allocate(ctx, blob_frames + 1 + nodes)?;
        if let Err(e) = self.host.reserve(ctx, frames) {
            self.host.free(ctx, frames);
            return Err(e.into());
        }
        ctx.atomic(|atomic| self.host.commit(atomic, frames));
        Ok(Draft { frames, blob_frames, blob_bytes, length })
    }

    /// Writes blob, map and FDT.
    fn write(&mut self, about: &About<'_>, draft: &Draft) -> Result<Container, FreezeError> {
        let host = self.host;
        let blob = draft.frames.start();
        let fdt = blob.plus(draft.blob_frames * PAGE_SIZE);
        let used = draft.blob_frames + 1;
        let nodes = Extent::new(fdt.plus(PAGE_SIZE).frame(), draft.frames.count() - used)
            .ok_or(KeepError::NoMemory { frames: draft.frames.count() })?;
        let registers = |index| self.registers(index);
        let written = wire::write_blob(host, blob, &draft.length, &self.book, about, &registers)?;
        let what = "interrupt entries came or went while it was sealed";
        let unit = self.book.units.iter().next().map(|(_, u)| u.id).unwrap_or_default();
        let digest = written.ok_or(FreezeError::Drifted { requester: None, unit, what })?;
        let runs = self.book.collect_runs(Some(draft.frames))?;
        let sorted = &self.book.runs[..runs];
        if let Some(run) = sorted.iter().flatten().find(|r| about.scratch.iter().any(|s| s.overlaps(**r))) {
            return Err(FreezeError::InScratch(run.first()));
        }
        radix::write(host, sorted, nodes)?;
        write_fdt(host, fdt, nodes.start(), blob, draft.blob_bytes)?;
        let preserved_frames = sorted.iter().flatten().map(|r| r.count()).sum();
        Ok(Container {
            frames: draft.frames,
            blob,
            blob_bytes: draft.blob_bytes,
            fdt,
            digest,
            preserved_frames,
            runs,
        })
    }

    /// The registers of the unit at `index` as they are now.
    fn registers(&self, index: usize) -> Registers {
        let unit = self.book.units.get(index).and_then(|u| self.host.unit(u.id));
        unit.map_or(Registers::ZERO, |u| Registers {
            cap: u.cap().raw(),
            ecap: u.ecap().raw(),
            root: u.root().raw(),
        })
    }

    /// Has the handover read back and held against hardware.
    fn audited(
        &self,
        fdt: PhysAddr,
        scratch: &mut audit::Scratch<'_>,
        findings: &mut dyn FnMut(audit::Finding),
    ) -> Result<audit::Report, FreezeError> {
        let mut count = 0;
        let mut first = None;
        let report = run_audit(self.host, fdt, audit::Stage::Sealed, scratch, &mut |finding| {
            count += 1;
            first.get_or_insert(finding);
            findings(finding);
        })
        .map_err(FreezeError::Unreadable)?;
        match first {
            Some(first) => Err(FreezeError::Violated { count, first }),
            None => Ok(report),
        }
    }
}

impl<'h, 's, H: Host> Sealed<'h, 's, H> {
    /// Takes the seal back: the handover's frames are free again, and the outgoing side is as before the freeze.
    #[must_use]
    pub fn unfreeze(self, ctx: &mut MaySleep) -> Outgoing<'h, 's, H> {
        let Self { mut outgoing, container, .. } = self;
        outgoing.host.release(ctx, container.frames);
        outgoing.host.free(ctx, container.frames);
        outgoing.resume_page_requests(ctx);
        outgoing
    }
}

/// That a reader of this release would take what is asked for.
fn check_input<H: Host>(host: &H, input: &FreezeInput<'_>) -> Result<(), FreezeError> {
    if input.update == 0 {
        return Err(FreezeError::UpdateZero);
    }
    if input.scratch.len() > MAX_SCRATCH {
        return Err(FreezeError::TooLarge("the list of scratch areas"));
    }
    let mut units = 0;
    host.for_each_unit(&mut |_| units += 1);
    if units > MAX_UNITS {
        return Err(Full { what: "units of the machine", capacity: MAX_UNITS }.into());
    }
    Ok(())
}

/// Frames for a handover, marked already.
struct Draft {
    frames: Extent,
    blob_frames: u64,
    blob_bytes: u64,
    length: wire::Length,
}

impl Draft {
    /// Unfreezes: gives the frames back.
    fn discard<H: Host>(self, host: &H, ctx: &mut MaySleep) {
        host.release(ctx, self.frames);
        host.free(ctx, self.frames);
    }
}

/// Writes the FDT of the container.
fn write_fdt<M: TableMemory>(
    memory: &M,
    at: PhysAddr,
    map: PhysAddr,
    blob: PhysAddr,
    bytes: u64,
) -> Result<(), FreezeError> {
    let mut buffer = [0; FDT_BYTES];
    let entry = spec::kho::Blob { name: spec::handover::SUBNODE, data: blob, bytes };
    let written =
        spec::kho::write_root(&mut buffer, map, &[entry]).map_err(|_| FreezeError::TooLarge("the FDT"))?;
    for (i, chunk) in written.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        memory.write(at.plus(8 * i as u64), u64::from_le_bytes(word))?;
    }
    Ok(())
}

/// The auditor's view of a host's memory.
struct HostImage<'h, H>(&'h H);

impl<H: TableMemory> audit::Image for HostImage<'_, H> {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), audit::Missing> {
        self.0.read_words(at, out).map_err(|e| audit::Missing { at: e.at })
    }
}

/// Runs the auditor over a host's memory and all its units' registers.
pub(crate) fn run_audit<H: Host>(
    host: &H,
    fdt: PhysAddr,
    stage: audit::Stage,
    scratch: &mut audit::Scratch<'_>,
    findings: &mut dyn FnMut(audit::Finding),
) -> Result<audit::Report, audit::Unreadable> {
    let mut states = [const { None }; MAX_UNITS];
    let mut used = 0;
    host.for_each_unit(&mut |unit| {
        let (cap, ecap, status, root) = (unit.cap(), unit.ecap(), unit.status(), unit.root());
        if let Some(slot) = states.get_mut(used) {
            let interrupts = unit.interrupts().map(|i| i.interrupt_table());
            *slot = Some(audit::UnitState { id: unit.id(), cap, ecap, status, root, interrupts });
            used += 1;
        }
    });
    let blank = audit::UnitState {
        id: spec::UnitId::default(),
        cap: spec::regs::Cap::ZERO,
        ecap: spec::regs::Ecap::ZERO,
        status: spec::regs::Gsts::ZERO,
        root: spec::regs::RootAddr::ZERO,
        interrupts: None,
    };
    let states = states.map(|s| s.unwrap_or(blank));
    audit::audit(&HostImage(host), fdt, &states[..used], stage, scratch, findings)
}
