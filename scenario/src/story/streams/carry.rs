//! The update's part in the streams: preserved PASID by PASID, retrieved, and judged.

use super::super::arrive::retrieve_domain;
use super::super::host::Kernel;
use super::super::mutant::Mutant;
use super::super::scene::{self, Scene};
use super::super::trouble::Trouble;
use super::super::update::{preserve_domain, report_preserved};
use super::super::{drive, plan};
use super::words::Through;
use super::{BLOCK, QUICK, SLOTS, Stream, Streams, asked, find, guest, to_cut_off};
use crate::event::Event;
use crate::platform::Platform;
use crate::streamer::Setup;
use crate::text;
use alloc::string::ToString;
use alloc::vec::Vec;
use iommu::{Attachment, DomainHandle};
use liveupdate::host::MaySleep;
use liveupdate::{DomainTablesOf, Incoming, Outgoing, RegionKind, Stage};
use spec::{Extent, Iova, PAGE_SIZE};

/// Preserves the streams' memory, the domains of those that stay, the requester, and its PASIDs one by one.
pub(crate) fn preserve<'k, 'p, P: Platform + ?Sized>(
    scene: &Scene<'k, 'p, P>,
    outgoing: &mut Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let Some(streams) = &scene.streams else { return Ok(()) };
    let (kernel, platform) = (scene.kernel, scene.platform());
    let region = outgoing.preserve_region(ctx, plan::STREAMS, streams.memory, RegionKind::Memory);
    region.map_err(Trouble::at("preserve the streams' memory"))?;
    for index in streams.with(true) {
        let Some(domain) = streams.list[index].domain else { continue };
        preserve_domain(kernel, outgoing, ctx, plan::stream_domain(index), domain)?;
        if streams.list[index].word.through == Through::Nested {
            let of = DomainTablesOf {
                top_table: guest::top(streams.page(index, 0)),
                stage: Stage::First,
                levels: streams.levels(),
                parent: Some(plan::stream_domain(index)),
                runs: &[],
            };
            let preserved = outgoing.preserve_domain(ctx, plan::guest(index), of);
            preserved.map_err(Trouble::at("preserve a guest's tables"))?;
        }
    }
    if streams.list[0].domain.is_none() {
        return Ok(());
    }
    let preserved = outgoing.preserve_requester(ctx, plan::STREAMER, streams.who);
    preserved.map_err(Trouble::at("preserve the streaming device"))?;
    report_preserved(kernel, outgoing, plan::STREAMER, streams.who);
    let mut forget_one = Mutant::of(platform) == Some(Mutant::ForgottenPasid);
    for index in streams.with(true) {
        let Some(pasid) = streams.list[index].word.pasid.filter(|_| streams.list[index].domain.is_some())
        else {
            continue;
        };
        if !core::mem::take(&mut forget_one) {
            let preserved = outgoing.preserve_pasid(ctx, plan::STREAMER, pasid);
            preserved.map_err(Trouble::at("preserve a PASID"))?;
        }
        platform.event(&Event::PreservedPasid {
            requester: text::requester(streams.who),
            pasid,
            through: streams.list[index].word.through.name().to_string(),
            token: plan::name(plan::stream_domain(index)),
        });
    }
    Ok(())
}

/// Says which PASIDs will be cut off, and where they aim.
pub(crate) fn declare_cut<P: Platform + ?Sized>(scene: &Scene<'_, '_, P>) {
    let Some(streams) = &scene.streams else { return };
    for event in streams.with(false).filter_map(|index| to_cut_off(streams, index)) {
        scene.platform().event(&event);
    }
}

/// Retrieves the streams that were handed over. `beats` is what the predecessor noted at the jump.
pub(crate) fn retrieve<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    incoming: &mut Incoming<'k, '_, Kernel<'k, 'p, P>>,
    beats: &[u64],
) -> Result<Option<Streams<'p, P>>, Trouble> {
    let platform = kernel.platform();
    let Some(words) = asked(platform)? else { return Ok(None) };
    let (who, device) = find(kernel)?;
    let memory = incoming.retrieve_region(plan::STREAMS);
    let memory = memory.map_err(Trouble::at("retrieve the streams' memory"))?;
    if memory.count() != BLOCK * words.len() as u64 {
        return Err(Trouble::new("retrieve the streams", "other streams were preserved than are asked for"));
    }
    let stream = |(word, beats): (_, &u64)| Stream { word, domain: None, before: [*beats, 0] };
    let list = words.into_iter().zip(beats).map(stream).collect();
    let mut streams = Streams { who, device, platform, list, memory };
    let kept: Vec<usize> = streams.with(true).collect();
    for &index in &kept {
        streams.list[index].domain = retrieve_tables(kernel, ctx, incoming, &streams, index)?;
    }
    attach(kernel, ctx, incoming, &mut streams)?;
    for index in 0..streams.list.len() {
        streams.list[index].before[1] = streams.device.sent(index);
    }
    Ok(Some(streams))
}

/// The domains of a stream; `None` when they failed their checks.
fn retrieve_tables<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    incoming: &mut Incoming<'k, '_, Kernel<'k, 'p, P>>,
    streams: &Streams<'p, P>,
    index: usize,
) -> Result<Option<DomainHandle>, Trouble> {
    let nested = streams.list[index].word.through == Through::Nested;
    let tokens = [plan::stream_domain(index), plan::guest(index)];
    let tokens = if nested { &tokens[..] } else { &tokens[..1] };
    if let Some(token) = tokens.iter().find(|token| incoming.is_blocked(**token)) {
        let why = "its domain failed the audit: blocked, the rest goes on".to_string();
        let requesters = alloc::vec![streams.name(index)];
        kernel.platform().event(&Event::Blocked { token: plan::name(*token), requesters, why });
        return Ok(None);
    }
    let domain = retrieve_domain(kernel, ctx, incoming, tokens[0])?;
    if nested {
        // The guest keeps its tables.
        incoming.retrieve_domain(plan::guest(index)).map_err(Trouble::at("retrieve a guest's tables"))?;
    }
    Ok(Some(domain))
}

