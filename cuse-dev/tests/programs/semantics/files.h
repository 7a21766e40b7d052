/* Rows in which the file behind the memory loses pages. */

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
