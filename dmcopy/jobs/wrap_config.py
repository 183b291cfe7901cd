"""Which devices are wrapped: ``/etc/dmcopy/wraps.toml``, and the udev rules that follow from it.

The file is the administrator's as well: what he wrote into it, comments too, stays as it is
(tomlkit).  The rules are ours, and written anew with every change.  Both are replaced as a whole
and durably, so that a crash leaves the old or the new.

Why rules that are written, and none that is shipped and asks: a rule that had to ask dmcopy would
run a program for every event of every block device, also before /usr is complete.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.kernel.lasting import KINDS, Lasting
from dmcopy.kernel.whole_file import write_whole
from dmcopy.units import Bytes

UNIT: Final = "dmcopy-wrap@{}.service"
# behind the rules that find out what a device is called (60-, 63-md-raid-arrays), before those
# that do something about what is on it (64-btrfs, 64-md-raid-assembly, 69-lvm)
RULES: Final = "63-zz-dmcopy-wraps.rules"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KEYS: Final = frozenset({"name", "device", "size_bytes", *KINDS})

_HEAD: Final = """\
# Written by `dmcopy wrap` from {config}; goes with the last `dmcopy unwrap`.
#
# What is under a wrap is nobody else's: no link leads to it but ours, so that UUID= and LABEL= mean
# the wrap; nobody assembles or activates what is on it; and systemd brings the wrap up.
ACTION=="remove", GOTO="dmcopy_wraps_end"
SUBSYSTEM!="block", GOTO="dmcopy_wraps_end"
"""
_TAIL: Final = """\
ENV{DMCOPY_WRAP}!="?*", GOTO="dmcopy_wraps_end"
ENV{ID_FS_TYPE}="", ENV{ID_FS_USAGE}="", ENV{ID_FS_VERSION}=""
ENV{ID_FS_UUID}="", ENV{ID_FS_UUID_ENC}="", ENV{ID_FS_LABEL}="", ENV{ID_FS_LABEL_ENC}=""
ENV{UDISKS_IGNORE}="1"
ENV{DM_NAME}!="?*", SYMLINK:="disk/by-dmcopy/$env{DMCOPY_WRAP}"
ENV{DM_NAME}=="?*", SYMLINK:="disk/by-dmcopy/$env{DMCOPY_WRAP} mapper/$env{DM_NAME}"
ENV{SYSTEMD_WANTS}+="dmcopy-wrap@$env{DMCOPY_WRAP}.service"
LABEL="dmcopy_wraps_end"
"""


def check_wrap_name(name: str) -> str:
    """Give *name* back; raises `UsageError` when it cannot name a wrap."""
    if _NAME.fullmatch(name) is None or name == "control" or name.startswith("dmcopy-"):
        raise UsageError(
            f"'{name}' cannot name a wrap: use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit, and not with dmcopy-"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Wrap:
    """A device that is wrapped: the dm device's name, and what is under it."""

    name: str
    under: Lasting
    size: Bytes  # of the wrap
    device: str  # what it was called when it was wrapped: for people

    def rules(self) -> list[str]:
        """Give the udev rules that know the device under it."""
        return [f'{match}, ENV{{DMCOPY_WRAP}}="{self.name}"' for match in self.under.matches()]


