"""What a policy says, and every way in which it can be wrong."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dmcopy.agent import policy
from dmcopy.agent.policy import Place, Policy, load, plain, read
from dmcopy.cli.main import parser
from dmcopy.errors import UsageError
from dmcopy.jobs.spec import Places

GOOD = """\
source = "/dev/mapper/data"
destination = { wwn = "0x5000C500A1B2C3D4" }
when = { on = ["plug"], calendar = "daily" }
verify = true
keep = false
on_full = "hold"
rate = "100m"
hold-limit = 1.5
hook = ["mariadb", "/usr/local/bin/x y"]
on_failure = "/usr/local/sbin/tell --who 'the night shift'"
"""
GROUP = """\
when = { calendar = "Mon *-*-* 02:00" }
[[pair]]
source = "/dev/vg0/data"
destination = { image = "/backup/{job}-data.img" }
[[pair]]
source = { md_uuid = "A:b" }
destination = { partlabel = "dmcopy-wal" }
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "etc/policies.d").mkdir(parents=True)
    return Places(tmp_path / "state", tmp_path / "run", tmp_path / "etc")


def write(places: Places, text: str, name: str = "offsite") -> None:
    (places.policies / f"{name}.toml").write_text(text)


def one(places: Places, text: str) -> Policy:
    write(places, text)
    (found,) = load(places)
    return found


def test_policy_may_be_run_by_hand_or_a_timer_only(places: Places) -> None:
    found = one(places, GOOD.replace('{ on = ["plug"], calendar = "daily" }', "{ on = [] }"))
    assert (found.on_plug, found.calendar) == (False, None)


def test_policy_is_words_of_the_command_line(places: Places) -> None:
    found = one(places, GOOD)
    job = found.job(datetime(2026, 1, 31, 23, 59, 58, tzinfo=UTC))
    assert job == "offsite-20260131-235958"
    words = found.words(job, lambda place: f"/dev/{place.kind}")
    assert words == [
        "copy", "--name", job, "--hold-limit=1.5", "--hook=mariadb", "--hook=/usr/local/bin/x y",
        "--on-full=hold", "--rate=100m", "--verify", "/dev/mapper/data", "block:/dev/wwn",
    ]  # fmt: skip
    parsed = parser(["copy"]).parse_args(words)
    assert parsed.hook == ["mariadb", "/usr/local/bin/x y"]
    assert (parsed.verify, parsed.keep, parsed.hold_limit) == (True, False, 1.5)
    assert found.on_failure == ("/usr/local/sbin/tell", "--who", "the night shift")
    assert (found.on_plug, found.calendar) == (True, "daily")
    assert found.pairs[0].destination == Place("wwn", "5000c500a1b2c3d4")
    assert found.as_json()["pairs"][0]["destination"] == "wwn 5000c500a1b2c3d4"


def test_group_has_a_pair_for_each_volume(places: Places) -> None:
    words = one(places, GROUP).words("j", lambda place: f"/dev/{place.kind}")
    assert words[3:] == [
        "--pair", "/dev/vg0/data", "image:/backup/j-data.img",
        "--pair", "/dev/md_uuid", "block:/dev/partlabel",
    ]  # fmt: skip


def test_every_option_of_copy_is_one_of_a_policy_or_left_out_on_purpose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parser(["copy"]).parse_args(["copy", "--help"])
    words = set(re.findall(r"--([a-z-]+)", capsys.readouterr().out.partition("\n\n")[0]))
    words -= {"help"}
    known = policy.FLAGS | policy.VALUES | policy.LISTS
    assert words == known | policy.NOT_FOR_POLICIES
    assert known.isdisjoint(policy.NOT_FOR_POLICIES)


