"""Lines onto a terminal, and only the cells that are not what they were: so nothing flickers.

rich draws a whole screen each time; here its output is compared cell by cell with what is there,
and what is the same is not written again.  Nothing is written when nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

_JOIN: Final = 4  # cells that are the same are written again where a move would cost more


class Cell(NamedTuple):
    """One place of the screen; the second one of a wide character is empty."""

    text: str
    style: Style | None


_BLANK: Final = Cell(" ", None)
_Run = tuple[int, list[Cell]]  # from which column on


def cells(console: Console, line: Text, width: int) -> list[Cell]:
    """Give a line as *width* cells."""
    made: list[Cell] = []
    base = console.get_style(line.style)  # a text without spans is rendered without it
    for segment in line.render(console):
        style = (base + segment.style) or None
        for char in segment.text:
            size = cell_len(char)
            if size == 0:
                if made:  # it belongs to the character before it
                    made[-1] = made[-1]._replace(text=made[-1].text + char)
                continue
            made.append(Cell(char, style))
            made += [Cell("", style)] * (size - 1)
    made = made[:width]
    while made and cell_len(made[-1].text) > 1:  # cut in half by the edge
        made[-1] = _BLANK
    return made + [_BLANK] * (width - len(made))


def changes(old: Sequence[Cell], new: Sequence[Cell]) -> list[_Run]:
    """Give the runs of *new* to write where *old* is on the screen; both are of one length."""
    runs: list[_Run] = []
    end = -_JOIN - 1  # of the last run
    for column, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            continue
        if runs and column - end <= _JOIN:
            runs[-1][1].extend(new[end : column + 1])
        else:
            start = column
            while start and not new[start].text:  # the right half of a wide one
                start -= 1
            runs.append((start, list(new[start : column + 1])))
        end = column + 1
    return runs


class Painter:
    """The screen of a terminal; `write` takes what is to be written, at once."""

    def __init__(self, console: Console, write: Callable[[str], object]) -> None:
        self._console = console
        self._write = write
        self._size = (0, 0)
        self._there: list[list[Cell]] = []

    def forget(self) -> None:
        """Believe nothing of what is on the screen: all is written the next time."""
        self._size = (0, 0)

    def paint(self, lines: Sequence[Text], width: int, height: int) -> None:
        """Show *lines* on a screen of this size, and nothing else."""
        out = ""
        if self._size != (width, height):
            self._size = (width, height)
            self._there = [[_BLANK] * width for _ in range(height)]
            out += "\x1b[0m\x1b[2J"
        shown = [cells(self._console, line, width) for line in lines[:height]]
        shown += [[_BLANK] * width for _ in range(height - len(shown))]
        for row, (old, new) in enumerate(zip(self._there, shown, strict=True)):
            for column, run in changes(old, new):
                out += f"\x1b[{row + 1};{column + 1}H{self._styled(run)}"
        self._there = shown
        if out:
            self._write(out)

    def _styled(self, run: Sequence[Cell]) -> str:
        text = Text(end="")
        for style, same in groupby(run, lambda cell: cell.style):
            text.append("".join(cell.text for cell in same), style)
        with self._console.capture() as capture:
            self._console.print(text, end="", soft_wrap=True, highlight=False)
        return capture.get()
