//! The outgoing kernel's part: preserve, freeze, start the transfers that will be in flight, cut off, jump.

use super::devices::requester;
use super::host::{Kernel, Machine};
use super::interrupts;
use super::notes::Notes;
use super::scene::{Scene, differs};
use super::streams::{self, Streams};
use super::trouble::Trouble;
use super::{End, Mutant, Verdict, judge, pages, plan, reduced};
use crate::event::{Checked, Event, Violation};
use crate::platform::{Mark, Platform};
use crate::text;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use iommu::DomainHandle;
use liveupdate::host::{Atomic, MaySleep, TableMemory};
use liveupdate::{DomainTablesOf, FreezeInput, Outgoing, RegionKind, ReservedMemory, Sealed, Stage, Token};
use spec::{PAGE_SIZE, PhysAddr, Requester, SourceId};

/// Time between the starts of the first and the last of the transfers that will be refused, so that a unit with a single
/// fault record can hold each fault for itself.
const BETWEEN_TRANSFERS: u64 = 40_000_000;
/// The cut-off must begin this soon after the first start, in nanoseconds: a transfer takes about 100 ms.
const LATEST_CUT_OFF: u64 = 55_000_000;
/// How often the transfers are started, at most, until the machine is quick enough.
const STARTS: u32 = 20;

/// One update, from the first `preserve` to the jump. When it is refused, the devices go on and are judged here.
pub(crate) fn run<P: Platform + ?Sized>(
    mut scene: Scene<'_, '_, P>,
    mut ctx: MaySleep,
    update: u64,
) -> Result<End, Trouble> {
    let platform = scene.platform();
    if let Err(why) = timed(platform, "load", || platform.load_successor()) {
        platform.event(&Event::Refused { step: "load the successor".to_string(), why });
        judge::performance(&mut scene)?;
        pages::end(scene.kernel, &mut ctx)?;
        return super::over(scene, update - 1, Verdict::Refused);
    }
    interrupts::before(&scene, &mut ctx)?;
    pages::serve(scene.kernel, &mut ctx)?;
    let mut room = super::store::room();
    let mut outgoing = Outgoing::new(scene.kernel, room.storage());
    timed(platform, "preserve", || {
        preserve(&scene, &mut outgoing, &mut ctx)?;
        streams::preserve(&scene, &mut outgoing, &mut ctx)?;
        reduced::preserve(&scene, &mut outgoing, &mut ctx)
    })?;
    scene.come_and_go(&mut ctx)?;
    announce(&scene);
    streams::declare_cut(&scene);
    scene.report_queue_errors();
    if Mutant::of(platform) == Some(Mutant::StrayLeaf) {
        bend_leaf(&scene)?;
    }
    match freeze(&scene, outgoing, &mut ctx, update)? {
        Some(sealed) => leave(scene, sealed, ctx),
        None => stay(scene, ctx, update),
    }
}

/// The update was refused: everything goes on here.
fn stay<P: Platform + ?Sized>(
    mut scene: Scene<'_, '_, P>,
    mut ctx: MaySleep,
    update: u64,
) -> Result<End, Trouble> {
    pages::serve(scene.kernel, &mut ctx)?;
    judge::performance(&mut scene)?;
    pages::end(scene.kernel, &mut ctx)?;
    super::over(scene, update - 1, Verdict::Refused)
}

/// Runs a phase and reports how long it took.
fn timed<P: Platform + ?Sized, T>(platform: &P, phase: &str, f: impl FnOnce() -> T) -> T {
    let start_ns = platform.now();
    let result = f();
    report_phase(platform, platform.release(), phase, start_ns, platform.now() - start_ns);
    result
}

/// Reports a phase of `kernel`.
pub(crate) fn report_phase<P: Platform + ?Sized>(
    platform: &P,
    kernel: &str,
    phase: &str,
    start_ns: u64,
    duration_ns: u64,
) {
    let (kernel, phase) = (kernel.to_string(), phase.to_string());
    platform.event(&Event::Phase { kernel, phase, start_ns, duration_ns });
}

