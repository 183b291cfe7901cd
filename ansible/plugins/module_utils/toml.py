# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the TOML of a policy: the standard library only reads it, and hosts need not have more."""

from __future__ import annotations

import json


def dumps(policy):
    """Give a dict as the text of a file; a list of dicts comes last, as an array of tables."""
    lines = []
    tables = {}
    for name, value in policy.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            tables[name] = value
        else:
            lines.append("{0} = {1}".format(name, _value(value)))
    for name, entries in tables.items():
        for entry in entries:
            lines += ["", "[[{0}]]".format(name)]
            lines += ["{0} = {1}".format(key, _value(value)) for key, value in entry.items()]
    return "\n".join(lines) + "\n"


def _value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return "[{0}]".format(", ".join(_value(one) for one in value))
    if isinstance(value, dict):
        words = ["{0} = {1}".format(key, _value(one)) for key, one in value.items()]
        return "{{ {0} }}".format(", ".join(words)) if words else "{}"
    # the escapes of JSON are some of TOML's; delete is the one character that only TOML escapes
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
