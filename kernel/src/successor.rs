//! The successor: found in the bundle, checked, loaded into the free scratch area, entered.
//!
//! [`Successor::load`] does everything that may fail, long before the point of no return: it checks the image, copies it,
//! maps its text for execution, hands on the rest of the bundle, and writes the boot parameters. [`Successor::jump`] only
//! fills in what is known last and goes.
#![allow(unsafe_code)]

use crate::bootparam::{self, BootParameters, ParameterError};
use crate::bundle::{Bundle, BundleError};
use crate::hardware::Hardware;
use crate::hw::{cpu, physical};
use crate::image::{ImageError, KernelImage};
use crate::layout::Area;
use crate::paging::{PagingError, Rights};
use alloc::string::{String, ToString};
use core::fmt;
use scenario::platform::{Adoptable, Platform};

/// What a scratch area is filled with before an image is loaded: no canonical address, and no instruction that goes on.
const WIPED: u64 = 0xcccc_cccc_cccc_cccc;

/// Why there is no successor to jump to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuccessorError {
    /// The bundle is damaged.
    Bundle(BundleError),
    /// The image is not taken.
    Image(ImageError),
    /// The bundle calls the image by another release than the image itself.
    Release {
        /// The bundle's word.
        bundle: String,
        /// The image's.
        image: String,
    },
    /// The bundle does not fit into the mailbox of the successor's scratch area.
    BundleTooLarge {
        /// Its length.
        bytes: u64,
        /// Room for it.
        room: u64,
    },
    /// The boot parameters do not fit.
    Parameters(ParameterError),
    /// The image's text could not be mapped for execution.
    Paging(PagingError),
}

impl fmt::Display for SuccessorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(error) => error.fmt(f),
            Self::Image(error) => error.fmt(f),
            Self::Release { bundle, image } => {
                write!(f, "the bundle calls the image release {bundle}, its own note says {image}")
            }
            Self::BundleTooLarge { bytes, room } => {
                write!(f, "the bundle has {bytes} bytes, but the mailbox has room for {room}")
            }
            Self::Parameters(error) => error.fmt(f),
            Self::Paging(error) => error.fmt(f),
        }
    }
}
impl core::error::Error for SuccessorError {}

impl From<BundleError> for SuccessorError {
    fn from(error: BundleError) -> Self {
        Self::Bundle(error)
    }
}
impl From<ImageError> for SuccessorError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}
impl From<ParameterError> for SuccessorError {
    fn from(error: ParameterError) -> Self {
        Self::Parameters(error)
    }
}
impl From<PagingError> for SuccessorError {
    fn from(error: PagingError) -> Self {
        Self::Paging(error)
    }
}

/// A successor that lies in its scratch area, ready to be entered.
#[derive(Debug)]
pub struct Successor {
    release: String,
    area: Area,
    entry: u64,
    adopts: Adoptable,
}

