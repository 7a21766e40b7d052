/* Rows in which pages are shared with a child, or with a file that they are a copy of. */

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

/* A child that shares the pages, and when a byte comes through `go` still sees what was there. */
static pid_t sharing_child(const char *at, size_t pages, size_t size, int go[2])
{
    char byte;
    CHECK(pipe(go) == 0);
    pid_t child = forked();
    if (child == 0) {
        CHECK(read(go[0], &byte, 1) == 1);
        for (size_t page = 0; page < pages; page++)
            CHECK(at[page * size] == 'a');
        _exit(0);
    }
    return child;
}

/* Mapped while a child shares the pages: a device that may write gets the parent's own. */
static void row_cow(enum kind kind)
{
    size_t size = unit(kind);
    char *at = memory(kind, 2);
    int go[2];
    begin();
    pid_t child = sharing_child(at, 2, size, go);
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
    begin();
    pid_t child = sharing_child(at, 1, PAGE, go);
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
