/* Programs whose private memory is mapped in an IOAS with a mock domain, one for each argument. Exits
 * with 0 when all went as with the kernel. */
#include "iommufd.h"

#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

/* One context with an IOAS and a mock domain. */
struct bench { int fd; uint32_t ioas; };

static struct bench bench(void)
{
    struct bench bench = { .fd = open_iommu() };
    bench.ioas = alloc(bench.fd);
    mock_device(bench.fd, bench.ioas);
    return bench;
}

static int map(struct bench bench, void *at, size_t length, uint64_t iova)
{
    return try_map(bench.fd, bench.ioas, at, length, iova);
}

static int unmap(struct bench bench, size_t length, uint64_t iova)
{
    return try_unmap(bench.fd, bench.ioas, length, iova);
}

static char *memory(size_t pages)
{
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    memset(at, 1, pages * PAGE);
    return at;
}

static void map_and_unmap(struct bench bench, size_t pages)
{
    char *at = memory(pages);
    CHECK(map(bench, at, pages * PAGE, IOVA) == 0);
    CHECK(unmap(bench, pages * PAGE, IOVA) == 0);
    CHECK(munmap(at, pages * PAGE) == 0);
}

/* Nobody came to be its child, and its descriptors and threads are as they were. */
static void held(void)
{
    int next = dup(0);
    close(next);
    struct bench b = bench();
    CHECK(b.fd == next);
    CHECK(map(b, memory(64), 64 * PAGE, IOVA) == 0);
    CHECK(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD);
    next = dup(0);
    CHECK(next == b.fd + 1);
}

/* VmPin counts each page once. */
static void counted(void)
{
    struct bench b = bench();
    CHECK(map(b, memory(40), 40 * PAGE, IOVA) == 0);
    CHECK(pinned_kib() == 160);
    CHECK(map(b, memory(3), 3 * PAGE, 2 * IOVA) == 0);
    CHECK(pinned_kib() == 172);
    CHECK(unmap(b, 40 * PAGE, IOVA) == 0);
    CHECK(pinned_kib() == 12);
    CHECK(unmap(b, 3 * PAGE, 2 * IOVA) == 0);
    CHECK(pinned_kib() == 0);
}

/* One process maps memory whose fault nobody resolves. Others go on, and it can be killed. */
static void stuck(void)
{
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct bench b = bench();
        char *at = memory(8);
        CHECK(map(b, at, PAGE, 2 * IOVA) == 0);
        struct { uint64_t api, features, ioctls; } api = { 0xaa, 0, 0 };
        struct { uint64_t start, length, mode, ioctls; } missing = { 0, 4 * PAGE, 1, 0 };
        /* For faults of the kernel, too: that takes a privilege. */
        int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
        char *hole = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        missing.start = (uintptr_t)hole;
        memset(hole, 1, PAGE);
        char can = fd >= 0 && ioctl(fd, 0xc018aa3f, &api) == 0 && ioctl(fd, 0xc020aa00, &missing) == 0;
        CHECK(write(ready[1], &can, 1) == 1);
        if (!can)
            pause();
        map(b, hole, 4 * PAGE, IOVA);
        _exit(3);
    }
    char can;
    CHECK(read(ready[0], &can, 1) == 1);
    if (!can)
        puts("no userfaultfd");
    usleep(100000);
    for (int i = 0; i < 50; i++)
        map_and_unmap(bench(), 4);
    int status;
    CHECK(waitpid(child, &status, WNOHANG) == 0);
    CHECK(kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, &status, 0) == child);
    map_and_unmap(bench(), 4);
}

/* RLIMIT_MEMLOCK binds at the very page, for who is bound by it. */
static void limited(void)
{
    struct rlimit limit = { 16 * PAGE, 16 * PAGE };
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    struct bench b = bench();
    char *at = memory(32);
    for (int round = 0; round < 3; round++) {
        CHECK(map(b, at, 17 * PAGE, IOVA) == -1 && errno == ENOMEM);
        for (int page = 0; page < 16; page++)
            CHECK(map(b, at + page * PAGE, PAGE, IOVA + page * PAGE) == 0);
        CHECK(map(b, at + 16 * PAGE, PAGE, 2 * IOVA) == -1 && errno == ENOMEM);
        CHECK(unmap(b, 16 * PAGE, IOVA) == 0);
        CHECK(map(b, at, 16 * PAGE, IOVA) == 0);
        CHECK(unmap(b, 16 * PAGE, IOVA) == 0);
    }
}

