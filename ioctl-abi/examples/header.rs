//! Prints a C header of the ABI: `header [iommufd|selftest|vfio]`.

use ioctl_abi::header::{IOMMUFD, SELFTEST, VFIO};

fn main() -> std::process::ExitCode {
    let header = match std::env::args().nth(1).as_deref() {
        None | Some("iommufd") => &IOMMUFD,
        Some("selftest") => &SELFTEST,
        Some("vfio") => &VFIO,
        Some(other) => {
            eprintln!("no header {other:?}: iommufd, selftest or vfio");
            return std::process::ExitCode::FAILURE;
        }
    };
    print!("{header}");
    std::process::ExitCode::SUCCESS
}
