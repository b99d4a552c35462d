"""Random traffic: whatever happens around it, a request gets what it would get alone."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_traffic import Driver, Received, make_engine, prompt
from faults import Fault
from infercore.capabilities import Dimension, StaticDimension
from infercore.engine.kv_budget import blocks_per_sequence
from infercore.engine.request import FinishReason, Request
from infercore.sampling import SamplingParams
from infercore.watermark import Watermark
from numpy_executor import NumpyExecutor
from toy_model import NoRepeat, ToyModel, expected

LONGEST = 32
TRAFFIC = settings(max_examples=80, deadline=None, derandomize=True)
FAILURES = settings(max_examples=40, deadline=None, derandomize=True)


@dataclass
class Visit:
    """A request that comes before step `arrives`; `leaves`: steps until it is aborted, if it is."""

    request: Request
    arrives: int
    leaves: int | None = None


@dataclass
class Traffic:
    """One run: the machine, its limits, and who comes when."""

    model: ToyModel
    machine: dict[str, Any]
    limits: dict[str, Any]
    visits: list[Visit] = field(default_factory=list)


SAMPLING: dict[str, list[Any]] = {
    "temperature": [0.0, 0.7, 1.5],
    "top_k": [0, 5],
    "top_p": [1.0, 0.8],
    "repetition_penalty": [1.0, 1.3],
    "frequency_penalty": [0.0, 0.5],
    "logit_bias": [{}, {}, {1: 4.0}, {7: 3.0, 9: -100.0}],
    "max_tokens": [1, 4, 9, 9, 9],
    "min_tokens": [0, 1, 3],
    "stop_token_ids": [(), (), (), (5, 7, 11, 13)],
    "ignore_eos": [False, True, True],
    "logprobs": [None, 0, 2],
    "prompt_logprobs": [None, None, None, 0, 3],
    "watermark": [None, None, None, Watermark(5, 0.25, 6.0)],
}
STATIC = [
    *[()] * 3,
    tuple(StaticDimension(dimension) for dimension in Dimension),
    tuple(StaticDimension(each, n) for each, n in zip(Dimension, (8, 4, 2), strict=True)),
    (StaticDimension(Dimension.TOKENS, 4, maximum=12),),
    (StaticDimension(Dimension.ROWS, 2), StaticDimension(Dimension.BLOCKS, 4)),
]
CONSTRAINTS = [*[None] * 7, NoRepeat(), NoRepeat(), NoRepeat(fails_at=2), NoRepeat(stuck_at=1)]


def visit_of(dice: Random, request_id: int) -> Visit:
    """A prompt shares its beginning with others of the same `start`."""
    pick = dice.choice
    start, length = pick([0, 0, 1]), pick([1, dice.randint(2, 8), *[dice.randint(9, 22)] * 3])
    shared = pick([0, length // 2, length])
    ids = prompt(shared, start) + prompt(length - shared, 10 + request_id)
    constraint = pick(CONSTRAINTS)
    resumed = pick([0, 0, 0, 1, 3]) if constraint is None else 0
    chosen = {name: pick(options) for name, options in SAMPLING.items()}
    request = Request(
        request_id,
        ids,
        SamplingParams(seed=request_id, **chosen),
        output_ids=prompt(resumed, 3),
        attempt=int(resumed > 0),
        priority=pick([-1, 0, 0, 1]),
        cache_salt=pick([b"", b"", b"", b"tenant"]),
        arrival=pick([0.0, 1.0, 2.0]),
        constraint=constraint,
    )
    return Visit(request, pick([0, 0, 0, 1, 2, 6]), pick([None] * 7 + [0, 1, 2, 5]))


def traffic_of(seed: int, count: int) -> Traffic:
    """Traffic of `count` requests. By dice: Hypothesis's own draws are too alike to meet often."""
    dice = Random(seed)
    pick = dice.choice
    model = ToyModel(pick([(None,), (None,), (None, 5), (3,), (7, None)]))
    machine: dict[str, Any] = {
        "block_size": pick([1, 2, 4]),
        "max_in_flight": pick([2, 2, 2, 1]),
        "tokens_per_step": pick([1, 1, 3]),
        "late_inputs": pick([True, False]),
        "static": pick(STATIC),
    }
    budget = pick([1, 3, 8, 32, 32, 32])
    need = max(
        blocks_per_sequence(group, LONGEST, budget) for group in model.groups(machine["block_size"])
    )
    limits = {
        "num_blocks": 1 + need + pick([0, 0, 0, 1, 3, 40]),
        "max_model_len": LONGEST,
        "max_num_seqs": pick([1, 3, 5, 5]),
        "max_batch_tokens": budget,
        "prefix_cache": pick([True, True, False]),
        "step_ahead": pick([True, True, True, False]),
        "max_overtake": pick([0.0, 2.0]),
        "warm": pick([None, None, 1, 3]),
    }
    return Traffic(model, machine, limits, [visit_of(dice, i + 1) for i in range(count)])


