"""Whether this kernel has device-mapper: what is asked is the driver, not the node."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dmcopy.jobs import host
from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander

NO_DRIVER = os.makedev(10, 251)  # a misc device of a number that nobody registers by itself


@pytest.mark.parametrize("is_there", [False, True])
def test_node_without_a_driver_is_no_device_mapper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    control = tmp_path / "control"
    if is_there:
        os.mknod(control, stat.S_IFCHR | 0o600, NO_DRIVER)
    monkeypatch.setattr(host, "CONTROL", str(control))
    monkeypatch.setattr(Commander, "find", lambda _self, _program: None)
    assert host.open_dm(Places(state=tmp_path, runtime=tmp_path)) is None
