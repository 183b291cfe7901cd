"""A machine with systemd, a wrapped disk and dmcopy installed; its power can be cut.

Host side; the guest runs `tests.cuts.wrap_side`, or `tests.cuts.boot_side`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lab.guest import CHECKOUT, CUT, Disk, Result, run, venv
from tests.cuts.machine import TALLY, said, stamped
from tests.cuts.wrap_side import NAME, UUID

Found = Mapping[str, Any]  # Any: JSON
FIRST: Final = 1 << 20  # bytes before a partition
SIZE: Final = 24 << 20
LIMIT: Final = 300.0
STATE: Final = "/dev/ubdc /var/lib/dmcopy ext4 defaults 0 0\n"
MOUNT: Final = f"/dev/mapper/{NAME} /data ext4 defaults,x-systemd.device-timeout=240 0 2\n"


class Disks(NamedTuple):
    """The files of the machine's disks, in the guest's order."""

    source: Path
    destination: Path
    state: Path

    def copied(self, folder: Path) -> Disks:
        folder.mkdir()
        return Disks(*(Path(shutil.copy(path, folder / path.name)) for path in self))


def make_disks(folder: Path) -> Disks:
    """Make a GPT disk with an ext4 partition, a destination full of something, a state disk."""
    folder.mkdir()
    disks = Disks(folder / "source", folder / "destination", folder / "state")
    with disks.source.open("wb") as file:
        file.truncate(FIRST + SIZE + (1 << 20))
    table = f"label: gpt\nstart={FIRST >> 9}, size={SIZE >> 9}\n"
    subprocess.run(["sfdisk", "-q", str(disks.source)], input=table, text=True, check=True)
    mkfs = ["mkfs.ext4", "-q", "-F", "-E"]
    lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    subprocess.run(
        [*mkfs, f"{lazy},offset={FIRST}", "-U", UUID, str(disks.source), f"{SIZE >> 10}k"],
        check=True,
    )
    disks.destination.write_bytes(stamped(99, SIZE))
    with disks.state.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run([*mkfs, lazy, str(disks.state)], check=True)
    return disks


class Host(NamedTuple):
    """One machine: its disks, and what is on its root beside the distribution."""

    folder: Path
    disks: Disks

    @property
    def share(self) -> Path:
        return self.folder / "share"

    def root(
        self,
        *,
        fstab: str,
        etc: Path | None,
        broken: bool = False,
        enabled: Sequence[str] = ("dmcopy-wrap-note.service",),
    ) -> Path:
        """Lay out what an administrator has installed, and what `dmcopy wrap` wrote."""
        root = self.folder / "root"
        units = root / "etc/systemd/system"
        shutil.copytree(CHECKOUT / "udev/systemd", units)
        shutil.copytree(CHECKOUT / "udev/rules.d", root / "etc/udev/rules.d")
        if etc is not None:
            shutil.copytree(etc, root / "etc", dirs_exist_ok=True)
        wants = units / "lab.target.wants"
        wants.mkdir()
        for unit in enabled:
            (wants / unit).symlink_to(f"../{unit}")
        (root / "etc/fstab").write_text(fstab)
        (root / "var/lib/dmcopy").mkdir(parents=True)
        (root / "data").mkdir()
        program = root / "usr/local/sbin/dmcopy"
        program.parent.mkdir(parents=True)
        python = f"exec env PYTHONPATH={CHECKOUT} PYTHONDONTWRITEBYTECODE=1 {venv()}/bin/python -m"
        up = f'[ "$1 $2" != "wrap --up" ] || {python} tests.cuts.broken_wrap "$3"\n'
        program.write_text(f'#!/bin/sh\n{up if broken else ""}{python} dmcopy "$@"\n')
        program.chmod(0o755)
        return root

    def live(
        self,
        *words: str,
        root: Path,
        cut: Callable[[], bool] | None = None,
        side: str = "wrap_side",
    ) -> Result:
        """Boot with systemd, have *side* do *words* in it, and wait for its end or the cut."""
        self.share.mkdir(exist_ok=True)
        result = run(
            [sys.executable, "-m", f"tests.cuts.{side}", *words],
            disks=[Disk(path=path) for path in self.disks],
            memory="768M",
            timeout=LIMIT,
            artefacts=self.share,
            cwd=CHECKOUT,
            quiet=True,
            cut=cut,
            systemd=True,
            overlay=root,
        )
        TALLY.cuts += result.status == CUT
        shutil.rmtree(root)
        return result

    def read(self, name: str) -> Any:  # Any: JSON
        return json.loads((self.share / name).read_text())

    def again(self, etc: Path, *, broken: bool = False) -> Found:
        """Live the boot after the cut to its end; give what was found."""
        root = self.root(fstab=STATE + MOUNT, etc=etc, broken=broken)
        result = self.live("again", root=root)
        assert result.status == 0, said(result)
        found: Found = self.read("found")
        return found


def is_whole(image: Path, bounds: Mapping[str, int], folder: Path) -> None:
    """Look at the image by what the application knows: what was durable before, none of after."""
    replayed = folder / "replayed"
    shutil.copy(image, replayed)
    fsck = subprocess.run(
        ["e2fsck", "-fp", str(replayed)], capture_output=True, text=True, check=False
    )
    assert fsck.returncode in (0, 1), fsck.stdout + fsck.stderr
    names = subprocess.run(
        ["debugfs", "-R", "ls -p /", str(replayed)], capture_output=True, text=True, check=True
    ).stdout
    files = {line.split("/")[5] for line in names.splitlines() if line.count("/") > 5}
    numbers = {int(name[2:]) for name in files if name.startswith("1-")}
    assert set(range(1, bounds["synced"] + 1)) <= numbers, "what was durable before is there"
    assert max(numbers) <= bounds["after"], "what was written after is not"
    assert not [name for name in files if name.startswith(("2-", "3-"))]