def changed(old: str, new: str, text: str = GOOD) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("= 1", "Invalid statement"),
        (changed("verify", "verfy"), "'verfy' is not known; did you mean 'verify'?"),
        (changed("hook =", "hooks ="), "did you mean 'hook'?"),
        (changed("on_failure", "on_fail"), "did you mean 'on-failure'?"),
        (GOOD + 'zzzzz = "x"', "'zzzzz' is not known; known: batch, "),
        (GOOD + "detach = true", "'detach' is not for a policy"),
        (GOOD + 'name = "x"', "'name' is not for a policy"),
        (GOOD + 'on-full = "fail"', "twice, with '-' and with '_'"),
        (changed("/dev/mapper/data", "/dev/sdb"), "'/dev/sdb' is not a name that a device keeps"),
        (changed("/dev/mapper/data", "/dev/dm-3"), "not a name that a device keeps"),
        (changed("/dev/mapper/data", "/dev/block/8:0"), "not a name that a device keeps"),
        (changed("/dev/mapper/data", "data"), "not a name that a device keeps"),
        (changed('{ wwn = "0x5000C500A1B2C3D4" }', '"/dev/sdb"'), "'/dev/sdb' is a path"),
        (changed("wwn =", "wnn ="), "destination: 'wnn' is not known; did you mean 'wwn'?"),
        (changed("wwn =", 'serial = "1234", wwn ='), "destination: needs one of wwn, serial,"),
        (changed('"0x5000C500A1B2C3D4"', "5"), "wwn must be a string"),
        (changed('"0x5000C500A1B2C3D4"', '"a b\'"'), "cannot be a wwn"),
        (changed("wwn =", "labl ="), "did you mean 'label'?"),
        (changed('"0x5000C500A1B2C3D4"', '"x"').replace("wwn", "label"), "cannot be a label"),
        (changed('"/dev/mapper/data"', '{ label = "offsite" }'), "source: 'label' is not known"),
        (changed("destination", "#"), "destination is missing"),
        (changed("source", "#"), "source is missing"),
        (changed("when", "#"), "when is missing"),
        (changed('["plug"]', '["boot"]'), 'on must be ["plug"]'),
        (changed("calendar", "calender"), "when: 'calender' is not known; did you mean 'calendar'"),
        (changed('"daily"', "5"), "calendar must be a string"),
        (changed('on = ["plug"], calendar = "daily"', ""), "neither on nor calendar"),
        (changed("verify = true", "verify = 1"), "verify must be true or false"),
        (changed('"100m"', "true"), "rate must be a string or a number"),
        (changed('["mariadb", "/usr/local/bin/x y"]', "[1]"), "hook must be a string, or a list"),
        (changed("/usr/local/sbin/tell", "tell"), "'tell' must be the whole path"),
        (changed("'the", "the"), "on_failure: No closing quotation"),
        (GROUP + 'source = "/dev/vg0/x"\n' + GROUP, "cannot"),
        ('source = "/dev/vg0/x"\n' + GROUP, "'source' beside [[pair]]"),
        (changed("{job}-data", "data", GROUP), "its path needs {job}"),
        (changed("/backup", "backup", GROUP), "image must be the whole path"),
        (changed("/backup", "/dev", GROUP), "image must be the whole path"),
        (changed('{ md_uuid = "A:b" }', '"/dev/vg0/data"', GROUP), "is there twice"),
        (changed('calendar = "Mon *-*-* 02:00"', 'on = ["plug"]', GROUP).replace(
            'partlabel = "dmcopy-wal"', 'image = "/b/{job}"'), "can be plugged in, not an image"),
    ],
)  # fmt: skip
def test_fault_is_told_with_file_and_word(places: Places, text: str, wrong: str) -> None:
    write(places, text)
    found = read(places)
    assert found.policies == ()
    if wrong != "cannot":
        assert any(wrong in fault for fault in found.faults), found.faults
    assert all(fault.startswith(f"{places.policies}/offsite.toml: ") for fault in found.faults)


def test_all_faults_of_all_files_are_told_and_right_files_work(places: Places) -> None:
    write(places, changed("verify", "verfy", changed("/dev/mapper/data", "/dev/sdb")), "a")
    write(places, GOOD, "b")
    write(places, "when", "c")
    (places.policies / "no-policy.txt").write_text("nonsense")
    found = read(places)
    assert [one.name for one in found.policies] == ["b"]
    assert len(found.faults) == 3
    with pytest.raises(UsageError, match=r"a\.toml.*verfy.*c\.toml"):
        load(places)


def test_disk_of_two_policies_is_a_fault_unless_only_a_calendar_runs_one(places: Places) -> None:
    write(places, GOOD, "a")
    other = changed('"0x5000C500A1B2C3D4"', '"naa.5000c500a1b2c3d4"')
    write(places, other, "b")
    (fault,) = read(places).faults
    assert "is that of" in fault
    write(places, changed('on = ["plug"], ', "", other), "b")
    assert read(places).faults == ()


def test_file_that_others_can_write_is_refused(places: Places) -> None:
    write(places, GOOD)
    (places.policies / "offsite.toml").chmod(0o666)
    (fault,) = read(places).faults
    assert "chmod go-w" in fault


def test_no_directory_is_no_policy(tmp_path: Path) -> None:
    assert load(Places(tmp_path, tmp_path, tmp_path / "none")) == []


@pytest.mark.parametrize("name", ["a b", ".a", "x" * 81])
def test_name_that_cannot_name_a_job_is_refused(places: Places, name: str) -> None:
    write(places, GOOD, name)
    assert "the file's name is the policy's" in read(places).faults[0]


@pytest.mark.parametrize(
    ("job", "is_one"),
    [
        ("offsite-20260131-235958", True),
        ("offsite-20260131-235958.1", False),
        ("offsite-2-20260131-235958", False),
        ("offsite", False),
    ],
)
def test_job_of_a_policy_is_known_by_its_name(places: Places, job: str, is_one: bool) -> None:
    assert one(places, GOOD).is_job(job) is is_one


@pytest.mark.parametrize(
    ("kind", "written"),
    [("wwn", "naa.5000C5"), ("wwn", "0x5000c5"), ("wwn", "wwn-0x5000c5"), ("wwn", "eui.5000c5")],
)
def test_wwn_may_be_written_as_any_tool_shows_it(kind: str, written: str) -> None:
    assert plain(kind, written) == "5000c5"
