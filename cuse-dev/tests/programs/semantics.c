/* What becomes of memory that a device uses, when its process does this or that with it. One
 * scenario for each argument `ROW`, `ROW:KIND` or `ROW:KIND:file` (by IOMMU_IOAS_MAP_FILE); exits
 * with 0 when all is as with Linux's iommufd, 77 where the machine lacks what the row needs.
 *
 * Bytes are looked at through an access, and through DMA of the mock device when the environment
 * names a control socket (SEMANTICS_CONTROL). Without one it runs on the real kernel, too (with
 * CONFIG_IOMMUFD_TEST), which is where the expectations come from. */
#include "iommufd.h"

#include <glob.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/vfs.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define HUGE (2ul << 20)
#define SKIPPED 77

enum { READABLE = 4, WRITEABLE = 2, FIXED = 1 };
enum { OP_MOCK_DOMAIN = 2, OP_CREATE_ACCESS = 5, OP_DESTROY_ACCESS_PAGES = 6, OP_ACCESS_PAGES = 7,
       OP_ACCESS_RW = 8 };
enum { RW_WRITE = 1, RW_SLOW = 4 };

struct map_file { uint32_t size, flags, ioas; int32_t fd; uint64_t start, length, iova; };
struct copy { uint32_t size, flags, to, from; uint64_t length, to_iova, from_iova; };
struct option { uint32_t size, id; uint16_t op, reserved; uint32_t object; uint64_t value; };

static int iommu;            /* the iommufd */
static uint32_t ioas, stdev; /* where scenarios map, and the device that is attached to it */
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

/* ---- bytes, as devices see them ---- */

static int access_rw(uint64_t iova, void *bytes, size_t length, int flags)
{
    struct test test = { .size = sizeof(test), .op = OP_ACCESS_RW, .id = access_fd };
    test.quad[0] = iova;
    test.quad[1] = length;
    test.quad[2] = (uint64_t)bytes;
    test.word[6] = flags | RW_SLOW;
    return call(0xa0, &test);
}

/* One byte by an access, in a copy that touches two pages. (Within one page the kernel's access goes
 * by the process's address, and sees what is there now, not what is pinned.) */
static int access_byte(uint64_t iova, unsigned char *byte, int write)
{
    static unsigned char window[2 * PAGE];
    uint64_t page = iova & ~(PAGE - 1);
    int odd = (page - IOVA) / PAGE % 2;
    uint64_t from = odd ? page - 1 : iova;
    size_t at = iova - from, length = odd ? at + 1 : page + PAGE + 1 - from;
    if (access_rw(from, window, length, 0) != 0)
        return -1;
    if (!write) {
        *byte = window[at];
        return 0;
    }
    window[at] = *byte;
    return access_rw(from, window, length, RW_WRITE);
}

/* Asks the control socket. Answers 0, or -1 for a fault. */
static int ask(uint32_t device, const char *access, uint64_t iova, char *hex, size_t room)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char line[1024], *from, *to;
    size_t have = 0;
    ssize_t got;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", getenv("SEMANTICS_CONTROL"));
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    int length = snprintf(line, sizeof(line), "{\"ask\":\"dma\",\"device\":%u,\"iova\":%lu,%s}\n",
                          device, iova, access);
    CHECK(write(fd, line, length) == length);
    while (have < sizeof(line) - 1 && (got = read(fd, line + have, sizeof(line) - 1 - have)) > 0)
        have += got;
    line[have] = 0;
    close(fd);
    from = strstr(line, "\"bytes\":\"");
    if (!from || !strstr(line, "\"fault\":")) {
        fprintf(stderr, "the control socket says: %s\n", line);
        exit(1);
    }
    if (!strstr(line, "\"fault\":null"))
        return -1;
    from += strlen("\"bytes\":\"");
    to = strchr(from, '"');
    CHECK(to && (size_t)(to - from) < room);
    memcpy(hex, from, to - from);
    hex[to - from] = 0;
    return 0;
}

static int has_dma(void) { return getenv("SEMANTICS_CONTROL") != NULL; }

static int dma_read(uint32_t device, uint64_t iova, unsigned char *byte)
{
    char hex[64];
    if (ask(device, "\"access\":\"read\",\"length\":1", iova, hex, sizeof(hex)) != 0)
        return -1;
    *byte = strtoul(hex, NULL, 16);
    return 0;
}

static int dma_write(uint32_t device, uint64_t iova, unsigned char byte)
{
    char access[64], hex[64];
    snprintf(access, sizeof(access), "\"access\":\"write\",\"bytes\":\"%02x\"", byte);
    return ask(device, access, iova, hex, sizeof(hex));
}

