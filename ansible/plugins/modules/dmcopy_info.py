#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt or LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dmcopy_info
short_description: Say which copies and wraps there are
version_added: 0.1.0
description:
  - Gathers what dmcopy knows of its jobs, whether they run, are interrupted or have ended, of wraps,
    and of what is missing on the host. Changes nothing.
extends_documentation_fragment:
  - dmcopy.dmcopy.command
attributes:
  diff_mode:
    support: none
    description: Will return details on what has changed (or possibly needs changing in check_mode).
options:
  gather_subset:
    description:
      - What to ask for, jobs, wraps, and what C(dmcopy doctor) finds on the host (V(checks)).
    type: list
    elements: str
    choices: [jobs, wraps, checks]
    default: [jobs, wraps]
  job:
    description:
      - Only this job; none is returned where there is no such job.
    type: str
  log:
    description:
      - Return what happened to each job as well.
    type: bool
    default: false
seealso:
  - module: dmcopy.dmcopy.dmcopy_copy
  - module: dmcopy.dmcopy.dmcopy_wrap
author:
  - The dmcopy authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Which jobs are there
  dmcopy.dmcopy.dmcopy_info:
  register: found

- name: Name those that stopped in the middle
  ansible.builtin.debug:
    msg: "{{ found.jobs | selectattr('can_resume') | map(attribute='job') }}"

- name: Say what is missing on the host
  dmcopy.dmcopy.dmcopy_info:
    gather_subset: [checks]
  register: host

- name: Fail where it is needed
  ansible.builtin.assert:
    that: host.checks | selectattr('needed') | rejectattr('ok') | length == 0
    fail_msg: "{{ host.checks | rejectattr('ok') | map(attribute='mend') | join('; ') }}"
"""

RETURN = r"""
version:
  description: Version of dmcopy.
  returned: always
  type: str
jobs:
  description: The jobs, oldest first, as C(dmcopy list --json) has them.
  returned: when asked for
  type: list
  elements: dict
  contains:
    job:
      description: Its name.
      type: str
    state:
      description: Its state in the journal, for example C(copying), C(paused) or C(ended).
      type: str
    pid:
      description: The process that works on it; null where none does.
      type: int
    dead:
      description: Whether it stopped in the middle, or left something.
      type: bool
    can_resume:
      description: Whether it can go on.
      type: bool
    source:
      description: What it copies.
      type: str
    destination:
      description: Where to.
      type: str
    begun:
      description: What was said when the begin time was fixed, with C(begin_time); null before.
      type: dict
    progress:
      description: How far it was when it last said so, with C(bytes_done) and C(bytes_total); null before.
      type: dict
    ended:
      description: How it ended, with C(digest), C(verified), sizes and times; null before.
      type: dict
    log:
      description: What happened to it, oldest first.
      returned: with O(log=true)
      type: list
wraps:
  description: The wraps, as C(dmcopy wrap --list --json) has them.
  returned: when asked for
  type: list
  elements: dict
  contains:
    name:
      description: Its name, C(/dev/mapper/NAME).
      type: str
    state:
      description: C(up), C(down), C(missing) (what is under it is not there) or C(half made).
      type: str
    under:
      description: The device under it, by the name that the kernel gives it now; null where it is not there.
      type: str
    identity:
      description: What the device under it is known by.
      type: dict
    size_bytes:
      description: Its size.
      type: int
    jobs:
      description: Unfinished jobs whose snapshot it stands for.
      type: list
checks:
  description: What is missing on the host or not, as C(dmcopy doctor --json) has it.
  returned: when asked for
  type: list
  elements: dict
  contains:
    name:
      description: What was looked at.
      type: str
    ok:
      description: Whether it is as it should be.
      type: bool
    needed:
      description: Whether dmcopy cannot do without it.
      type: bool
    detail:
      description: What was found.
      type: str
    mend:
      description: What to do about it; a command, or empty.
      type: str
commands:
  description: Empty, for nothing is changed.
  returned: failure of a command
  type: list
  elements: str
exit_status:
  description: Exit status of the command that failed.
  returned: failure of a command
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dmcopy.dmcopy.plugins.module_utils.cli import ARGUMENTS, Cli


def events(cli, words, fine=(0,)):
    """Give all objects that a command prints."""
    answer = cli.run(words)
    if answer.status not in fine:
        cli.fail(answer)
    return answer.events


def without(one, word):
    """Give a dict without one of its keys."""
    return {key: value for key, value in one.items() if key != word}


def main():
    """Enter from Ansible."""
    spec = {
        "gather_subset": {
            "type": "list",
            "elements": "str",
            "choices": ["jobs", "wraps", "checks"],
            "default": ["jobs", "wraps"],
        },
        "job": {"type": "str"},
        "log": {"type": "bool", "default": False},
    }
    spec.update(ARGUMENTS)
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    cli = Cli(module)
    wanted = module.params["gather_subset"]
    facts = {"version": cli.run(["--version"]).out.strip().rpartition(" ")[2]}
    if "jobs" in wanted:
        jobs = events(cli, ["list", "--json"])
        if module.params["job"] is not None:
            jobs = [one for one in jobs if one["job"] == module.params["job"]]
        facts["jobs"] = [one if module.params["log"] else without(one, "log") for one in jobs]
    if "wraps" in wanted:
        facts["wraps"] = events(cli, ["wrap", "--list", "--json"])
    if "checks" in wanted:  # what is missing is what it is asked for
        facts["checks"] = events(cli, ["doctor", "--json"], fine=(0, 1))
    module.exit_json(changed=False, **facts)


if __name__ == "__main__":
    main()
