"""What router and engine say to each other survives the wire, under the dataclasses' names."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_traffic import INFO
from infercore import errors
from infercore.engine import codec
from infercore.engine import engine_pb2 as pb
from infercore.engine.info import EngineInfo
from infercore.engine.request import EngineStats, FinishReason, Output, Request, TokenLogprobs
from infercore.errors import InvalidRequest, Overloaded, RequestError
from infercore.sampling import MAX_SEED, SamplingParams
from infercore.watermark import Watermark

WIRE = settings(max_examples=80, deadline=None, derandomize=True)

COUNTS = st.integers(0, 2**31 - 1)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LOGPROB = st.floats(max_value=0, width=32, allow_nan=False)


@st.composite
def token_logprobs(draw: st.DrawFn) -> TokenLogprobs:
    top = draw(st.lists(st.tuples(COUNTS, LOGPROB), max_size=3))
    return TokenLogprobs(draw(LOGPROB), tuple(i for i, _ in top), tuple(p for _, p in top))


SAMPLING = st.builds(
    SamplingParams,
    temperature=st.floats(0, 1e6),
    top_k=st.integers(-1, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    typical_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0, 1e6, exclude_min=True),
    frequency_penalty=st.floats(-2, 2),
    presence_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(COUNTS, st.floats(-1e9, 1e9) | st.just(-float("inf")), max_size=3),
    seed=st.none() | st.integers(0, MAX_SEED),
    max_tokens=st.none() | st.integers(1, 2**31 - 1),
    min_tokens=COUNTS,
    stop_token_ids=TOKENS.map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | COUNTS,
    prompt_logprobs=st.none() | COUNTS,
    watermark=st.none()
    | st.builds(
        Watermark, st.integers(0, MAX_SEED), st.floats(0.001, 0.999), st.floats(0.001, 100)
    ),
)
REQUESTS = st.builds(
    Request,
    request_id=st.integers(0, 2**40 - 1),
    prompt_ids=TOKENS,
    sampling=SAMPLING,
    output_ids=TOKENS,
    attempt=st.integers(0, 9),
    priority=st.integers(-(2**31), 2**31),
    cache_salt=st.binary(max_size=40),
    arrival=st.floats(0, 1e9),
)
ERRORS = st.one_of(
    st.builds(InvalidRequest, st.text(), st.none() | st.text()),
    st.builds(Overloaded, st.text(), st.floats(0, 1e6)),
    st.sampled_from([errors.GenerationFailed, errors.EngineUnavailable, RequestError]).flatmap(
        lambda kind: st.builds(kind, st.text())
    ),
)


@st.composite
def outputs(draw: st.DrawFn) -> Output:
    tokens = draw(TOKENS)
    output = Output(draw(st.integers(0, 2**40 - 1)), tokens)
    output.finish_reason = draw(st.none() | st.sampled_from(FinishReason))
    if output.finish_reason is FinishReason.ERROR:
        output.error = draw(ERRORS)
    if draw(st.booleans()) and tokens:
        output.logprobs = [draw(token_logprobs()) for _ in tokens]
    if draw(st.booleans()):
        output.cached_tokens, output.queue_seconds = draw(COUNTS), draw(st.floats(0, 1e6))
    if draw(st.booleans()):
        output.prompt_logprobs = [None, *draw(st.lists(token_logprobs(), max_size=3))]
    return output


def whole(token: codec.PlainToken) -> Output:
    request_id, token_id, logprob = token
    logprobs = None if logprob is None else [TokenLogprobs(logprob)]
    return Output(request_id, [token_id], logprobs)


def told(error: RequestError | None) -> tuple[Any, ...]:
    return (type(error), str(error), vars(error) if error is not None else None)


@WIRE
@given(REQUESTS)
def test_a_request_comes_back_whole(request: Request) -> None:
    message = pb.ToEngine.FromString(codec.encode_submit(request))
    assert codec.decode_submit(message.submit) == request


@WIRE
@given(st.lists(outputs(), max_size=4, unique_by=lambda output: output.request_id))
def test_outputs_come_back_whole(sent: list[Output]) -> None:
    message = pb.ToRouter.FromString(codec.encode_outputs(sent))
    assert message.WhichOneof("body") == "outputs"
    plain, others = codec.decode_outputs(message.outputs)
    by_id = {output.request_id: output for output in (*map(whole, plain), *others)}
    got = [by_id[each.request_id] for each in sent]
    assert [told(each.error) for each in got] == [told(each.error) for each in sent]
    for each in (*got, *sent):
        each.error = None  # exceptions are equal only to themselves
    assert got == sent


@WIRE
@given(
    st.builds(
        EngineStats,
        **{
            field.name: TOKENS.map(tuple) if field.default == () else COUNTS
            for field in fields(EngineStats)
        },
    ),
    FLOATS,
)
def test_counters_come_back_whole(stats: EngineStats, seconds: float) -> None:
    stats.own_seconds, stats.wait_seconds = seconds, float(stats.steps)
    stats.step_seconds = (seconds, float(stats.steps))
    message = pb.ToRouter.FromString(codec.encode_heartbeat(stats))
    assert codec.decode_stats(message.heartbeat) == stats


def test_facts_progress_and_aborts_come_back_whole() -> None:
    hello = pb.ToRouter.FromString(codec.encode_info(INFO))
    assert codec.decode_info(hello.hello) == INFO
    progress = pb.ToRouter.FromString(codec.encode_progress("load", 3, 9)).progress
    assert (progress.phase, progress.done, progress.total) == ("load", 3, 9)
    abort = pb.ToEngine.FromString(codec.encode_abort(0))
    assert (abort.WhichOneof("body"), abort.abort) == ("abort", 0)


def test_sampling_parameters_are_checked_on_arrival() -> None:
    message = pb.Submit(request_id=1, prompt_ids=[3])
    message.sampling.top_p = 1.5
    with pytest.raises(InvalidRequest, match=r"top_p must be in"):
        codec.decode_submit(message)


@pytest.mark.parametrize(
    ("message", "kind", "elsewhere"),
    [
        (pb.SamplingParams, SamplingParams, {"stop"}),  # texts end where text is made
        (pb.EngineInfo, EngineInfo, set()),
        (pb.EngineStats, EngineStats, set()),
        (pb.Submit, Request, {"constraint"}),  # made beside the engine
    ],
)
def test_fields_have_the_names_of_the_dataclass(
    message: Any, kind: Any, elsewhere: set[str]
) -> None:
    named = {descriptor.name for descriptor in message.DESCRIPTOR.fields}
    assert named == {field.name for field in fields(kind)} - elsewhere


def test_every_reason_has_a_number() -> None:
    numbers = {each.name for each in pb.FinishReason.DESCRIPTOR.values}
    assert numbers == {"NONE", *(reason.name for reason in FinishReason)}


def test_the_generated_files_are_those_of_the_protocol(tmp_path: Path) -> None:
    """Else: run `python core/generate_protocol.py`."""
    import runpy

    script = runpy.run_path(str(Path(__file__).parents[2] / "core" / "generate_protocol.py"))
    script["generate"](tmp_path)
    folder = Path(pb.__file__).parent
    for name in ("engine_pb2.py", "engine_pb2.pyi"):
        made = (tmp_path / "infercore" / "engine" / name).read_text()
        assert made == (folder / name).read_text(), f"{name} is not what engine.proto says"
