/* Rows in which RLIMIT_MEMLOCK counts. */

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
