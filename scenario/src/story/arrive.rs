//! The incoming kernel's part: open, reserve, poison, check, adopt, retrieve, finish.

use super::devices::{self, Cast, requester};
use super::fault_log::FaultLog;
use super::host::{Kernel, Machine};
use super::notes::Notes;
use super::scene::{self, Memory, Scene};
use super::trouble::Trouble;
use super::update::{report_audit, report_phase};
use super::{Mutant, mutant, plan, poison, store};
use crate::event::Event;
use crate::hda::{Controller, FRAME_BYTES, Path, Stream};
use crate::platform::{Mark, Platform};
use crate::{text, tune};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use iommu::DomainHandle;
use liveupdate::host::{MaySleep, Unit};
use liveupdate::{AdoptEvent, Incoming, Opened, Token};
use spec::{Extent, PAGE_SIZE, PhysAddr, Requester, SourceId};

/// An opened handover, with everything preserved reserved and everything else overwritten.
pub(crate) struct Arrival<'s> {
    opened: Opened<'s>,
    /// Phases until now: name, start, duration.
    phases: Vec<(&'static str, u64, u64)>,
}

/// Opens the handover at `fdt`, reserves what is preserved, and overwrites everything else.
pub(crate) fn open<'s, P: Platform + ?Sized>(
    machine: &Machine<'_, P>,
    fdt: PhysAddr,
    room: &'s mut store::Room,
    log: &mut FaultLog,
) -> Result<Arrival<'s>, Trouble> {
    let platform = machine.platform;
    let mut phases = Vec::new();
    let start = platform.now();
    let opened = liveupdate::open(machine, fdt, room.storage()).map_err(Trouble::at("open the handover"))?;
    let mut keep = Vec::new();
    let mapped = opened.for_each_preserved(machine, &mut |run| keep.push(run));
    mapped.map_err(Trouble::at("read the map of preserved memory"))?;
    if keep.iter().any(|run| run.overlaps(platform.home())) {
        return Err(Trouble::new(
            "reserve what is preserved",
            "a preserved frame lies in this kernel's own memory",
        ));
    }
    keep.iter().for_each(|run| platform.reserve(*run));
    phases.push(("open", start, platform.now() - start));
    if platform.option("no-poison").is_none() {
        let start = platform.now();
        keep.push(platform.home());
        keep.extend(platform.successor_home());
        let bytes = poison::poison(machine, &mut keep, log)?;
        phases.push(("poison", start, platform.now() - start));
        platform.log(format_args!("{} MiB that nobody preserved are overwritten", bytes >> 20));
    }
    if Mutant::of(platform) == Some(Mutant::TranslationOff) {
        opened.for_each_unit(&mut |unit| mutant::blink(platform, unit));
    }
    Ok(Arrival { opened, phases })
}

/// Checks the handover against the hardware, adopts the units, and retrieves the scene.
pub(crate) fn adopt<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    arrival: Arrival<'_>,
    mut log: FaultLog,
    reserved: Vec<(SourceId, Extent)>,
) -> Result<Scene<'k, 'p, P>, Trouble> {
    let platform = kernel.platform();
    let Arrival { opened, mut phases } = arrival;
    let outgoing = opened.release().to_string();
    let mut words = store::audit_words();
    let mut findings = Vec::new();
    let start = platform.now();
    let scratch = &mut audit::Scratch::new(&mut words);
    let checked = opened.check(kernel, scratch, &mut |finding| findings.push(finding));
    let checked = checked.map_err(Trouble::at("audit the handover"))?;
    phases.push(("audit", start, platform.now() - start));
    let report = checked.report;

    let start = platform.now();
    let mut events = Vec::new();
    let mut reserve = |unit, id| kernel.iommu.reserve_domain_id(unit, id).is_ok();
    let incoming = checked.adopt(kernel, ctx, &mut reserve, &mut |event| {
        // Entries are reported under the unit's lock, where nothing may allocate.
        if !matches!(event, AdoptEvent::Entry(_)) {
            events.push(event);
        }
    });
    log.harvest(kernel.machine, true);
    platform.mark(Mark::Adopted);
    let adopted_at = platform.now();
    phases.push(("adopt", start, adopted_at - start));

    let scene = retrieve(kernel, ctx, incoming, (log, reserved), &mut phases)?;
    for (phase, start, duration) in phases {
        report_phase(platform, platform.release(), phase, start, duration);
    }
    report_audit(platform, "after_jump", Some(&report), &findings);
    report_adoption(kernel, &events, adopted_at);
    report_notes(&scene, &outgoing);
    Ok(scene)
}

