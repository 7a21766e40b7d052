/* Rows in which the memory's process ends, or executes another program. */

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
