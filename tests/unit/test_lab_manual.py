"""The man page and the completions say all that the command line knows, and are well formed."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dmcopy.cli.main import COMMANDS, parser
from lab.manual import SHELLS, completion, main, man, walk

WALKED = list(walk(parser()))
WORDS = sorted({words for words, _ in WALKED})


def options_of(words: str) -> set[str]:
    """Give the options of a command, but those for help: argparse-manpage leaves them out.

    And those that are not for people.
    """
    shown = [(at, action) for at, action in WALKED if action.help != argparse.SUPPRESS]
    found = {o for at, action in shown if at == words for o in action.option_strings}
    return found - {"-h", "--help"}


def test_each_command_is_walked() -> None:
    assert {f"dmcopy {name}" for name in COMMANDS} <= set(WORDS)
    assert "--verify" in options_of("dmcopy copy")


def test_man_page_has_each_command_and_option_with_its_help() -> None:
    text = man().replace("\\-", "-")
    sections = re.split(r"^\.SH ", text, flags=re.MULTILINE)
    for words in WORDS[1:]:
        mine = "".join(part for part in sections if f"'{words}'" in part.partition("\n")[0])
        assert mine, words
        assert {o for o in options_of(words) if f"\\fB{o}\\fR" not in mine} == set(), words
    plain = re.sub(r"\s+", " ", text)
    for words, action in WALKED:
        if "--help" in action.option_strings or action.help in (None, argparse.SUPPRESS):
            continue
        if action.help and "%" not in action.help:
            assert re.sub(r"\s+", " ", action.help) in plain, words
    assert ".SH EXIT STATUS" in text


@pytest.mark.forks
def test_man_page_is_formatted_without_a_warning(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", "-z", str(tmp_path / "dmcopy.8")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == {"dmcopy.8", *SHELLS.values()}


def bash(script: str, tmp_path: Path) -> list[str]:
    """Run a script in a bash that has read the completion; give its lines."""
    file = tmp_path / "dmcopy"
    file.write_text(completion("bash"))
    complete = (
        'c() { COMP_WORDS=(dmcopy "$@"); COMP_CWORD=$#; _shtab_dmcopy; echo "${COMPREPLY[*]}"; }'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", f"set -e; . {file}\n{complete}\n{script}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.forks
def test_bash_completes_each_command_and_option(tmp_path: Path) -> None:
    lines = bash("\n".join(f"c {words.partition(' ')[2]} -" for words in WORDS), tmp_path)
    for words, line in zip(WORDS, lines, strict=True):
        assert set(line.split()) - {"-h", "--help"} == options_of(words), words
    assert set(bash("c ''", tmp_path)[0].split()) == set(COMMANDS)


@pytest.mark.forks
def test_bash_completes_choices_files_and_jobs(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    fake = 'dmcopy() { printf \'%s\\n\' \'{"event": "status", "job": "db-1", "state": "x"}\'; }'
    here = shlex.quote(str(tmp_path))
    said = bash(
        f"{fake}\nc copy --ver\nc copy --order h\nc copy {here}/im\n"
        f"c copy --pair {here}/im\nc copy --pair x {here}/im\nc resume d\nc resume x",
        tmp_path,
    )
    image = f"{tmp_path}/image"
    assert said == ["--verify", "hot", image, image, image, "db-1", ""]


def test_zsh_completion_has_each_command_and_option() -> None:
    text = completion("zsh")
    for words in WORDS:
        name = "_shtab_" + words.replace(" ", "_").replace("-", "_")
        _, begin, rest = text.partition(f"\n{name}_options=(")
        assert begin, words
        mine = rest.partition("\n)")[0]
        assert {
            o for o in options_of(words) if f"{o}[" not in mine and f"{o}}}" not in mine
        } == set()


@pytest.mark.forks
def test_zsh_reads_its_completion(tmp_path: Path) -> None:
    (tmp_path / "_dmcopy").write_text(completion("zsh"))
    done = subprocess.run(
        ["zsh", "-n", str(tmp_path / "_dmcopy")], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "SOURCE:_files:DESTINATION:_files" in completion("zsh")
