"""The hooks that come with dmcopy, with the real servers, on a device above the source.

A client writes a row after the other, and notes when each was acknowledged.  The copy's own server
says which of them are in the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from dmcopy.stack.hook_file import SHIPPED
from tests.lab import harness
from tests.lab.scene import Ran, Scene, scene, until
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

MIB = 128
JOB = ("--name", "hooked", "--json", "--no-hooks", "--digest", "none")
PG_PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))


class Row(NamedTuple):
    """One acknowledged commit; nanoseconds since 1970."""

    number: int
    submitted: int
    acknowledged: int


class Server:
    """A database server of the test's own, as its own user, with its data in *home*."""

    user = "nobody"
    group = "nogroup"
    tables: Sequence[str] = ("t",)

    def __init__(self, at: Scene, home: Path) -> None:
        self.at = at
        self.home = home
        self.log = at.folder / f"{home.parent.name}-{home.name}.log"
        self.rows: dict[str, list[Row]] = {table: [] for table in self.tables}
        self.acknowledgements = at.folder / "acknowledged"  # a line each, for the hooks below
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "TMPDIR")
        }

    def as_user(self, *argv: str) -> list[str]:
        who = ["setpriv", f"--reuid={self.user}", f"--regid={self.group}", "--init-groups"]
        return [*who, *argv]

    def serve(self, argv: Sequence[str]) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.as_user(*argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
            )
        self.at.stage.later(self.stop)
        until(self.answers, f"the server answers: {self.log}", patience=90)

    def answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with suppress(AssertionError):
            return self.sql("SELECT 1") == "1"
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def client(self) -> list[str]:
        raise NotImplementedError

    def insert(self, table: str, number: int) -> str:
        raise NotImplementedError

    def sql(self, text: str) -> str:
        return sh(*self.client(), stdin=text)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write rows all the time, a client for each table: none waits for another's lock."""
        stop = threading.Event()

        def write(table: str, client: subprocess.Popen[bytes]) -> None:
            rows = self.rows[table]
            assert client.stdin is not None
            assert client.stdout is not None
            while not stop.is_set():
                number, now = len(rows) + 1, time.time_ns()
                client.stdin.write(self.insert(table, number).encode() + b"\n")
                client.stdin.flush()
                assert client.stdout.readline() == f"{number}\n".encode()
                rows.append(Row(number, now, time.time_ns()))
                with self.acknowledgements.open("a") as file:
                    file.write(f"{number}\n")
                time.sleep(0.01)

        # the clients end first, also where they hang, and with them what waits for them
        with ThreadPoolExecutor(len(self.tables)) as pool, ExitStack() as clients:
            writers = []
            for table in self.tables:
                client = clients.enter_context(
                    subprocess.Popen(
                        self.client(),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        env=self.environment,
                    )
                )
                clients.callback(client.kill)
                writers.append(pool.submit(write, table, client))
            try:
                until(lambda: all(self.rows.values()), "rows are written")
                yield
            finally:
                stop.set()
            for writer in writers:
                writer.result(30)

    def acknowledged(self, table: str = "t", *, before: int) -> list[int]:
        return [row.number for row in self.rows[table] if row.acknowledged < before]


class MariaDb(Server):
    """MariaDB with an InnoDB table, *t*, and one of MyISAM, *m*."""

    tables = ("t", "m")

    def start(self) -> None:
        self.serve([
            "mariadbd", "--no-defaults", f"--datadir={self.home}", f"--tmpdir={self.home}",
            f"--socket={self.home}/sock", f"--pid-file={self.home}/pid", "--skip-networking",
            "--skip-grant-tables", "--performance-schema=OFF", "--innodb-log-file-size=4M",
            "--innodb-buffer-pool-size=16M", "--innodb-undo-tablespaces=0",
            "--innodb-buffer-pool-size-max=16M",  # else it wants 8 TiB of addresses
            "--innodb-data-file-path=ibdata1:6M:autoextend", "--innodb-fast-shutdown=2",
        ])  # fmt: skip

    @property
    def options(self) -> str:
        return f"--no-defaults --socket={self.home}/sock --user=root"

    def client(self) -> list[str]:
        return ["mariadb", *self.options.split(), "--batch", "-N", "--unbuffered"]

    def insert(self, table: str, number: int) -> str:
        return f"INSERT INTO d.{table} VALUES ({number}); SELECT {number};"

    def numbers(self, table: str) -> list[int]:
        return [int(line) for line in self.sql(f"SELECT id FROM d.{table} ORDER BY id").split()]


