"""What a job's own process needs it has imported before it begins.

An import in mid-copy would bring a module of whatever version is installed by then
(`dmcopy.kernel.own_code`).
"""

from __future__ import annotations

import ast
from pathlib import Path

import dmcopy

_PACKAGE = Path(dmcopy.__file__).parent
# of the program's verbs, and not in a job
_NO_JOB = {"cli", "agent", "report"}
_VERBS = {"jobs/metrics.py"}


def late(path: Path) -> list[str]:
    """Give the imports of dmcopy's own modules in functions of *path*."""
    found = []
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                found += [name for name in names if name.split(".")[0] == "dmcopy"]
    return found


def test_nothing_of_dmcopy_is_imported_late_by_what_a_job_runs() -> None:
    paths = [
        path
        for path in _PACKAGE.rglob("*.py")
        if path.relative_to(_PACKAGE).parts[0] not in _NO_JOB
        and str(path.relative_to(_PACKAGE)) not in _VERBS
    ]
    assert len(paths) > 100
    assert {str(path.relative_to(_PACKAGE)): late(path) for path in paths if late(path)} == {}


def test_late_import_is_found(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text("def work():\n    from dmcopy.core import curve\n    import json\n")
    assert late(path) == ["dmcopy.core"]
