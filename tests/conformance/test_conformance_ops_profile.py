"""The ops profile: green on what is right, and each check fails for its own cause."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import plugin_packages
from infercore.backend import AttentionBatch, Backend, Collective
from infercore.executor import CopyDirection
from infercore.layers.attention import PagedAttention
from infercore.layers.ops import Ops
from infercore.step import Int32
from infercore.worker.thread_group import ThreadGroup, ThreadMember
from infercore_conformance.fixtures import Numerics
from infercore_conformance.made_kinds import VARIANTS
from infercore_conformance.profiles.ops import (
    test_attention,
    test_attention_cache,
    test_cache,
    test_collective,
    test_elementwise,
    test_products,
)
from infercore_conformance.subject import Subject
from plain_backend import PlainBackend, Run, fails, with_attention, with_ops, with_specs

INFERCORE = Path(sys.executable).with_name("infercore")
PROFILES = ("--profile", "ops", "--profile", "quant")
PLAIN_PLUGIN = """
@hookimpl
def register_backend():
    from plain_backend import PlainBackend
    return PlainBackend
"""
ERROR = r"error is .*, and at most"


class NextRow(Ops):
    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        return super().embedding((ids + 1) % len(table), table)


class NoBias(Ops):
    def linear(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        return super().linear(x, weight, None)


class ShortProducts(Ops):
    """Products of float32 numbers in bfloat16, as some devices do by default."""

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        return super().linear(x.bfloat16().to(x.dtype), weight, bias)


class NoEps(Ops):
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Any = None) -> Any:
        return super().rms_norm(x, weight, 0.0, residual)


class ShortSums(Ops):
    """Sums of squares in the dtype of activations."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Any = None) -> Any:
        x = x if residual is None else x + residual
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        return (x * scale * weight).to(x.dtype), x


class ResidualLost(Ops):
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Any = None) -> Any:
        return super().rms_norm(x, weight, eps)


class FirstHeadsNorm(Ops):
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Any = None) -> Any:
        return super().rms_norm(x, weight[0] if weight.dim() == 2 else weight, eps, residual)


class NotCentered(Ops):
    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Any, eps: float, residual: Any = None
    ) -> Any:
        norm, total = self.rms_norm(x, weight, eps, residual)
        return norm if bias is None else (norm + bias).to(x.dtype), total


class NeighboursTurned(Ops):
    """Pairs as GPT-J has them."""

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        order = torch.arange(x.shape[-1]).view(-1, 2).T.flatten()
        return super().rope(x[..., order], cos, sin)[..., order.argsort()]


class OneGelu(Ops):
    def activation(self, x: Tensor, name: str) -> Tensor:
        return super().activation(x, "gelu" if name == "gelu_tanh" else name)


class HalvesSwapped(Ops):
    def act_and_mul(self, x: Tensor, name: str) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return super().act_and_mul(torch.cat((up, gate), -1), name)


class RoundedLogits(Ops):
    def logits(self, x: Tensor, head: Any, softcap: float | None) -> Tensor:
        return super().logits(x, head, softcap).bfloat16().float()


class LogitsUncapped(Ops):
    def logits(self, x: Tensor, head: Any, softcap: float | None) -> Tensor:
        return super().logits(x, head, None)


class TokenByToken(Ops):
    def kv_write(self, cache: Tensor, rows: Tensor, x: Tensor) -> None:
        cache.index_copy_(0, rows, x.reshape(-1, x.shape[-1]).to(cache.dtype))


class MaskedThenCapped(Ops):
    def attention(
        self, q: Any, k: Any, v: Any, scale: Any, softcap: Any, mask: Any, causal: Any
    ) -> Any:
        if softcap is None or mask is None:
            return super().attention(q, k, v, scale, softcap, mask, causal)
        scores = torch.matmul(q.float(), k.float().mT) * scale + mask
        scores = (scores / softcap).tanh() * softcap
        return torch.matmul(scores.softmax(-1), v.float())