/// Takes the requester over with all PASIDs that came with it.
fn attach<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    incoming: &mut Incoming<'k, '_, Kernel<'k, 'p, P>>,
    streams: &mut Streams<'p, P>,
) -> Result<(), Trouble> {
    let scalable = drive::config(kernel.platform())?.mode.is_scalable();
    if streams.list[0].domain.is_none() && !scalable {
        return Ok(());
    }
    let got =
        incoming.retrieve_requester(plan::STREAMER).map_err(Trouble::at("retrieve the streaming device"))?;
    if got.requester != streams.who {
        return Err(Trouble::new("find the devices", "another device was preserved than this kernel drives"));
    }
    let attachments: Vec<_> = incoming
        .pasids_of(plan::STREAMER)
        .filter_map(|got| {
            let own = |stream: &&Stream| stream.word.pasid.unwrap_or_default() == got.pasid;
            let parent = streams.list.iter().find(own)?.domain?;
            let what = match got.parent {
                None => Attachment::Domain(parent),
                Some(_) => {
                    Attachment::Nested { first: guest::tables(got.entry.first_stage_levels()), parent }
                }
            };
            Some((got.pasid, what))
        })
        .collect();
    let imported = match streams.list[0].domain {
        Some(domain) if !scalable => kernel.iommu.import_requester(ctx, streams.who, &[], domain),
        _ => kernel.iommu.import_pasids(ctx, streams.who, &[], &attachments),
    };
    imported.map_err(Trouble::at("import the streaming device"))
}

impl<'p, P: Platform + ?Sized> Streams<'p, P> {
    /// Judges the streams after an update: those that stay went on without a hole; those that were cut off changed nothing.
    pub(crate) fn judge(&self, kernel: &Kernel<'_, 'p, P>, ctx: &mut MaySleep) -> Result<(), Trouble> {
        for index in self.with(true) {
            let [jump, adopted] = self.list[index].before;
            // By then the device has read back all that it wrote in the gap.
            self.wait(index, adopted + SLOTS + 1)?;
            let complete = self.holds(index, index, 0)?;
            let grown = match self.list[index].word.through {
                Through::Nested => self.grow(kernel, ctx, index)?,
                _ => None,
            };
            self.platform.event(&Event::Stream {
                requester: text::requester(self.who),
                pasid: self.list[index].word.pasid,
                through: self.list[index].word.through.name().to_string(),
                sent: self.device.sent(index),
                sent_in_gap: adopted.saturating_sub(jump),
                lost: self.device.lost(index),
                complete,
                grown,
            });
        }
        for index in self.with(false) {
            self.wait(index, 1)?;
            self.device.stop(index);
            let first_difference = self.difference(index)?;
            self.platform.event(&Event::PasidTarget {
                requester: text::requester(self.who),
                pasid: self.list[index].word.pasid.unwrap_or_default(),
                intact: first_difference.is_none(),
                first_difference,
            });
        }
        Ok(())
    }

    /// The first guest changes its tables, which it must not between the seal and adoption: [`Mutant::GuestRemaps`].
    pub(crate) fn remap_a_guest(&self, kernel: &Kernel<'_, 'p, P>) -> Result<(), Trouble> {
        let nested = |index: &usize| self.list[*index].word.through == Through::Nested;
        let Some(index) = self.with(true).find(nested) else { return Ok(()) };
        guest::map(kernel, self.page(index, 0), self.levels(), self.iova(index), BLOCK - 1)
    }

    /// Gives a guest one more page, and has the device stream through it: whether a lap of that came through whole. `None` when
    /// it has no tables any more.
    fn grow(
        &self,
        kernel: &Kernel<'_, 'p, P>,
        ctx: &mut MaySleep,
        index: usize,
    ) -> Result<Option<bool>, Trouble> {
        let Some(host) = self.list[index].domain else { return Ok(None) };
        let new = |page: &u64| kernel.iommu.translate(host, guest::address(*page)).is_none();
        let page = (guest::FIRST_LATE..BLOCK).find(new);
        let page = page.ok_or(Trouble::new("give a guest a page", "it has all of them"))?;
        // The update is finished: the domain is this kernel's own.
        kernel.iommu.top_table(host).into_iter().for_each(|top| _ = kernel.iommu.hold_mappings(top, false));
        let frame = Extent::one(self.page(index, page).frame());
        scene::map(kernel, ctx, host, guest::address(page), frame)?;
        guest::map(kernel, self.page(index, 0), self.levels(), self.iova(index), page)?;
        self.fill(index, page)?;
        let (queue, pasid) = (self.list.len() + index, self.list[index].word.pasid);
        let ring = Iova::new(self.iova(index).get() + PAGE_SIZE * page);
        self.device.start(queue, Setup { ring, slots: SLOTS, period: QUICK, pasid });
        self.wait(queue, 2 * SLOTS)?;
        self.device.stop(queue);
        Ok(Some(self.device.lost(queue) == 0 && self.holds(index, queue, page)?))
    }
}
