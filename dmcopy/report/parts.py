"""What a report is put together from: sections, tables, legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dmcopy.report.markup import Inside, Node, tag


def table(headings: Sequence[str], rows: Iterable[Sequence[Inside]]) -> Node:
    """Give a table; the first cell of each row is its heading."""
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return tag("table", tag("thead", head), tag("tbody", *body))


def legend(entries: Iterable[tuple[Node, str]]) -> Node:
    """Give the list of what is drawn how."""
    return tag(
        "ul", *(tag("li", node, tag("span", text)) for node, text in entries), class_="legend"
    )


def section(name: str, heading: str, text: str, *inside: Node) -> Node:
    """Give one part of the page."""
    return tag(
        "section",
        tag("h2", heading),
        tag("p", text, class_="soft"),
        *inside,
        id=name,
        class_="card",
    )