impl Successor {
    /// Whether there is an image to be loaded. A damaged bundle counts as one, so that [`Self::load`] gets to say so.
    #[must_use]
    pub(crate) fn present(boot: &BootParameters) -> bool {
        match bundle_of(boot) {
            Some(Ok(bundle)) => bundle.image(boot.next_image).is_some(),
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// Loads the successor, if the bundle has one. Nothing but the free scratch area and this kernel's own map of it
    /// changes, so a failure leaves nothing to undo.
    ///
    /// # Errors
    /// [`SuccessorError`] for an image or a bundle that is not taken.
    pub fn load(machine: &Hardware) -> Result<Option<Self>, SuccessorError> {
        let boot = machine.boot();
        let Some(bundle) = bundle_of(boot).transpose()? else { return Ok(None) };
        let Some(packed) = bundle.image(boot.next_image) else { return Ok(None) };
        let area = machine.kernel().home.other();
        let image = KernelImage::check(packed.bytes, area, spec::handover::VERSION)?;
        if image.release() != packed.release {
            let (bundle, image) = (packed.release.to_string(), image.release().to_string());
            return Err(SuccessorError::Release { bundle, image });
        }
        wipe(machine, area)?;
        copy_image(machine, &image)?;
        let parameters = BootParameters {
            update: boot.update + 1,
            handover: None,
            rsdp: boot.rsdp,
            bundle: hand_on(&bundle, boot.next_image + 1, area)?,
            next_image: boot.next_image + 1,
            left_at: 0,
            predecessor: machine.kernel().release.to_string(),
            memory: machine.memory_map().to_vec(),
            command_line: boot.command_line.clone(),
        };
        bootparam::write(&parameters, parameter_block(area))?;
        let KernelImage { entry, adopts, .. } = image;
        Ok(Some(Self { release: image.release().to_string(), area, entry, adopts }))
    }

    /// Its release string.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// What its image says that it can adopt.
    #[must_use]
    pub fn adopts(&self) -> Adoptable {
        self.adopts
    }

    /// Leaves this kernel for good. `handover` is the physical address of the handover's FDT, 0 for none. Neither
    /// allocates nor fails.
    pub fn jump(self, machine: &Hardware, handover: u64) -> ! {
        bootparam::seal(parameter_block(self.area), handover, machine.now());
        // SAFETY: `load` checked and copied the image, whose entry is in text that it mapped for execution.
        unsafe { cpu::enter(self.entry, self.area.parameters().start) }
    }
}

/// The bundle that this kernel was started with, checked.
fn bundle_of(boot: &BootParameters) -> Option<Result<Bundle<'_>, BundleError>> {
    let (address, bytes) = boot.bundle?;
    // SAFETY: usable memory that the start of this kernel took off the frame allocator, or this kernel's own mailbox: it
    // stays as it is for as long as the kernel runs.
    Some(Bundle::parse(unsafe { physical::slice(address, bytes) }))
}

/// The room for the boot parameters in a successor's mailbox.
fn parameter_block(area: Area) -> &'static mut [u8] {
    // SAFETY: `area` is the free scratch area: mapped, no other slice of it lives (each caller drops its own at once), and
    // nothing else uses it.
    unsafe { physical::slice_mut(area.parameters().start, area.parameters().bytes()) }
}

/// Overwrites the whole area, so that no kernel can live off what an earlier one left there. A predecessor's image, stack
/// and page tables are among it: whoever still used them would fail at once.
fn wipe(machine: &Hardware, area: Area) -> Result<(), PagingError> {
    machine.set_rights(area.start, area.end, Rights::ReadWrite)?;
    // SAFETY: the free scratch area: whole pages, writable since the line above, and used by nobody.
    unsafe { physical::fill(area.start, area.bytes(), WIPED) };
    Ok(())
}

fn copy_image(machine: &Hardware, image: &KernelImage<'_>) -> Result<(), PagingError> {
    for segment in image.segments() {
        // SAFETY: the check placed the segment within the image's part of the free scratch area.
        let memory = unsafe { physical::slice_mut(segment.address, segment.memory_bytes) };
        let contents = image.contents(segment);
        let (file, zero) = memory.split_at_mut(contents.len());
        file.copy_from_slice(contents);
        zero.fill(0);
    }
    for segment in image.segments().iter().filter(|segment| segment.executable) {
        machine.set_rights(segment.address, segment.end(), Rights::Execute)?;
    }
    Ok(())
}

/// Copies the bundle to the successor's mailbox if it holds an image that comes after the successor.
fn hand_on(bundle: &Bundle<'_>, next: usize, area: Area) -> Result<Option<(u64, u64)>, SuccessorError> {
    if bundle.image(next).is_none() {
        return Ok(None);
    }
    let (bytes, room) = (bundle.bytes().len() as u64, area.bundle().bytes());
    if bytes > room {
        return Err(SuccessorError::BundleTooLarge { bytes, room });
    }
    let start = area.bundle().start;
    // SAFETY: within the free scratch area, which the source is not in.
    unsafe { physical::copy_in(start, bundle.bytes()) };
    Ok(Some((start, bytes)))
}
