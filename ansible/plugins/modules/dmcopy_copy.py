#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt or LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dmcopy_copy
short_description: Copy a live block device as it was at one instant
version_added: 0.1.0
description:
  - Copies a block device, or several with one begin time, onto other devices or into image files,
    while applications go on writing. The copy is the device as it was at one instant, the begin
    time. What is overwritten before it is copied is kept in a snapshot, whose content is on the COW
    device (copy on write).
  - A job is known by its O(name). One that has finished is never copied again, one that was
    interrupted goes on where it was, as of the same begin time; so a play can be run again at any
    time. To copy anew, give another name, for example with the date in it.
  - A job of that name with another source, another destination, or options with another result
    (O(keep), O(freeze), O(digest), O(hook), O(no_hooks), O(new_identity), and O(verify) where it was
    begun without, unless it was interrupted) is a failure, and never a second copy. Devices are compared by what
    tells them apart (WWN, serial number, UUIDs), and by path only where nothing is known.
    Options that only say how the copy comes about are not compared.
  - There is no option that forces anything. A destination that is mounted, held or too small is refused,
    whatever is said; O(overwrite_signature) is for one that carries something.
  - The copy runs in the background of the host, so it goes on when the connection breaks. Run the
    play again then; it waits for the end.
  - An option that is left out has the default of C(dmcopy copy), which is named here. Sizes are
    numbers with a unit, for example V(64k), V(4MiB) or V(20g).
extends_documentation_fragment:
  - dmcopy.dmcopy.command
attributes:
  check_mode:
    details:
      - Asks C(dmcopy plan), which makes every check that the copy makes, and returns what the real
        run returns, but for what can only be measured.
  diff_mode:
    support: full
    description: Will return details on what has changed (or possibly needs changing in check_mode).
    details:
      - Shows the state of the job before and after, and for a new one its devices, its size and what
        is done to the devices.
