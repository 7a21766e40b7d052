/* What a program under `softiommu run` may do, one thing for each argument. Exits with 0 when all
 * went as with the kernel. */
#include "iommufd.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static char *pages(int kind);

static void destroy(int fd, uint32_t id)
{
    CHECK(try_destroy(fd, id) == 0);
}

static void map(int fd, uint32_t ioas, void *address, uint64_t length, uint64_t iova)
{
    CHECK(try_map(fd, ioas, address, length, iova) == 0);
}

static void pair(int fd)
{
    destroy(fd, alloc(fd));
}

static void *thread(void *fd)
{
    for (int i = 0; i < 200; i++)
        pair(*(int *)fd);
    return NULL;
}

static void threads(void)
{
    int fd = open_iommu();
    pthread_t all[8];
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&all[i], NULL, thread, &fd) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
    CHECK(alloc(fd) == 1);
}

/* The child has the parent's context, and what it does there stays. */
static void forks(void)
{
    int fd = open_iommu();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(alloc(fd) == 1);
        pair(open_iommu());
        _exit(0);
    }
    succeeds(child);
    destroy(fd, 1);
}

/* An iommufd without close-on-exec is there after exec, with another mm. */
static void execs(char **argv)
{
    int fd = open("/dev/iommu", O_RDWR);
    char number[16];
    CHECK(fd >= 0 && alloc(fd) == 1);
    snprintf(number, sizeof(number), "%d", fd);
    execl(argv[0], argv[0], "inherited", number, NULL);
    CHECK(0);
}

static void inherited(const char *number)
{
    int fd = atoi(number);
    CHECK(alloc(fd) == 2);
    destroy(fd, 1);
    destroy(fd, 2);
}

static void send_descriptor(int socket, int fd)
{
    char byte = 0, space[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec iov = { &byte, 1 };
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
                              .msg_controllen = sizeof(space) };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(fd));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    CHECK(sendmsg(socket, &message, 0) == 1);
}

static int receive_descriptor(int socket)
{
    int fd;
    char byte, space[CMSG_SPACE(sizeof(int))];
    struct iovec iov = { &byte, 1 };
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
                              .msg_controllen = sizeof(space) };
    CHECK(recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    return fd;
}

static void passes_descriptor(void)
{
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int fd = receive_descriptor(ends[1]);
        destroy(fd, 1);
        pair(fd);
        _exit(0);
    }
    int fd = open_iommu();
    CHECK(alloc(fd) == 1);
    send_descriptor(ends[0], fd);
    close(fd);
    succeeds(child);
}

static void contexts(void)
{
    for (int i = 0; i < 1000; i++) {
        int fd = open_iommu();
        CHECK(alloc(fd) == 1);
        CHECK(close(fd) == 0);
    }
    /* Many at once, left to the exit. */
    for (int i = 0; i < 200; i++)
        alloc(open_iommu());
}

static void expect(int fd, unsigned long command, void *argument, int error)
{
    errno = 0;
    int result = ioctl(fd, command, argument);
    if (result != -1 || errno != error) {
        fprintf(stderr, "%#lx %p: %d, errno %d and not %d\n", command, argument, result, errno,
                error);
        exit(1);
    }
}

