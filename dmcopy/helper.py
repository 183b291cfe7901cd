"""Runs one of dmcopy's modules as a program, from the copy of the package that this file is in.

``python -P .../dmcopy/helper.py dmcopy.stack.watch ...`` is ``python -m dmcopy.stack.watch ...``,
but neither the directory that somebody happens to be in nor what is installed is asked where dmcopy
is (`dmcopy.kernel.own_code`).
"""

import importlib.util
import os
import runpy
import sys


def _main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location(
        "dmcopy", os.path.join(here, "__init__.py"), submodule_search_locations=[here]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["dmcopy"] = package
    spec.loader.exec_module(package)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
