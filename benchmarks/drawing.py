"""What the plots are drawn with: SVG written by hand, no library needed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 980
INK: Final = "#24292f"
GREY: Final = "#57606a"
FAINT: Final = "#d0d7de"


class Drawing:
    """A picture that is *height* high; `end` gives it."""

    def __init__(self, height: int) -> None:
        """Begin with white paper."""
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" '
            'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        ]

    def text(
        self, x: float, y: float, said: str, *, size: int = 12, anchor: str = "start",
        fill: str = INK, bold: bool = False,
    ) -> None:  # fmt: skip
        """Write a line of text; *y* is its base line."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{fill}"{weight}>{escape(said)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, ink: str, dash: str = "") -> None:
        """Draw a line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{ink}"{dashes}/>'
        )

    def bar(self, x: float, y: float, width: float, *, fill: str) -> None:
        """Draw a lying bar."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="14" rx="2" '
            f'fill="{fill}"/>'
        )

    def column(self, x: float, top: float, width: float, bottom: float, *, fill: str) -> None:
        """Draw a standing bar."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{max(bottom - top, 0.5):.1f}" rx="1.5" fill="{fill}"/>'
        )

    def area(self, x: float, y: float, width: float, height: float, *, fill: str) -> None:
        """Lay a colour under what is drawn next."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{fill}"/>'
        )

    def curve(
        self, points: Sequence[tuple[float, float]], *, ink: str, width: float = 2.0, dash: str = ""
    ) -> None:
        """Join points by straight lines."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        said = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{said}" fill="none" stroke="{ink}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{dashes}/>'
        )

    def end(self) -> str:
        """Give the file."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"