class WrapConfig:
    """The file with the wraps, and the rules beside it; `read` as often as you like."""

    def __init__(self, path: Path, rules: Path) -> None:
        """*rules* is the directory that udev's rules go to."""
        self.path = path
        self.rules = rules / RULES

    def read(self) -> list[Wrap]:
        """Give all wraps; raises `UsageError` for a file that says nothing sensible."""
        try:
            wraps = [self._wrap(one) for one in self._entries()]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise UsageError(f"{self.path}: {exc}") from exc
        for at, wrap in enumerate(wraps):
            for other in wraps[:at]:
                if wrap.name == other.name or wrap.under == other.under:
                    what = wrap.name if wrap.name == other.name else str(wrap.under)
                    raise UsageError(f"{self.path}: {what} is there twice")
        return wraps

    def _entries(self) -> Sequence[Any]:  # Any: TOML
        try:
            text = self.path.read_bytes().decode()
        except FileNotFoundError:
            return []
        said = tomllib.loads(text)
        odd = said.keys() - {"wrap"}
        entries = said.get("wrap", [])
        if odd or not isinstance(entries, list):
            raise UsageError(f"{self.path}: only tables [[wrap]] are known, not {sorted(odd)}")
        return entries

    def _wrap(self, said: Mapping[str, Any]) -> Wrap:  # Any: TOML
        name, size, device = said.get("name"), said.get("size_bytes"), said.get("device", "")
        where = f"{self.path}: wrap {name}"
        kinds = [kind for kind in KINDS if kind in said]
        if not isinstance(name, str):
            raise UsageError(f"{self.path}: a wrap has no name")
        check_wrap_name(name)
        if odd := sorted(said.keys() - _KEYS):
            raise UsageError(f"{where}: '{odd[0]}' is not known")
        if len(kinds) != 1 or not isinstance(said[kinds[0]], str):
            raise UsageError(f"{where}: needs one of {', '.join(KINDS)}, as a string")
        if not isinstance(size, int) or size <= 0 or size % 512:
            raise UsageError(f"{where}: size_bytes must be a number of whole sectors")
        under = Lasting(kinds[0], said[kinds[0]])
        if not under.is_plain:
            raise UsageError(f"{where}: '{under.value}' cannot be a {under.kind}")
        return Wrap(name=name, under=under, size=Bytes(size), device=str(device))

    def find(self, name: str) -> Wrap | None:
        """Give the wrap called *name*, None when there is none."""
        return next((wrap for wrap in self.read() if wrap.name == name), None)

    def text(self) -> bytes | None:
        """Give the file as it is, None where there is none: for an undo."""
        return self.path.read_bytes() if self.path.exists() else None

    def restore(self, text: bytes | None) -> None:
        """Put back what `text` gave, and the rules that follow from it."""
        if text is None:
            self.path.unlink(missing_ok=True)
        else:
            replace_file(self.path, text)
        self.write_rules()

    def add(self, wrap: Wrap) -> None:
        """Add a wrap, or change the one of that name; then the rules."""
        import tomlkit  # takes long, and a boot needs none

        document = tomlkit.parse((self.text() or b"").decode())
        if "wrap" not in document:
            document.add("wrap", tomlkit.aot())
        entry = next((one for one in document["wrap"] if one.get("name") == wrap.name), None)
        if entry is None:
            entry = tomlkit.table()
            document["wrap"].append(entry)
        for kind in KINDS:
            if kind != wrap.under.kind and kind in entry:
                del entry[kind]
        words = {"name": wrap.name, "device": wrap.device, wrap.under.kind: wrap.under.value}
        for key, value in {**words, "size_bytes": int(wrap.size)}.items():
            if entry.get(key) != value:
                entry[key] = value
        replace_file(self.path, tomlkit.dumps(document).encode())
        self.write_rules()

    def remove(self, name: str) -> None:
        """Take a wrap out, if it is there; then the rules."""
        import tomlkit

        document = tomlkit.parse((self.text() or b"").decode())
        entries = document.get("wrap", [])
        for at, entry in enumerate(entries):
            if entry.get("name") == name:
                del entries[at]
                break
        if "wrap" in document and not entries:
            del document["wrap"]
        replace_file(self.path, tomlkit.dumps(document).encode())
        self.write_rules()

    def write_rules(self) -> None:
        """Write the rules of all wraps; none where there is no wrap.  Raises `DmcopyError`."""
        wraps = self.read()
        if not wraps:
            self.rules.unlink(missing_ok=True)
            return
        lines = [line for wrap in wraps for line in wrap.rules()]
        text = _HEAD.format(config=self.path) + "".join(f"{line}\n" for line in lines) + _TAIL
        replace_file(self.rules, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file as a whole and durably; raises `DmcopyError`, and then nothing was changed."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as exc:
        raise DmcopyError(f"cannot write {path}: {exc.strerror}") from exc
