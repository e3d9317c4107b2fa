//! QEMU's command line: the machine that the scenario expects, and the witnesses around it.

use crate::record::Ended;
use crate::settings::Settings;
use crate::{sound, trace};
use scenario::story::Mode;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// The files of one run.
#[derive(Debug, Clone)]
pub struct Files {
    /// The first kernel.
    pub kernel: PathBuf,
    /// The kernels that follow.
    pub bundle: PathBuf,
    /// QEMU's recording.
    pub sound: PathBuf,
    /// QEMU's trace.
    pub trace: PathBuf,
    /// QEMU's control socket.
    pub qmp: PathBuf,
}

impl Files {
    /// The files within a directory.
    #[must_use]
    pub fn within(directory: &Path) -> Self {
        Self {
            kernel: directory.join("kernel-a"),
            bundle: directory.join("bundle"),
            sound: directory.join("witness.wav"),
            trace: directory.join("trace.log"),
            qmp: directory.join("qmp"),
        }
    }
}

/// What of the command line is not the same for every QEMU.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// The remapping unit with its properties.
    pub unit: String,
    /// The codec can be told not to pace itself by a timer of its own.
    pub codec_without_timer: bool,
}

/// The command line for a run.
#[must_use]
pub fn arguments(settings: &Settings, own: &Devices, files: &Files) -> Vec<OsString> {
    let mut line = Line::default();
    machine(&mut line, settings, own);
    devices(&mut line, settings, own, files);
    line.option("-chardev", "stdio,id=serial,signal=off");
    line.option("-serial", "chardev:serial");
    line.option("-qmp", path_in("unix:", &files.qmp, ",server=on,wait=off"));
    for event in trace::EVENTS {
        line.option("-trace", event);
    }
    line.option("-D", &files.trace);
    line.option("-kernel", &files.kernel);
    line.option("-initrd", path_in("", &files.bundle, ""));
    line.option("-append", kernel_options(settings));
    line.0.extend(settings.qemu_arguments.iter().cloned());
    line.0
}

fn machine(line: &mut Line, settings: &Settings, own: &Devices) {
    // Memory is there before the machine starts, as it is on real hardware: otherwise poison would wait for the host to
    // find each page, and the gap with it.
    let bytes = settings.memory_bytes;
    line.option(
        "-object",
        format!("memory-backend-ram,id=memory,size={bytes},prealloc={}", on_off(settings.poison)),
    );
    line.option("-machine", "q35,memory-backend=memory");
    // A codec with a timer of its own throws 2048 frames away whenever the host keeps QEMU waiting for more than about 40 ms
    // (hda-codec.c, overrun), unless time passes by instructions.
    if settings.icount || !own.codec_without_timer {
        line.option("-accel", "tcg,thread=single");
        line.option("-icount", "shift=3,sleep=off");
        line.option("-rtc", "base=2020-01-01,clock=vm");
    } else {
        line.option("-accel", "tcg");
    }
    line.option("-cpu", "max");
    line.option("-m", format!("{}M", settings.memory_bytes >> 20));
    line.0.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    line.option("-display", "none");
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A property of QEMU's unit, by all names that it has had, the newest first: experimental ones begin with `x-`.
pub(crate) type Property = &'static [&'static str];

const SCALABLE: Property = &["scalable-mode", "x-scalable-mode"];
const FIRST_STAGE: Property = &["fsts", "x-flts"];

/// What QEMU's unit is switched on for a mode.
pub(super) fn properties(mode: Mode) -> &'static [Property] {
    match mode {
        Mode::Legacy => &[],
        Mode::SecondStage => &[SCALABLE],
        Mode::FirstStage => &[SCALABLE, FIRST_STAGE],
    }
}

/// The devices at the places where the scenario looks for them. The unit comes first, so that it sees all others.
fn devices(line: &mut Line, settings: &Settings, own: &Devices, files: &Files) {
    line.option("-device", own.unit.as_str());
    line.option(
        "-audiodev",
        path_in(
            "wav,id=heard,timer-period=1000,path=",
            &files.sound,
            &format!(",out.frequency={}", sound::RATE),
        ),
    );
    line.option("-audiodev", "none,id=unheard");
    let timer = if own.codec_without_timer { ",use-timer=off" } else { "" };
    line.option("-device", "intel-hda,id=hda,addr=2");
    line.option("-device", format!("hda-output,bus=hda.0,cad=0,mixer=off{timer},audiodev=heard"));
    for device in [
        "hda-micro,bus=hda.0,cad=1,mixer=off,audiodev=unheard",
        "edu,addr=3",
        "edu,addr=4",
        "pcie-pci-bridge,id=bridge,addr=5",
        "edu,bus=bridge,addr=3",
        "isa-debug-exit,iobase=0xf4,iosize=4",
    ]
    .iter()
    .chain(settings.scenario.qemu_devices())
    {
        line.option("-device", *device);
    }
}

