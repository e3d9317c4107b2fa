//! A Linux captures itself; seen from outside through QEMU's monitor it says the same.
//!
//! `HOLDOVER_QEMU` names the QEMU and `HOLDOVER_GUEST` the directory that `cargo xtask test` fills with Debian's kernel, a
//! network driver of it and a busybox; without them every test fails. The guest's whole file system is an archive made
//! here: these, the command with the libraries it needs, and a script. What the guest captured comes out of its second
//! serial line; then it stands still, and the same command looks at it from outside.

mod common;

use common::archive::Archive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One machine at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// How long the guest may take, without anything that speeds it up.
const PATIENCE: Duration = Duration::from_secs(110);
const HOLDOVER: &str = env!("CARGO_BIN_EXE_holdover");

/// First process of the guest. The driver's rings are what devices reach; nothing is sent, so nothing changes any more.
const INIT: &str = "#!/busybox sh
/busybox mkdir -p /proc /sys /dev
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sys /sys
/busybox mount -t devtmpfs dev /dev 2>/dev/null
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
/busybox insmod /e1000.ko
/busybox ifconfig eth0 up
/busybox sleep 1
/holdover capture -o /image
status=$?
/busybox stty -F /dev/ttyS1 raw -echo
/busybox gzip -c /image | /busybox base64 > /dev/ttyS1
echo \"status $status\" > /dev/ttyS1
while true; do /busybox sleep 1000; done
";

fn named(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable);
    value.unwrap_or_else(|| panic!("{variable} is set by `cargo xtask test`")).into()
}

/// The guest's file system.
fn file_system(guest: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file("/init", 0o755, INIT.as_bytes());
    for name in ["busybox", "e1000.ko"] {
        archive.file(name, 0o755, &std::fs::read(guest.join(name)).unwrap());
    }
    archive.file("/holdover", 0o755, &std::fs::read(HOLDOVER).unwrap());
    // Lines `NAME => PATH (ADDRESS)`, and the loader's `PATH (ADDRESS)`.
    let output = Command::new("ldd").arg(HOLDOVER).output().unwrap();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            archive.file(path, 0o755, &std::fs::read(path).unwrap());
        }
    }
    archive.finish()
}

/// A guest that runs until this is dropped.
struct Guest {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest {
    fn start(unit: &str, words: &str) -> Self {
        let (qemu, guest) = (named("HOLDOVER_QEMU"), named("HOLDOVER_GUEST"));
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("files"), file_system(&guest)).unwrap();
        let mut command = Command::new(qemu);
        command.args(["-machine", "q35", "-accel", "tcg", "-m", "256", "-display", "none", "-nodefaults"]);
        command.args(["-no-reboot", "-device", unit, "-device", "e1000,netdev=none"]);
        command.args(["-netdev", "hubport,id=none,hubid=0"]);
        command.arg("-kernel").arg(guest.join("vmlinuz")).arg("-initrd").arg(at("files"));
        // Debian's kernel has no iommu_regset: registers are read from hardware, which a kernel may keep to itself.
        // A busy host is no reason to find that the timer does not tick.
        let line = format!("console=ttyS0 quiet panic=-1 no_timer_check iomem=relaxed rdinit=/init {words}");
        command.arg("-append").arg(line);
        for name in ["console", "capture"] {
            command.arg("-serial").arg(format!("file:{}", at(name).display()));
        }
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", at("monitor").display()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self { child: command.spawn().expect("QEMU starts"), folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn said(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.at(name)).unwrap_or_default()).into_owned()
    }

    /// Waits for the guest's capture, and unpacks it.
    fn captured(&mut self) -> PathBuf {
        let start = Instant::now();
        let text = loop {
            let text = self.said("capture");
            if let Some((packed, status)) = text.split_once("status ")
                && status.ends_with('\n')
            {
                assert_eq!(status.trim(), "0", "{}", self.said("console"));
                break packed.to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < PATIENCE,
                "no capture ({ended:?}):\n{}",
                self.said("console")
            );
            std::thread::sleep(Duration::from_millis(100));
        };
        std::fs::write(self.at("packed.txt"), text).unwrap();
        let unpack =
            format!("base64 -di {0}/packed.txt | gzip -dc > {0}/inside.pages", self.folder.path().display());
        assert!(Command::new("sh").args(["-c", &unpack]).status().unwrap().success());
        self.at("inside.pages")
    }
}

fn holdover(arguments: &[&str]) -> Output {
    Command::new(HOLDOVER).args(arguments).output().unwrap()
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{:?}", output);
    String::from_utf8(output.stdout).unwrap()
}

/// Boots, captures, and holds the two views against one another.
fn views_agree(unit: &str, words: &str, mode: &str) {
    let _one = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut guest = Guest::start(unit, words);
    let inside = guest.captured();
    let inside = inside.to_str().unwrap();
    let outside = guest.at("outside.pages");
    let outside = outside.to_str().unwrap();
    let monitor = guest.at("monitor");
    let monitor = monitor.to_str().unwrap();

    let live = text(holdover(&["inspect", "--qmp", monitor, "--json"]));
    text(holdover(&["extract", "--qmp", monitor, "-o", outside]));
    let differences = holdover(&["diff", inside, outside]);
    assert!(differences.status.success(), "{}", String::from_utf8_lossy(&differences.stdout));
    for file in ["dmar_translation_struct", "ir_translation_struct"] {
        let show = |image: &[&str]| {
            let mut words = vec!["inspect", "--format", "debugfs", "--file", file];
            words.extend_from_slice(image);
            text(holdover(&words))
        };
        let within = show(&[inside]);
        assert!(within.lines().count() > 5, "{within}");
        assert_eq!(within, show(&["--qmp", monitor]), "{file}");
    }

    // Not two empty views: the driver's rings are mapped, in the mode that was asked for.
    let within: serde_json::Value =
        serde_json::from_str(&text(holdover(&["inspect", inside, "--json"]))).unwrap();
    let live: serde_json::Value = serde_json::from_str(&live).unwrap();
    assert_eq!(within["domains"], live["domains"]);
    assert_eq!(within["units"][0]["mode"], mode);
    assert_eq!(within["units"][0]["translating"], true);
    let mapped: u64 =
        within["domains"].as_array().unwrap().iter().map(|domain| domain["mapped"].as_u64().unwrap()).sum();
    assert!(mapped > 64 << 10, "{mapped} bytes mapped");
}

#[test]
fn a_linux_in_legacy_mode_looks_the_same_from_inside_and_outside() {
    views_agree("intel-iommu,intremap=on", "intel_iommu=on", "legacy");
}

#[test]
fn a_linux_in_scalable_mode_looks_the_same_from_inside_and_outside() {
    // The property lost its prefix in later releases.
    let help = ["-machine", "none", "-device", "intel-iommu,help"];
    let known = text(Command::new(named("HOLDOVER_QEMU")).args(help).output().unwrap());
    let prefix = if known.contains("x-scalable-mode=") { "x-" } else { "" };
    let unit = format!("intel-iommu,intremap=on,{prefix}scalable-mode=on");
    views_agree(&unit, "intel_iommu=on,sm_on", "scalable");
}