class Postgres(Server):
    """PostgreSQL with one table."""

    user = group = "postgres"

    def make(self) -> None:
        argv = self.as_user(
            f"{PG_PROGRAMS}/initdb", "-D", str(self.home), "--no-sync", "--wal-segsize=1",
            "-A", "trust", "--no-locale", "-E", "SQL_ASCII",
        )  # fmt: skip
        made = subprocess.run(argv, env=self.environment, cwd="/", capture_output=True, check=False)
        assert made.returncode == 0, made

    def start(self) -> None:
        # In a copy they are of the server that still runs, with a pid that there is.
        for stale in (self.home / "postmaster.pid", *self.home.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)
        self.serve([
            f"{PG_PROGRAMS}/postgres", "-D", str(self.home), "-k", str(self.home),
            "-c", "listen_addresses=", "-c", "shared_buffers=8MB", "-c", "wal_keep_size=64MB",
        ])  # fmt: skip

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(2)  # SIGINT: fast, it does not wait for clients
        super().stop()

    @property
    def connection(self) -> str:
        return f"host={self.home} user=postgres dbname=postgres"

    def client(self) -> list[str]:
        return ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.connection]

    def insert(self, table: str, number: int) -> str:
        return f"INSERT INTO {table} VALUES ({number}) RETURNING id;"

    def numbers(self) -> list[int]:
        return [int(line) for line in self.sql("SELECT id FROM t ORDER BY id").split()]


class Site:
    """A source, above it a device with a file system, in which a server has its data."""

    def __init__(self, at: Scene) -> None:
        self.at = at
        at.folder.chmod(0o755)
        self.source = at.origin(MIB)
        upper = at.stage.linear(self.source)
        sh("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=1", upper)
        self.home = Path(at.stage.mount(upper)) / "data"
        count = f"[ $1 = before ] || exit 0; n() {{ wc -l <{at.folder}/acknowledged; }}"
        # they look whether commits come through right before the begin time, and fail if not so
        self.moves = self.hook(
            "moves", f"{count}; a=$(n); while [ $(n) -lt $((a + 3)) ]; do sleep 0.1; done"
        )
        self.stands = self.hook("stands", f"{count}; sleep 0.5; a=$(n); sleep 1.5; [ $(n) -eq $a ]")

    def hook(self, name: str, text: str) -> str:
        path = self.at.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def shipped(self, name: str) -> str:
        """Give one of dmcopy's hooks, as it is installed: root's."""
        path = self.at.folder / name
        shutil.copy(SHIPPED / name, path)
        os.chown(path, 0, 0)
        path.chmod(0o755)
        return str(path)

    def own(self, user: str, group: str) -> None:
        self.home.mkdir(mode=0o700)
        shutil.chown(self.home, user, group)

    def copy(self, image: str, *hooks: str) -> Ran:
        options = [word for hook in hooks for word in ("--hook", hook)]
        destination = f"image:{self.at.folder}/{image}"
        return self.at.fork("copy", self.source, destination, *JOB, *options)

    def copied(self, image: str) -> Path:
        """Mount a copy; give where the server's data is in it."""
        loop = self.at.stage.disk(file=f"{self.at.folder}/{image}")
        return Path(self.at.stage.mount(loop)) / "data"


@pytest.fixture
def site() -> Iterator[Site]:
    with scene("db") as at:
        yield Site(at)


def span(ran: Ran) -> tuple[int, int]:
    """Give the begin time and the end of its hold."""
    assert ran.status == 0, ran
    begun = ran.event("begun")
    t0 = harness.nanoseconds(begun["begin_time"])
    return t0, t0 + int(begun["hold_seconds"][0] * 1e9)