/* The byte at `iova` is `expected` for every device. */
static void sees_(int line, uint64_t iova, unsigned char expected)
{
    unsigned char byte = ~expected;
    if (access_byte(iova, &byte, 0) != 0 || byte != expected) {
        fprintf(stderr, "line %d: an access sees %#x, not %#x (%s)\n", line, byte, expected,
                strerror(errno));
        exit(1);
    }
    if (!has_dma() || idev == 0)
        return;
    byte = ~expected;
    if (dma_read(idev, iova, &byte) != 0 || byte != expected) {
        fprintf(stderr, "line %d: DMA sees %#x, not %#x\n", line, byte, expected);
        exit(1);
    }
}
#define SEES(iova, expected) sees_(__LINE__, iova, expected)

/* A device writes: the access, or DMA where there is. */
static void puts_(int line, uint64_t iova, unsigned char byte)
{
    static int turn;
    int result;
    if (has_dma() && idev != 0 && turn++ % 2 == 0)
        result = dma_write(idev, iova, byte);
    else
        result = access_byte(iova, &byte, 1);
    if (result != 0) {
        fprintf(stderr, "line %d: a device cannot write (%s)\n", line, strerror(errno));
        exit(1);
    }
}
#define PUTS(iova, byte) puts_(__LINE__, iova, byte)

/* Both ways, twice, so that the access and DMA write. */
static void both_ways_(int line, volatile char *at, uint64_t iova)
{
    for (int i = 0; i < 2; i++) {
        *at = 'c' + i;
        sees_(line, iova, 'c' + i);
        puts_(line, iova, 'D' + i);
        if (*at != 'D' + i) {
            fprintf(stderr, "line %d: the process does not see what the device wrote\n", line);
            exit(1);
        }
        sees_(line, iova, 'D' + i);
    }
}
#define BOTH_WAYS(at, iova) both_ways_(__LINE__, at, iova)

/* The device's page is nobody's any more: it stays, and takes writes, which `at` (if any) does not
 * see. */
static void alone_(int line, volatile char *at, char there, uint64_t iova, char old)
{
    sees_(line, iova, old);
    for (int i = 0; i < 2; i++) {
        puts_(line, iova, 'w' + i);
        sees_(line, iova, 'w' + i);
        if (at && *at != there) {
            fprintf(stderr, "line %d: the process sees %#x, not %#x\n", line, *at, there);
            exit(1);
        }
    }
    if (at) {
        *at = 'n';
        sees_(line, iova, 'x');
    }
}
#define ALONE(at, there, iova, old) alone_(__LINE__, at, there, iova, old)

/* ---- memory ---- */

enum kind { ANON, THP, MEMFD, SHARED, HUGETLB, TMPFS };

static size_t unit(enum kind kind) { return kind == THP || kind == HUGETLB ? HUGE : PAGE; }

/* `units` pages of the kind, aligned to them; byte 0 of each 4K page is 'a'. */
static char *memory(enum kind kind, size_t units)
{
    size_t length = units * unit(kind);
    struct statfs system;
    char *at;
    switch (kind) {
    case ANON:
        at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        break;
    case SHARED:
        at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        break;
    case THP:
        at = mmap(NULL, length + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(at != MAP_FAILED);
        at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
        if (madvise(at, length, MADV_HUGEPAGE) != 0)
            exit(SKIPPED);
        break;
    case MEMFD:
        memory_fd = memfd_create("semantics", MFD_CLOEXEC);
        CHECK(memory_fd >= 0 && ftruncate(memory_fd, length) == 0);
        at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        break;
    case TMPFS:
        memory_fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (memory_fd < 0 || fstatfs(memory_fd, &system) != 0 || system.f_type != TMPFS_MAGIC)
            exit(SKIPPED);
        CHECK(ftruncate(memory_fd, length) == 0);
        at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        break;
    default:
        memory_fd = memfd_create("semantics", MFD_CLOEXEC | MFD_HUGETLB);
        if (memory_fd < 0 || ftruncate(memory_fd, length) != 0)
            exit(SKIPPED);
        at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        if (at == MAP_FAILED)
            exit(SKIPPED);
    }
    CHECK(at != MAP_FAILED);
    for (size_t page = 0; page < length; page += PAGE)
        at[page] = 'a';
    return at;
}

/* Pages that the kernel says are pinned for this process. */
static long pinned(void) { return pinned_kib() / 4; }

static int is_private(enum kind kind) { return kind == ANON || kind == THP; }

static pid_t forked(void)
{
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    return pid;
}

static int ended(pid_t pid)
{
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

/* ---- rows ---- */

static void row_live(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 4);
    begin();
    map(at, 4 * size);
    for (int i = 0; i < 4; i++) {
        BOTH_WAYS(at + i * size, IOVA + i * size);
        BOTH_WAYS(at + i * size + size - 1, IOVA + i * size + size - 1);
    }
    unmap(4 * size);
    CHECK(pinned() == 0);
}

static void row_untouched(enum kind kind)
{
    char *at = memory(kind, 4);
    CHECK(madvise(at, 4 * unit(kind), kind == ANON ? MADV_DONTNEED : MADV_REMOVE) == 0);
    begin();
    map(at, 4 * unit(kind));
    SEES(IOVA, 0);
    BOTH_WAYS(at, IOVA);
    BOTH_WAYS(at + 3 * PAGE, IOVA + 3 * PAGE);
}

static void row_munmap(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 2);
    begin();
    map(at, 2 * size);
    CHECK(munmap(at, 2 * size) == 0);
    ALONE(NULL, 0, IOVA, 'a');
    ALONE(NULL, 0, IOVA + size, 'a');
    unmap(2 * size);
    CHECK(pinned() == 0);
}