/// The handover cannot be adopted: nobody's DMA can be told from anybody else's, so all of it is blocked. Translation
/// stays on.
pub(crate) fn fail_closed<P: Platform + ?Sized>(kernel: &Kernel<'_, '_, P>, ctx: &mut MaySleep) {
    // Under a unit's lock nothing may allocate: what happens is noted, as past the point of no return.
    let mut notes = Notes::EMPTY;
    liveupdate::block_all(kernel, ctx, &mut |event| notes.note(event));
    let cleared = notes.cleared.iter().map(text::requester).collect();
    let confirmed = notes.confirmed.0 > 0 && notes.confirmed.1 == 0;
    let unit = kernel.iommu.units().first().map(|u| u.id().to_string()).unwrap_or_default();
    let platform = kernel.platform();
    platform.mark(Mark::CutOffDone);
    platform.event(&Event::CutOff { unit, cleared, kept: Vec::new(), pasids: Vec::new(), confirmed });
}

/// Retrieves regions, domains, requesters and the running devices, then finishes.
fn retrieve<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    mut incoming: Incoming<'k, '_, Kernel<'k, 'p, P>>,
    (log, reserved): (FaultLog, Vec<(SourceId, Extent)>),
    phases: &mut Vec<(&'static str, u64, u64)>,
) -> Result<Scene<'k, 'p, P>, Trouble> {
    let platform = kernel.platform();
    let start = platform.now();
    let cast = Cast::find(platform, &kernel.buses.0)?;
    let mut region = |token| incoming.retrieve_region(token).map_err(Trouble::at("retrieve a region"));
    let frame = region(plan::NOTES)?;
    let notes = Notes::read(platform, frame);
    let notes = notes.ok_or(Trouble::new("read the notes", "the notes are not what was written"))?;
    let (playing, capturing) = take_streams_over(platform, cast.audio, &notes)?;
    let memory = Memory {
        sound: region(plan::SOUND)?,
        capture: region(plan::CAPTURE)?,
        transfer: region(plan::TRANSFER)?,
        targets: region(plan::TARGETS)?,
        notes: frame,
    };
    let audio_domain = retrieve_domain(kernel, ctx, &mut incoming, plan::AUDIO_DOMAIN)?;
    let audio = retrieve_requester(kernel, ctx, &mut incoming, plan::AUDIO, audio_domain)?;
    let mut edu_domains = Vec::new();
    let mut same = audio == requester(cast.audio);
    for index in 0..cast.kept() {
        let (token, who) = (plan::edu_domain(index), cast.edus[index].requester);
        if incoming.is_blocked(token) {
            let requesters = alloc::vec![text::requester(who)];
            let why = "its domain failed the audit: blocked, the rest goes on".to_string();
            platform.event(&Event::Blocked { token: plan::name(token), requesters, why });
            edu_domains.push(None);
            continue;
        }
        let domain = retrieve_domain(kernel, ctx, &mut incoming, token)?;
        same &= retrieve_requester(kernel, ctx, &mut incoming, plan::edu(index), domain)? == who;
        edu_domains.push(Some(domain));
    }
    if !same {
        return Err(Trouble::new(
            "find the devices",
            "other functions were preserved than this kernel drives",
        ));
    }
    let interrupts = match edu_domains[0] {
        Some(_) => super::interrupts::retrieve(kernel, &incoming, &cast)?,
        None => None,
    };
    let streams = super::streams::retrieve(kernel, ctx, &mut incoming, &notes.beats)?;
    super::reduced::retrieve(kernel, ctx, &mut incoming, &cast, &reserved)?;
    phases.push(("retrieve", start, platform.now() - start));
    let start = platform.now();
    let cut = incoming.finish(ctx, &mut |_| {});
    phases.push(("finish", start, platform.now() - start));
    // A unit with nothing preserved was switched off. Now that it has an empty root table, it lets nobody through.
    kernel.iommu.enable(ctx).map_err(Trouble::at("switch translation on"))?;
    platform.mark(Mark::Finished);
    platform.log(format_args!("finished; {cut} requesters that nobody retrieved were cut off"));

    let edus = scene::edus(platform, &cast)?;
    let arrived_with = Some(notes);
    let mut scene = Scene {
        kernel,
        cast,
        memory,
        audio_domain,
        edu_domains,
        playing,
        capturing,
        edus,
        interrupts,
        streams,
        log,
        reserved,
        arrived_with,
    };
    if Mutant::of(platform) == Some(Mutant::PoisonedPage) {
        poison_ahead(&mut scene)?;
    }
    Ok(scene)
}

