"""A PostgreSQL server of a test's own, with data and WAL on two file systems, and copies of it.

Two clients: pgbench, whose sums must agree at any instant, and a writer of numbers, which notes
when each commit was acknowledged.  A copy is brought up in a mount namespace of its own, where
its file systems are mounted over the originals', so that all paths in it are right.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.lab.stage import Stage, sh
from tests.lab.volumes import until

PROGRAMS: Final = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
_CONFIG: Final = """
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 16MB
max_wal_size = 8MB
min_wal_size = 4MB
checkpoint_timeout = 30s
listen_addresses = ''
logging_collector = off
autovacuum_naptime = 5s
max_connections = 20
"""
# Every statement that the copy's server is asked, in this order; one line each in the answer.
_QUESTIONS: Final = (
    "SELECT sum(abalance) FROM pgbench_accounts",
    "SELECT sum(tbalance) FROM pgbench_tellers",
    "SELECT sum(bbalance) FROM pgbench_branches",
    "SELECT coalesce(sum(delta), 0) FROM pgbench_history",
    "SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM numbers",
)


class Commit(NamedTuple):
    """One acknowledged commit; nanoseconds since 1970."""

    number: int
    submitted: int
    acknowledged: int


class Copied(NamedTuple):
    """What the server of a copy says."""

    sums: tuple[int, ...]  # accounts, tellers, branches, history
    numbers: tuple[int, ...]


@dataclass
class Postgres:
    """The server; *data* and *wal* are where its file systems are mounted."""

    stage: Stage
    data: str
    wal: str
    commits: list[Commit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sockets = Path(self.stage.folder) / "sockets"
        self.sockets.mkdir()
        self.sockets.chmod(0o777)
        os.chmod(self.stage.folder, 0o755)
        self.log = Path(self.stage.folder) / "postgres.log"
        drop = ("LD_PRELOAD", "TMPDIR")
        self.environment = {k: v for k, v in os.environ.items() if k not in drop}
        self.environment |= {"PGHOST": str(self.sockets), "PGUSER": "bench", "LC_ALL": "C"}

    def create(self) -> None:
        """Make the cluster and pgbench's tables."""
        for mount in (self.data, self.wal):
            sh("chown", "nobody:nogroup", mount)
        self._as_server(
            "initdb", "-D", f"{self.data}/pg", "-X", f"{self.wal}/pg", "--wal-segsize=1", "-U",
            "bench", "--auth=trust", "--no-sync",
        )  # fmt: skip
        with open(f"{self.data}/pg/postgresql.conf", "a") as config:
            config.write(_CONFIG)

    def _as_server(self, program: str, *words: str) -> None:
        sh(*as_nobody(str(PROGRAMS / program), *words))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve; at the end it is shut down."""
        argv = as_nobody(
            str(PROGRAMS / "postgres"), "-D", f"{self.data}/pg", "-k", str(self.sockets)
        )
        with self.log.open("ab") as log:
            server = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
            )
        try:
            until(lambda: self._answers(server), "the server answers", patience=90)
            yield
        finally:
            server.terminate()
            server.wait(60)

    def _answers(self, server: subprocess.Popen[bytes]) -> bool:
        assert server.poll() is None, self.log.read_text()
        with suppress(AssertionError):
            return self.sql("SELECT 1") == "1"
        return False

    def sql(self, text: str) -> str:
        argv = [str(PROGRAMS / "psql"), "-qAt", "-d", "postgres", "-c", text]
        done = subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    # the clients

    @contextmanager
    def loaded(self, *, rate: int = 15) -> Iterator[None]:
        """Have both clients write all the time; neither may fail."""
        init = [str(PROGRAMS / "pgbench"), "-i", "-q", "-s", "1", "postgres"]
        subprocess.run(init, env=self.environment, check=True, capture_output=True)
        self.sql("CREATE TABLE numbers (n int PRIMARY KEY)")
        self.sql("CREATE EXTENSION amcheck")
        bench = subprocess.Popen(
            [
                str(PROGRAMS / "pgbench"), "-n", "-c", "2", "-T", "1200", f"--rate={rate}",
                "postgres",
            ],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with self._writing():
                yield
                assert bench.poll() is None, "pgbench ended: a transaction failed"
        finally:
            bench.terminate()
            bench.wait(30)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        client = subprocess.Popen(
            [str(PROGRAMS / "psql"), "-qAt", "-d", "postgres"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment,
        )  # fmt: skip
        stop = threading.Event()
        failed: list[str] = []

        def write() -> None:
            assert client.stdin is not None
            assert client.stdout is not None
            while not stop.is_set():
                number, now = len(self.commits) + 1, time.time_ns()
                # two statements, each committed by itself: the answer comes after the commit
                line = f"INSERT INTO numbers VALUES ({number});\nSELECT {number};\n"
                client.stdin.write(line.encode())
                client.stdin.flush()
                said = client.stdout.readline()
                if said != f"{number}\n".encode():
                    failed.append(f"number {number}: {said!r}")
                    return
                self.commits.append(Commit(number, now, time.time_ns()))
                time.sleep(0.03)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
            client.terminate()
            client.communicate(timeout=30)
        assert not failed, failed

    # copies

    def bring_up(self, data: str, wal: str) -> Copied:
        """Have a server recover from the images *data* and *wal*, and say what it holds."""
        folder = f"{self.data}/pg"
        port = f"{self.stage.folder}/copy"
        os.makedirs(port, exist_ok=True)
        os.chmod(port, 0o777)
        ask = " ".join(f"-c {_quoted(question)}" for question in _QUESTIONS)
        psql = f"{PROGRAMS}/psql -h {port} -U bench -qAt -v ON_ERROR_STOP=1 -d postgres"
        ctl = " ".join(as_nobody(f"{PROGRAMS}/pg_ctl", "-D", folder))
        script = f"""
            set -e
            mount -o loop {data} {self.data}
            mount -o loop {wal} {self.wal}
            rm -f {folder}/postmaster.pid
            {ctl} -w -t 120 -l {port}/log -o '-k {port}' start >&2
            trap '{ctl} -m fast stop >&2' EXIT
            {psql} {ask}
            {PROGRAMS}/pg_amcheck -h {port} -U bench -d postgres --heapallindexed >&2
        """
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            capture_output=True, text=True, env=self.environment, cwd="/", check=False,
        )  # fmt: skip
        log = Path(port) / "log"
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{log.read_text()[-3000:]}"
        *sums, numbers = done.stdout.splitlines()
        said = log.read_text()
        assert "automatic recovery in progress" in said, "the copy was not of a running server"
        log.unlink()
        return Copied(tuple(int(one) for one in sums), tuple(int(n) for n in numbers.split()))

    def prove(self, copied: Copied, t0: int, t1: int) -> tuple[int, int]:
        """Prove that the copy is of one instant in [t0, t1].

        Gives how many commits were acknowledged before it, and how many submitted after it.
        """
        accounts, tellers, branches, history = copied.sums
        assert accounts == tellers == branches == history, copied.sums
        commits = list(self.commits)
        before = {one.number for one in commits if one.acknowledged < t0}
        after = {one.number for one in commits if one.submitted > t1}
        there = set(copied.numbers)
        assert before <= there, f"acknowledged and missing: {sorted(before - there)[:10]}"
        assert not after & there, f"of later than the begin time: {sorted(after & there)[:10]}"
        assert copied.numbers == tuple(range(1, len(there) + 1)), "a gap"
        return len(before), len(after)


def as_nobody(*argv: str) -> list[str]:
    """Give the command line that runs as the server's user."""
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *argv]


def _quoted(text: str) -> str:
    return '"' + text + '"'
