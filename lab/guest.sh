#!/bin/sh
# The second half of a guest's start, the same for every engine: devices, udev, then the
# command.  /run/lab/job is the host's directory of this run:
#
#   settings   shell assignments (see lab/guest.py)
#   command    the script to run
#   output     what it wrote (both streams, in order)
#   status     its exit status; its absence means that the guest never got so far
job=/run/lab/job
. $job/settings

# Shells' process substitution <(...) and many test scripts need these.
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
[ -e /dev/stdin ] || ln -s /proc/self/fd/0 /dev/stdin
[ -e /dev/stdout ] || ln -s /proc/self/fd/1 /dev/stdout
[ -e /dev/stderr ] || ln -s /proc/self/fd/2 /dev/stderr

ip link set lo up 2>/dev/null
mkdir -p /run/lock /run/lvm /run/mdadm /var/tmp/lab-guest
modprobe -a dm-mod loop

# udev, as on a real machine, but only block devices are told to it again (coldplug).
if [ "$LAB_UDEV" = 1 ] && [ ! -e /run/udev/control ]; then
    /lib/systemd/systemd-udevd --daemon --resolve-names=never
    udevadm trigger --action=add --subsystem-match=block
    udevadm trigger --action=add --subsystem-match=misc --sysname-match=device-mapper
    udevadm settle --timeout=30
fi
if [ "$LAB_UDEV" = 0 ] && [ -e /run/udev/control ]; then
    # The init of virtme-ng has started it; its sockets would still look like it.
    udevadm control --exit --timeout=30
    rm -f /run/udev/control
fi
if [ ! -e /dev/mapper/control ]; then
    # Without udev nobody makes the node that libdevmapper looks for.
    mkdir -p /dev/mapper
    mknod /dev/mapper/control c 10 "$(sed -n 's/ device-mapper$//p' /proc/misc | tr -d ' ')"
fi

if [ -n "$LAB_TTY" ]; then
    # A terminal: the host relays it, and keeps the transcript.
    # Its size is set by the one who holds it open: a console of QEMU forgets it when closed.
    setsid --ctty --wait /bin/sh -c 'stty sane rows "$1" cols "$2"; exec /bin/sh "$0"' \
        $job/command "$LAB_ROWS" "$LAB_COLUMNS" <"$LAB_TTY" >"$LAB_TTY" 2>&1
    status=$?
else
    # dsync: each piece of output is at the host before the next one is read, so that the
    # host can show it, and that a panic does not take it along.
    mkfifo /run/lab/pipe
    dd bs=64k of=$job/output oflag=append,dsync conv=notrunc status=none </run/lab/pipe &
    writer=$!
    setsid --wait /bin/sh $job/command </dev/null >/run/lab/pipe 2>&1
    status=$?
    # A daemon that the command left behind may hold the pipe: do not wait for ever.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 $writer 2>/dev/null || break
        sleep 0.1
    done
fi
echo $status | dd of=$job/status.new oflag=dsync status=none
mv $job/status.new $job/status
