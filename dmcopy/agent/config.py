"""What the administrator sets for the agent: ``/etc/dmcopy/agent.toml``; all of it may be left out.

::

    group = "dmcopy"                        # who may ask beside root, and so is as good as root
    metrics-listen = "127.0.0.1:9273"       # on loopback only
    metrics-textfile = "/var/lib/prometheus/node-exporter/dmcopy.prom"
"""

from __future__ import annotations

import grp
import ipaddress
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dmcopy.errors import UsageError

_KNOWN: Final = ("group", "metrics-listen", "metrics-textfile")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The agent's settings."""

    group: str | None = None
    listen: tuple[str, int] | None = None  # where metrics are served, by HTTP
    textfile: Path | None = None

    @property
    def wants_metrics(self) -> bool:
        """Tell whether metrics are served or written."""
        return self.listen is not None or self.textfile is not None

    @property
    def gid(self) -> int | None:
        """Give the group that may ask; raises `UsageError` when there is no such group."""
        if self.group is None:
            return None
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError as exc:
            raise UsageError(
                f"there is no group {self.group}; make it: groupadd --system {self.group}"
            ) from exc


def read(path: Path) -> Config:
    """Read the file, which need not be there; raises `UsageError` that names what is wrong."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path}: {exc}") from exc
    for word, value in data.items():
        if word not in _KNOWN:
            raise UsageError(f"{path}: '{word}' is not known; these are: {', '.join(_KNOWN)}")
        if not isinstance(value, str) or not value:
            raise UsageError(f"{path}: {word} is a string, not {value!r}")
    textfile = data.get("metrics-textfile")
    if textfile is not None and not Path(textfile).is_absolute():
        raise UsageError(f"{path}: metrics-textfile: {textfile} is not an absolute path")
    return Config(
        group=data.get("group"),
        listen=_address(path, data),
        textfile=None if textfile is None else Path(textfile),
    )


def _address(path: Path, data: dict[str, Any]) -> tuple[str, int] | None:  # Any: TOML
    text = data.get("metrics-listen")
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(
            f"{path}: metrics-listen: '{text}' is no ADDRESS:PORT on loopback, as 127.0.0.1:9273"
        )
    return host, int(port)
