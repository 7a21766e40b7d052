//! The two declarations that the ABI's files are written in.

/// Declares a file's structs: each field with its type and, after `=>`, what it means
/// ([`crate::layout::show`]). The file's `STRUCTS` lists them.
macro_rules! abi_struct {
    ($(
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $($(#[$field_attribute:meta])* pub $field:ident: $type:ty => $show:expr,)*
        }
    )*) => {$(
        $(#[$attribute])*
        #[allow(non_camel_case_types)]
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_attribute])* pub $field: $type,)*
        }

        impl $crate::layout::AbiStruct for $name {
            const LAYOUT: &'static $crate::layout::Layout = {
                #[allow(unused_imports)]
                use $crate::layout::show::*;
                static LAYOUT: $crate::layout::Layout = $crate::layout::Layout {
                    name: stringify!($name),
                    size: size_of::<$name>(),
                    align: align_of::<$name>(),
                    fields: &[$($crate::layout::Field {
                        name: $crate::layout::c_name(stringify!($field)),
                        offset: core::mem::offset_of!($name, $field),
                        size: size_of::<$type>(),
                        c_type: <$type as $crate::layout::CType>::NAME,
                        count: <$type as $crate::layout::CType>::COUNT,
                        show: $show,
                    },)*],
                };
                &LAYOUT
            };
        }

        impl $crate::layout::CType for $name {
            const NAME: &'static str = concat!("struct ", stringify!($name));
        }
    )*

        /// The structs of this file.
        pub(crate) static STRUCTS: &[&$crate::layout::Layout] =
            &[$(<$name as $crate::layout::AbiStruct>::LAYOUT,)*];
    };
}

/// Declares the constants of a file's enums (or of defines that belong together) and, under each
/// enum's name, the [`crate::layout::Set`] of them. The file's `SETS` lists these.
macro_rules! abi_enum {
    ($(
        $(#[$attribute:meta])*
        pub enum $name:ident: $type:ty {
            $($(#[$constant_attribute:meta])* $constant:ident = $value:expr,)*
        }
    )*) => {$(
        $(
            $(#[$constant_attribute])*
            #[allow(non_upper_case_globals)]
            pub const $constant: $type = $value;
        )*

        $(#[$attribute])*
        #[allow(non_upper_case_globals)]
        pub static $name: $crate::layout::Set = $crate::layout::Set {
            name: stringify!($name),
            constants: &[$($crate::layout::Constant {
                name: stringify!($constant),
                value: $constant as u64,
            },)*],
        };
    )*

        /// The sets of this file.
        pub(crate) static SETS: &[&$crate::layout::Set] = &[$(&$name,)*];
    };
}
