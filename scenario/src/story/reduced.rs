//! Requesters that firmware reserved memory for and that are not preserved: reduced to exactly that memory, then carried
//! over like any other, so that their DMA to it goes on and all else of theirs ends.

use super::arrive::{retrieve_domain, retrieve_requester};
use super::host::Kernel;
use super::plan;
use super::scene::{Scene, requester};
use super::trouble::Trouble;
use super::update::preserve_domain;
use crate::event::Event;
use crate::platform::Platform;
use crate::text;
use alloc::vec::Vec;
use liveupdate::host::MaySleep;
use liveupdate::{Incoming, Outgoing, RegionKind, RetrieveError, Token};
use spec::{Extent, SourceId};

/// The name of the n-th reserved region of a requester.
fn region_token(source: SourceId, n: usize) -> Token {
    plan::reduced(b'0' + n as u8 % 10, source)
}

/// The requesters of `reserved`, each once, with their regions.
fn each(reserved: &[(SourceId, Extent)]) -> Vec<(SourceId, Vec<Extent>)> {
    let mut list: Vec<(SourceId, Vec<Extent>)> = Vec::new();
    for (source, region) in reserved {
        match list.iter_mut().find(|(known, _)| known == source) {
            Some((_, regions)) => regions.push(*region),
            None => list.push((*source, alloc::vec![*region])),
        }
    }
    list
}

/// Reduces and preserves every requester with reserved memory that is attached and not preserved already.
pub(crate) fn preserve<'k, 'p, P: Platform + ?Sized>(
    scene: &Scene<'k, 'p, P>,
    outgoing: &mut Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let kernel = scene.kernel;
    for (source, regions) in each(&scene.reserved) {
        let who = requester(source);
        let preserved = outgoing.requesters().any(|kept| kept.requester == who);
        if preserved || kernel.iommu.domain_of(who).is_none() {
            continue;
        }
        let reduced = kernel.iommu.reduce(ctx, who, &kernel.other_ids(source), &regions);
        let domain = reduced.map_err(Trouble::at("reduce a requester to its reserved memory"))?;
        for (n, region) in regions.iter().enumerate() {
            let declared =
                outgoing.preserve_region(ctx, region_token(source, n), *region, RegionKind::Device);
            declared.map_err(Trouble::at("declare reserved memory"))?;
        }
        preserve_domain(kernel, outgoing, ctx, plan::reduced(b'd', source), domain)?;
        let token = plan::reduced(b'r', source);
        outgoing.preserve_requester(ctx, token, who).map_err(Trouble::at("preserve a reduced requester"))?;
        let kept = outgoing.requesters().find(|kept| kept.token == token);
        let domain_id = kept.map(|kept| kept.domain_id.0).unwrap_or_default();
        let requester = text::source(source);
        scene.platform().event(&Event::Preserved { requester, domain_id, token: plan::name(token) });
    }
    Ok(())
}

/// Retrieves what was reduced.
pub(crate) fn retrieve<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    incoming: &mut Incoming<'k, '_, Kernel<'k, 'p, P>>,
    reserved: &[(SourceId, Extent)],
) -> Result<(), Trouble> {
    for (source, regions) in each(reserved) {
        match incoming.retrieve_region(region_token(source, 0)) {
            Ok(_) => {}
            // It was preserved as it is, or had no domain.
            Err(RetrieveError::Unknown(_)) => continue,
            Err(error) => return Err(Trouble::at("retrieve reserved memory")(error)),
        }
        for n in 1..regions.len() {
            incoming
                .retrieve_region(region_token(source, n))
                .map_err(Trouble::at("retrieve reserved memory"))?;
        }
        if incoming.is_blocked(plan::reduced(b'd', source)) {
            continue;
        }
        let domain = retrieve_domain(kernel, ctx, incoming, plan::reduced(b'd', source))?;
        retrieve_requester(kernel, ctx, incoming, plan::reduced(b'r', source), domain)?;
    }
    Ok(())
}
