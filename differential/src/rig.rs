//! QEMU with its processor halted, memory in a file that both sides see, and edu devices that issue requests.
//!
//! The processor runs one `hlt` out of a firmware image of that; with `-icount sleep=off` QEMU's clock then jumps from one
//! timer to the next, so that edu's 100 ms pass at once. Each edu device has a buffer of its own: data that it read stay
//! there until [`Rig::buffer`] writes them, untranslated, into memory, and data that it shall write are brought there by
//! [`Rig::fill_buffer`] beforehand. So a request under test causes one access and no other.

use crate::mode::Mode;
use crate::program::Registers;
use crate::qtest::{Client, Commands, unit_help};
use anyhow::{Context, Result, bail, ensure};
use spec::SourceId;
use spec::regs::{Cap, FaultRecord, Fsts, offset};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bytes of memory.
pub const MEMORY: u64 = 64 << 20;
/// Where the first piece of memory ends. The firmware's places follow.
pub const LOW_MEMORY: u64 = 0xa_0000;
/// Where memory starts that nothing else uses.
pub const MEMORY_START: u64 = 1 << 20;
/// One page for each device, to fill and empty its buffer.
const STAGING: u64 = 0x18_0000;
/// Where data start: every word from here on holds its own address.
pub const DATA: u64 = 0x20_0000;
/// The devices, by the source-id of their requests.
pub const SOURCES: [SourceId; 5] = [
    SourceId::new(0, 3, 0),
    SourceId::new(0, 4, 0),
    SourceId::new(0, 4, 1),
    SourceId::new(0, 18, 0),
    // Behind a bridge to a conventional bus, which issues requests in the name of its function 0.
    SourceId::new(1, 0, 0),
];
/// Words in a device's buffer that can be used.
pub const SLOTS: usize = 511;

const UNIT: u64 = 0xfed9_0000;
/// Base of each device's registers: 1 MiB each, the last within the bridge's window.
const BARS: [u64; 5] = [0xe000_0000, 0xe010_0000, 0xe020_0000, 0xe030_0000, 0xe050_0000];
const EDU: [&str; 5] = [
    "edu,addr=3,dma_mask=0xffffffffffffffff",
    "edu,addr=4.0,multifunction=on,dma_mask=0xffffffffffffffff",
    "edu,addr=4.1,dma_mask=0xffffffffffffffff",
    "edu,addr=0x12,dma_mask=0xffffffffffffffff",
    "edu,bus=bridge,addr=3,dma_mask=0xffffffffffffffff",
];
const EDU_BUFFER: u64 = 0x4_0000;
const EDU_SOURCE: u64 = 0x80;
const EDU_TARGET: u64 = 0x88;
const EDU_COUNT: u64 = 0x90;
const EDU_COMMAND: u64 = 0x98;
const EDU_START: u64 = 1;
const EDU_TO_MEMORY: u64 = 2;
/// A device takes 100 ms of QEMU's time, which is nearly none of ours.
const PATIENCE: Duration = Duration::from_secs(20);

/// What QEMU's unit recorded of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Fault status.
    pub status: Fsts,
    /// The fault record.
    pub record: FaultRecord,
}

impl Recorded {
    /// What of it means anything: no record unless F is set, no PASID unless PP is (VT-d 11.4.7.3).
    #[must_use]
    pub fn meaning(self) -> (Fsts, Option<FaultRecord>) {
        let record = if self.record.pp() { self.record } else { self.record.with_pv(0) };
        (self.status, record.f().then_some(record))
    }
}

/// The running QEMU.
pub struct Rig {
    client: Client,
    memory: File,
    fault_record: u64,
    // Removed with its files at the end.
    _directory: TempDir,
}

