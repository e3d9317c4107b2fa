//! The scene: memory, domains and devices of the update that is shown, as one kernel holds them.
//!
//! The first kernel builds it ([`Scene::start`]); a later one gets it by retrieval (in `arrive`) and then gives the
//! requesters that were cut off domains anew ([`Scene::rearm`]), so that the next update has somebody to cut off.

use super::devices::{self, Actor, Cast, Part, requester};
use super::fault_log::FaultLog;
use super::host::Kernel;
use super::interrupts::{self, Interrupts};
use super::notes::Notes;
use super::streams::Streams;
use super::trouble::Trouble;
use super::{drive, plan};
use crate::edu::{Direction, Edu, Transfer};
use crate::event::Event;
use crate::hda::{Controller, Path, Ring, Stream};
use crate::platform::{Mark, Platform};
use crate::{text, tune};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use iommu::{Access, DomainHandle, VtdUnit};
use liveupdate::host::{MaySleep, Unit};
use spec::xxh64::Hasher;
use spec::{Extent, Iova, PAGE_SIZE, PhysAddr, Requester, Segment, SourceId};

/// How long a transfer of edu may take, in nanoseconds.
const EDU_LIMIT: u64 = 2_000_000_000;
/// How long a stream may take to move, in nanoseconds.
const STREAM_LIMIT: u64 = 1_000_000_000;
/// Buffers in either stream's ring.
const BUFFERS: u16 = 16;
/// One GiB in frames: the largest leaf.
const GIB_FRAMES: u64 = 1 << 18;

/// The memory that devices work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) sound: Extent,
    pub(crate) capture: Extent,
    pub(crate) transfer: Extent,
    pub(crate) targets: Extent,
    pub(crate) notes: Extent,
}

/// Everything on the stage.
pub(crate) struct Scene<'k, 'p, P: Platform + ?Sized> {
    pub(crate) kernel: &'k Kernel<'k, 'p, P>,
    pub(crate) cast: Cast,
    pub(crate) memory: Memory,
    pub(crate) audio_domain: DomainHandle,
    /// The preserved edus' domains; `None` for one that failed its checks after the jump and was blocked.
    pub(crate) edu_domains: Vec<Option<DomainHandle>>,
    pub(crate) playing: Stream<'p, P>,
    pub(crate) capturing: Stream<'p, P>,
    /// As in the cast.
    pub(crate) edus: Vec<Edu<'p, P>>,
    /// The preserved edu's interrupt; `None` on a platform whose kernel only polls, and when the edu is blocked.
    pub(crate) interrupts: Option<Interrupts>,
    /// The streams of the streaming device, where there are any.
    pub(crate) streams: Option<Streams<'p, P>>,
    pub(crate) log: FaultLog,
    /// Memory that firmware reserved, and for whom.
    pub(crate) reserved: Vec<(SourceId, Extent)>,
    /// What the predecessor left, in a kernel that arrived.
    pub(crate) arrived_with: Option<Notes>,
}

