//! Driver-specific data that a command points to: one struct, or an array of them.
//!
//! The engine passes on where the data lies and of which type the user says it is; only the driver
//! knows the struct. The rules are the kernel's: the type must be the one that the driver wants,
//! the user's struct may be older (shorter, down to the least length that makes sense) and is
//! then extended with zeros, but it may not be longer than the driver's. All of these are
//! `EINVAL`; a bad pointer is `EFAULT`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Errno;
use crate::memory::AddressSpace;

/// One struct of the driver, in the caller's memory.
#[derive(Clone, Copy)]
pub struct UserData<'a> {
    memory: &'a dyn AddressSpace,
    data_type: u32,
    address: u64,
    length: u32,
}

impl<'a> UserData<'a> {
    /// The `length` bytes at `address`, which the user calls a `data_type`.
    pub fn new(memory: &'a dyn AddressSpace, data_type: u32, address: u64, length: u32) -> Self {
        Self { memory, data_type, address, length }
    }

    /// What the user says it is.
    pub fn data_type(&self) -> u32 {
        self.data_type
    }

    /// Bytes that the user gave.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Copies the struct from the caller. `least` is the smallest length that the driver takes,
    /// the end of the last field of the struct's first version.
    pub fn read<T>(&self, data_type: u32, least: usize) -> Result<T, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        if self.data_type != data_type {
            return Err(Errno::EINVAL);
        }
        read_struct(self.memory, self.address, self.length as usize, least)
    }

    /// Copies `value` back to the caller, as much of it as the user's struct holds. `least` as in
    /// [`UserData::read`].
    pub fn write<T>(&self, data_type: u32, value: &T, least: usize) -> Result<(), Errno>
    where
        T: IntoBytes + Immutable,
    {
        let bytes = value.as_bytes();
        if self.data_type != data_type || (self.length as usize) < least {
            return Err(Errno::EINVAL);
        }
        self.memory.write(self.address, &bytes[..bytes.len().min(self.length as usize)])
    }
}

/// An array of structs of the driver, in the caller's memory.
#[derive(Clone, Copy)]
pub struct UserArray<'a> {
    memory: &'a dyn AddressSpace,
    data_type: u32,
    address: u64,
    entry_length: u32,
    entries: u32,
}

impl<'a> UserArray<'a> {
    /// `entries` structs of `entry_length` bytes from `address`.
    pub fn new(
        memory: &'a dyn AddressSpace,
        data_type: u32,
        address: u64,
        entry_length: u32,
        entries: u32,
    ) -> Self {
        Self { memory, data_type, address, entry_length, entries }
    }

    /// What the user says the entries are.
    pub fn data_type(&self) -> u32 {
        self.data_type
    }

    /// How many entries there are.
    pub fn len(&self) -> u32 {
        self.entries
    }

    /// Whether there is none: then the user only asks whether the type is known.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Copies entry `index` from the caller. `least` as in [`UserData::read`].
    pub fn read<T>(&self, data_type: u32, index: u32, least: usize) -> Result<T, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        if self.data_type != data_type || index >= self.entries {
            return Err(Errno::EINVAL);
        }
        let offset = u64::from(index) * u64::from(self.entry_length);
        let address = self.address.checked_add(offset).ok_or(Errno::EFAULT)?;
        read_struct(self.memory, address, self.entry_length as usize, least)
    }

    /// Copies all entries from the caller at once. Here an entry of any length will do: what it
    /// lacks is zero, and what it has more must be zero (`E2BIG`).
    pub fn read_all<T>(&self, data_type: u32) -> Result<Vec<T>, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        if self.data_type != data_type {
            return Err(Errno::EINVAL);
        }
        let (length, wanted) = (self.entry_length as usize, size_of::<T>());
        let mut bytes = vec![0; length];
        let mut all = Vec::with_capacity(self.entries as usize);
        for index in 0..u64::from(self.entries) {
            let offset = index * u64::from(self.entry_length);
            let address = self.address.checked_add(offset).ok_or(Errno::EFAULT)?;
            self.memory.read(address, &mut bytes)?;
            if bytes.get(wanted..).is_some_and(|tail| tail.iter().any(|&byte| byte != 0)) {
                return Err(Errno::E2BIG);
            }
            let mut value = T::new_zeroed();
            value.as_mut_bytes()[..length.min(wanted)]
                .copy_from_slice(&bytes[..length.min(wanted)]);
            all.push(value);
        }
        Ok(all)
    }
}

fn read_struct<T>(
    memory: &dyn AddressSpace,
    address: u64,
    length: usize,
    least: usize,
) -> Result<T, Errno>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let mut value = T::new_zeroed();
    let into = value.as_mut_bytes();
    if length < least || length > into.len() {
        return Err(Errno::EINVAL);
    }
    memory.read(address, &mut into[..length])?;
    Ok(value)
}
