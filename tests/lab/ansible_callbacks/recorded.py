"""An Ansible callback: writes each result as a line of JSON to RECORDED_FILE, for the test."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorded
type: notification
short_description: writes results to a file
description: [writes results to a file]
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible has no types
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "recorded"
    CALLBACK_NEEDS_ENABLED = True

    play = ""

    def v2_playbook_on_play_start(self, play: Any) -> None:  # Any: of ansible
        self.play = play.get_name()

    def _write(self, how: str, result: Any) -> None:
        line = {"how": how, "host": result._host.name, "task": result._task.name}
        line["play"] = self.play
        with open(os.environ["RECORDED_FILE"], "a") as file:
            file.write(json.dumps({**line, "result": result._result}) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._write("unreachable", result)
