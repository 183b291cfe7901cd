"""HTML and SVG as a tree, so that a text can never become markup.

Escaping is the serializer's work (``xml.etree``), in one place, and not of each who writes a
name.  What XML cannot hold at all, such as control characters in a path, is written as Python
would: ``\\x1b``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from xml.etree import ElementTree as ET

Node = ET.Element
Inside = Node | str

_NOT_XML: Final = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def tag(name: str, /, *inside: Inside, **attributes: str | float) -> Node:
    """Make an element around *inside*.

    In attributes ``_`` stands for ``-``, and one at the end is dropped: ``class_``.  (Keywords,
    against the rule of no ``**``: attributes are what this function is about.)
    """
    node = ET.Element(
        name, {word.rstrip("_").replace("_", "-"): _value(v) for word, v in attributes.items()}
    )
    extend(node, inside)
    return node


def extend(node: Node, inside: Iterable[Inside]) -> None:
    """Put more at the end of *node*."""
    for child in inside:
        if not isinstance(child, str):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + printable(child)
        else:
            node.text = (node.text or "") + printable(child)


def printable(text: str) -> str:
    """Give *text* without what XML cannot hold, or no encoder writes."""
    return _NOT_XML.sub(lambda match: ascii(match[0])[1:-1], text)


def document(mark: str, root: Node) -> str:
    """Give the text of a page; *mark* is a comment before all else, for who looks for it."""
    return (
        f"<!doctype html>\n<!-- {mark} -->\n"
        f"{ET.tostring(root, encoding='unicode', method='html')}\n"
    )


def _value(value: str | float) -> str:
    return printable(value) if isinstance(value, str) else f"{value:.6g}"
