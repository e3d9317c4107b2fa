//! Driver of an Intel High Definition Audio controller, as far as two cyclic streams need it: one that plays out of
//! memory and one that captures into it. They go on by themselves once started, which makes them witnesses of an update.
//!
//! The outgoing kernel resets the controller ([`Controller::reset`]), writes the list of buffer descriptors
//! ([`Ring::write`]) and starts streams ([`Controller::start`]). The incoming kernel takes the running controller as it
//! is ([`Controller::running`], [`Controller::take_over`]): it only reads registers, and believes none of them before
//! comparing it with what the stream must be. [`Stream::position`] says where a stream stands, counted over all laps.
//!
//! "HDA" cites the *High Definition Audio Specification*, revision 1.0a. Addresses are 32 bits wide where the controller
//! says so (GCAP.64OK). No interrupts are used.

mod error;
mod ring;

use crate::platform::Platform;
use crate::poll;
pub use error::HdaError;
pub use ring::{ALIGNMENT, DESCRIPTOR_BYTES, ENTRIES, FRAME_BYTES, Position, RATE, Ring};
use spec::bitfields;
use spec::{Iova, PhysAddr};

/// Vendor id of QEMU's controller.
pub const VENDOR: u16 = 0x8086;
/// Device id of QEMU's `intel-hda` (ICH6).
pub const DEVICE: u16 = 0x2668;
/// Most bytes of the position buffer: one entry of 8 bytes for each of 30 streams, rounded up.
pub const POSITION_BUFFER_BYTES: u64 = 256;

/// Longest wait for the controller, a stream or a codec, in nanoseconds. The specification allows none of them a tenth.
const LIMIT_NS: u64 = 100_000_000;
/// 48 kHz, 16 bits, two channels (HDA 3.7.1).
const FORMAT: u16 = 0x0011;

/// Registers of the controller (HDA 3.3).
mod reg {
    pub(super) const GCAP: u64 = 0x00;
    pub(super) const GCTL: u64 = 0x08;
    pub(super) const STATESTS: u64 = 0x0e;
    pub(super) const ICOI: u64 = 0x60;
    pub(super) const ICII: u64 = 0x64;
    pub(super) const ICIS: u64 = 0x68;
    pub(super) const DPLBASE: u64 = 0x70;
    pub(super) const DPUBASE: u64 = 0x74;
    /// First stream descriptor, and the distance to the next.
    pub(super) const STREAMS: u64 = 0x80;
    pub(super) const STREAM_BYTES: u64 = 0x20;
}

/// Registers of a stream descriptor, from its start (HDA 3.3.35 to 3.3.42).
mod sd {
    pub(super) const CTL: u64 = 0x00;
    pub(super) const LPIB: u64 = 0x04;
    pub(super) const CBL: u64 = 0x08;
    pub(super) const LVI: u64 = 0x0c;
    pub(super) const FMT: u64 = 0x12;
    pub(super) const BDPL: u64 = 0x18;
    pub(super) const BDPU: u64 = 0x1c;
}

/// Reset of the controller: 0 while in reset (HDA 3.3.7).
const GCTL_CRST: u32 = 1 << 0;
/// Immediate command busy, and result valid (HDA 3.4.3).
const ICIS_BUSY: u16 = 1 << 0;
const ICIS_VALID: u16 = 1 << 1;
/// The position buffer is in use (HDA 3.3.32).
const DPLBASE_ENABLE: u32 = 1 << 0;

bitfields! {
    /// Global capabilities (HDA 3.3.2).
    pub struct Gcap(u16) {
        /// Addresses are 64 bits wide, not 32.
        [0] address_64, with_address_64;
        [2:1] _;
        /// Streams that go either way.
        [7:3] bidirectional, with_bidirectional;
        /// Input streams.
        [11:8] inputs, with_inputs;
        /// Output streams.
        [15:12] outputs, with_outputs;
    }
}

bitfields! {
    /// Stream descriptor control and, in the top byte, status, whose bits a one clears (HDA 3.3.35, 3.3.36).
    pub struct Ctl(u32) {
        /// The stream is in reset.
        [0] reset, with_reset;
        /// The stream runs.
        [1] run, with_run;
        [19:2] _;
        /// Stream tag on the link.
        [23:20] tag, with_tag;
        /// Status.
        [31:24] status, with_status;
    }
}

/// Which way a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From memory to a codec.
    Play,
    /// From a codec to memory.
    Capture,
}

/// The way of a stream from its descriptor to a converter: the first descriptor of its direction is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Which way.
    pub direction: Direction,
    /// Address of the codec, 0 to 14.
    pub codec: u8,
    /// The converter's node in the codec.
    pub node: u8,
    /// Stream tag on the link, 1 to 15.
    pub tag: u8,
}

