"""Metrics of a router without processes: what counts as what, TGI's labels and buckets, bounds."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infercore.engine.request import FinishReason
from infercore.errors import GenerationFailed, RequestError
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.observability.metrics import Metrics
from memory_engine import INFO, MemoryEngine
from memory_router import Router
from promtext import family_of, faults, samples

HELLO = [260, 553]
BODY = {"inputs": "Once upon", "parameters": {"max_new_tokens": 2}}


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


def bounds(text: str, name: str, **labels: str) -> list[float]:
    """Of a histogram's buckets, without the last."""
    found = [
        float(sample.labels["le"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items()
    ]
    assert found[-1] == float("inf")
    return found[:-1]


@pytest.mark.parametrize(
    "name",
    [
        "tgi_request_duration",
        "tgi_request_queue_duration",
        "tgi_request_mean_time_per_token_duration",
        "tgi_batch_inference_duration",
        "tgi_batch_forward_duration",
    ],
)
def test_durations_have_tgis_buckets(name: str) -> None:
    text = Metrics(MemoryEngine()).render().decode()
    labels = {"method": "prefill"} if "batch" in name else {}
    assert bounds(text, name, **labels) == pytest.approx(
        [0.0001 * 1.5**n for n in range(1, 36)], rel=1e-5
    )


def test_token_counts_have_tgis_buckets() -> None:
    text = Metrics(MemoryEngine()).render().decode()
    for name, most in (
        ("tgi_request_input_length", INFO.max_input_len),
        ("tgi_request_generated_tokens", INFO.max_model_len),
        ("tgi_request_max_new_tokens", INFO.max_model_len),
    ):
        assert bounds(text, name) == pytest.approx([most * n / 100 for n in range(1, 101)])
    assert bounds(text, "tgi_batch_next_size") == list(range(1, INFO.max_num_seqs + 1))


async def test_a_success_is_told_in_every_family(texts: Any) -> None:
    router = Router(texts, MemoryEngine(script=HELLO), vllm_metrics=True)
    assert (await router.http.post("/generate", json=BODY)).status_code == 200
    found = router.metrics()
    for name in (
        *("infercore_time_to_first_token_seconds", "infercore_request_duration_seconds"),
        *("infercore_request_queue_seconds", "infercore_request_prefill_seconds"),
        *("infercore_request_decode_seconds", "infercore_request_inference_seconds"),
        *("infercore_request_time_per_output_token_seconds", "infercore_request_prompt_tokens"),
        *("tgi_request_duration", "tgi_request_validation_duration", "tgi_request_input_length"),
        *("tgi_request_queue_duration", "tgi_request_inference_duration"),
        *("tgi_request_skipped_tokens", "tgi_request_max_new_tokens"),
    ):
        assert found[f"{name}_count", ""] == 1, name
    assert found["infercore_request_generated_tokens_sum", ""] == 2
    own = found["infercore_request_duration_seconds_sum", ""]
    assert found["vllm:e2e_request_latency_seconds_sum", "0"] == own  # its first label: engine
    assert own == found["tgi_request_duration_sum", ""] > 0


@pytest.mark.parametrize(
    ("error", "told"),
    [(GenerationFailed("x"), "generation"), (None, "dropped")],
    ids=["the engine fails", "the client leaves"],
)
async def test_failures_have_tgis_words(texts: Any, error: RequestError | None, told: str) -> None:
    router = Router(texts, MemoryEngine())
    before = router.metrics()["tgi_request_failure", told]
    work = asyncio.create_task(router.http.post("/generate", json=BODY))
    await router.engine.arrived.wait()
    if error is None:
        work.cancel()
    else:
        router.engine.say(1, [], FinishReason.ERROR, error)
    await asyncio.wait({work})
    assert router.metrics()["tgi_request_failure", told] == before + 1
    assert router.metrics()["infercore_request_duration_seconds_count", ""] == 0


async def test_what_requests_say_makes_no_series(texts: Any) -> None:
    router = Router(texts, MemoryEngine(script=HELLO), vllm_metrics=True)
    for body in (BODY, {"inputs": "", "parameters": {"max_new_tokens": 0}}):
        await router.http.post("/generate", json=body)
    before = samples(router.state.metrics.render().decode()).keys()
    for number in range(200):
        odd = {"model": f"model {number}", "messages": [{"role": "user", "content": "Hi"}]}
        await router.http.post("/v1/chat/completions", json=odd)
        await router.http.post(f"/no/{number}", json={})
    headers = {"x-request-id": "one", "user-agent": "two"}
    await router.http.post("/generate", json=BODY, headers=headers)
    assert samples(router.state.metrics.render().decode()).keys() == before


def test_our_own_family_is_clean_before_any_traffic() -> None:
    text = Metrics(MemoryEngine()).render().decode()
    own = family_of(text, "infercore_")
    assert faults(own) == []
    assert own.count("# HELP") == own.count("# TYPE") > 25


def test_vllms_names_are_there_only_if_asked_for() -> None:
    assert b"vllm" not in Metrics(MemoryEngine()).render()
    assert b'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0' in (
        Metrics(MemoryEngine(), "m").render()
    )
