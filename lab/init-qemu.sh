#!/bin/sh
# What virtme-ng's init runs in the QEMU guest (lab/qemu.py), as root, udevd already there.
# virtme-ng's root is the host's over a 9p that caches nothing: each look at a file is a
# message to the host, and an import of pytest takes 20 s.  So a second 9p of the same root,
# with a cache (the host's files hold still for one run), is put under a layer of memory, and
# the rest happens in there, as in the user-mode Linux guest.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec >/dev/ttyS1 2>&1
dmesg -n 5
echo 1 >/proc/sys/kernel/panic_on_oops

off() {
    # Not an ordinary end: virtme-ng would sync, for ever if a writer is stuck in state D.
    echo o >/proc/sysrq-trigger
    sleep 60
}

options=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /run/lab/job /run/lab/lower /run/lab/layer /run/lab/root
mount -t 9p -o $options labjob /run/lab/job || off
mount -t 9p -o ro,$options,cache=loose labroot /run/lab/lower || off
mount -t tmpfs -o size=75% layer /run/lab/layer
mkdir /run/lab/layer/upper /run/lab/layer/work
mount -t overlay -o lowerdir=/run/lab/lower,upperdir=/run/lab/layer/upper,workdir=/run/lab/layer/work \
    root /run/lab/root || off
cd /run/lab/root || off
# What the host's dmcopy has on record is none of the guest's: this is above, in memory.
rm -rf etc/dmcopy var/lib/dmcopy
for tree in dev proc sys run; do
    mkdir -p $tree
    mount --rbind /$tree $tree
done
mkdir -p usr/lib/modules
mount --rbind /usr/lib/modules usr/lib/modules

. /run/lab/job/settings
mkdir -p ".$LAB_SHARE"
mount -t 9p -o $options labshare ".$LAB_SHARE" || echo "lab: cannot mount $LAB_SHARE"
chroot . /bin/sh /run/lab/job/guest.sh
off
