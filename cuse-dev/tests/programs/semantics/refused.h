/* Rows with memory that can be pinned in part, for reading alone, or not at all. */

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
