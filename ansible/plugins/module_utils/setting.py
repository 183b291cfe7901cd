# Copyright: the dmcopy authors
# GNU General Public License v3.0 or later (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files below ``/etc/dmcopy``: dmcopy itself reads what is to be there before it is put there."""

from __future__ import annotations

import os
import shutil

from ansible_collections.dmcopy.dmcopy.plugins.module_utils.cli import Cli, path_of


def directory():
    """Give where the settings are; E(DMCOPY_CONFIG_DIR) as for dmcopy itself."""
    return os.environ.get("DMCOPY_CONFIG_DIR", "/etc/dmcopy")


def read(path):
    """Give the text of a file; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(path, text):
    """Write a new file that root alone may change."""
    if os.path.lexists(path):
        os.unlink(path)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def put(module, path, text):
    """Have the file say *text*; without any there is none."""
    if not text:
        os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = os.path.join(module.tmpdir, os.path.basename(path))
    write(new, text)
    module.atomic_move(new, path)


def answer_of(module, words, name, text, beside=None):
    """Run ``dmcopy WORDS`` where the file *name*, below the directory, says *text*.

    *beside* is a folder whose other files are there as well.  Gives the answer and the path that it
    has for the file; no answer in check mode on a host that has no dmcopy yet, with a warning.
    """
    base = os.path.join(module.tmpdir, "dmcopy")
    path = os.path.join(base, name)
    if module.check_mode and path_of(module, required=False) is None:
        module.warn("there is no dmcopy on the host yet, so it has not read {0}".format(name))
        return None, path
    shutil.rmtree(base, ignore_errors=True)
    if beside is not None and os.path.isdir(os.path.join(directory(), beside)):
        shutil.copytree(os.path.join(directory(), beside), os.path.join(base, beside), symlinks=True)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write(path, text)
    return Cli(module).run(words, environ_update={"DMCOPY_CONFIG_DIR": base}), path


def leave(module, path, before, after, changed=False, **facts):
    """End the module: put the text there where it is another, unless in check mode.

    *changed* says that something else was.
    """
    if before != after and not module.check_mode:
        put(module, path, after)
    module.exit_json(
        changed=changed or before != after,
        file=path,
        content=after,
        diff={"before": before, "after": after, "before_header": path, "after_header": path},
        **facts,
    )