options:
  name:
    description:
      - Name of the job, on this host. What it is a copy of does not change any more.
    type: str
    required: true
  state:
    description:
      - V(started), the copy is under way, or has finished.
      - V(finished), the copy has finished. Waits for it, unless O(wait=false).
      - V(paused), nothing is copied, and the point in time is kept, which is fixed where there is no
        such job yet. A job that has finished stays as it is, and so does one that was interrupted.
        Go on with V(started) or V(finished).
      - V(absent), a job that has not finished is given up, and everything is put back; so is the
        snapshot of one that was kept (O(keep)). What was copied stays, and so does the record of a
        job that has finished; it is not copied again.
      - A job that failed or was given up is begun anew by V(started), V(finished) and V(paused).
    type: str
    choices: [started, finished, paused, absent]
    default: finished
  source:
    description:
      - The block device to copy. Needs O(destination).
      - May be left out for a job that there is.
    type: str
  destination:
    description:
      - Where the copy goes, a block device or C(image:/path). Name a device by what it keeps,
        C(/dev/disk/by-id/...), and not C(/dev/sdb).
    type: str
  pairs:
    description:
      - Several volumes with one begin time (a consistency group), in place of O(source) and
        O(destination). Every option holds for each of them. One of them alone is copied as any volume.
    type: list
    elements: dict
    suboptions:
      source:
        description: The block device to copy.
        type: str
        required: true
      destination:
        description: Where its copy goes.
        type: str
        required: true
  wait:
    description:
      - With O(state=finished), wait for the end. Without, the module returns as soon as the begin
        time is fixed, and a later run says whether the job has finished.
    type: bool
    default: true
  wait_timeout:
    description:
      - Wait no longer than so many seconds, and fail then. The copy goes on.
    type: float
  cow:
    description:
      - Where old content of what is written meanwhile is kept, V(auto), C(SIZE) (files in the state
        directory), C(FILE:SIZE), C(DEVICE[,DEVICE...]) (block devices that are filled one after the
        other) or C(vg:NAME[:SIZE]) (an LV that is made). V(auto) and C(vg:NAME) grow when that is
        needed. Default V(auto).
    type: str
  cow_max:
    description:
      - How large a COW file or LV may become. By default one with a size stays as it is.
    type: str
  on_full:
    description:
      - When the COW device is about to be full and cannot grow, V(fail) lets the snapshot go, and with
        it the copy; V(hold) has writers wait, each at most for O(hold_limit), while what they wait for
        is copied. Default V(fail).
    type: str
    choices: [fail, hold]
  order:
    description:
      - What is copied first, the image from its beginning, what is written the most (V(hot)), or what
        fills the COW device the most (V(cow)). Default V(sequential).
    type: str
    choices: [sequential, hot, cow]
  gate:
    description:
      - With V(segment), writes to the segment that is being copied wait until it is done, at most a
        quarter of O(hold_limit), and cost the COW device nothing. Default V(none).
    type: str
    choices: [none, segment]
  via:
    description:
      - How the begin time is fixed. With V(md-split) the spare of a RAID1 is made a member and split
        off, for an array that is mounted as it is. Default V(auto), by what the source is.
    type: str
    choices: [auto, md-split]
  md_resync:
    description:
      - What is done about a resync, recovery or check of an md array under the source, V(wait) for its
        end, V(pause) it for the time of the copy, or V(ignore) it. Default V(auto), which waits where
        the members of a mirror may differ.
    type: str
    choices: [auto, wait, pause, ignore]
  chunk:
    description:
      - Unit of the snapshot, a size. Default V(64k).
    type: str
  segment:
    description:
      - Unit of the copy, a size. Default V(4m).
    type: str
  batch:
    description:
      - Make the copy durable after this much, a size, or after 5 seconds, whichever comes first. That
        is what an interruption costs. Default V(1g).
    type: str
  rate:
    description:
      - Read at most this much a second, or V(auto), which backs off when writes become slow, or V(none).
        Default V(none).
      - Of a job that is there already it changes nothing; C(dmcopy set) does.
    type: str
  digest:
    description:
      - Digest of the image, which is returned. Default V(sha256).
    type: str
    choices: [sha256, none]
  hold_limit:
    description:
      - Longest time that a write may be held, in seconds. Default V(2).
    type: float
  freeze:
    description:
      - Whether file systems on the source, and on devices above it, are frozen for the begin time, so
        that they are clean in the copy (V(auto)), or are as after a power cut (V(none)). Default V(auto).
    type: str
    choices: [auto, none]
  hook:
    description:
      - Commands to run around the begin time, beside those of the host
        (C(/etc/dmcopy/hooks.d)), each by its path, or one that comes with dmcopy, V(postgresql) or V(mariadb).
    type: list
    elements: str
  hook_timeout:
    description:
      - Longest time for each side of a hook, in seconds. Default V(60).
    type: float
  no_hooks:
    description:
      - Do not run the hooks of the host (C(/etc/dmcopy/hooks.d)).
    type: bool
    default: false
  no_retire:
    description:
      - Keep what is copied in the snapshot. Without it, writes to what is copied are saved no more,
        and pass at full speed.
    type: bool
    default: false
  keep:
    description:
      - Keep the snapshot when everything is copied, until O(state=absent).
    type: bool
    default: false
  queue:
    description:
      - Begin only when fewer than so many others of the host run as C(dmcopy set --host jobs=N) says.
    type: bool
    default: false
  verify:
    description:
      - Read the destination back, and compare its digest with that of the image.
    type: bool
    default: false
  overwrite_signature:
    description:
      - Write onto a device that carries a file system, partition table, PV or md signature. One that
        is mounted, held or too small is refused, whatever is said here.
    type: bool
    default: false
  new_identity:
    description:
      - When everything is copied, and verified, give the copy UUIDs, labels and names of its own, so
        that it can be used beside its source on one host.
    type: bool
    default: false
seealso:
  - module: dmcopy.dmcopy.dmcopy_info
  - module: dmcopy.dmcopy.dmcopy_wrap
