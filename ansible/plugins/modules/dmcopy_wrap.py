#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt or LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dmcopy_wrap
short_description: Put a dm device over a block device, so that it can be copied live
version_added: 0.1.0
description:
  - Nothing can be put under a partition, disk, LUN or md array that is mounted. With a wrap,
    C(/dev/mapper/NAME), over it, which applications use from then on, it can be copied live; the
    wrap is put up again at each boot.
  - The device must not be in use when it is wrapped, and a wrap not when it is taken away; what
    mounts it is changed by other modules (M(ansible.posix.mount)), between the two.
extends_documentation_fragment:
  - dmcopy.dmcopy.command
attributes:
  check_mode:
    details:
      - Asks C(dmcopy wrap --dry-run), which makes every check of the real run.
  diff_mode:
    support: full
    description: Will return details on what has changed (or possibly needs changing in check_mode).
options:
  name:
    description:
      - Name of the wrap, C(/dev/mapper/NAME).
    type: str
    required: true
  device:
    description:
      - The device to wrap, needed for V(present). Name it by what it keeps, C(/dev/disk/by-...); it is
        known by that, so where it is wrapped already under another path nothing is done.
    type: path
  state:
    description:
      - Whether there is such a wrap.
      - One of that name over another device is a failure.
    type: str
    choices: [present, absent]
    default: present
  patience:
    description:
      - Wait so many seconds for the COW device of an unfinished job on it. Default V(30).
    type: float
seealso:
  - module: dmcopy.dmcopy.dmcopy_copy
author:
  - The dmcopy authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Have /dev/mapper/data over a partition
  dmcopy.dmcopy.dmcopy_wrap:
    name: data
    device: /dev/disk/by-partuuid/0f7e1f0c-01

- name: Mount that from now on, and not the partition
  ansible.posix.mount:
    path: /srv/data
    src: /dev/mapper/data
    fstype: ext4
    state: mounted

- name: Take it away, for good, when nothing uses it any more
  dmcopy.dmcopy.dmcopy_wrap:
    name: data
    state: absent
"""

RETURN = r"""
name:
  description: Name of the wrap.
  returned: always
  type: str
mapper:
  description: The device that applications use.
  returned: success
  type: str
  sample: /dev/mapper/data
under:
  description: The device under it, by the name that the kernel gives it now; null where it is not there.
  returned: success
  type: str
identity:
  description: What the device under it is known by, for ever.
  returned: success
  type: dict
  sample: {"partuuid": "0f7e1f0c-01"}
size_bytes:
  description: Size of the wrap; null where there is none.
  returned: success
  type: int
said:
  description: What the command said, line by line, for example what in C(/etc/fstab) is to be changed.
  returned: when something was changed, not in check mode
  type: list
  elements: str
commands:
  description: The commands that changed something; in check mode those that would be run.
  returned: always
  type: list
  elements: str
exit_status:
  description: Exit status of the command that failed; C(3) refused for safety, nothing was changed.
  returned: failure of a command
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dmcopy.dmcopy.plugins.module_utils.cli import ARGUMENTS, Cli


def run(module):
    """Do what is to be done, and end the module."""
    cli = Cli(module)
    name, wanted = module.params["name"], module.params["state"] == "present"
    words = ["wrap", module.params["device"], name] if wanted else ["unwrap", name]
    planned = cli.ask(words + ["--dry-run", "--json"], "wrap_planned", name=name)
    facts = {"name": name, "mapper": "/dev/mapper/" + name}
    for word in ("under", "identity", "size_bytes"):
        facts[word] = planned[word]
    there = {"name": name, "state": "present", "under": facts["under"], "identity": facts["identity"]}
    gone = {"name": name, "state": "absent"}
    before = there if wanted != planned["changes"] else gone
    if planned["changes"]:
        if wanted and module.params["patience"] is not None:
            words = words + ["--patience", "{0:g}".format(module.params["patience"])]
        if module.check_mode:
            cli.will(words)
        else:
            answer = cli.run(words, changes=True)
            if answer.status:
                cli.fail(answer, name=name)
            facts["said"] = answer.out.splitlines()
    module.exit_json(
        changed=planned["changes"],
        commands=cli.commands,
        diff={"before": before, "after": there if wanted else gone},
        **facts,
    )


def main():
    """Enter from Ansible."""
    spec = {
        "name": {"type": "str", "required": True},
        "device": {"type": "path"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "patience": {"type": "float"},
    }
    spec.update(ARGUMENTS)
    module = AnsibleModule(
        argument_spec=spec,
        required_if=[("state", "present", ["device"])],
        supports_check_mode=True,
    )
    run(module)


if __name__ == "__main__":
    main()
