#!/bin/sh
# First process of the user-mode Linux guest (lab/uml.py starts it).  The kernel hands over
# LABJOB, the host's directory of this run, from its command line:
#
#   settings   shell assignments: LAB_UDEV (0|1), LAB_TTY (device or empty), LAB_SHARE (directory)
#   guest.sh   what every engine does from here on (lab/guest.sh)
#   systemd.sh with LAB_SYSTEMD=1: becomes systemd, which runs guest.sh when the machine is up
#
# The root is the host's, by hostfs.  It must stay read-only: hostfs *is* the host's file
# system, and whatever were written there would be written on the host.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The output of this script is the kernel's console, which the host keeps as an artefact.
exec >/dev/console 2>&1

off() {
    # Not `poweroff`: it would wait for ever for a writer stuck in state D.
    echo o >/proc/sysrq-trigger
    sleep 60
}

mount -t proc proc /proc || off

modules=/usr/lib/uml/modules/$(uname -r)
insmod "$modules/kernel/fs/overlayfs/overlay.ko" || off

# A writable root: the host's below, memory above.  The memory is in a tmpfs on /run, which
# is hidden from the new root, for that has a /run of its own.
mount -t tmpfs -o size=75% upper /run || off
mkdir /run/upper /run/work /run/root
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work root /run/root || off

cd /run/root || off
# What the host's dmcopy has on record is none of the guest's: this is above, in memory.
rm -rf etc/dmcopy var/lib/dmcopy
mkdir -p old
mount --move /proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mount -t tmpfs -o mode=755 run run
mkdir -p dev/pts dev/shm run/lab/job
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs shm dev/shm
mount -t hostfs -o "$LABJOB" job run/lab/job || off

# modprobe looks for modules in one place only, and those of the kernel that runs are elsewhere.
mkdir -p usr/lib/modules
ln -sfn "$modules" "usr/lib/modules/$(uname -r)"

pivot_root . old || off
umount -l /old
rmdir /old
exec chroot . /bin/sh -c '
    . /run/lab/job/settings
    mkdir -p "$LAB_SHARE"
    mount -t hostfs -o "$LAB_SHARE" share "$LAB_SHARE" || echo "lab: cannot mount $LAB_SHARE"
    [ "$LAB_SYSTEMD" = 0 ] || exec /bin/sh /run/lab/job/systemd.sh
    /bin/sh /run/lab/job/guest.sh
    echo o >/proc/sysrq-trigger
    sleep 60'
