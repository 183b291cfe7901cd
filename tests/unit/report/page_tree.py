"""A page read back, by another parser than what wrote it; refuses what is not nested right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final

_VOID: Final = {"meta", "br", "link", "img", "input"}


@dataclass
class Element:
    """An element with what is in it."""

    tag: str
    attributes: dict[str, str]
    inside: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Give all text in it."""
        return "".join(one if isinstance(one, str) else one.text for one in self.inside)

    def all(self, tag: str = "", class_: str = "") -> Iterator[Element]:
        """Give the elements in it, in order, with this tag and class."""
        for one in self.inside:
            if isinstance(one, Element):
                if tag in ("", one.tag) and (not class_ or class_ in one.classes):
                    yield one
                yield from one.all(tag, class_)

    def by_id(self, name: str) -> Element:
        """Give the only element with that id; raises ValueError where there is not just one."""
        (found,) = (one for one in self.all() if one.attributes.get("id") == name)
        return found

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def rows(self) -> list[list[str]]:
        """Give the texts of the body of the table in it, by row."""
        (body,) = self.all("tbody")
        return [
            [one.text for one in row.inside if isinstance(one, Element)] for row in body.all("tr")
        ]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open[-1].tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def read(text: str) -> Element:
    """Read a page; raises AssertionError where it is not nested right."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is not closed"
    assert len(reader.comments) == 1, "only our mark"
    return reader.open[0]