impl<'k, 'p, P: Platform + ?Sized> Scene<'k, 'p, P> {
    /// Builds the scene in the first kernel: domains, mappings, attached requesters, translation on, streams running.
    pub(crate) fn start(
        kernel: &'k Kernel<'k, 'p, P>,
        ctx: &mut MaySleep,
        log: FaultLog,
        reserved: Vec<(SourceId, Extent)>,
    ) -> Result<Self, Trouble> {
        let platform = kernel.platform();
        report_functions(kernel);
        let cast = Cast::find(platform, &kernel.buses.0)?;
        cast.enable(platform, &kernel.buses.0)?;
        let memory = Memory::take(platform, &cast)?;
        let audio_domain = domain(kernel, ctx, requester(cast.audio))?;
        map(kernel, ctx, audio_domain, plan::high(platform, plan::SOUND_IOVA), memory.sound)?;
        map(kernel, ctx, audio_domain, plan::high(platform, plan::CAPTURE_IOVA), memory.capture)?;
        attach(kernel, ctx, requester(cast.audio), audio_domain)?;
        let mut edu_domains = Vec::new();
        for index in cast.with(&[Part::Kept]) {
            edu_domains.push(Some(admit(kernel, ctx, (&cast, index), memory, &reserved)?));
        }
        for index in cast.with(&[Part::Cut, Part::Leaving]) {
            admit(kernel, ctx, (&cast, index), memory, &reserved)?;
        }
        let interrupts = interrupts::start(kernel, ctx, &cast, memory)?;
        let streams = Streams::start(kernel, ctx)?;
        kernel.iommu.enable(ctx).map_err(Trouble::at("switch translation on"))?;
        kernel.iommu.units().iter().for_each(|unit| report_unit(platform, unit));
        write_tune(platform, memory.sound.start())?;
        let (playing, capturing) = start_streams(platform, cast.audio, memory)?;
        let edus = edus(platform, &cast)?;
        let arrived_with = None;
        let mut scene = Self {
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
        scene.exercise(&scene.cast.with(&[Part::Kept, Part::Cut, Part::Leaving]))?;
        scene.streams.as_ref().map_or(Ok(()), Streams::run)?;
        platform.mark(Mark::Running);
        super::pages::start_all(&scene, ctx)?;
        Ok(scene)
    }

    /// Gives the requesters that were cut off domains again. Nothing to do in the first kernel.
    pub(crate) fn rearm(&mut self, ctx: &mut MaySleep) -> Result<(), Trouble> {
        if self.arrived_with.is_some() {
            self.platform().mark(Mark::Rearm);
            self.admit_all(ctx, &[Part::Cut, Part::Leaving])?;
            if let Some(streams) = &mut self.streams {
                streams.rearm(self.kernel, ctx)?;
            }
            self.exercise(&self.cast.with(&[Part::Kept, Part::Cut, Part::Leaving]))?;
        }
        Ok(())
    }

    /// Everything that will be preserved is: some appear only now, others go.
    pub(crate) fn come_and_go(&mut self, ctx: &mut MaySleep) -> Result<(), Trouble> {
        self.admit_all(ctx, &[Part::Late])?;
        self.exercise(&self.cast.with(&[Part::Late]))?;
        for index in self.cast.with(&[Part::Leaving]) {
            let gone = self.kernel.iommu.detach(ctx, self.cast.edus[index].requester);
            gone.map_err(Trouble::at("detach a device"))?;
        }
        Ok(())
    }

    fn admit_all(&self, ctx: &mut MaySleep, parts: &[Part]) -> Result<(), Trouble> {
        for index in self.cast.with(parts) {
            let who = self.cast.edus[index].requester;
            if self.kernel.iommu.domain_of(who).is_some() {
                // It arrived reduced to its reserved memory.
                self.kernel.iommu.detach(ctx, who).map_err(Trouble::at("detach a device"))?;
            }
            admit(self.kernel, ctx, (&self.cast, index), self.memory, &self.reserved)?;
        }
        Ok(())
    }

    pub(crate) fn platform(&self) -> &'p P {
        self.kernel.platform()
    }

    /// Reads the fault records.
    pub(crate) fn watch(&mut self) {
        self.log.harvest(self.kernel.machine, false);
    }

    /// Reports what went wrong in invalidation queues since it was reported last.
    pub(crate) fn report_queue_errors(&self) {
        for unit in self.kernel.iommu.units() {
            let report = |words: String| {
                self.platform().event(&Event::QueueError { unit: unit.id().to_string(), words });
            };
            let lost = unit.queue_errors(&mut |error| report(error.to_string()));
            if lost > 0 {
                report(alloc::format!("unit {}: {lost} more errors of its invalidation queue", unit.id()));
            }
        }
    }

    /// Reports the faults seen so far, and whose they are; and errors of invalidation queues.
    pub(crate) fn report_faults(&mut self) {
        self.report_queue_errors();
        let kernel = self.kernel;
        let carries = |who: Requester, found: Requester| {
            let alias = |source| Requester::new(who.segment, source);
            who == found || kernel.aliases_of(who).into_iter().map(alias).any(|id| id == found)
        };
        let mut kept = vec![requester(self.cast.audio)];
        let (own, others) = self.cast.edus.split_at(self.cast.kept());
        kept.extend(own.iter().map(|actor| actor.requester));
        let listed = kernel.buses.0.functions().iter().map(|f| requester(f.source));
        let others: Vec<_> = others.iter().map(|actor| actor.requester).chain(listed).collect();
        let streams = self.streams.as_ref();
        self.log.report(kernel.platform(), &|fault| {
            let found = fault.requester;
            match streams.and_then(|streams| streams.is_kept(found, fault.pasid)) {
                Some(true) => return "preserved",
                Some(false) => return "cut_off",
                None => {}
            }
            if kept.iter().any(|who| carries(*who, found)) {
                "preserved"
            } else if others.iter().any(|who| carries(*who, found)) {
                "cut_off"
            } else {
                "unattributed"
            }
        });
    }