static void row_fixed(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 2);
    begin();
    map(at, 2 * size);
    char *over = mmap(at, 2 * size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(over == at);
    at[0] = 'm';
    at[size] = 'm';
    ALONE(at, 'm', IOVA, 'a');
    ALONE(at + size, 'm', IOVA + size, 'a');
}

static void row_mremap(enum kind kind)
{
    char *at = memory(kind, 2);
    begin();
    map(at, 2 * PAGE);
    char *hole = mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(hole != MAP_FAILED);
    char *now = mremap(at, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, hole);
    CHECK(now == hole);
    BOTH_WAYS(now, IOVA);
    BOTH_WAYS(now + PAGE, IOVA + PAGE);
    /* What comes to the old place is another's. */
    char *other = mmap(at, 2 * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(other == at);
    other[0] = 'o';
    BOTH_WAYS(now, IOVA);
    CHECK(other[0] == 'o');
}

static void row_dontneed(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 2);
    begin();
    map(at, 2 * size);
    CHECK(madvise(at, 2 * size, MADV_DONTNEED) == 0);
    if (is_private(kind)) {
        ALONE(at, 0, IOVA, 'a');
    } else {
        /* The file's pages are still those. */
        SEES(IOVA, 'a');
        BOTH_WAYS(at, IOVA);
    }
}

static void row_free(enum kind kind)
{
    char *at = memory(kind, 4);
    begin();
    map(at, 4 * unit(kind));
    CHECK(madvise(at, 4 * unit(kind), MADV_FREE) == 0);
    madvise(at, 4 * unit(kind), MADV_PAGEOUT);
    SEES(IOVA, 'a');
    CHECK(at[0] == 'a');
    BOTH_WAYS(at, IOVA);
    BOTH_WAYS(at + PAGE, IOVA + PAGE);
}

/* ---- the file loses a page ---- */

#define SECOND (IOVA + (64ul << 20))
#define THIRD (IOVA + (128ul << 20))

static char *lost_at;     /* where the pages are, of which the second goes */
static size_t lost_size;  /* bytes of one */
static size_t lost_total; /* bytes of all */

static void lose_by_remove(void)
{
    CHECK(madvise(lost_at + lost_size, lost_size, MADV_REMOVE) == 0);
}

static void lose_by_punch(void)
{
    int flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    CHECK(fallocate(memory_fd, flags, lost_size, lost_size) == 0);
}

static void lose_by_truncation(void)
{
    CHECK(ftruncate(memory_fd, lost_size) == 0);
    CHECK(ftruncate(memory_fd, lost_total) == 0);
}

/* A huge page that the machine does not have any more. */
static void no_page(int signal)
{
    (void)signal;
    _exit(SKIPPED);
}

/* Maps the page, and what comes after it. */
static void map_lost(uint64_t iova)
{
    char *at = lost_at + lost_size;
    size_t length = lost_total - lost_size;
    if (by_file) {
        struct map_file file = { sizeof(file), READABLE | WRITEABLE | FIXED, ioas, memory_fd,
                                 lost_size, length, iova };
        CHECK(call(0x8f, &file) == 0);
    } else {
        CHECK(try_map_at(ioas, at, length, iova, READABLE | WRITEABLE) == 0);
    }
}

static void begin_to_lose(enum kind kind)
{
    /* Two pages of 4 KiB in each map, as an access looks at two. */
    size_t pages = kind == HUGETLB ? 2 : 3;
    lost_size = unit(kind);
    lost_total = pages * lost_size;
    lost_at = memory(kind, pages);
    if (kind == HUGETLB)
        signal(SIGBUS, no_page);
    begin();
    map(lost_at, lost_total);
}

/* Whoever has mapped the page has it still, and it is one page; who maps it later gets the file's. */
static void row_lose(enum kind kind, void (*lose)(void))
{
    begin_to_lose(kind);
    char *at = lost_at + lost_size;
    uint64_t iova = IOVA + lost_size;
    map_lost(SECOND);
    lose();
    ALONE(at, 0, iova, 'a');
    SEES(SECOND, 'x');
    PUTS(SECOND, '1');
    PUTS(SECOND, '2');
    SEES(iova, '2');
    CHECK(*at == 'n');
    SEES(iova + lost_size - 1, 0);
    BOTH_WAYS(lost_at, IOVA);
    unmap_in(ioas, SECOND, lost_total - lost_size);
    map_lost(THIRD);
    BOTH_WAYS(at, THIRD);
    SEES(iova, '2');
    /* And once more. */
    *at = 'b';
    lose();
    ALONE(at, 0, THIRD, 'b');
    SEES(iova, '2');
    BOTH_WAYS(lost_at, IOVA);
    unmap(lost_total);
    SEES(THIRD, 'x');
    unmap_in(ioas, THIRD, lost_total - lost_size);
    CHECK(by_file || pinned() == 0);
}