impl Path {
    /// QEMU's `hda-output` at codec address 0.
    pub const PLAYBACK: Self = Self { direction: Direction::Play, codec: 0, node: 2, tag: 1 };
    /// QEMU's `hda-micro` at codec address 1.
    pub const CAPTURE: Self = Self { direction: Direction::Capture, codec: 1, node: 4, tag: 2 };
}

/// A controller out of reset.
#[derive(Debug)]
pub struct Controller<'p, P: ?Sized> {
    platform: &'p P,
    base: PhysAddr,
    capabilities: Gcap,
}

impl<'p, P: Platform + ?Sized> Controller<'p, P> {
    /// Resets the controller whose registers are at `base` (its BAR 0). All streams end.
    ///
    /// # Errors
    /// [`HdaError::NotHda`] or [`HdaError::ResetStuck`].
    pub fn reset(platform: &'p P, base: PhysAddr) -> Result<Self, HdaError> {
        let controller = Self::at(platform, base)?;
        // A stream that runs into a reset leaves the codec's side undefined (HDA 3.3.7): stop them first.
        if controller.out_of_reset() {
            controller.stop_all()?;
        }
        for leaving in [false, true] {
            platform.mmio_write32(base.plus(reg::GCTL), if leaving { GCTL_CRST } else { 0 });
            poll::until(platform, LIMIT_NS, || controller.out_of_reset() == leaving)
                .map_err(|_| HdaError::ResetStuck { leaving })?;
        }
        Ok(controller)
    }

    /// The controller at `base` as it runs. Only reads.
    ///
    /// # Errors
    /// [`HdaError::NotHda`] or [`HdaError::InReset`].
    pub fn running(platform: &'p P, base: PhysAddr) -> Result<Self, HdaError> {
        let controller = Self::at(platform, base)?;
        if controller.out_of_reset() { Ok(controller) } else { Err(HdaError::InReset) }
    }

    fn at(platform: &'p P, base: PhysAddr) -> Result<Self, HdaError> {
        let gcap = platform.mmio_read16(base.plus(reg::GCAP));
        let capabilities = Gcap::from_raw(gcap);
        if gcap == u16::MAX || capabilities.inputs() == 0 || capabilities.outputs() == 0 {
            return Err(HdaError::NotHda { base, gcap });
        }
        Ok(Self { platform, base, capabilities })
    }

    fn out_of_reset(&self) -> bool {
        self.platform.mmio_read32(self.base.plus(reg::GCTL)) & GCTL_CRST != 0
    }

    /// Where the controller writes the positions of all streams, 8 bytes each in the order of descriptors.
    #[must_use]
    pub fn position_buffer(&self) -> Option<Iova> {
        let low = self.platform.mmio_read32(self.base.plus(reg::DPLBASE));
        let high = self.platform.mmio_read32(self.base.plus(reg::DPUBASE));
        let address = u64::from(high) << 32 | u64::from(low & !(ALIGNMENT as u32 - 1));
        (low & DPLBASE_ENABLE != 0).then_some(Iova::new(address))
    }

    /// Lets the controller write positions to `buffer` ([`POSITION_BUFFER_BYTES`] long), or stops it from doing so.
    ///
    /// # Errors
    /// [`HdaError::BadAddress`].
    pub fn set_position_buffer(&self, buffer: Option<Iova>) -> Result<(), HdaError> {
        if let Some(address) = buffer {
            self.check_address(address, POSITION_BUFFER_BYTES)?;
        }
        self.platform.mmio_write32(self.base.plus(reg::DPLBASE), 0);
        if let Some(address) = buffer {
            self.platform.mmio_write32(self.base.plus(reg::DPUBASE), (address.get() >> 32) as u32);
            self.platform.mmio_write32(self.base.plus(reg::DPLBASE), address.get() as u32 | DPLBASE_ENABLE);
        }
        Ok(())
    }

    /// What the controller wrote last into the position buffer for the stream of `path`: bytes into the ring. `buffer` is
    /// the physical address of the position buffer.
    ///
    /// # Errors
    /// [`HdaError::NoMemory`].
    pub fn written_position(&self, buffer: PhysAddr, path: Path) -> Result<u32, HdaError> {
        let mut entry = [0; 4];
        self.platform.read(buffer.plus(8 * u64::from(self.descriptor(path.direction))), &mut entry)?;
        Ok(u32::from_le_bytes(entry))
    }

