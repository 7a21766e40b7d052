/* Rows with private memory that its process may only read: a device gets pages that are the process's own,
 * and keeps them. */

/* `units` pages of the kind that can only be read; byte 0 of each 4K page is `rom_byte`. */
static char *rom(enum kind kind, size_t units)
{
    size_t length = units * unit(kind);
    char *at;
    switch (kind) {
    case ZERO:
        at = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        break;
    case COPY:
        CHECK(munmap(memory(MEMFD, units), length) == 0);
        at = mmap(NULL, length, PROT_READ, MAP_PRIVATE, memory_fd, 0);
        break;
    default:
        at = memory(kind, units);
        CHECK(mprotect(at, length, PROT_READ) == 0);
    }
    CHECK(at != MAP_FAILED);
    return at;
}

static char rom_byte(enum kind kind) { return kind == ZERO ? 0 : 'a'; }

/* Whether the process may write there, by a call that writes. */
static int may_write(char *at)
{
    static int zero = -1;
    if (zero < 0)
        zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    CHECK(zero >= 0);
    ssize_t got = read(zero, at, 1);
    CHECK(got == 1 || (got == -1 && errno == EFAULT));
    return got == 1;
}

static void unlock(char *at, size_t length)
{
    CHECK(mprotect(at, length, PROT_READ | PROT_WRITE) == 0);
}

/* The device has the very pages that are at `at`. */
static int check_map(char *at, size_t length)
{
    struct test test = { .size = sizeof(test), .op = OP_CHECK_MAP, .id = hwpt };
    test.quad[0] = IOVA;
    test.quad[1] = length;
    test.quad[2] = (uint64_t)at;
    return call(0xa0, &test);
}

static void map_rom(char *at, size_t length) { CHECK(try_map_here(at, length, READABLE) == 0); }

