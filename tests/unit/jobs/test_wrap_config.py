"""The file of wraps is the administrator's too, and the rules follow from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.jobs.wrap_config import Wrap, WrapConfig, check_wrap_name
from dmcopy.kernel.lasting import Lasting
from dmcopy.units import MIB, Bytes

DATA = Wrap(
    name="data", under=Lasting("partuuid", "02ec4730-2bcc"), size=Bytes(48 * MIB),
    device="/dev/sdb1",
)  # fmt: skip
LUN = Wrap(
    name="lun", under=Lasting("wwn", "naa.5000c500"), size=Bytes(MIB), device="/dev/sdc"
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> WrapConfig:
    return WrapConfig(tmp_path / "etc/wraps.toml", tmp_path / "rules.d")


def test_what_is_added_is_read_and_what_is_removed_is_gone(config: WrapConfig) -> None:
    assert config.read() == []
    config.add(DATA)
    config.add(LUN)
    assert config.read() == [DATA, LUN]
    assert config.find("lun") == LUN
    config.remove("data")
    assert config.read() == [LUN]
    config.remove("data")
    config.remove("lun")
    assert config.read() == []
    assert not config.rules.exists(), "the rules go with the last wrap"


def test_what_the_administrator_wrote_stays(config: WrapConfig) -> None:
    config.add(DATA)
    text = config.path.read_text()
    config.path.write_text(f"# the new array\n{text.replace('[[wrap]]', '[[wrap]]  # for tests')}")
    config.add(LUN)
    config.add(DATA)
    assert "# the new array" in config.path.read_text()
    assert "[[wrap]]  # for tests" in config.path.read_text()
    config.remove("lun")
    assert "# the new array" in config.path.read_text()
    assert config.read() == [DATA]


def test_wrap_of_the_same_name_is_changed(config: WrapConfig) -> None:
    config.add(DATA)
    config.add(Wrap(name="data", under=LUN.under, size=LUN.size, device="/dev/sdd"))
    (found,) = config.read()
    assert (found.under, found.size) == (LUN.under, LUN.size)


def test_rules_hide_what_is_under_and_have_systemd_bring_the_wrap_up(config: WrapConfig) -> None:
    config.add(DATA)
    config.add(LUN)
    text = config.rules.read_text()
    assert 'ENV{ID_PART_ENTRY_UUID}=="02ec4730-2bcc", ENV{DMCOPY_WRAP}="data"\n' in text
    assert text.count('ENV{DMCOPY_WRAP}="lun"\n') == 2
    assert 'ENV{SYSTEMD_WANTS}+="dmcopy-wrap@$env{DMCOPY_WRAP}.service"\n' in text
    assert 'SYMLINK:="disk/by-dmcopy/$env{DMCOPY_WRAP}"\n' in text
    assert "{{" not in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wrap = 1", "only tables"),
        ("[[wraps]]\nname = 'x'", "only tables"),
        ("[[wrap]]\nsize_bytes = 512", "has no name"),
        ("[[wrap]]\nname = '../x'\nserial='abcd'\nsize_bytes = 512", "cannot name a wrap"),
        ("[[wrap]]\nname = 'x'\nsize_bytes = 512", "needs one of"),
        ("[[wrap]]\nname = 'x'\nserial = 'abcd'\nwwn = 'naa.5'\nsize_bytes = 512", "needs one of"),
        ("[[wrap]]\nname = 'x'\nserial = 'ab\"cd'\nsize_bytes = 512", "cannot be a serial"),
        ("[[wrap]]\nname = 'x'\nserial = 'abcd'\nsize_bytes = 513", "whole sectors"),
        ("[[wrap]]\nname = 'x'\nserial = 'abcd'\nsize = 512", "'size' is not known"),
        ("[[wrap]\nname =", "wraps.toml"),
    ],
)
def test_file_that_makes_no_sense_is_refused_with_its_name(
    config: WrapConfig, text: str, why: str
) -> None:
    config.path.parent.mkdir()
    config.path.write_text(text)
    with pytest.raises(UsageError, match=why) as error:
        config.read()
    assert str(config.path) in str(error.value) or why == "cannot name a wrap"


def test_one_device_cannot_be_wrapped_twice(config: WrapConfig) -> None:
    config.add(DATA)
    text = config.path.read_text()
    config.path.write_text(text + text.replace("data", "again"))
    with pytest.raises(UsageError, match="is there twice"):
        config.read()


def test_undo_puts_file_and_rules_back(config: WrapConfig) -> None:
    before = config.text()
    config.add(DATA)
    rules = config.rules.read_text()
    with_data = config.text()
    config.add(LUN)
    config.restore(with_data)
    assert (config.read(), config.rules.read_text()) == ([DATA], rules)
    config.restore(before)
    assert not config.path.exists()
    assert not config.rules.exists()


def test_file_that_cannot_be_written_leaves_the_old_one(
    config: WrapConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.add(DATA)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DmcopyError, match="No space left"):
        config.add(LUN)
    assert config.read() == [DATA]
    assert [path.name for path in config.path.parent.iterdir()] == ["wraps.toml"]


@pytest.mark.parametrize("name", ["", "control", "a/b", "-x", "dmcopy-x", "x" * 101, "a b"])
def test_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a wrap"):
        check_wrap_name(name)
