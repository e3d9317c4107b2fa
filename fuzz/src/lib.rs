//! Foreign bytes against everything that reads them: files, tables, handovers.
//!
//! A [`Target`] takes any bytes, gives them to the code as that would meet them, and panics when a promise is broken: not
//! only that nothing panics, but that memory stays in proportion ([`bounds`]), that a walk takes no more steps than its
//! budget allows, and that two readers of the same bytes agree. The programs in `targets/` hand a target to libFuzzer;
//! the tests replay the corpus without it. Most targets do not take the bytes for a file but for changes to an image
//! ([`sparse`]), so that a short input reaches deep.

pub mod bounds;
pub mod sparse;

mod files;
mod handover;
mod tables;
mod trees;

/// Something that reads foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of the program, and of the folder in `corpus/`.
    pub name: &'static str,
    /// Bytes that an input may have.
    pub longest: usize,
    /// Bytes that one input may have allocated at once, beyond [`bounds::PER_BYTE`] for each of its own.
    pub allowance: usize,
    run: fn(&[u8]),
}

const MIB: usize = 1 << 20;

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "page_file", longest: 32 << 10, allowance: 64 * MIB, run: files::page_file },
    Target { name: "elf", longest: 8 << 10, allowance: 64 * MIB, run: files::elf },
    Target { name: "dmar", longest: 2 << 10, allowance: MIB, run: files::dmar },
    Target { name: "fdt", longest: 4 << 10, allowance: MIB, run: trees::fdt },
    Target { name: "radix", longest: 1 << 10, allowance: 16 * MIB, run: trees::radix },
    Target { name: "handover", longest: 2 << 10, allowance: 32 * MIB, run: handover::run },
    Target { name: "walk", longest: 2 << 10, allowance: 64 * MIB, run: tables::run },
];

/// Gives `data` to a target.
///
/// # Panics
/// When a promise is broken, or there is no target of this name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let Target { longest, allowance, run, .. } = target.expect("a target of this name");
    if data.len() <= *longest {
        bounds::bounded(*allowance + bounds::PER_BYTE * data.len(), || run(data));
    }
}