static void hostile(void)
{
    int fd = open_iommu();
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED && munmap(pages + 4096, 4096) == 0);
    struct alloc *edge = (struct alloc *)(pages + 4096 - sizeof(struct alloc));

    expect(fd, IOMMU_IOAS_ALLOC, NULL, EFAULT);
    expect(fd, IOMMU_IOAS_ALLOC, (void *)-4096L, EFAULT);
    expect(fd, IOMMU_IOAS_ALLOC, (void *)-1L, EFAULT);
    expect(fd, IOMMU_IOAS_ALLOC, pages + 4096, EFAULT);
    expect(fd, IOMMU_IOAS_ALLOC, pages + 4094, EFAULT);
    edge->size = 4097;
    expect(fd, IOMMU_IOAS_ALLOC, edge, EFAULT);
    for (uint32_t size = 0; size < sizeof(*edge); size++) {
        edge->size = size;
        expect(fd, IOMMU_IOAS_ALLOC, edge, EINVAL);
    }
    edge->size = sizeof(*edge);
    edge->flags = 1;
    expect(fd, IOMMU_IOAS_ALLOC, edge, EOPNOTSUPP);
    edge->flags = 0;
    CHECK(ioctl(fd, IOMMU_IOAS_ALLOC, edge) == 0 && edge->id == 1);
    destroy(fd, 1);

    CHECK(mprotect(pages, 4096, PROT_READ) == 0);
    expect(fd, IOMMU_IOAS_ALLOC, edge, EFAULT);
    CHECK(alloc(fd) == 1);
    destroy(fd, 1);

    struct destroy gone = { .size = sizeof(gone), .id = 1 };
    expect(fd, IOMMU_DESTROY, &gone, ENOENT);
    gone.id = UINT32_MAX;
    expect(fd, IOMMU_DESTROY, &gone, ENOENT);
    expect(fd, 0x3bff, &gone, ENOTTY);
    expect(fd, 0x5401, &gone, ENOTTY);
    expect(-1, IOMMU_DESTROY, &gone, EBADF);
    expect(12345, IOMMU_DESTROY, &gone, EBADF);
    expect(open("/dev/null", O_RDWR), IOMMU_DESTROY, &gone, ENOTTY);
    expect(open("/dev/iommu", O_PATH), IOMMU_DESTROY, &gone, EBADF);

    errno = 0;
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENXIO);
    CHECK(open("/dev/iommu", O_RDWR | O_DIRECTORY) == -1 && errno == ENOTDIR);
    CHECK(open("/dev/iommu", O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
    CHECK(chdir("/dev") == 0);
    pair(open("iommu", O_RDWR));
    pair(openat(open("/", O_PATH), "dev/../dev//iommu", O_RDWR));
}

/* An access: only ioctls and its last close concern it. */
static void access_file(void)
{
    int fd = open_iommu();
    struct test create = { .size = sizeof(create), .op = IOMMU_TEST_OP_CREATE_ACCESS,
                           .id = alloc(fd) };
    CHECK(ioctl(fd, IOMMU_TEST_CMD, &create) == 0);
    int access = create.word[0];
    struct destroy used = { .size = sizeof(used), .id = create.id };
    expect(fd, IOMMU_DESTROY, &used, EBUSY);
    CHECK(fcntl(access, F_GETFD) == FD_CLOEXEC);
    int dup_fd = dup(access);
    CHECK(dup_fd >= 0 && close(access) == 0);
    expect(fd, IOMMU_DESTROY, &used, EBUSY);
    CHECK(close(dup_fd) == 0);
    destroy(fd, create.id);
}

/* A fault queue: read, written and polled. */
static void fault_queue(void)
{
    int fd = open_iommu();
    struct fault_queue queue = { .size = sizeof(queue) };
    CHECK(ioctl(fd, IOMMU_FAULT_QUEUE_ALLOC, &queue) == 0);
    struct destroy used = { .size = sizeof(used), .id = queue.id };
    expect(fd, IOMMU_DESTROY, &used, EBUSY);
    CHECK(fcntl(queue.fd, F_SETFL, O_NONBLOCK) == 0);
    char event[64];
    /* Events have 40 bytes; without any there is nothing to wait for. */
    CHECK(read(queue.fd, event, 40) == 0);
    CHECK(read(queue.fd, event, 41) == -1 && errno == ESPIPE);
    CHECK(write(queue.fd, event, 3) == -1 && errno == ESPIPE);
    struct pollfd ready = { .fd = queue.fd, .events = POLLIN | POLLOUT };
    CHECK(poll(&ready, 1, 0) == 1 && ready.revents == POLLOUT);
    fd_set set;
    struct timeval now = { 0 };
    FD_ZERO(&set);
    FD_SET(queue.fd, &set);
    CHECK(select(queue.fd + 1, &set, NULL, NULL, &now) == 0);
    int epoll = epoll_create1(0);
    struct epoll_event event_of = { .events = EPOLLIN | EPOLLOUT };
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, queue.fd, &event_of) == 0);
    CHECK(epoll_wait(epoll, &event_of, 1, 0) == 1 && event_of.events == EPOLLOUT);
    close(epoll);
    CHECK(close(queue.fd) == 0);
    destroy(fd, queue.id);
}

