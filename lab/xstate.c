/*
 * Lets the user-mode Linux of Debian 12 run on a CPU with AMX.
 *
 * UML keeps the extended registers of its processes in a buffer whose size was fixed when it
 * was built.  AMX adds 8 KiB to the host's XSAVE area, and ptrace(PTRACE_SETREGSET,
 * NT_X86_XSTATE) takes nothing but the whole area (Linux: arch/x86/kernel/fpu/regset.c,
 * xstateregs_set: "A whole standard-format XSAVE buffer is needed"), so UML panics at its first
 * process, in put_fp_registers.
 *
 * Preloaded, this completes a buffer that is too short: the rest is what the process has now.
 * A PTRACE_GETREGSET with a short buffer is truncated by the kernel, as UML wants it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Static: UML calls from its small kernel stacks, and has one CPU and no preemption. */
static unsigned char area[1 << 16] __attribute__((aligned(64)));

typedef long (*ptrace_call)(int, pid_t, void *, void *);

long ptrace(enum __ptrace_request request, ...)
{
    static ptrace_call real;
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (!real)
        real = (ptrace_call)dlsym(RTLD_NEXT, "ptrace");

    if (request == PTRACE_SETREGSET && (unsigned long)address == NT_X86_XSTATE) {
        const struct iovec *given = data;
        struct iovec whole = {.iov_base = area, .iov_len = sizeof area};

        if (real(PTRACE_GETREGSET, pid, address, &whole) == 0 && given->iov_len < whole.iov_len) {
            memcpy(area, given->iov_base, given->iov_len);
            return real(request, pid, address, &whole);
        }
    }
    return real(request, pid, address, data);
}