    /// Waits until no edu has a transfer under way, with an eye on the fault records.
    pub(crate) fn wait_for_edus(&mut self) -> Result<(), Trouble> {
        let start = self.platform().now();
        while self.edus.iter().any(Edu::busy) {
            self.watch();
            self.platform().relax();
            if self.platform().now().saturating_sub(start) > EDU_LIMIT {
                return Err(Trouble::new("wait for edu", "a transfer did not end within two seconds"));
            }
        }
        self.watch();
        Ok(())
    }

    /// The page that edu `index` works on.
    pub(crate) fn page(&self, index: usize) -> PhysAddr {
        self.memory.page(&self.cast, index)
    }

    /// Starts the transfer to memory of edu `index`.
    pub(crate) fn start_transfer(&self, index: usize) -> Result<(), Trouble> {
        let transfer = Transfer {
            direction: Direction::ToMemory,
            memory: plan::EDU_IOVA.plus(plan::TRANSFER_OFFSET),
            offset: 0,
            count: plan::TRANSFER_BYTES,
        };
        self.edus[index].start(transfer).map_err(Trouble::at("start a transfer"))
    }

    /// Loads each edu's buffer from memory and writes it back once: all translations have been used, and are cached.
    fn exercise(&mut self, all: &[usize]) -> Result<(), Trouble> {
        for &index in all {
            self.fill_page(index, plan::pattern(index))?;
            let transfer = Transfer {
                direction: Direction::ToDevice,
                memory: plan::EDU_IOVA,
                offset: 0,
                count: plan::TRANSFER_BYTES,
            };
            self.edus[index].start(transfer).map_err(Trouble::at("load a device's buffer"))?;
        }
        self.wait_for_edus()?;
        for &index in all {
            self.fill_page(index, plan::UNTOUCHED)?;
            self.start_transfer(index)?;
        }
        self.wait_for_edus()?;
        for &index in all {
            if !self.written(index)? {
                let who = text::requester(self.cast.edus[index].requester);
                return Err(Trouble { step: "exercise the devices", why: who + " did not reach its memory" });
            }
            self.fill_page(index, plan::UNTOUCHED)?;
        }
        Ok(())
    }

    /// Fills the page that edu `index` works on.
    pub(crate) fn fill_page(&self, index: usize, pattern: u64) -> Result<(), Trouble> {
        let page = Extent::one(self.page(index).frame());
        self.platform().fill(page, pattern).map_err(Trouble::at("fill a page"))
    }

    /// Whether edu `index`'s transfer has arrived in its page, whole and at its place.
    pub(crate) fn written(&self, index: usize) -> Result<bool, Trouble> {
        let inside = plan::TRANSFER_OFFSET..plan::TRANSFER_OFFSET + plan::TRANSFER_BYTES;
        let wanted = |offset| if inside.contains(&offset) { plan::pattern(index) } else { plan::UNTOUCHED };
        Ok(differs(self.platform(), self.page(index), PAGE_SIZE, wanted)?.is_none())
    }

    /// XXH64 of the tune as it lies in memory.
    pub(crate) fn tune_hash(&self) -> Result<u64, Trouble> {
        let mut hasher = Hasher::new(0);
        let mut page = [0; PAGE_SIZE as usize];
        for offset in (0..tune::BYTES as u64).step_by(page.len()) {
            let at = self.memory.sound.start().plus(offset);
            self.platform().read(at, &mut page).map_err(Trouble::at("read the tune"))?;
            hasher.update(&page);
        }
        Ok(hasher.finish())
    }

