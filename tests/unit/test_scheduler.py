"""Who runs in a step, and in which order. `log` of the executor shows what each step ran."""

from typing import Any

from engine_traffic import GREEDY, Clock, Driver, make_engine, prompt
from infercore.engine.request import FinishReason, Request
from infercore.sampling import SamplingParams
from numpy_executor import NumpyExecutor
from toy_model import ToyModel, expected


def lasting(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


class Watched(Driver):
    """A driver that knows its executor."""

    def __init__(self, model: ToyModel = ToyModel(), **options: Any) -> None:  # noqa: B008
        machine = {k: options.pop(k) for k in ("max_in_flight", "tokens_per_step") if k in options}
        self.executor = NumpyExecutor(model, **{"max_in_flight": 1, **machine})
        self.clock = Clock()
        super().__init__(make_engine(self.executor, clock=self.clock, **options))

    def counts(self) -> list[int]:
        """Step the engine; tokens by row of the step that it submitted, in the step's order."""
        before = len(self.executor.log)
        self.step()
        return [count for log in self.executor.log[before:] for _, _, count in log]

    def started(self) -> set[int]:
        return {seq.request_id for seq in self.engine._scheduler.running}


def test_decodes_go_first_and_prompts_take_what_is_left_in_chunks() -> None:
    driver = Watched(max_batch_tokens=8)
    driver.add([Request(1, prompt(3), lasting(6)), Request(2, prompt(4, 1), lasting(6))])
    assert driver.counts() == [3, 4]
    driver.add([Request(3, prompt(15, 2), GREEDY)])
    assert driver.counts() == [1, 1, 6]
    assert driver.counts() == [1, 1, 6]
    assert driver.counts() == [1, 1, 3]
    assert driver.counts() == [1, 1, 1]


def test_a_prompt_of_higher_priority_does_not_hold_up_decodes() -> None:
    driver = Watched(max_batch_tokens=8)
    driver.add([Request(1, prompt(3), lasting(6)), Request(2, prompt(4, 1), lasting(6))])
    driver.step()
    driver.add([Request(3, prompt(15, 2), GREEDY, priority=1)])
    assert driver.counts() == [1, 1, 6]
    assert driver.counts() == [6, 1, 1]


def test_a_prompt_longer_than_the_budget_runs_in_chunks_of_it() -> None:
    driver = Watched(max_batch_tokens=8)
    driver.add([Request(1, prompt(20), GREEDY), Request(2, prompt(6, 1), GREEDY)])
    assert [driver.counts() for _ in range(4)] == [[8], [8], [4, 4], [1, 2]]


def test_no_more_sequences_run_than_there_are_slots() -> None:
    driver = Watched(max_num_seqs=2)
    driver.add([Request(i + 1, prompt(3, i), lasting(2)) for i in range(5)])
    while driver.engine.has_work:
        assert len(driver.counts()) <= 2
    assert len(driver.run()) == 5


def test_priority_then_age_decides_who_starts() -> None:
    driver = Watched(max_num_seqs=1)
    driver.add(
        [
            Request(1, prompt(3), lasting(1), arrival=2.0),
            Request(2, prompt(3), lasting(1), arrival=1.0),
            Request(3, prompt(3), lasting(1), arrival=9.0, priority=1),
        ]
    )
    ended: list[int] = []
    while driver.engine.has_work:
        ended += [output.request_id for output in driver.step()]
    assert ended == [3, 2, 1]


def test_resumed_requests_go_ahead_of_new_ones() -> None:
    driver = Watched(max_num_seqs=1)
    driver.add(
        [
            Request(1, prompt(3), lasting(1), arrival=1.0, priority=5),
            Request(2, prompt(3), lasting(4), output_ids=[4, 5], attempt=1, arrival=2.0),
        ]
    )
    driver.step()
    assert driver.started() == {2}


def test_preempted_is_the_lowest_priority_then_the_youngest_and_it_resumes() -> None:
    driver = Watched(num_blocks=10, prefix_cache=False)
    requests = [
        Request(1, prompt(8), lasting(12), arrival=1.0),
        Request(2, prompt(8, 1), lasting(12), arrival=3.0),
        Request(3, prompt(8, 2), lasting(12), arrival=2.0, priority=-1),
    ]
    driver.add(requests)
    gone: list[set[int]] = []
    while driver.engine.has_work:
        before = driver.started()
        driver.step()
        ended = {i for i, got in driver.received.items() if got.reason}
        preempted = before - driver.started() - ended
        if preempted:
            gone.append(preempted)
    assert gone[0] == {3}
    assert {2} in gone
    assert {1} not in gone
    for request in requests:
        want = expected(request, driver.executor.model, 64)
        assert driver.received[request.request_id].tokens == want.tokens


def test_nobody_starts_in_the_step_that_preempts() -> None:
    driver = Watched(num_blocks=7, prefix_cache=False)
    driver.add([Request(1, prompt(8), lasting(6)), Request(2, prompt(16, 1), lasting(4))])
    driver.step()  # all 6 blocks are taken
    driver.add([Request(3, prompt(2, 2), lasting(2))])
    driver.step()
    assert driver.started() == {1}
    driver.step()
    assert driver.started() == {1, 3}
    driver.run()


def test_a_request_that_does_not_fit_is_overtaken_for_so_long_and_no_longer() -> None:
    driver = Watched(num_blocks=8, max_overtake=2.0, prefix_cache=False)
    driver.add([Request(1, prompt(9), lasting(8))])  # 3 blocks at first, 4 or 5 of 7 later
    driver.step()
    driver.add([Request(2, prompt(20, 1), lasting(4)), Request(3, prompt(2, 2), lasting(3))])
    driver.step()
    assert driver.started() == {1, 3}  # 5 blocks are not there; 1 is
    driver.clock.now += 2.0
    driver.add([Request(4, prompt(2, 3), lasting(3))])
    driver.step()
    assert 4 not in driver.started()
    driver.run()
    assert {got.reason for got in driver.received.values()} == {FinishReason.LENGTH}


def test_with_no_overtaking_the_queue_waits_in_order() -> None:
    driver = Watched(num_blocks=8, max_overtake=0.0, prefix_cache=False)
    driver.add([Request(1, prompt(12), lasting(4))])
    driver.step()
    driver.add([Request(2, prompt(20, 1), lasting(4)), Request(3, prompt(2, 2), lasting(2))])
    driver.step()
    assert driver.started() == {1}
    driver.run()


def test_a_second_request_waits_for_the_prefix_of_one_in_prefill_for_one_chunk() -> None:
    driver = Watched(max_batch_tokens=16, max_in_flight=2)
    driver.add([Request(1, prompt(24), GREEDY), Request(2, [*prompt(24), 3], GREEDY)])
    driver.step()
    driver.step()  # the budget has room for the second, whose prefix is on its way
    driver.step()
    assert driver.started() == {1}
    driver.step()
    assert driver.started() == {1, 2}
    driver.run()
    assert driver.received[2].cached_tokens == 24


def test_who_aborts_meanwhile_does_not_hold_up_those_who_wait_for_its_prefix() -> None:
    driver = Watched(max_batch_tokens=16, max_in_flight=2)
    driver.add([Request(1, prompt(24), GREEDY), Request(2, prompt(24), GREEDY)])
    driver.step()
    driver.engine.abort(1)
    received = driver.run()
    assert received[1].reason is FinishReason.ABORT
    assert received[2].tokens == expected(Request(2, prompt(24), GREEDY), ToyModel(), 64).tokens


def test_one_step_ahead_of_a_row_of_one_token_and_never_of_many() -> None:
    driver = Watched(max_in_flight=2)
    driver.add([Request(1, prompt(3), lasting(4))])
    assert driver.counts() == [3]
    assert driver.counts() == [1]  # follows a token that nobody knows yet
    assert len(driver.engine._flights) == 1
    driver.run()
    many = Watched(max_in_flight=2, tokens_per_step=3)
    many.add([Request(1, prompt(3), lasting(9))])
    assert many.counts() == [3]
    assert many.counts() == []  # its result first
    many.run()
    assert many.engine.stats().dropped_tokens == 0


def test_length_is_known_ahead_so_no_step_is_wasted_on_it() -> None:
    driver = Watched(max_in_flight=2)
    driver.add([Request(1, prompt(3), lasting(4))])
    driver.run()
    assert driver.engine.stats().steps == 4
    assert driver.engine.stats().dropped_tokens == 0
