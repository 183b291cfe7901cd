#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt or LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dmcopy_agent
short_description: Set who may ask the agent of dmcopy, and where it gives metrics
version_added: 0.1.0
description:
  - Writes C(/etc/dmcopy/agent.toml), or removes it. C(dmcopy agent --check) has read what the file
    says before it is put there; a file with a fault never is.
  - The file says what is given here and no more; what is left out is not set.
  - The agent reads the file when it starts, so restart C(dmcopy-agent.service) where this has changed
    something. Jobs are processes of their own, and go on meanwhile.
extends_documentation_fragment:
  - dmcopy.dmcopy.command
attributes:
  check_mode:
    details:
      - Has C(dmcopy agent --check) read what would be written, where there is a dmcopy on the host.
  diff_mode:
    support: full
    description: Will return details on what has changed (or possibly needs changing in check_mode).
options:
  state:
    description:
      - Whether there is such a file. Without it, root alone may ask, and there are no metrics.
    type: str
    choices: [present, absent]
    default: present
  group:
    description:
      - Who may ask beside root. Its members are as good as root, for a copy writes to any device.
      - Where there is no such group, it is made, as a system group.
    type: str
  metrics_listen:
    description:
      - Serve metrics by HTTP at this address and port, on loopback only. Needs prometheus-client
        (C(python3-prometheus-client) of Debian) on the host.
    type: str
  metrics_textfile:
    description:
      - Write metrics into this file, for the node exporter. Needs prometheus-client as well.
    type: path
seealso:
  - module: dmcopy.dmcopy.dmcopy_policy
  - module: ansible.builtin.systemd_service
author:
  - The dmcopy authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let operators ask the agent, and give metrics to a Prometheus on this host
  dmcopy.dmcopy.dmcopy_agent:
    group: dmcopy
    metrics_listen: 127.0.0.1:9273
  notify: Restart the agent of dmcopy

- name: Let root alone ask it
  dmcopy.dmcopy.dmcopy_agent:
    state: absent
  notify: Restart the agent of dmcopy

# among the handlers
- name: Restart the agent of dmcopy
  ansible.builtin.systemd_service:
    name: dmcopy-agent.service
    state: restarted
"""

RETURN = r"""
file:
  description: The file.
  returned: success
  type: str
  sample: /etc/dmcopy/agent.toml
content:
  description: What it says, or would; empty where there is none.
  returned: success
  type: str
group_made:
  description: Whether the group was made, or would be.
  returned: success
  type: bool
exit_status:
  description: Exit status of the command that failed.
  returned: failure of the check
  type: int
"""

import grp
import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dmcopy.dmcopy.plugins.module_utils import setting, toml
from ansible_collections.dmcopy.dmcopy.plugins.module_utils.cli import ARGUMENTS

_FILE = "agent.toml"
_HEAD = "# Written by Ansible (dmcopy.dmcopy.dmcopy_agent).\n"
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # as groupadd(8) takes it
_WORDS = ("group", "metrics_listen", "metrics_textfile")


def content_of(params, without=()):
    """Give the text of the file."""
    known = {
        word.replace("_", "-"): params[word]
        for word in _WORDS
        if params[word] is not None and word not in without
    }
    return _HEAD + toml.dumps(known)


def is_missing(group):
    """Tell whether there is no such group."""
    try:
        grp.getgrnam(group)
    except KeyError:
        return True
    return False


def run(module):
    """Do what is to be done, and end the module."""
    params = module.params
    path = os.path.join(setting.directory(), _FILE)
    before = setting.read(path)
    after = content_of(params) if params["state"] == "present" else ""
    if params["group"] is not None and _NAME.fullmatch(params["group"]) is None:
        module.fail_json(msg="'{0}' cannot name a group".format(params["group"]))
    makes = bool(after) and params["group"] is not None and is_missing(params["group"])
    if after and (makes or before != after):
        # a group that is still to be made would be a fault
        text = content_of(params, without=("group",)) if makes else after
        answer, read = setting.answer_of(module, ["agent", "--check"], _FILE, text)
        if answer is not None and answer.status:
            module.fail_json(msg=answer.message.replace(read, path), exit_status=answer.status)
    if makes and not module.check_mode:
        status, out, err = module.run_command(
            [module.get_bin_path("groupadd", required=True), "--system", "--", params["group"]]
        )
        if status:
            module.fail_json(msg="groupadd: {0}".format(err.strip() or out.strip()), exit_status=status)
    setting.leave(module, path, before, after, makes, group_made=makes)


def main():
    """Enter from Ansible."""
    spec = {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "group": {"type": "str"},
        "metrics_listen": {"type": "str"},
        "metrics_textfile": {"type": "path"},
    }
    spec.update(ARGUMENTS)
    run(AnsibleModule(argument_spec=spec, supports_check_mode=True))


if __name__ == "__main__":
    main()
