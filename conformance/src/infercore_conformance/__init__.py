"""InferCore's conformance suite: says whether a backend keeps the contract.

A check is a pytest test with a declaration; the capabilities that a backend declares decide which
checks run. Importing this package loads neither torch nor NumPy.

    from infercore_conformance import Feature, Level, check
"""

from infercore_conformance.checks import Check, Level, check, thorough
from infercore_conformance.needs import AtLeast, Both, Feature, Listed, Need

__version__ = "1.0.0"
__all__ = [
    "AtLeast",
    "Both",
    "Check",
    "Feature",
    "Level",
    "Listed",
    "Need",
    "__version__",
    "check",
    "thorough",
]
