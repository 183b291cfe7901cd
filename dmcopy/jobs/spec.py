"""What a job is asked to do, and where jobs keep what they need."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from dmcopy.core.extent import Extent
from dmcopy.core.order import Policy
from dmcopy.core.rate import Rate
from dmcopy.stack.cow import CowSpec
from dmcopy.units import GIB, KIB, MIB, Bytes, Sectors

DEFAULT_CHUNK: Final = Bytes(64 * KIB)
DEFAULT_SEGMENT: Final = Bytes(4 * MIB)
DEFAULT_BATCH: Final = Bytes(1 * GIB)
DEFAULT_HOLD_LIMIT: Final = 2.0
DIGESTS: Final = ("sha256", "none")
ON_FULL: Final = ("fail", "hold")
GATES: Final = ("none", "segment")


@dataclass(frozen=True, kw_only=True)
class CopySpec:
    """One copy: what the command line or a policy asked for, checked for form only."""

    name: str
    source: str
    destination: str
    cow: CowSpec = field(default_factory=CowSpec)
    chunk: Bytes = DEFAULT_CHUNK
    segment: Bytes = DEFAULT_SEGMENT
    batch: Bytes = DEFAULT_BATCH  # made durable together: what an interruption costs at most
    digest: str = "sha256"
    verify: bool = False
    on_full: str = "fail"
    retire: bool = True  # what is copied leaves the snapshot
    keep: bool = False  # the snapshot stays when everything is copied
    order: Policy = Policy.SEQUENTIAL
    first: tuple[Extent, ...] = ()  # what the user wants copied before all else
    gate: str = "none"
    hold_start: bool = False  # copy nothing before it is told to
    rate: Rate = field(default_factory=Rate)
    overwrite_signature: bool = False
    hold_limit: float = DEFAULT_HOLD_LIMIT  # seconds

    def at_rate(self, rate: Rate) -> CopySpec:
        """Give the same copy with another ``--rate``."""
        return replace(self, rate=rate)

    def ordered(self, *, first: Sequence[Extent] | None, policy: Policy | None) -> CopySpec:
        """Give the same copy in another order; None: as it is."""
        return replace(
            self,
            first=self.first if first is None else tuple(first),
            order=self.order if policy is None else policy,
        )

    def retires(self) -> tuple[bool, str]:
        """Tell whether what is copied leaves the snapshot, and why, or why not."""
        if self.keep:
            return False, "--keep: the snapshot is to record every change since the begin time"
        if not self.retire:
            return False, "--no-retire"
        return True, "writes to what is copied need not be saved"

    def verifying(self) -> CopySpec:
        """Give the same copy with ``--verify``."""
        return replace(self, verify=True)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> CopySpec:  # Any: JSON
        """Read what `as_json` gave; words of other versions are not looked at."""
        known = {one.name for one in fields(cls)}
        given = {word: value for word, value in recorded.items() if word in known}
        cow = recorded["cow"]
        given["cow"] = CowSpec(**{**cow, "devices": tuple(cow["devices"])})
        given["rate"] = Rate(**recorded["rate"])
        given["order"] = Policy(recorded.get("order", Policy.SEQUENTIAL))
        given["first"] = tuple(
            Extent(Sectors(start), Sectors(length)) for start, length in recorded.get("first", ())
        )
        return cls(**given)


@dataclass(frozen=True)
class Places:
    """Where things are: *state* survives a reboot, *runtime* does not."""

    state: Path
    runtime: Path

    @classmethod
    def from_environment(cls) -> Places:
        """Use DMCOPY_STATE_DIR and DMCOPY_RUN_DIR, else the usual places."""
        return cls(
            Path(os.environ.get("DMCOPY_STATE_DIR", "/var/lib/dmcopy")),
            Path(os.environ.get("DMCOPY_RUN_DIR", "/run/dmcopy")),
        )

    @property
    def journal(self) -> Path:
        """The SQLite file with the jobs' records."""
        return self.state / "journal.sqlite"

    @property
    def cow_files(self) -> Path:
        """Where COW files go that the user did not place."""
        return self.state / "cow"

    @property
    def locks(self) -> Path:
        """One lock file a running job."""
        return self.runtime / "locks"

    @property
    def desks(self) -> Path:
        """One socket a running job (jobs.control)."""
        return self.runtime / "jobs"

    def log_of(self, job: str) -> Path:
        """What a job in the background says on stderr."""
        return self.runtime / "log" / job

    @property
    def cap(self) -> Path:
        """The rate that all jobs together may not exceed (engine.throttle.HostCap)."""
        return self.runtime / "cap"

    @property
    def cookies(self) -> Path:
        """Records of udev cookies under way (kernel.cookie)."""
        return self.runtime / "cookies"
