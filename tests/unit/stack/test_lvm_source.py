"""Which volumes are copied while they are in use, from what LVM really said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.errors import Refused
from dmcopy.kernel.command import Commander
from dmcopy.kernel.dm import DmInfo
from dmcopy.kernel.lvm import Lvm, Volume, dm_name
from dmcopy.stack.lvm_source import volume_of

DATA: Final = Path(__file__).parents[2] / "data/lvm-2.03.16-lvs-volumes.json"
DATA_UUID: Final = "LVM-ZaE51FVbiFoKU3tHRH2muBagSrJi8GOXldjwxoGESYgv8jK23iKcPD2Z3ABbKplX"
FIELDS: Final = (
    "vg_name,vg_uuid,vg_shared,vg_missing_pv_count,lv_name,lv_uuid,lv_layout,lv_role,lv_tags,"
    "origin,pool_lv,data_percent,metadata_percent"
)


class Known(Lvm):
    """LVM with the volumes that were recorded, and no program."""

    def __init__(self, run: Commander, volumes: list[Volume]) -> None:
        super().__init__(run)
        self.volumes = volumes

    @property
    def is_installed(self) -> bool:
        return True

    def beside(self, uuid: str) -> list[Volume]:
        return self.volumes


@pytest.fixture
def volumes(run: Commander, fp: FakeProcess) -> list[Volume]:
    """Ask by the uuid that device-mapper has."""
    options = ["--reportformat", "json", "--units", "b", "--nosuffix", "--options", FIELDS]
    select = "vg_uuid=ZaE51F-VbiF-oKU3-tHRH-2muB-agSr-Ji8GOX"
    fp.register(["lvs", *options, "--all", "--select", select], stdout=DATA.read_text())
    return Lvm(run).beside(DATA_UUID)


def called(volumes: list[Volume], name: str) -> Volume:
    return next(one for one in volumes if one.name == name)


def look(run: Commander, volumes: list[Volume], name: str, **changed: object) -> Volume:
    """Look at the volume *name*, of which something may be *changed*."""
    wanted = called(volumes, name)
    if changed:
        other = replace(wanted, **changed)  # type: ignore[arg-type]
        volumes = [other if one is wanted else one for one in volumes]
        wanted = other
    return volume_of("/dev/vgt/x", info(wanted.uuid), Known(run, volumes))


def info(uuid: str) -> DmInfo:
    return DmInfo("vgt-x", uuid, "254:0", 1, 0, 1, True, False, False, False)


def test_volumes_are_read_as_lvm_reports_them(volumes: list[Volume]) -> None:
    thin, slow = called(volumes, "thin"), called(volumes, "slow")
    assert thin.is_thin
    assert (thin.pool, thin.full_name) == ("pool", "vgt/thin")
    assert not called(volumes, "pool").is_thin
    assert (slow.origin, slow.pool) == ("slow_corig", "fast_cvol"), "without the brackets"
    assert called(volumes, "dmcopy_x").tags == {"dmcopy", "dmcopy-job-x"}
    assert called(volumes, "data").uuid == DATA_UUID


@pytest.mark.parametrize("name", ["r1", "thin"])
def test_proven_kinds_are_taken(run: Commander, volumes: list[Volume], name: str) -> None:
    assert look(run, volumes, name).name == name


@pytest.mark.parametrize(
    ("name", "changed", "why"),
    [
        ("data", {}, "is being copied already, by job x .*dmcopy rescue x"),
        ("dmcopy_x", {}, "is a snapshot, .* copy its origin, vgt/data"),
        ("slow", {}, r"of the kind cache, .*lvconvert --splitcache vgt/slow"),
        ("r1", {"layout": frozenset({"raid", "raid1", "integrity"})}, "not proven"),
        ("r1", {"layout": frozenset({"mirror"})}, "not proven"),
        ("r1", {"is_shared": True}, "several hosts share"),
        ("r1", {"missing": 2}, "lacks 2 of its devices.*vgreduce --removemissing vgt"),
    ],
)
def test_others_are_refused_with_the_way_out(
    run: Commander, volumes: list[Volume], name: str, changed: dict[str, object], why: str
) -> None:
    with pytest.raises(Refused, match=why):
        look(run, volumes, name, **changed)


@pytest.mark.parametrize("what", ["used", "metadata"])
def test_pool_that_is_nearly_full_is_not_filled_up(
    run: Commander, volumes: list[Volume], what: str
) -> None:
    pool = called(volumes, "pool")
    full = replace(pool, **{what: 95.5})  # type: ignore[arg-type]
    there = [full if one is pool else one for one in volumes]
    with pytest.raises(Refused, match=r"vgt/pool .* 95\.5 % .*lvextend vgt/pool"):
        look(run, there, "thin")


def test_hidden_part_and_invisible_volume_are_refused(
    run: Commander, volumes: list[Volume]
) -> None:
    uuid = called(volumes, "r1").uuid
    with pytest.raises(Refused, match="hidden part"):
        volume_of("/dev/x", info(f"{uuid}-real"), Known(run, volumes))
    with pytest.raises(Refused, match=r"LVM does not show it; .*lvmdevices"):
        volume_of("/dev/x", info(uuid), Known(run, []))


def test_names_of_device_mapper_double_the_hyphens() -> None:
    assert dm_name("my-vg", "my-lv", "real") == "my--vg-my--lv-real"
