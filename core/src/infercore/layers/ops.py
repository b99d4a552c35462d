"""The operations that layers call, each with a default in plain torch that is right anywhere.

A backend gets fast by overriding. Unless said otherwise activations are in the compute dtype,
parameters of norms and tables of angles in float32; T tokens, H heads, D dimensions of a head.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from infercore.backend import PackedLinear


class Ops:
    """Default operations. Stateless; one instance serves a whole model.

    activations: the names that `activation` knows; a model with another one is refused at load.
    """

    activations: ClassVar[tuple[str, ...]] = ("silu", "gelu", "gelu_tanh", "relu")

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        """ids [T], table [V, E] → [T, E]."""
        return F.embedding(ids, table)

    def linear(self, x: Tensor, weight: "PackedLinear", bias: Tensor | None) -> Tensor:
        """x [T, K], bias [N] → [T, N]."""
        y = weight(x)
        return y if bias is None else y.add_(bias)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zhang and Sennrich 2019, in float32. Returns (norm(x + residual), x + residual).

        x [..., D]; weight [D], or [H, D] where x is [T, H, D].
        """
        if residual is not None:
            x = x + residual
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        return (wide * scale).mul_(weight).to(x.dtype), x

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ba et al. 2016, in float32. Returns (norm(x + residual), x + residual)."""
        if residual is not None:
            x = x + residual
        return F.layer_norm(x.float(), weight.shape, weight, bias, eps).to(x.dtype), x

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate each head by its position (Su et al. 2021), halves as pairs (GPT-NeoX).

        x [T, H, D]; cos, sin [T, 1, D], sin with its first half negated.
        """
        half = x.shape[-1] // 2
        swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
        return torch.addcmul(x * cos, swapped, sin).to(x.dtype)

    def activation(self, x: Tensor, name: str) -> Tensor:
        """One of `activations` ("gelu" is the one with erf) of x [T, N]."""
        if name == "silu":
            return F.silu(x)
        if name == "relu":
            return F.relu(x)
        return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")

    def act_and_mul(self, x: Tensor, name: str) -> Tensor:
        """activation(first half) · second half; x [T, 2N] → [T, N]."""
        gate, up = x.chunk(2, dim=-1)
        return self.activation(gate, name).mul_(up)

    def logits(self, x: Tensor, head: "PackedLinear", softcap: float | None) -> Tensor:
        """x [S, E] → float32 [S, V]; `head` takes and gives float32."""
        y = head(x.float())
        return y if softcap is None else y.div_(softcap).tanh_().mul_(softcap)

    def kv_write(self, cache: Tensor, rows: Tensor, x: Tensor) -> None:
        """Store keys or values: cache [N, D], rows int64 [H · T], head by head; x [T, H, D]."""
        heads = x.transpose(0, 1).reshape(-1, x.shape[-1])
        cache.index_copy_(0, rows, heads.to(cache.dtype))

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        softcap: float | None,
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        """softmax(softcap(q kᵀ · scale) + mask) v in float32.

        q [N, H, M, D]; k, v [N, 1, S, D], shared by the H heads; mask float32, broadcast to
        [N, H, M, S], or causal: query i sees keys 0..i. Returns float32 [N, H, M, D].
        """
        q, k, v = q.float(), k.float(), v.float()
        if softcap is None:
            heads = q.shape[1]
            k, v = k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1)
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=scale
            )
        scores = torch.matmul(q, k.mT).mul_(scale / softcap).tanh_().mul_(softcap)
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
            scores.masked_fill_(future, -torch.inf)
        if mask is not None:
            scores.add_(mask)
        return torch.matmul(scores.softmax(-1), v)
