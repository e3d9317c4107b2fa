//! Streams with and without PASID: one device whose queues go through different tables at the same time, where the option
//! `streams` asks for it.
//!
//! Those that are preserved run from the first kernel's start to the end and never stop; each lost request is seen, in the
//! ring or by the device ([`crate::streamer`]). The others are PASIDs of the same requester that are not preserved: each has
//! one beat under way at the cut-off, like the transfers of the devices that are cut off. What of this is the update's is
//! in `carry`, the guest's tables are in `guest`.

mod carry;
mod guest;
mod levels;
mod words;

use super::devices::{self, requester};
use super::host::Kernel;
use super::scene::{self, differs};
use super::trouble::Trouble;
use super::{drive, plan};
use crate::event::Event;
use crate::pci;
use crate::platform::Platform;
use crate::streamer::{self, Setup, Streamer};
use crate::text;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use iommu::DomainHandle;
use liveupdate::host::{MaySleep, Unit};
use spec::{Extent, Iova, PAGE_SIZE, PhysAddr, Requester};
use words::{Through, Word};

pub(crate) use carry::{declare_cut, preserve, retrieve};

/// Pages of a stream's memory: the ring first.
const BLOCK: u64 = 16;
/// Numbers in a ring.
const SLOTS: u64 = 128;
/// Nanoseconds between two beats of a stream that is preserved.
const PERIOD: u64 = 500_000;
/// The same while a stream is tried out, or judged within a kernel's life.
const QUICK: u64 = 20_000;
/// The one beat of a stream that is cut off comes this long after it was started, as edu's transfers do.
const LATE: u64 = 100_000_000;
/// The beats of several of these are apart, so that each can be recorded: units keep one fault of a requester at a time.
const APART: u64 = 7_000_000;
/// How long a stream may take to do a lap, in nanoseconds.
const LIMIT: u64 = 2_000_000_000;

/// One stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    word: Word,
    /// Its tables; of a nested one, the host's. `None` in pass-through, and when it is blocked or detached.
    domain: Option<DomainHandle>,
    /// Beats until the jump and until adoption, in a kernel that arrived.
    before: [u64; 2],
}

/// The streaming device, and what its queues do.
pub(crate) struct Streams<'p, P: ?Sized> {
    who: Requester,
    device: Streamer<'p, P>,
    platform: &'p P,
    /// Queue `n` is that of stream `n`.
    list: Vec<Stream>,
    memory: Extent,
}

impl<'p, P: Platform + ?Sized> Streams<'p, P> {
    /// Gives every queue its tables; `None` where nobody asked for streams.
    pub(crate) fn start(kernel: &Kernel<'_, 'p, P>, ctx: &mut MaySleep) -> Result<Option<Self>, Trouble> {
        let platform = kernel.platform();
        let Some(words) = asked(platform)? else { return Ok(None) };
        let (who, device) = find(kernel)?;
        let memory = platform.allocate(BLOCK * words.len() as u64, 1, PhysAddr::new(0));
        let memory = memory.ok_or(Trouble::new("take memory for the streams", "there is not enough"))?;
        let list = words.into_iter().map(|word| Stream { word, domain: None, before: [0; 2] }).collect();
        let mut streams = Self { who, device, platform, list, memory };
        (0..streams.list.len()).try_for_each(|index| streams.admit(kernel, ctx, index))?;
        Ok(Some(streams))
    }

    /// Starts the streams that are preserved, for good, and tries the others out.
    pub(crate) fn run(&self) -> Result<(), Trouble> {
        for index in self.with(true) {
            self.begin(index, PERIOD)?;
        }
        self.with(true).try_for_each(|index| self.wait(index, SLOTS + 1))?;
        self.try_out()
    }

    /// Gives the PASIDs that were cut off tables anew, and tries them out.
    pub(crate) fn rearm(&mut self, kernel: &Kernel<'_, 'p, P>, ctx: &mut MaySleep) -> Result<(), Trouble> {
        let cut: Vec<usize> = self.with(false).collect();
        cut.into_iter().try_for_each(|index| self.admit(kernel, ctx, index))?;
        self.try_out()
    }

