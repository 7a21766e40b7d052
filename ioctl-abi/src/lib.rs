//! The Linux iommufd uAPI: structs, commands, decoding and printing.
#![no_std]
