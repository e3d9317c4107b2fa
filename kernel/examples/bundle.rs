//! Writes a bundle: `bundle OUT RELEASE=FILE...`, in the order in which the releases shall be booted.

use std::error::Error;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let out = arguments.next().ok_or("usage: bundle OUT RELEASE=FILE...")?;
    let mut images = Vec::new();
    for argument in arguments {
        let (release, file) = argument.split_once('=').ok_or("an image is given as RELEASE=FILE")?;
        images.push((release.to_string(), fs::read(file)?));
    }
    let images: Vec<(&str, &[u8])> =
        images.iter().map(|(release, bytes)| (release.as_str(), &bytes[..])).collect();
    fs::write(out, holdover_kernel::bundle::build(&images)?)?;
    Ok(())
}
