"""What a job is asked to do, and where jobs keep what they need."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dmcopy.stack.cow import CowSpec
from dmcopy.units import KIB, MIB, Bytes

DEFAULT_CHUNK: Final = Bytes(64 * KIB)
DEFAULT_SEGMENT: Final = Bytes(4 * MIB)
DEFAULT_HOLD_LIMIT: Final = 2.0
DIGESTS: Final = ("sha256", "none")


@dataclass(frozen=True, kw_only=True)
class CopySpec:
    """One copy: what the command line or a policy asked for, checked for form only."""

    name: str
    source: str
    destination: str
    cow: CowSpec = field(default_factory=CowSpec)
    chunk: Bytes = DEFAULT_CHUNK
    segment: Bytes = DEFAULT_SEGMENT
    digest: str = "sha256"
    verify: bool = False
    overwrite_signature: bool = False
    hold_limit: float = DEFAULT_HOLD_LIMIT  # seconds

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        return asdict(self)


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
    def cookies(self) -> Path:
        """Records of udev cookies under way (kernel.cookie)."""
        return self.runtime / "cookies"
