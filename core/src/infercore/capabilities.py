"""What an executor declares that it can do: frozen data that core asks instead of names.

A feature has one of five answers, as adapters of databases have long had, because "no" has more
than one meaning: a vendor that has not looked yet is not a vendor that refuses.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any


class Support(Enum):
    """How far a capability goes. Only `VERSIONED` and `FULL` let core use it."""

    UNKNOWN = "unknown"  # never looked at; conformance probes it once and reports
    UNSUPPORTED = "unsupported"  # the hardware or its software cannot
    NOT_IMPLEMENTED = "not implemented"  # it could; this backend does not yet
    VERSIONED = "versioned"  # works with the version that `Capability.detail` names
    FULL = "full"

    @property
    def usable(self) -> bool:
        return self in (Support.VERSIONED, Support.FULL)


@dataclass(frozen=True, slots=True)
class Capability:
    """An answer and, where it is not plain, its reason or the version it needs."""

    support: Support = Support.UNKNOWN
    detail: str = ""

    def __bool__(self) -> bool:
        return self.support.usable


FULL = Capability(Support.FULL)
UNKNOWN = Capability(Support.UNKNOWN)


class Dimension(Enum):
    """A dimension of a step's shape that a compiled device may need to know ahead."""

    TOKENS = "tokens"  # T, tokens in the step
    ROWS = "rows"  # R, sequences in the step
    BLOCKS = "blocks"  # B, width of the block table


@dataclass(frozen=True, slots=True)
class StaticDimension:
    """A dimension that must be planned: its legal values and what one more value costs.

    multiple_of: every value is a multiple of this.
    maximum: the largest legal value, None if only memory limits it.
    compile_seconds: what compiling one more shape takes, for the bucket planner's budget.
    """

    dimension: Dimension
    multiple_of: int = 1
    maximum: int | None = None
    compile_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """An executor's declaration, asked once after its construction and constant from then on.

    Limits:
      dtypes: compute dtypes, best first ("bfloat16", "float32", …).
      kv_dtypes: dtypes of the KV cache, best first; "auto" means the compute dtype.
      block_sizes: legal tokens per KV block, best first.
      static_dimensions: dimensions that must be planned; empty = any shape.
      weight_kinds: kinds multiplied natively ("dense", "int_grouped", …); core dequantizes others.
      batch_tokens: a step's token budget that suits the device, where the operator names none.
      max_in_flight: steps that may be unresolved at once, 1 or 2.
      tokens_per_step: most tokens that one row can yield in one step.
      collectives: process groups it can join ("threads": of one process); empty = one rank only.
      architectures: those it runs from its own code; None = those of core's model families.

    Features, each a `Capability`:
      late_inputs: a step may wait for `Handle.sample` with masks (design: grammars).
      batch_invariant: a row's logits do not depend on other rows, chunking or thread count.
      activation_int8: rounds bf16 activations to int8 for weight-only kinds.
      prompt_logprobs: computes log-probabilities of prompt tokens.
      block_copy: `copy_blocks` works between device and host.
      graph_capture: `warm_up` captures or compiles whole steps; one of a warm shape is replayed, on
        its own inputs and in the cache that was allocated last.
      watermark: marks the rows whose sampling says so (`infercore.watermark`).
    """

    dtypes: tuple[str, ...]
    block_sizes: tuple[int, ...]
    kv_dtypes: tuple[str, ...] = ("auto",)
    static_dimensions: tuple[StaticDimension, ...] = ()
    weight_kinds: tuple[str, ...] = ("dense",)
    batch_tokens: int = 2048
    max_in_flight: int = 1
    tokens_per_step: int = 1
    collectives: tuple[str, ...] = ()
    architectures: tuple[str, ...] | None = None
    late_inputs: Capability = UNKNOWN
    batch_invariant: Capability = UNKNOWN
    activation_int8: Capability = UNKNOWN
    prompt_logprobs: Capability = UNKNOWN
    block_copy: Capability = UNKNOWN
    graph_capture: Capability = UNKNOWN
    watermark: Capability = UNKNOWN
    extras: Mapping[str, Capability] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.dtypes or not self.block_sizes:
            raise ValueError("a backend declares at least one dtype and one block size")
        if self.max_in_flight not in (1, 2):
            raise ValueError(f"max_in_flight is 1 or 2, not {self.max_in_flight}")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is at least 1, not {self.batch_tokens}")
        if self.tokens_per_step < 1:
            raise ValueError(f"tokens_per_step is at least 1, not {self.tokens_per_step}")

    def facts(self) -> dict[str, Any]:
        """For JSON: {"limits": {name: value}, "features": {name: {"support", "detail"}}}.

        `extras` are among the features.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        answers = {k: v for k, v in values.items() if isinstance(v, Capability)} | dict(self.extras)
        limits = {k: v for k, v in values.items() if k not in answers and k != "extras"}
        limits["static_dimensions"] = [
            {**asdict(each), "dimension": each.dimension.value} for each in self.static_dimensions
        ]
        features = {
            name: {"support": answer.support.value, "detail": answer.detail}
            for name, answer in answers.items()
        }
        return {"limits": limits, "features": features}
