"""Only what changed is written, and what is on the screen is what was to be shown."""

from __future__ import annotations

import io
import random
import re

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dmcopy.report.painter import Painter

_MOVE = re.compile(r"\x1b\[(\d+);(\d+)H|\x1b\[2J|\x1b\[[\d;]*m|(.)", re.DOTALL)


class Screen:
    """A terminal that knows what the painter uses of one."""

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        self.written = 0
        self.rows = [["?"] * width for _ in range(height)]
        color = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
        self.painter = Painter(color, self.write)

    def write(self, text: str) -> None:
        self.written += len(text)
        row = column = 0
        for match in _MOVE.finditer(text):
            if match[1]:
                row, column = int(match[1]) - 1, int(match[2]) - 1
            elif match[0] == "\x1b[2J":
                self.rows = [[" "] * self.size[0] for _ in range(self.size[1])]
            elif match[3]:
                size = cell_len(match[3])
                self.rows[row][column : column + size] = [match[3], *[""] * (size - 1)]
                column += size

    def paint(self, *lines: str | Text) -> int:
        before = self.written
        texts = [Text(line) if isinstance(line, str) else line for line in lines]
        self.painter.paint(texts, *self.size)
        return self.written - before

    def text(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]


def test_nothing_is_written_when_nothing_changed() -> None:
    screen = Screen(20, 3)
    assert screen.paint("one", Text("two", "red"), "日本") > 0
    assert screen.paint("one", Text("two", "red"), "日本") == 0
    assert screen.paint("one", Text("two", "green"), "日本") > 0


def test_one_digit_costs_a_few_bytes() -> None:
    screen = Screen(80, 24)
    screen.paint(*["x" * 80] * 23, "42%")
    assert 0 < screen.paint(*["x" * 80] * 23, "43%") <= 10
    assert screen.text()[23] == "43%"


def test_shorter_line_and_fewer_lines_leave_nothing_behind() -> None:
    screen = Screen(10, 3)
    screen.paint("0123456789", "second", "third")
    screen.paint("01")
    assert screen.text() == ["01", "", ""]


def test_screen_is_what_was_to_be_shown_whatever_was_there() -> None:
    chance = random.Random(3)
    screen = Screen(12, 4)
    for _ in range(300):
        lines = [
            "".join(chance.choice("ab  日é") for _ in range(chance.randrange(9))).rstrip()
            for _ in range(chance.randrange(5))
        ]
        shown = [line for line in lines if cell_len(line) <= 12]
        screen.paint(*shown)
        assert screen.text() == shown + [""] * (4 - len(shown))


def test_what_is_too_wide_or_too_much_is_not_written() -> None:
    screen = Screen(5, 1)
    screen.paint("日本日", "no")
    assert screen.text() == ["日本"]


def test_forgotten_screen_is_written_whole() -> None:
    screen = Screen(10, 2)
    screen.paint("one")
    screen.rows[1][3] = "X"  # somebody else wrote there
    screen.painter.forget()
    screen.paint("one")
    assert screen.text() == ["one", ""]


def test_another_size_is_written_whole() -> None:
    screen = Screen(10, 2)
    screen.paint("one", "two")
    screen.size = (4, 3)
    screen.paint("one", "two", "three")
    assert screen.text() == ["one", "two", "thre"]
