//! I/O page faults: the queue, what is read from it and what is written to it.

abi_enum! {
    /// [`iommu_hwpt_pgfault::flags`].
    pub enum iommu_hwpt_pgfault_flags: u32 {
        /// `pasid` is valid.
        IOMMU_PGFAULT_FLAGS_PASID_VALID = 1 << 0,
        /// The last one of its group.
        IOMMU_PGFAULT_FLAGS_LAST_PAGE = 1 << 1,
    }

    /// [`iommu_hwpt_pgfault::perm`]: what the device wanted.
    pub enum iommu_hwpt_pgfault_perm: u32 {
        /// To read.
        IOMMU_PGFAULT_PERM_READ = 1 << 0,
        /// To write.
        IOMMU_PGFAULT_PERM_WRITE = 1 << 1,
        /// To execute (PCIe 10.4.1).
        IOMMU_PGFAULT_PERM_EXEC = 1 << 2,
        /// In privileged mode (PCIe 10.4.1).
        IOMMU_PGFAULT_PERM_PRIV = 1 << 3,
    }

    /// [`iommu_hwpt_page_response::code`].
    pub enum iommufd_page_response_code: u32 {
        /// It is mapped now: try again (PCI 10.4.2.1, "Success").
        IOMMUFD_PAGE_RESP_SUCCESS = 0,
        /// It cannot be: do not ("Invalid Request").
        IOMMUFD_PAGE_RESP_INVALID = 1,
    }
}

abi_struct! {
    /// A fault, as it is read from the queue.
    pub struct iommu_hwpt_pgfault {
        /// What is known of it.
        pub flags: u32 => flags(&iommu_hwpt_pgfault_flags).out(),
        /// The device.
        pub dev_id: u32 => ID.out(),
        /// The PASID.
        pub pasid: u32 => DECIMAL.out(),
        /// The index of its page request group.
        pub grpid: u32 => DECIMAL.out(),
        /// What the device wanted.
        pub perm: u32 => flags(&iommu_hwpt_pgfault_perm).out(),
        /// Zero.
        pub __reserved: u32 => RESERVED.out(),
        /// Where.
        pub addr: u64 => HEX.out(),
        /// Bytes that the device expects to use; 0 when it did not say.
        pub length: u32 => DECIMAL.out(),
        /// What the response to its group carries.
        pub cookie: u32 => DECIMAL.out(),
    }

    /// The answer to a group of faults, as it is written to the queue.
    pub struct iommu_hwpt_page_response {
        /// Which group.
        pub cookie: u32 => DECIMAL,
        /// What came of it.
        pub code: u32 => one_of(&[&iommufd_page_response_code]),
    }

    /// `IOMMU_FAULT_QUEUE_ALLOC`: makes a fault queue.
    pub struct iommu_fault_alloc {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Must be 0.
        pub flags: u32 => HEX,
        /// The new object.
        pub out_fault_id: u32 => ID.out(),
        /// The caller's new descriptor, to read faults and write answers.
        pub out_fault_fd: u32 => FD.out(),
    }
}
