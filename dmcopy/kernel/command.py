"""The only place that starts a program.

Three kinds of program, three ways: `Commander.run` for the tools of the system, waited for,
with a time limit and the last 16 remembered for the bug report; `start_process` for our own
long-running helpers (worker, dead man); `hand_over` for the one that takes our place.

``sh`` forks by itself, uses a TTY unless told otherwise and is not seen by
pytest-subprocess, so it sits behind `Launcher`: `launch_sh` in production, `launch_subprocess`
in tests.  Not for use in the worker or while I/O is held: starting a program forks.
"""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from dmcopy.errors import CommandFailed, DmcopyError, ProgramMissing

# Imported where they are used: sh brings asyncio, and the worker starts no program at all.
if TYPE_CHECKING:
    import subprocess

    import sh

log = logging.getLogger(__name__)

RECENT: Final = 16
_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
_KILLED_SECONDS: Final = 5.0  # what a killed program may take to be gone: it may sit in state D
_BUFFER: Final = 1 << 16


class Completed(NamedTuple):
    """A program that ended: by itself, or killed because its time was up."""

    argv: tuple[str, ...]
    status: int  # negative: the signal that ended it
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False


# argv, text for stdin (None: nothing to read), time limit in seconds.  Raises `ProgramMissing`.
Launcher = Callable[[Sequence[str], str | None, float], Completed]


def search_path(environment: Mapping[str, str]) -> str:
    """Give PATH with the directories of system programs, which a user's may lack."""
    given = [part for part in environment.get("PATH", "").split(os.pathsep) if part]
    return os.pathsep.join([*given, *(part for part in _SBIN if part not in given)])


def program_environment() -> dict[str, str]:
    """Give the environment for a tool: messages in English, LVM as its own files say."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LVM_")}
    kept.pop("LANGUAGE", None)
    return {**kept, "LC_ALL": "C", "PATH": search_path(os.environ)}


def find(program: str) -> str | None:
    """Give the path of *program*, None when it is not installed."""
    import shutil

    return shutil.which(program, path=search_path(os.environ))


def _missing(program: str) -> ProgramMissing:
    return ProgramMissing(f"the program {program} is not installed")


def _stdin_file(text: str | None) -> IO[bytes]:
    """Give an open file to read *text* from; it has an end, unlike a pipe that sh feeds."""
    if text is None:
        return open(os.devnull, "rb")
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    data = memoryview(text.encode())
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return os.fdopen(fd, "rb")


@contextmanager
def _starting(argv: Sequence[str]) -> Iterator[None]:
    """Raise `DmcopyError` for a program that was not started, or was killed in its cradle.

    The host has no process left or no memory; or the fork was killed before it told sh its
    session, which sh takes apart unseen (ValueError).
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as exc:  # RuntimeError: no thread could be started
        raise _not_started(argv, exc) from exc


def _not_started(argv: Sequence[str], exc: Exception) -> DmcopyError:
    why = "it was killed at once" if isinstance(exc, ValueError) else getattr(exc, "strerror", exc)
    return DmcopyError(f"cannot start {os.path.basename(argv[0])}: {why}")


def always_running(known: Mapping[str, object]) -> dict[str, Any]:  # Any: as sh declares it
    """Give what makes sh return the running program; *known* are the special arguments it takes.

    sh 2 may return a str else; sh 1.14 (Debian 12) does not know the argument, and would hand it
    to the program as an option.
    """
    return {"_return_cmd": True} if "return_cmd" in known else {}


def launch_sh(argv: Sequence[str], stdin: str | None, timeout: float) -> Completed:
    """Run a program through sh."""
    import sh

    path = find(argv[0])
    if path is None:
        raise _missing(argv[0])
    logging.getLogger("sh").setLevel(logging.WARNING)  # it tells each start at level info
    started = time.monotonic()
    with _stdin_file(stdin) as file, _starting(argv):
        # _timeout= is not used: it adds 0.1 s to each call
        running = sh.Command(path)(
            *argv[1:],
            _bg=True,
            _bg_exc=False,
            _in=file,
            _tty_in=False,
            _tty_out=False,  # stdout is a terminal by default
            _out_bufsize=_BUFFER,
            _err_bufsize=_BUFFER,
            _env=program_environment(),
            _new_session=True,
            **always_running(sh.Command._call_args),
        )
    with _starting(argv):
        timed_out = _wait_for(running, timeout)
    status = running.process.exit_code
    return Completed(
        argv=tuple(argv),
        status=-int(signal.SIGKILL) if status is None else status,
        stdout=running.process.stdout.decode(errors="replace"),
        stderr=running.process.stderr.decode(errors="replace"),
        seconds=time.monotonic() - started,
        timed_out=timed_out,
    )


def _wait_for(running: sh.RunningCommand, timeout: float) -> bool:
    """Wait for the end of *running*, kill its group after *timeout*; tell whether it was killed.

    A thread does the waiting, so that a program that cannot be killed (state D) does not keep
    us as well.  An interrupted wait (Ctrl-C) goes on until the program has ended: it has a
    session of its own, and what it does must not overlap with our undo.
    """
    import sh

    ended = threading.Event()

    def wait() -> None:
        with suppress(sh.ErrorReturnCode):
            running.wait()
        ended.set()

    try:
        threading.Thread(target=wait, name=f"wait-{running.pid}", daemon=True).start()
    except RuntimeError:
        _kill_group(running.pid)
        raise
    end = time.monotonic() + timeout
    try:
        if ended.wait(timeout):
            return False
    except BaseException:
        if not ended.wait(max(0.0, end - time.monotonic())):
            _kill_group(running.pid)
        raise
    _kill_group(running.pid)
    ended.wait(_KILLED_SECONDS)
    return True


