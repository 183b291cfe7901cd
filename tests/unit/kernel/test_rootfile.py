"""What is read of a stranger's file system, and every way in which it is none of ours to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.errors import DmcopyError
from dmcopy.kernel import rootfile
from dmcopy.kernel.command import Commander, Completed
from dmcopy.units import Bytes

# debugfs 1.47.0
STAT = """\
Inode: 12   Type: {kind}    Mode:  0644   Flags: 0x80000
Generation: 1149210222    Version: 0x00000000:00000001
User:     0   Group:     0   Project:     0   Size: {size}
File ACL: 0
EXTENTS:
(0):7169
"""
BANNER = "debugfs 1.47.0 (5-Feb-2023)\n"


def read(run: Commander, kind: str, tmp_path: Path) -> str:
    point = tmp_path / "run/label"
    return rootfile.read(run, "/dev/x1", kind, "dmcopy.toml", most=Bytes(4096), point=point)


def ext(fp: FakeProcess, request: str, stdout: str = "", stderr: str = "") -> None:
    fp.register(
        ["sh", "-c", fp.any(), "sh", "/dev/x1", request, fp.any()],
        stdout=stdout,
        stderr=BANNER + stderr,
    )


def fat(fp: FakeProcess, stdout: str = "", status: int = 0, stderr: str = "") -> None:
    fp.register(["unshare", fp.any()], stdout=stdout, returncode=status, stderr=stderr)


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_ext_is_read_by_debugfs_and_not_mounted(
    run: Commander, fp: FakeProcess, tmp_path: Path, kind: str
) -> None:
    ext(fp, "stat /dmcopy.toml", STAT.format(kind="regular", size=4))
    ext(fp, "cat /dmcopy.toml", "text")
    assert read(run, kind, tmp_path) == "text"
    assert "mount" not in str(fp.calls)


def test_fat_is_mounted_read_only_in_a_namespace_of_its_own(
    run: Commander, fp: FakeProcess, tmp_path: Path
) -> None:
    fat(fp, "regular file, 4\ntext\n")
    assert read(run, "vfat", tmp_path) == "text\n"
    (argv,) = fp.calls
    assert not isinstance(argv, str)
    call = [str(word) for word in argv]
    assert call[:5] == ["unshare", "--mount", "--propagation", "slave", "--"]
    assert "--types vfat --options ro,nosuid,nodev,noexec" in call[7]


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({"kind": "symlink", "size": 4}, "dmcopy.toml on /dev/x1 is no regular file"),
        ({"kind": "directory", "size": 4}, "is no regular file"),
        ({"kind": "FIFO", "size": 0}, "is no regular file"),
        ({"kind": "regular", "size": 4097}, "is larger than 4096 bytes"),
    ],
)
def test_ext_without_a_small_regular_file_is_told_and_nothing_is_read(
    run: Commander, fp: FakeProcess, tmp_path: Path, found: dict[str, object], wrong: str
) -> None:
    ext(fp, "stat /dmcopy.toml", STAT.format(**found))
    with pytest.raises(DmcopyError, match=wrong):
        read(run, "ext4", tmp_path)


@pytest.mark.parametrize(
    ("stderr", "wrong"),
    [
        ("/dmcopy.toml: File not found by ext2_lookup \n", "/dev/x1 has no file dmcopy.toml"),
        ("/dev/x1: Bad magic number\nstat: Filesystem not open\n", "into /dev/x1: .*Bad magic"),
        ("", "debugfs says nothing"),
    ],
)
def test_ext_that_debugfs_cannot_read_is_told(
    run: Commander, fp: FakeProcess, tmp_path: Path, stderr: str, wrong: str
) -> None:
    ext(fp, "stat /dmcopy.toml", stderr=stderr)
    with pytest.raises(DmcopyError, match=wrong):
        read(run, "ext4", tmp_path)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (("", 61, "mount: {point}: busy.\n  dmesg"), "cannot mount /dev/x1: busy"),
        (("", 62, "stat: cannot"), "/dev/x1 has no file dmcopy.toml"),
        (("directory, 2048\n", 1, "dd: x"), "is no regular file"),
        (("regular file, 5000\nx", 0, ""), "larger than 4096"),
        (("regular file, 5\n", 1, "dd: x"), "cannot read dmcopy.toml on /dev/x1: dd: x"),
        (("", 127, "unshare: no"), "cannot look into /dev/x1: unshare returned 127: unshare: no"),
    ],
)  # fmt: skip
def test_fat_without_a_small_regular_file_is_told(
    run: Commander, fp: FakeProcess, tmp_path: Path, said: tuple[str, int, str], wrong: str
) -> None:
    stdout, status, stderr = said
    fat(fp, stdout, status, stderr.format(point=tmp_path / "run/label"))
    with pytest.raises(DmcopyError, match=wrong) as caught:
        read(run, "vfat", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["vfat", "ext4"])
def test_device_that_hangs_is_given_up(tmp_path: Path, kind: str) -> None:
    def hang(argv: object, _stdin: str | None, timeout: float) -> Completed:
        assert timeout <= 20
        return Completed(("x",), -9, "", "", timeout, timed_out=True)

    with pytest.raises(DmcopyError, match="/dev/x1 does not answer within 20 s"):
        read(Commander(hang), kind, tmp_path)