static void row_remove(enum kind kind) { row_lose(kind, lose_by_remove); }
static void row_punch(enum kind kind) { row_lose(kind, lose_by_punch); }
static void row_truncate(enum kind kind) { row_lose(kind, lose_by_truncation); }

/* All of the file goes, and the device goes on while there is none. */
static void row_truncate_all(enum kind kind)
{
    begin_to_lose(kind);
    CHECK(ftruncate(memory_fd, 0) == 0);
    ALONE(NULL, 0, IOVA, 'a');
    ALONE(NULL, 0, IOVA + lost_size, 'a');
    CHECK(ftruncate(memory_fd, lost_total) == 0);
    ALONE(lost_at, 0, IOVA, 'x');
    ALONE(lost_at + lost_size, 0, IOVA + lost_size, 'x');
    map_lost(SECOND);
    BOTH_WAYS(lost_at + lost_size, SECOND);
    SEES(IOVA + lost_size, 'x');
}

/* Parent and child each write. The device's page stays the parent's. */
static void row_fork(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 2);
    int go[2], done[2];
    char byte;
    begin();
    map(at, 2 * size);
    CHECK(pipe(go) == 0 && pipe(done) == 0);
    pid_t child = forked();
    if (child == 0) {
        CHECK(at[0] == 'a' && at[size] == 'a');
        at[0] = 'k';
        CHECK(write(done[1], "", 1) == 1 && read(go[0], &byte, 1) == 1);
        if (is_private(kind))
            CHECK(at[0] == 'k' && at[size] == 'a');
        else
            CHECK(at[0] == 'E' && at[size] == 'E');
        _exit(0);
    }
    CHECK(read(done[0], &byte, 1) == 1);
    SEES(IOVA, is_private(kind) ? 'a' : 'k');
    CHECK(at[0] == (is_private(kind) ? 'a' : 'k'));
    BOTH_WAYS(at, IOVA);
    BOTH_WAYS(at + size, IOVA + size);
    CHECK(write(go[1], "", 1) == 1);
    CHECK(ended(child) == 0);
    BOTH_WAYS(at, IOVA);
}

/* Mapped while a child shares the pages: a device that may write gets the parent's own. */
static void row_cow(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 2);
    int go[2];
    char byte;
    begin();
    CHECK(pipe(go) == 0);
    pid_t child = forked();
    if (child == 0) {
        CHECK(read(go[0], &byte, 1) == 1);
        CHECK(at[0] == 'a' && at[size] == 'a');
        _exit(0);
    }
    map(at, 2 * size);
    BOTH_WAYS(at, IOVA);
    PUTS(IOVA + size, 'q');
    PUTS(IOVA + size, 'r');
    CHECK(at[size] == 'r');
    CHECK(write(go[1], "", 1) == 1);
    CHECK(ended(child) == 0);
}

/* A device that may only read shares no page that the process then leaves behind. */
static void row_cow_read(enum kind kind)
{
    char *at = memory(kind, 2);
    int go[2];
    char byte;
    begin();
    CHECK(pipe(go) == 0);
    pid_t child = forked();
    if (child == 0) {
        CHECK(read(go[0], &byte, 1) == 1);
        CHECK(at[0] == 'a');
        _exit(0);
    }
    CHECK(try_map_here(at, 2 * unit(kind), READABLE) == 0);
    at[0] = 'p';
    SEES(IOVA, 'p');
    CHECK(write(go[1], "", 1) == 1);
    CHECK(ended(child) == 0);
}

/* A private mapping of a file: what a device writes is the process's, not the file's. */
static void row_private_file(void)
{
    char byte;
    int fd = memfd_create("file", 0);
    CHECK(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0 && pwrite(fd, "f", 1, 0) == 1);
    char *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(at != MAP_FAILED);
    begin();
    map(at, 2 * PAGE);
    SEES(IOVA, 'f');
    BOTH_WAYS(at, IOVA);
    CHECK(pread(fd, &byte, 1, 0) == 1 && byte == 'f');
}

static void row_mprotect(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 2);
    begin();
    map(at, 2 * size);
    CHECK(mprotect(at, size, PROT_READ) == 0);
    PUTS(IOVA, 'r');
    PUTS(IOVA, 's');
    CHECK(at[0] == 's');
    CHECK(mprotect(at, size, PROT_NONE) == 0);
    SEES(IOVA, 's');
    PUTS(IOVA, 't');
    PUTS(IOVA, 'u');
    CHECK(mprotect(at, size, PROT_READ | PROT_WRITE) == 0);
    CHECK(at[0] == 'u');
    BOTH_WAYS(at, IOVA);
}

