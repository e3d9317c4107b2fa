//! What lies where: scratch memory, regions, the container and the declared tables against the preserved set and one
//! another (I1, I3, I9). No table is followed here.

use crate::audit::Audit;
use crate::error::Unreadable;
use crate::finding::{Invariant, Role, What};
use crate::image::Image;
use crate::index::Run;
use crate::report::add;
use spec::handover::region_kind;
use spec::{Frame, PAGE_SIZE, PhysAddr};

impl<I: Image + ?Sized> Audit<'_, '_, '_, I> {
    /// All checks of this module.
    pub(crate) fn memory(&mut self) -> Result<(), Unreadable> {
        self.preserved_runs()?;
        self.container()?;
        self.regions()?;
        self.declared_tables()
    }

    /// I9: no preserved run reaches into scratch memory.
    fn preserved_runs(&mut self) -> Result<(), Unreadable> {
        for run in self.map.extents() {
            let run = run?;
            add(&mut self.sink.totals.preserved_runs, 1);
            add(&mut self.sink.totals.preserved_frames, run.count());
            self.sink.checked(Invariant::I9, 1);
            if self.index().in_scratch(run.first().number(), run.end().number()) {
                let what = What::PreservedInScratch { frames: run.count() };
                self.found(Invariant::I9, run.start().get(), what);
            }
        }
        Ok(())
    }

    /// The KHO tree, the map's nodes and the records lie outside of scratch memory and of every region; tree and
    /// records are preserved.
    fn container(&mut self) -> Result<(), Unreadable> {
        let (index, sink) = (self.reader.index, &mut self.sink);
        let mut part = |role: Role, start: PhysAddr, bytes: u64| {
            let first = start.frame().number();
            let end = start.get().saturating_add(bytes).div_ceil(PAGE_SIZE).max(first.saturating_add(1));
            sink.checked(Invariant::I9, 1);
            let mut found = |invariant, what| {
                sink.found(crate::Finding {
                    invariant,
                    requester: None,
                    domain: None,
                    unit: None,
                    at: start.get(),
                    what,
                });
            };
            if index.in_scratch(first, end) {
                found(Invariant::I9, What::ContainerInScratch(role));
            }
            if let Some(region) = index.region_overlapping(first, end) {
                found(Invariant::I3, What::TableInRegion { role, region: region.token });
            }
            (first, end)
        };
        let handover = self.reader.handover;
        let tree = part(Role::Fdt, handover.fdt(), PAGE_SIZE);
        let records = part(Role::Records, handover.start(), handover.header().bytes);
        self.map.nodes(&mut |node| {
            part(Role::MapNode, node, PAGE_SIZE);
        })?;
        for (role, (first, end)) in [(Role::Fdt, tree), (Role::Records, records)] {
            self.sink.checked(Invariant::I4, 1);
            if let Some(gap) = self.map.first_gap(Frame::new(first), Frame::new(end))? {
                self.found(Invariant::I4, gap.start().get(), What::NotPreserved(role));
            }
        }
        Ok(())
    }

    /// I3: regions are disjoint; memory is preserved, device ranges are not. I9: none reaches into scratch memory.
    fn regions(&mut self) -> Result<(), Unreadable> {
        let mut furthest = (0u64, 0u64);
        for region in self.index().regions {
            let at = Frame::new(region.start).start().get();
            let (first, end) = (Frame::new(region.start), Frame::new(region.end));
            self.sink.checked(Invariant::I3, 1);
            self.sink.checked(Invariant::I9, 1);
            if region.start < furthest.0 {
                self.found(Invariant::I3, at, What::RegionsOverlap { other: furthest.1 });
            }
            if region.end > furthest.0 {
                furthest = (region.end, region.token);
            }
            if self.index().in_scratch(region.start, region.end) {
                self.found(Invariant::I9, at, What::RegionInScratch { region: region.token });
            }
            if region.kind == u64::from(region_kind::MEMORY) {
                if let Some(missing) = self.map.first_gap(first, end)? {
                    let missing = missing.start().get();
                    self.found(Invariant::I3, at, What::RegionNotPreserved { missing });
                }
            } else if self.map.first_preserved(first, end)?.is_some() {
                self.found(Invariant::I3, at, What::DeviceRangePreserved);
            }
        }
        Ok(())
    }

    /// I1: declared tables share no frame, nor one of the container, which is given back one day. I3: none lies where
    /// devices may write.
    fn declared_tables(&mut self) -> Result<(), Unreadable> {
        let mut furthest: Option<Run> = None;
        for run in self.index().runs {
            let at = Frame::new(run.start).start().get();
            let domain = run.domain().map(|domain| self.reader.token(domain));
            let role = run.role();
            let overlapped = furthest.filter(|before| run.start < before.end && !self.shared(before, run));
            if let Some(other) = overlapped.map(|before| before.role()) {
                self.found_in(Invariant::I1, domain, at, What::TablesOverlap { role, other });
            }
            if furthest.is_none_or(|before| run.end > before.end) {
                furthest = Some(*run);
            }
            // Tables below a second stage are the guest's own and lie in its memory: what they reach is bounded by the parent.
            let nested = run.domain().is_some_and(|domain| self.index().use_of(domain).parent().is_some());
            let region = self.index().region_overlapping(run.start, run.end).filter(|_| !nested);
            if let Some(region) = region {
                self.found_in(Invariant::I3, domain, at, What::TableInRegion { role, region: region.token });
            }
            if role == Role::Container {
                self.sink.checked(Invariant::I4, 1);
                if let Some(gap) = self.map.first_gap(Frame::new(run.start), Frame::new(run.end))? {
                    self.found(Invariant::I4, gap.start().get(), What::NotPreserved(role));
                }
            }
        }
        Ok(())
    }

    /// Whether two runs are the same PASID structure of requesters behind one bridge, whose context entries are one.
    fn shared(&self, a: &Run, b: &Run) -> bool {
        let context = |run: &Run| {
            let (_, record) = self.reader.requester(run.requester()?)?;
            Some((record.unit, record.context, record.context_high))
        };
        let same = (a.start, a.end, a.role()) == (b.start, b.end, b.role()) && a.owner != b.owner;
        same && context(a).is_some() && context(a) == context(b)
    }
}
