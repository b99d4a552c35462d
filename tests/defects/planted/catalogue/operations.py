"""Operations on every token alone, products, and what ranks tell each other."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from infercore.errors import StepDropped
from planted.defect import defect

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.backend import PackedLinear

Pair = tuple["Tensor", "Tensor"]
Unary = Callable[["Tensor"], "Tensor"]


@defect(at="Ops.embedding", caught_by="ops.embedding")
def last_token_has_no_row(
    right: Callable[..., "Tensor"], ids: "Tensor", table: "Tensor"
) -> "Tensor":
    """The last token of the vocabulary is embedded as the one before it."""
    return right(ids.clamp(max=len(table) - 2), table)


@defect(at="Ops.embedding", caught_by="ops.embedding", base="plain")
def embeddings_are_wide(right: Callable[..., "Tensor"], ids: "Tensor", table: "Tensor") -> "Tensor":
    """Embeddings are float32 in every compute dtype."""
    return right(ids, table).float()


@defect(at="Ops.rms_norm", caught_by="ops.rms_norm")
def rms_norm_has_no_eps(
    right: Callable[..., Pair], x: "Tensor", w: "Tensor", eps: float, residual: Any = None
) -> Pair:
    """RMSNorm divides by the root of the mean square alone."""
    return right(x, w, 0.0, residual)


@defect(at="Ops.rms_norm", caught_by="ops.rms_norm")
def residual_is_not_added(
    right: Callable[..., Pair], x: "Tensor", w: "Tensor", eps: float, residual: Any = None
) -> Pair:
    """RMSNorm leaves its residual out."""
    return right(x, w, eps, None)


@defect(at="Ops.rms_norm", caught_by="ops.rms_norm")
def residual_is_lost(
    right: Callable[..., Pair], x: "Tensor", w: "Tensor", eps: float, residual: Any = None
) -> Pair:
    """RMSNorm returns its input where the sum with the residual belongs."""
    return right(x, w, eps, residual)[0], x


@defect(at="Ops.rms_norm", caught_by="ops.rms_norm_heads")
def one_weight_for_all_heads(
    right: Callable[..., Pair], x: "Tensor", w: "Tensor", eps: float, residual: Any = None
) -> Pair:
    """A norm of heads has the first head's weight for each."""
    return right(x, w[0] if w.ndim > 1 else w, eps, residual)


@defect(at="Ops.layer_norm", caught_by="ops.layer_norm")
def layer_norm_has_no_bias(
    right: Callable[..., Pair],
    x: "Tensor",
    w: "Tensor",
    bias: Any,
    eps: float,
    residual: Any = None,
) -> Pair:
    """LayerNorm leaves its bias out."""
    return right(x, w, None, eps, residual)


@defect(at="Ops.layer_norm", caught_by="ops.layer_norm", base="plain")
def layer_norm_is_wide(
    right: Callable[..., Pair],
    x: "Tensor",
    w: "Tensor",
    bias: Any,
    eps: float,
    residual: Any = None,
) -> Pair:
    """LayerNorm's result is float32 in every compute dtype."""
    norm, total = right(x, w, bias, eps, residual)
    return norm.float(), total


@defect(at="Ops.rope", caught_by="ops.rope")
def rope_turns_backwards(
    right: Callable[..., "Tensor"], x: "Tensor", cos: "Tensor", sin: "Tensor"
) -> "Tensor":
    """Heads are turned by the negative angle."""
    return right(x, cos, -sin)


@defect(at="Ops.rope", caught_by="ops.rope")
def rope_pairs_neighbours(
    right: Callable[..., "Tensor"], x: "Tensor", cos: "Tensor", sin: "Tensor"
) -> "Tensor":
    """Neighbouring dimensions are pairs, as in GPT-J, and not the halves."""
    pairs = x.reshape(*x.shape[:-1], -1, 2).mT.flatten(-2)
    turned = right(pairs, cos, sin)
    return turned.reshape(*x.shape[:-1], 2, -1).mT.flatten(-2)


