"""InferCore: serve large language models on any accelerator.

>>> from infercore import LLM, SamplingParams
>>> LLM("path/to/model").generate(["Hello"], SamplingParams(max_tokens=16))  # doctest: +SKIP

Importing this package loads neither torch nor NumPy; the names below come in when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infercore.llm import LLM, Completion
    from infercore.sampling import SamplingParams

__version__ = "1.0.0"
__all__ = ["LLM", "Completion", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "infercore.llm",
    "Completion": "infercore.llm",
    "SamplingParams": "infercore.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