    /// Starts a stream over `ring`, whose list is written ([`Ring::write`]) and mapped, as is the buffer.
    ///
    /// # Errors
    /// [`HdaError`]; the stream does not run then.
    pub fn start(&self, path: Path, ring: Ring) -> Result<Stream<'p, P>, HdaError> {
        self.check_address(ring.descriptors, u64::from(ring.entries) * DESCRIPTOR_BYTES)?;
        self.await_codec(path.codec)?;
        let mut stream = self.stream(path, ring, Position::default());
        stream.reset()?;
        stream.write32(sd::BDPL, ring.descriptors.get() as u32);
        stream.write32(sd::BDPU, (ring.descriptors.get() >> 32) as u32);
        stream.write32(sd::CBL, ring.bytes);
        stream.write16(sd::LVI, ring.entries - 1);
        stream.write16(sd::FMT, FORMAT);
        let ctl = Ctl::ZERO.with_tag(path.tag.into());
        stream.write32(sd::CTL, ctl.raw());
        self.set_up_converter(path)?;
        stream.write32(sd::CTL, ctl.with_run(true).raw());
        stream.known.at = self.platform.now();
        Ok(stream)
    }

    /// Takes a stream over that another kernel started, without touching it. `known` is a position that it certainly
    /// had, as the other kernel left it.
    ///
    /// # Errors
    /// [`HdaError`] when the stream does not run, is not the one of `path`, or has a ring that cannot be.
    pub fn take_over(&self, path: Path, known: Position) -> Result<Stream<'p, P>, HdaError> {
        let number = self.descriptor(path.direction);
        let registers = self.registers(number);
        let read32 = |offset| self.platform.mmio_read32(registers.plus(offset));
        let read16 = |offset| self.platform.mmio_read16(registers.plus(offset));
        let ctl = Ctl::from_raw(read32(sd::CTL));
        if !ctl.run() || ctl.reset() {
            return Err(HdaError::NotRunning { stream: number, ctl: ctl.raw() });
        }
        let (tag, format) = (ctl.tag() as u8, read16(sd::FMT));
        if tag != path.tag || format != FORMAT {
            return Err(HdaError::OtherStream { stream: number, tag, format });
        }
        let list = u64::from(read32(sd::BDPU)) << 32 | u64::from(read32(sd::BDPL));
        let entries = (read16(sd::LVI) & 0xff) + 1;
        let ring = Ring::new(Iova::new(list), entries, read32(sd::CBL))?;
        Ok(self.stream(path, ring, known))
    }

    /// Stops every stream of the controller, whoever started it.
    ///
    /// # Errors
    /// [`HdaError::StreamStuck`] for the first that does not stop; all were told to.
    pub fn stop_all(&self) -> Result<(), HdaError> {
        let count =
            self.capabilities.inputs() + self.capabilities.outputs() + self.capabilities.bidirectional();
        let mut result = Ok(());
        for number in 0..count as u8 {
            let stopped = stop(self.platform, self.registers(number), number);
            result = result.and(stopped);
        }
        result
    }

    /// Number of the first descriptor of a direction: inputs come first (HDA 3.3.35).
    fn descriptor(&self, direction: Direction) -> u8 {
        match direction {
            Direction::Capture => 0,
            Direction::Play => self.capabilities.inputs() as u8,
        }
    }

    fn registers(&self, descriptor: u8) -> PhysAddr {
        self.base.plus(reg::STREAMS + reg::STREAM_BYTES * u64::from(descriptor))
    }

    fn stream(&self, path: Path, ring: Ring, known: Position) -> Stream<'p, P> {
        let number = self.descriptor(path.direction);
        Stream { platform: self.platform, registers: self.registers(number), number, ring, known }
    }

    fn check_address(&self, address: Iova, bytes: u64) -> Result<(), HdaError> {
        let limit = if self.capabilities.address_64() { u64::MAX } else { u32::MAX.into() };
        let end = address.get().checked_add(bytes);
        if address.get() % ALIGNMENT != 0 || end.is_none_or(|end| end > limit) {
            return Err(HdaError::BadAddress { address });
        }
        Ok(())
    }

    /// Codecs announce themselves some time after reset (HDA 4.3).
    fn await_codec(&self, codec: u8) -> Result<(), HdaError> {
        let present = || self.platform.mmio_read16(self.base.plus(reg::STATESTS));
        poll::until(self.platform, LIMIT_NS, || present() >> codec & 1 != 0)
            .map_err(|_| HdaError::NoCodec { codec, present: present() })
    }

    /// Ties the converter to the stream's tag (HDA 7.3.3.8, 7.3.3.11) and turns its amplifier up (7.3.3.7).
    fn set_up_converter(&self, path: Path) -> Result<(), HdaError> {
        let amplifier = match path.direction {
            Direction::Play => 0xb07f,
            Direction::Capture => 0x707f,
        };
        let converter = u32::from(path.codec) << 28 | u32::from(path.node) << 20;
        self.command(converter | 0x2 << 16 | u32::from(FORMAT))?;
        self.command(converter | 0x706 << 8 | u32::from(path.tag) << 4)?;
        self.command(converter | 0x3 << 16 | amplifier)?;
        Ok(())
    }

    /// Sends a command through the immediate registers and waits for the answer (HDA 3.4).
    fn command(&self, command: u32) -> Result<u32, HdaError> {
        let status = || self.platform.mmio_read16(self.base.plus(reg::ICIS));
        let idle = || status() & ICIS_BUSY == 0;
        let late = |_| HdaError::NoAnswer { command };
        poll::until(self.platform, LIMIT_NS, idle).map_err(late)?;
        self.platform.mmio_write16(self.base.plus(reg::ICIS), ICIS_VALID);
        self.platform.mmio_write32(self.base.plus(reg::ICOI), command);
        self.platform.mmio_write16(self.base.plus(reg::ICIS), ICIS_BUSY);
        poll::until(self.platform, LIMIT_NS, || status() & (ICIS_BUSY | ICIS_VALID) == ICIS_VALID)
            .map_err(late)?;
        Ok(self.platform.mmio_read32(self.base.plus(reg::ICII)))
    }
}