author:
  - The dmcopy authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy a volume onto a disk of its own, and read it back
  dmcopy.dmcopy.dmcopy_copy:
    name: db-2026-01-31
    source: /dev/vg0/db
    destination: /dev/disk/by-id/wwn-0x5000c500a1b2c3d4
    verify: true

- name: Copy a database and its log, with one begin time
  dmcopy.dmcopy.dmcopy_copy:
    name: db-2026-01-31
    pairs:
      - source: /dev/vg0/db
        destination: image:/backup/db.img
      - source: /dev/vg0/wal
        destination: image:/backup/wal.img
    hook: [postgresql]
    wait_timeout: 7200

- name: Begin it, and go on with other things
  dmcopy.dmcopy.dmcopy_copy:
    name: home-2026-01-31
    state: started
    source: /dev/mapper/home
    destination: image:/backup/home.img
    rate: 100m

- name: Wait for its end, and see what came of it
  dmcopy.dmcopy.dmcopy_copy:
    name: home-2026-01-31
    wait_timeout: 7200
  register: home

- name: Say what is where
  ansible.builtin.debug:
    msg: "{{ home.source }} as of {{ home.begin_time }} is at {{ home.destination }}: {{ home.digest }}"

- name: Fix the begin time now, and copy in the night
  dmcopy.dmcopy.dmcopy_copy:
    name: mail-2026-01-31
    state: paused
    source: /dev/mapper/mail
    destination: image:/backup/mail.img

- name: Give it up
  dmcopy.dmcopy.dmcopy_copy:
    name: mail-2026-01-31
    state: absent
"""

RETURN = r"""
job:
  description: Name of the job, as O(name).
  returned: always
  type: str
job_state:
  description:
    - Where the job is now, C(started), C(paused), C(interrupted), C(finished), C(kept) (finished,
      with its snapshot), C(over) (failed or given up) or C(absent). In check mode, where it would be.
  returned: success
  type: str
commands:
  description: The commands that changed something; in check mode those that would be run.
  returned: always
  type: list
  elements: str
source:
  description: The device that is copied, of several all of them.
  returned: when the job is known
  type: str
destination:
  description: Where the copy goes, of several all of them.
  returned: when the job is known
  type: str
source_identity:
  description:
    - What tells the source from other devices, as far as there is any of it. This is compared where there
      is a job of that name already, and not the path.
  returned: when the job is known, and copies one volume
  type: dict
  sample: {"devno": "8:16", "size_bytes": 1073741824, "wwn": "0x5000c500a1b2c3d4"}
destination_identity:
  description: The same of the destination; of an image its path.
  returned: when the job is known, and copies one volume
  type: dict
provider:
  description: How the begin time is fixed, for example C(splice), C(lvm), C(idle) or C(group).
  returned: when the job is known
  type: str
bytes:
  description: Size of the image in bytes, of several their sum; so are all other values with bytes in their name.
  returned: when the job has begun, or would
  type: int
segment_bytes:
  description: Size of a segment.
  returned: when the job has begun, or would
  type: int
segments:
  description: How many segments there are to copy (RV(bytes) in pieces of RV(segment_bytes)).
  returned: when the job has begun, or would
  type: int
chunk_bytes:
  description: Unit of the snapshot; null without one.
  returned: when a copy was begun, or would be
  type: int
cow:
  description: What the COW device is made of; null without one.
  returned: when a copy was begun, or would be
  type: str
cow_bytes:
  description: Size of the COW device at the beginning.
  returned: when a copy was begun, or would be
  type: int
steps:
  description: What is done to the devices, as lines that can be pasted.
  returned: when a copy was begun, or would be
  type: list
  elements: str
hooks:
  description: Commands that are run around the begin time.
  returned: when a copy was begun, or would be
  type: list
  elements: str
freezes:
  description: Mount points above the source that are frozen for the begin time.
  returned: when a copy was begun, or would be
  type: list
  elements: str