/* The limit of the first map is not that of later ones, also of who is another user than it acts as. */
static void raised(void)
{
    struct { uint32_t version, pid; } header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct { uint32_t effective, permitted, inheritable; } none[2] = { 0 };
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    limit.rlim_cur = 2 * PAGE;
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    if (geteuid() == 0)
        CHECK(setresuid(100000 + getpid(), -1, -1) == 0);
    /* Who has CAP_IPC_LOCK has no limit. */
    CHECK(syscall(SYS_capset, &header, none) == 0);
    struct bench b = bench();
    char *at = memory(64);
    CHECK(map(b, at, PAGE, IOVA) == 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    CHECK(map(b, at + PAGE, 63 * PAGE, 2 * IOVA) == 0);
}

static pthread_barrier_t barrier;

static void *thread(void *b)
{
    struct bench own = bench();
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 20; i++)
        map_and_unmap(own, 4);
    return b;
}

/* The first calls of many threads at once. */
static void threads(void)
{
    pthread_t all[8];
    CHECK(pthread_barrier_init(&barrier, NULL, 8) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&all[i], NULL, thread, NULL) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

/* Signals come all the time. Each child is a new mm. */
static void interrupted(void)
{
    struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    struct itimerval often = { { 0, 300 }, { 0, 300 } };
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
            struct bench b = bench();
            map_and_unmap(b, 4);
            map_and_unmap(b, 4);
            while (!alarms)
                ;
            _exit(0);
        }
        succeeds(child);
    }
}

/* The child stops and goes on at any moment. Each of its children is a new mm. */
static void stopped(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* Whoever of the two comes first. */
        CHECK(setpgid(0, 0) == 0);
        for (int i = 0; i < 12; i++) {
            pid_t own = fork();
            CHECK(own >= 0);
            if (own == 0) {
                CHECK(setpgid(0, getppid()) == 0);
                map_and_unmap(bench(), 4);
                _exit(0);
            }
            succeeds(own);
        }
        _exit(0);
    }
    CHECK(setpgid(child, child) == 0);
    int status = 0;
    pid_t ended = 0;
    /* Not without end: on a busy machine it would come to nothing between two stops. */
    for (unsigned i = 0, seed = 1; i < 200 && ended == 0; i++, seed = seed * 1103515245 + 12345) {
        usleep(seed / 65536 % 2000);
        kill(-child, SIGSTOP);
        usleep(seed / 4096 % 500);
        kill(-child, SIGCONT);
        ended = waitpid(child, &status, WNOHANG);
    }
    CHECK(ended == child || waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A child of vfork has the parent's memory, and so has the helper that it leaves. */
static void vforked(void)
{
    struct bench b = bench();
    char *at = memory(8);
    pid_t child = vfork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(map(b, at, 4 * PAGE, IOVA) != 0);
    succeeds(child);
    CHECK(map(b, at + 4 * PAGE, 4 * PAGE, 2 * IOVA) == 0);
    CHECK(unmap(b, 4 * PAGE, IOVA) == 0);
}

/* Who executes another program has another mm. */
static void executed(char **argv)
{
    map_and_unmap(bench(), 4);
    execl(argv[0], argv[0], "held", NULL);
    CHECK(0);
}

/* Children end by themselves, by exec, or are killed, whatever is being done for them. */
static void killed(char **argv)
{
    for (unsigned round = 0, seed = getpid(); round < 60; round++, seed = seed * 1103515245 + 12345) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            setpgid(0, 0);
            struct bench b = bench();
            map(b, memory(4), 4 * PAGE, IOVA);
            map(b, memory(300), 300 * PAGE, 16 * IOVA);
            if (round % 5 == 0)
                execl(argv[0], argv[0], "held", NULL);
            if (round % 5 == 1)
                _exit(0);
            for (;;)
                map_and_unmap(bench(), 16);
        }
        usleep(seed / 65536 % 6000);
        kill(round % 2 ? child : -child, SIGKILL);
        kill(child, SIGKILL);
        int status;
        CHECK(waitpid(child, &status, 0) == child);
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "held"))
        held();
    else if (!strcmp(what, "counted"))
        counted();
    else if (!strcmp(what, "stuck"))
        stuck();
    else if (!strcmp(what, "limited"))
        limited();
    else if (!strcmp(what, "raised"))
        raised();
    else if (!strcmp(what, "threads"))
        threads();
    else if (!strcmp(what, "interrupted"))
        interrupted();
    else if (!strcmp(what, "stopped"))
        stopped();
    else if (!strcmp(what, "vforked"))
        vforked();
    else if (!strcmp(what, "executed"))
        executed(argv);
    else if (!strcmp(what, "killed"))
        killed(argv);
    else
        return 2;
    return 0;
}
