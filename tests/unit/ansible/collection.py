"""The collection's modules, imported as Ansible does, and run in this process."""

from __future__ import annotations

import atexit
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final  # Any: JSON, and modules without types
from unittest import mock

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

ROOT: Final = Path(__file__).parents[3]
Ran = tuple[int, str, str]
Run = Callable[..., Ran]  # words, and what is added to the environment


@cache
def _importable() -> None:
    made = tempfile.TemporaryDirectory(prefix="dmcopy-collection-")
    atexit.register(made.cleanup)  # modules may be imported from there until then
    folder = Path(made.name)
    (folder / "ansible_collections/dmcopy").mkdir(parents=True)
    (folder / "ansible_collections/dmcopy/dmcopy").symlink_to(ROOT / "ansible")
    sys.path.append(str(folder))


def module(name: str) -> Any:
    """Import a file of ``ansible/plugins``: ``modules.dmcopy_copy``."""
    _importable()
    return importlib.import_module(f"ansible_collections.dmcopy.dmcopy.plugins.{name}")


@contextmanager
def _on_host(run: Run | None) -> Iterator[None]:
    def run_command(
        _: AnsibleModule, argv: Sequence[str], environ_update: dict[str, str] | None = None
    ) -> Ran:
        assert run is not None
        words = argv[1:] if argv[0] == "/bin/dmcopy" else argv
        return run(words) if environ_update is None else run(words, environ_update)

    def get_bin_path(
        self: AnsibleModule, name: str, required: bool = False, opt_dirs: object = None
    ) -> str | None:
        if name != "dmcopy" or run is not None:
            return f"/bin/{name}"
        if required:
            self.fail_json(msg="Failed to find required executable dmcopy")
        return None

    with (
        mock.patch.object(AnsibleModule, "run_command", run_command),
        mock.patch.object(AnsibleModule, "get_bin_path", get_bin_path),
    ):
        yield


def result_of(
    which: str,
    run: Run | None,
    capture: Callable[[], str],
    *,
    check: bool = False,
    **params: object,
) -> dict[str, Any]:
    """Run a module whose ``dmcopy`` is *run*, or that has none; *capture* gives what it printed.

    *run* has all other programs as well, by their whole path.
    """
    arguments = patch_module_args({**params, "_ansible_check_mode": check})
    with _on_host(run), arguments, suppress(SystemExit):
        module(f"modules.{which}").main()
    result: dict[str, Any] = json.loads(capture().splitlines()[-1])
    result.pop("invocation", None)
    return result
