/* What a node by CUSE or FUSE cannot do alone, one thing for each argument: mmap of an iommufd, a read
 * of no bytes, VmPin. Exits with 0 when all went as with the kernel. */
#include "iommufd.h"

#include <sys/mman.h>

/* Bytes of the region that a mock vIOMMU has to map. */
#define LENGTH 8192
#define SELFTEST_VIOMMU 0xdeadbeef
#define SELFTEST_VEVENTQ 0xbeefbeef

static int fd;
static uint32_t ioas, device, viommu;
static struct { uint32_t in, out; uint64_t offset, length; } data = { .in = 0x1234 };

static void call(unsigned int command, void *argument)
{
    CHECK(ioctl(fd, command, argument) == 0);
}

static int destroy(uint32_t id)
{
    return try_destroy(fd, id);
}

/* A mock device whose vIOMMU has two pages to map. */
static void set_up(void)
{
    fd = open_iommu();
    ioas = alloc(fd);
    device = mock_device(fd, ioas);
}

static void set_up_viommu(void)
{
    struct { uint32_t size, flags, type, device, hwpt, id, length, reserved; uint64_t data; } alloc = {
        sizeof(alloc), 0, SELFTEST_VIOMMU, 0, 0, 0, sizeof(data), 0, (uintptr_t)&data };
    uint32_t hwpt[12] = { 48, 1 };

    set_up();
    hwpt[2] = alloc.device = device;
    hwpt[3] = ioas;
    call(IOMMU_HWPT_ALLOC, hwpt);
    alloc.hwpt = hwpt[4];
    call(IOMMU_VIOMMU_ALLOC, &alloc);
    viommu = alloc.id;
}

static void *map_at(uint64_t offset, size_t length, int rights, int flags)
{
    return mmap(NULL, length, rights, flags, fd, offset);
}

static void maps(void)
{
    const int rw = PROT_READ | PROT_WRITE;
    uint32_t *page, *again;

    set_up_viommu();
    CHECK(data.offset && data.length == LENGTH);
    CHECK(map_at(0, LENGTH, rw, MAP_SHARED) == MAP_FAILED && errno == ENXIO);
    CHECK(map_at(data.offset, 4096, rw, MAP_SHARED) == MAP_FAILED && errno == ENXIO);
    CHECK(map_at(data.offset, LENGTH, rw, MAP_PRIVATE) == MAP_FAILED && errno == EINVAL);
    CHECK(map_at(data.offset, LENGTH, rw | PROT_EXEC, MAP_SHARED) == MAP_FAILED && errno == EPERM);
    CHECK(data.out == 0x1234);

    page = map_at(data.offset, LENGTH, rw, MAP_SHARED);
    CHECK(page != MAP_FAILED && page[0] == 0x1234);
    page[1] = 0x5678;
    again = map_at(data.offset, LENGTH, PROT_READ, MAP_SHARED);
    CHECK(again != MAP_FAILED && again != page && again[1] == 0x5678);
    /* At a place of the caller's. */
    CHECK(mmap(again, LENGTH, rw, MAP_SHARED | MAP_FIXED, fd, data.offset) == again);
    CHECK(again[1] == 0x5678);
    /* The next descriptor is the lowest one: none was left. */
    int next = dup(fd);
    CHECK(next == fd + 1);

    CHECK(destroy(viommu) == -1 && errno == EBUSY);
    CHECK(munmap(page, LENGTH) == 0);
    CHECK(destroy(viommu) == -1 && errno == EBUSY);
    CHECK(munmap(again, LENGTH) == 0);
    CHECK(destroy(viommu) == 0);
    CHECK(map_at(data.offset, LENGTH, rw, MAP_SHARED) == MAP_FAILED && errno == ENXIO);
    /* Files of others are mapped as ever. */
    int zero = open("/dev/zero", O_RDWR);
    CHECK(zero >= 0 && mmap(NULL, 4096, rw, MAP_SHARED, zero, 0) != MAP_FAILED);
}

static void nothing(void)
{
    uint32_t queue[8] = { 32, 0, 0, SELFTEST_VEVENTQ, 2 };
    char byte;

    set_up_viommu();
    queue[2] = viommu;
    call(IOMMU_VEVENTQ_ALLOC, queue);
    CHECK(read(queue[6], &byte, 0) == -1 && errno == EINVAL);
    CHECK(write(queue[6], &byte, 0) == -1 && errno == EINVAL);
}

static void pins(void)
{
    long before = pinned_kib();
    char *memory = mmap(NULL, 16 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    set_up();
    CHECK(try_map(fd, ioas, memory, 16 * PAGE, IOVA) == 0);
    CHECK(pinned_kib() - before == 64);
    CHECK(try_unmap(fd, ioas, 16 * PAGE, IOVA) == 0);
    CHECK(pinned_kib() == before);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "maps"))
        maps();
    else if (argc > 1 && !strcmp(argv[1], "nothing"))
        nothing();
    else if (argc > 1 && !strcmp(argv[1], "pins"))
        pins();
    else
        CHECK(!"a known argument");
    return 0;
}
