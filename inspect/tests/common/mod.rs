//! Images of real kernels, their registers, and what is known to be true of them.
#![allow(dead_code)]

pub(crate) mod containers;
pub(crate) mod synthetic;

use holdover_inspect::image::{self, Memory, Options};
use holdover_inspect::model::{FindKho, Limits, Model};
use holdover_inspect::registers::{self, USUAL_BASE};
use holdover_inspect::tables::Hardware;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Images with the tables of a unit.
pub(crate) const WITH_UNIT: [&str; 5] =
    ["min-legacy", "min-sm-sl", "deb73-legacy", "deb73-sm-sl", "deb73-sm-fl"];

/// The folder of an image that comes with this crate.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Folders with this image: the crate's own, and that of the reference dumps when `HOLDOVER_SHARED` names them.
pub(crate) fn folders(name: &str) -> Vec<PathBuf> {
    let shared =
        std::env::var_os("HOLDOVER_SHARED").map(|shared| Path::new(&shared).join("dumps").join(name));
    [folder(name)].into_iter().chain(shared).collect()
}

/// A text file, packed or not.
pub(crate) fn text(folder: &Path, name: &str) -> String {
    let packed = folder.join(format!("{name}.zst"));
    if packed.exists() {
        let mut text = String::new();
        let file = std::fs::File::open(packed).unwrap();
        ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_string(&mut text).unwrap();
        return text;
    }
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// An image and what it says.
pub(crate) fn model_of(folder: &Path, pages: &str) -> (Memory, Model) {
    let memory = image::open(&folder.join(pages), Options::default()).unwrap();
    let units = match std::fs::read(folder.join("vtd-regs.bin")) {
        Ok(window) => registers::parse(&window, USUAL_BASE).unwrap(),
        Err(_) => Vec::new(),
    };
    let model = Model::build(&memory, units, Hardware::default(), FindKho::Auto, Limits::default());
    (memory, model)
}
