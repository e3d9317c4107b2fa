//! The devices that bear witness: which functions they are, and what each is for.

use super::trouble::Trouble;
use crate::pci::{self, Topology};
use crate::platform::Platform;
use crate::{edu, hda};
use alloc::vec::Vec;
use spec::{PhysAddr, SourceId};

/// The functions of the scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cast {
    /// The audio controller: preserved.
    pub(crate) audio: SourceId,
    /// An edu: preserved.
    pub(crate) kept: SourceId,
    /// Another edu: not preserved.
    pub(crate) cut: SourceId,
    /// An edu whose requests carry a source-id that is on no list: not preserved.
    pub(crate) hidden: SourceId,
}

impl Cast {
    /// Picks the functions out of what the buses have.
    pub(crate) fn find(buses: &Topology) -> Result<Self, Trouble> {
        let missing = |what| Trouble::new("find the devices", what);
        let audio = buses.find(hda::VENDOR, hda::DEVICE).next();
        let edus: Vec<_> = buses.find(edu::VENDOR, edu::DEVICE).map(|f| f.source).collect();
        let (mut own, mut hidden) = (Vec::new(), Vec::new());
        for edu in edus {
            if buses.carried_by(edu) == edu { own.push(edu) } else { hidden.push(edu) }
        }
        let [kept, cut, ..] = own[..] else {
            return Err(missing("two edu devices on the root bus are needed"));
        };
        Ok(Self {
            audio: audio.ok_or(missing("there is no audio controller"))?.source,
            kept,
            cut,
            hidden: *hidden.first().ok_or(missing("there is no edu device behind a bridge"))?,
        })
    }

    /// Switches the functions on, and the bridges above them.
    pub(crate) fn enable<P: Platform + ?Sized>(&self, platform: &P, buses: &Topology) -> Result<(), Trouble> {
        for source in [self.audio, self.kept, self.cut, self.hidden] {
            let mut next = Some(source);
            while let Some(function) = next {
                pci::enable(platform, function).map_err(Trouble::at("enable a device"))?;
                next = buses.function(function).and_then(|f| f.parent);
            }
        }
        Ok(())
    }

    /// The three edus: preserved, cut off, hidden.
    pub(crate) fn edus(&self) -> [SourceId; 3] {
        [self.kept, self.cut, self.hidden]
    }
}

/// The registers of a function.
pub(crate) fn registers<P: Platform + ?Sized>(platform: &P, function: SourceId) -> Result<PhysAddr, Trouble> {
    pci::bar_address(platform, function, 0).map_err(Trouble::at("find a device's registers"))
}