/* Where there is no FUSE. */
static void no_fault_queue(void)
{
    int fd = open_iommu();
    struct fault_queue queue = { .size = sizeof(queue) };
    expect(fd, IOMMU_FAULT_QUEUE_ALLOC, &queue, ENODEV);
    CHECK(alloc(fd) == 1);
}

static uint32_t first_id(int fd)
{
    CHECK(fd >= 0);
    uint32_t id = alloc(fd);
    close(fd);
    return id;
}

/* Other ways to the node. Whatever opens it makes a context. */
static void paths(void)
{
    char text[64], directory[] = "/tmp/softiommu-test-XXXXXX";
    uint64_t how[3] = { O_RDWR };
    int fd = open_iommu(), dev = open("/dev", O_RDONLY);
    CHECK(first_id(openat(dev, "iommu", O_RDWR)) == 1);
    CHECK(first_id(syscall(SYS_openat2, dev, "iommu", how, sizeof(how))) == 1);
    how[2] = 1 << 20;
    CHECK(syscall(SYS_openat2, dev, "iommu", how, sizeof(how)) == -1 && errno == EINVAL);
    how[2] = 0;
    CHECK(syscall(SYS_openat2, dev, "iommu", how, 8) == -1 && errno == EINVAL);
    CHECK(alloc(fd) == 1);
    snprintf(text, sizeof(text), "/proc/self/fd/%d", fd);
    CHECK(first_id(open(text, O_RDWR)) == 1);
    snprintf(text, sizeof(text), "/dev/fd/%d", fd);
    CHECK(first_id(open(text, O_RDWR)) == 1);
    CHECK(first_id(dup(fd)) == 2);
    CHECK(first_id(fcntl(fd, F_DUPFD_CLOEXEC, 100)) == 3);
    CHECK(mkdtemp(directory) && chdir(directory) == 0);
    CHECK(symlink("/dev/iommu", "link") == 0 && symlink("link", "second") == 0);
    CHECK(first_id(open("link", O_RDWR)) == 1);
    CHECK(open("link", O_RDWR | O_NOFOLLOW) == -1 && errno == ELOOP);
    unlink("second");
    unlink("link");
    CHECK(rmdir(directory) == 0);
}

#ifdef __x86_64__
static long call32(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c)
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

/* The calls of 32-bit code, by their own gate. */
static void compat(void)
{
    char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT,
                     -1, 0);
    CHECK(low != MAP_FAILED);
    struct alloc *alloc32 = (struct alloc *)(low + 64);
    strcpy(low, "/dev/iommu");
    long fd = call32(5, (long)low, O_RDWR, 0);
    CHECK(fd >= 0 || fd == -ENOSYS);
    if (fd < 0)
        return;
    alloc32->size = sizeof(*alloc32);
    CHECK(call32(54, fd, IOMMU_IOAS_ALLOC, (long)alloc32) == 0 && alloc32->id == 1);
    CHECK(alloc(fd) == 2);
    CHECK(call32(54, fd, 0x3bff, (long)alloc32) == -ENOTTY);
    CHECK(call32(54, fd, IOMMU_IOAS_ALLOC, 0) == -EFAULT);
    char *page = pages(MAP_PRIVATE);
    mock_device(fd, 1);
    map(fd, 1, page, 4096, 1 << 24);
    close(fd);
}
#else
static void compat(void) { }
#endif

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

/* Calls are neither repeated nor lost when signals come all the time. */
static void interrupted(void)
{
    struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(ualarm(300, 300) == 0);
    int fd = open_iommu();
    for (uint32_t i = 1; alarms < 50 || i < 500; i++)
        CHECK(alloc(fd) == i);
    ualarm(0, 0);
}

