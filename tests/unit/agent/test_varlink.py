"""The interface file and the methods are one thing, in the eyes of a stock implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import varlink.scanner

import dmcopy.agent
from dmcopy.agent.server import INTERFACE
from dmcopy.agent.service import Methods
from dmcopy.agent.varlink import parameters_of
from dmcopy.agent.watch import job_of
from tests.unit.agent.test_watch import Job

SHOWN = {
    "str": "", "bool": True, "list[str]": [""], "dict[str, str]": {"": ""},
}  # fmt: skip


def _interface() -> Any:  # Any: the library has no types
    text = (Path(dmcopy.agent.__file__).parent / f"{INTERFACE}.varlink").read_text()
    return varlink.scanner.Interface(text)


def _methods() -> dict[str, Any]:  # Any: a method's description
    members = _interface().members.items()
    return {name: one for name, one in members if isinstance(one, varlink.scanner._Method)}


def test_each_method_takes_what_the_interface_says() -> None:
    interface, described = _interface(), _methods()
    ours = {name for name in vars(Methods) if name[0].isupper()}
    assert ours == set(described)
    for name, method in described.items():
        hints = parameters_of(getattr(Methods.__new__(Methods), name))
        assert list(hints) == list(method.in_type.fields), name
        for field, hint in hints.items():
            may_be_none = str(hint).endswith(" | None")
            kind = method.in_type.fields[field]
            assert isinstance(kind, varlink.scanner._Maybe) == may_be_none, (name, field)
            plain = getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)
            value = SHOWN[plain.removesuffix(" | None")]
            assert interface.filter_params("", kind, False, value, None) == value, (name, field)


def test_job_has_the_fields_that_the_interface_says() -> None:
    fields = _interface().members["Job"].type.fields
    assert set(job_of(Job("a").as_json())) == set(fields)


def test_errors_that_are_raised_are_in_the_interface() -> None:
    members = _interface().members
    errors = {name for name, one in members.items() if isinstance(one, varlink.scanner._Error)}
    said = "".join(path.read_text() for path in Path(dmcopy.agent.__file__).parent.glob("*.py"))
    assert all(f'"{name}"' in said or f"}}.{name}" in said for name in errors)
