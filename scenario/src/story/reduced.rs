//! Requesters that firmware reserved memory for and that are not preserved: reduced to exactly that memory, then carried
//! over like any other, so that their DMA to it goes on and all else of theirs ends.

use super::arrive::{retrieve_domain, retrieve_requester};
use super::devices::{Cast, requester};
use super::host::Kernel;
use super::plan;
use super::scene::Scene;
use super::trouble::Trouble;
use super::update::preserve_domain;
use crate::event::Event;
use crate::platform::Platform;
use crate::text;
use alloc::vec::Vec;
use liveupdate::host::MaySleep;
use liveupdate::{Incoming, Outgoing, RegionKind, RetrieveError, Token};
use spec::{Extent, Requester, SourceId};

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

/// Declares the memory that firmware reserved for a requester that is preserved as it is: its domain maps it.
pub(crate) fn declare<'k, 'p, P: Platform + ?Sized>(
    scene: &Scene<'k, 'p, P>,
    outgoing: &mut Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    ctx: &mut MaySleep,
    who: Requester,
) -> Result<(), Trouble> {
    for (source, regions) in each(&scene.reserved).into_iter().filter(|(source, _)| requester(*source) == who)
    {
        for (n, region) in regions.iter().enumerate() {
            let declared =
                outgoing.preserve_region(ctx, region_token(source, n), *region, RegionKind::Device);
            declared.map_err(Trouble::at("declare reserved memory"))?;
        }
    }
    Ok(())
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
        declare(scene, outgoing, ctx, who)?;
        preserve_domain(kernel, outgoing, ctx, plan::reduced(b'd', source), domain)?;
        let token = plan::reduced(b'r', source);
        outgoing.preserve_requester(ctx, token, who).map_err(Trouble::at("preserve a reduced requester"))?;
        report_reduced(kernel, outgoing, token, who, &regions);
    }
    Ok(())
}

/// Reports a requester that was reduced.
fn report_reduced<'k, 'p, P: Platform + ?Sized>(
    kernel: &Kernel<'k, 'p, P>,
    outgoing: &Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    token: Token,
    who: Requester,
    regions: &[Extent],
) {
    let domain_id = outgoing.requesters().find(|k| k.token == token).map(|k| k.domain_id.0);
    kernel.platform().event(&Event::Reduced {
        requester: text::requester(who),
        domain_id: domain_id.unwrap_or_default(),
        token: plan::name(token),
        regions: regions.iter().map(|region| (region.start().get(), region.bytes())).collect(),
    });
}

/// Retrieves what was reduced.
pub(crate) fn retrieve<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    incoming: &mut Incoming<'k, '_, Kernel<'k, 'p, P>>,
    cast: &Cast,
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
        let kept = cast.edus[..cast.kept()].iter().any(|actor| actor.requester == requester(source));
        if kept
            || requester(source) == requester(cast.audio)
            || incoming.is_blocked(plan::reduced(b'd', source))
        {
            continue;
        }
        let domain = retrieve_domain(kernel, ctx, incoming, plan::reduced(b'd', source))?;
        retrieve_requester(kernel, ctx, incoming, plan::reduced(b'r', source), domain)?;
    }
    Ok(())
}
