"""The agent's settings: what is read, and what is said of what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dmcopy.agent.config import Config, read
from dmcopy.cli.main import main
from dmcopy.errors import UsageError


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_without_a_file_all_is_as_usual(tmp_path: Path) -> None:
    assert read(tmp_path / "agent.toml") == Config()


def test_all_settings(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'group = "root"\nmetrics-listen = "[::1]:9273"\nmetrics-textfile = "/a/dmcopy.prom"\n',
    )
    config = read(path)
    assert config == Config(group="root", listen=("::1", 9273), textfile=Path("/a/dmcopy.prom"))
    assert config.gid == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groups = 'x'", "'groups' is not known"),
        ("group = 7", "group is a string, not 7"),
        ("group = ", "Invalid value"),
        ("metrics-listen = '0.0.0.0:9273'", "on loopback"),
        ("metrics-listen = 'localhost'", "on loopback"),
        ("metrics-listen = '127.0.0.1:0'", "on loopback"),
        ("metrics-textfile = 'dmcopy.prom'", "not an absolute path"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(UsageError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_group_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="groupadd --system no-such-group"):
        _ = Config(group="no-such-group").gid


def test_check_says_that_metrics_are_wanted_and_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An agent with such settings would not start."""
    monkeypatch.setenv("DMCOPY_CONFIG_DIR", str(tmp_path))
    _file(tmp_path, 'metrics-textfile = "/a/dmcopy.prom"\n')
    assert main(["agent", "--check"]) == 0
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "dmcopy.report.metrics", raising=False)
    assert main(["agent", "--check"]) == 1
    assert "python3-prometheus-client" in capsys.readouterr().err
    _file(tmp_path, "")
    assert main(["agent", "--check"]) == 0
