//! The devices that bear witness: which requesters they are, and what becomes of each.
//!
//! Without further word the first edu of the root bus is preserved, the second and the one behind a bridge are cut off. The
//! option `cast` says otherwise: `cast=00:03.0/kept,01:03.0/cut,0001:00:04.0@0xfe700000/late` lists edus by requester, with
//! the address of the registers where configuration space of segment 0 does not tell it (as firmware's namespace would),
//! and their parts.

use super::host::Kernel;
use super::trouble::Trouble;
use crate::pci::{self, Topology};
use crate::platform::Platform;
use crate::{edu, hda, text};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use spec::{PhysAddr, Requester, Segment, SourceId};

/// Most edus of a cast: a preserved one's number is a digit of its token.
const MOST: usize = 9;

/// What becomes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Preserved.
    Kept,
    /// Not preserved.
    Cut,
    /// Not preserved, and attached only when everything that will be preserved is.
    Late,
    /// Not preserved, and detached when everything that will be preserved is.
    Leaving,
}

impl Part {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "kept" => Self::Kept,
            "cut" => Self::Cut,
            "late" => Self::Late,
            "leaving" => Self::Leaving,
            _ => return None,
        })
    }
}

/// An edu with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Actor {
    pub(crate) requester: Requester,
    pub(crate) part: Part,
    /// Where its registers are; else its BAR 0 says so.
    at: Option<PhysAddr>,
}

impl Actor {
    fn function(source: SourceId, part: Part) -> Self {
        Self { requester: requester(source), part, at: None }
    }

    /// Its registers.
    pub(crate) fn registers<P: Platform + ?Sized>(&self, platform: &P) -> Result<PhysAddr, Trouble> {
        match self.at {
            Some(at) => Ok(at),
            None => registers(platform, self.requester.source),
        }
    }
}

/// The devices of the scene.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cast {
    /// The audio controller: preserved.
    pub(crate) audio: SourceId,
    /// The edus, those that are preserved first: at least one.
    pub(crate) edus: Vec<Actor>,
}

impl Cast {
    /// Picks the devices out of what the buses have, by the option `cast` where there is one.
    pub(crate) fn find<P: Platform + ?Sized>(platform: &P, buses: &Topology) -> Result<Self, Trouble> {
        let audio = buses.find(hda::VENDOR, hda::DEVICE).next();
        let audio = audio.ok_or(missing("there is no audio controller"))?.source;
        let mut edus = match platform.option("cast") {
            Some(list) => list.split(',').map(|word| actor(word, buses)).collect::<Result<Vec<_>, _>>()?,
            None => usual(buses)?,
        };
        edus.sort_by_key(|actor| actor.part);
        if edus.first().is_none_or(|first| first.part != Part::Kept) {
            return Err(missing("no edu device is to be preserved"));
        }
        if edus.len() > MOST {
            return Err(missing("there are more edu devices than have names"));
        }
        Ok(Self { audio, edus })
    }

    /// How many edus are preserved: these come first.
    pub(crate) fn kept(&self) -> usize {
        self.edus.iter().filter(|actor| actor.part == Part::Kept).count()
    }

    /// The edus that have one of these parts, by their index.
    pub(crate) fn with(&self, parts: &[Part]) -> Vec<usize> {
        (0..self.edus.len()).filter(|&index| parts.contains(&self.edus[index].part)).collect()
    }

    /// The edu that interrupts on behalf of those with this part, a function of segment 0: its index and where it is. Of
    /// those that are preserved, the first one or none.
    pub(crate) fn interrupter(&self, part: Part) -> Option<(usize, SourceId)> {
        let all = self.edus.iter().enumerate().filter(|(_, actor)| actor.part == part);
        let mut candidates = all.take(if part == Part::Kept { 1 } else { usize::MAX });
        let (index, actor) = candidates.find(|(_, actor)| actor.at.is_none())?;
        Some((index, actor.requester.source))
    }