static void row_collapse(void)
{
    char *at = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
    madvise(at, HUGE, MADV_NOHUGEPAGE);
    memset(at, 'a', HUGE);
    begin();
    map(at, HUGE);
    madvise(at, HUGE, MADV_HUGEPAGE);
    madvise(at, HUGE, MADV_COLLAPSE); /* pinned pages stay where they are */
    SEES(IOVA, 'a');
    BOTH_WAYS(at, IOVA);
    BOTH_WAYS(at + HUGE - PAGE, IOVA + HUGE - PAGE);
}

static void row_split(void)
{
    char *at = memory(THP, 1);
    begin();
    map(at, HUGE);
    CHECK(mprotect(at + PAGE, PAGE, PROT_READ) == 0);
    CHECK(madvise(at + 2 * PAGE, PAGE, MADV_DONTNEED) == 0);
    CHECK(munmap(at + 3 * PAGE, PAGE) == 0);
    BOTH_WAYS(at, IOVA);
    SEES(IOVA + PAGE, 'a');
    ALONE(at + 2 * PAGE, 0, IOVA + 2 * PAGE, 'a');
    ALONE(NULL, 0, IOVA + 3 * PAGE, 'a');
    BOTH_WAYS(at + HUGE - PAGE, IOVA + HUGE - PAGE);
}

static void row_pageout(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 4);
    begin();
    map(at, 4 * size);
    for (int i = 0; i < 3; i++) {
        madvise(at, 4 * size, MADV_PAGEOUT);
        BOTH_WAYS(at, IOVA);
        BOTH_WAYS(at + 3 * size, IOVA + 3 * size);
    }
}

