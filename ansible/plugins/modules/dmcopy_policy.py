#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt or LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dmcopy_policy
short_description: Say what is copied by itself, when a disk is plugged in or at a time
version_added: 0.1.0
description:
  - Writes C(/etc/dmcopy/policies.d/NAME.toml), or removes it. What the file says, C(dmcopy policy check)
    has read, beside the policies that there are, before it is put there; a file with a fault never is.
  - The file says what is given here and no more; what is left out has the default of C(dmcopy copy).
  - Each run of a policy is a job of its own, with the date and time in its name; it does what
    M(dmcopy.dmcopy.dmcopy_copy) does, and refuses what that refuses.
  - The agent (role P(dmcopy.dmcopy.agent#role)) reads policies when it is told to
    (C(systemctl reload dmcopy-agent)), or by itself some time later.
  - A job that a policy has begun goes on when its policy is removed.
extends_documentation_fragment:
  - dmcopy.dmcopy.command
attributes:
  check_mode:
    details:
      - Has C(dmcopy policy check) read what would be written, where there is a dmcopy on the host.
  diff_mode:
    support: full
    description: Will return details on what has changed (or possibly needs changing in check_mode).
options:
  name:
    description:
      - Name of the policy.
    type: str
    required: true
  state:
    description:
      - Whether there is such a policy.
    type: str
    choices: [present, absent]
    default: present
  source:
    description:
      - What is copied, a path that always leads to the same device (C(/dev/mapper/NAME), C(/dev/VG/LV),
        C(/dev/disk/by-...), and not C(/dev/sdb)), or a dictionary with one word that names it, as for
        O(destination).
    type: raw
  destination:
    description:
      - Where to, a dictionary with one word that names the device for ever (C(wwn), C(serial),
        C(partuuid), C(partlabel), C(label), C(dm_uuid), C(md_uuid)), or C(image) with the path of a
        file, in which C({job}) stands for the name of the job. Never a path of a device.
    type: dict
  pairs:
    description:
      - Several volumes with one begin time, in place of O(source) and O(destination).
    type: list
    elements: dict
    suboptions:
      source:
        description: As O(source).
        type: raw
        required: true
      destination:
        description: As O(destination).
        type: dict
        required: true
  plug:
    description:
      - Whether it begins when the disk is plugged in.
    type: bool
    default: false
  calendar:
    description:
      - When it begins, as in a timer of systemd, for example V(daily) or V(Mon *-*-* 02:00). Needs the
        agent.
    type: str
  on_failure:
    description:
      - A command to run when the policy could not do its work, a program by its whole path, and
        arguments.
    type: list
    elements: str
  options:
    description:
      - Options of the copy, as of M(dmcopy.dmcopy.dmcopy_copy), by their names, but for those that say
        which job it is (C(name), C(state), C(wait), C(wait_timeout)).
      - A disk that is copied onto a second time carries the file systems of the first time. Say
        C(overwrite_signature) for such a disk; that is never assumed.
    type: dict
    default: {}
seealso:
  - module: dmcopy.dmcopy.dmcopy_copy
author:
  - The dmcopy authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the data onto a disk whenever that is plugged in
  dmcopy.dmcopy.dmcopy_policy:
    name: offsite
    source: /dev/mapper/data
    destination:
      wwn: "0x5000c500a1b2c3d4"
    plug: true
    options:
      verify: true
      overwrite_signature: true

- name: Copy it every night into a file of its own
  dmcopy.dmcopy.dmcopy_policy:
    name: nightly
    source: /dev/mapper/data
    destination:
      image: /backup/{job}.img
    calendar: "*-*-* 02:00"

- name: Copy a database and its log with one begin time, each Monday, and tell when it could not be done
  dmcopy.dmcopy.dmcopy_policy:
    name: weekly
    pairs:
      - source: /dev/vg0/db
        destination:
          image: /backup/{job}-db.img
      - source: /dev/vg0/wal
        destination:
          image: /backup/{job}-wal.img
    calendar: Mon *-*-* 02:00
    on_failure: [/usr/local/sbin/tell-admin, weekly]
    options:
      hook: [postgresql]
      verify: true

- name: No more
  dmcopy.dmcopy.dmcopy_policy:
    name: nightly
    state: absent
"""

RETURN = r"""
name:
  description: Name of the policy.
  returned: always
  type: str
file:
  description: The file.
  returned: success
  type: str
  sample: /etc/dmcopy/policies.d/offsite.toml
content:
  description: What it says, or would; empty where there is none.
  returned: success
  type: str
faults:
  description: What C(dmcopy policy check) said against it.
  returned: failure of the check
  type: list
  elements: str
exit_status:
  description: Exit status of the command that failed.
  returned: failure of the check
  type: int
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dmcopy.dmcopy.plugins.module_utils import setting, toml
from ansible_collections.dmcopy.dmcopy.plugins.module_utils.cli import ARGUMENTS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEAD = "# Written by Ansible (dmcopy.dmcopy.dmcopy_policy).\n"


def content_of(params):
    """Give the text of the policy."""
    policy = {}
    for word in ("source", "destination"):
        if params[word] is not None:
            policy[word] = params[word]
    when = {}
    if params["plug"]:
        when["on"] = ["plug"]
    if params["calendar"] is not None:
        when["calendar"] = params["calendar"]
    policy["when"] = when
    if params["on_failure"]:
        policy["on_failure"] = params["on_failure"]
    policy.update(params["options"])
    if params["pairs"]:
        policy["pair"] = params["pairs"]
    return _HEAD + toml.dumps(policy)


def check(module, name, file, text):
    """Have dmcopy read the policy beside the others; ends the module where it has a fault."""
    answer, path = setting.answer_of(module, ["policy", "check"], file, text, beside="policies.d")
    if answer is None:
        return
    found = [line[len(path) + 2 :] for line in answer.err.splitlines() if line.startswith(path)]
    if found or answer.status not in (0, 2):  # 2: any of them has a fault, which need not be ours
        module.fail_json(
            msg="policy {0}: {1}".format(name, "; ".join(found) or answer.message),
            name=name,
            faults=found,
            exit_status=answer.status,
        )


def run(module):
    """Do what is to be done, and end the module."""
    params = module.params
    if _NAME.fullmatch(params["name"]) is None:
        module.fail_json(msg="'{0}' cannot name a policy".format(params["name"]), name=params["name"])
    file = os.path.join("policies.d", params["name"] + ".toml")
    path = os.path.join(setting.directory(), file)
    before = setting.read(path)
    after = content_of(params) if params["state"] == "present" else ""
    if after and before != after:
        check(module, params["name"], file, after)
    setting.leave(module, path, before, after, name=params["name"])


def main():
    """Enter from Ansible."""
    spec = {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "source": {"type": "raw"},
        "destination": {"type": "dict"},
        "pairs": {
            "type": "list",
            "elements": "dict",
            "options": {
                "source": {"type": "raw", "required": True},
                "destination": {"type": "dict", "required": True},
            },
        },
        "plug": {"type": "bool", "default": False},
        "calendar": {"type": "str"},
        "on_failure": {"type": "list", "elements": "str"},
        "options": {"type": "dict", "default": {}},
    }
    spec.update(ARGUMENTS)
    module = AnsibleModule(
        argument_spec=spec,
        required_together=[("source", "destination")],
        mutually_exclusive=[("source", "pairs"), ("destination", "pairs")],
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "present" and not (params["source"] or params["pairs"]):
        module.fail_json(msg="say source and destination, or pairs", name=params["name"])
    run(module)


if __name__ == "__main__":
    main()