impl Rig {
    /// Starts `program` with a unit as `mode` says and sets the machine up. All data hold their own addresses.
    ///
    /// # Errors
    /// When QEMU does not start or is not the machine that is expected.
    pub fn start(program: &Path, mode: Mode) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (firmware, ram) = (directory.path().join("halt.bin"), directory.path().join("memory"));
        std::fs::write(&firmware, halt_image())?;
        let memory = File::options().read(true).write(true).create_new(true).open(&ram)?;
        memory.set_len(MEMORY)?;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a temporary path is not UTF-8");
        let unit = mode.qemu_device(&unit_help(program)?);
        let client = Client::start(program, &arguments(&unit, &text(&firmware)?, &text(&ram)?))?;
        let mut rig = Self { client, memory, fault_record: 0, _directory: directory };
        rig.fill(DATA, MEMORY)?;
        rig.set_up_devices()?;
        let cap = Cap::from_raw(rig.read(offset::CAP, 8)?);
        ensure!(cap.fault_records() == 1, "a unit with more than one fault record");
        rig.fault_record = cap.fault_record_offset(0);
        Ok(rig)
    }

    fn set_up_devices(&mut self) -> Result<()> {
        let bridge = SourceId::new(0, 5, 0);
        let (buses, window) = (0x0001_0100, 0xe050_e050);
        self.configure(bridge, 0x18, buses)?;
        self.configure(bridge, 0x20, window)?;
        self.configure(bridge, 0x04, 6)?;
        for (i, &source) in SOURCES.iter().enumerate() {
            let at = if source.bus() == 0 { source } else { SourceId::new(source.bus(), 3, 0) };
            self.configure(at, 0x10, BARS[i] as u32)?;
            self.configure(at, 0x04, 6)?;
            let mut commands = Commands::default();
            commands.read(BARS[i], 4);
            let id = self.client.exchange(&commands)?[0];
            ensure!(id & 0xff == 0xed, "no edu at {at}: {id:#x}");
        }
        Ok(())
    }

    fn configure(&mut self, function: SourceId, register: u32, value: u32) -> Result<()> {
        let address = 1 << 31 | u32::from(function.raw()) << 8 | register;
        self.client.exchange(Commands::default().out(0xcf8, address).out(0xcfc, value))?;
        Ok(())
    }

    /// Sets every word of the range to its own address.
    fn fill(&self, start: u64, end: u64) -> Result<()> {
        let bytes: Vec<u8> = (start..end).step_by(8).flat_map(u64::to_le_bytes).collect();
        Ok(self.memory.write_all_at(&bytes, start)?)
    }

    /// The words of data that do not hold their own address, with their addresses. They do afterwards.
    ///
    /// # Errors
    /// When memory cannot be read.
    pub fn strays(&self) -> Result<Vec<(u64, u64)>> {
        let words = self.words(DATA, MEMORY)?.into_iter();
        let found: Vec<_> = (DATA..).step_by(8).zip(words).filter(|(at, word)| at != word).collect();
        for &(at, _) in &found {
            self.store(at, at)?;
        }
        Ok(found)
    }

    /// The word of memory at `at`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn word(&self, at: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Sets a word of memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, at: u64, value: u64) -> Result<()> {
        Ok(self.memory.write_all_at(&value.to_le_bytes(), at)?)
    }

    /// The words from `start` to `end`.
    ///
    /// # Errors
    /// When memory cannot be read.
    pub fn words(&self, start: u64, end: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; (end - start) as usize];
        self.memory.read_exact_at(&mut bytes, start)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
    }

    /// Brings `words` into the buffer of a device. Translation must be off.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn fill_buffer(&mut self, device: usize, words: &[u64; SLOTS]) -> Result<()> {
        let staging = STAGING + 4096 * device as u64;
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.memory.write_all_at(&bytes, staging)?;
        self.transfer(device, staging, EDU_BUFFER, 8 * SLOTS as u64, EDU_START)?;
        Ok(())
    }

    /// The buffer of a device. Translation must be off.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn buffer(&mut self, device: usize) -> Result<[u64; SLOTS]> {
        let staging = STAGING + 4096 * device as u64;
        self.transfer(device, EDU_BUFFER, staging, 8 * SLOTS as u64, EDU_START | EDU_TO_MEMORY)?;
        let mut words = [0; SLOTS];
        for (at, word) in (staging..).step_by(8).zip(&mut words) {
            *word = self.word(at)?;
        }
        Ok(words)
    }

    /// One request for the word at `iova`: a read into slot `slot` of the device's buffer, or a write out of it.
    ///
    /// # Errors
    /// When QEMU is gone or the device does not finish.
    pub fn request(&mut self, device: usize, iova: u64, slot: usize, write: bool) -> Result<Recorded> {
        let own = EDU_BUFFER + 8 * slot as u64;
        if write {
            self.transfer(device, own, iova, 8, EDU_START | EDU_TO_MEMORY)
        } else {
            self.transfer(device, iova, own, 8, EDU_START)
        }
    }

    /// A transfer, and what the unit shows after it.
    fn transfer(
        &mut self,
        device: usize,
        source: u64,
        target: u64,
        count: u64,
        command: u64,
    ) -> Result<Recorded> {
        let bar = BARS[device];
        let mut commands = Commands::default();
        commands.write(bar + EDU_SOURCE, 8, source).write(bar + EDU_TARGET, 8, target);
        commands.write(bar + EDU_COUNT, 8, count).write(bar + EDU_COMMAND, 8, command);
        self.client.exchange(&commands)?;
        let mut poll = Commands::default();
        poll.read(bar + EDU_COMMAND, 8).read(UNIT + offset::FSTS, 4);
        poll.read(UNIT + self.fault_record, 8).read(UNIT + self.fault_record + 8, 8);
        let start = Instant::now();
        loop {
            let values = self.client.exchange(&poll)?;
            if values[0] & EDU_START == 0 {
                let record = FaultRecord::from_raw([values[2], values[3]]);
                return Ok(Recorded { status: Fsts::from_raw(values[1] as u32), record });
            }
            if start.elapsed() > PATIENCE {
                bail!("device {} does not finish its transfer", SOURCES[device]);
            }
        }
    }
}

