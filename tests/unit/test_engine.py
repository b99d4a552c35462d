"""What the engine admits, refuses, reports and counts."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from engine_traffic import GREEDY, Clock, Driver, answers, make_engine, prompt
from infercore.engine.request import FinishReason, Request
from infercore.errors import InvalidRequest, Overloaded, RequestError
from infercore.sampling import SamplingParams
from numpy_executor import NumpyExecutor
from toy_model import EOS, VOCAB, NoRepeat, ToyModel, expected


def sampling(**values: Any) -> SamplingParams:
    return replace(GREEDY, ignore_eos=False, **values)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(1, [], GREEDY), "between 1 and 63 tokens. Given: 0"),
        (Request(1, prompt(64), GREEDY), "between 1 and 63 tokens. Given: 64"),
        (
            Request(1, prompt(60), GREEDY),
            r"60 prompt tokens \+ 8 max_tokens = 68, .* at most 64\. .* lower max_tokens to 4",
        ),
        (Request(1, [3, VOCAB], GREEDY), f"prompt: {VOCAB} is not a token id .*0 to {VOCAB - 1}"),
        (Request(1, [-1], GREEDY), "prompt: -1 is not a token id"),
        (Request(1, [3], GREEDY, output_ids=[99]), "output_ids: 99 is not a token id"),
        (Request(1, [3], sampling(stop_token_ids=(99,))), "stop_token_ids: 99"),
        (Request(1, [3], sampling(logit_bias={99: 1.0})), "logit_bias: 99"),
        (Request(1, [3], sampling(logprobs=41)), "logprobs: 41 is more than .* 40 tokens"),
        (Request(1, [3], sampling(prompt_logprobs=41)), "prompt_logprobs: 41"),
        (Request(1, [3], sampling(temperature=1.0)), "seed: "),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_arithmetic(request_: Request, says: str) -> None:
    engine = make_engine(NumpyExecutor())
    with pytest.raises(InvalidRequest, match=says):
        engine.add(request_)
    assert not engine.has_work


def test_a_request_that_could_never_fit_is_refused_with_the_arithmetic() -> None:
    engine = make_engine(NumpyExecutor(), num_blocks=5)
    engine.add(Request(1, prompt(8), GREEDY))
    with pytest.raises(InvalidRequest, match="17 tokens need 5 blocks of 4 tokens.*which has 4"):
        engine.add(Request(2, prompt(9), GREEDY))


def test_without_max_tokens_a_request_may_use_the_whole_context() -> None:
    [got] = answers(NumpyExecutor(), [Request(1, prompt(9), replace(GREEDY, max_tokens=None))])
    assert (len(got.tokens), got.reason) == (64 - 9, FinishReason.LENGTH)


def test_a_full_queue_refuses_new_requests_but_not_resumed_ones() -> None:
    engine = make_engine(NumpyExecutor(), max_waiting=2)
    engine.add(Request(1, prompt(3), GREEDY))
    engine.add(Request(2, prompt(3), GREEDY))
    with pytest.raises(Overloaded, match="2 requests are waiting and the queue holds 2"):
        engine.add(Request(3, prompt(3), GREEDY))
    engine.add(Request(4, prompt(3), GREEDY, attempt=1))
    engine.add(Request(5, prompt(3), GREEDY, output_ids=[4]))


def test_a_queue_is_bounded_by_tokens_and_takes_any_prompt_when_it_is_empty() -> None:
    engine = make_engine(NumpyExecutor(), max_waiting_tokens=8)
    engine.add(Request(1, prompt(9), GREEDY))
    says = "9 prompt tokens are waiting and the queue holds 8, too few for 1 more. Try again in 1 s"
    with pytest.raises(Overloaded, match=says):
        engine.add(Request(2, prompt(1), GREEDY))


def test_a_refusal_says_how_long_the_queue_takes_at_its_pace() -> None:
    clock = Clock()
    engine = make_engine(
        NumpyExecutor(), clock=clock, max_num_seqs=1, max_waiting=2, max_overtake=0.0
    )
    engine.add(Request(1, prompt(9), GREEDY))
    engine.step()  # 9 prompt tokens left the queue
    clock.now += 10.0
    for request_id in (2, 3):
        engine.add(Request(request_id, prompt(9), GREEDY))
    with pytest.raises(Overloaded) as refusal:
        engine.add(Request(4, prompt(9), GREEDY))
    assert refusal.value.retry_after == pytest.approx(20.0)
    clock.now += 60.0  # nothing left for longer than it looks back
    with pytest.raises(Overloaded) as refusal:
        engine.add(Request(4, prompt(9), GREEDY))
    assert refusal.value.retry_after == 60.0


def test_an_id_is_free_again_when_its_last_output_was_taken() -> None:
    driver = Driver(make_engine(NumpyExecutor()))
    driver.engine.add(Request(1, prompt(3), GREEDY))
    driver.engine.abort(1)
    with pytest.raises(InvalidRequest, match="request 1 is already running"):
        driver.engine.add(Request(1, prompt(3), GREEDY))
    [output] = driver.engine.step()
    assert output.finish_reason is FinishReason.ABORT
    driver.engine.add(Request(1, prompt(3), GREEDY))
    assert driver.run()[1].reason is FinishReason.LENGTH


def test_aborting_twice_or_for_nothing_is_harmless() -> None:
    driver = Driver(make_engine(NumpyExecutor()))
    driver.engine.abort(1)
    driver.engine.add(Request(1, prompt(3), GREEDY))
    driver.step()
    driver.engine.abort(1)
    driver.engine.abort(1)
    assert driver.run()[1].reason is FinishReason.ABORT


def test_an_abort_in_flight_keeps_the_blocks_until_the_step_landed() -> None:
    driver = Driver(make_engine(NumpyExecutor()))
    driver.engine.add(Request(1, prompt(9), GREEDY))
    driver.step()
    driver.engine.abort(1)
    assert driver.engine.stats().kv_blocks_used == 3
    driver.run()
    assert driver.engine.stats().dropped_tokens == 1
    assert driver.engine.stats().generated_tokens == 0


@pytest.mark.parametrize("output", [[4, EOS], [4] * 8])
def test_a_request_that_an_earlier_attempt_had_ended_ends_at_once(output: list[int]) -> None:
    [got] = answers(NumpyExecutor(), [Request(1, prompt(3), sampling(), output_ids=output)])
    assert got.tokens == []
    assert got.reason is (FinishReason.EOS if output[-1] == EOS else FinishReason.LENGTH)


def test_eos_and_stop_ids_end_and_are_told_apart() -> None:
    forced = {EOS: 100.0}
    end, ignore, stop = answers(
        NumpyExecutor(),
        [
            Request(1, prompt(3), sampling(logit_bias=forced, min_tokens=2)),
            Request(2, prompt(3), replace(GREEDY, logit_bias=forced)),
            Request(3, prompt(3), sampling(logit_bias={9: 100.0}, stop_token_ids=(9,))),
        ],
    )
    assert (len(end.tokens), end.tokens[-1], end.reason) == (3, EOS, FinishReason.EOS)
    assert (ignore.tokens, ignore.reason) == ([EOS] * 8, FinishReason.LENGTH)
    assert (stop.tokens, stop.reason) == ([9], FinishReason.STOP)


def test_counters_add_up() -> None:
    clock = Clock()
    executor = NumpyExecutor(max_in_flight=1)
    driver = Driver(make_engine(executor, clock=clock))
    driver.engine.add(Request(1, prompt(9), GREEDY, arrival=99.0))
    assert driver.engine.stats().waiting == 1
    [first] = driver.step()
    assert first.queue_seconds == 1.0
    stats = driver.engine.stats()
    assert (stats.running, stats.waiting, stats.steps) == (1, 0, 1)
    assert (stats.kv_blocks, stats.kv_blocks_used) == (63, 3)
    assert stats.kv_usage == 3 / 63
    driver.run()
    driver.engine.add(Request(2, prompt(9), GREEDY))
    driver.run()
    stats = driver.engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (18, 8, 16)
    assert stats.steps == len(executor.log) == 16
    assert stats.own_seconds > 0
    assert driver.received[2].cached_tokens == 8


def test_prompt_logprobs_come_with_the_first_token_whatever_the_chunks() -> None:
    request = Request(1, prompt(13), sampling(prompt_logprobs=2, logprobs=1))
    want = expected(request, ToyModel(), 64)
    for budget in (1, 3, 32):
        [got] = answers(NumpyExecutor(), [request], max_batch_tokens=budget)
        assert got.prompt_logprobs == want.prompt_logprobs
        assert got.logprobs == want.logprobs


@pytest.mark.parametrize("late", [True, False])
def test_a_mask_that_depends_on_the_last_token_is_never_late(late: bool) -> None:
    """One step ahead where masks may come late; with nothing in flight elsewhere."""
    executor = NumpyExecutor(late_inputs=late)
    request = Request(1, prompt(5), GREEDY, constraint=NoRepeat())
    driver = Driver(make_engine(executor))
    driver.engine.add(request)
    got = driver.run()[1].tokens
    assert got == expected(request, ToyModel(), 64).tokens
    assert all(one % 3 != other % 3 for one, other in pairwise(got))
    assert executor.followed == (7 if late else 0)


def test_a_constraint_that_fails_or_allows_nothing_ends_its_request_only() -> None:
    class Broken(NoRepeat):
        def accept(self, token_id: int) -> None:
            raise RequestError("the grammar refuses its own choice")

        def fresh(self) -> "Broken":
            return Broken()

    requests = [
        Request(1, prompt(5), GREEDY, constraint=NoRepeat(fails_at=2)),
        Request(2, prompt(5), GREEDY, constraint=NoRepeat(stuck_at=2)),
        Request(3, prompt(5), GREEDY, constraint=Broken()),
        Request(4, prompt(5), GREEDY),
    ]
    failed, stuck, broken, free = answers(NumpyExecutor(), requests)
    assert len(failed.tokens) == len(stuck.tokens) == 2
    assert "no such state" in str(failed.last and failed.last.error)
    assert "allow no token at position 7" in str(stuck.last and stuck.last.error)
    assert "refuses its own choice" in str(broken.last and broken.last.error)
    assert free.tokens == expected(requests[3], ToyModel(), 64).tokens


def test_a_constraint_needs_a_backend_that_takes_masks() -> None:
    class Maskless(NumpyExecutor):
        def __init__(self) -> None:
            super().__init__(late_inputs=False)
            self._can = replace(self._can, extras={})

    with pytest.raises(InvalidRequest, match="takes no token masks"):
        make_engine(Maskless()).add(Request(1, [3], GREEDY, constraint=NoRepeat()))
