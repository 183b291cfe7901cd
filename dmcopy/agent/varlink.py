"""Varlink's side of an answer: a call in, the messages that answer it out (varlink.org).

No socket and no thread is in here.  The Python package of that name is not in Debian 12, where
dmcopy has to run with what the distribution has; so it is what our tests call us with, and this is
all of the protocol that a service needs: JSON objects, one error for each thing that may be wrong,
and the interface's own text for whoever asks.  A method's parameters are those of its Python
signature, which a test compares with the interface file.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

Json = dict[str, Any]  # Any: JSON

_SERVICE: Final = "org.varlink.service"
_SERVICE_TEXT: Final = """\
# The Varlink Service Interface is provided by every varlink service.
interface org.varlink.service

method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
"""


class VarlinkError(Exception):
    """An error of an interface: its whole name, and its parameters."""

    def __init__(self, name: str, **parameters: object) -> None:
        super().__init__(name, parameters)
        self.name = name
        self.parameters = parameters


def invalid(parameter: str) -> VarlinkError:
    """Say that a parameter is missing, unknown, or of another type."""
    return VarlinkError(f"{_SERVICE}.InvalidParameter", parameter=parameter)


class More(typing.NamedTuple):
    """One of several answers; *is_last* ends the call."""

    parameters: Json
    is_last: bool


class Service:
    """Answers the calls of one interface by the methods of an object.

    A method gives a dict; or, if it takes ``more``, `More` after `More`, and is given *caller* as
    ``_caller``.
    """

    def __init__(self, name: str, text: str, methods: object, *, version: str) -> None:
        """*text* is the interface's definition, *name* its name."""
        self._name = name
        self._texts = {_SERVICE: _SERVICE_TEXT, name: text}
        self._version = version
        self._methods = {
            method: function
            for method, function in inspect.getmembers(methods, inspect.ismethod)
            if method[0].isupper()
        }

    def handle(self, message: bytes, caller: object) -> Iterator[bytes]:
        """Give the messages, without their zero bytes, that answer *message*.

        Raises what a method raises that is no `VarlinkError`.
        """
        try:
            call = _call(message)
            silent = call.get("oneway") is True
            for answer in self._answers(call, caller):
                if not silent:
                    yield json.dumps(answer).encode()
        except VarlinkError as exc:
            yield json.dumps({"error": exc.name, "parameters": exc.parameters}).encode()

    def _answers(self, call: Json, caller: object) -> Iterator[Json]:
        interface, _, name = str(call["method"]).rpartition(".")
        parameters: Json = call.get("parameters") or {}
        if interface == _SERVICE:
            yield {"parameters": self._of_service(name, parameters)}
            return
        if interface != self._name:
            raise VarlinkError(f"{_SERVICE}.InterfaceNotFound", interface=interface)
        method = self._methods.get(name)
        if method is None:
            raise VarlinkError(f"{_SERVICE}.MethodNotFound", method=name)
        given = _fitting(method, parameters)
        if not inspect.isgeneratorfunction(method):
            yield {"parameters": method(**given)}
            return
        if call.get("more") is not True:
            raise invalid("more")
        for one in method(**given, _caller=caller):
            yield {"parameters": one.parameters, "continues": not one.is_last}

    def _of_service(self, name: str, parameters: Json) -> Json:
        if name == "GetInfo":
            return {
                "vendor": "dmcopy",
                "product": "dmcopy",
                "version": self._version,
                "url": "",
                "interfaces": list(self._texts),
            }
        if name != "GetInterfaceDescription":
            raise VarlinkError(f"{_SERVICE}.MethodNotFound", method=name)
        wanted = parameters.get("interface")
        if not isinstance(wanted, str):
            raise invalid("interface")
        if wanted not in self._texts:
            raise VarlinkError(f"{_SERVICE}.InterfaceNotFound", interface=wanted)
        return {"description": self._texts[wanted]}


def _call(message: bytes) -> Json:
    try:
        call = json.loads(message)
    except (ValueError, RecursionError) as exc:
        raise invalid("(not JSON)") from exc
    if not isinstance(call, dict) or not isinstance(call.get("method"), str):
        raise invalid("method")
    if not isinstance(call.get("parameters") or {}, dict):
        raise invalid("parameters")
    return call


def _fitting(method: Callable[..., object], parameters: Mapping[str, object]) -> Json:
    """Give what *method* is called with; raises `VarlinkError` for what does not fit."""
    hints = parameters_of(method)
    for name in parameters:
        if name not in hints:
            raise invalid(name)
    given = {name: parameters.get(name) for name in hints}
    for name, hint in hints.items():
        if not _is_a(given[name], hint):
            raise invalid(name)
    return given


def parameters_of(method: Callable[..., object]) -> dict[str, Any]:  # Any: a type
    """Give the types of a method's parameters, by name."""
    hints = typing.get_type_hints(method)
    names = inspect.signature(method).parameters
    return {name: hints[name] for name in names if not name.startswith("_")}


def _is_a(value: object, hint: Any) -> bool:  # Any: a type
    """Tell whether *value* is of the type that a signature says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(_is_a(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_is_a(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(one, inner[1]) for one in value.values())
    return type(value) is hint  # a bool is no int here