/* Pages pinned for a domain and by an access, and a fault queue if there can be one. */
static int fill(char *private, char *shared)
{
    int fd = open_iommu();
    uint32_t ioas = alloc(fd);
    struct test create = { .size = sizeof(create), .op = IOMMU_TEST_OP_CREATE_ACCESS, .id = ioas,
                           .word = { [1] = 1 /* it may pin */ } };
    struct fault_queue queue = { .size = sizeof(queue) };
    mock_device(fd, ioas);
    map(fd, ioas, private, 16 * PAGE, IOVA);
    map(fd, ioas, shared, 16 * PAGE, 2 * IOVA);
    CHECK(ioctl(fd, IOMMU_TEST_CMD, &create) == 0);
    struct test pages = { .size = sizeof(pages), .op = IOMMU_TEST_OP_ACCESS_PAGES,
                          .id = create.word[0],
                          .quad = { [1] = IOVA, [2] = PAGE, [3] = (uintptr_t)private } };
    CHECK(ioctl(fd, IOMMU_TEST_CMD, &pages) == 0);
    if (ioctl(fd, IOMMU_FAULT_QUEUE_ALLOC, &queue) == 0)
        close(queue.fd);
    return fd;
}

static char *pages(int kind)
{
    char *at = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    memset(at, 1, 16 * 4096);
    return at;
}

/* Until it is killed. */
static void busy(void)
{
    puts("busy");
    fflush(stdout);
    for (int i = 0;; i++) {
        close(fill(pages(MAP_PRIVATE), pages(MAP_SHARED)));
        /* The access has a descriptor still, and keeps its context. */
        if (i % 8 == 7)
            for (int fd = 3; fd < 64; fd++)
                close(fd);
    }
}

/* Sends a context with pinned pages over standard input, to somebody outside. */
static void gives_away(void)
{
    int fd = open_iommu();
    uint32_t ioas = alloc(fd);
    mock_device(fd, ioas);
    map(fd, ioas, pages(MAP_SHARED), 16 * 4096, 1 << 24);
    send_descriptor(0, fd);
}

/* /proc/PID/fail-nth: each site fails in its turn, and then none does. */
static void faults(void)
{
    char path[64], text[16];
    snprintf(path, sizeof(path), "/proc/self/task/%d/fail-nth", getpid());
    int nth_fd = open(path, O_RDWR), fd = open_iommu(), nth = 1;
    CHECK(nth_fd >= 0);
    for (;; nth++) {
        struct alloc alloc = { .size = sizeof(alloc) };
        int length = snprintf(text, sizeof(text), "%d", nth);
        CHECK(pwrite(nth_fd, text, length, 0) == length);
        int result = ioctl(fd, IOMMU_IOAS_ALLOC, &alloc);
        CHECK((length = pread(nth_fd, text, sizeof(text), 0)) > 1);
        CHECK(pwrite(nth_fd, "0", 1, 0) == 1);
        if (result == 0) {
            CHECK(text[0] != '0');
            break;
        }
        CHECK(errno == ENOMEM && length == 2 && text[0] == '0' && text[1] == '\n');
    }
    CHECK(nth > 2);
    CHECK(alloc(fd) == 2);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "pair";
    if (!strcmp(what, "pair"))
        pair(open_iommu());
    else if (!strcmp(what, "threads"))
        threads();
    else if (!strcmp(what, "forks"))
        forks();
    else if (!strcmp(what, "execs"))
        execs(argv);
    else if (!strcmp(what, "inherited"))
        inherited(argv[2]);
    else if (!strcmp(what, "passes"))
        passes_descriptor();
    else if (!strcmp(what, "contexts"))
        contexts();
    else if (!strcmp(what, "hostile"))
        hostile();
    else if (!strcmp(what, "paths"))
        paths();
    else if (!strcmp(what, "compat"))
        compat();
    else if (!strcmp(what, "access"))
        access_file();
    else if (!strcmp(what, "fault-queue"))
        fault_queue();
    else if (!strcmp(what, "no-fault-queue"))
        no_fault_queue();
    else if (!strcmp(what, "interrupted"))
        interrupted();
    else if (!strcmp(what, "busy"))
        busy();
    else if (!strcmp(what, "gives-away"))
        gives_away();
    else if (!strcmp(what, "faults"))
        faults();
    else
        CHECK(!"a known argument");
    return 0;
}
