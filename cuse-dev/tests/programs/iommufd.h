/* What the programs beside this have in common: the part of iommufd's uAPI that they use, calls that
 * have to succeed, and what /proc says. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define IOMMU_DESTROY 0x3b80
#define IOMMU_IOAS_ALLOC 0x3b81
#define IOMMU_IOAS_MAP 0x3b85
#define IOMMU_IOAS_UNMAP 0x3b86
#define IOMMU_HWPT_ALLOC 0x3b89
#define IOMMU_FAULT_QUEUE_ALLOC 0x3b8e
#define IOMMU_VIOMMU_ALLOC 0x3b90
#define IOMMU_VEVENTQ_ALLOC 0x3b93
#define IOMMU_TEST_CMD 0x3ba0

#define IOMMU_TEST_OP_MOCK_DOMAIN 2
#define IOMMU_TEST_OP_CREATE_ACCESS 5
#define IOMMU_TEST_OP_ACCESS_PAGES 7

/* A fixed IOVA, and a device that reads and writes. */
#define FIXED_WRITEABLE_READABLE 7
#define PAGE 4096ul
/* The first that mock devices reach. */
#define IOVA 0x1000000ul

struct alloc { uint32_t size, flags, id; };
struct destroy { uint32_t size, id; };
struct map { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; };
struct unmap { uint32_t size, ioas; uint64_t iova, length; };
struct fault_queue { uint32_t size, flags, id, fd; };
/* Of IOMMU_TEST_CMD: what is in the words depends on the operation. */
struct test {
    uint32_t size, op, id, reserved;
    union { uint32_t word[14]; uint64_t quad[7]; };
};

/* Without the handlers of exit, as threads and children of vfork come here, too. */
#define CHECK(what)                                                                          \
    do {                                                                                     \
        if (!(what)) {                                                                       \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, strerror(errno));          \
            _exit(1);                                                                        \
        }                                                                                    \
    } while (0)

static inline int open_iommu(void)
{
    int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static inline uint32_t alloc(int fd)
{
    struct alloc alloc = { .size = sizeof(alloc) };
    CHECK(ioctl(fd, IOMMU_IOAS_ALLOC, &alloc) == 0);
    return alloc.id;
}

static inline int try_destroy(int fd, uint32_t id)
{
    struct destroy destroy = { .size = sizeof(destroy), .id = id };
    return ioctl(fd, IOMMU_DESTROY, &destroy);
}

static inline int try_map(int fd, uint32_t ioas, void *at, uint64_t length, uint64_t iova)
{
    struct map map = { sizeof(map), FIXED_WRITEABLE_READABLE, ioas, 0, (uintptr_t)at, length, iova };
    return ioctl(fd, IOMMU_IOAS_MAP, &map);
}

static inline int try_unmap(int fd, uint32_t ioas, uint64_t length, uint64_t iova)
{
    struct unmap unmap = { sizeof(unmap), ioas, iova, length };
    return ioctl(fd, IOMMU_IOAS_UNMAP, &unmap);
}

/* A mock device that is attached to the IOAS: its id. */
static inline uint32_t mock_device(int fd, uint32_t ioas)
{
    struct test test = { .size = sizeof(test), .op = IOMMU_TEST_OP_MOCK_DOMAIN, .id = ioas };
    CHECK(ioctl(fd, IOMMU_TEST_CMD, &test) == 0);
    return test.word[2];
}

/* KiB that the kernel says are pinned for this process. */
static inline long pinned_kib(void)
{
    char line[256];
    long kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    while (fgets(line, sizeof(line), status))
        sscanf(line, "VmPin: %ld", &kib);
    fclose(status);
    return kib;
}

static inline void succeeds(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (status)
        fprintf(stderr, "a child ended with %#x\n", status);
    CHECK(status == 0);
}
