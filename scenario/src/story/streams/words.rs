//! The option `streams`: what the queues of the streaming device go through, one word each.
//!
//! `streams=own,5:first,4070:second,300:nested,9:second/cut,77:all/cut`: a PASID, or none for requests without; the stage that
//! translates; and `/cut` for a PASID that is not preserved. `own` is the stage of the mode, `all` is pass-through. The first
//! word is that of requests without PASID. In legacy mode there is no other.

use super::super::trouble::Trouble;
use crate::streamer::QUEUES;
use alloc::format;
use alloc::vec::Vec;
use iommu::Mode;
use iommu::table::format::Stage;

/// Queues that one stream may take: its own, and one for what is mapped after adoption.
const QUEUES_EACH: usize = 2;

/// What requests go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    /// One stage.
    Stage(Stage),
    /// A guest's first stage within the host's second.
    Nested,
    /// No tables: addresses are physical, all of memory is reached.
    Everything,
}

impl Through {
    /// Its name in events.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stage(Stage::Second) => "second-stage",
            Self::Stage(Stage::First) => "first-stage",
            Self::Nested => "nested",
            Self::Everything => "pass-through",
        }
    }
}

/// One word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    /// What requests carry.
    pub(crate) pasid: Option<u32>,
    /// What they go through.
    pub(crate) through: Through,
    /// Preserved.
    pub(crate) kept: bool,
}

/// Reads the option, for kernels that drive units in `mode`.
pub(crate) fn read(list: &str, mode: Mode) -> Result<Vec<Word>, Trouble> {
    let words = list.split(',').map(|text| word(text, mode)).collect::<Result<Vec<_>, _>>()?;
    let words: Vec<_> = words.into_iter().filter(|w| mode.is_scalable() || w.pasid.is_none()).collect();
    let first = words.first().is_some_and(|w| w.pasid.is_none() && w.kept);
    if !first || words[1..].iter().any(|w| w.pasid.is_none()) {
        return Err(wrong(list, "the first word, and no other, is that of requests without PASID"));
    }
    if words.len() * QUEUES_EACH > QUEUES {
        return Err(wrong(list, "the device has not so many queues"));
    }
    Ok(words)
}

fn word(text: &str, mode: Mode) -> Result<Word, Trouble> {
    let (rest, kept) = text.strip_suffix("/cut").map_or((text, true), |rest| (rest, false));
    let (pasid, stage) = match rest.split_once(':') {
        Some((digits, stage)) => {
            let pasid = digits.parse().ok().filter(|pasid| (1..1 << 20).contains(pasid));
            (Some(pasid.ok_or_else(|| wrong(text, "a PASID is 1 to 1048575"))?), stage)
        }
        None => (None, rest),
    };
    let through = match stage {
        "own" => Through::Stage(mode.stage()),
        "first" => Through::Stage(Stage::First),
        "second" => Through::Stage(Stage::Second),
        "nested" => Through::Nested,
        // Whoever reaches all of memory cannot be preserved.
        "all" if !kept => Through::Everything,
        _ => return Err(wrong(text, "it goes through own, first, second or nested, or all/cut")),
    };
    Ok(Word { pasid, through, kept })
}

fn wrong(text: &str, why: &str) -> Trouble {
    Trouble { step: "read the option streams", why: format!("{text:?}: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_says_pasid_stage_and_whether_it_stays() {
        let words = read("own,5:first,300:nested,9:second/cut,77:all/cut", Mode::SecondStage).unwrap();
        let shape: Vec<_> = words.iter().map(|w| (w.pasid, w.through.name(), w.kept)).collect();
        assert_eq!(
            shape,
            [
                (None, "second-stage", true),
                (Some(5), "first-stage", true),
                (Some(300), "nested", true),
                (Some(9), "second-stage", false),
                (Some(77), "pass-through", false),
            ]
        );
        assert_eq!(read("own,5:first", Mode::FirstStage).unwrap()[0].through.name(), "first-stage");
    }

    #[test]
    fn legacy_mode_has_no_pasids() {
        let words = read("own,5:first,9:second/cut", Mode::Legacy).unwrap();
        assert_eq!(words.len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_word() {
        for list in [
            "",
            "5:first",
            "own/cut",
            "own,own",
            "own,0:first",
            "own,5:third",
            "own,5:all",
            "own,1048576:first",
        ] {
            assert!(read(list, Mode::SecondStage).is_err(), "{list:?}");
        }
    }
}
