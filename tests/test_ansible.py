"""The collection as it is built: what ansible-test and ansible-lint say of it, and its playbooks.

``ansible-test`` makes virtual environments of its own; they, and all else that Ansible keeps, are
below ``.lab/ansible``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).resolve().parent.parent
HOME: Final = CHECKOUT / ".lab/ansible"
# ansible-test fetches a pip from its own site for each of its virtual environments; the one that
# comes with Python does as well, and need not be installed by itself to be one
_PIP: Final = """\
import ensurepip
import pathlib
import sysconfig
import zipfile

wheels = list(pathlib.Path(ensurepip.__file__).parent.glob("_bundled/*.whl"))
for wheel in wheels:
    zipfile.ZipFile(wheel).extractall(sysconfig.get_path("purelib"))
if not wheels:  # Debian has them elsewhere
    ensurepip.bootstrap()
"""

pytestmark = pytest.mark.timeout(400)


def ran(*argv: str, cwd: Path, **more: str) -> str:
    """Run one of the environment's programs; give what it said, and fail where it does."""
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [str(programs / argv[0]), *argv[1:]],
        cwd=cwd,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(HOME),
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
            **more,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection and install it, as the README says; gives where it is then."""
    folder = tmp_path_factory.mktemp("collections")
    cache = HOME / ".ansible/test/cache"
    cache.mkdir(parents=True, exist_ok=True)
    settings = HOME / ".config"  # pip's, of who runs this
    if (Path.home() / ".config").is_dir() and not settings.exists():
        settings.symlink_to(Path.home() / ".config")
    for version in re.findall(r"pip='([0-9.]+)'", _requirements()):
        (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(_PIP)
    ran("ansible-galaxy", "collection", "build", str(CHECKOUT / "ansible"), cwd=folder)
    (built,) = folder.glob("dmcopy-dmcopy-*.tar.gz")
    ran(
        "ansible-galaxy", "collection", "install", "--offline", "-p", str(folder), str(built),
        cwd=folder,
    )  # fmt: skip
    return folder / "ansible_collections/dmcopy/dmcopy"


def _requirements() -> str:
    import ansible_test

    internal = Path(ansible_test.__path__[0]) / "_internal/python_requirements.py"
    return internal.read_text()


def test_sanity_has_nothing_to_say(collection: Path) -> None:
    """Every one of its tests that is for collections."""
    known = ran("ansible-test", "sanity", "--list-tests", cwd=collection)
    tests = set(re.findall(r"^[a-z0-9-]+$", known, re.MULTILINE))
    assert tests >= {"changelog", "import", "pep8", "pylint", "validate-modules", "yamllint"}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = ran("ansible-test", "sanity", "--python", python, cwd=collection)
    assert set(re.findall(r'Running sanity test "([a-z0-9-]+)"', said)) == tests


def test_changelog_can_be_read_by_what_makes_release_notes_of_it(collection: Path) -> None:
    """The sanity test looks at fragments only, of which there are none."""
    ran("antsibull-changelog", "lint-changelog-yaml", "changelogs/changelog.yaml", cwd=collection)


ROLE: Final = """\
- name: Install
  hosts: all
  gather_facts: false
  roles:
    - role: dmcopy.dmcopy.agent
      vars:
        agent_file: WHEEL
        agent_virtualenv: FOLDER/venv
        agent_virtualenv_command: PYTHON -m venv
        agent_link: FOLDER/dmcopy
        agent_packages: []
        agent_setup: false
        agent_service: false
        agent_check: false
        agent_policies:
          - name: nightly
            source: /dev/mapper/data
            destination: {image: "/backup/{job}.img"}
            calendar: "*-*-* 02:00"
            options: {verify: true, rate: 100m}
"""


def test_role_installs_once_what_can_be_run(collection: Path, tmp_path: Path) -> None:
    """With all that it needs from the package index, as on a host."""
    sources = tmp_path / "sources"  # for what is built leaves something there
    hidden = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(CHECKOUT, sources, ignore=hidden)
    wheel = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(sources)]
    ran("python", "-m", "pip", *wheel, cwd=tmp_path)
    (built,) = tmp_path.glob("dmcopy-*.whl")
    play = tmp_path / "play.yml"
    words = {"WHEEL": str(built), "FOLDER": str(tmp_path), "PYTHON": sys.executable}
    text = ROLE
    for word, value in words.items():
        text = text.replace(word, value)
    play.write_text(text)

    def recap(*options: str) -> dict[str, int]:
        said = ran(
            "ansible-playbook", "-i", "localhost,", "-c", "local", "-e",
            f"ansible_python_interpreter={sys.executable}", *options, str(play), cwd=tmp_path,
            ANSIBLE_COLLECTIONS_PATH=str(collection.parents[2]), DMCOPY_CONFIG_DIR=str(tmp_path),
        )  # fmt: skip
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", said)}

    assert recap()["changed"] == 5  # directory, wheel, pip, link, policy
    policy = tomllib.loads((tmp_path / "policies.d/nightly.toml").read_text())
    assert policy["when"] == {"calendar": "*-*-* 02:00"}
    play.write_text(text.replace("rate: 100m", "rate: fast"))
    with pytest.raises(AssertionError, match=r"policy nightly: .*'fast' is not a rate"):
        recap("--start-at-task", "Set the agent and the policies")
    said = subprocess.run([tmp_path / "dmcopy", "--version"], capture_output=True, check=True)
    assert said.stdout.startswith(b"dmcopy ")
    play.write_text(text.replace("agent_setup: false", "agent_setup: true"))
    assert recap("--check")["changed"] == 1, "all is there but what dmcopy setup would do"


def test_lint_of_the_production_profile_has_nothing_to_say(collection: Path) -> None:
    ran(
        "ansible-lint", "--offline", "--strict", "--profile", "production", "-c",
        str(CHECKOUT / "ansible/.ansible-lint"), cwd=collection,
        ANSIBLE_COLLECTIONS_PATH=str(collection.parents[2]),
    )  # fmt: skip
