"""Hosts for Ansible: network namespaces, each with an sshd, places and devices of its own.

They have one kernel, and so one device-mapper: names of devices say whose they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.guest import CHECKOUT
from tests.lab.stage import Stage, patiently, sh

_PATIENCE: Final = 30.0
_PLAY_SECONDS: Final = 500.0
_SSHD: Final = """\
Port 22
ListenAddress {address}
HostKey {keys}/host_key
AuthorizedKeysFile {keys}/authorized_keys
PidFile {folder}/sshd.pid
PermitRootLogin yes
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
SetEnv {environment}
"""
_CONFIG: Final = """\
[defaults]
host_key_checking = false
interpreter_python = {python}
forks = 3
private_key_file = {folder}/key
callbacks_enabled = recorded
callback_plugins = {callbacks}
collections_path = {folder}/collections
remote_tmp = {folder}/remote
local_tmp = {folder}/local
[ssh_connection]
pipelining = true
control_path_dir = {folder}/cp
ssh_args = -F none -o ControlMaster=auto -o ControlPersist=300 -o UserKnownHostsFile=/dev/null
"""


@dataclass(frozen=True)
class Play:
    """What a playbook came to."""

    status: int
    out: str
    lines: list[dict[str, Any]]  # Any: JSON; how, host, play, task, result

    def __getitem__(self, key: tuple[str, str]) -> dict[str, Any]:
        """Give the result of a host's task."""
        host, task = key
        found = [one for one in self.lines if (one["host"], one["task"]) == (host, task)]
        assert found, f"{key} is not in {[(one['host'], one['task']) for one in self.lines]}"
        return {"how": found[-1]["how"], **found[-1]["result"]}


class Host:
    """One of the hosts."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.name = f"db{number}"
        self.address = f"10.77.{number}.2"
        self.folder = Path(stage.folder) / self.name
        self.folder.mkdir()
        self._net(stage, number)

    @property
    def environment(self) -> dict[str, str]:
        """What its dmcopy sees: places of its own."""
        places = {"STATE": "state", "RUN": "run", "CONFIG": "etc", "RULES": "rules"}
        return {
            **{f"DMCOPY_{word}_DIR": str(self.folder / name) for word, name in places.items()},
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
            **({"DM_DISABLE_UDEV": "1"} if "DM_DISABLE_UDEV" in os.environ else {}),
        }

    def _net(self, stage: Stage, number: int) -> None:
        sh("ip", "netns", "add", self.name)
        stage.later(sh, "ip", "netns", "delete", self.name)
        link = f"dmh{number}"
        sh("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "address", "add", f"10.77.{number}.1/24", "dev", link)
        sh("ip", "link", "set", link, "up")
        inside = ("ip", "-n", self.name)
        sh(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        sh(*inside, "link", "set", "eth0", "up")


class Control:
    """A machine with Ansible: keys, settings, the collection of the checkout.

    *python* is what Ansible runs on the hosts.
    """

    def __init__(self, folder: Path, *, python: str = sys.executable) -> None:
        self.folder = folder
        for key in ("key", "host_key"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
        collections = folder / "collections/ansible_collections/dmcopy"
        collections.mkdir(parents=True)
        (collections / "dmcopy").symlink_to(CHECKOUT / "ansible")
        config = _CONFIG.format(
            python=python, callbacks=Path(__file__).parent / "ansible_callbacks", folder=folder
        )
        (folder / "ansible.cfg").write_text(config)

    def start_sshd(
        self,
        stage: Stage,
        name: str,
        address: str,
        environment: Mapping[str, str],
        *,
        inside: Sequence[str] = (),
    ) -> None:
        """Have a host listen; *inside* is put before the command, for what it shall run in."""
        os.makedirs("/run/sshd", exist_ok=True)
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        config = folder / "sshd_config"
        words = " ".join(f'"{name}={value}"' for name, value in environment.items())
        config.write_text(
            _SSHD.format(address=address, keys=self.folder, folder=folder, environment=words)
        )
        log = folder / "sshd.log"
        sshd = ["/usr/sbin/sshd", "-D", "-E", str(log), "-f", str(config)]
        process = subprocess.Popen([*inside, *sshd])
        stage.later(process.wait)
        stage.later(process.terminate)
        end = time.monotonic() + _PATIENCE
        argv = ["ssh-keyscan", "-T", "2", address]
        while subprocess.run(argv, capture_output=True, text=True, check=False).stdout == "":
            said = log.read_text() if log.exists() else ""
            assert time.monotonic() < end, f"{name} does not answer: {said}"
            time.sleep(0.2)

    def _disconnect(self) -> None:
        """End the connections that Ansible keeps."""
        for socket in (self.folder / "cp").glob("*"):
            ssh = ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "x"]
            subprocess.run(ssh, capture_output=True, check=False)

    def play(self, *words: str, **known: object) -> Play:
        """Run ``ansible-playbook`` in the folder; *words* are options and playbooks.

        *known* are variables of the collection's playbooks, which are run as root, without sudo.
        """
        variables = json.dumps({**known, "ansible_become": False, "ansible_user": "root"})
        record = self.folder / "recorded"
        record.unlink(missing_ok=True)
        done = subprocess.run(
            ["ansible-playbook", "-i", "hosts.ini", *words, *(["-e", variables] if known else [])],
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
                "ANSIBLE_HOME": str(self.folder / "home"),
                "ANSIBLE_NOCOLOR": "1",
                "LC_ALL": "C.UTF-8",
                "RECORDED_FILE": str(record),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PLAY_SECONDS,
            check=False,
        )
        self._disconnect()
        out = done.stdout + done.stderr
        lines = record.read_text().splitlines() if record.exists() else []
        assert lines, f"{words}: nothing was done: {out}"
        return Play(done.returncode, out, [json.loads(line) for line in lines])


class Fleet(Control):
    """The hosts, and Ansible on a machine that reaches them."""

    def __init__(self, stage: Stage, count: int) -> None:
        super().__init__(Path(stage.folder))
        self.hosts = [Host(stage, number) for number in range(1, count + 1)]
        for host in self.hosts:
            inside = ("nsenter", f"--net=/run/netns/{host.name}")
            # only the network is its own, mounts are those of the guest
            self.start_sshd(stage, host.name, host.address, host.environment, inside=inside)
        # the guest's own file (its root is in memory)
        lines = [f"{host.address} {host.name}" for host in self.hosts]
        with open("/etc/hosts", "a") as file:
            file.write("\n".join(["", *lines, ""]))


@contextmanager
def fleet(count: int) -> Iterator[tuple[Stage, Fleet]]:
    """Give hosts, and the stage that takes down what is made for them."""
    stage = Stage("dman")
    try:
        yield stage, Fleet(stage, count)
    finally:
        stage.close()


def link(stage: Stage, device: str, path: str) -> None:
    """Give a device the name that udev would."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(device, path)
    stage.later(patiently, "rm", path)