/// Preserves regions, then domains, then requesters.
fn preserve<'k, 'p, P: Platform + ?Sized>(
    scene: &Scene<'k, 'p, P>,
    outgoing: &mut Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let platform = scene.platform();
    let regions = [
        (plan::SOUND, scene.memory.sound),
        (plan::CAPTURE, scene.memory.capture),
        (plan::TRANSFER, scene.memory.transfer),
        (plan::TARGETS, scene.memory.targets),
        (plan::NOTES, scene.memory.notes),
    ];
    for (token, extent) in regions {
        let preserved = outgoing.preserve_region(ctx, token, extent, RegionKind::Memory);
        preserved.map_err(Trouble::at("preserve a region"))?;
        let (token, start, bytes) = (plan::name(token), extent.start().get(), extent.bytes());
        platform.event(&Event::PreservedRegion { token, start, bytes });
    }
    let audio = (plan::AUDIO_DOMAIN, Some(scene.audio_domain), plan::AUDIO, requester(scene.cast.audio));
    let edus = scene.edu_domains.iter().enumerate().map(|(index, domain)| {
        (plan::edu_domain(index), *domain, plan::edu(index), scene.cast.edus[index].requester)
    });
    for (domain_token, domain, token, who) in [audio].into_iter().chain(edus) {
        let Some(domain) = domain else { continue };
        reduced::declare(scene, outgoing, ctx, who)?;
        preserve_domain(scene.kernel, outgoing, ctx, domain_token, domain)?;
        let preserved = outgoing.preserve_requester(ctx, token, who);
        preserved.map_err(Trouble::at("preserve a requester"))?;
        report_preserved(scene.kernel, outgoing, token, who);
    }
    Ok(())
}

/// Reports a requester that was preserved.
pub(crate) fn report_preserved<'k, 'p, P: Platform + ?Sized>(
    kernel: &Kernel<'k, 'p, P>,
    outgoing: &Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    token: Token,
    who: Requester,
) {
    let domain_id = outgoing.requesters().find(|k| k.token == token).map(|k| k.domain_id.0);
    kernel.platform().event(&Event::Preserved {
        requester: text::requester(who),
        aliases: ids(who, kernel.aliases_of(who)),
        domain_id: domain_id.unwrap_or_default(),
        token: plan::name(token),
    });
}

/// Source-ids on a requester's segment, as text.
fn ids(who: Requester, sources: Vec<SourceId>) -> Vec<String> {
    sources.into_iter().map(|source| text::requester(Requester::new(who.segment, source))).collect()
}

pub(crate) fn preserve_domain<'k, 'p, P: Platform + ?Sized>(
    kernel: &Kernel<'k, 'p, P>,
    outgoing: &mut Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    ctx: &mut MaySleep,
    token: Token,
    domain: DomainHandle,
) -> Result<(), Trouble> {
    let mut runs = Vec::new();
    kernel
        .iommu
        .domain_tables(domain, &mut |run| runs.push(run))
        .map_err(Trouble::at("list a domain's tables"))?;
    let none = || Trouble::new("preserve a domain", "the driver does not know it");
    let top_table = kernel.iommu.top_table(domain).ok_or_else(none)?;
    let levels = kernel.iommu.levels(domain).ok_or_else(none)?;
    let stage = match kernel.iommu.stage(domain).ok_or_else(none)? {
        iommu::Stage::Second => Stage::Second,
        iommu::Stage::First => Stage::First,
    };
    let of = DomainTablesOf { top_table, stage, levels, parent: None, runs: &runs };
    let preserved = outgoing.preserve_domain(ctx, token, of);
    preserved.map_err(Trouble::at("preserve a domain"))
}

/// Says who will be cut off, and where they aim.
fn announce<P: Platform + ?Sized>(scene: &Scene<'_, '_, P>) {
    let kernel = scene.kernel;
    for index in scene.cast.kept()..scene.cast.edus.len() {
        let who = scene.cast.edus[index].requester;
        let carried = kernel.carried(who);
        let mut others = kernel.aliases_of(who);
        others.push(who.source);
        others.retain(|source| *source != carried.source);
        scene.platform().event(&Event::ToCutOff {
            requester: text::requester(carried),
            aliases: ids(who, others),
            listed: kernel.is_listed(carried),
            target_start: scene.page(index).get(),
            target_bytes: PAGE_SIZE,
        });
    }
}

/// Freezes and reports the audit; `None` when it was refused, with everything as it was.
fn freeze<'k, 's, 'p, P: Platform + ?Sized>(
    scene: &Scene<'k, 'p, P>,
    outgoing: Outgoing<'k, 's, Kernel<'k, 'p, P>>,
    ctx: &mut MaySleep,
    update: u64,
) -> Result<Option<Sealed<'k, 's, Kernel<'k, 'p, P>>>, Trouble> {
    let platform = scene.platform();
    let homes: Vec<_> = platform.successor_home().into_iter().collect();
    let reserved: Vec<_> =
        scene.reserved.iter().map(|(source, region)| (requester(*source), *region)).collect();
    let reserved = ReservedMemory::Reduced(&reserved);
    let successor = platform.successor_adopts();
    let input = FreezeInput { release: platform.release(), update, scratch: &homes, reserved, successor };
    let mut words = super::store::audit_words();
    let mut findings = Vec::new();
    #[allow(clippy::result_large_err)] // the error is the whole outgoing side, handed back
    let frozen = timed(platform, "freeze", || {
        let scratch = &mut audit::Scratch::new(&mut words);
        outgoing.freeze(ctx, &input, scratch, &mut |finding| findings.push(finding))
    });
    match frozen {
        Ok(sealed) => {
            report_audit(platform, "before_jump", Some(&sealed.audit), &findings);
            let c = sealed.container;
            platform.event(&Event::Handover {
                fdt: c.fdt.get(),
                blob_start: c.blob.get(),
                blob_bytes: c.blob_bytes,
                digest: c.digest,
                preserved_frames: c.preserved_frames,
                extents: c.runs as u64,
            });
            Ok(Some(sealed))
        }
        Err(refused) => {
            report_audit(platform, "before_jump", None, &findings);
            platform.event(&Event::Refused { step: "freeze".to_string(), why: refused.why.to_string() });
            abandon(scene, refused.outgoing, ctx)?;
            Ok(None)
        }
    }
}

