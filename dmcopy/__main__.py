"""``python -m dmcopy``."""

from dmcopy.cli.main import run

run()
