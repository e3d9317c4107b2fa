//! What a kernel can take over, in a form that its image can carry (I10).
//!
//! A kernel's build states it once; its image carries it as two words ([`Adoptable::to_words`]), which its predecessor reads
//! before it loads the image ([`Adoptable::from_words`]) and holds against what it is about to hand over when it freezes.
//! Words that make no sense are refused: a successor that is not understood is not jumped into.

use core::fmt;

/// What a kernel can take over, in a form that its image can carry (I10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adoptable {
    /// Units in legacy mode.
    pub legacy: bool,
    /// Units in scalable mode.
    pub scalable: bool,
    /// Requests with PASID: more PASIDs of a requester than that of its requests without one.
    pub pasids: bool,
    /// First-stage tables below second-stage ones.
    pub nested: bool,
    /// Second-stage tables: bit n is set for tables of n levels.
    pub second_stage: u8,
    /// First-stage tables: bit n is set for tables of n levels.
    pub first_stage: u8,
}

/// Bits of the second word that are no depths.
const FLAGS: [u32; 4] = [1 << 0, 1 << 1, 1 << 2, 1 << 3];
/// Where the depths of second-stage tables begin.
const SECOND_STAGE: u32 = 8;
/// Where the depths of first-stage tables begin.
const FIRST_STAGE: u32 = 16;
/// Depths that no second-stage tables have: 0 to 2 levels.
const NEVER_SECOND: u8 = 0b111;
/// Depths that no first-stage tables have: 0 to 3 levels.
const NEVER_FIRST: u8 = 0b1111;

impl Adoptable {
    /// Nothing.
    pub const NOTHING: Self = Self {
        legacy: false,
        scalable: false,
        pasids: false,
        nested: false,
        second_stage: 0,
        first_stage: 0,
    };
    /// Legacy mode, with tables of every depth.
    pub const LEGACY: Self = Self { legacy: true, second_stage: 0b11_1000, ..Self::NOTHING };
    /// All that this release knows.
    pub const EVERYTHING: Self =
        Self { scalable: true, pasids: true, nested: true, first_stage: 0b11_0000, ..Self::LEGACY };
    /// Version of the words of an image: the first of them.
    pub const WORDS_VERSION: u32 = 1;

    /// What both can adopt.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            legacy: self.legacy && other.legacy,
            scalable: self.scalable && other.scalable,
            pasids: self.pasids && other.pasids,
            nested: self.nested && other.nested,
            second_stage: self.second_stage & other.second_stage,
            first_stage: self.first_stage & other.first_stage,
        }
    }

    /// As two words, for an image to carry: [`Self::WORDS_VERSION`], and bits. Bit 0 legacy mode, 1 scalable mode, 2 PASIDs,
    /// 3 nested; bits 15:8 `second_stage`, 23:16 `first_stage`. A bit that is not set means that the kernel cannot.
    #[must_use]
    pub const fn to_words(self) -> [u32; 2] {
        let [legacy, scalable, pasids, nested] = FLAGS;
        let flags = ((self.legacy as u32) * legacy)
            | ((self.scalable as u32) * scalable)
            | ((self.pasids as u32) * pasids)
            | ((self.nested as u32) * nested);
        let depths = (self.second_stage as u32) << SECOND_STAGE | (self.first_stage as u32) << FIRST_STAGE;
        [Self::WORDS_VERSION, flags | depths]
    }

    /// What an image says of itself. Bits that this release does not know are none of its business: they say that the
    /// image can do more, and nothing of that is ever handed over.
    ///
    /// # Errors
    /// [`NoSense`] when the words have another version, or contradict themselves.
    pub const fn from_words([version, bits]: [u32; 2]) -> Result<Self, NoSense> {
        if version != Self::WORDS_VERSION {
            return Err(NoSense::Version(version));
        }
        let [legacy, scalable, pasids, nested] = FLAGS;
        let able = Self {
            legacy: bits & legacy != 0,
            scalable: bits & scalable != 0,
            pasids: bits & pasids != 0,
            nested: bits & nested != 0,
            second_stage: (bits >> SECOND_STAGE) as u8,
            first_stage: (bits >> FIRST_STAGE) as u8,
        };
        match able.contradiction() {
            Some(what) => Err(NoSense::Contradiction { bits, what }),
            None => Ok(able),
        }
    }

    /// What cannot be meant.
    const fn contradiction(&self) -> Option<Contradiction> {
        let only_scalable = self.pasids || self.nested || self.first_stage != 0;
        if self.second_stage & NEVER_SECOND != 0 || self.first_stage & NEVER_FIRST != 0 {
            Some(Contradiction::Depth)
        } else if !self.legacy && !self.scalable {
            Some(Contradiction::NoMode)
        } else if only_scalable && !self.scalable {
            Some(Contradiction::NotScalable)
        } else if self.second_stage == 0 && (self.legacy || self.first_stage == 0) {
            Some(Contradiction::NoTables)
        } else if self.nested && (self.second_stage == 0 || self.first_stage == 0) {
            Some(Contradiction::OneStage)
        } else {
            None
        }
    }
}

