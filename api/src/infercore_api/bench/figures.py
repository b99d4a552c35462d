"""Figures: what was measured, over rounds, and the statistics that reports show."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, measured once per round.

    table, row, column: where reports show it.
    unit: of every value in `rounds`; "" for ratios and counts.
    """

    table: str
    row: str
    column: str
    unit: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def as_json(self) -> dict[str, Any]:
        """For machines: the statistics, and every round."""
        return {
            "table": self.table,
            "row": self.row,
            "column": self.column,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.rounds),
            "max": max(self.rounds),
            "rounds": list(self.rounds),
        }


@dataclass(slots=True)
class Trace:
    """One streamed request: when it was sent, when tokens came, how it ended.

    sent, arrivals, ended: seconds of one monotonic clock.
    arrivals: one per event that brought text or tokens.
    tokens: generated, as the server counts them.
    error: why it failed, "" if it did not.
    """

    sent: float
    arrivals: list[float]
    ended: float = 0.0
    tokens: int = 0
    error: str = ""


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value that `percent` of 100 samples are not above, linear between two of them."""
    return float(np.percentile(samples, percent))


def output_rate(traces: Sequence[Trace]) -> float:
    """Generated tokens per second, from the first request sent to the last one's end."""
    good = [trace for trace in traces if not trace.error]
    if not good:
        return 0.0
    seconds = max(trace.ended for trace in good) - min(trace.sent for trace in good)
    return sum(trace.tokens for trace in good) / seconds


def latencies(trace: Trace) -> tuple[float, list[float], float]:
    """Seconds to the first token, between tokens, and in all."""
    gaps = [later - sooner for sooner, later in pairwise(trace.arrivals)]
    return trace.arrivals[0] - trace.sent, gaps, trace.ended - trace.sent


def latency_figures(table: str, row: str, rounds: Sequence[Sequence[Trace]]) -> list[Figure]:
    """Percentiles of each round's requests: to the first token, between tokens, in all."""
    kinds = ("first token", "between tokens", "whole request")
    samples: list[tuple[list[float], ...]] = []
    for traces in rounds:
        parts = [latencies(trace) for trace in traces if not trace.error and trace.arrivals]
        firsts, gaps, wholes = (
            [p[0] for p in parts],
            [g for p in parts for g in p[1]],
            [p[2] for p in parts],
        )
        if gaps:
            samples.append((firsts, gaps, wholes))
    if not samples:
        return []
    return [
        Figure(
            table,
            f"{row}, {kind}",
            f"p{percent}",
            "ms",
            tuple(1e3 * percentile(of_round[i], percent) for of_round in samples),
        )
        for i, kind in enumerate(kinds)
        for percent in PERCENTILES
    ]
