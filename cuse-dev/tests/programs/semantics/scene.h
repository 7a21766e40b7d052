/* Where rows play: an IOAS, an access and a mock device, and what is mapped there. */

#define HUGE (2ul << 20)
#define SKIPPED 77

enum { READABLE = 4, WRITEABLE = 2, FIXED = 1 };
enum { OP_MOCK_DOMAIN = 2, OP_CHECK_MAP = 3, OP_CREATE_ACCESS = 5, OP_DESTROY_ACCESS_PAGES = 6, OP_ACCESS_PAGES = 7,
       OP_ACCESS_RW = 8 };
enum { RW_WRITE = 1, RW_SLOW = 4 };

struct map_file { uint32_t size, flags, ioas; int32_t fd; uint64_t start, length, iova; };
struct copy { uint32_t size, flags, to, from; uint64_t length, to_iova, from_iova; };
struct option { uint32_t size, id; uint16_t op, reserved; uint32_t object; uint64_t value; };

static int iommu;            /* the iommufd */
static uint32_t ioas, stdev; /* where scenarios map, and the device that is attached to it */
static uint32_t hwpt;        /* the last device's */
static int access_fd = -1;
static uint32_t idev;

static int call(int number, void *argument) { return ioctl(iommu, 0x3b00 | number, argument); }

static int destroy(uint32_t id) { return try_destroy(iommu, id); }

static int try_device(uint32_t of, uint32_t *stdev_id, uint32_t *idev_id)
{
    struct test test = { .size = sizeof(test), .op = OP_MOCK_DOMAIN, .id = of };
    if (call(0xa0, &test) != 0)
        return -1;
    *stdev_id = test.word[0];
    hwpt = test.word[1];
    *idev_id = test.word[2];
    return 0;
}

static void new_access(uint32_t of)
{
    struct test test = { .size = sizeof(test), .op = OP_CREATE_ACCESS, .id = of };
    test.word[1] = 1; /* it may pin */
    CHECK(call(0xa0, &test) == 0);
    access_fd = test.word[0];
}

/* An IOAS with an access, and without a device. */
static void begin_without_device(void)
{
    iommu = open("/dev/iommu", O_RDWR);
    CHECK(iommu >= 0);
    ioas = alloc(iommu);
    new_access(ioas);
}

static void begin(void)
{
    begin_without_device();
    CHECK(try_device(ioas, &stdev, &idev) == 0);
}

static int try_map_at(uint32_t in, void *va, size_t length, uint64_t iova, int flags)
{
    struct map map = { sizeof(map), flags | FIXED, in, 0, (uint64_t)va, length, iova };
    return call(0x85, &map);
}

static int try_map_here(void *va, size_t length, int flags) { return try_map_at(ioas, va, length, IOVA, flags); }

static int by_file;        /* map the file, not where it is mapped */
static int memory_fd = -1; /* the file */

static void map(void *va, size_t length)
{
    if (by_file) {
        struct map_file file = { sizeof(file), READABLE | WRITEABLE | FIXED, ioas, memory_fd, 0,
                                 length, IOVA };
        CHECK(call(0x8f, &file) == 0);
    } else {
        CHECK(try_map_here(va, length, READABLE | WRITEABLE) == 0);
    }
}

static void unmap_in(uint32_t in, uint64_t iova, size_t length)
{
    struct unmap unmap = { sizeof(unmap), in, iova, length };
    CHECK(call(0x86, &unmap) == 0);
}

static void unmap(size_t length) { unmap_in(ioas, IOVA, length); }
