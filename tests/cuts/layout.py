"""How large the disks are; both sides know."""

from __future__ import annotations

from typing import Final

SIZE: Final = 16 << 20  # bytes of source and destination
STATE_SIZE: Final = 96 << 20  # of the disk with journal and COW file