class Batched(PagedAttention):
    """Reads another batch than the one that it is given."""

    def plan(self, batch: AttentionBatch) -> Any:
        return super().plan(self.read(batch))

    def read(self, batch: AttentionBatch) -> AttentionBatch:
        return batch


class OneKeyLess(Batched):
    def read(self, batch: AttentionBatch) -> AttentionBatch:
        shorter = np.maximum(batch.host_context_len - 1, np.diff(batch.host_query_start))
        return replace(batch, host_context_len=shorter)


class ToTheBlocksEnd(Batched):
    """Rows of one token read their last block to its end."""

    def read(self, batch: AttentionBatch) -> AttentionBatch:
        size, one = self.group.block_size, np.diff(batch.host_query_start) == 1
        whole = -(-batch.host_context_len // size) * size
        return replace(batch, host_context_len=np.where(one, whole, batch.host_context_len))


class ReadsBlockZero(Batched):
    """Rows of one token read one block more, where the table has one."""

    def read(self, batch: AttentionBatch) -> AttentionBatch:
        size, one = self.group.block_size, np.diff(batch.host_query_start) == 1
        more = np.minimum(batch.host_context_len + size, size * batch.block_table.shape[1])
        return replace(batch, host_context_len=np.where(one, more, batch.host_context_len))


class NeverFresh(Batched):
    def read(self, batch: AttentionBatch) -> AttentionBatch:
        return replace(batch, fresh_blocks=batch.fresh_blocks[:0])


class SortedBlocks(Batched):
    def read(self, batch: AttentionBatch) -> AttentionBatch:
        return replace(batch, block_table=batch.block_table.sort(dim=1, descending=True).values)


class ChunksForget(Batched):
    """A chunk of a prompt sees itself only."""

    def read(self, batch: AttentionBatch) -> AttentionBatch:
        counts = np.diff(batch.host_query_start)
        own = np.where(counts > 1, counts, batch.host_context_len)
        return replace(batch, host_context_len=own)


class HeadsMixed(PagedAttention):
    """Head h reads KV head h mod H_kv."""

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Any, plan: object) -> Tensor:
        order = torch.arange(q.shape[1]).view(-1, k.shape[1]).T.flatten()
        return super().forward(layer, q[:, order], k, v, plan)[:, order.argsort()]


class OneLayer(PagedAttention):
    def forward(self, layer: int, q: Tensor, k: Tensor, v: Any, plan: object) -> Tensor:
        del layer
        return super().forward(0, q, k, v, plan)


class KeysOnly(PagedAttention):
    def copy_blocks(self, src: Int32, dst: Int32, direction: CopyDirection) -> None:
        self.cache[:, 0, :, dst] = self.cache[:, 0, :, src]


class BatchInCommon(PagedAttention):
    """Something of the whole step goes into every row."""

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Any, plan: object) -> Tensor:
        return super().forward(layer, q, k, v, plan) + 0 * k.mean()


class CacheOfIntegers(PagedAttention):
    def forward(self, layer: int, q: Tensor, k: Tensor, v: Any, plan: object) -> Tensor:
        return super().forward(layer, q, (k * 8).round() / 8, v, plan)


class NoMaximum(Ops):
    """Exponentials of scores as they are."""

    def attention(
        self, q: Any, k: Any, v: Any, scale: Any, softcap: Any, mask: Any, causal: Any
    ) -> Any:
        weights = torch.matmul(q.float(), k.float().mT).mul_(scale)
        if causal:
            mask = torch.full(weights.shape[-2:], -torch.inf).triu_(1)
        weights = (weights if mask is None else weights + mask).exp()
        return torch.matmul(weights / weights.sum(-1, keepdim=True), v.float())


