"""Runs one step: arrays to tensors, one pass through the decoder, logits where they are wanted."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercore.backend import Attention, AttentionBatch, Backend, Collective
from infercore.executor import Bucket, ExecutorConfig, KVGroups, Progress, Weights
from infercore.kv_groups import kv_groups
from infercore.layers.common import Source, torch_dtype
from infercore.layers.decoder import Decoder
from infercore.model_spec import ModelSpec
from infercore.rehearsal import TILE_TARGETS
from infercore.sampling import RowStatus
from infercore.step import Int32, LateInputs, Step, StepResult
from infercore.worker.parallel import Sharding
from infercore.worker.sampler import Report, Sampler

_OK = int(RowStatus.OK)


@dataclass(slots=True)
class Forward:
    """A step between its forward and its sampling. hidden: [T, E]."""

    step: Step
    hidden: Tensor
    seconds: float


class ModelRunner:
    """The model, its cache and its sampler, on one device. Not thread-safe.

    collective: of the ranks that share the model; each samples, from the same logits. None = one.
    """

    def __init__(
        self,
        backend: Backend,
        spec: ModelSpec,
        weights: Weights,
        config: ExecutorConfig,
        progress: Progress,
        collective: Collective | None = None,
    ) -> None:
        if collective is not None:
            sharding = Sharding(spec, collective.rank, collective.size)
            spec, weights = sharding.spec, sharding.weights(weights)
        self.backend = backend
        self.spec = spec
        self.config = config
        self.device = backend.device(backend.rank)
        ops = backend.ops()
        itemsize = torch_dtype(config.kv_dtype).itemsize
        self.groups: KVGroups = kv_groups(spec, config.block_size, itemsize)
        self.model = Decoder(ops, spec, self.groups, config.max_model_len)
        self._program: torch.nn.Module = self.model  # what `compile` made of it
        source = Source(weights, backend, self.device, torch_dtype(config.dtype))
        self.model.load(source, progress)
        if collective is not None:
            self.model.join(collective)
        self.caches: list[Attention] = [
            backend.attention(group, [spec.layers[i].attention for i in group.layers])
            for group in self.groups
        ]
        self.model.bind(self.caches)
        self.sampler = Sampler(spec.vocab_size, config.max_num_seqs, self.device)
        self.last_tokens = torch.zeros(0, dtype=torch.int64, device=self.device)

    @property
    def weight_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.model.leaves())

    def allocate(self, num_blocks: Sequence[int]) -> None:
        """Blocks per group, block 0 included."""
        for cache, blocks in zip(self.caches, num_blocks, strict=True):
            cache.allocate(blocks)

    def compile(self, buckets: Sequence[Bucket]) -> None:
        """Let the backend lower the decoder; the head stays a layer of its own."""
        self._program = self.backend.compile(self.model, buckets)

    def forward(self, step: Step) -> Forward:
        """Write the step's keys and values and compute its hidden states."""
        start = time.perf_counter()
        if step.slot_init:
            self.sampler.init_slots(step.slot_init)
        ids = self._ids(step)
        positions = self._tensor(step.positions).long()
        plans = [cache.plan(self._batch(step, i)) for i, cache in enumerate(self.caches)]
        hidden = self._program(ids, positions, plans)
        return Forward(step, hidden, time.perf_counter() - start)

    def finish(self, forward: Forward, late: LateInputs | None) -> StepResult:
        """Sample the rows that want a token."""
        start = time.perf_counter()
        step, hidden = forward.step, forward.hidden
        rows = np.flatnonzero(step.sample).astype(np.int32)
        shown = max(0, int(step.num_logprobs.max(initial=0)))
        result = StepResult.blank(step.step_id, step.num_rows, shown)
        self._prompt_logprobs(step, hidden, result)
        if len(rows):
            if len(rows) < len(hidden):  # else every token is its row's last
                last = step.query_start[rows + 1].astype(np.int64) - 1
                hidden = hidden[self._tensor(last)]
            sampled = self.sampler.sample(self.model.head(hidden), rows, step, late)
            result.tokens[rows, 0] = sampled.tokens
            result.n_tokens[rows] = sampled.status == _OK
            result.status[rows] = sampled.status
            if sampled.report is not None:
                _show(sampled.report, rows, result)
            self.last_tokens = sampled.chosen
        if len(rows) < step.num_rows:
            chosen = self.last_tokens
            self.last_tokens = torch.zeros(step.num_rows, dtype=torch.int64, device=self.device)
            if len(rows):
                self.last_tokens[self._tensor(rows).long()] = chosen
        result.seconds = {"forward": forward.seconds, "sample": time.perf_counter() - start}
        return result

    def reset(self) -> None:
        """Forget all slots; what the cache holds is written anew before it is read."""
        self.sampler.reset()

    def _ids(self, step: Step) -> Tensor:
        ahead = np.flatnonzero(step.token_source >= 0)
        if not len(ahead):
            return self._tensor(step.token_ids).long()
        known = self.last_tokens[self._tensor(step.token_source[ahead]).long()]
        if len(ahead) == step.num_tokens:
            return known
        ids = self._tensor(step.token_ids).long()
        ids[self._tensor(ahead)] = known
        return ids

    def _batch(self, step: Step, group: int) -> AttentionBatch:
        fresh = step.fresh_blocks[group] if step.fresh_blocks else np.zeros(0, np.int32)
        return AttentionBatch(
            query_start=self._tensor(step.query_start),
            context_len=self._tensor(step.context_len),
            block_table=self._tensor(step.block_table[group]),
            slot_mapping=self._tensor(step.slot_mapping[group]).long(),
            host_query_start=step.query_start,
            host_context_len=step.context_len,
            fresh_blocks=self._tensor(fresh).long(),
        )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _prompt_logprobs(self, step: Step, hidden: Tensor, result: StepResult) -> None:
        """Fill in what the step's targets ask for, a few tokens' logits at a time."""
        wanted = np.flatnonzero(step.prompt_targets >= 0)
        if not len(wanted):
            return
        shown = result.top_ids.shape[-1]
        result.prompt_logprobs = np.zeros(step.num_tokens, np.float32)
        result.prompt_top_ids = np.zeros((step.num_tokens, shown), np.int32)
        result.prompt_top_logprobs = np.zeros((step.num_tokens, shown), np.float32)
        for at in range(0, len(wanted), TILE_TARGETS):
            tile = wanted[at : at + TILE_TARGETS]
            logits = self.model.head(hidden[self._tensor(tile)])
            targets = self._tensor(step.prompt_targets[tile]).long()
            chosen, ids, top = self.sampler.prompt_logprobs(logits, targets, shown)
            result.prompt_logprobs[tile] = chosen.cpu().numpy()
            result.prompt_top_ids[tile] = ids.cpu().numpy()
            result.prompt_top_logprobs[tile] = top.cpu().numpy()


def _show(report: Report, rows: Int32, result: StepResult) -> None:
    """Put log-probabilities of sampled rows, which are `rows` of the step, into its result."""
    at, shown = rows[report.rows], report.top_ids.shape[1]
    result.logprobs[at, 0] = report.logprobs
    result.top_ids[at, 0, :shown] = report.top_ids
    result.top_logprobs[at, 0, :shown] = report.top_logprobs
