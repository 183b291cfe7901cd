"""The lab: runs a command under a kernel that has device-mapper, md and loop devices.

Not part of the distribution; ``dmcopy`` never imports it.  One interface (`lab.guest.run`),
three engines: `lab.uml` (user-mode Linux, the default), `lab.qemu` (virtme-ng and Debian's
own kernel, two CPUs) and `lab.host` (this very machine, only when it is asked for).
"""
