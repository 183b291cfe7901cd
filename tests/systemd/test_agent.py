"""The agent as the service that ``dmcopy setup`` installs: restarts, units, journal, watchdog."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import varlink

from lab.guest import CHECKOUT
from tests.lab import harness
from tests.lab.scene import Scene, no_helpers, until
from tests.lab.stage import Stage, sh

MIB = 1 << 20
UNIT = "dmcopy-agent.service"
_LIMITS = ("Seccomp", "NoNewPrivs")
_HOOK = """\
#!/bin/sh
[ $1 = before ] || { tr '\\0' ' ' </proc/$PPID/cmdline >"$0.after"; exit 0; }
mount -t tmpfs none "$0.d" && umount "$0.d" || exit 1  # the agent may not
touch "$0.waits"
while [ ! -e "$0.go" ]; do sleep 0.1; done
"""


@pytest.fixture
def at() -> Iterator[Scene]:
    stage = Stage("dmsa")
    scene = Scene(stage)
    yield scene
    subprocess.run(["systemctl", "stop", UNIT], check=False)
    stage.close()
    no_helpers()


def dmcopy(*words: str, status: int = 0) -> str:
    """Run the installed program."""
    done = subprocess.run(
        ["dmcopy", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def shown(unit: str, name: str) -> str:
    return sh("systemctl", "show", "--property", name, "--value", unit).strip()


def entries(job: str) -> list[dict[str, Any]]:  # Any: JSON
    """Give what the journal of systemd has of a job."""
    sh("journalctl", "--sync")
    text = sh("journalctl", "--boot", "--output=json", f"DMCOPY_JOB={job}")
    return [json.loads(line) for line in text.splitlines()]


def units(job: str) -> list[str]:
    """Give the units of a job that are not over: activating, active or deactivating."""
    text = sh("systemctl", "list-units", "--plain", "--no-legend", f"dmcopy-job@{job}-*")
    return [line.split()[0] for line in text.splitlines()]


def said(unit: str) -> str:
    """Give what a unit's processes said."""
    sh("journalctl", "--sync")
    return sh("journalctl", "--boot", "--output=cat", "_SYSTEMD_UNIT=" + unit)


def asked() -> list[Path]:
    """Give what is asked of units and was not yet taken."""
    return list(Path("/run/dmcopy/asked").iterdir())