volumes:
  description: Each volume of a group, with its job, source, destination and their identities.
  returned: when the job is known
  type: list
  elements: dict
begin_time:
  description: The instant that was copied, UTC, with nanoseconds.
  returned: when the job has begun; not in check mode, as all that follows
  type: str
  sample: "2026-01-31T23:59:59.123456789Z"
hold_ms:
  description: How long writes were held for the begin time, in milliseconds, each time.
  returned: when the job has begun
  type: list
  elements: float
bytes_source:
  description: How much of the image was read from the source.
  returned: when the job has begun
  type: int
bytes_cow:
  description: How much of it was taken from the snapshot, for it was overwritten meanwhile.
  returned: when the job has begun
  type: int
bytes_zero:
  description: How much of it were zeroes.
  returned: when the job has begun
  type: int
exceptions:
  description: How many chunks (RV(chunk_bytes)) were saved to the COW device.
  returned: when the job has begun
  type: int
cow_used_bytes:
  description: How much of the COW device (RV(cow_bytes)) was used.
  returned: when the job has begun
  type: int
cow_predicted_bytes:
  description: How much of it the last forecast expected to be used in the end; null where there was none.
  returned: when the job has begun
  type: int
digest:
  description:
    - SHA-256 of the image.
    - Null until it has finished, with O(digest=none), for a copy that was interrupted unless it was
      verified, and for several, of which RV(members) has each.
  returned: when the job has begun
  type: str
verified:
  description: Whether the destination was read back, and is the image; null until it has finished.
  returned: when the job has begun
  type: bool
seconds:
  description: How long it took, in seconds; null until it has finished.
  returned: when the job has begun
  type: float
members:
  description: How each volume of a group ended, with its digest; empty until then, and for a job of one volume.
  returned: when the job has begun
  type: list
  elements: dict
differs:
  description: What is asked for and is not so in the job of that name, each with C(word), C(recorded) and C(asked).
  returned: failure, because the job is another copy
  type: list
  elements: dict
  sample: [{"word": "source", "recorded": "/dev/sda", "asked": "/dev/sdb"}]
exit_status:
  description:
    - Exit status of the command that failed; C(3) refused for safety and nothing changed, C(4) the
      point in time was lost, C(5) interrupted, and can be resumed, C(6) something was left behind.
  returned: failure of a command
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dmcopy.dmcopy.plugins.module_utils import copying
from ansible_collections.dmcopy.dmcopy.plugins.module_utils.cli import ARGUMENTS, Cli


def arguments():
    """Give the argument specification."""
    spec = {
        "name": {"type": "str", "required": True},
        "state": {
            "type": "str",
            "choices": ["started", "finished", "paused", "absent"],
            "default": "finished",
        },
        "source": {"type": "str"},
        "destination": {"type": "str"},
        "pairs": {
            "type": "list",
            "elements": "dict",
            "options": {
                "source": {"type": "str", "required": True},
                "destination": {"type": "str", "required": True},
            },
        },
        "wait": {"type": "bool", "default": True},
        "wait_timeout": {"type": "float"},
        "hook": {"type": "list", "elements": "str"},
        "queue": {"type": "bool", "default": False},
    }
    spec.update(copying.VALUES)
    spec.update((name, {"type": "bool", "default": False}) for name in copying.FLAGS)
    spec.update(ARGUMENTS)
    return spec