/// There will be no update: everything is unpreserved, and no frame stays marked.
fn abandon<'k, 'p, P: Platform + ?Sized>(
    scene: &Scene<'k, 'p, P>,
    mut outgoing: Outgoing<'k, '_, Kernel<'k, 'p, P>>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let requesters: Vec<_> = outgoing.requesters().map(|kept| kept.token).collect();
    for token in requesters {
        outgoing.unpreserve_requester(ctx, token).map_err(Trouble::at("unpreserve a requester"))?;
    }
    let domains: Vec<_> = outgoing.domains().map(|domain| domain.token).collect();
    // Last first: a domain may lie below an earlier one.
    for token in domains.into_iter().rev() {
        outgoing.unpreserve_domain(ctx, token).map_err(Trouble::at("unpreserve a domain"))?;
    }
    let regions: Vec<_> = outgoing.regions().map(|region| region.token).collect();
    for token in regions {
        outgoing.unpreserve_region(ctx, token).map_err(Trouble::at("unpreserve a region"))?;
    }
    match scene.kernel.marked() {
        0 => Ok(()),
        runs => {
            Err(Trouble { step: "undo an update", why: alloc::format!("{runs} runs of frames stay marked") })
        }
    }
}

/// Reports an audit.
pub(crate) fn report_audit<P: Platform + ?Sized>(
    platform: &P,
    when: &str,
    report: Option<&audit::Report>,
    findings: &[audit::Finding],
) {
    let checked = report.iter().flat_map(|r| &r.checked).filter(|c| c.checkable).map(|c| Checked {
        invariant: c.invariant.to_string(),
        what: c.what.to_string(),
        count: c.items,
    });
    let violations = findings.iter().map(|f| Violation {
        invariant: f.invariant.to_string(),
        requester: f.requester.map(text::requester).unwrap_or_default(),
        address: f.at,
        words: f.to_string(),
    });
    let (checked, violations) = (checked.collect(), violations.collect());
    platform.event(&Event::Audit { when: when.to_string(), checked, violations });
}

/// Past the seal: transfers are started, then the point of no return. Nothing allocates, sleeps or fails from there on.
fn leave<'k, 'p, P: Platform + ?Sized>(
    mut scene: Scene<'k, 'p, P>,
    sealed: Sealed<'k, '_, Kernel<'k, 'p, P>>,
    ctx: MaySleep,
) -> Result<End, Trouble> {
    let platform = scene.platform();
    let mut notes = Notes { tune: scene.tune_hash()?, ..Notes::EMPTY };
    let mutant = Mutant::of(platform);
    if mutant == Some(Mutant::LateStrayLeaf) {
        bend_leaf(&scene)?;
    }
    match (mutant, &scene.streams) {
        (Some(Mutant::FourLevels), Some(streams)) => streams.lose_a_level(scene.kernel)?,
        (Some(Mutant::GuestRemaps), Some(streams)) => streams.remap_a_guest(scene.kernel)?,
        _ => {}
    }
    start_transfers(&mut scene)?;
    // What is dropped past the point of no return would give memory back: it stays where it is.
    let mut scene = ManuallyDrop::new(scene);
    let atomic = Atomic::for_good(ctx);
    sabotage(scene.kernel, mutant, true);
    let start = platform.now();
    platform.mark(Mark::CutOffBegin);
    let cut_off = sealed.cut_off(&atomic, &mut |event| notes.note(event));
    platform.mark(Mark::CutOffDone);
    notes.cut_off = (start, platform.now() - start);
    for unit in scene.kernel.iommu.units() {
        notes.queue_errors += unit.queue_errors(&mut |_| notes.queue_errors += 1);
    }
    sabotage(scene.kernel, mutant, false);
    notes.interrupts = interrupts::in_gap(&scene, &atomic, mutant);
    notes.busy = (0..scene.cast.kept()).filter(|&i| scene.edus[i].busy()).fold(0, |busy, i| busy | 1 << i);
    scene.streams.iter().for_each(|streams| streams.beats(&mut notes.beats));
    notes.capturing = scene.capturing.position();
    notes.playing = scene.playing.position();
    // The frame was written to when the scene was built: this cannot fail, and a jump without notes is still a jump.
    let _ = notes.write(platform, scene.memory.notes);
    if mutant == Some(Mutant::BrokenHandover) {
        let at = PhysAddr::new(cut_off.container.blob.get() + cut_off.container.blob_bytes - 8);
        let _ = platform.read64(at).and_then(|word| platform.write64(at, word ^ 1 << 40));
    }
    platform.mark(Mark::Jump);
    Ok(End::Jump { fdt: cut_off.container.fdt })
}

