"""The dm targets that we know by name: one module a kernel target, one line here."""

from __future__ import annotations

from dmcopy.core.target import Target
from dmcopy.core.targets.delay import Delay
from dmcopy.core.targets.error import Error
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin
from dmcopy.core.targets.striped import Striped
from dmcopy.core.targets.zero import Zero

TARGETS: tuple[type[Target], ...] = (
    Linear,
    Striped,
    SnapshotOrigin,
    Snapshot,
    Zero,
    Error,
    Delay,
)