def _kill_group(pid: int) -> None:
    """Kill the process group that *pid* leads, unless it is gone."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def launch_subprocess(argv: Sequence[str], stdin: str | None, timeout: float) -> Completed:
    """Run a program through subprocess, where pytest-subprocess can stand in for it."""
    import subprocess

    started = time.monotonic()
    timed_out = False
    environment = program_environment()
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as exc:
        raise _missing(argv[0]) from exc
    data = None if stdin is None else stdin.encode()
    try:
        stdout, stderr = process.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        _kill_group(process.pid)
        try:
            stdout, stderr = process.communicate(timeout=_KILLED_SECONDS)
        except subprocess.TimeoutExpired:
            # it cannot be killed (state D), or has left its pipes to another: it is not waited for
            stdout = stderr = b""
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    except BaseException:
        with process:  # what it does must not overlap with our undo: it is waited for
            raise
    return Completed(
        argv=tuple(argv),
        status=-int(signal.SIGKILL) if process.returncode is None else process.returncode,
        stdout=stdout.decode(errors="replace"),
        stderr=stderr.decode(errors="replace"),
        seconds=time.monotonic() - started,
        timed_out=timed_out,
    )


class Commander:
    """Runs programs; keeps the last 16 with their output (`recent`) for the bug report.

    With *dry_run* what changes something is logged and not run.
    """

    def __init__(self, launch: Launcher = launch_sh, *, dry_run: bool = False) -> None:
        self._launch = launch
        self._dry_run = dry_run
        self._recent: deque[Completed] = deque(maxlen=RECENT)

    @property
    def recent(self) -> tuple[Completed, ...]:
        """Give the last programs that ran, the latest last."""
        return tuple(self._recent)

    def run(
        self,
        *argv: str,
        stdin: str | None = None,
        ok: Sequence[int] = (0,),
        timeout: float = 60.0,
        changes: bool = True,
    ) -> Completed:
        """Run a program to its end; raise `CommandFailed` unless the status is in *ok*.

        After *timeout* seconds its whole group is killed and `CommandFailed` has status None.
        """
        for word in argv:
            if not isinstance(word, str):
                # sh would drop None without a word
                raise TypeError(f"argument {word!r} of {argv[0]} is not a string")
        line = shlex.join(argv)
        if changes and self._dry_run:
            log.info("dry run, not done: %s", line)
            return Completed(argv, 0, "", "", 0.0)
        log.debug("run: %s", line)
        completed = self._launch(argv, stdin, timeout)
        self._recent.append(completed)
        log.debug("%s: status %d in %.3f s", argv[0], completed.status, completed.seconds)
        if completed.timed_out:
            raise CommandFailed(argv, None, completed.stderr)
        if completed.status not in ok:
            raise CommandFailed(argv, completed.status, completed.stderr)
        return completed

    def find(self, program: str) -> str | None:
        """Give the path of *program*, None when it is not installed."""
        return find(program)


class Process:
    """A helper process of ours that goes on running; whoever started it ends and reaps it.

    *stdin* and *stdout* are pipes to it; its stderr is ours.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdin is not None
        assert popen.stdout is not None
        self._popen = popen
        self.pid = popen.pid
        self.stdin = popen.stdin
        # buffered, as bufsize is not 0: it has read1()
        self.stdout = cast(io.BufferedReader, popen.stdout)

    def poll(self) -> int | None:
        """Give the exit status (negative: a signal), None while it runs."""
        return self._popen.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end; None when *timeout* seconds went by."""
        import subprocess

        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Kill it and what it started, or send another signal, unless it has ended."""
        if self._popen.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def start_process(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    stderr: int | None = None,
) -> Process:
    """Start a helper in a session of its own: Ctrl-C in the terminal reaches only us.

    *environment* in place of ours; *stderr* is a descriptor in place of ours.
    """
    import subprocess

    log.debug("start: %s", shlex.join(argv))
    try:
        popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    except FileNotFoundError as exc:
        raise _missing(argv[0]) from exc
    except OSError as exc:  # no process left, no memory
        raise _not_started(argv, exc) from exc
    return Process(popen)


def hand_over(argv: Sequence[str], *, directory: str | None = None) -> NoReturn:
    """Become another program (execve), in *directory*; terminal and streams stay."""
    path = find(argv[0])
    if path is None:
        raise _missing(argv[0])
    log.debug("exec: %s", shlex.join(argv))
    if directory is not None:
        os.chdir(directory)
    os.execve(path, list(argv), {**os.environ, "PATH": search_path(os.environ)})  # noqa: S606


def fork_detached(log_file: Path) -> int:
    """Fork a process that outlives us; gives 0 in it, its pid here.

    It has a session of its own, reads nothing, and what it says goes to *log_file*.
    To be called while there is one thread, and before anything is opened that must not be
    shared.  The parent need not wait for it: it is init's child.
    """
    log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return child
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    said = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for fd, source in ((0, nothing), (1, said), (2, said)):
        os.dup2(source, fd)
    return 0