    /// Stops the streams.
    pub(crate) fn stop(self) -> Result<(), Trouble> {
        self.streams.iter().for_each(Streams::stop);
        self.playing.stop().map_err(Trouble::at("stop playing"))?;
        self.capturing.stop().map_err(Trouble::at("stop capturing"))
    }
}

impl Memory {
    /// Takes the memory: one GiB for sound where the machine has that much above 4 GiB, otherwise 2 MiB.
    fn take<P: Platform + ?Sized>(platform: &P, cast: &Cast) -> Result<Self, Trouble> {
        let none = || Trouble::new("take memory for the devices", "there is not enough");
        let above = PhysAddr::new(4 << 30);
        let plenty =
            platform.memory_map().iter().any(|r| r.usable && r.start >= above.get() && r.bytes >= 2 << 30);
        let take = |bytes: u64, align| platform.allocate(bytes / PAGE_SIZE, align, PhysAddr::new(0));
        let large = if plenty { platform.allocate(GIB_FRAMES, GIB_FRAMES, above) } else { None };
        Ok(Self {
            sound: large.or_else(|| take(plan::SOUND_BYTES, 512)).ok_or_else(none)?,
            capture: take(plan::CAPTURE_BYTES, 1).ok_or_else(none)?,
            transfer: take(PAGE_SIZE * cast.kept() as u64, 1).ok_or_else(none)?,
            targets: take(PAGE_SIZE * (cast.edus.len() - cast.kept()).max(1) as u64, 1).ok_or_else(none)?,
            notes: take(PAGE_SIZE, 1).ok_or_else(none)?,
        })
    }

    /// The page that edu `index` works on.
    fn page(&self, cast: &Cast, index: usize) -> PhysAddr {
        match index.checked_sub(cast.kept()) {
            None => self.transfer.start().plus(PAGE_SIZE * index as u64),
            Some(other) => self.targets.start().plus(PAGE_SIZE * other as u64),
        }
    }
}

/// Where memory first differs from what it should hold, by offset; `None` when it does not.
pub(crate) fn differs<P: Platform + ?Sized>(
    platform: &P,
    start: PhysAddr,
    bytes: u64,
    wanted: impl Fn(u64) -> u64,
) -> Result<Option<u64>, Trouble> {
    for offset in (0..bytes).step_by(8) {
        let found = platform.read64(start.plus(offset)).map_err(Trouble::at("compare memory"))?;
        if found != wanted(offset) {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// A new domain for a device.
fn domain<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    who: Requester,
) -> Result<DomainHandle, Trouble> {
    let unit = kernel.iommu.unit_of(who);
    let unit = unit.ok_or(Trouble::new("make a domain", "no unit watches the device"))?.id();
    let levels = drive::levels(kernel.platform());
    kernel.iommu.create_domain(ctx, &[unit], levels).map_err(Trouble::at("make a domain"))
}

pub(crate) fn map<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    domain: DomainHandle,
    iova: Iova,
    memory: Extent,
) -> Result<(), Trouble> {
    let access = Access { read: true, write: true };
    let mapped = kernel.iommu.map(ctx, domain, iova, memory.start(), memory.bytes(), access);
    mapped.map_err(Trouble::at("map memory"))
}

pub(crate) fn attach<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    who: Requester,
    domain: DomainHandle,
) -> Result<(), Trouble> {
    let aliases = kernel.aliases_of(who);
    let attached = kernel.iommu.attach(ctx, who, &aliases, domain);
    attached.map_err(Trouble::at("attach a device"))?;
    if who.segment == Segment(0) {
        super::ats::allow(kernel, ctx, who.source)?;
    }
    let unit = kernel.iommu.unit_of(who).map(Unit::id).unwrap_or_default();
    let domain_id = kernel.iommu.domain_id(domain, unit).unwrap_or_default().0;
    for source in [who.source].into_iter().chain(aliases) {
        let id = Requester::new(who.segment, source);
        let listed = kernel.is_listed(id);
        kernel.platform().event(&Event::Attached { requester: text::requester(id), domain_id, listed });
    }
    Ok(())
}