/// Starts the transfers that will be in flight at the jump: first those that will be refused. A machine that was held up
/// meanwhile (by its own host) tries again, once the transfers are over and their traces removed.
fn start_transfers<P: Platform + ?Sized>(scene: &mut Scene<'_, '_, P>) -> Result<(), Trouble> {
    let platform = scene.platform();
    let (kept, all) = (scene.cast.kept(), scene.cast.edus.len());
    let crowd = platform.option("crowd").is_some();
    let between = if crowd { 0 } else { BETWEEN_TRANSFERS / (all - kept).saturating_sub(1).max(1) as u64 };
    for _ in 0..STARTS {
        let first = platform.now();
        scene.streams.as_ref().map_or(Ok(()), Streams::start_cut)?;
        for index in kept..all {
            while platform.now().saturating_sub(first) < between * (index - kept) as u64 {
                platform.relax();
            }
            scene.start_transfer(index)?;
        }
        (0..kept).try_for_each(|index| scene.start_transfer(index))?;
        if platform.now().saturating_sub(first) < LATEST_CUT_OFF {
            return Ok(());
        }
        scene.wait_for_edus()?;
        scene.streams.as_ref().map_or(Ok(()), Streams::take_back_cut)?;
        (0..all).try_for_each(|index| scene.fill_page(index, plan::UNTOUCHED))?;
    }
    Err(Trouble::new("start the transfers", "this machine is held up too often to have them in flight"))
}

/// Puts the mistakes in that concern the cut-off, or takes them out again.
fn sabotage<P: Platform + ?Sized>(kernel: &Kernel<'_, '_, P>, mutant: Option<Mutant>, on: bool) {
    let lose = mutant == Some(Mutant::NoCutOff);
    kernel.machine.lose_stores.set(on && lose);
    for unit in &kernel.units {
        unit.swallow_forget.set(on && (lose || mutant == Some(Mutant::MissingInvalidation)));
        unit.spare_pasid_cache.set(on && mutant == Some(Mutant::StalePasid));
    }
}

/// Bends the preserved edu's leaf to a frame that nobody preserved.
fn bend_leaf<P: Platform + ?Sized>(scene: &Scene<'_, '_, P>) -> Result<(), Trouble> {
    let kernel = scene.kernel;
    let none = || Trouble::new("bend a leaf", "the leaf is not where it should be");
    let domain = scene.edu_domains[0].ok_or_else(none)?;
    let mut table = kernel.iommu.top_table(domain).ok_or_else(none)?;
    let levels = kernel.iommu.levels(domain).ok_or_else(none)?;
    let machine: &Machine<'_, P> = kernel.machine;
    for level in (0..levels).rev() {
        let at = table.plus(8 * spec::second_stage::index(plan::EDU_IOVA.get(), level));
        let raw = machine.read(at).map_err(Trouble::at("bend a leaf"))?;
        // Both stages keep a frame in the same bits, and the small page here has no large leaf above it.
        let entry = spec::second_stage::SecondStageEntry::from_raw(raw);
        if level > 0 {
            table = entry.address();
            continue;
        }
        let stray = kernel.platform().allocate(1, 1, PhysAddr::new(0)).ok_or_else(none)?;
        let bent = entry.with_addr(stray.first().number()).raw();
        machine.write(at, bent).map_err(Trouble::at("bend a leaf"))?;
    }
    Ok(())
}

/// Whether the target memory of edu `index` is as it was, and whose requests arrive as whose; the offset of the first
/// difference if not.
pub(crate) fn target_difference<P: Platform + ?Sized>(
    scene: &Scene<'_, '_, P>,
    index: usize,
) -> Result<(Requester, Option<u64>), Trouble> {
    let source = scene.kernel.carried(scene.cast.edus[index].requester);
    let difference = differs(scene.platform(), scene.page(index), PAGE_SIZE, |_| plan::UNTOUCHED)?;
    Ok((source, difference))
}