/// Takes both streams over as they run, and reports where the tune stands.
fn take_streams_over<'p, P: Platform + ?Sized>(
    platform: &'p P,
    audio: SourceId,
    notes: &Notes,
) -> Result<(Stream<'p, P>, Stream<'p, P>), Trouble> {
    let controller = Controller::running(platform, devices::registers(platform, audio)?);
    let controller = controller.map_err(Trouble::at("take the audio controller over"))?;
    let take_over =
        |path, known| controller.take_over(path, known).map_err(Trouble::at("take a stream over"));
    let mut playing = take_over(Path::PLAYBACK, notes.playing)?;
    let capturing = take_over(Path::CAPTURE, notes.capturing)?;
    for (moment, position) in [("jump", notes.playing), ("adopted", playing.position())] {
        let (moment, frames, at) = (moment.to_string(), position.frames, position.at);
        platform.event(&Event::Position { moment, frames, at });
    }
    Ok((playing, capturing))
}

pub(crate) fn retrieve_domain<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    incoming: &mut Incoming<'k, '_, Kernel<'k, 'p, P>>,
    token: Token,
) -> Result<DomainHandle, Trouble> {
    let domain = incoming.retrieve_domain(token).map_err(Trouble::at("retrieve a domain"))?;
    let tables: Vec<_> = incoming.tables_of(token).collect();
    let ids: Vec<_> = incoming.domain_ids_of(token).collect();
    let stage = match domain.stage {
        liveupdate::Stage::Second => iommu::Stage::Second,
        liveupdate::Stage::First => iommu::Stage::First,
    };
    let (top, levels) = (domain.top_table, domain.levels);
    let imported = kernel.iommu.import_staged_domain(ctx, stage, top, levels, &ids, &tables);
    let handle = imported.map_err(Trouble::at("import a domain"))?;
    kernel.platform().event(&Event::Retrieved { what: "domain".to_string(), token: plan::name(token) });
    Ok(handle)
}

pub(crate) fn retrieve_requester<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    incoming: &mut Incoming<'k, '_, Kernel<'k, 'p, P>>,
    token: Token,
    domain: DomainHandle,
) -> Result<Requester, Trouble> {
    let retrieved = incoming.retrieve_requester(token).map_err(Trouble::at("retrieve a requester"))?;
    let aliases: Vec<_> = incoming.aliases_of(token).collect();
    let requester = retrieved.requester;
    let imported = kernel.iommu.import_requester(ctx, requester, &aliases, domain);
    imported.map_err(Trouble::at("import a requester"))?;
    if let Some(tlb) = retrieved.device_tlb {
        let imported = kernel.iommu.import_device_tlb(requester, tlb);
        imported.map_err(Trouble::at("import a device-TLB"))?;
    }
    if retrieved.page_requests {
        super::pages::start(kernel, ctx, requester)?;
    }
    kernel.platform().event(&Event::Retrieved { what: "requester".to_string(), token: plan::name(token) });
    Ok(requester)
}

