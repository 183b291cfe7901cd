"""Volume groups for tests: made by LVM's own tools, and what LVM says of them, to be compared."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final

from tests.lab import harness
from tests.lab.stage import Stage, patiently, sh

MIB: Final = 1 << 20
PVS: Final = 5

# How to make each kind; raid wants to be in sync before anything is compared.
KINDS: Final = {
    "linear": (),
    "striped": ("--stripes", "2"),
    "raid1": ("--type", "raid1", "--mirrors", "1"),
    "raid5": ("--type", "raid5", "--stripes", "2"),
    "raid6": ("--type", "raid6", "--stripes", "3"),
    "raid10": ("--type", "raid10", "--stripes", "2", "--mirrors", "1"),
}

# What changes by itself when LVM's metadata is written; it counts a thin pool's changes, and gives
# hidden parts of a raid volume another read-ahead with the first snapshot.
_PASSING: Final = (
    "seqno", "mda_free", "mda_used", "time", "transaction_id", "kernel_read_ahead",
)  # fmt: skip


class Volumes:
    """A volume group over some disks of a stage."""

    def __init__(
        self, stage: Stage, *, mib: int = 96, disks: int = PVS, over: Sequence[str] = ()
    ) -> None:
        """With *over*, on these devices too."""
        self.stage = stage
        self.vg = f"{stage.name}".replace("-", "_") + "vg"
        self.disks = [*over, *(stage.disk(mib) for _ in range(disks))]
        sh("vgcreate", "--quiet", "--physicalextentsize", "1m", self.vg, *self.disks)
        stage.later(self._remove)

    def _remove(self) -> None:
        patiently("vgremove", "--force", "--force", "--yes", self.vg)

    def lv(
        self, name: str = "data", kind: str = "linear", mib: int = 8, on: str | None = None
    ) -> str:
        """Make a volume, on one of the disks if need be; gives its path."""
        words = ("lvcreate", "--quiet", "--yes", "--wipesignatures", "n", "--zero", "n")
        where = (on,) if on is not None else ()
        sh(*words, *KINDS[kind], "--size", f"{mib}m", "--name", name, self.vg, *where)
        if kind.startswith("raid"):
            until(lambda: self._synced(name), f"{name} is in sync")
        return f"/dev/mapper/{self.vg}-{name}"

    def _synced(self, name: str) -> bool:
        said = sh("lvs", "--noheadings", "-o", "sync_percent", f"{self.vg}/{name}")
        return said.strip() == "100.00"

    def pool(self, name: str = "pool", mib: int = 48) -> None:
        """Make a thin pool."""
        sh(
            "lvcreate", "--quiet", "--yes", "--type", "thin-pool", "--size", f"{mib}m",
            "--chunksize", "64k", "--name", name, self.vg,
        )  # fmt: skip

    def thin(self, name: str = "data", pool: str = "pool", mib: int = 8) -> str:
        """Make a thin volume."""
        sh(
            "lvcreate", "--quiet", "--yes", "--virtualsize", f"{mib}m", "--thinpool", pool,
            "--name", name, self.vg,
        )  # fmt: skip
        return f"/dev/mapper/{self.vg}-{name}"

    def used(self, path: str) -> Callable[[], None]:
        """Have the application open it; give what closes it."""
        return _closer(self.stage, path)

    def picture(self) -> dict[str, object]:
        """Give all that LVM and device-mapper say of the group, but for what passes."""
        fields = {"lvs": "lv_all,seg_all", "pvs": "pv_all", "vgs": "vg_all"}
        found: dict[str, object] = {}
        for program, what in fields.items():
            every = ("--all",) if program == "lvs" else ()
            said = sh(
                program, "--reportformat", "json", "-o", what, *every,
                "--select", f"vg_name={self.vg}",
            )  # fmt: skip
            (part,) = json.loads(said)["report"]
            rows = part[program.removesuffix("s")]
            found[program] = [
                {k: v for k, v in row.items() if not k.endswith(_PASSING)} for row in rows
            ]
        found["tables"] = sorted(
            line for line in sh("dmsetup", "table").splitlines() if line.startswith(self.vg)
        )
        sh("vgck", self.vg)
        return found


def differences(before: object, after: object, where: str = "") -> list[str]:
    """Say where two pictures differ, a line each."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [
            line for k in keys for line in differences(before.get(k), after.get(k), f"{where}/{k}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for n, (b, a) in pairs for line in differences(b, a, f"{where}/{n}")]
    return [f"{where}: {before!r} is {after!r} now"]


def _closer(stage: Stage, path: str) -> Callable[[], None]:
    holder = subprocess.Popen(["sleep", "600"], stdin=open(path, "rb"))  # noqa: SIM115

    def close() -> None:
        holder.kill()
        holder.wait()
        if holder.stdin is not None:
            holder.stdin.close()

    stage.later(close)
    return close


def until(is_so: Callable[[], bool], what: str, *, patience: float = 30.0) -> None:
    end = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < end, f"not within {patience} s: {what}"
        time.sleep(0.1)


def filled(path: str) -> bytes:
    """Write content that says where it belongs; gives it."""
    data = harness.pattern(harness.sectors_of(path) * 512)
    harness.write_device(path, data)
    return data
