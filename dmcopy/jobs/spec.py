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
DEFAULT_HOOK_TIMEOUT: Final = 60.0
DIGESTS: Final = ("sha256", "none")
ON_FULL: Final = ("fail", "hold")
GATES: Final = ("none", "segment")
VIAS: Final = ("auto", "md-split")
MD_RESYNC: Final = ("auto", "wait", "pause", "ignore")
FREEZES: Final = ("auto", "none")
USUAL_RUNTIME: Final = Path("/run/dmcopy")


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
    via: str = "auto"  # how the begin time is fixed
    md_resync: str = "auto"  # what is done about a resync of an array under the source
    hold_start: bool = False  # copy nothing before it is told to
    rate: Rate = field(default_factory=Rate)
    overwrite_signature: bool = False
    hold_limit: float = DEFAULT_HOLD_LIMIT  # seconds
    freeze: str = "auto"
    hooks: tuple[str, ...] = ()  # commands, beside those of the hook directory
    hook_directory: bool = True  # those of the hook directory, too
    hook_timeout: float = DEFAULT_HOOK_TIMEOUT  # seconds
    group: str | None = None  # the job that has one begin time for this volume and others
    new_identity: bool = False  # when all is copied, the copy gets UUIDs of its own

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
        given["hooks"] = tuple(recorded.get("hooks", ()))
        given["order"] = Policy(recorded.get("order", Policy.SEQUENTIAL))
        given["first"] = tuple(
            Extent(Sectors(start), Sectors(length)) for start, length in recorded.get("first", ())
        )
        return cls(**given)


@dataclass(frozen=True)
class Places:
    """Where things are: *state* survives a reboot, *runtime* does not.

    *config* is the administrator's, *rules* where udev's rules of this host are.
    """

    state: Path
    runtime: Path
    config: Path = Path("/etc/dmcopy")
    rules: Path = Path("/etc/udev/rules.d")
    kept_code: Path | None = None  # None: below *runtime*

    @classmethod
    def from_environment(cls) -> Places:
        """Use DMCOPY_STATE_DIR, _RUN_DIR, _CONFIG_DIR, _RULES_DIR, _CODE_DIR, else the usual."""
        code = os.environ.get("DMCOPY_CODE_DIR")
        return cls(
            Path(os.environ.get("DMCOPY_STATE_DIR", "/var/lib/dmcopy")),
            Path(os.environ.get("DMCOPY_RUN_DIR", USUAL_RUNTIME)),
            Path(os.environ.get("DMCOPY_CONFIG_DIR", cls.config)),
            Path(os.environ.get("DMCOPY_RULES_DIR", cls.rules)),
            Path(code) if code else None,
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
    def wraps(self) -> Path:
        """Which devices are wrapped."""
        return self.config / "wraps.toml"

    @property
    def code(self) -> Path:
        """Copies of this program that running jobs start their helpers from (`kernel.own_code`)."""
        return self.kept_code or self.runtime / "code"

    @property
    def locks(self) -> Path:
        """One lock file a running job."""
        return self.runtime / "locks"

    @property
    def turns(self) -> Path:
        """One lock file for each job that may run at a time (jobs.turn)."""
        return self.runtime / "turns"

    @property
    def desks(self) -> Path:
        """One socket a running job (jobs.control)."""
        return self.runtime / "jobs"

    @property
    def agent(self) -> Path:
        """Where the agent is asked (``dmcopy agent``)."""
        return self.runtime / "agent.sock"

    @property
    def asked(self) -> Path:
        """What ``dmcopy-job@.service`` is to do, a file an instance (agent.request)."""
        return self.runtime / "asked"

    @property
    def policies(self) -> Path:
        """Which copies are made by themselves, a file each."""
        return self.config / "policies.d"

    @property
    def timers(self) -> Path:
        """When each policy with a calendar was due last."""
        return self.state / "timers"

    def log_of(self, job: str) -> Path:
        """What a job in the background says on stderr."""
        return self.runtime / "log" / job

    @property
    def mounts(self) -> Path:
        """Where a copy is mounted, in a private mount namespace, to replay its journal."""
        return self.runtime / "mount"

    @property
    def cap(self) -> Path:
        """The rate that all jobs together may not exceed (engine.throttle.HostCap)."""
        return self.runtime / "cap"

    @property
    def splits(self) -> Path:
        """Records of md arrays that a member was split off (stack.md_split_back)."""
        return self.state / "md-split"

    @property
    def paused(self) -> Path:
        """Records of md arrays whose resync a job has paused (stack.md_pause)."""
        return self.runtime / "md"

    @property
    def hooks(self) -> Path:
        """Programs that are run around every begin time (`stack.hook_file`)."""
        return self.config / "hooks.d"

    @property
    def keepers(self) -> Path:
        """A record for each process that owes a thaw, or hooks their other side."""
        return self.runtime / "keepers"

    @property
    def cookies(self) -> Path:
        """Records of udev cookies under way (kernel.cookie)."""
        return self.runtime / "cookies"
