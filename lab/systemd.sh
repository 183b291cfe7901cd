#!/bin/sh
# The guest with systemd as its first process: what is put right before systemd takes over.  The
# root is the host's under a layer of memory, so what the host has installed would be started too:
# only what a test lays over the root (LAB_OVERLAY) and what belongs to every boot is.
job=/run/lab/job
units=/etc/systemd/system

: >/etc/fstab
: >/etc/machine-id
# With it systemd believes itself in a container, and does not start udev.
rm -f /.dockerenv
rm -rf $units && mkdir -p $units

# tmpfiles-setup would empty /tmp; the others wait for what is not there, or for nothing.
for unit in systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service \
    systemd-timesyncd.service systemd-resolved.service systemd-networkd.service \
    systemd-logind.service systemd-firstboot.service systemd-update-utmp.service \
    systemd-random-seed.service systemd-journal-flush.service systemd-binfmt.service \
    systemd-pcrphase-sysinit.service systemd-pstore.service systemd-boot-random-seed.service \
    systemd-modules-load.service systemd-sysctl.service systemd-machine-id-commit.service \
    keyboard-setup.service console-setup.service apparmor.service ifupdown-pre.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount modprobe@.service \
    getty.target getty@.service serial-getty@.service console-getty.service \
    postgresql.service postgresql@.service mariadb.service iscsid.service open-iscsi.service \
    tgt.service mdmonitor.service networking.service lvm2-monitor.service blk-availability.service; do
    ln -s /dev/null $units/$unit
done

# Only what tests are about is told to udev again, as in lab/guest.sh: each event takes its time.
mkdir $units/systemd-udev-trigger.service.d
cat >$units/systemd-udev-trigger.service.d/lab.conf <<'END'
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=block
END

cat >$units/lab.target <<'END'
[Unit]
Description=The lab's command
Requires=basic.target
Wants=lab.service
END
# StandardOutput: guest.sh takes care of the command's own.
cat >$units/lab.service <<'END'
[Unit]
Description=The lab's command
After=basic.target
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
KillMode=process
ExecStart=/bin/sh /run/lab/job/guest.sh
ExecStopPost=/bin/sh -c "echo o >/proc/sysrq-trigger"
END
# A boot that fails says so at once; a shell for the administrator would wait for ever.
cat >$units/emergency.service <<'END'
[Unit]
Description=The end of a boot that failed
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/console
ExecStart=/bin/sh -c "echo lab: the boot failed; systemctl --failed --no-pager; journalctl -b --no-pager | tail -n 80; echo o >/proc/sysrq-trigger"
END
[ ! -d $job/overlay ] || cp -a --no-preserve=ownership $job/overlay/. /

# not `quiet`: what a unit says at boot is then to be found on the console
exec /lib/systemd/systemd --unit=lab.target --log-target=kmsg --log-level=notice \
    --show-status=no --default-standard-output=journal --crash-reboot=no
