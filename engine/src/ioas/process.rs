//! `IOMMU_IOAS_CHANGE_PROCESS`: another process takes over, and pays for what is pinned.

use std::sync::Arc;

use ioctl_abi::iommufd::iommu_ioas_change_process;

use crate::Errno;
use crate::call::Call;
use crate::inject;
use crate::pages::Pages;

/// `IOMMU_IOAS_CHANGE_PROCESS`. All mappings of the context must be of files (`EINVAL`); the new
/// process must be allowed to lock them (`ENOMEM`). On an error nothing has changed.
pub(crate) fn change_process(
    call: &Call<'_>,
    command: &mut iommu_ioas_change_process,
) -> Result<(), Errno> {
    if command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    inject::site("ioas: list of pages")?;
    let mut all: Vec<Arc<Pages>> = Vec::new();
    call.context.each_ioas(|ioas| ioas.lock().each_pages(&mut |pages| all.push(pages.clone())));
    // Areas that share pages name them twice.
    all.sort_unstable_by_key(Arc::as_ptr);
    all.dedup_by(|a, b| Arc::ptr_eq(a, b));
    if !all.iter().all(|pages| pages.is_file()) {
        return Err(Errno::EINVAL);
    }
    let accounts = call.context.engine().accounts();
    let (mm, process) = (call.memory.id(), call.caller.process());
    // All is charged before anything is given back, so that a user pays twice for a moment.
    let charges = all
        .iter()
        .map(|pages| pages.charge_anew(accounts, mm, &process))
        .collect::<Result<Vec<_>, Errno>>()?;
    all.iter().zip(charges).for_each(|(pages, charge)| pages.pay(charge));
    Ok(())
}
