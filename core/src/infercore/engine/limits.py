"""The limits of one engine, and the rules that a request must meet to be admitted."""

from collections.abc import Mapping
from dataclasses import dataclass

from infercore.capabilities import Capabilities
from infercore.config import EngineConfig
from infercore.engine.kv_budget import blocks_per_sequence
from infercore.engine.request import Request
from infercore.errors import InvalidRequest
from infercore.executor import KVGroups

STEP_MASKS = "step_masks"
"""Capability and key in `Step.extras`: uint32[R, ceil(V / 32)], bit v set = token v is allowed.

For executors without late inputs: the masks of constrained rows then travel with the step.
"""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine must keep to, resolved; the names and meanings of `EngineConfig`."""

    max_model_len: int
    max_input_len: int | None = None
    max_num_seqs: int = 64
    max_batch_tokens: int = 2048
    prefix_cache: bool = True
    step_ahead: bool = True
    max_overtake: float = 2.0
    max_waiting: int = 1024
    max_waiting_tokens: int = 2**20

    @classmethod
    def of(cls, config: EngineConfig, max_model_len: int, max_batch_tokens: int) -> "EngineLimits":
        """The limits that `config` sets, with what memory allows and the backend prefers."""
        return cls(
            max_model_len=max_model_len,
            max_input_len=config.max_input_len,
            max_num_seqs=config.max_num_seqs,
            max_batch_tokens=max_batch_tokens,
            prefix_cache=config.prefix_cache,
            step_ahead=config.step_ahead,
            max_overtake=config.max_overtake,
            max_waiting=config.max_waiting,
            max_waiting_tokens=config.max_waiting_tokens,
        )


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """Decides whether a request could run if it were alone. Pure; knows nothing of the load."""

    limits: EngineLimits
    groups: KVGroups
    num_blocks: Mapping[str, int]
    vocab_size: int
    capabilities: Capabilities

    def max_len(self, request: Request) -> int:
        """The most tokens, prompt and output, that the request may reach.

        Raises InvalidRequest.
        """
        prompt, limit = len(request.prompt_ids), self.limits.max_model_len
        longest_prompt = self.limits.max_input_len or limit - 1
        if not 1 <= prompt <= longest_prompt:
            raise InvalidRequest(
                f"the prompt must have between 1 and {longest_prompt} tokens. Given: {prompt}",
                "prompt",
            )
        wanted = request.sampling.max_tokens
        total = limit if wanted is None else prompt + wanted
        if total > limit:
            raise InvalidRequest(
                f"{prompt} prompt tokens + {wanted} max_tokens = {total}, and a sequence holds at "
                f"most {limit}. Shorten the prompt or lower max_tokens to {limit - prompt}.",
                "max_tokens",
            )
        return total

    def check(self, request: Request) -> None:
        """Raises InvalidRequest for what this model, executor or cache cannot serve."""
        self._check_blocks(self.max_len(request))
        self._check_ids(request)
        self._check_features(request)

    def _check_blocks(self, total: int) -> None:
        for group in self.groups:
            need = blocks_per_sequence(group, total, self.limits.max_batch_tokens)
            have = self.num_blocks[group.name] - 1
            if need > have:
                raise InvalidRequest(
                    f"{total} tokens need {need} blocks of {group.block_size} tokens in KV group "
                    f"{group.name!r}, which has {have}. Shorten the prompt, lower max_tokens, or "
                    "give the engine more KV memory.",
                    "max_tokens",
                )

    def _check_ids(self, request: Request) -> None:
        sampling = request.sampling
        named = (
            ("prompt", request.prompt_ids),
            ("output_ids", request.output_ids),
            ("stop_token_ids", sampling.stop_token_ids),
            ("logit_bias", tuple(sampling.logit_bias)),
        )
        for param, ids in named:
            if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
                bad = next(i for i in ids if not 0 <= i < self.vocab_size)
                raise InvalidRequest(
                    f"{param}: {bad} is not a token id of this model (0 to {self.vocab_size - 1})",
                    param,
                )
        for param, count in (
            ("logprobs", sampling.logprobs),
            ("prompt_logprobs", sampling.prompt_logprobs),
        ):
            if count is not None and count > self.vocab_size:
                raise InvalidRequest(
                    f"{param}: {count} is more than the vocabulary's {self.vocab_size} tokens",
                    param,
                )

    def _check_features(self, request: Request) -> None:
        sampling, can = request.sampling, self.capabilities
        if sampling.seed is None and not sampling.greedy:
            raise InvalidRequest("seed: whoever hands a request to the engine draws one", "seed")
        if sampling.prompt_logprobs is not None and not can.prompt_logprobs:
            raise InvalidRequest(
                "prompt_logprobs: this backend does not compute them", "prompt_logprobs"
            )
        if sampling.watermark is not None and not can.watermark:
            raise InvalidRequest("watermark: this backend does not mark texts", "watermark")
        if request.constraint is not None and not (can.late_inputs or can.extras.get(STEP_MASKS)):
            raise InvalidRequest(
                "grammar: this backend takes no token masks, neither late nor with the step",
                "grammar",
            )
