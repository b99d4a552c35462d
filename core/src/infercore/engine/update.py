"""Applies a step's result: what was in flight becomes fact, ended sequences are let go."""

from infercore.engine import logprobs
from infercore.engine.request import Constraint, EngineStats, FinishReason, Output
from infercore.engine.schedule import Schedule
from infercore.engine.scheduler import Scheduler
from infercore.engine.sequence import Sequence
from infercore.errors import GenerationFailed, RequestError
from infercore.sampling import RowStatus
from infercore.step import StepResult

_FAILURES = {
    RowStatus.NOT_FINITE: "the model's scores are not finite (NaN or infinity) at position "
    "{position}. Another dtype, float32 first, may help.",
    RowStatus.NO_TOKEN: "bans, logit bias and grammar together allow no token at position "
    "{position}. Relax one of them.",
}


class Updater:
    """Moves the counters of sequences by results, and ends them."""

    def __init__(self, scheduler: Scheduler, stats: EngineStats) -> None:
        self._scheduler = scheduler
        self._stats = stats

    def update(self, plan: Schedule, result: StepResult) -> list[Output]:
        """Append, finish, free. Returns an output per sequence that got tokens or ended."""
        self._scheduler.updated_step = plan.step_id
        outputs: list[Output] = []
        tokens, n_tokens = result.tokens.tolist(), result.n_tokens.tolist()
        status = result.status.tolist()
        for row in range(len(plan.seqs)):
            seq = plan.land(row)
            if seq.finish_reason is not None:
                self._stats.dropped_tokens += n_tokens[row]
                if not seq.in_flight:
                    self._scheduler.vacate(seq)
            elif status[row] in _FAILURES:
                if status[row] == RowStatus.NOT_FINITE:
                    self._scheduler.blocks.distrust(seq)
                position = plan.starts[row] + plan.counts[row]
                why = _FAILURES[status[row]].format(position=position)
                outputs.append(self.fail(seq, GenerationFailed(f"request {seq.request_id}: {why}")))
            elif plan.yields[row]:
                outputs.append(self._yielded(plan, result, row, tokens[row][: n_tokens[row]]))
            else:
                self._scheduler.blocks.advance(seq, plan.counts[row])
                logprobs.collect_prompt(plan, result, row)
        return outputs

    def fail(self, seq: Sequence, error: RequestError) -> Output:
        """End a sequence with an error."""
        self._scheduler.finish(seq, FinishReason.ERROR)
        return Output(seq.request_id, finish_reason=FinishReason.ERROR, error=error)

    def _yielded(self, plan: Schedule, result: StepResult, row: int, tokens: list[int]) -> Output:
        """Append what a row chose, up to the token that ends it."""
        seq = plan.seqs[row]
        assert tokens, "a row that was asked for a token and is ok yields at least one"
        first = len(seq.ids) == seq.prompt_len
        reason, count = None, 0
        for token in tokens:
            seq.ids.append(token)
            count += 1
            reason = seq.ending()
            if reason is not None:
                break
        self._stats.generated_tokens += count
        self._stats.dropped_tokens += len(tokens) - count
        del tokens[count:]
        self._scheduler.blocks.advance(seq, plan.counts[row] + count - 1)
        output = Output(seq.request_id, tokens, finish_reason=reason)
        wanted = seq.request.sampling.logprobs
        if wanted is not None:
            output.logprobs = logprobs.of_tokens(result, row, count, wanted)
        if seq.prompt_logprobs is not None:
            logprobs.collect_prompt(plan, result, row)
            output.prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, None
        if first:
            assert seq.started is not None
            output.cached_tokens = seq.cached_tokens
            output.queue_seconds = max(0.0, seq.started - seq.arrival)
        if seq.constraint is not None and reason is None:
            self._accept(seq.constraint, output)
        if output.finish_reason is not None:
            self._scheduler.finish(seq, output.finish_reason)
        return output

    @staticmethod
    def _accept(constraint: Constraint, output: Output) -> None:
        try:
            for token in output.token_ids:
                constraint.accept(token)
        except RequestError as error:
            output.finish_reason, output.error = FinishReason.ERROR, error