/// Gives an edu a domain with its page, and with the memory that firmware reserved for it at its own addresses.
fn admit<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    (cast, index): (&Cast, usize),
    memory: Memory,
    reserved: &[(SourceId, Extent)],
) -> Result<DomainHandle, Trouble> {
    let Actor { requester: who, .. } = cast.edus[index];
    let domain = domain(kernel, ctx, who)?;
    map(kernel, ctx, domain, plan::EDU_IOVA, Extent::one(memory.page(cast, index).frame()))?;
    for (_, region) in reserved.iter().filter(|(source, _)| requester(*source) == who) {
        map(kernel, ctx, domain, Iova::new(region.start().get()), *region)?;
    }
    attach(kernel, ctx, who, domain)?;
    Ok(domain)
}

/// Writes the tune to memory at `at`.
fn write_tune<P: Platform + ?Sized>(platform: &P, at: PhysAddr) -> Result<(), Trouble> {
    let frames_per_page = PAGE_SIZE as u32 / tune::FRAME_BYTES as u32;
    for first in (0..tune::FRAMES).step_by(frames_per_page as usize) {
        let bytes: Vec<u8> = (first..first + frames_per_page).flat_map(tune::frame_bytes).collect();
        let offset = u64::from(first) * tune::FRAME_BYTES as u64;
        platform.write(at.plus(offset), &bytes).map_err(Trouble::at("write the tune"))?;
    }
    Ok(())
}

/// Resets the audio controller and starts both streams.
fn start_streams<'p, P: Platform + ?Sized>(
    platform: &'p P,
    audio: SourceId,
    memory: Memory,
) -> Result<(Stream<'p, P>, Stream<'p, P>), Trouble> {
    let at = devices::registers(platform, audio)?;
    let audio = Controller::reset(platform, at).map_err(Trouble::at("reset the audio controller"))?;
    let (sound, captured) =
        (plan::high(platform, plan::SOUND_IOVA), plan::high(platform, plan::CAPTURE_IOVA));
    let positions = sound.plus(plan::POSITIONS);
    audio.set_position_buffer(Some(positions)).map_err(Trouble::at("set the position buffer"))?;
    let start = |path, list, bytes: u64, buffer| {
        let ring = Ring::new(sound.plus(list), BUFFERS, bytes as u32)?;
        ring.write(platform, memory.sound.start().plus(list), buffer)?;
        let stream = audio.start(path, ring)?;
        stream.wait_until_it_moves(STREAM_LIMIT)?;
        Ok::<_, crate::hda::HdaError>(stream)
    };
    let playing = start(Path::PLAYBACK, plan::PLAY_LIST, tune::BYTES as u64, sound);
    let playing = playing.map_err(Trouble::at("start playing"))?;
    let capturing = start(Path::CAPTURE, plan::CAPTURE_LIST, plan::CAPTURE_BYTES, captured);
    Ok((playing, capturing.map_err(Trouble::at("start capturing"))?))
}

/// The edus of the cast, as they run.
pub(crate) fn edus<'p, P: Platform + ?Sized>(
    platform: &'p P,
    cast: &Cast,
) -> Result<Vec<Edu<'p, P>>, Trouble> {
    let open =
        |actor: &Actor| Edu::open(platform, actor.registers(platform)?).map_err(Trouble::at("open an edu"));
    cast.edus.iter().map(open).collect()
}

/// Reports what the buses have.
fn report_functions<P: Platform + ?Sized>(kernel: &Kernel<'_, '_, P>) {
    for function in kernel.buses.0.functions() {
        kernel.platform().event(&Event::Function {
            requester: text::source(function.source),
            vendor: function.vendor,
            device: function.device,
            class: function.class,
        });
    }
}

/// Reports a unit as it is now.
pub(crate) fn report_unit<P: Platform + ?Sized>(
    platform: &P,
    unit: &VtdUnit<'_, super::host::Machine<'_, P>>,
) {
    let version = platform.mmio_read32(PhysAddr::new(unit.id().register_base));
    let version = spec::regs::Version::from_raw(version);
    platform.event(&Event::Unit {
        unit: unit.id().to_string(),
        version: alloc::format!("{}.{}", version.max(), version.min()),
        cap: unit.cap().raw(),
        ecap: unit.ecap().raw(),
        status: unit.status().raw(),
        root: unit.root().raw(),
        // The driver takes no unit over that runs in another mode than it is driven in.
        mode: unit.config().mode.to_string(),
    });
}
