//! What the crate has to show for one item of the table.

use holdover_spec::bits::Field;
use holdover_spec::wire::ByteField;

/// An item under the table's names.
#[derive(Debug, Default)]
pub(crate) struct Item {
    pub(crate) group: &'static str,
    pub(crate) name: String,
    /// Width of a laid-out item in its unit, bits or bytes.
    pub(crate) size: Option<u32>,
    pub(crate) fields: Vec<Place>,
    /// Per bit: must be zero.
    pub(crate) reserved: Vec<bool>,
    /// Per bit: hardware ignores it.
    pub(crate) ignored: Vec<bool>,
    pub(crate) codes: Vec<(String, Code)>,
    /// The table does not say what every bit is.
    pub(crate) partial: bool,
}

/// Where a field lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) hi: u32,
    pub(crate) lo: u32,
}

/// What a row without position must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Code {
    Number(u64),
    Text(&'static str),
    /// A rule in the table's words, and whether the crate keeps it.
    Rule(&'static str, bool),
}

/// Names that the table writes differently wherever they occur.
const USUAL: [(&str, &str); 3] = [("present", "P"), ("kind", "TYPE"), ("kind_hi", "TYPE_HI")];

/// Raw content of an item as words.
pub(crate) trait Words {
    fn words(&self) -> Vec<u64>;
}
impl Words for u32 {
    fn words(&self) -> Vec<u64> {
        vec![u64::from(*self)]
    }
}
impl Words for u64 {
    fn words(&self) -> Vec<u64> {
        vec![*self]
    }
}
impl<const N: usize> Words for [u64; N] {
    fn words(&self) -> Vec<u64> {
        self.to_vec()
    }
}

/// A bit field layout as an item: `bits!("group", "item", Type)`.
macro_rules! bits {
    ($group:literal, $name:expr, $layout:ty) => {
        $crate::item::Item::bits($group, $name, <$layout>::FIELDS, <$layout>::BITS, &<$layout>::RESERVED)
    };
}
/// A record of bytes as an item.
macro_rules! bytes {
    ($group:literal, $name:expr, $layout:ty) => {
        $crate::item::Item::bytes($group, $name, <$layout>::BYTE_FIELDS, <$layout>::BYTES)
    };
}
pub(crate) use {bits, bytes};

impl Item {
    /// An item of codes only.
    pub(crate) fn codes_only(group: &'static str, name: impl Into<String>) -> Self {
        Self { group, name: name.into(), ..Self::default() }
    }

    pub(crate) fn bits(
        group: &'static str,
        name: impl Into<String>,
        fields: &[Field],
        size: u32,
        reserved: &dyn Words,
    ) -> Self {
        let reserved = reserved.words();
        let mut item = Self {
            size: Some(size),
            reserved: (0..size).map(|bit| reserved[bit as usize / 64] >> (bit % 64) & 1 == 1).collect(),
            ignored: vec![false; size as usize],
            ..Self::codes_only(group, name)
        };
        for field in fields {
            if field.name == "_" {
                item.ignored[field.lo as usize..=field.hi as usize].fill(true);
            } else {
                item.fields.push(Place { name: usual(field.name), hi: field.hi, lo: field.lo });
            }
        }
        item
    }

    pub(crate) fn bytes(
        group: &'static str,
        name: impl Into<String>,
        fields: &[ByteField],
        size: usize,
    ) -> Self {
        let place = |field: &ByteField| Place {
            name: usual(field.name),
            hi: u32::try_from(field.last).unwrap(),
            lo: u32::try_from(field.first).unwrap(),
        };
        Self {
            size: Some(u32::try_from(size).unwrap()),
            fields: fields.iter().map(place).collect(),
            ..Self::codes_only(group, name)
        }
    }

    /// The table calls `ours` `theirs`. `ours` may be several adjacent fields, joined by `+`.
    pub(crate) fn called(mut self, ours: &str, theirs: &str) -> Self {
        let mut parts: Vec<Place> = Vec::new();
        for part in ours.split('+') {
            let at = self.fields.iter().position(|field| field.name.eq_ignore_ascii_case(part));
            parts.push(self.fields.remove(at.unwrap_or_else(|| panic!("{} has no {part}", self.name))));
        }
        assert!(parts.windows(2).all(|pair| pair[0].hi + 1 == pair[1].lo), "{ours} are not adjacent");
        self.fields.push(Place { name: theirs.into(), hi: parts[parts.len() - 1].hi, lo: parts[0].lo });
        self
    }

    /// `ours` is ignored by hardware in the form that the table describes.
    pub(crate) fn ignoring(mut self, ours: &[&str]) -> Self {
        for name in ours {
            let at = self.fields.iter().position(|field| field.name.eq_ignore_ascii_case(name));
            let field = self.fields.remove(at.unwrap_or_else(|| panic!("{} has no {name}", self.name)));
            self.ignored[field.lo as usize..=field.hi as usize].fill(true);
        }
        self
    }

    /// A field that overlaps others or has no line of its own in the layout: the bits that its accessor looks at.
    pub(crate) fn probed(mut self, theirs: &str, looked_at: &[u32]) -> Self {
        let (lo, hi) = (looked_at[0], looked_at[looked_at.len() - 1]);
        assert_eq!(looked_at.len() as u32, hi - lo + 1, "bits of {theirs} are not adjacent: {looked_at:?}");
        self.fields.push(Place { name: theirs.into(), hi, lo });
        self
    }

    /// The 256-bit form of a descriptor: the same, and zeroes.
    pub(crate) fn widened(mut self) -> Self {
        assert_eq!(holdover_spec::invalidation::widen([u64::MAX; 2]), [u64::MAX, u64::MAX, 0, 0]);
        self.size = Some(256);
        self.reserved.resize(256, true);
        self.ignored.resize(256, false);
        self
    }

    pub(crate) fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    pub(crate) fn number(mut self, name: impl Into<String>, number: impl Into<u64>) -> Self {
        self.codes.push((name.into(), Code::Number(number.into())));
        self
    }
    pub(crate) fn numbers<T: Into<u64> + Copy>(self, codes: &[(&str, T)]) -> Self {
        codes.iter().fold(self, |item, &(name, number)| item.number(name, number))
    }
    pub(crate) fn text(mut self, name: &str, text: &'static str) -> Self {
        self.codes.push((name.into(), Code::Text(text)));
        self
    }
    pub(crate) fn rule(mut self, name: &str, words: &'static str, kept: bool) -> Self {
        self.codes.push((name.into(), Code::Rule(words, kept)));
        self
    }
}

fn usual(ours: &str) -> String {
    USUAL.iter().find(|(name, _)| *name == ours).map_or(ours, |(_, theirs)| theirs).to_owned()
}

/// The bits of an item of `bits` bits that `look` depends on, lowest first.
pub(crate) fn probe<T: PartialEq>(bits: u32, look: impl Fn([u64; 8]) -> T) -> Vec<u32> {
    let nothing = look([0; 8]);
    let depends = |&bit: &u32| {
        let mut words = [0; 8];
        words[bit as usize / 64] = 1 << (bit % 64);
        look(words) != nothing
    };
    (0..bits).filter(depends).collect()
}
