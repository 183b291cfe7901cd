/* Has programs start in a half of the time in a user-mode Linux guest (lab/uml.py preloads it).
 *
 * The guest's kernel maps a page into the host's process when it is touched for the first time,
 * even one that it has in memory already: three stops of a traced process, some 66 us, a page.
 * An import of dmcopy touches some thousand.  But a change of protection has the kernel go
 * through the whole range, and map at once what it has (arch/um/kernel/tlb.c:fix_range_common).
 *
 * So: fill the read-only parts of what was loaded, and what Python allocates from, and change
 * their protection to and fro.  Contents and protection are as before; programs only have more
 * of their pages in memory.  Failures are of no matter.
 *
 * Seen for `python3 -c "import dmcopy.jobs.worker"`: 15300 stops without, 8100 with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

#define SMALLEST (64 << 10)  /* bytes of a segment that is worth the calls */
#define ARENA (1 << 20)      /* Objects/obmalloc.c: ARENA_SIZE */
#define HEAP (3 << 20)       /* bytes: what an import takes of malloc's */

static unsigned long page_down(unsigned long address)
{
    return address & ~4095UL;
}

static int fill_segments(struct dl_phdr_info *object, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    for (int number = 0; number < object->dlpi_phnum; number++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[number];
        unsigned long start = page_down(object->dlpi_addr + segment->p_vaddr);
        unsigned long end = object->dlpi_addr + segment->p_vaddr + segment->p_memsz;
        size_t length = page_down(end + 4095) - start;
        int protection = PROT_READ | ((segment->p_flags & PF_X) ? PROT_EXEC : 0);

        if (segment->p_type != PT_LOAD || (segment->p_flags & PF_W) || length < SMALLEST)
            continue;
        if (madvise((void *)start, length, MADV_POPULATE_READ))
            continue;
        /* Private: nothing is written, and what is running stays executable. */
        if (mprotect((void *)start, length, protection | PROT_WRITE) == 0)
            mprotect((void *)start, length, protection);
    }
    return 0;
}

static void fill_writable(void *start, size_t length)
{
    if (madvise(start, length, MADV_POPULATE_WRITE) == 0 &&
        mprotect(start, length, PROT_READ) == 0)
        mprotect(start, length, PROT_READ | PROT_WRITE);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    void *got = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);

    if (got != MAP_FAILED && length == ARENA && protection == (PROT_READ | PROT_WRITE) &&
        flags == (MAP_PRIVATE | MAP_ANONYMOUS))
        fill_writable(got, length);
    return got;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return mmap64(address, length, protection, flags, fd, offset);
}

static void fill_heap(void)
{
    char *some;
    unsigned long start;

    mallopt(M_MMAP_THRESHOLD, 2 * HEAP); /* from the heap, */
    mallopt(M_TRIM_THRESHOLD, 8 * HEAP); /* and not given back */
    some = malloc(HEAP);
    if (some == NULL)
        return;
    start = page_down((unsigned long)some + 4095);
    fill_writable((void *)start, page_down((unsigned long)some + HEAP) - start);
    free(some);
}

__attribute__((constructor)) static void fill(void)
{
    dl_iterate_phdr(fill_segments, 0);
    if (strncmp(program_invocation_short_name, "python", 6) == 0)
        fill_heap();
}