    /// The streams that are preserved, or the others.
    fn with(&self, kept: bool) -> impl Iterator<Item = usize> + '_ {
        (0..self.list.len()).filter(move |index| self.list[*index].word.kept == kept)
    }

    fn try_out(&self) -> Result<(), Trouble> {
        for index in self.with(false) {
            self.begin(index, QUICK)?;
            self.wait(index, SLOTS + 1)?;
            self.device.stop(index);
            if self.device.lost(index) > 0 || !self.holds(index, index, 0)? {
                let why = format!("{} did not reach its memory", self.name(index));
                return Err(Trouble { step: "try the streams out", why });
            }
            self.fill(index, 0)?;
        }
        Ok(())
    }

    /// Starts what will be under way at the cut-off.
    pub(crate) fn start_cut(&self) -> Result<(), Trouble> {
        let periods = (LATE..).step_by(APART as usize);
        self.with(false).zip(periods).try_for_each(|(index, period)| self.begin(index, period))
    }

    /// Stops it again, and removes its traces.
    pub(crate) fn take_back_cut(&self) -> Result<(), Trouble> {
        for index in self.with(false) {
            self.device.stop(index);
            self.fill(index, 0)?;
        }
        Ok(())
    }

    /// Stops everything.
    pub(crate) fn stop(&self) {
        (0..self.list.len()).for_each(|index| self.device.stop(index));
    }

    /// Beats of each stream so far. Neither allocates nor sleeps.
    pub(crate) fn beats(&self, beats: &mut [u64]) {
        for (index, beats) in (0..self.list.len()).zip(beats) {
            *beats = self.device.sent(index);
        }
    }

    /// Whose requests with this PASID are: `Some(true)` when they are preserved, `None` when they are not streams.
    pub(crate) fn is_kept(&self, who: Requester, pasid: Option<u32>) -> Option<bool> {
        // Hardware may show requests without PASID with that which stands for them.
        let pasid = pasid.filter(|pasid| *pasid != 0);
        let stream = self.list.iter().find(|stream| stream.word.pasid == pasid);
        stream.filter(|_| who == self.who).map(|stream| stream.word.kept)
    }

    fn begin(&self, index: usize, period: u64) -> Result<(), Trouble> {
        self.fill(index, 0)?;
        let (ring, pasid) = (self.iova(index), self.list[index].word.pasid);
        self.device.start(index, Setup { ring, slots: SLOTS, period, pasid });
        Ok(())
    }

    /// Waits until a queue has done so many beats.
    fn wait(&self, queue: usize, beats: u64) -> Result<(), Trouble> {
        let start = self.platform.now();
        while self.device.sent(queue) < beats {
            self.platform.relax();
            if self.platform.now().saturating_sub(start) > LIMIT {
                return Err(Trouble::new("wait for a stream", "it did not do a lap within two seconds"));
            }
        }
        Ok(())
    }

    /// Fills a page of a stream's block.
    fn fill(&self, index: usize, page: u64) -> Result<(), Trouble> {
        let page = Extent::one(self.page(index, page).frame());
        self.platform.fill(page, plan::UNTOUCHED).map_err(Trouble::at("fill a ring"))
    }

    /// Where the memory of a stream that was not preserved first differs from what it was filled with.
    fn difference(&self, index: usize) -> Result<Option<u64>, Trouble> {
        differs(self.platform, self.page(index, 0), PAGE_SIZE, |_| plan::UNTOUCHED)
    }

    /// Whether a page of a stream's block holds the last lap of a queue, whole: every number that was written while we looked,
    /// or the one of the lap before it.
    fn holds(&self, index: usize, queue: usize, page: u64) -> Result<bool, Trouble> {
        let first = self.device.sent(queue);
        let mut words = [0; SLOTS as usize];
        for (slot, word) in words.iter_mut().enumerate() {
            let at = self.page(index, page).plus(8 * slot as u64);
            *word = self.platform.read64(at).map_err(Trouble::at("read a ring"))?;
        }
        let after = self.device.sent(queue);
        Ok(words.iter().zip(0..).all(|(word, slot)| {
            let beat = word & ((1 << 56) - 1);
            let fresh = beat + SLOTS >= first && beat < after && beat % SLOTS == slot;
            fresh && *word == streamer::value(queue, beat)
        }))
    }

    fn page(&self, index: usize, page: u64) -> PhysAddr {
        self.memory.start().plus(PAGE_SIZE * (BLOCK * index as u64 + page))
    }

    /// Where the device sees the ring.
    fn iova(&self, index: usize) -> Iova {
        match self.list[index].word.through {
            Through::Everything => Iova::new(self.page(index, 0).get()),
            _ => plan::high(self.platform, plan::STREAM_IOVA),
        }
    }

    fn levels(&self) -> u8 {
        drive::levels(self.platform).unwrap_or(4)
    }

    /// A stream as people call it.
    fn name(&self, index: usize) -> alloc::string::String {
        let who = text::requester(self.who);
        match self.list[index].word.pasid {
            Some(pasid) => format!("{who} with PASID {pasid}"),
            None => who,
        }
    }

    /// Gives a queue its tables.
    fn admit(&mut self, kernel: &Kernel<'_, 'p, P>, ctx: &mut MaySleep, index: usize) -> Result<(), Trouble> {
        let (who, iova) = (self.who, self.iova(index));
        let Word { pasid, through, .. } = self.list[index].word;
        let refused = Trouble::at("attach a stream");
        match (through, pasid.unwrap_or_default()) {
            (Through::Everything, pasid) => {
                kernel.iommu.attach_pass_through(ctx, who, &[], pasid).map_err(refused)?;
            }
            (Through::Stage(stage), pasid) => {
                let domain = self.domain(kernel, ctx, stage)?;
                let ring = Extent::one(self.page(index, 0).frame());
                scene::map(kernel, ctx, domain, iova, ring)?;
                match pasid {
                    0 => scene::attach(kernel, ctx, who, domain)?,
                    _ => kernel.iommu.attach_pasid(ctx, who, &[], pasid, domain).map_err(refused)?,
                }
                self.list[index].domain = Some(domain);
            }
            (Through::Nested, pasid) => {
                let host = self.domain(kernel, ctx, iommu::table::format::Stage::Second)?;
                let given = Extent::new(self.page(index, 0).frame(), guest::FIRST_LATE);
                let given = given.ok_or(Trouble::new("give a guest its memory", "there is none"))?;
                scene::map(kernel, ctx, host, guest::address(0), given)?;
                guest::write(kernel, self.page(index, 0), self.levels(), iova)?;
                let tables = guest::tables(self.levels());
                kernel.iommu.attach_nested(ctx, who, &[], pasid, tables, host).map_err(refused)?;
                self.list[index].domain = Some(host);
            }
        }
        Ok(())
    }

    fn domain(
        &self,
        kernel: &Kernel<'_, 'p, P>,
        ctx: &mut MaySleep,
        stage: iommu::table::format::Stage,
    ) -> Result<DomainHandle, Trouble> {
        let unit = kernel.iommu.unit_of(self.who);
        let unit = unit.ok_or(Trouble::new("make a domain", "no unit watches the streaming device"))?.id();
        let levels = drive::levels(self.platform);
        let made = kernel.iommu.create_staged_domain(ctx, stage, &[unit], levels);
        made.map_err(Trouble::at("make a domain for a stream"))
    }
}

