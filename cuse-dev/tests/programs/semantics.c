/* What becomes of memory that a device uses, when its process does this or that with it. One
 * scenario for each argument `ROW`, `ROW:KIND` or `ROW:KIND:file` (by IOMMU_IOAS_MAP_FILE); exits
 * with 0 when all is as with Linux's iommufd, 77 where the machine lacks what the row needs.
 *
 * Bytes are looked at through an access, and through DMA of the mock device when the environment
 * names a control socket (SEMANTICS_CONTROL). Without one it runs on the real kernel, too (with
 * CONFIG_IOMMUFD_TEST), which is where the expectations come from. */
#include "iommufd.h"

#include <glob.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/vfs.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#include "semantics/scene.h"
#include "semantics/devices.h"
#include "semantics/memory.h"
#include "semantics/mappings.h"
#include "semantics/files.h"
#include "semantics/forks.h"
#include "semantics/ends.h"
#include "semantics/refused.h"
#include "semantics/rom.h"
#include "semantics/shared_pins.h"
#include "semantics/limits.h"

/* Does to memory that is mapped what the letter says. */
static void change(char what, char *at)
{
    int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    char *other;
    switch (what) {
    case 'd': /* discards page 0 */
        CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0);
        break;
    case 'u': /* unmaps page 1 */
        CHECK(munmap(at + PAGE, PAGE) == 0);
        break;
    case 'm': /* moves page 2 */
        other = memory(ANON, 1);
        CHECK(mremap(at + 2 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
        break;
    case 'o': /* maps over page 3 */
        other = mmap(at + 3 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(other == at + 3 * PAGE);
        break;
    case 'i': /* takes all out of the IOAS before it goes, and puts another page there */
        unmap(4 * PAGE);
        CHECK(munmap(at, PAGE) == 0);
        other = memory(ANON, 1);
        CHECK(try_map_at(ioas, other, PAGE, IOVA + HUGE, READABLE) == 0);
        CHECK(munmap(other, PAGE) == 0);
        break;
    case 'p': /* punches page 1 out of its file */
        CHECK(fallocate(memory_fd, punch, PAGE, PAGE) == 0);
        break;
    case 'f': /* punches page 2 out of its file, which gets another one */
        CHECK(fallocate(memory_fd, punch, 2 * PAGE, PAGE) == 0);
        at[2 * PAGE] = 'f';
        break;
    case 'r': /* removes page 3 from its file */
        CHECK(madvise(at + 3 * PAGE, PAGE, MADV_REMOVE) == 0);
        break;
    default:
        CHECK(!"known");
    }
}

/* Maps memory, and does what standard input says to it until that ends. */
static void row_wait(enum kind kind)
{
    char what, *at = memory(kind, 4);
    begin();
    map(at, 4 * unit(kind));
    printf("ready\n");
    fflush(stdout);
    while (read(0, &what, 1) == 1) {
        change(what, at);
        printf("%p\n", at);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    static const struct { const char *name; enum kind kind; } kinds[] = {
        { "anon", ANON }, { "thp", THP }, { "memfd", MEMFD }, { "shared", SHARED },
        { "hugetlb", HUGETLB }, { "tmpfs", TMPFS }, { "zero", ZERO }, { "copy", COPY },
    };
    static const struct { const char *name; void (*of)(enum kind); } by_kind[] = {
        { "live", row_live }, { "untouched", row_untouched }, { "munmap", row_munmap },
        { "fixed", row_fixed }, { "mremap", row_mremap }, { "dontneed", row_dontneed },
        { "free", row_free }, { "remove", row_remove }, { "punch", row_punch },
        { "truncate", row_truncate }, { "truncate-all", row_truncate_all }, { "fork", row_fork },
        { "cow", row_cow }, { "cow-read", row_cow_read }, { "mprotect", row_mprotect },
        { "pageout", row_pageout },
        { "half-way", row_half_way }, { "once", row_once }, { "late-domain", row_late_domain },
        { "late-after-access", row_late_after_access }, { "wait", row_wait },
        { "rom", row_rom }, { "rom-gone", row_rom_gone }, { "rom-over", row_rom_over },
        { "rom-fork", row_rom_fork }, { "rom-collapse", row_rom_collapse },
        { "rom-ends", row_rom_ends },
    };
    static const struct { const char *name; void (*of)(void); } plain[] = {
        { "private-file", row_private_file }, { "collapse", row_collapse }, { "split", row_split },
        { "read-only", row_read_only }, { "io-memory", row_io_memory },
        { "read-only-file", row_read_only_file },
        { "late-without-pages", row_late_without_pages }, { "no-limit", row_no_limit },
        { "account-fork", row_account_fork }, { "rom-code", row_rom_code },
        { "rom-sealed", row_rom_sealed }, { "rom-thread", row_rom_thread }, { "rom-sharer", row_rom_sharer },
    };
    char name[64];
    enum kind kind = ANON;
    CHECK(argc >= 2);
    if (strcmp(argv[1], "executed") == 0) {
        executed(argv[2]);
        return 0;
    }
    snprintf(name, sizeof(name), "%s", argv[1]);
    char *file = strstr(name, ":file");
    if (file) {
        by_file = 1;
        *file = 0;
    }
    char *colon = strchr(name, ':');
    if (colon) {
        size_t i = 0;
        *colon = 0;
        while (i < sizeof(kinds) / sizeof(*kinds) && strcmp(colon + 1, kinds[i].name) != 0)
            i++;
        CHECK(i < sizeof(kinds) / sizeof(*kinds));
        kind = kinds[i].kind;
    }
    for (size_t i = 0; i < sizeof(by_kind) / sizeof(*by_kind); i++)
        if (strcmp(name, by_kind[i].name) == 0)
            return by_kind[i].of(kind), 0;
    for (size_t i = 0; i < sizeof(plain) / sizeof(*plain); i++)
        if (strcmp(name, plain[i].name) == 0)
            return plain[i].of(), 0;
    if (strcmp(name, "exit") == 0)
        return row_ends(kind, 0), 0;
    if (strcmp(name, "sigkill") == 0)
        return row_ends(kind, SIGKILL), 0;
    if (strcmp(name, "exec") == 0)
        return row_exec(kind, argv), 0;
    if (strcmp(name, "limit-user") == 0)
        return row_limit(kind, 0), 0;
    if (strcmp(name, "limit-process") == 0)
        return row_limit(kind, 1), 0;
    fprintf(stderr, "no such row: %s\n", name);
    return 2;
}