/* The memory's process ends in one way or the other; another has the iommufd. */
static void row_ends(enum kind kind, int signal)
{
    int ready[2];
    char byte;
    begin();
    CHECK(pipe(ready) == 0);
    pid_t child = forked();
    if (child == 0) {
        char *at = memory(kind, 2);
        map(at, 2 * unit(kind));
        BOTH_WAYS(at, IOVA);
        at[0] = 'e';
        CHECK(write(ready[1], "", 1) == 1);
        if (signal == 0)
            _exit(0);
        pause();
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    if (signal)
        kill(child, signal);
    int status = ended(child);
    CHECK(signal ? WTERMSIG(status) == signal : status == 0);
    ALONE(NULL, 0, IOVA, 'e');
    ALONE(NULL, 0, IOVA + unit(kind), 'a');
    unmap(2 * unit(kind));
}

static void row_exec(enum kind kind, char **argv)
{
    char state[128];
    char *at = memory(kind, 2);
    begin();
    map(at, 2 * unit(kind));
    at[0] = 'e';
    CHECK(fcntl(access_fd, F_SETFD, 0) == 0);
    snprintf(state, sizeof(state), "%d %u %u %u %d %zu", iommu, ioas, stdev, idev, access_fd,
             unit(kind));
    execl(argv[0], argv[0], "executed", state, NULL);
    CHECK(0);
}

static void executed(const char *state)
{
    size_t size;
    CHECK(sscanf(state, "%d %u %u %u %d %zu", &iommu, &ioas, &stdev, &idev, &access_fd, &size) == 6);
    ALONE(NULL, 0, IOVA, 'e');
    ALONE(NULL, 0, IOVA + size, 'a');
    unmap(2 * size);
    /* The new program maps its own. */
    char *at = memory(ANON, 2);
    map(at, 2 * PAGE);
    BOTH_WAYS(at, IOVA);
}

static void row_read_only(void)
{
    char *at = memory(ANON, 2);
    begin();
    CHECK(try_map_here(at, 2 * PAGE, READABLE) == 0);
    SEES(IOVA, 'a');
    at[0] = 'b';
    SEES(IOVA, 'b');
    char byte = 'x';
    CHECK(access_rw(IOVA, &byte, 1, RW_WRITE) == -1 && errno == EPERM);
    CHECK(!has_dma() || dma_write(idev, IOVA, 'x') == -1);
    CHECK(at[0] == 'b');
    unmap(2 * PAGE);
    /* Memory that the process itself may only read. */
    CHECK(mprotect(at, 2 * PAGE, PROT_READ) == 0);
    CHECK(try_map_here(at, 2 * PAGE, READABLE | WRITEABLE) == -1 && errno == EFAULT);
    CHECK(pinned() == 0);
    CHECK(try_map_here(at, 2 * PAGE, READABLE) == 0);
    SEES(IOVA, 'b');
    CHECK(!has_dma() || dma_write(idev, IOVA, 'x') == -1);
    unmap(2 * PAGE);
    /* Memory that it may not read. */
    CHECK(mprotect(at, 2 * PAGE, PROT_NONE) == 0);
    CHECK(try_map_here(at, 2 * PAGE, READABLE) == -1 && errno == EFAULT);
    CHECK(pinned() == 0);
}

static void row_half_way(enum kind kind)
{
    char *at = memory(kind, 4);
    begin();
    CHECK(munmap(at + 2 * PAGE, PAGE) == 0);
    CHECK(try_map_here(at, 4 * PAGE, READABLE | WRITEABLE) == -1 && errno == EFAULT);
    CHECK(pinned() == 0);
    map(at, 2 * PAGE);
    CHECK(pinned() == 2);
    BOTH_WAYS(at, IOVA);
    unmap(2 * PAGE);
    CHECK(pinned() == 0);
}

/* Frames that no struct page stands for cannot be pinned. */
static char *io_memory(void)
{
    glob_t found;
    int fd = open("/dev/mem", O_RDWR);
    char *at = fd < 0 ? MAP_FAILED
                      : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0xfee00000);
    if (at != MAP_FAILED || glob("/sys/bus/pci/devices/*/resource[0-5]", 0, NULL, &found) != 0)
        return at;
    for (size_t i = 0; i < found.gl_pathc && at == MAP_FAILED; i++) {
        fd = open(found.gl_pathv[i], O_RDWR);
        if (fd >= 0)
            at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    return at;
}

static void row_io_memory(void)
{
    char *at = io_memory();
    if (at == MAP_FAILED)
        exit(SKIPPED);
    begin();
    CHECK(try_map_here(at, PAGE, READABLE | WRITEABLE) == -1 && errno == EFAULT);
    CHECK(try_map_here(at, PAGE, READABLE) == -1 && errno == EFAULT);
    CHECK(pinned() == 0);
}

static void row_read_only_file(void)
{
    char path[64];
    int fd = memfd_create("file", 0);
    CHECK(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int read_only = open(path, O_RDONLY);
    CHECK(read_only >= 0);
    char *at = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, read_only, 0);
    CHECK(at != MAP_FAILED);
    begin();
    CHECK(try_map_here(at, 2 * PAGE, READABLE | WRITEABLE) == -1 && errno == EFAULT);
    CHECK(try_map_here(at, 2 * PAGE, READABLE) == 0);
    CHECK(pwrite(fd, "z", 1, 0) == 1);
    SEES(IOVA, 'z');
    unmap(2 * PAGE);
    struct map_file file = { sizeof(file), READABLE | FIXED, ioas, read_only, 0, 2 * PAGE, IOVA };
    CHECK(call(0x8f, &file) == 0);
    SEES(IOVA, 'z');
    unmap(2 * PAGE);
}

/* Two areas of one mapping, an access and two domains: one pin, until the last goes. */
static void row_once(enum kind kind)
{
    size_t size = 4 * PAGE;
    char *at = memory(kind, 4);
    uint32_t second = 0, stdev2, idev2, idev1;
    begin();
    second = alloc(iommu);
    CHECK(try_device(second, &stdev2, &idev2) == 0);
    map(at, size);
    CHECK(pinned() == 4);
    struct copy copy = { sizeof(copy), READABLE | WRITEABLE | FIXED, second, ioas, size, IOVA, IOVA };
    CHECK(call(0x83, &copy) == 0);
    CHECK(pinned() == 4);
    copy.to = ioas;
    copy.to_iova = IOVA + HUGE;
    CHECK(call(0x83, &copy) == 0);
    CHECK(pinned() == 4);
    struct test pin = { .size = sizeof(pin), .op = OP_ACCESS_PAGES, .id = access_fd };
    pin.quad[1] = IOVA + HUGE;
    pin.quad[2] = 2 * PAGE;
    pin.quad[3] = (uint64_t)at;
    CHECK(call(0xa0, &pin) == 0);
    CHECK(pinned() == 4);
    BOTH_WAYS(at, IOVA);
    BOTH_WAYS(at, IOVA + HUGE);
    CHECK(munmap(at, size) == 0);
    unmap(size);
    CHECK(pinned() == 4);
    ALONE(NULL, 0, IOVA + HUGE, 'E');
    struct test unpin = { .size = sizeof(unpin), .op = OP_DESTROY_ACCESS_PAGES, .id = access_fd };
    unpin.word[0] = pin.word[1];
    CHECK(call(0xa0, &unpin) == 0);
    unmap_in(ioas, IOVA + HUGE, size);
    CHECK(pinned() == 4);
    idev1 = idev;
    idev = idev2;
    if (has_dma()) {
        unsigned char byte;
        CHECK(dma_read(idev2, IOVA, &byte) == 0 && byte == 'x');
        CHECK(dma_read(idev1, IOVA, &byte) == -1);
    }
    unmap_in(second, IOVA, size);
    CHECK(pinned() == 0);
}

/* A domain that comes late takes the pages that are pinned, whatever is at the address now. */
static void row_late_domain(enum kind kind)
{
    uint32_t stdev2, idev2;
    char *at = memory(kind, 4);
    begin();
    map(at, 4 * PAGE);
    CHECK(munmap(at, 4 * PAGE) == 0);
    CHECK(try_device(ioas, &stdev2, &idev2) == 0);
    idev = idev2;
    ALONE(NULL, 0, IOVA + PAGE, 'a');
    CHECK(pinned() == 4);
    CHECK(destroy(stdev) == 0);
    CHECK(pinned() == 4);
    ALONE(NULL, 0, IOVA + PAGE, 'x');
    CHECK(destroy(stdev2) == 0);
    CHECK(pinned() == 0);
    idev = 0;
}

static void row_late_after_access(enum kind kind)
{
    char *at = memory(kind, 4);
    begin_without_device();
    map(at, 4 * PAGE);
    CHECK(pinned() == 0);
    struct test pin = { .size = sizeof(pin), .op = OP_ACCESS_PAGES, .id = access_fd };
    pin.quad[1] = IOVA;
    pin.quad[2] = 4 * PAGE;
    pin.quad[3] = (uint64_t)at;
    CHECK(call(0xa0, &pin) == 0);
    CHECK(pinned() == 4);
    CHECK(munmap(at, 4 * PAGE) == 0);
    CHECK(try_device(ioas, &stdev, &idev) == 0);
    CHECK(pinned() == 4);
    ALONE(NULL, 0, IOVA + 3 * PAGE, 'a');
}

/* A domain that comes when its memory is gone fails, and leaves no pin. */
static void row_late_without_pages(void)
{
    char *at = memory(ANON, 4);
    begin_without_device();
    map(at, 4 * PAGE);
    CHECK(munmap(at + 2 * PAGE, PAGE) == 0);
    CHECK(try_device(ioas, &stdev, &idev) == -1 && errno == EFAULT);
    CHECK(pinned() == 0);
}

static void become_nobody(unsigned long pages)
{
    struct rlimit limit = { pages * PAGE, pages * PAGE };
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    if (geteuid() == 0)
        CHECK(setgid(65533) == 0 && setuid(65533) == 0);
    prctl(PR_SET_DUMPABLE, 1);
}

/* The limit is met at the very page. */
static void row_limit(enum kind kind, int by_process)
{
    if (by_process && geteuid() != 0)
        exit(SKIPPED);
    iommu = open("/dev/iommu", O_RDWR);
    CHECK(iommu >= 0);
    struct option option = { .size = sizeof(option), .id = 0, .op = 0, .value = by_process };
    if (by_process)
        CHECK(call(0x87, &option) == 0);
    ioas = alloc(iommu);
    CHECK(try_device(ioas, &stdev, &idev) == 0);
    char *at = memory(kind, 12);
    become_nobody(8);
    CHECK(try_map_here(at, 9 * PAGE, READABLE | WRITEABLE) == -1 && errno == ENOMEM);
    CHECK(pinned() == 0);
    CHECK(try_map_here(at, 8 * PAGE, READABLE | WRITEABLE) == 0);
    CHECK(pinned() == 8);
    CHECK(try_map_at(ioas, at + 8 * PAGE, PAGE, IOVA + HUGE, READABLE) == -1 && errno == ENOMEM);
    CHECK(pinned() == 8);
    unmap(8 * PAGE);
    CHECK(pinned() == 0);
    for (int i = 0; i < 8; i++)
        CHECK(try_map_at(ioas, at + i * PAGE, PAGE, IOVA + i * PAGE, READABLE | WRITEABLE) == 0);
    CHECK(try_map_at(ioas, at + 8 * PAGE, PAGE, IOVA + HUGE, READABLE | WRITEABLE) == -1);
    CHECK(errno == ENOMEM && pinned() == 8);
    unmap_in(ioas, IOVA + 3 * PAGE, PAGE);
    CHECK(try_map_at(ioas, at + 8 * PAGE, PAGE, IOVA + HUGE, READABLE | WRITEABLE) == 0);
    CHECK(pinned() == 8);
    /* The same pages for another area and another domain cost nothing more. */
    uint32_t stdev2, idev2;
    struct copy copy = { sizeof(copy), READABLE | FIXED, ioas, ioas, PAGE, IOVA + 2 * HUGE, IOVA };
    CHECK(call(0x83, &copy) == 0);
    CHECK(try_device(ioas, &stdev2, &idev2) == 0);
    CHECK(pinned() == 8);
}

/* CAP_IPC_LOCK knows no limit, and is counted. */
static void row_no_limit(void)
{
    if (geteuid() != 0)
        exit(SKIPPED);
    begin();
    char *at = memory(ANON, 12);
    struct rlimit limit = { 4 * PAGE, 4 * PAGE };
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    map(at, 12 * PAGE);
    CHECK(pinned() == 12);
}

/* A child's pins are the child's, though the iommufd is the parent's. */
static void row_account_fork(void)
{
    begin();
    char *at = memory(ANON, 4);
    map(at, 4 * PAGE);
    CHECK(pinned() == 4);
    pid_t child = forked();
    if (child == 0) {
        char *own = memory(ANON, 3);
        CHECK(pinned() == 0);
        CHECK(try_map_at(ioas, own, 3 * PAGE, IOVA + HUGE, READABLE | WRITEABLE) == 0);
        CHECK(pinned() == 3);
        _exit(0);
    }
    CHECK(ended(child) == 0);
    CHECK(pinned() == 4);
    unmap(4 * PAGE);
    CHECK(pinned() == 0);
}

/* Does to memory that is mapped what the letter says. */
static void change(char what, char *at)
{
    int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    char *other;
    switch (what) {
    case 'd': /* discards page 0 */
        CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0);
        break;
    case 'u': /* unmaps page 1 */
        CHECK(munmap(at + PAGE, PAGE) == 0);
        break;
    case 'm': /* moves page 2 */
        other = memory(ANON, 1);
        CHECK(mremap(at + 2 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
        break;
    case 'o': /* maps over page 3 */
        other = mmap(at + 3 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(other == at + 3 * PAGE);
        break;
    case 'i': /* takes all out of the IOAS before it goes, and puts another page there */
        unmap(4 * PAGE);
        CHECK(munmap(at, PAGE) == 0);
        other = memory(ANON, 1);
        CHECK(try_map_at(ioas, other, PAGE, IOVA + HUGE, READABLE) == 0);
        CHECK(munmap(other, PAGE) == 0);
        break;
    case 'p': /* punches page 1 out of its file */
        CHECK(fallocate(memory_fd, punch, PAGE, PAGE) == 0);
        break;
    case 'f': /* punches page 2 out of its file, which gets another one */
        CHECK(fallocate(memory_fd, punch, 2 * PAGE, PAGE) == 0);
        at[2 * PAGE] = 'f';
        break;
    case 'r': /* removes page 3 from its file */
        CHECK(madvise(at + 3 * PAGE, PAGE, MADV_REMOVE) == 0);
        break;
    default:
        CHECK(!"known");
    }
}

/* Maps memory, and does what standard input says to it until that ends. */
static void row_wait(enum kind kind)
{
    char what, *at = memory(kind, 4);
    begin();
    map(at, 4 * unit(kind));
    printf("ready\n");
    fflush(stdout);
    while (read(0, &what, 1) == 1) {
        change(what, at);
        printf("%p\n", at);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    static const struct { const char *name; enum kind kind; } kinds[] = {
        { "anon", ANON }, { "thp", THP }, { "memfd", MEMFD }, { "shared", SHARED },
        { "hugetlb", HUGETLB }, { "tmpfs", TMPFS },
    };
    static const struct { const char *name; void (*of)(enum kind); } by_kind[] = {
        { "live", row_live }, { "untouched", row_untouched }, { "munmap", row_munmap },
        { "fixed", row_fixed }, { "mremap", row_mremap }, { "dontneed", row_dontneed },
        { "free", row_free }, { "remove", row_remove }, { "punch", row_punch },
        { "truncate", row_truncate }, { "truncate-all", row_truncate_all }, { "fork", row_fork },
        { "cow", row_cow }, { "cow-read", row_cow_read }, { "mprotect", row_mprotect },
        { "pageout", row_pageout },
        { "half-way", row_half_way }, { "once", row_once }, { "late-domain", row_late_domain },
        { "late-after-access", row_late_after_access }, { "wait", row_wait },
    };
    static const struct { const char *name; void (*of)(void); } plain[] = {
        { "private-file", row_private_file }, { "collapse", row_collapse }, { "split", row_split },
        { "read-only", row_read_only }, { "io-memory", row_io_memory },
        { "read-only-file", row_read_only_file },
        { "late-without-pages", row_late_without_pages }, { "no-limit", row_no_limit },
        { "account-fork", row_account_fork },
    };
    char name[64];
    enum kind kind = ANON;
    CHECK(argc >= 2);
    if (strcmp(argv[1], "executed") == 0) {
        executed(argv[2]);
        return 0;
    }
    snprintf(name, sizeof(name), "%s", argv[1]);
    char *file = strstr(name, ":file");
    if (file) {
        by_file = 1;
        *file = 0;
    }
    char *colon = strchr(name, ':');
    if (colon) {
        size_t i = 0;
        *colon = 0;
        while (i < sizeof(kinds) / sizeof(*kinds) && strcmp(colon + 1, kinds[i].name) != 0)
            i++;
        CHECK(i < sizeof(kinds) / sizeof(*kinds));
        kind = kinds[i].kind;
    }
    for (size_t i = 0; i < sizeof(by_kind) / sizeof(*by_kind); i++)
        if (strcmp(name, by_kind[i].name) == 0)
            return by_kind[i].of(kind), 0;
    for (size_t i = 0; i < sizeof(plain) / sizeof(*plain); i++)
        if (strcmp(name, plain[i].name) == 0)
            return plain[i].of(), 0;
    if (strcmp(name, "exit") == 0)
        return row_ends(kind, 0), 0;
    if (strcmp(name, "sigkill") == 0)
        return row_ends(kind, SIGKILL), 0;
    if (strcmp(name, "exec") == 0)
        return row_exec(kind, argv), 0;
    if (strcmp(name, "limit-user") == 0)
        return row_limit(kind, 0), 0;
    if (strcmp(name, "limit-process") == 0)
        return row_limit(kind, 1), 0;
    fprintf(stderr, "no such row: %s\n", name);
    return 2;
}
