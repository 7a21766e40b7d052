//! The formats, a file each, and the list of them.

mod amd_v1;
#[cfg(any(test, kani))]
mod laws;
mod lpae;
mod mock;
mod riscv;
mod s390;
mod vtd_second;
mod x86_64;

pub use amd_v1::{AmdGranule, AmdV1};
pub use lpae::Lpae;
pub use mock::MockV1;
pub use riscv::RiscV;
pub use s390::S390;
pub use vtd_second::VtdSecond;
pub use x86_64::X86_64;

/// Calls `$then!` with a row `name: Type, configuration;` for every format and variant.
///
/// Tests, benchmarks and fuzzing run over this list; a new format is its file and a row here.
#[macro_export]
macro_rules! for_each_format {
    ($then:path) => {
        $then! {
            amd_v1: $crate::AmdV1, <$crate::AmdV1 as $crate::Format>::config();
            mock: $crate::MockV1, $crate::MockV1::default_pages();
            mock_huge: $crate::MockV1, $crate::MockV1::huge_pages();
            vtd_second_4: $crate::VtdSecond, $crate::Config::new(48, 4, 52);
            vtd_second_5: $crate::VtdSecond, $crate::Config::new(57, 5, 52);
            x86_64_4: $crate::X86_64, $crate::Config::new(48, 4, 52);
            x86_64_5: $crate::X86_64, $crate::Config::new(57, 5, 52);
            lpae_s1_4k_48: $crate::Lpae<1, 12, 48>, $crate::Config::new(48, 4, 48);
            lpae_s1_4k_52: $crate::Lpae<1, 12, 52>, $crate::Config::new(52, 5, 52);
            lpae_s1_16k_48: $crate::Lpae<1, 14, 48>, $crate::Config::new(48, 4, 48);
            lpae_s1_16k_52: $crate::Lpae<1, 14, 52>, $crate::Config::new(52, 4, 52);
            lpae_s1_64k_48: $crate::Lpae<1, 16, 48>, $crate::Config::new(48, 3, 48);
            lpae_s1_64k_52: $crate::Lpae<1, 16, 52>, $crate::Config::new(52, 3, 52);
            lpae_s2_4k_40: $crate::Lpae<2, 12, 48>, $crate::Config::new(40, 3, 48);
            lpae_s2_4k_48: $crate::Lpae<2, 12, 48>, $crate::Config::new(48, 4, 48);
            lpae_s2_4k_52: $crate::Lpae<2, 12, 52>, $crate::Config::new(52, 5, 52);
            lpae_s2_16k_48: $crate::Lpae<2, 14, 48>, $crate::Config::new(48, 3, 48);
            lpae_s2_16k_52: $crate::Lpae<2, 14, 52>, $crate::Config::new(52, 4, 52);
            lpae_s2_64k_48: $crate::Lpae<2, 16, 48>, $crate::Config::new(48, 3, 48);
            lpae_s2_64k_52: $crate::Lpae<2, 16, 52>, $crate::Config::new(52, 3, 52);
            riscv_sv39: $crate::RiscV, $crate::RiscV::sv39();
            riscv_sv48: $crate::RiscV, $crate::RiscV::sv48();
            riscv_sv57: $crate::RiscV, $crate::RiscV::sv57();
            s390: $crate::S390, <$crate::S390 as $crate::Format>::config();
            s390_first: $crate::S390, $crate::Config::new(64, 5, 64);
        }
    };
}
