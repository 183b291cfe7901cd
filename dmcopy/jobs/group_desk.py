"""Who asks the leader of a group asks all of its members: one answer when all have answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from dmcopy.core.rate import Rate
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.jobs.control import Asked, Question

FORWARDED: Final = ("pause", "resume", "set")


class _Round:
    """One question to several members."""

    def __init__(self, asked: Asked, questions: list[Question]) -> None:
        self.asked = asked
        self.open = questions
        self._refusals: list[str] = []
        self._answers = 0
        if not questions:
            self.end()

    def take(self, question: Question) -> None:
        """Take an answer; when it is the last one, answer."""
        self.open.remove(question)
        try:
            question.answer()
            self._answers += 1
        except DmcopyError as exc:
            self._refusals.append(str(exc))
        if not self.open:
            self.end()

    def end(self) -> None:
        """Answer: it is done where one member did it, for the others had no need to."""
        if self._answers:
            self.asked.answer()
        else:
            self.asked.refuse("; ".join(self._refusals) or "no volume is being copied now")


class Forwarding:
    """The questions under way; *desks* is where the members are asked."""

    def __init__(self, desks: Path) -> None:
        self._desks = desks
        self._rounds: list[_Round] = []

    def filenos(self) -> list[int]:
        """Give the descriptors that are readable when a member has answered."""
        return [question.fileno() for one in self._rounds for question in one.open]

    def ask(self, asked: Asked, members: Iterable[str]) -> None:
        """Ask *members* what the leader was asked."""
        words = {name: value for name, value in asked.request.items() if name != "do"}
        if not _is_sound(words):
            asked.refuse(f"'{words['rate']}' is no rate")
            return
        questions = []
        for member in members:
            try:
                questions.append(Question(self._desks, member, asked.verb, **words))
            except DmcopyError:  # it ends right now
                continue
        self._rounds.append(_Round(asked, questions))
        self._forget()

    def take(self, fd: int) -> None:
        """Take the answer that is there."""
        for one in self._rounds:
            for question in [question for question in one.open if question.fileno() == fd]:
                one.take(question)
        self._forget()

    def close(self, why: str) -> None:
        """Tell who still waits *why* there will be no answer."""
        for one in self._rounds:
            for question in one.open:
                question.close()
            one.asked.refuse(why)
        self._rounds = []

    def _forget(self) -> None:
        self._rounds = [one for one in self._rounds if one.open]


def _is_sound(words: Mapping[str, object]) -> bool:
    """Tell whether all members would understand it: not some of them, and some not."""
    try:
        if "rate" in words:
            Rate.parse(str(words["rate"]))
    except UsageError:
        return False
    return True