/* Neither the device nor the process can write; what the process writes when it may the device sees. */
static void row_rom(enum kind kind)
{
    size_t size = unit(kind);
    char *at = rom(kind, 2), byte = 'x';
    begin();
    map_rom(at, 2 * size);
    CHECK(pinned() == (long)(2 * size / PAGE));
    SEES(IOVA, rom_byte(kind));
    SEES(IOVA + size, rom_byte(kind));
    CHECK(check_map(at, 2 * size) == 0);
    CHECK(access_rw(IOVA, &byte, 1, RW_WRITE) == -1 && errno == EPERM);
    CHECK(!has_dma() || dma_write(idev, IOVA, 'x') == -1);
    CHECK(!may_write(at) && !may_write(at + 2 * size - 1));
    if (kind == COPY) {
        CHECK(pwrite(memory_fd, "z", 1, 0) == 1);
        SEES(IOVA, 'a');
    }
    CHECK(at[0] == rom_byte(kind));
    /* One mapping still: it moves as a whole. */
    char *hole = mmap(NULL, 4 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(hole != MAP_FAILED);
    at = mremap(at, 2 * size, 2 * size, MREMAP_MAYMOVE | MREMAP_FIXED, hole);
    CHECK(at == hole && !may_write(at));
    unlock(at, 2 * size);
    at[0] = 'w';
    at[size] = 'v';
    SEES(IOVA, 'w');
    SEES(IOVA + size, 'v');
    unmap(2 * size);
    CHECK(pinned() == 0);
}

static void row_rom_gone(enum kind kind)
{
    size_t size = unit(kind);
    char *at = rom(kind, 2);
    begin();
    map_rom(at, 2 * size);
    CHECK(munmap(at, size) == 0);
    SEES(IOVA, rom_byte(kind));
    at += size;
    CHECK(madvise(at, size, MADV_DONTNEED) == 0);
    unlock(at, size);
    at[0] = 'n';
    SEES(IOVA + size, rom_byte(kind));
    unmap(2 * size);
    CHECK(pinned() == 0);
}

/* A part of a mapping, and several mappings at once. */
static void row_rom_over(enum kind kind)
{
    char *at = rom(kind, 6);
    unlock(at + 2 * PAGE, PAGE);
    at[2 * PAGE] = 'b';
    begin();
    map_rom(at + PAGE, 4 * PAGE);
    CHECK(pinned() == 4 && check_map(at + PAGE, 4 * PAGE) == 0);
    SEES(IOVA, rom_byte(kind));
    SEES(IOVA + PAGE, 'b');
    SEES(IOVA + 3 * PAGE, rom_byte(kind));
    for (int page = 0; page < 6; page++)
        CHECK(may_write(at + page * PAGE + 1) == (page == 2));
    CHECK(munmap(at, 6 * PAGE) == 0);
    SEES(IOVA, rom_byte(kind));
    SEES(IOVA + PAGE, 'b');
}

/* The child has its own: what it has is not the device's, whoever writes. */
static void row_rom_fork(enum kind kind)
{
    size_t size = unit(kind);
    char *at = rom(kind, 2);
    begin();
    map_rom(at, 2 * size);
    pid_t child = forked();
    if (child == 0) {
        CHECK(at[0] == rom_byte(kind));
        CHECK(check_map(at, 2 * size) == -1 && errno == EINVAL);
        unlock(at, 2 * size);
        at[0] = 'k';
        _exit(0);
    }
    CHECK(ended(child) == 0);
    CHECK(check_map(at, 2 * size) == 0);
    unlock(at, 2 * size);
    SEES(IOVA, rom_byte(kind));
    at[0] = 'p';
    SEES(IOVA, 'p');
}

/* The machine may not put the pages elsewhere. */
static void row_rom_collapse(enum kind kind)
{
    char *at = rom(kind, 2 * HUGE / PAGE);
    at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
    madvise(at, HUGE, MADV_NOHUGEPAGE);
    for (size_t page = 0; page < HUGE; page += PAGE)
        CHECK(at[page] == rom_byte(kind));
    begin();
    map_rom(at, HUGE);
    madvise(at, HUGE, MADV_HUGEPAGE);
    madvise(at, HUGE, MADV_COLLAPSE);
    CHECK(check_map(at, HUGE) == 0);
    unlock(at, HUGE);
    at[0] = 'm';
    SEES(IOVA, 'm');
    SEES(IOVA + HUGE - PAGE, rom_byte(kind));
}

static void row_rom_ends(enum kind kind)
{
    begin();
    pid_t child = forked();
    if (child == 0) {
        map_rom(rom(kind, 2), 2 * unit(kind));
        _exit(0);
    }
    CHECK(ended(child) == 0);
    SEES(IOVA, rom_byte(kind));
    SEES(IOVA + unit(kind), rom_byte(kind));
    unmap(2 * unit(kind));
}

/* Code that runs: the program's own. */
static void row_rom_code(void)
{
    char *at = (char *)((uintptr_t)row_rom_code & ~(PAGE - 1)) - PAGE;
    begin();
    map_rom(at, 2 * PAGE);
    SEES(IOVA, at[0]);
    SEES(IOVA + PAGE, at[PAGE]);
    CHECK(check_map(at, 2 * PAGE) == 0);
    CHECK(!may_write(at + PAGE));
    unmap(2 * PAGE);
}

/* The process itself has seen to it that nobody makes it writable again. */
static void row_rom_sealed(void)
{
    enum { MSEAL = 462 };
    char *at = rom(ANON, 2);
    if (syscall(MSEAL, at, 2 * PAGE, 0) != 0)
        exit(SKIPPED);
    begin();
    map_rom(at, 2 * PAGE);
    SEES(IOVA, 'a');
    SEES(IOVA + PAGE, 'a');
    CHECK(!may_write(at) && mprotect(at, PAGE, PROT_READ | PROT_WRITE) == -1);
    unmap(2 * PAGE);
}

static struct { char *at; int go_on, tries, wrote; } watched;

static int try_to_write(void)
{
    while (__atomic_load_n(&watched.go_on, __ATOMIC_SEQ_CST)) {
        if (may_write(watched.at))
            __atomic_store_n(&watched.wrote, 1, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&watched.tries, 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}

static void *thread_that_tries(void *unused)
{
    (void)unused;
    try_to_write();
    return NULL;
}

static int process_that_tries(void *unused)
{
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return try_to_write();
}

/* Whoever else runs in the memory finds it as it is protected, at any time. */
static void map_while_watched(void)
{
    for (int i = 0; i < 50; i++) {
        int tries = __atomic_load_n(&watched.tries, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&watched.tries, __ATOMIC_SEQ_CST) == tries)
            sched_yield();
        map_rom(watched.at, 2 * PAGE);
        unmap(2 * PAGE);
    }
    map_rom(watched.at, 2 * PAGE);
    SEES(IOVA, 'a');
    __atomic_store_n(&watched.go_on, 0, __ATOMIC_SEQ_CST);
}

static void begin_watched(void)
{
    begin();
    watched.at = rom(ANON, 2);
    watched.go_on = 1;
    CHECK(!may_write(watched.at));
}

static void row_rom_thread(void)
{
    pthread_t thread;
    begin_watched();
    CHECK(pthread_create(&thread, NULL, thread_that_tries, NULL) == 0);
    map_while_watched();
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(!watched.wrote && watched.at[0] == 'a');
}

static void row_rom_sharer(void)
{
    static char stack[64 << 10] __attribute__((aligned(16)));
    begin_watched();
    pid_t child = clone(process_that_tries, stack + sizeof(stack), CLONE_VM | CLONE_FILES | SIGCHLD, NULL);
    CHECK(child > 0);
    map_while_watched();
    CHECK(ended(child) == 0);
    CHECK(!watched.wrote && watched.at[0] == 'a');
}
