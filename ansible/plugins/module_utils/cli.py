# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ``dmcopy`` on the managed host, and reads its JSON.

The modules know nothing but the command line and docs/json.rst of dmcopy: they import nothing of
it, so the interpreter that Ansible uses need not be the one that dmcopy runs with.
"""

from __future__ import annotations

import json
import shlex

_WHERE = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/opt/dmcopy/bin")

ARGUMENTS = {"executable": {"type": "path"}}


class Answer:
    """How a command ended: its exit status, its events, and its last words."""

    def __init__(self, words, status, out, err):
        self.words = words
        self.status = status
        self.out = out
        self.err = err
        self.message = _last_words(err)
        self.events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def first(self, event):
        """Give the first event of that kind of the job itself, not of a group's volume."""
        for one in self.events:
            if one.get("event") == event and one.get("group") is None:
                return one
        return None


def path_of(module, required=True):
    """Give where dmcopy is; where there is none the module ends, or None."""
    wanted = module.params["executable"] or "dmcopy"
    return module.get_bin_path(wanted, required=required, opt_dirs=list(_WHERE))


class Cli:
    """The command line of dmcopy on this host; `commands` are those that change something."""

    def __init__(self, module):
        self._module = module
        self._path = path_of(module)
        self.commands = []

    def run(self, words, changes=False, **more):
        """Run ``dmcopy WORDS``; whoever calls looks at the exit status.

        *more* is for ``run_command``.
        """
        if changes:
            self.will(words)
        status, out, err = self._module.run_command([self._path] + list(words), **more)
        return Answer(words, status, out, err)

    def will(self, words):
        """Note a command that changes something, as a line for a shell."""
        self.commands.append(shlex.join(["dmcopy"] + list(words)))

    def ask(self, words, event, **facts):
        """Run what changes nothing, and give its event; ends the module where it is refused."""
        answer = self.run(words)
        found = answer.first(event)
        if answer.status or found is None:
            self.fail(answer, **facts)
        return found

    def fail(self, answer, **facts):
        """End the module with what the command said."""
        self._module.fail_json(
            msg=answer.message
            or "dmcopy {0} ended with exit status {1}".format(answer.words[0], answer.status),
            exit_status=answer.status,
            commands=self.commands,
            **facts,
        )


def _last_words(text):
    """Give the one line that dmcopy says when it fails."""
    lines = [line for line in text.splitlines() if line.startswith("dmcopy: ")]
    return lines[-1][len("dmcopy: ") :] if lines else text.strip()
