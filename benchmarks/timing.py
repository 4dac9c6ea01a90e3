"""Times functions by turns, so that all meet the same changes of the machine's speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

Work = Callable[[], object]


def median_ms(
    works: Sequence[Work], rounds: int, *, warm_up_rounds: int = 0, calls: int = 1
) -> list[float]:
    """Time each function in every round, and give the median of each in milliseconds.

    Args:
        works: What is timed.
        rounds: How often each is timed.
        warm_up_rounds: Rounds before these that do not count.
        calls: How often a function is called in a round; the time is that of one call.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(warm_up_rounds + rounds):
        for work, found in zip(works, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                work()
            found.append(1000 * (time.perf_counter() - start) / calls)
    return [statistics.median(found[warm_up_rounds:]) for found in times]