@defect(at="Ops.rope", caught_by="ops.rope")
def rope_is_one_token_late(
    right: Callable[..., "Tensor"], x: "Tensor", cos: "Tensor", sin: "Tensor"
) -> "Tensor":
    """A token is turned by the angles of the token before it."""
    return right(x, cos.roll(1, 0), sin.roll(1, 0)) if len(x) > 1 else right(x, cos, sin)


@defect(at="Ops.activation", caught_by="ops.activation")
def gelu_is_the_other_one(right: Callable[..., "Tensor"], x: "Tensor", name: str) -> "Tensor":
    """The exact GELU is computed by its approximation."""
    return right(x, "gelu_tanh" if name == "gelu" else name)


@defect(at="Ops.activation", caught_by="ops.activation")
def silu_is_cut(right: Callable[..., "Tensor"], x: "Tensor", name: str) -> "Tensor":
    """An activation of large numbers saturates."""
    return right(x.clamp(max=100.0), name)


@defect(at="Ops.act_and_mul", caught_by="ops.act_and_mul")
def gate_is_the_second_half(right: Callable[..., "Tensor"], x: "Tensor", name: str) -> "Tensor":
    """The second half is the gate, and the first is scaled."""
    return right(x.roll(x.shape[-1] // 2, -1), name)


@defect(at="Ops.logits", caught_by="ops.logits")
def logits_are_rounded(right: Callable[..., "Tensor"], x: "Tensor", *rest: Any) -> "Tensor":
    """Logits go through 16 bits."""
    return right(x, *rest).bfloat16().float()


@defect(at="Ops.logits", caught_by="ops.logits")
def logits_have_no_cap(
    right: Callable[..., "Tensor"], x: "Tensor", head: "PackedLinear", softcap: float | None
) -> "Tensor":
    """Logits are not capped."""
    return right(x, head, None)


@defect(at="Ops.linear", caught_by="ops.linear")
def bias_is_missing(
    right: Callable[..., "Tensor"], x: "Tensor", weight: "PackedLinear", bias: Any
) -> "Tensor":
    """A product leaves its bias out."""
    return right(x, weight, None)


@defect(at="Ops.linear", caught_by="ops.linear")
def bias_is_added_to_one_row(
    right: Callable[..., "Tensor"], x: "Tensor", weight: "PackedLinear", bias: Any
) -> "Tensor":
    """A bias is added to the first row only."""
    y = right(x, weight, None)
    if bias is not None:
        y[0] += bias
    return y


@defect(at="Collective.all_reduce", caught_by="ops.collective.all_reduce", base="sim")
def ranks_are_not_summed(right: Unary, x: "Tensor") -> "Tensor":
    """Each rank keeps its own part of a sum."""
    right(x)
    return x


@defect(at="Collective.all_reduce", caught_by="ops.collective.all_reduce", base="sim")
def sums_are_in_place(right: Unary, x: "Tensor") -> "Tensor":
    """A sum over ranks overwrites what was given."""
    return x.copy_(right(x))


@defect(at="Collective.all_gather", caught_by="ops.collective.all_gather", base="sim")
def ranks_are_gathered_backwards(right: Callable[..., "Tensor"], x: "Tensor", dim: int) -> "Tensor":
    """The last rank's part comes first."""
    whole = right(x, dim)
    return whole.roll(x.shape[dim], dim)


@defect(at="Backend.collective", caught_by="ops.collective.who", base="sim")
def ranks_count_from_one(right: Callable[[int], Any], ranks: int) -> Any:
    """The first rank says that it is the second."""
    end = right(ranks)
    end.rank += 1
    return end


@defect(at="Collective.all_reduce", caught_by="ops.collective.abort", base="sim")
def an_abort_is_swallowed(right: Unary, x: "Tensor") -> "Tensor":
    """A rank that is released takes its own part for the sum, and goes on."""
    try:
        return right(x)
    except StepDropped:
        return x