def traffics() -> st.SearchStrategy[Traffic]:
    """Shrinks by leaving out the last requests."""
    return st.builds(traffic_of, st.integers(0, 2**32 - 1), st.integers(2, 9))


def run(traffic: Traffic, *faults: Fault) -> tuple[Driver, dict[int, Received]]:
    """Play the traffic to its end."""
    executor = NumpyExecutor(traffic.model, faults=faults, **traffic.machine)
    driver = Driver(make_engine(executor, **traffic.limits))
    for number in range(24):
        for visit in traffic.visits:
            if visit.arrives == number:
                driver.engine.add(visit.request)
            if visit.leaves is not None and visit.arrives + visit.leaves == number:
                driver.engine.abort(visit.request.request_id)
        preemptions = driver.engine.stats().preemptions
        outputs = driver.step()
        if not faults and driver.engine.stats().preemptions > preemptions:
            left = driver.engine.stats().running or any(each.finish_reason for each in outputs)
            assert left, "the last running sequence was preempted"
    return driver, driver.run()


def assert_as_alone(visit: Visit, got: Received, model: ToyModel) -> None:
    """All of the answer, or its beginning if the request was aborted on the way."""
    want = expected(visit.request, model, LONGEST)
    if got.reason is FinishReason.ABORT:
        assert visit.leaves is not None
        assert got.tokens == want.tokens[: len(got.tokens)]
        return
    assert (got.tokens, got.reason) == (want.tokens, want.reason)
    sampling = visit.request.sampling
    if sampling.logprobs is not None:
        assert got.logprobs == want.logprobs
    if want.tokens and not visit.request.output_ids:
        assert got.prompt_logprobs == want.prompt_logprobs


@TRAFFIC
@given(traffics())
def test_everyone_gets_what_they_would_get_alone(traffic: Traffic) -> None:
    driver, received = run(traffic)
    assert received.keys() == {visit.request.request_id for visit in traffic.visits}
    for visit in traffic.visits:
        assert_as_alone(visit, received[visit.request.request_id], traffic.model)
    stats = driver.engine.stats()
    assert stats.generated_tokens == sum(len(got.tokens) for got in received.values())
    assert stats.failed_steps == 0


@st.composite
def failures(draw: st.DrawFn) -> tuple[Traffic, list[Fault]]:
    """Traffic in which some requests fail every step that they reach a position in."""
    traffic = draw(traffics())
    faults = []
    for visit in draw(st.lists(st.sampled_from(traffic.visits), max_size=3, unique_by=id)):
        request, nan, named = visit.request, draw(st.booleans()), draw(st.booleans())
        known = len(request.prompt_ids) + len(request.output_ids)
        faults.append(
            Fault(
                seed=request.request_id,
                position=draw(st.integers(0, known + 2)),
                nan=nan,
                named=named,
                at_submit=draw(st.booleans()) and not nan,
                retryable=draw(st.booleans()),
                kv_intact=draw(st.booleans()),
            )
        )
    return traffic, faults


def must_fail(visit: Visit, fault: Fault, traffic: Traffic) -> bool | None:
    """None: it may. The last token is not computed, unless a step ahead does it for nothing."""
    known = len(visit.request.prompt_ids) + len(visit.request.output_ids)
    want = expected(visit.request, traffic.model, LONGEST)
    tokens = len(want.tokens)
    if not tokens and want.reason is FinishReason.LENGTH:
        return False  # resumed at its end: it never runs
    if known > fault.position:
        return True
    if traffic.machine["tokens_per_step"] > 1:  # a fault sees where a row begins only
        return None if known + tokens > fault.position else False
    return known + tokens - 1 > fault.position


@FAILURES
@given(failures())
def test_who_fails_ends_alone(given: tuple[Traffic, list[Fault]]) -> None:
    traffic, faults = given
    _, received = run(traffic, *faults)
    by_seed = {fault.seed: fault for fault in faults}
    for visit in traffic.visits:
        got, fault = received[visit.request.request_id], by_seed.get(visit.request.request_id)
        fails = fault is not None and must_fail(visit, fault, traffic)
        if fails is None:
            fails = got.reason is FinishReason.ERROR
        if not fails:
            assert_as_alone(visit, got, traffic.model)
            continue
        want = expected(visit.request, traffic.model, LONGEST)
        assert got.reason in (FinishReason.ERROR, FinishReason.ABORT)
        assert got.tokens == want.tokens[: len(got.tokens)]


@FAILURES
@given(traffics(), st.integers(0, 30), st.booleans(), st.booleans())
def test_a_failure_that_passes_ends_nobody(
    traffic: Traffic, step: int, at_submit: bool, kv_intact: bool
) -> None:
    """The planted step may have one row only: who failed alone once is tried again."""
    fault = Fault(step=step, at_submit=at_submit, kv_intact=kv_intact)
    driver, received = run(traffic, fault)
    for visit in traffic.visits:
        assert_as_alone(visit, received[visit.request.request_id], traffic.model)
    assert driver.engine.stats().failed_steps <= 1
