//! The formats, a file each, and the list of them.

mod amd_v1;
mod mock;

pub use amd_v1::{AmdGranule, AmdV1};
pub use mock::MockV1;

/// Calls `$then!` with a row `name: Type, configuration` for every format and variant.
///
/// Tests, benchmarks and fuzzing run over this list; a new format is its file and a row here.
#[macro_export]
macro_rules! for_each_format {
    ($then:path) => {
        $then! {
            amd_v1: $crate::AmdV1, <$crate::AmdV1 as $crate::Format>::config();
            mock: $crate::MockV1, $crate::MockV1::default_pages();
            mock_huge: $crate::MockV1, $crate::MockV1::huge_pages();
        }
    };
}