class Copying:
    """One run of the module."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.job = module.params["name"]
        self.words = copying.words_of(module.params)
        self.cli = Cli(module)
        self.says_what = bool(self.params["source"] or self.params["pairs"])
        self.waits = self.params["state"] == "finished" and self.params["wait"]

    def record(self, words):
        """Give what is on record of the job, and where it is."""
        found = self.cli.ask(["plan", "--on-record", "--json"] + words, "on_record", job=self.job)
        return found, copying.standing_of(found["status"], found["volumes"])

    def run(self):
        """Do what is to be done, and end the module."""
        record, standing = self.record(self.words)
        action = copying.action_of(self.params["state"], standing)
        # of a job that is over only its name is left, which can be used again
        if record["same"] is False and standing != copying.OVER:
            self.refuse(copying.conflict(record), differs=record["differs"])
        status = record["status"]
        if action == copying.REFUSE:
            why = status["no_way_on"] or "it left something behind"
            self.refuse("job {0} cannot go on: {1}; give it up: state=absent".format(self.job, why))
        if action in (copying.COPY, copying.HELD) and not self.says_what:
            self.refuse("there is no job {0}: say source and destination".format(self.job))
        changes_by_itself = self.waits and standing == copying.RUNNING
        after = copying.standing_after(self.params["state"], action, standing, self.waits)
        facts = copying.recorded_facts(status, record["volumes"])
        if action in (copying.COPY, copying.HELD):
            facts = self.copy(held=action == copying.HELD)
        elif action is not None:
            self.steer(action, status)
        changed = action is not None or changes_by_itself
        if changed and not self.module.check_mode:
            if self.waits:
                self.wait()
            record, found = self.record(["--name", self.job])
            if self.waits:  # only where it was asked for: a small copy may be done by now
                after = found
        is_known = record["status"] is not None and (changed or standing != copying.OVER)
        if is_known and not (changed and self.module.check_mode):
            facts.update(copying.measured_facts(record["status"]))
        self.leave(changed, standing, after, facts)

    def copy(self, held):
        """Begin a copy, or see what it would be; gives what is planned."""
        begin = ["copy", "--detach", "--json"] + (["--hold-start"] if held else [])
        begin += (["--queue"] if self.params["queue"] else []) + self.words
        if self.module.check_mode:
            self.cli.will(begin)
            planned = self.cli.ask(["plan", "--json"] + self.words, "planned", job=self.job)
        else:
            answer = self.cli.run(begin, changes=True)
            planned = answer.first("planned")
            for one in answer.events:
                if one["event"] == "warning":
                    self.module.warn(one["message"])
            if answer.status or planned is None:
                self.cli.fail(answer, job=self.job)
        return copying.planned_facts(planned)

    def steer(self, action, status):
        """Resume, pause or cancel the job that there is."""
        words = [action, self.job]
        if action == copying.RESUME:
            verify = ["--verify"] if self.params["verify"] else []
            words = ["resume", "--detach"] + verify + [self.job]
        if self.module.check_mode:
            self.cli.will(words)
            if action == copying.RESUME and status["not_now"]:
                self.refuse("job {0} cannot go on now: {1}".format(self.job, status["not_now"]))
            return
        answer = self.cli.run(words, changes=True)
        if answer.status:
            self.cli.fail(answer, job=self.job)

    def wait(self):
        """Wait for the end; fails as the job does."""
        words = ["wait", self.job]
        if self.params["wait_timeout"] is not None:
            words += ["--timeout", "{0:g}".format(self.params["wait_timeout"])]
        answer = self.cli.run(words)
        if answer.status:
            self.cli.fail(answer, job=self.job)

    def refuse(self, message, **facts):
        """End the module; nothing was changed."""
        self.module.fail_json(msg=message, job=self.job, commands=[], **facts)

    def leave(self, changed, before, after, facts):
        """End the module."""
        shown = {"job": self.job, "state": after}
        for name in ("source", "destination", "bytes", "steps"):
            if facts.get(name) is not None and before in (copying.NOTHING, copying.OVER):
                shown[name] = facts[name]
        old = {"job": self.job, "state": before}
        self.module.exit_json(
            changed=changed,
            job=self.job,
            job_state=after,
            commands=self.cli.commands,
            diff={"before": old, "after": shown if changed else old},
            **facts,
        )


def main():
    """Enter from Ansible."""
    module = AnsibleModule(
        argument_spec=arguments(),
        required_together=[("source", "destination")],
        mutually_exclusive=[("source", "pairs"), ("destination", "pairs")],
        supports_check_mode=True,
    )
    Copying(module).run()


if __name__ == "__main__":
    main()
