"""Where a copy goes to: one module a kind, one contract for all (tests/contract)."""

from __future__ import annotations

from dmcopy.destinations.base import Destination
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.image import ImageDestination

KINDS: tuple[type[Destination], ...] = (BlockDestination, ImageDestination)