def test_mariadb_holds_commits_across_the_begin_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.own("nobody", "nogroup")
    server = MariaDb(site.at, site.home)
    server.start()
    server.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (id INT PRIMARY KEY) ENGINE=InnoDB;"
        "CREATE TABLE d.m (id INT PRIMARY KEY) ENGINE=MyISAM;"
    )
    monkeypatch.setenv("DMCOPY_MARIADB_OPTIONS", server.options)
    hook = site.shipped("mariadb")
    with server.written():
        broken = site.copy("without.img", site.stands)
        staged = site.copy("stage.img", hook, site.stands)
        monkeypatch.setenv("DMCOPY_MARIADB_LOCK", "tables")
        tables = site.copy("tables.img", hook, site.stands)
    assert "hook stands before" in broken.said, "without the hook commits come through"
    for ran in (staged, tables):
        span(ran)
        assert ("mariadb", "session", "done") in [
            (one["hook"], one["side"], one["status"]) for one in ran.of_kind("hook")
        ]
    _leaves_a_server_alone_that_is_elsewhere(site, hook)
    _refuses_a_lock_that_was_lost(site, server, hook)
    server.stop()

    t0, _ = span(staged)
    copy = MariaDb(site.at, site.copied("stage.img"))
    copy.start()
    for table in server.tables:
        assert copy.numbers(table) == server.acknowledged(table, before=t0), table
    copy.stop()


def _leaves_a_server_alone_that_is_elsewhere(site: Site, hook: str) -> None:
    at = site.at
    ran = at.fork(
        "copy", at.origin(8), f"image:{at.folder}/other.img", *JOB, "--hook", hook
    )  # fmt: skip
    assert ran.status == 0, ran
    assert [one["status"] for one in ran.of_kind("hook")] == ["done", "done"], "it took a lock"


def _refuses_a_lock_that_was_lost(site: Site, server: MariaDb, hook: str) -> None:
    idle = "SELECT id FROM information_schema.processlist WHERE command='Sleep'"
    kill = (
        f"[ $1 = before ] || exit 0; c='mariadb {server.options} -BN'\n"
        f'for id in $($c -e "{idle}"); do $c -e "KILL $id"; done'
    )
    ran = site.copy("lost.img", hook, site.hook("killer", kill))
    assert ran.status == 1, ran
    assert ran.event("ended")["kind"] == "hook"
    assert "hook mariadb session: ended with status 1: ERROR 2006" in ran.said
    assert not ran.of_kind("begun")


def test_postgresql_recovers_with_and_without_a_backup_label(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.own("postgres", "postgres")
    server = Postgres(site.at, site.home)
    server.make()
    server.start()
    server.sql("CREATE TABLE t (id INT PRIMARY KEY)")
    monkeypatch.setenv("DMCOPY_PG_CONNINFO", server.connection)
    hook = site.shipped("postgresql")
    with server.written():
        plain = site.copy("plain.img", hook)
        monkeypatch.setenv("DMCOPY_PG_MODE", "backup")
        labelled = site.copy("labelled.img", hook, site.moves)
    assert [one["side"] for one in plain.of_kind("hook")] == ["before", "after"]
    span(labelled)
    # a backup holds nobody up: `moves` saw it
    label = site.at.state / "hooks/hooked/backup_label"
    assert "START WAL LOCATION" in label.read_text()
    wal = sorted(path for path in (site.home / "pg_wal").iterdir() if len(path.name) == 24)

    t0, t1 = span(plain)
    copy = Postgres(site.at, site.copied("plain.img"))
    copy.start()
    there = copy.numbers()
    assert set(server.acknowledged(before=t0)) - set(there) == set()
    assert [
        row.number for row in server.rows["t"] if row.submitted > t1 and row.number in there
    ] == []
    copy.stop()

    t0, _ = span(labelled)
    copy = Postgres(site.at, site.copied("labelled.img"))
    shutil.copy(label, copy.home / "backup_label")
    shutil.chown(copy.home / "backup_label", "postgres", "postgres")
    for segment in wal:  # as a WAL archive would have it
        shutil.copy(segment, copy.home / "pg_wal")
        shutil.chown(copy.home / "pg_wal" / segment.name, "postgres", "postgres")
    copy.start()
    assert set(server.acknowledged(before=t0)) - set(copy.numbers()) == set()
    assert "consistent recovery state reached" in copy.log.read_text()
    assert (copy.home / "backup_label.old").exists(), "it was used"
    copy.stop()
    server.stop()
