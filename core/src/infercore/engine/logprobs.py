"""From a result's arrays to the log-probabilities of one request."""

from typing import Any

from numpy.typing import NDArray

from infercore.engine.request import TokenLogprobs
from infercore.engine.schedule import Schedule
from infercore.step import StepResult


def of_tokens(result: StepResult, row: int, count: int, wanted: int) -> list[TokenLogprobs]:
    """Log-probabilities of the first `count` tokens of a row, each with the `wanted` likeliest."""
    return _listed(
        result.logprobs[row, :count],
        result.top_ids[row, :count, :wanted],
        result.top_logprobs[row, :count, :wanted],
    )


def collect_prompt(plan: Schedule, result: StepResult, row: int) -> None:
    """Keep the log-probabilities of the prompt tokens that follow those of a row's chunk."""
    seq, start = plan.seqs[row], plan.starts[row]
    stop = min(start + plan.counts[row], seq.prompt_len - 1)
    if seq.prompt_logprobs is None or start >= stop:
        return
    assert result.prompt_logprobs is not None
    assert result.prompt_top_ids is not None
    assert result.prompt_top_logprobs is not None
    first = sum(plan.counts[:row])
    here = slice(first, first + stop - start)
    wanted = seq.request.sampling.prompt_logprobs or 0
    seq.prompt_logprobs[start + 1 : stop + 1] = _listed(
        result.prompt_logprobs[here],
        result.prompt_top_ids[here, :wanted],
        result.prompt_top_logprobs[here, :wanted],
    )


def _listed(
    logprobs: NDArray[Any], top_ids: NDArray[Any], top_logprobs: NDArray[Any]
) -> list[TokenLogprobs]:
    rows = zip(logprobs.tolist(), top_ids.tolist(), top_logprobs.tolist(), strict=True)
    return [TokenLogprobs(own, tuple(ids), tuple(tops)) for own, ids, tops in rows]
