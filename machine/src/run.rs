//! A whole run: kernels one after the other on one machine, each dropped with everything it had when it jumps.

use crate::config::MachineConfig;
use crate::machine::{Machine, Serial};
use crate::platform::{Boot, Kernel};
use scenario::event::Event;
use scenario::platform::Adoptable;
use scenario::story::{self, End, Verdict};
use spec::{Extent, Frame, PhysAddr};

const MIB_FRAMES: u64 = 256;

/// What is run.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// The machine.
    pub machine: MachineConfig,
    /// The kernels, the first one first: one more than there are updates.
    pub releases: Vec<Release>,
    /// `key=value` on every kernel's command line (`no-poison`, `mutant`).
    pub options: Vec<(String, String)>,
}

/// A kernel, as its image says.
#[derive(Debug, Clone)]
pub struct Release {
    /// Release string.
    pub name: String,
    /// What it can adopt, as [`Adoptable::to_words`] has it; `None` when the image does not say.
    pub adopts: Option<[u32; 2]>,
}

impl RunConfig {
    /// `updates` updates in a row on `machine`, of kernels named a, b, c and so on.
    #[must_use]
    pub fn new(machine: MachineConfig, updates: u8) -> Self {
        let adopts = Some(Adoptable::EVERYTHING.to_words());
        let release = |i| Release { name: char::from(b'a' + i % 26).to_string(), adopts };
        Self { machine, releases: (0..=updates).map(release).collect(), options: Vec::new() }
    }

    /// With one more option on the command lines.
    #[must_use]
    pub fn with_option(mut self, key: &str, value: &str) -> Self {
        self.options.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// What a run left: the machine as it stands, and how it ended.
pub struct Run {
    /// The machine, with its trace, serial lines and sound.
    pub machine: Machine,
    /// How the last kernel ended.
    pub verdict: Verdict,
    /// Handovers in their order: the addresses that kernels were given.
    pub handovers: Vec<PhysAddr>,
}

impl Run {
    /// What kernels reported, in the order of happening.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let event = |content| match content {
            Serial::Event(event) => Some(event),
            Serial::Log(_) => None,
        };
        self.machine.serial().into_iter().filter_map(|line| event(line.content)).collect()
    }

    /// What was played: frames of a left and a right sample.
    #[must_use]
    pub fn sound(&self) -> Vec<[i16; 2]> {
        let played = self.machine.played();
        let sample = |low, high| i16::from_le_bytes([low, high]);
        played.chunks_exact(4).map(|b| [sample(b[0], b[1]), sample(b[2], b[3])]).collect()
    }
}

/// The two areas that kernels live in by turns: 1 to 48 MiB and 64 to 111 MiB, less on a small machine.
#[must_use]
pub fn areas(memory: u64) -> [Extent; 2] {
    let area = |first: u64, count: u64| {
        let (first, count) = (Frame::new(first * MIB_FRAMES), count * MIB_FRAMES);
        Extent::new(first, count).expect("an area is not empty")
    };
    if memory >= 256 << 20 { [area(1, 47), area(64, 47)] } else { [area(1, 8), area(16, 8)] }
}

/// Runs kernels until one does not jump. `at_jump` looks at the machine between two of them, with the handover.
///
/// # Panics
/// When the configuration names no release.
#[must_use]
pub fn run(config: &RunConfig, at_jump: &mut dyn FnMut(&Machine, PhysAddr)) -> Run {
    assert!(!config.releases.is_empty(), "a run needs a kernel");
    let machine = Machine::new(&config.machine);
    let areas = areas(config.machine.memory);
    let mut handovers = Vec::new();
    let mut verdict = Verdict::Failed;
    for (i, release) in config.releases.iter().enumerate() {
        let last = i + 1 == config.releases.len();
        let boot = Boot {
            release: release.name.clone(),
            adopts: release.adopts,
            home: areas[i % 2],
            successor_home: (!last).then_some(areas[(i + 1) % 2]),
            successor_adopts: config.releases.get(i + 1).and_then(|next| next.adopts),
            areas: areas.to_vec(),
            options: config.options.clone(),
        };
        let kernel = Kernel::new(&machine, boot);
        match story::run(&kernel, handovers.last().copied(), i as u64) {
            End::Jump { fdt } => {
                at_jump(&machine, fdt);
                handovers.push(fdt);
            }
            End::Over(how) => {
                verdict = how;
                break;
            }
        }
    }
    Run { machine, verdict, handovers }
}