    /// Switches the functions on, and the bridges above them.
    pub(crate) fn enable<P: Platform + ?Sized>(&self, platform: &P, buses: &Topology) -> Result<(), Trouble> {
        let functions =
            self.edus.iter().filter(|actor| actor.at.is_none()).map(|actor| actor.requester.source);
        for source in functions.chain([self.audio]) {
            let mut next = Some(source);
            while let Some(function) = next {
                pci::enable(platform, function).map_err(Trouble::at("enable a device"))?;
                next = buses.function(function).and_then(|f| f.parent);
            }
        }
        Ok(())
    }
}

fn missing(what: &str) -> Trouble {
    Trouble::new("find the devices", what)
}

/// One word of the option.
fn actor(word: &str, buses: &Topology) -> Result<Actor, Trouble> {
    let wrong = |why: &str| Trouble { step: "read the option cast", why: format!("{word:?}: {why}") };
    let (who, part) = word.split_once('/').ok_or_else(|| wrong("there is no part after a slash"))?;
    let part = Part::named(part).ok_or_else(|| wrong("a part is kept, cut, late or leaving"))?;
    let (who, at) = match who.split_once('@') {
        Some((who, digits)) => {
            let at = u64::from_str_radix(digits.trim_start_matches("0x"), 16);
            (who, Some(PhysAddr::new(at.map_err(|error| wrong(&error.to_string()))?)))
        }
        None => (who, None),
    };
    let requester = text::parse_requester(who).map_err(|error| wrong(&error.to_string()))?;
    let edu = |f: &pci::Function| {
        requester.segment == Segment(0) && (f.vendor, f.device) == (edu::VENDOR, edu::DEVICE)
    };
    if at.is_none() && !buses.function(requester.source).is_some_and(edu) {
        return Err(wrong("there is no edu"));
    }
    Ok(Actor { requester, part, at })
}

/// Functions of other segments, which the ports for configuration space do not reach: the kernel is told of them.
pub(crate) fn told_of<P: Platform + ?Sized>(platform: &P) -> Vec<Requester> {
    let words = platform.option("cast").into_iter().flat_map(|list| list.split(','));
    let who = |word: &str| text::parse_requester(word.split(['@', '/']).next()?).ok();
    words.filter_map(who).filter(|who| who.segment != Segment(0)).collect()
}

/// Two edus of the root bus and one behind a bridge.
fn usual(buses: &Topology) -> Result<Vec<Actor>, Trouble> {
    let edus = buses.find(edu::VENDOR, edu::DEVICE).map(|f| f.source);
    let (own, hidden): (Vec<_>, Vec<_>) = edus.partition(|edu| buses.carried_by(*edu) == *edu);
    let [kept, cut, ..] = own[..] else {
        return Err(missing("two edu devices on the root bus are needed"));
    };
    let hidden = *hidden.first().ok_or(missing("there is no edu device behind a bridge"))?;
    Ok(Vec::from([
        Actor::function(kept, Part::Kept),
        Actor::function(cut, Part::Cut),
        Actor::function(hidden, Part::Cut),
    ]))
}

impl<P: Platform + ?Sized> Kernel<'_, '_, P> {
    /// The source-id that requests of a device carry when they arrive at its unit, as a requester.
    pub(crate) fn carried(&self, who: Requester) -> Requester {
        match who.segment {
            Segment(0) => requester(self.buses.0.carried_by(who.source)),
            _ => who,
        }
    }

    /// The other source-ids of a requester.
    pub(crate) fn aliases_of(&self, who: Requester) -> Vec<SourceId> {
        if who.segment == Segment(0) { self.other_ids(who.source) } else { Vec::new() }
    }

    /// Whether enumeration of PCI finds it.
    pub(crate) fn is_listed(&self, who: Requester) -> bool {
        who.segment == Segment(0) && self.buses.0.is_listed(who.source)
    }
}

/// The function at `source` as a requester.
pub(crate) fn requester(source: SourceId) -> Requester {
    Requester::new(Segment(0), source)
}

/// The registers of a function.
pub(crate) fn registers<P: Platform + ?Sized>(platform: &P, function: SourceId) -> Result<PhysAddr, Trouble> {
    pci::bar_address(platform, function, 0).map_err(Trouble::at("find a device's registers"))
}
