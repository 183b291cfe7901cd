"""The man page and the completion of bash and zsh, from the one parser of the command line.

``python -m lab.manual DIRECTORY`` writes ``dmcopy.8``, ``dmcopy`` (bash) and ``_dmcopy`` (zsh).
argparse-manpage and shtab do the work; here is what they cannot know: which arguments are files
and which are jobs, and what a man page has beside the options.  Both are needed to build a
package, never to run dmcopy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import shtab
from argparse_manpage.manpage import Manpage

from dmcopy import __version__
from dmcopy.cli.main import parser

SHELLS: Final = {"bash": "dmcopy", "zsh": "_dmcopy"}  # and what the file must be called
_FILES: Final = ("SOURCE", "DESTINATION", "DEVICE", "FILE")
_PAIR: Final = ("SOURCE", "DESTINATION")
# whoever may not read the journal is offered none, and could do nothing with one
_PREAMBLE: Final = {
    "bash": """\
_dmcopy_jobs() {
  compgen -W "$(dmcopy list --json 2>/dev/null | sed -n 's/.*"job": "\\([^"]*\\)".*/\\1/p')" -- "$1"
}""",
    "zsh": """\
_dmcopy_jobs() {
  compadd -- ${(f)"$(dmcopy list --json 2>/dev/null | sed -n 's/.*"job": "\\([^"]*\\)".*/\\1/p')"}
}""",
}
_SECTIONS: Final = {
    "FILES": r"""
.TP
.I /etc/dmcopy
what is wrapped (wraps.toml), hooks of every copy (hooks.d), policies (policies.d)
.TP
.I /var/lib/dmcopy
the journal, and COW files
.TP
.I /run/dmcopy
locks and sockets of running jobs, marks for the udev rules
.TP
.I /etc/default/dmcopy
environment of the systemd units""",
    "ENVIRONMENT": r"""
.TP
.B DMCOPY_STATE_DIR
in place of /var/lib/dmcopy
.TP
.B DMCOPY_RUN_DIR
in place of /run/dmcopy
.TP
.B DMCOPY_CODE_DIR
where running jobs keep the code of their version, in place of code in the above
.TP
.B DMCOPY_CONFIG_DIR
in place of /etc/dmcopy
.TP
.B DMCOPY_RULES_DIR
where wraps and setup write udev rules, in place of /etc/udev/rules.d""",
    "SEE ALSO": r"""
.BR dmsetup (8),
.BR lvcreate (8),
.BR mdadm (8),
.BR udev (7)""",
}


def walk(
    top: argparse.ArgumentParser, name: str = "dmcopy"
) -> Iterator[tuple[str, argparse.Action]]:
    """Give each argument of each command, with the command's words."""
    for action in top._actions:  # argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                yield from walk(below, f"{name} {verb}")
        else:
            yield name, action


def man() -> str:
    """Give the man page, in roff."""
    top = parser()
    page = Manpage(top)
    page.section = 8
    page.source = f"dmcopy {__version__}"
    page.manual = "System administration"
    page.description = "copy a live block device, as it was at one instant"
    # set as it is: argparse-manpage calls the end of the help text a comment
    end = page.format_text(top.epilog)
    top.epilog = None
    status, _, _ = end.partition("\n\n")
    first, _, table = status.partition("\n")
    assert first == "exit status:", first
    page.add_section("EXIT STATUS", "=", f".nf\n{table}\n.fi")
    for heading, text in _SECTIONS.items():
        page.add_section(heading, "=", text.lstrip("\n"))
    return str(page)


def completion(shell: str) -> str:
    """Give the completion for one of `SHELLS`."""
    top = parser()
    for _, action in walk(top):
        _complete(action, shell)
    return str(shtab.complete(top, shell, preamble=_PREAMBLE[shell]))


def _complete(action: argparse.Action, shell: str) -> None:
    """Say how an argument is completed; shtab looks for an attribute of it."""
    metavar = action.metavar
    how: object = None
    if metavar in _FILES or metavar == _PAIR:
        how = shtab.FILE
    elif metavar == "JOB":
        how = dict.fromkeys(SHELLS, "_dmcopy_jobs")
    if how is not None:
        action.complete = how  # type: ignore[attr-defined]  # shtab's way
    if shell == "zsh":  # a colon there begins the next argument
        if metavar == _PAIR:
            action.metavar = "SOURCE:_files:DESTINATION"
        elif isinstance(metavar, str):
            action.metavar = metavar.replace(":", r"\:")


def main(argv: Sequence[str]) -> int:
    """Write the files into the directory that is named."""
    options = argparse.ArgumentParser(prog="python -m lab.manual", description=__doc__)
    options.add_argument("directory", type=Path)
    folder: Path = options.parse_args(argv).directory
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dmcopy.8").write_text(man())
    for shell, name in SHELLS.items():
        (folder / name).write_text(completion(shell))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
