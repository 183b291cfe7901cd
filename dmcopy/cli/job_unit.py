"""What ``dmcopy-job@.service`` runs: the words of the command line that somebody asks of it.

The asker gets what they say up to the begin time, or to their end where there is none; what else is
said, and stderr, is for the journal of systemd.  Words that would go into the background
(``--detach``) do not have to: they are there.  An asker that is gone is nothing to us.

Not for people; so it is an option of ``dmcopy agent`` that ``--help`` does not name.
"""

from __future__ import annotations

import argparse
import io
import os
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from typing import Final

from dmcopy.agent.request import Request, take
from dmcopy.cli.common import Context
from dmcopy.errors import DmcopyError, Refused, UsageError
from dmcopy.jobs.spec import Places

_CHANGED_NOTHING: Final = {str(one.exit_status) for one in (UsageError, Refused)}


def run(instance: str, context: Context) -> int:
    """Do what is asked of *instance*; gives its exit status, and raises what it raises."""
    places = context.places or Places.from_environment()
    request, answer = take(places.asked, instance)
    os.environ.update(request.environment)
    printed = io.StringIO()
    with answer:
        try:
            # what goes into the background tells the asker by itself: the rest is for the journal
            is_background = "--detach" in request.words
            with nullcontext() if is_background else redirect_stdout(printed):
                status = _do(request, replace(context, asker=answer))
        except DmcopyError as exc:
            answer.end(exc.exit_status, str(exc))
            raise
        answer.write(printed.getvalue())
        answer.end(status)
    return status


def _do(request: Request, context: Context) -> int:
    words = list(request.words)
    try:
        os.chdir(request.directory or "/")
    except OSError as exc:
        raise UsageError(f"the directory {request.directory}: {exc.strerror}") from exc
    arguments = _parsed(words)
    arguments.words = words[1:]
    try:
        status: int = arguments.run(arguments, context)
    except SystemExit as exc:  # --help
        return exc.code if isinstance(exc.code, int) else 0
    return status


def over(instance: str, context: Context) -> int:
    """Put right what *instance* left, as ``dmcopy rescue`` does, unless it ended well.

    systemd says in the environment how it did (systemd.exec(5), SERVICE_RESULT).
    """
    places = context.places or Places.from_environment()
    (places.asked / instance).unlink(missing_ok=True)  # it did not even come to take it
    if os.environ.get("SERVICE_RESULT") == "success" or (
        os.environ.get("EXIT_CODE") == "exited"
        and os.environ.get("EXIT_STATUS") in _CHANGED_NOTHING
    ):
        return 0
    rescue = _parsed(["rescue"])
    status: int = rescue.run(rescue, context)
    return status


def _parsed(words: list[str]) -> argparse.Namespace:
    """Read words of the command line; raises `UsageError`."""
    from dmcopy.cli.main import parser  # it imports the commands, of which this is one

    return parser(words[:1]).parse_args(words)
