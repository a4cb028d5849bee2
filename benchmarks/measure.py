"""Paired timing: the sides take turns, query by query, so that a busy machine slows them alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Milliseconds, a row per round and a column per query."""


def interleaved(
    sides: Mapping[str, Callable[[int], object]], queries: int, rounds: int
) -> dict[str, Times]:
    """Time every side on every query, one after the other, in an order that rotates.

    :param sides: by name, a function that runs query number i.
    :param rounds: how often all queries are run; one more round before them warms up.
    """
    names = list(sides)
    times = {name: np.zeros((rounds, queries)) for name in names}
    gc.collect()
    gc.disable()
    try:
        for number in range(-1, rounds):
            for query in range(queries):
                turn = (query + number) % len(names)
                for name in names[turn:] + names[:turn]:
                    started = perf_counter()
                    sides[name](query)
                    if number >= 0:
                        times[name][number, query] = (perf_counter() - started) * 1e3
    finally:
        gc.enable()
    return times


def median(times: Times) -> float:
    """Return the median over all rounds and queries, in milliseconds."""
    return float(np.median(times))


def ratio(times: Times, base: Times) -> float:
    """Return how many times longer one side takes: medians per round, then their median."""
    return float(np.median(np.median(times, axis=1) / np.median(base, axis=1)))


def seconds(action: Callable[[], object]) -> float:
    """Time one action."""
    started = perf_counter()
    action()
    return perf_counter() - started