/// What the kernels are told.
fn kernel_options(settings: &Settings) -> String {
    let mut options = vec![
        format!("width={}", settings.address_width),
        format!("seed={}", settings.seed),
        format!("updates={}", settings.updates),
    ];
    options.extend(settings.kernel_options().into_iter().map(|(key, value)| match value {
        "" => key.to_owned(),
        value => format!("{key}={value}"),
    }));
    options.join(" ")
}

/// A path inside one of QEMU's option lists, where a comma is written twice.
fn path_in(before: &str, path: &Path, after: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' && !before.is_empty() {
            bytes.push(byte);
        }
    }
    bytes.extend_from_slice(after.as_bytes());
    OsString::from_vec(bytes)
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([OsString::from(name), value.into()]);
    }
}

/// What QEMU's exit status means. The kernels write a code to `isa-debug-exit`, which ends QEMU with twice the code and one.
pub(super) fn ended(status: ExitStatus) -> Ended {
    let words = match (status.code(), status.signal()) {
        (Some(33), _) => return Ended::Well,
        (Some(35), _) => return Ended::Badly,
        (Some(37), _) => "a kernel panicked".to_owned(),
        (Some(39), _) => "the processor raised an exception in a kernel".to_owned(),
        (Some(0), _) => "QEMU ended without a word from the kernel: the processor was reset".to_owned(),
        (Some(code), _) => format!("QEMU ended with status {code}"),
        (None, Some(signal)) => format!("QEMU was ended by signal {signal}"),
        (None, None) => "QEMU ended".to_owned(),
    };
    Ended::Died(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scenario::story::Mutant;

    fn text(settings: &Settings) -> String {
        let devices = Devices { unit: "intel-iommu".to_owned(), codec_without_timer: true };
        let line = arguments(settings, &devices, &Files::within(Path::new("/d,ir")));
        line.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_was_asked_for_reaches_the_machine_and_the_kernels() {
        let settings = crate::samples::settings();
        let line = text(&settings);
        for part in ["-m 512M", "-append width=48 seed=1 updates=1 ", "-accel tcg "] {
            assert!(format!("{line} ").contains(part), "{part}: {line}");
        }
        assert!(!line.contains("poison") && !line.contains("icount") && !line.contains("mutant"), "{line}");

        let mutant = Some(Mutant::NoCutOff);
        let more = vec!["-snapshot".into()];
        let line = text(&Settings {
            poison: false,
            icount: true,
            mutant,
            address_width: 39,
            memory_bytes: 6 << 30,
            qemu_arguments: more,
            ..settings
        });
        for part in [
            "-append width=39 ",
            "-m 6144M",
            " no-poison mutant=no-cut-off",
            "-icount shift=3,sleep=off",
            "clock=vm",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(line.ends_with(" -snapshot"), "{line}");
    }

    #[test]
    fn a_codec_that_cannot_do_without_its_timer_makes_the_machine_count_instructions() {
        let settings = crate::samples::settings();
        let devices = Devices { unit: "intel-iommu".to_owned(), codec_without_timer: false };
        let line = arguments(&settings, &devices, &Files::within(Path::new("d")));
        let has = |word: &str| line.iter().any(|argument| argument.to_string_lossy().contains(word));
        assert!(has("shift=3,sleep=off") && !has("use-timer"), "{line:?}");
        assert!(text(&settings).contains("mixer=off,use-timer=off,audiodev=heard"));
    }

    #[test]
    fn the_unit_stands_before_every_device_that_it_watches() {
        let line = text(&crate::samples::settings());
        let unit = line.find("intel-iommu").unwrap();
        for device in ["intel-hda", "edu", "pcie-pci-bridge"] {
            assert!(unit < line.find(device).unwrap(), "{device}");
        }
    }

    #[test]
    fn commas_in_paths_are_doubled_inside_option_lists_alone() {
        let line = text(&crate::samples::settings());
        assert!(line.contains("path=/d,,ir/witness.wav,out.frequency=48000"), "{line}");
        assert!(line.contains("-qmp unix:/d,,ir/qmp,server=on"), "{line}");
        assert!(line.contains("-kernel /d,ir/kernel-a"), "{line}");
    }

    #[test]
    fn the_exit_status_says_how_the_kernel_ended() {
        let of = |code: i32| ended(ExitStatus::from_raw(code << 8));
        assert_eq!(of(33), Ended::Well);
        assert_eq!(of(35), Ended::Badly);
        for other in [0, 1, 37, 39] {
            assert!(matches!(of(other), Ended::Died(_)), "{other}");
        }
        assert_eq!(ended(ExitStatus::from_raw(6)), Ended::Died("QEMU was ended by signal 6".into()));
    }
}
