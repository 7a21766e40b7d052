/* Memory of each kind, and whose it is. */

/* The last two only as memory that is read only: never written, and a private mapping of a memfd. */
enum kind { ANON, THP, MEMFD, SHARED, HUGETLB, TMPFS, ZERO, COPY };

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
