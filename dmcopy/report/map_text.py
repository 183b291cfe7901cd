"""The map of an image as characters, for a terminal of any width."""

from __future__ import annotations

from typing import Final

from dmcopy.core.image_map import ImageMap, Kind, Waiting
from dmcopy.units import format_size, to_bytes

_SIGNS: Final = {
    Kind.HELD: "H",
    Kind.COPYING: ">",
    Kind.RETIRED: "R",
    Kind.COPIED: "#",
    Kind.PARTLY: "+",
    Kind.SAVED: "s",
    Kind.SOURCE: ".",
}
_MEANING: Final = {
    Kind.HELD: "writes to it are held",
    Kind.COPYING: "being copied",
    Kind.RETIRED: "copied and retired: writes pass, and are not saved",
    Kind.COPIED: "copied",
    Kind.PARTLY: "partly copied",
    Kind.SAVED: "not copied; some of it is saved in the snapshot",
    Kind.SOURCE: "not copied; on the source alone",
}
_WIDTH: Final = 64
_ROWS: Final = 16


def map_lines(image: ImageMap, *, width: int = 80) -> list[str]:
    """Draw the map in lines of at most *width* characters, and say what is held."""
    across = max(min(_WIDTH, width - 14), 8)
    size, kinds = image.cells(across * _ROWS)
    lines = [f"{format_size(to_bytes(image.length))}, a character is {format_size(to_bytes(size))}"]
    for start in range(0, len(kinds), across):
        row = "".join(_SIGNS[kind] for kind in kinds[start : start + across])
        lines.append(f"{format_size(start * to_bytes(size)):>11}  {row}")
    lines += [f"{_SIGNS[kind]}  {_MEANING[kind]}" for kind in Kind if kind in kinds]
    for name, extents in (
        ("copied", image.copied),
        ("retired", image.retired),
        ("saved in the snapshot", image.saved),
    ):
        lines.append(f"{name}: {format_size(sum(extent.size for extent in extents))}")
    lines += [_waiting(one) for one in image.waiting]
    if not any(one.writes for one in image.waiting):
        lines.append("no write waits")
    return lines


def _waiting(one: Waiting) -> str:
    why = {
        "gate": "until the segment is copied",
        "brake": "because the COW device is nearly full",
        "saving": "until the old content is saved",
    }[one.why]
    text = f"{one.writes} write{'s' if one.writes != 1 else ''} wait{'s' * (one.writes == 1)} {why}"
    if one.extents:
        first = one.extents[0]
        more = f" and {len(one.extents) - 1} more places" if len(one.extents) > 1 else ""
        text += f", at {format_size(first.offset)}+{format_size(first.size)}{more}"
    if one.seconds is not None:
        text += f", for {one.seconds:.3f} s at most so far"
    if one.most_seconds is not None:
        text += f"; each goes on after {one.most_seconds:g} s"
    if one.mean_seconds is not None:
        text += f"; writes of late took {one.mean_seconds * 1000:.2f} ms"
    return text
