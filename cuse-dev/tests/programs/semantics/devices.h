/* Bytes as devices see them: through an access, and through DMA where there is a control socket. */

static int access_rw(uint64_t iova, void *bytes, size_t length, int flags)
{
    struct test test = { .size = sizeof(test), .op = OP_ACCESS_RW, .id = access_fd };
    test.quad[0] = iova;
    test.quad[1] = length;
    test.quad[2] = (uint64_t)bytes;
    test.word[6] = flags | RW_SLOW;
    return call(0xa0, &test);
}

/* One byte by an access, in a copy that touches two pages. (Within one page the kernel's access goes
 * by the process's address, and sees what is there now, not what is pinned.) */
static int access_byte(uint64_t iova, unsigned char *byte, int write)
{
    static unsigned char window[2 * PAGE];
    uint64_t page = iova & ~(PAGE - 1);
    int odd = (page - IOVA) / PAGE % 2;
    uint64_t from = odd ? page - 1 : iova;
    size_t at = iova - from, length = odd ? at + 1 : page + PAGE + 1 - from;
    if (access_rw(from, window, length, 0) != 0)
        return -1;
    if (!write) {
        *byte = window[at];
        return 0;
    }
    window[at] = *byte;
    return access_rw(from, window, length, RW_WRITE);
}

/* Asks the control socket. Answers 0, or -1 for a fault. */
static int ask(uint32_t device, const char *access, uint64_t iova, char *hex, size_t room)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char line[1024], *from, *to;
    size_t have = 0;
    ssize_t got;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", getenv("SEMANTICS_CONTROL"));
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    int length = snprintf(line, sizeof(line), "{\"ask\":\"dma\",\"device\":%u,\"iova\":%lu,%s}\n",
                          device, iova, access);
    CHECK(write(fd, line, length) == length);
    while (have < sizeof(line) - 1 && (got = read(fd, line + have, sizeof(line) - 1 - have)) > 0)
        have += got;
    line[have] = 0;
    close(fd);
    from = strstr(line, "\"bytes\":\"");
    if (!from || !strstr(line, "\"fault\":")) {
        fprintf(stderr, "the control socket says: %s\n", line);
        exit(1);
    }
    if (!strstr(line, "\"fault\":null"))
        return -1;
    from += strlen("\"bytes\":\"");
    to = strchr(from, '"');
    CHECK(to && (size_t)(to - from) < room);
    memcpy(hex, from, to - from);
    hex[to - from] = 0;
    return 0;
}

static int has_dma(void) { return getenv("SEMANTICS_CONTROL") != NULL; }

static int dma_read(uint32_t device, uint64_t iova, unsigned char *byte)
{
    char hex[64];
    if (ask(device, "\"access\":\"read\",\"length\":1", iova, hex, sizeof(hex)) != 0)
        return -1;
    *byte = strtoul(hex, NULL, 16);
    return 0;
}

static int dma_write(uint32_t device, uint64_t iova, unsigned char byte)
{
    char access[64], hex[64];
    snprintf(access, sizeof(access), "\"access\":\"write\",\"bytes\":\"%02x\"", byte);
    return ask(device, access, iova, hex, sizeof(hex));
}

/* The byte at `iova` is `expected` for every device. */
static void sees_(int line, uint64_t iova, unsigned char expected)
{
    unsigned char byte = ~expected;
    if (access_byte(iova, &byte, 0) != 0 || byte != expected) {
        fprintf(stderr, "line %d: an access sees %#x, not %#x (%s)\n", line, byte, expected,
                strerror(errno));
        exit(1);
    }
    if (!has_dma() || idev == 0)
        return;
    byte = ~expected;
    if (dma_read(idev, iova, &byte) != 0 || byte != expected) {
        fprintf(stderr, "line %d: DMA sees %#x, not %#x\n", line, byte, expected);
        exit(1);
    }
}
#define SEES(iova, expected) sees_(__LINE__, iova, expected)

/* A device writes: the access, or DMA where there is. */
static void puts_(int line, uint64_t iova, unsigned char byte)
{
    static int turn;
    int result;
    if (has_dma() && idev != 0 && turn++ % 2 == 0)
        result = dma_write(idev, iova, byte);
    else
        result = access_byte(iova, &byte, 1);
    if (result != 0) {
        fprintf(stderr, "line %d: a device cannot write (%s)\n", line, strerror(errno));
        exit(1);
    }
}
#define PUTS(iova, byte) puts_(__LINE__, iova, byte)

/* Both ways, twice, so that the access and DMA write. */
static void both_ways_(int line, volatile char *at, uint64_t iova)
{
    for (int i = 0; i < 2; i++) {
        *at = 'c' + i;
        sees_(line, iova, 'c' + i);
        puts_(line, iova, 'D' + i);
        if (*at != 'D' + i) {
            fprintf(stderr, "line %d: the process does not see what the device wrote\n", line);
            exit(1);
        }
        sees_(line, iova, 'D' + i);
    }
}
#define BOTH_WAYS(at, iova) both_ways_(__LINE__, at, iova)

/* The device's page is nobody's any more: it stays, and takes writes, which `at` (if any) does not
 * see. */
static void alone_(int line, volatile char *at, char there, uint64_t iova, char old)
{
    sees_(line, iova, old);
    for (int i = 0; i < 2; i++) {
        puts_(line, iova, 'w' + i);
        sees_(line, iova, 'w' + i);
        if (at && *at != there) {
            fprintf(stderr, "line %d: the process sees %#x, not %#x\n", line, *at, there);
            exit(1);
        }
    }
    if (at) {
        *at = 'n';
        sees_(line, iova, 'x');
    }
}
#define ALONE(at, there, iova, old) alone_(__LINE__, at, there, iova, old)