impl Registers for Rig {
    fn read(&mut self, at: u64, bytes: u64) -> Result<u64> {
        Ok(self.client.exchange(Commands::default().read(UNIT + at, bytes))?[0])
    }
    fn write(&mut self, at: u64, bytes: u64, value: u64) -> Result<()> {
        self.client.exchange(Commands::default().write(UNIT + at, bytes, value))?;
        Ok(())
    }
    fn load(&mut self, at: u64) -> Result<u64> {
        self.word(at)
    }
    fn store(&mut self, at: u64, word: u64) -> Result<()> {
        Self::store(self, at, word)
    }
}

/// 64 KiB of firmware that do nothing: `cli; hlt` and back to the `hlt`, at the reset vector.
fn halt_image() -> Vec<u8> {
    const SIZE: usize = 64 << 10;
    const RESET: usize = SIZE - 16;
    let mut image = vec![0xf4; SIZE];
    image[RESET..RESET + 4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    image
}

fn arguments(unit: &str, firmware: &str, ram: &str) -> Vec<String> {
    let comma = |path: &str| path.replace(',', ",,");
    let mut line = vec![
        "-machine".to_owned(),
        "q35,memory-backend=ram".to_owned(),
        "-object".to_owned(),
        format!("memory-backend-file,id=ram,size={MEMORY},mem-path={},share=on", comma(ram)),
        "-m".to_owned(),
        format!("{}M", MEMORY >> 20),
        "-bios".to_owned(),
        firmware.to_owned(),
    ];
    let rest = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-nodefaults"];
    line.extend(rest.map(str::to_owned));
    line.extend(["-no-user-config", "-display", "none"].map(str::to_owned));
    // The unit comes first, so that it sees all others.
    let devices = [unit.to_owned(), "pcie-pci-bridge,id=bridge,addr=5".to_owned()];
    for device in devices.into_iter().chain(EDU.map(str::to_owned)) {
        line.extend(["-device".to_owned(), device]);
    }
    line
}
