/* Rows in which the process changes its mapping. */

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
