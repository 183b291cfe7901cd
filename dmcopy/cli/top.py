"""``dmcopy top``: all jobs of the host, live.  Only looks: nothing is made, changed or started."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import FrameType
from typing import Final

from rich.console import Console

from dmcopy.cli.common import Commands, Context, consoles, seconds
from dmcopy.jobs.glance import glance
from dmcopy.report.jobs_now import Now
from dmcopy.report.painter import Painter
from dmcopy.report.top import ASCII, UNICODE, Glyphs, lines, plain

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOWING: Final = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
_KEYS: Final = "q: quit"
_LEAST_SECONDS: Final = 0.1


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "top",
        help="show all jobs, live",
        description="Show all jobs of this host, live: running ones first, then interrupted ones "
        "and how to go on.  q quits.  Where stdout is no terminal, one plain table.  Changes "
        "nothing.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        default=1.0,
        metavar="SECONDS",
        help="look this often (default: 1)",
    )
    parser.add_argument("--once", action="store_true", help="show what there is now, and end")
    parser.add_argument("--json", action="store_true", help="one JSON object a look, on stdout")
    parser.set_defaults(run=run)


def _interval(text: str) -> float:
    value = seconds(text)
    if value < _LEAST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} s is too often: at least {_LEAST_SECONDS}")
    return value


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Show the jobs until it is enough."""
    host = context.host(load=False)

    def look() -> Now:
        return glance(host)

    if arguments.json:
        _stream(look, None if arguments.once else arguments.interval)
        return 0
    out, _ = consoles()
    if not sys.stdout.isatty() or out.is_dumb_terminal:
        for line in plain(look()):
            print(line)
    elif arguments.once:
        columns, _ = os.get_terminal_size(sys.stdout.fileno())
        for text in lines(look(), columns, glyphs=_glyphs(out)):
            out.print(text, end="\n", soft_wrap=True)
    else:
        _live(look, out, arguments.interval)
    return 0


def as_json(now: Now, *, at: float) -> dict[str, object]:
    """Give the object that ``--json`` prints each time; *at* in seconds since 1970."""
    return {
        "event": "top",
        "at": at,
        "rate_limit_bytes": now.cap,
        "unread": now.unread or None,
        "jobs": [asdict(job) for job in now.jobs],
    }


def _stream(look: Callable[[], Now], interval: float | None) -> None:
    """Print an object each *interval*, until a signal comes or nobody reads; once with None."""
    with _signals() as wakes:
        while True:
            print(json.dumps(as_json(look(), at=time.time())), flush=True)
            if interval is None or not _wait(wakes, None, interval):
                return


class _Signals:
    """What came since it was last asked; the descriptor is readable when something did."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_enough = False
        self.is_stopped = False
        self.is_new = False  # the screen may be another, or have something else on it

    def take(self, number: int, _frame: FrameType | None) -> None:
        self.is_enough |= number in _ENDING
        self.is_stopped |= number == signal.SIGTSTP
        self.is_new |= number not in _ENDING


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Have signals noted, not raised: an exception could cut short putting the terminal back."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    noted = _Signals(read)
    before = {number: signal.getsignal(number) for number in (*_ENDING, *_SHOWING)}
    old = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        for number in before:
            signal.signal(number, noted.take)
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old)
        os.close(read)
        os.close(write)


def _wait(signals: _Signals, keys: int | None, seconds: float) -> bool:
    """Wait until it is time to look again, or there is something new; False when it is enough.

    *keys* is the terminal that is read, None for none.
    """
    deadline = time.monotonic() + seconds
    while not (signals.is_enough or signals.is_new):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        ready, _, _ = select.select([signals.fd, *([] if keys is None else [keys])], [], [], left)
        if signals.fd in ready:
            with suppress(BlockingIOError):
                os.read(signals.fd, 4096)
        if keys in ready:
            typed = _typed(keys)
            if typed is None or b"q" in typed.lower():  # hung up, or told to
                return False
    return not signals.is_enough


def _typed(keys: int | None) -> bytes | None:
    assert keys is not None
    try:
        return os.read(keys, 4096) or None
    except OSError:  # EIO: the terminal is gone
        return None


@contextmanager
def _screen(console: Console, keys: int | None) -> Iterator[None]:
    """Take the terminal: another screen, no cursor, each key at once; give it back as it was."""
    saved = termios.tcgetattr(keys) if keys is not None else None
    try:
        if keys is not None:
            tty.setcbreak(keys, termios.TCSADRAIN)
        console.set_alt_screen(True)
        console.show_cursor(False)
        yield
    finally:
        try:
            console.show_cursor(True)
            console.set_alt_screen(False)
        except OSError:  # the terminal is gone; what could not be written must not be tried again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if keys is not None and saved is not None:
            with suppress(termios.error):
                termios.tcsetattr(keys, termios.TCSADRAIN, saved)


def _glyphs(console: Console) -> Glyphs:
    return ASCII if console.options.ascii_only else UNICODE


def _live(look: Callable[[], Now], console: Console, interval: float) -> None:
    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    with _signals() as signals:
        while not signals.is_enough:
            with _screen(console, keys):
                _show(look, console, interval, signals, keys)
            if not signals.is_stopped:
                return
            signals.is_stopped = False
            os.kill(os.getpid(), signal.SIGSTOP)  # as Ctrl-Z would; fg goes on here


def _show(
    look: Callable[[], Now],
    console: Console,
    interval: float,
    signals: _Signals,
    keys: int | None,
) -> None:
    """Draw until it is enough, or until we are to stop for a while."""
    painter = Painter(console, _writer(console))
    told = _KEYS if keys is not None else "Ctrl-C: quit"
    while not signals.is_stopped:
        if signals.is_new:  # before the look: what comes meanwhile counts for the next one
            signals.is_new = False
            painter.forget()
        try:
            width, height = os.get_terminal_size(sys.stdout.fileno())
            drawn = lines(look(), width, height=height, glyphs=_glyphs(console), keys=told)
            painter.paint(drawn, width, height)
        except OSError:  # EIO: the terminal is gone
            return
        if not _wait(signals, keys, interval):
            return


def _writer(console: Console) -> Callable[[str], object]:
    def write(text: str) -> None:
        console.file.write(text)
        console.file.flush()

    return write