/// Overwrites the page of the tune that will be played half a second from now.
fn poison_ahead<P: Platform + ?Sized>(scene: &mut Scene<'_, '_, P>) -> Result<(), Trouble> {
    let ahead = scene.playing.position().frames + crate::hda::RATE / 2;
    let offset = ahead % u64::from(tune::FRAMES) * u64::from(FRAME_BYTES) / PAGE_SIZE * PAGE_SIZE;
    poison::one_page(scene.platform(), scene.memory.sound.start().plus(offset))
}

/// Reports what adoption did.
fn report_adoption<P: Platform + ?Sized>(kernel: &Kernel<'_, '_, P>, events: &[AdoptEvent], at: u64) {
    let platform = kernel.platform();
    for unit in kernel.iommu.units() {
        scene::report_unit(platform, unit);
    }
    for event in events {
        match event {
            AdoptEvent::Adopted(id) => {
                platform.event(&Event::Adopted {
                    unit: id.to_string(),
                    domain_ids: domain_ids(kernel, *id),
                    at,
                });
            }
            AdoptEvent::UnitMissing(id) => platform.event(&Event::Failed {
                step: "adopt".to_string(),
                why: alloc::format!("unit {id} of the handover is not in this machine"),
            }),
            AdoptEvent::DomainIdTaken(id, domain) => platform.event(&Event::Failed {
                step: "adopt".to_string(),
                why: alloc::format!("domain id {domain} of unit {id} is taken"),
            }),
            AdoptEvent::Entry(_) | AdoptEvent::Blocked(_) | AdoptEvent::RequesterBlocked(_) => {}
        }
    }
}

/// The domain ids that a unit's adopted domains have.
fn domain_ids<P: Platform + ?Sized>(kernel: &Kernel<'_, '_, P>, unit: spec::UnitId) -> Vec<u16> {
    let unit = kernel.iommu.unit(unit).map(Unit::id);
    let requesters = kernel.iommu.requesters().into_iter();
    let mut ids: Vec<_> =
        requesters.filter_map(|(_, domain)| kernel.iommu.domain_id(domain, unit?)).map(|id| id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Reports what the predecessor could not report itself any more.
fn report_notes<P: Platform + ?Sized>(scene: &Scene<'_, '_, P>, outgoing: &str) {
    let platform = scene.platform();
    let Some(notes) = scene.arrived_with else { return };
    report_phase(platform, outgoing, "cut-off", notes.cut_off.0, notes.cut_off.1);
    let texts =
        |list: &mut dyn Iterator<Item = spec::Requester>| list.map(text::requester).collect::<Vec<String>>();
    let unit = scene.kernel.iommu.units().first().map(|u| u.id().to_string()).unwrap_or_default();
    if notes.queue_errors > 0 {
        let words = alloc::format!("{} errors of invalidation queues during the cut-off", notes.queue_errors);
        platform.event(&Event::QueueError { unit: unit.clone(), words });
    }
    for requester in notes.silent.iter().map(text::requester) {
        let words = alloc::format!("{requester} did not answer that its device forgot: its entry blocks it");
        platform.event(&Event::QueueError { unit: unit.clone(), words });
    }
    platform.event(&Event::CutOff {
        unit,
        cleared: texts(&mut notes.cleared.iter()),
        kept: texts(&mut notes.stays.iter()),
        pasids: notes.pasids.iter().map(|(who, pasid)| (text::requester(who), pasid)).collect(),
        confirmed: notes.confirmed.0 > 0 && notes.confirmed.1 == 0,
    });
}
