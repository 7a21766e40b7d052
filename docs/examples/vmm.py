#!/usr/bin/env python3
"""A VMM with a bug, for docs/debugging-dma.md: guest memory is given back behind the device's back.

It maps RAM and a ROM for a (mock) device, then puts new memory where some of the RAM was, without
unmapping it from the IOAS first, and waits until standard input ends.
"""
import ctypes, fcntl, mmap, os, struct, sys

PAGE = 4096
READABLE, WRITEABLE, FIXED = 4, 2, 1

iommu = os.open("/dev/iommu", os.O_RDWR)


def call(number, form, *values):
    argument = bytearray(struct.pack(form, struct.calcsize(form), *values))
    fcntl.ioctl(iommu, 0x3B00 | number, argument, True)
    return struct.unpack(form, argument)


def memory(pages, flags):
    area = mmap.mmap(-1, pages * PAGE, flags=flags | mmap.MAP_ANONYMOUS)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


ram, ram_at = memory(1024, mmap.MAP_PRIVATE)
rom, rom_at = memory(16, mmap.MAP_SHARED)
ram.write(b"guest memory")
rom.write(b"option ROM")

ioas = call(0x81, "=III", 0, 0)[2]  # IOMMU_IOAS_ALLOC
# IOMMU_TEST_CMD, IOMMU_TEST_OP_MOCK_DOMAIN: a device of the selftest's, attached to the IOAS
handle, hwpt, device = call(0xA0, "=IIII3I36x8x", 2, ioas, 0, 0, 0, 0)[4:7]
for at, pages, iova, rights in (
    (ram_at, 1024, 0x1000000, READABLE | WRITEABLE),
    (rom_at, 16, 0x8000000, READABLE),
):  # IOMMU_IOAS_MAP
    call(0x85, "=IIIIQQQ", rights | FIXED, ioas, 0, at, pages * PAGE, iova)

# The bug: a "balloon" that maps fresh pages over 4 of the guest's, at 0x1005000 as the device sees them.
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mmap(ram_at + 5 * PAGE, 4 * PAGE, 3, 0x32, -1, 0)  # MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED
ctypes.memset(ram_at + 5 * PAGE, ord("N"), 16)

print(f"device {device}: RAM at 0x1000000, ROM at 0x8000000", flush=True)
sys.stdin.read()