/// A stream that was started or taken over. Dropping it lets it run.
#[derive(Debug)]
pub struct Stream<'p, P: ?Sized> {
    platform: &'p P,
    registers: PhysAddr,
    number: u8,
    ring: Ring,
    /// A position that the stream certainly had.
    known: Position,
}

impl<P: Platform + ?Sized> Stream<'_, P> {
    /// The ring it works on.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// Where the stream stands now, by the hardware's own count and, for the number of laps, by the clock: see
    /// [`Position::advanced`]. Two register reads at most; nothing waits.
    pub fn position(&mut self) -> Position {
        let offset = u64::from(self.bytes_into_ring() / FRAME_BYTES);
        self.known = self.known.advanced(offset, self.ring.frames(), self.platform.now());
        self.known
    }

    /// The hardware's count: bytes into the ring (LPIB, HDA 3.3.37).
    #[must_use]
    pub fn bytes_into_ring(&self) -> u32 {
        self.platform.mmio_read32(self.registers.plus(sd::LPIB))
    }

    /// Whether the stream is told to run.
    #[must_use]
    pub fn runs(&self) -> bool {
        Ctl::from_raw(self.platform.mmio_read32(self.registers.plus(sd::CTL))).run()
    }

    /// Waits until the stream has moved on from where it stands now.
    ///
    /// # Errors
    /// [`HdaError::StandsStill`] after `limit_ns` nanoseconds.
    pub fn wait_until_it_moves(&self, limit_ns: u64) -> Result<(), HdaError> {
        let at = self.bytes_into_ring();
        poll::until(self.platform, limit_ns, || self.bytes_into_ring() != at)
            .map_err(|_| HdaError::StandsStill { stream: self.number, at })
    }

    /// Stops the stream.
    ///
    /// # Errors
    /// [`HdaError::StreamStuck`].
    pub fn stop(self) -> Result<(), HdaError> {
        stop(self.platform, self.registers, self.number)
    }

    /// Stops and resets the descriptor (HDA 3.3.35, SRST).
    fn reset(&self) -> Result<(), HdaError> {
        stop(self.platform, self.registers, self.number)?;
        for reset in [true, false] {
            self.write32(sd::CTL, Ctl::ZERO.with_reset(reset).raw());
            await_ctl(self.platform, self.registers, self.number, |ctl| ctl.reset() == reset)?;
        }
        Ok(())
    }

    fn write32(&self, offset: u64, value: u32) {
        self.platform.mmio_write32(self.registers.plus(offset), value);
    }

    fn write16(&self, offset: u64, value: u16) {
        self.platform.mmio_write16(self.registers.plus(offset), value);
    }
}

/// Takes RUN away and waits until the descriptor says so.
fn stop<P: Platform + ?Sized>(platform: &P, registers: PhysAddr, number: u8) -> Result<(), HdaError> {
    let ctl = Ctl::from_raw(platform.mmio_read32(registers.plus(sd::CTL)));
    platform.mmio_write32(registers.plus(sd::CTL), ctl.with_run(false).with_status(0).raw());
    await_ctl(platform, registers, number, |ctl| !ctl.run())
}

fn await_ctl<P: Platform + ?Sized>(
    platform: &P,
    registers: PhysAddr,
    stream: u8,
    done: impl Fn(Ctl) -> bool,
) -> Result<(), HdaError> {
    let ctl = || Ctl::from_raw(platform.mmio_read32(registers.plus(sd::CTL)));
    poll::until(platform, LIMIT_NS, || done(ctl()))
        .map_err(|_| HdaError::StreamStuck { stream, ctl: ctl().raw() })
}

#[cfg(test)]
mod tests;
