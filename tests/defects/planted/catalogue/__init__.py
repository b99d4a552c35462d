"""The defects, by kind. Importing them imports no torch."""

from planted.catalogue import (
    attention,
    cache,
    declared,
    in_flight,
    late,
    lifecycle,
    operations,
    sampling,
    steps,
    weights,
)
from planted.defect import DEFECTS

__all__ = [
    "DEFECTS",
    "attention",
    "cache",
    "declared",
    "in_flight",
    "late",
    "lifecycle",
    "operations",
    "sampling",
    "steps",
    "weights",
]
