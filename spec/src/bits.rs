//! The one way a bit layout is written down in this project.
//!
//! [`bitfields!`](crate::bitfields) turns a list of `[hi:lo] name` lines into a transparent type with a getter and a
//! `with_` setter per field, all `const`, and a table [`Field`] of what was declared, which the layout tests compare
//! with a second source.

/// One declared field of a layout: bits `hi` down to `lo`, both inclusive, of the whole item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The field's name in lower case, as declared.
    pub name: &'static str,
    /// Highest bit of the field, counted over the whole item (0 is the item's first bit).
    pub hi: u32,
    /// Lowest bit of the field.
    pub lo: u32,
}

/// Mask of `hi:lo` within one 64-bit word. Both are bit numbers 0 to 63, `hi >= lo`.
#[must_use]
pub const fn mask(hi: u32, lo: u32) -> u64 {
    assert!(hi < 64 && lo <= hi);
    (u64::MAX >> (63 - hi)) & (u64::MAX << lo)
}

/// Bits `hi:lo` of `words`, the item's 64-bit words in memory order. The field must lie within one word.
#[must_use]
pub const fn get(words: &[u64], hi: u32, lo: u32) -> u64 {
    let word = (lo / 64) as usize;
    assert!(hi / 64 == lo / 64);
    (words[word] & mask(hi % 64, lo % 64)) >> (lo % 64)
}

/// The 64-bit word that holds bits `hi:lo`, with the field replaced by `value`.
///
/// # Panics
/// When `value` does not fit the field: a mistake of the caller, never of foreign input.
#[must_use]
pub const fn put(word: u64, hi: u32, lo: u32, value: u64) -> u64 {
    let field = mask(hi % 64, lo % 64);
    assert!(value <= field >> (lo % 64), "value does not fit its field");
    (word & !field) | (value << (lo % 64))
}