class LastBits(ThreadMember):
    """A sum of another rank has other last bits."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return super().all_reduce(x) * (1 + 2.0**-22 * self.rank)


class AllAreFirst(ThreadMember):
    def __init__(self, group: ThreadGroup, rank: int) -> None:
        super().__init__(group, min(rank, 0))


class GathersBackwards(ThreadMember):
    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        return torch.cat(super().all_gather(x, dim).chunk(self.size, dim)[::-1], dim)


def with_member(member: type[ThreadMember]) -> type[Backend]:
    def collective(self: Backend, ranks: int) -> Collective:
        assert self.thread_group is not None
        assert ranks == self.thread_group.size
        return member(self.thread_group, self.rank)

    return type("Broken", (PlainBackend,), {"collective": collective})


def _capped_tile(subject: Subject, numerics: Numerics) -> None:
    test_cache.test_attention_tile(subject, numerics, 2, 4, 9, 24, 64, softcap=3.0)


def _stale(subject: Subject, numerics: Numerics) -> None:
    test_attention_cache.test_stale(subject, numerics, None, spoilt=True)


DENSE = VARIANTS["dense"][1]
OPS: list[tuple[type[Ops], Run, str]] = [
    (NextRow, lambda s, _: test_elementwise.test_embedding(s, 7, 48), "a row is another one"),
    (NoBias, lambda s, n: test_products.test_linear(s, n, 7, (80, 48), DENSE), ERROR),
    (ShortProducts, lambda s, n: test_products.test_linear(s, n, 7, (80, 48), DENSE), ERROR),
    (NoEps, lambda s, n: test_elementwise.test_rms_norm(s, n, 7, 48, 2.0**-10), ERROR),
    (ShortSums, lambda s, n: test_elementwise.test_rms_norm(s, n, 7, 48, 64.0), ERROR),
    (ResidualLost, lambda s, n: test_elementwise.test_rms_norm(s, n, 7, 48, 1.0), ERROR),
    (FirstHeadsNorm, lambda s, n: test_elementwise.test_rms_norm_heads(s, n, 7, 16), ERROR),
    (NotCentered, lambda s, n: test_elementwise.test_layer_norm(s, n, 7, 48, 2.0), ERROR),
    (NeighboursTurned, lambda s, n: test_elementwise.test_rope(s, n, 7, 8, 16), ERROR),
    (OneGelu, lambda s, n: test_elementwise.test_activation(s, n, 7, 1.0), ERROR),
    (HalvesSwapped, lambda s, n: test_elementwise.test_act_and_mul(s, n, 7, 48), ERROR),
    (RoundedLogits, lambda s, n: test_products.test_logits(s, n, 5, None, DENSE), ERROR),
    (LogitsUncapped, lambda s, n: test_products.test_logits(s, n, 5, 2.0, DENSE), ERROR),
    (TokenByToken, lambda s, _: test_cache.test_kv_write(s, 7, 3, 16), "holds something else"),
    (MaskedThenCapped, _capped_tile, ERROR),
    (NoMaximum, test_attention.test_large_scores, "error is nan"),
]  # fmt: skip
ATTENTION: list[tuple[type[PagedAttention], Run, str]] = [
    (OneKeyLess, test_attention.test_mixed, ERROR),
    (OneKeyLess, lambda s, n: test_attention.test_lengths(s, n, backwards=True), ERROR),
    (ToTheBlocksEnd, lambda s, n: test_attention.test_many_rows(s, n, 24), ERROR),
    (NeverFresh, _stale, "error is nan"),
    (ReadsBlockZero, lambda s, n: test_attention_cache.test_padding(s, n, None), ERROR),
    (BatchInCommon, test_attention_cache.test_other_rows, "error is nan"),
    (SortedBlocks, lambda s, n: test_attention.test_block_order(s, n, "drawn"), ERROR),
    (ChunksForget, lambda s, n: test_attention.test_chunks(s, n, 16, None), ERROR),
    (ChunksForget, lambda s, n: test_attention.test_long(s, n, 700, None), ERROR),
    (HeadsMixed, lambda s, n: test_attention.test_heads(s, n, 6, 2, 64), ERROR),
    (OneLayer, lambda s, n: test_attention.test_heads(s, n, 4, 4, 64), ERROR),
    (KeysOnly, test_attention_cache.test_copy, ERROR),
    (CacheOfIntegers, lambda s, n: test_attention_cache.test_kv_dtype(s, n, None), ERROR),
]  # fmt: skip


@pytest.mark.parametrize(("ops", "run", "cause"), OPS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_defect_of_an_operation_is_caught(ops: type[Ops], run: Run, cause: str) -> None:
    fails(with_ops(ops), run, cause)


@pytest.mark.parametrize(
    ("attention", "run", "cause"), ATTENTION, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_defect_of_attention_is_caught(
    attention: type[PagedAttention], run: Run, cause: str
) -> None:
    fails(with_attention(attention), run, cause)


def test_a_window_or_cap_that_is_misread_is_caught() -> None:
    def window(s: Any, n: Any) -> None:
        test_attention.test_window(s, n, 16)

    def softcap(s: Any, n: Any) -> None:
        test_attention.test_softcap(s, n, 1.5, None)

    fails(with_specs(lambda spec: spec, window=None), window, ERROR)
    fails(with_specs(lambda spec: spec, window=15), window, ERROR)
    fails(with_specs(lambda spec: replace(spec, softcap=None)), softcap, ERROR)
    fails(with_specs(lambda spec: replace(spec, scale=2 * spec.scale)), softcap, ERROR)


def test_a_defect_of_a_collective_is_caught() -> None:
    def gather(s: Any, _: Any) -> None:
        test_collective.test_all_gather(s, 2, 1)

    def reduce(s: Any, n: Any) -> None:
        test_collective.test_all_reduce(s, n, 2, (9, 80))

    fails(with_member(LastBits), reduce, "other bits than rank 0")
    fails(with_member(GathersBackwards), gather, "something else")
    fails(with_member(AllAreFirst), lambda s, _: test_collective.test_who(s, 2), "ranks say")


def conformance(folder: Path, *arguments: str, path: Path | None = None) -> tuple[int, Any]:
    """Exit status and report of a run. path: more plugins, and what they import."""
    report = folder / "report.json"
    command = [INFERCORE, "conformance", "run", "--report", report, *arguments, "--", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        support = Path(plugin_packages.__file__).parent
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (path, support)))
    ended = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    assert report.exists(), ended.stdout + ended.stderr
    return ended.returncode, json.loads(report.read_text())


def test_figures_are_reported_on_a_pass(tmp_path: Path) -> None:
    status, report = conformance(
        tmp_path, "--backend", "cpu", "--quick", "--check", "ops.rope", "--check", "quant.fp8"
    )
    assert status == 0
    for checked in report["checks"]:
        assert checked["status"] == "passed"
        assert [figure["name"] for figure in checked["numerics"]] == [
            "bfloat16.error", "float32.error", "float16.error"
        ]  # fmt: skip
        assert all(0 <= figure["value"] < figure["bound"] for figure in checked["numerics"])


def test_an_executor_that_is_no_backend_is_not_asked(tmp_path: Path) -> None:
    status, report = conformance(tmp_path, "--backend", "numpy", *PROFILES)
    assert status == 0
    assert len(report["checks"]) >= 50
    for checked in report["checks"]:
        assert (checked["status"], checked["support"]) == ("not run", "unsupported")
        assert checked["detail"] == "it is an Executor of its own, no Backend"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "sim", "plain"])
def test_both_profiles_are_green(tmp_path: Path, backend: str) -> None:
    """Plain is what core's defaults make of three methods, in every dtype."""
    plugin_packages.install(tmp_path, "plain", {"backend.plain": "plain_plugin"}, {
        "plain_plugin": plugin_packages.plugin(PLAIN_PLUGIN)
    })  # fmt: skip
    status, report = conformance(tmp_path, "--backend", backend, *PROFILES, path=tmp_path)
    assert status == 0, [check for check in report["checks"] if check["failures"]]
    for checked in report["checks"]:
        undeclared = checked["id"].startswith(("ops.collective.", "quant.memory."))
        assert checked["status"] in ("passed", *["not run"] * undeclared), checked["id"]
