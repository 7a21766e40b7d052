/* Rows in which several areas, accesses and domains use one pin, or come late. */

/* Two areas of one mapping, an access and two domains: one pin, until the last goes. */
static void row_once(enum kind kind)
{
    size_t size = 4 * PAGE;
    char *at = memory(kind, 4);
    uint32_t second = 0, stdev2, idev2, idev1;
    begin();
    second = alloc(iommu);
    CHECK(try_device(second, &stdev2, &idev2) == 0);
    map(at, size);
    CHECK(pinned() == 4);
    struct copy copy = { sizeof(copy), READABLE | WRITEABLE | FIXED, second, ioas, size, IOVA, IOVA };
    CHECK(call(0x83, &copy) == 0);
    CHECK(pinned() == 4);
    copy.to = ioas;
    copy.to_iova = IOVA + HUGE;
    CHECK(call(0x83, &copy) == 0);
    CHECK(pinned() == 4);
    struct test pin = { .size = sizeof(pin), .op = OP_ACCESS_PAGES, .id = access_fd };
    pin.quad[1] = IOVA + HUGE;
    pin.quad[2] = 2 * PAGE;
    pin.quad[3] = (uint64_t)at;
    CHECK(call(0xa0, &pin) == 0);
    CHECK(pinned() == 4);
    BOTH_WAYS(at, IOVA);
    BOTH_WAYS(at, IOVA + HUGE);
    CHECK(munmap(at, size) == 0);
    unmap(size);
    CHECK(pinned() == 4);
    ALONE(NULL, 0, IOVA + HUGE, 'E');
    struct test unpin = { .size = sizeof(unpin), .op = OP_DESTROY_ACCESS_PAGES, .id = access_fd };
    unpin.word[0] = pin.word[1];
    CHECK(call(0xa0, &unpin) == 0);
    unmap_in(ioas, IOVA + HUGE, size);
    CHECK(pinned() == 4);
    idev1 = idev;
    idev = idev2;
    if (has_dma()) {
        unsigned char byte;
        CHECK(dma_read(idev2, IOVA, &byte) == 0 && byte == 'x');
        CHECK(dma_read(idev1, IOVA, &byte) == -1);
    }
    unmap_in(second, IOVA, size);
    CHECK(pinned() == 0);
}

/* A domain that comes late takes the pages that are pinned, whatever is at the address now. */
static void row_late_domain(enum kind kind)
{
    uint32_t stdev2, idev2;
    char *at = memory(kind, 4);
    begin();
    map(at, 4 * PAGE);
    CHECK(munmap(at, 4 * PAGE) == 0);
    CHECK(try_device(ioas, &stdev2, &idev2) == 0);
    idev = idev2;
    ALONE(NULL, 0, IOVA + PAGE, 'a');
    CHECK(pinned() == 4);
    CHECK(destroy(stdev) == 0);
    CHECK(pinned() == 4);
    ALONE(NULL, 0, IOVA + PAGE, 'x');
    CHECK(destroy(stdev2) == 0);
    CHECK(pinned() == 0);
    idev = 0;
}

static void row_late_after_access(enum kind kind)
{
    char *at = memory(kind, 4);
    begin_without_device();
    map(at, 4 * PAGE);
    CHECK(pinned() == 0);
    struct test pin = { .size = sizeof(pin), .op = OP_ACCESS_PAGES, .id = access_fd };
    pin.quad[1] = IOVA;
    pin.quad[2] = 4 * PAGE;
    pin.quad[3] = (uint64_t)at;
    CHECK(call(0xa0, &pin) == 0);
    CHECK(pinned() == 4);
    CHECK(munmap(at, 4 * PAGE) == 0);
    CHECK(try_device(ioas, &stdev, &idev) == 0);
    CHECK(pinned() == 4);
    ALONE(NULL, 0, IOVA + 3 * PAGE, 'a');
}

/* A domain that comes when its memory is gone fails, and leaves no pin. */
static void row_late_without_pages(void)
{
    char *at = memory(ANON, 4);
    begin_without_device();
    map(at, 4 * PAGE);
    CHECK(munmap(at + 2 * PAGE, PAGE) == 0);
    CHECK(try_device(ioas, &stdev, &idev) == -1 && errno == EFAULT);
    CHECK(pinned() == 0);
}