/// Why what an image says of itself is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSense {
    /// The words have a version that this release does not know.
    Version(u32),
    /// They contradict themselves.
    Contradiction {
        /// The second word.
        bits: u32,
        /// What of it.
        what: Contradiction,
    },
}

/// What contradicts itself in the words of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contradiction {
    /// No mode at all: such a kernel drives no unit.
    NoMode,
    /// First-stage tables, nested ones or PASIDs without scalable mode, which alone has them.
    NotScalable,
    /// A mode without any tables that belong to it.
    NoTables,
    /// Nested tables without tables of both stages.
    OneStage,
    /// Tables of a depth that there are none of.
    Depth,
}

impl fmt::Display for NoSense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                let known = Adoptable::WORDS_VERSION;
                write!(f, "what it can adopt is written in version {version}, and this release reads {known}")
            }
            Self::Contradiction { bits, what } => write!(f, "what it can adopt ({bits:#010x}) names {what}"),
        }
    }
}
impl core::error::Error for NoSense {}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMode => "no translation mode",
            Self::NotScalable => {
                "first-stage tables, nested ones or PASIDs, but not scalable mode, which they need"
            }
            Self::NoTables => "a translation mode, but no tables for it",
            Self::OneStage => "nested tables, but not both stages",
            Self::Depth => "tables of a depth that does not exist",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_of_itself_is_read_back_as_it_was_written() {
        let second = Adoptable { scalable: true, ..Adoptable::LEGACY };
        for able in [Adoptable::LEGACY, second, Adoptable::EVERYTHING] {
            let [version, bits] = able.to_words();
            assert_eq!(Adoptable::from_words([version, bits]), Ok(able));
            assert_eq!(Adoptable::from_words([version, bits | 0xff00_00f0]), Ok(able), "bits that may come");
        }
    }

    #[test]
    fn an_image_of_another_version_is_not_believed() {
        let [version, bits] = Adoptable::EVERYTHING.to_words();
        for version in [0, version + 1, u32::MAX] {
            assert_eq!(Adoptable::from_words([version, bits]), Err(NoSense::Version(version)));
        }
    }

    #[test]
    fn an_image_that_contradicts_itself_is_not_believed() {
        let every = Adoptable::EVERYTHING;
        for (able, what) in [
            (Adoptable::NOTHING, Contradiction::NoMode),
            (Adoptable { legacy: false, scalable: false, ..every }, Contradiction::NoMode),
            (Adoptable { scalable: false, ..every }, Contradiction::NotScalable),
            (Adoptable { pasids: true, ..Adoptable::LEGACY }, Contradiction::NotScalable),
            (Adoptable { nested: true, ..Adoptable::LEGACY }, Contradiction::NotScalable),
            (Adoptable { first_stage: 1 << 4, ..Adoptable::LEGACY }, Contradiction::NotScalable),
            (Adoptable { second_stage: 0, ..every }, Contradiction::NoTables),
            (Adoptable { legacy: false, second_stage: 0, first_stage: 0, ..every }, Contradiction::NoTables),
            (Adoptable { legacy: false, second_stage: 0, ..every }, Contradiction::OneStage),
            (Adoptable { first_stage: 0, ..every }, Contradiction::OneStage),
            (Adoptable { second_stage: 1 << 2, ..every }, Contradiction::Depth),
            (Adoptable { first_stage: 1 << 3, ..every }, Contradiction::Depth),
        ] {
            let words = able.to_words();
            let told = Adoptable::from_words(words);
            assert_eq!(told, Err(NoSense::Contradiction { bits: words[1], what }), "{able:?}");
        }
        let first_only = Adoptable { legacy: false, nested: false, second_stage: 0, ..every };
        assert_eq!(Adoptable::from_words(first_only.to_words()), Ok(first_only));
    }

    #[test]
    fn what_two_can_adopt_is_no_more_than_what_each_can() {
        assert_eq!(Adoptable::EVERYTHING.and(Adoptable::LEGACY), Adoptable::LEGACY);
        assert_eq!(Adoptable::LEGACY.and(Adoptable::NOTHING), Adoptable::NOTHING);
    }
}
