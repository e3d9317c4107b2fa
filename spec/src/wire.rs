//! The one way a record of whole bytes is written down in this project: the handover's, KHO's, LUO's and the DMAR
//! table's.
//!
//! `wire!` turns a list of fields into a `#[repr(C)]` type that converts from and to bytes, checks its size and alignment
//! when compiled, and lists where its fields lie, which the layout tests compare with a second source.

/// Where one field of a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteField {
    /// The field's name, as declared.
    pub name: &'static str,
    /// Its first byte.
    pub first: usize,
    /// Its last byte.
    pub last: usize,
}

/// Declares a record: `struct Name (bytes) { field: type, ... }`, or `unaligned struct Name (bytes) { ... }` for one whose
/// fields are all byte-aligned. Each type has its own size as `BYTES` and its fields as `BYTE_FIELDS`.
macro_rules! wire {
    ($(#[$meta:meta])* pub struct $name:ident ($bytes:literal) { $($body:tt)* }) => {
        wire!(@item [$(#[$meta])*] [] $name $bytes { $($body)* });
        const _: () = assert!(align_of::<$name>() <= 8);
    };
    ($(#[$meta:meta])* pub unaligned struct $name:ident ($bytes:literal) { $($body:tt)* }) => {
        wire!(@item [$(#[$meta])*] [::zerocopy::Unaligned] $name $bytes { $($body)* });
    };
    (@item [$(#[$meta:meta])*] [$($unaligned:path)?] $name:ident $bytes:literal {
        $($(#[$fm:meta])* $field:ident : $ty:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout,
            $($unaligned)?
        )]
        #[repr(C)]
        pub struct $name { $($(#[$fm])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $bytes);
        impl $name {
            /// Size in bytes.
            pub const BYTES: usize = $bytes;
            /// Where each field lies.
            pub const BYTE_FIELDS: &'static [$crate::wire::ByteField] = &[$(
                $crate::wire::ByteField {
                    name: stringify!($field),
                    first: ::core::mem::offset_of!($name, $field),
                    last: ::core::mem::offset_of!($name, $field) + size_of::<$ty>() - 1,
                },
            )*];
        }
    };
}
