"""The defects, by kind. Importing them imports no torch."""

from planted.catalogue import (
    attention,
    cache,
    capture,
    declared,
    engine,
    in_flight,
    late,
    lifecycle,
    operations,
    paged,
    ranks,
    sampling,
    served,
    shares,
    steps,
    weights,
)
from planted.defect import DEFECTS

__all__ = [
    "DEFECTS",
    "attention",
    "cache",
    "capture",
    "declared",
    "engine",
    "in_flight",
    "late",
    "lifecycle",
    "operations",
    "paged",
    "ranks",
    "sampling",
    "served",
    "shares",
    "steps",
    "weights",
]
