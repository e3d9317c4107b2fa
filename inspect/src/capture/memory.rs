//! This machine's memory: `/proc/kcore`, or on a kernel without it `/dev/mem`, as far as `/proc/iomem` calls it RAM.

use super::{Sources, named};
use crate::image::{self, Live, Memory, Options};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Memory of the running kernel as an ELF core.
const KCORE: &str = "/proc/kcore";
/// Below here a kernel that keeps its memory to itself lets zeroes be read, instead of nothing.
const LOW: u64 = 1 << 20;

/// Opens the memory of this machine.
///
/// # Errors
/// In words: what could not be read, and what to do about it.
pub(super) fn open(sources: &Sources) -> Result<Memory, String> {
    let core = match &sources.memory {
        None => Some(Path::new(KCORE)).filter(|core| core.exists()),
        Some(path) => Some(path.as_path()).filter(|path| *path != sources.devices),
    };
    match core {
        Some(core) => image::open(core, Options::default()).map_err(|error| named(core, error)),
        None => physical(&sources.devices, &sources.ram),
    }
}

/// The file in which a byte's offset is its physical address.
struct Device(File);

impl Live for Device {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> bool {
        self.0.read_exact_at(out, offset).is_ok()
    }
}

fn physical(devices: &Path, ram: &Path) -> Result<Memory, String> {
    let text = std::fs::read_to_string(ram).map_err(|error| named(ram, error))?;
    let runs = ram_of(&text);
    let Some(&(first, _)) = runs.first() else {
        return Err(format!("{} names no RAM above 1 MiB (not root?)", ram.display()));
    };
    let mut device = Device(File::open(devices).map_err(|error| named(devices, error))?);
    if !device.read_at(first, &mut [0; 8]) {
        return Err(format!(
            "{}: the kernel keeps its memory from everybody (STRICT_DEVMEM); {KCORE} would show it, on a kernel with \
             PROC_KCORE",
            devices.display()
        ));
    }
    Ok(Memory::live(Box::new(device), &runs))
}

/// Start and length of every stretch of RAM above [`LOW`], ascending.
fn ram_of(iomem: &str) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        // What is indented lies within the line before it.
        let (range, what) = line.split_once(" : ")?;
        let (start, end) = range.split_once('-').filter(|_| what == "System RAM")?;
        let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16).ok());
        let (start, end) = (start?.max(LOW), end?.checked_add(1)?);
        (start < end).then(|| (start, end - start))
    };
    iomem.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::PhysAddr;

    const IOMEM: &str = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n00100000-00100fff : System RAM\n  \
                         00100800-00100fff : Kernel code\n00200000-00201fff : System RAM\nfed90000-fed90fff : dmar0\n";

    #[test]
    fn memory_is_what_iomem_calls_ram_above_the_first_mebibyte() {
        let folder = tempfile::tempdir().unwrap();
        let (device, ram) = (folder.path().join("mem"), folder.path().join("iomem"));
        let open = || physical(&device, &ram);
        std::fs::write(&ram, IOMEM).unwrap();
        assert!(open().unwrap_err().contains("mem: No such file"));
        // A kernel that keeps its memory to itself: here a file that has nothing there.
        std::fs::write(&device, [1; 4096]).unwrap();
        assert!(open().unwrap_err().contains("STRICT_DEVMEM"));
        let file = File::create(&device).unwrap();
        file.write_all_at(b"page one", 0x10_0000).unwrap();
        file.write_all_at(b"page two", 0x20_1ff8).unwrap();
        let memory = open().unwrap();
        let bytes = |at| {
            let mut out = [0; 8];
            memory.read_bytes(PhysAddr::new(at), &mut out).ok().map(|()| out)
        };
        assert_eq!((bytes(0x10_0000), bytes(0x20_1ff8)), (Some(*b"page one"), Some(*b"page two")));
        for missing in [0, 0x2000, 0x10_0ffc, 0x10_1000, 0x20_2000, 0xfed9_0000] {
            assert_eq!(bytes(missing), None, "{missing:#x}");
        }
        // As it looks to everybody but root.
        std::fs::write(&ram, "00000000-00000000 : System RAM\n").unwrap();
        assert!(open().unwrap_err().contains("not root"));
    }
}