/// What the command line asks for.
fn asked<P: Platform + ?Sized>(platform: &P) -> Result<Option<Vec<Word>>, Trouble> {
    let Some(list) = platform.option("streams") else { return Ok(None) };
    words::read(list, drive::config(platform)?.mode).map(Some)
}

/// The streaming device, switched on.
fn find<'p, P: Platform + ?Sized>(
    kernel: &Kernel<'_, 'p, P>,
) -> Result<(Requester, Streamer<'p, P>), Trouble> {
    let platform = kernel.platform();
    let found = kernel.buses.0.find(streamer::VENDOR, streamer::DEVICE).next();
    let source = found.ok_or(Trouble::new("find the devices", "there is no streaming device"))?.source;
    pci::enable(platform, source).map_err(Trouble::at("enable the streaming device"))?;
    let at = devices::registers(platform, source)?;
    let device = Streamer::open(platform, at).map_err(Trouble::at("open the streaming device"))?;
    Ok((requester(source), device))
}

/// An event about one stream's PASID that is not preserved.
fn to_cut_off<P: Platform + ?Sized>(streams: &Streams<'_, P>, index: usize) -> Option<Event> {
    let Word { pasid, through, .. } = streams.list[index].word;
    Some(Event::PasidToCutOff {
        requester: text::requester(streams.who),
        pasid: pasid?,
        through: through.name().to_string(),
        target_start: streams.page(index, 0).get(),
        target_bytes: PAGE_SIZE,
    })
}