/// Declares a hardware layout:
/// `struct Name(u32 | u64 | [u64; N]) { [hi:lo] field, with_field; [bit] flag, with_flag; [hi:lo] _; }`.
///
/// `[hi:lo]` makes `field()` and `with_field(value)` over the raw integer type (`u64` for the wide form); `[bit]` makes
/// the same over `bool`. A field named `_` claims its bits without accessors: bits that hardware ignores. `FIELDS` lists
/// what was declared; `RESERVED` has a one for every bit that nothing claims, which must be zero.
#[macro_export]
macro_rules! bitfields {
    ($(#[$meta:meta])* pub struct $name:ident($raw:ident) { $($body:tt)* }) => {
        $crate::bitfields!(@type [$(#[$meta])*] $name, $raw, 0);
        impl $name {
            /// Declared fields, in the order of declaration.
            pub const FIELDS: &'static [$crate::bits::Field] = $crate::bitfields!(@list [] $($body)*);
            /// Width of the item in bits.
            pub const BITS: u32 = $raw::BITS;
            /// Bits that no field claims: they must be zero.
            #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
            pub const RESERVED: $raw = $crate::bits::unclaimed::<1>(Self::FIELDS)[0] as $raw;
            $crate::bitfields!(@scalar $raw, $($body)*);
        }
    };
    ($(#[$meta:meta])* pub struct $name:ident([u64; $n:literal]) { $($body:tt)* }) => {
        $crate::bitfields!(@type [$(#[$meta])*] $name, [u64; $n], [0; $n]);
        impl $name {
            /// Declared fields, in the order of declaration.
            pub const FIELDS: &'static [$crate::bits::Field] = $crate::bitfields!(@list [] $($body)*);
            /// Width of the item in bits.
            pub const BITS: u32 = 64 * $n;
            /// Bits that no field claims, per word: they must be zero.
            pub const RESERVED: [u64; $n] = $crate::bits::unclaimed::<$n>(Self::FIELDS);
            $crate::bitfields!(@wide $($body)*);
        }
    };
    (@type [$(#[$meta:meta])*] $name:ident, $raw:ty, $zero:expr) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name($raw);
        impl $name {
            /// The item with every bit zero.
            pub const ZERO: Self = Self($zero);
            /// The item with the given raw content.
            #[must_use]
            pub const fn from_raw(raw: $raw) -> Self { Self(raw) }
            /// The raw content, as hardware sees it.
            #[must_use]
            pub const fn raw(self) -> $raw { self.0 }
        }
        impl Default for $name { fn default() -> Self { Self::ZERO } }
        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x?})"), self.0)
            }
        }
    };
    (@list [$($done:tt)*]) => { &[$($done)*] };
    (@list [$($done:tt)*] $(#[$doc:meta])* [$hi:literal : $lo:literal] _; $($rest:tt)*) => {
        $crate::bitfields!(@list [$($done)* $crate::bits::Field { name: "_", hi: $hi, lo: $lo },] $($rest)*)
    };
    (@list [$($done:tt)*] $(#[$doc:meta])* [$hi:literal : $lo:literal] $field:ident, $with:ident; $($rest:tt)*) => {
        $crate::bitfields!(
            @list [$($done)* $crate::bits::Field { name: stringify!($field), hi: $hi, lo: $lo },] $($rest)*)
    };
    (@list [$($done:tt)*] $(#[$doc:meta])* [$bit:literal] _; $($rest:tt)*) => {
        $crate::bitfields!(@list [$($done)* $crate::bits::Field { name: "_", hi: $bit, lo: $bit },] $($rest)*)
    };
    (@list [$($done:tt)*] $(#[$doc:meta])* [$bit:literal] $field:ident, $with:ident; $($rest:tt)*) => {
        $crate::bitfields!(
            @list [$($done)* $crate::bits::Field { name: stringify!($field), hi: $bit, lo: $bit },] $($rest)*)
    };
    (@scalar $raw:ident,) => {};
    (@scalar $raw:ident, $(#[$doc:meta])* [$hi:literal : $lo:literal] _; $($rest:tt)*) => {
        $crate::bitfields!(@scalar $raw, $($rest)*);
    };
    (@scalar $raw:ident, $(#[$doc:meta])* [$bit:literal] _; $($rest:tt)*) => {
        $crate::bitfields!(@scalar $raw, $($rest)*);
    };
    (@scalar $raw:ident, $(#[$doc:meta])* [$hi:literal : $lo:literal] $field:ident, $with:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[must_use]
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
        pub const fn $field(self) -> $raw { $crate::bits::get(&[self.0 as u64], $hi, $lo) as $raw }
        #[doc = concat!("The item with `", stringify!($field), "` replaced; panics when the value does not fit.")]
        #[must_use]
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
        pub const fn $with(self, value: $raw) -> Self {
            Self($crate::bits::put(self.0 as u64, $hi, $lo, value as u64) as $raw)
        }
        $crate::bitfields!(@scalar $raw, $($rest)*);
    };
    (@scalar $raw:ident, $(#[$doc:meta])* [$bit:literal] $field:ident, $with:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[must_use]
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
        pub const fn $field(self) -> bool { $crate::bits::get(&[self.0 as u64], $bit, $bit) == 1 }
        #[doc = concat!("The item with `", stringify!($field), "` replaced.")]
        #[must_use]
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
        pub const fn $with(self, value: bool) -> Self {
            Self($crate::bits::put(self.0 as u64, $bit, $bit, value as u64) as $raw)
        }
        $crate::bitfields!(@scalar $raw, $($rest)*);
    };
    (@wide) => {};
    (@wide $(#[$doc:meta])* [$hi:literal : $lo:literal] _; $($rest:tt)*) => { $crate::bitfields!(@wide $($rest)*); };
    (@wide $(#[$doc:meta])* [$bit:literal] _; $($rest:tt)*) => { $crate::bitfields!(@wide $($rest)*); };
    (@wide $(#[$doc:meta])* [$hi:literal : $lo:literal] $field:ident, $with:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[must_use]
        pub const fn $field(self) -> u64 { $crate::bits::get(&self.0, $hi, $lo) }
        #[doc = concat!("The item with `", stringify!($field), "` replaced; panics when the value does not fit.")]
        #[must_use]
        pub const fn $with(self, value: u64) -> Self {
            let mut words = self.0;
            words[$lo / 64] = $crate::bits::put(words[$lo / 64], $hi, $lo, value);
            Self(words)
        }
        $crate::bitfields!(@wide $($rest)*);
    };
    (@wide $(#[$doc:meta])* [$bit:literal] $field:ident, $with:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[must_use]
        pub const fn $field(self) -> bool { $crate::bits::get(&self.0, $bit, $bit) == 1 }
        #[doc = concat!("The item with `", stringify!($field), "` replaced.")]
        #[must_use]
        pub const fn $with(self, value: bool) -> Self {
            let mut words = self.0;
            words[$bit / 64] = $crate::bits::put(words[$bit / 64], $bit, $bit, value as u64);
            Self(words)
        }
        $crate::bitfields!(@wide $($rest)*);
    };
}

/// The bits of an `N`-word item that none of `fields` claims.
#[must_use]
pub const fn unclaimed<const N: usize>(fields: &[Field]) -> [u64; N] {
    let mut rest = [u64::MAX; N];
    let mut i = 0;
    while i < fields.len() {
        let word = (fields[i].lo / 64) as usize;
        assert!(fields[i].hi / 64 == fields[i].lo / 64, "a field crosses a word");
        let claimed = mask(fields[i].hi % 64, fields[i].lo % 64);
        assert!(rest[word] & claimed == claimed, "two fields overlap");
        rest[word] &= !claimed;
        i += 1;
    }
    rest
}

#[cfg(test)]
#[allow(unreachable_pub, dead_code)]
mod tests {
    bitfields! {
        /// A layout with every kind of field.
        pub struct Sample([u64; 2]) {
            [3:0] low, with_low;
            [8] flag, with_flag;
            [11:9] _;
            [87:72] high, with_high;
        }
    }

    #[test]
    fn a_field_reads_back_what_was_put_and_leaves_the_rest_alone() {
        let item = Sample::ZERO.with_low(0xf).with_high(0xabcd).with_flag(true);
        assert_eq!(item.raw(), [0x10f, 0xabcd << 8]);
        assert_eq!((item.low(), item.flag(), item.high()), (0xf, true, 0xabcd));
        assert_eq!(item.with_high(0).with_flag(false).raw(), [0xf, 0]);
    }

    #[test]
    fn reserved_is_what_no_field_claims() {
        assert_eq!(Sample::RESERVED, [!0xf0f, !(0xffff << 8)]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_value_too_large_for_its_field_is_our_own_mistake() {
        let _ = Sample::ZERO.with_low(16);
    }
}
