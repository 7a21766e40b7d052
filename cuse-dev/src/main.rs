//! The softiommu program.

fn main() {}
