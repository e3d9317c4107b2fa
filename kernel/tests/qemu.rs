//! The kernels on QEMU: the chain of jumps, and that every way to fail is reported in words and by exit status.
//!
//! `HOLDOVER_QEMU` names the program: `HOLDOVER_QEMU=$(cargo xtask qemu) cargo test --manifest-path kernel/Cargo.toml
//! --release --test qemu`.

use holdover_kernel::bundle;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

const SUCCESS: i32 = 33;
const FAILURE: i32 = 35;
const PANIC: i32 = 37;
const EXCEPTION: i32 = 39;
const PATIENCE: Duration = Duration::from_secs(120);

const A: &str = env!("CARGO_BIN_EXE_kernel-a");
const B: &str = env!("CARGO_BIN_EXE_kernel-b");
const C: &str = env!("CARGO_BIN_EXE_kernel-c");

fn release(letter: char) -> String {
    format!("{}-{letter}", env!("CARGO_PKG_VERSION"))
}

fn image(file: &str) -> Vec<u8> {
    fs::read(file).expect("cargo has built the kernels")
}

fn chain() -> Vec<u8> {
    bundle::build(&[(&release('b'), &image(B)), (&release('c'), &image(C))]).expect("two images fit")
}

/// Boots release A with a bundle, and gives back what came over the serial line and QEMU's exit status.
fn boot(name: &str, module: Option<&[u8]>, options: &str, machine: &[&str]) -> (String, i32) {
    let program = env::var_os("HOLDOVER_QEMU").expect("HOLDOVER_QEMU names no QEMU");
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut command = Command::new(program);
    command.args([
        "-machine",
        "q35",
        "-accel",
        "tcg",
        "-m",
        "512M",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    command.args(["-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", A]);
    command.args(["-append", options]).args(machine);
    if let Some(bytes) = module {
        let file = directory.join(format!("{name}.bundle"));
        fs::write(&file, bytes).expect("the test's directory can be written");
        command.arg("-initrd").arg(file);
    }
    let serial = directory.join(format!("{name}.serial"));
    command.arg("-serial").arg(format!("file:{}", serial.display())).stdin(Stdio::null());
    let status = wait(&mut command, name);
    (text(&serial), status)
}

fn wait(command: &mut Command, name: &str) -> i32 {
    let mut child = command.spawn().expect("QEMU starts");
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return status.code().unwrap_or(-1);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("{name}: QEMU did not end within {PATIENCE:?}");
}

fn text(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).expect("QEMU has written the file")).into_owned()
}

#[track_caller]
fn says(serial: &str, words: &[&str]) {
    for word in words {
        assert!(serial.contains(word), "no {word:?} in:\n{serial}");
    }
}

#[test]
fn three_releases_follow_each_other_at_their_own_addresses() {
    let (serial, status) = boot("chain", Some(&chain()), "role=chain", &[]);
    assert_eq!(status, SUCCESS, "{serial}");
    for (letter, update, home) in [('a', 0, "1048576"), ('b', 1, "67108864"), ('c', 2, "1048576")] {
        let line = format!("\"kernel\":\"{}\",\"update\":{update},\"home_start\":{home}", release(letter));
        says(&serial, &[&line]);
    }
}

#[test]
fn memory_above_four_gibibytes_and_an_idle_second_processor_change_nothing() {
    let (serial, status) =
        boot("large", Some(&chain()), "role=chain", &["-m", "6G", "-smp", "2", "-cpu", "max"]);
    assert_eq!(status, SUCCESS, "{serial}");
    says(&serial, &[&format!("\"kernel\":\"{}\"", release('c'))]);
}

#[test]
fn a_damaged_bundle_is_refused_by_name() {
    let whole = chain();
    let (serial, status) = boot("short", Some(&whole[..1000]), "role=chain", &[]);
    assert_eq!(status, FAILURE, "{serial}");
    says(&serial, &["\"event\":\"failed\"", "the bundle is cut short"]);

    let other = bundle::build(&[("9.9.9", &image(B))]).expect("one image fits");
    let (serial, status) = boot("misnamed", Some(&other), "role=chain", &[]);
    assert_eq!(status, FAILURE, "{serial}");
    says(&serial, &["the bundle calls the image release 9.9.9"]);
}

#[test]
fn a_successor_whose_word_of_what_it_can_adopt_makes_no_sense_is_refused() {
    let mut bytes = image(B);
    let name = b"Holdover\0\0\0\0";
    let note = bytes.windows(name.len()).position(|w| w == name).expect("the image has a note");
    // The words follow formats, area and release.
    let words = note + name.len() + 8 + 16 + 32;
    assert_eq!(bytes[words..words + 4], 1u32.to_le_bytes());
    bytes[words] = 9;
    let unknown = bundle::build(&[(&release('b'), &bytes)]).expect("one image fits");
    let (serial, status) = boot("unknown-words", Some(&unknown), "role=chain", &[]);
    assert_eq!(status, FAILURE, "{serial}");
    says(&serial, &["\"event\":\"failed\"", "what it can adopt is written in version 9"]);
}

#[test]
fn a_successor_for_the_area_of_the_running_kernel_is_refused() {
    let itself = bundle::build(&[(&release('c'), &image(C))]).expect("one image fits");
    let (serial, status) = boot("own-area", Some(&itself), "role=chain", &[]);
    assert_eq!(status, FAILURE, "{serial}");
    says(&serial, &["lies outside 0x4000000..0x4400000"]);
}

#[test]
fn a_machine_that_is_too_small_or_has_no_clock_is_refused_by_name() {
    let (serial, status) = boot("small", None, "", &["-m", "64M"]);
    assert_eq!(status, FAILURE, "{serial}");
    says(&serial, &["scratch area 0x4000000..0x6f00000 is not usable memory"]);

    let (serial, status) = boot("no-clock", None, "", &["-machine", "q35,hpet=off"]);
    assert_eq!(status, FAILURE, "{serial}");
    says(&serial, &["no HPET"]);
}

#[test]
fn a_write_to_text_a_jump_into_constants_and_a_null_pointer_fault_with_a_dump() {
    for (kind, words) in [
        ("text", "write to a page that is read-only"),
        ("data", "instruction fetch from a page that is not executable"),
        ("null", "write to a page that is not mapped, at 0x0000000000000008"),
    ] {
        let (serial, status) = boot(kind, None, &format!("crash={kind}"), &[]);
        assert_eq!(status, EXCEPTION, "{kind}: {serial}");
        says(&serial, &["exception 14, page fault", words, "rip 0x", "r15 0x", "cr3 0x"]);
    }
}

#[test]
fn an_exhausted_stack_and_a_broken_one_still_give_a_dump() {
    let (serial, status) = boot("stack", None, "crash=stack", &[]);
    assert_eq!(status, EXCEPTION, "{serial}");
    says(&serial, &["exception 14", "write to a page that is not mapped"]);

    let (serial, status) = boot("broken-stack", None, "crash=broken-stack", &[]);
    assert_eq!(status, EXCEPTION, "{serial}");
    says(&serial, &["rsp 0x0100000000000000"]);
}

#[test]
fn other_exceptions_and_panics_name_themselves() {
    for (kind, expected, words) in [
        ("opcode", EXCEPTION, "exception 6, invalid opcode"),
        ("divide", EXCEPTION, "exception 0, divide error"),
        ("panic", PANIC, "asked for on the command line"),
    ] {
        let (serial, status) = boot(kind, None, &format!("crash={kind}"), &[]);
        assert_eq!(status, expected, "{kind}: {serial}");
        says(&serial, &[words, &format!("*** kernel {}", release('a'))]);
    }
}