def limits(pid: int) -> tuple[str, str]:
    """Give what the kernel forbids a process: seccomp and no new privileges, each 0 for nothing."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = [re.findall(rf"^{name}:\s*(\d+)$", status, re.MULTILINE) for name in _LIMITS]
    return found[0][0], found[1][0]


def waiting_hook(at: Scene) -> str:
    """Make a hook that says when it waits, and does so for a file."""
    hook = at.folder / "hook"
    hook.write_text(_HOOK)
    hook.chmod(0o755)
    Path(f"{hook}.d").mkdir()
    return str(hook)


def soon(is_so: Callable[[], object], what: str) -> None:
    """Wait without using up the one CPU, as `until` would that starts programs."""

    def slowly() -> bool:
        time.sleep(0.3)
        return bool(is_so())

    until(slowly, what, patience=60)


def test_job_goes_on_while_its_agent_is_killed_restarted_and_stopped(at: Scene) -> None:
    origin = at.origin(4)
    harness.write_device(origin, harness.pattern(4 * MIB))
    table = sh("dmsetup", "table", origin)
    destination = at.stage.disk(4)
    hook = waiting_hook(at)
    sh("systemctl", "start", UNIT)
    assert shown(UNIT, "StatusText") == "watching"
    agent = int(shown(UNIT, "MainPID"))
    assert limits(agent) == ("2", "1")
    with at.load(origin):
        asker = subprocess.Popen(
            ["dmcopy", "copy", origin, destination, "--name", "job", "--detach", "--no-retire",
             "--rate", "64k", "--segment", "256k", "--batch", "512k", "--verify",
             "--hook", hook],
        )  # fmt: skip
        soon(Path(hook + ".waits").exists, "all is ready for the begin time")
        (unit,) = units("job")
        assert shown(unit, "ActiveState") == "activating"
        assert asked() == []
        os.kill(agent, signal.SIGKILL)
        assert asker.wait(60) == 1, "who has asked cannot know"
        soon(lambda: shown(UNIT, "MainPID") not in ("0", str(agent)), "it is started again")
        soon(lambda: shown(UNIT, "ActiveState") == "active", "it is ready")
        assert shown(UNIT, "NRestarts") == "1"
        assert shown(unit, "ActiveState") == "activating"
        Path(hook + ".go").touch()
        soon(lambda: shown(unit, "ActiveState") == "active", "the begin time is fixed")
        status = json.loads(dmcopy("status", "job", "--json"))
        begun = status["begun"]
        witness = harness.read_device(begun["snapshot"])
        assert shown(unit, "MainPID") == str(status["pid"])
        assert limits(status["pid"])[1] == "0", "what the agent may not, a hook may"
        for pid in ("self", shown(UNIT, "MainPID"), status["pid"]):
            assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/1/ns/mnt")
        tasks = int(shown(unit, "TasksCurrent"))
        assert tasks >= 2, "the job's processes are in its unit"
        sh("systemctl", "restart", UNIT)
        assert json.loads(dmcopy("status", "job", "--json"))["pid"] == status["pid"]
        assert units("job") == [unit]
        assert int(shown(unit, "TasksCurrent")) == tasks
        dmcopy("set", "job", "rate=none")
        dmcopy("wait", "job")
    assert harness.differing(harness.read_device(destination), witness) == []
    at.assert_back(origin, table)
    soon(lambda: not units("job"), "its unit went with it")
    assert "was interrupted" not in said(unit), "there was nothing to rescue"
    soon(lambda: any("copied" in one["MESSAGE"] for one in entries("job")), "its end is told")
    told = entries("job")
    begins = [one for one in told if one["MESSAGE_ID"] == "e171f7cc5bef4d8dadbe09faecba6b7c"]
    assert len(begins) == 1, [one["MESSAGE"] for one in told]
    assert begins[0]["DMCOPY_BEGIN_TIME"] == begun["begin_time"]
    assert told[-1]["MESSAGE_ID"] == "42febc8ecba3441f8be28d456f8d28fa"
    assert told[-1]["DMCOPY_DESTINATION"] == destination
    sh("systemctl", "stop", UNIT)
    assert shown(UNIT, "Result") == "success"


def test_job_whose_unit_is_stopped_or_killed_goes_on(at: Scene) -> None:
    """Stopped; its process killed; all its processes killed at once: each time it is resumed."""
    origin = at.origin(8)  # two minutes at this rate
    harness.write_device(origin, harness.pattern(8 * MIB))
    table = sh("dmsetup", "table", origin)
    destination = at.stage.disk(8)
    sh("systemctl", "start", UNIT)
    words = ["--name", "job", "--no-retire", "--rate", "64k", "--segment", "256k"]
    rescued = "job: was interrupted and is kept; go on: dmcopy resume job"
    with at.load(origin):
        told = dmcopy("copy", origin, destination, *words, "--batch", "512k", "--detach", "--json")
        (begun,) = (one for one in map(json.loads, told.splitlines()) if one["event"] == "begun")
        witness = harness.read_device(begun["snapshot"])
        for end, is_rescued in (
            (["stop"], False),
            (["kill", "--signal=KILL", "--kill-who=main"], True),
            (["kill", "--signal=KILL"], True),
        ):
            (unit,) = units("job")
            soon(lambda: json.loads(dmcopy("status", "job", "--json"))["state"] == "copying", "so")
            sh("systemctl", *end, unit)
            soon(lambda: not units("job"), "its unit is over")
            assert (rescued in said(unit)) is is_rescued, said(unit)
            assert "Suspended" not in sh("dmsetup", "info", "-c", "--noheadings", "-o", "suspended")
            status = json.loads(dmcopy("status", "job", "--json"))
            assert (status["pid"], status["can_resume"]) == (None, True), status
            assert status["state"] == ("copying" if is_rescued else "paused")
            no_helpers()
            os.close(os.open(destination, os.O_RDWR | os.O_EXCL))  # nobody has it
            dmcopy("resume", "job", "--detach")
        dmcopy("set", "job", "rate=none")
        dmcopy("wait", "job")
    assert harness.differing(harness.read_device(destination), witness) == []
    at.assert_back(origin, table)
    assert asked() == []


def test_job_killed_before_its_begin_time_is_put_right_by_its_helpers_then_by_rescue(
    at: Scene,
) -> None:
    origin = at.origin(4)
    table = sh("dmsetup", "table", origin)
    hook = waiting_hook(at)
    sh("systemctl", "start", UNIT)
    with subprocess.Popen(
        ["dmcopy", "copy", origin, at.stage.disk(4), "--name", "job", "--detach", "--hook", hook],
        stderr=subprocess.PIPE, text=True,
    ) as asker:  # fmt: skip
        soon(Path(hook + ".waits").exists, "all is ready for the begin time")
        (unit,) = units("job")
        sh("systemctl", "kill", "--signal=KILL", "--kill-who=main", unit)
        _, stderr = asker.communicate(timeout=60)
    Path(hook + ".go").touch()
    assert asker.returncode == 1
    assert len(stderr.splitlines()) == 1
    assert f"journalctl -u {unit}" in stderr
    assert "dmcopy.stack.keep" in Path(hook + ".after").read_text(), "systemd has let it live"
    soon(lambda: not units("job"), "and then it was rescued")
    at.assert_clean(origin, table)
    assert json.loads(dmcopy("list", "--json").splitlines()[0])["state"] == "failed"


def test_refusal_is_the_one_line_and_its_status(at: Scene) -> None:
    origin, small = at.origin(4), at.stage.disk(1)
    table = sh("dmsetup", "table", origin)
    sh("systemctl", "start", UNIT)
    lines = [
        subprocess.run(
            ["dmcopy", "copy", origin, small, "--name", "no", "--detach", *more],
            capture_output=True, text=True, check=False,
        )
        for more in ([], ["--no-agent"])
    ]  # fmt: skip
    assert [one.returncode for one in lines] == [3, 3], lines
    assert lines[0].stderr == lines[1].stderr
    assert len(lines[0].stderr.splitlines()) == 1
    assert "is too small" in lines[0].stderr
    assert (units("no"), asked()) == ([], [])
    assert sh("dmsetup", "table", origin) == table


_SETTINGS = """\
group = "disk"
metrics-listen = "127.0.0.1:9273"
metrics-textfile = "{0}/dmcopy.prom"
"""


@pytest.fixture
def settings(at: Scene) -> Iterator[None]:
    file = Path("/etc/dmcopy/agent.toml")
    file.write_text(_SETTINGS.format(at.folder))
    yield
    file.unlink()


def test_agent_does_all_that_it_is_asked_within_its_limits(at: Scene, settings: None) -> None:
    origin, destination = at.origin(4), at.stage.disk(4)
    table = sh("dmsetup", "table", origin)
    socket = Path("/run/dmcopy/agent.sock")
    sh("systemctl", "start", UNIT)
    assert (socket.group(), stat.S_IMODE(socket.stat().st_mode)) == ("disk", 0o660)
    words = [origin, destination, "--name", "job", "--rate", "64k", "--segment", "256k"]
    with (
        varlink.Client.new_with_address(f"unix:{socket}") as client,
        client.open("org.dmcopy.Agent") as agent,
    ):
        plan = agent.Plan(words=words, directory=str(at.folder))["plan"]
        assert (plan["source"], plan["bytes_total"]) == (origin, 4 * MIB)
        assert agent.Start(words=words)["job"] == "job"
        agent.Pause(job="job")
        agent.Set(job="job", settings={"rate": "32k"})
        agent.Set(settings={"rate": "none"})
        agent.Order(job="job", words=["--first", "3m+512k"])
        agent.Resume(job="job")
        assert 'job_name="job"' in agent.Metrics()["text"]
        with urllib.request.urlopen("http://127.0.0.1:9273/metrics", timeout=60) as answer:
            assert 'job_name="job"' in answer.read().decode()
        soon((at.folder / "dmcopy.prom").exists, "the file is written")
        (unit,) = units("job")
        sh("systemctl", "kill", "--signal=KILL", unit)
        soon(lambda: not units("job"), "its unit is over")
        no_helpers()
        agent.Cancel(job="job")
    at.assert_clean(origin, table)
    assert asked() == []


def test_units_are_as_hardened_as_documented() -> None:
    text = (CHECKOUT / "docs/packaging.rst").read_text()
    documented = dict(
        re.findall(r"^``(dmcopy-[a-z@-]+\.service)`` +(\d+\.\d) ", text, re.MULTILINE)
    )
    services = (CHECKOUT / "udev/systemd").glob("*.service")
    assert documented.keys() == {path.name for path in services}
    for name, score in documented.items():
        said = sh("systemd-analyze", "security", "--no-pager", name.replace("@", "@x"))
        (found,) = re.findall(r"level for .*: (\d+\.\d) ", said)
        # of a unit that is loaded it knows a little more than of the file
        assert float(score) - 0.25 < float(found) <= float(score), name


def test_agent_that_hangs_is_ended_by_the_watchdog_and_started_again(at: Scene) -> None:
    drop_in = Path(f"/run/systemd/system/{UNIT}.d/fast.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=6\n")
    try:
        sh("systemctl", "daemon-reload")
        sh("systemctl", "start", UNIT)
        first = int(shown(UNIT, "MainPID"))
        time.sleep(8)
        assert shown(UNIT, "MainPID") == str(first), "it tells that it is alive"
        os.kill(first, signal.SIGSTOP)
        soon(lambda: shown(UNIT, "MainPID") not in ("0", str(first)), "it is started again")
        soon(lambda: shown(UNIT, "ActiveState") == "active", "it is ready")
    finally:
        drop_in.unlink()
        sh("systemctl", "daemon-reload")


def test_boot_goes_on_with_what_was_interrupted(at: Scene) -> None:
    origin = at.origin(4)
    harness.write_device(origin, harness.pattern(4 * MIB))
    table = sh("dmsetup", "table", origin)
    destination = at.stage.disk(4)
    words = ["copy", origin, destination, "--name", "job", "--no-retire", "--rate", "128k"]
    with at.load(origin):
        said = dmcopy(*words, "--segment", "256k", "--detach", "--json")
        (begun,) = (one for one in map(json.loads, said.splitlines()) if one["event"] == "begun")
        witness = harness.read_device(begun["snapshot"])
        os.kill(json.loads(dmcopy("status", "job", "--json"))["pid"], signal.SIGKILL)
        no_helpers()
        sh("systemctl", "start", "dmcopy-resume.service")
        assert shown("dmcopy-resume.service", "Result") == "success"
        (unit,) = units("job")
        assert shown(unit, "ActiveState") == "active"
        dmcopy("set", "job", "rate=none")
        dmcopy("wait", "job")
    assert harness.differing(harness.read_device(destination), witness) == []
    at.assert_back(origin, table)
