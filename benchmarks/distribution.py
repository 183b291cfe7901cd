"""Where an application writes: which chunks, and how often each.

What is hot lies together, at one place that is not the start of the device: as an index or a
journal does, and so that a copy that begins at the start gains nothing by it.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import expm1
from typing import Final

HOT: Final = 0.37  # where the hot place begins, as a share of the device
_EXPONENT: Final = 1.2
_SHARE: Final = 0.1  # of the device, for 90/10
_WRITES: Final = 0.9  # of the writes, that go there


@dataclass(frozen=True)
class Distribution:
    """How likely a write to each chunk is: *weights* gives that for a number of chunks."""

    name: str
    about: str
    weights: Callable[[int], list[float]]

    def picker(self, chunks: int, where: random.Random) -> Callable[[], int]:
        """Give a function that draws a chunk."""
        upto = list(accumulate(self.weights(chunks)))
        total, last = upto[-1], chunks - 1
        return lambda: min(bisect_right(upto, where.random() * total), last)


def _uniform(chunks: int) -> list[float]:
    return [1.0] * chunks


def _rotated(weights: list[float]) -> list[float]:
    by = len(weights) - round(HOT * len(weights))
    return weights[by:] + weights[:by]


def _zipf(chunks: int) -> list[float]:
    return _rotated([(rank + 1) ** -_EXPONENT for rank in range(chunks)])


def _hot_tenth(chunks: int) -> list[float]:
    hot = max(1, round(_SHARE * chunks))
    cold = chunks - hot
    return _rotated([_WRITES / hot] * hot + [(1 - _WRITES) / max(cold, 1)] * cold)


UNIFORM: Final = "uniform"
ZIPF: Final = "zipf"
HOT_TENTH: Final = "90/10"

DISTRIBUTIONS: Final = {
    one.name: one
    for one in (
        Distribution(UNIFORM, "anywhere", _uniform),
        Distribution(
            ZIPF, f"zipf({_EXPONENT:g}), the rank of a chunk is its distance to one place", _zipf
        ),
        Distribution(
            HOT_TENTH, "90 % of the writes to 10 % of the device, in one piece", _hot_tenth
        ),
    )
}


def least_chunks(
    distribution: Distribution, chunks: int, writes: float, *, hot_first: bool, segment: int = 64
) -> float:
    """Give how many chunks are saved at least when what is copied is retired at once.

    *writes* are made while all is copied at an even pace, a *segment* of chunks at a time: in the
    order of the image, or what is hottest first, known from the beginning.  Nobody can have less
    at this pace without holding writers.
    """
    weights = distribution.weights(chunks)
    rate = writes / sum(weights)
    segments = [weights[at : at + segment] for at in range(0, chunks, segment)]
    if hot_first:
        segments.sort(key=lambda one: sum(one) / len(one), reverse=True)
    found, done = 0.0, 0
    for one in segments:
        done += len(one)
        found += sum(-expm1(-weight * rate * done / chunks) for weight in one)
    return found


def all_chunks(distribution: Distribution, chunks: int, writes: float) -> float:
    """Give how many chunks are saved when nothing is retired."""
    weights = distribution.weights(chunks)
    rate = writes / sum(weights)
    return sum(-expm1(-weight * rate) for weight in weights)
