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
 *
 * A fork begins with nothing mapped, and copies each page that it writes to: which, for Python's
 * reference counts, is most of what it reads.  `lab_fill_fork` does both at once.  Seen for
 * `dmcopy list` in a fork of pytest: 0.6 to 0.9 s without, 0.4 s with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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
#define LARGE (256 << 10)    /* bytes of a mapping that holds no thread's own data */

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

static int is_of_the_heap(const char *line)
{
    return strstr(line, "[heap]") || (strstr(line, " 00:00 0") && !strchr(line, '['));
}

/* To be called by a fork that goes on for a while.  Nothing here may write to what it fills; a
 * mapping that follows a guard page is the stack of a thread. */
void lab_fill_fork(void)
{
    static char text[256 << 10]; /* in .bss, of a file: not filled */
    size_t length = 0;
    ssize_t got;
    unsigned long guard = 0; /* where the last one without access ended */
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
        length += (size_t)got;
    close(fd);
    text[length] = 0;
    for (char *line = text, *next; line; line = next) {
        char *rest;
        unsigned long start = strtoul(line, &rest, 16);
        unsigned long end = *rest == '-' ? strtoul(rest + 1, &rest, 16) : 0;

        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        if (strncmp(rest, " ---p", 5) == 0)
            guard = end;
        else if (end >= start + LARGE && start != guard && strncmp(rest, " rw-p", 5) == 0 &&
                 is_of_the_heap(line))
            fill_writable((void *)start, end - start);
    }
}
