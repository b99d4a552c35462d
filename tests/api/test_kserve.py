"""KServe's Open Inference Protocol, over REST."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.engine_client import EnginePhase
from infercore_api.router.kserve_infer import join_elements, split_elements
from memory_engine import MemoryEngine
from memory_router import Router
from pages import page

SAID = [260, 553]  # " a", " time"
MODEL = "/v2/models/infercore/demo"
PATHS = (MODEL, f"{MODEL}/versions/1", "/v2/models/tgi")


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


@pytest.fixture
def router(texts: Any) -> Router:
    """Answers " a time" to everything."""
    return Router(texts, MemoryEngine(SAID))


def tensor(*texts: Any, **changes: Any) -> dict[str, Any]:
    fields = {"name": "text_input", "shape": [len(texts)], "datatype": "BYTES", "data": [*texts]}
    return {**fields, **changes}


async def inferred(router: Router, body: Any, path: str = MODEL) -> Any:
    response = await router.http.post(f"{path}/infer", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def refusal(router: Router, body: Any, status: int = 422) -> str:
    response = await router.http.post(f"{MODEL}/infer", json=body)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error", "error_type"}
    return str(response.json()["error"])


# --- REST -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_paths_with_and_without_a_version_answer(router: Router, path: str) -> None:
    reply = await inferred(router, {"id": "7", "inputs": [tensor("a")]}, path)
    assert reply == {
        "id": "7",
        "model_name": "tgi" if path.endswith("tgi") else "infercore/demo",
        "model_version": "1",
        "outputs": [tensor(" a time", name="text_output")],
    }
    facts = (await router.http.get(path)).json()
    assert facts["versions"] == ["1"]
    assert facts["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]
    ready = await router.http.get(f"{path}/ready")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


async def test_the_pages_example_is_answered(router: Router) -> None:
    text = page("reference/kserve.md")
    path, body = re.findall(r"curl http://127.0.0.1:3000(\S+) .*?-d '(.*?)'", text, re.DOTALL)[0]
    response = await router.http.post(path, json=json.loads(body))
    assert response.json()["outputs"][0]["data"] == [" a time"]


async def test_the_server_says_what_it_is_and_how_it_is(router: Router) -> None:
    server = (await router.http.get("/v2")).json()
    assert server["name"] == "infercore"
    assert server["extensions"] == ["binary_tensor_data", "generate"]
    router.engine.phase = EnginePhase.LOADING
    for path in ("/v2/health/ready", f"{MODEL}/ready"):
        answer = await router.http.get(path)
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert answer.json()["phase"] == "loading"
    live = await router.http.get("/v2/health/live")
    assert (live.status_code, live.json()) == (200, {"live": True})


async def test_several_texts_and_several_inputs(router: Router) -> None:
    nested = tensor(["a"], ["b"], shape=[2, 1])
    body = {"inputs": [nested, tensor("c", name="x")], "outputs": [{"name": "p"}, {"name": "q"}]}
    first, second = (await inferred(router, body))["outputs"]
    assert (first["name"], first["shape"], first["data"]) == ("p", [2, 1], [" a time"] * 2)
    assert (second["name"], second["data"]) == ("q", [" a time"])


async def test_the_bytes_of_a_text_are_answered_by_bytes_as_tgi_does(router: Router) -> None:
    body = {"inputs": [tensor(*b"Once", shape=[1, 4], name="in")], "outputs": [{"name": "out"}]}
    (output,) = (await inferred(router, body))["outputs"]
    assert (output["name"], output["shape"]) == ("out", [1, 7])
    assert bytes(output["data"]) == b" a time"


async def test_parameters_are_those_of_generate(router: Router) -> None:
    parameters = {"details": True, "return_full_text": True, "stop": "x", "max_new_tokens": 9,
                  "best_of": 2, "temperature": 0.5}  # fmt: skip
    reply = await inferred(router, {"inputs": [tensor("a")], "parameters": parameters})
    (output,) = reply["outputs"]
    assert output["data"] == ["a a time"]
    assert output["parameters"].keys() == {
        "finish_reason", "generated_tokens", "input_length", "seed"}  # fmt: skip
    sampling = next(iter(router.engine.requests.values())).sampling
    assert (sampling.stop, sampling.max_tokens, sampling.temperature) == (("x",), 9, 0.5)
    await inferred(router, {"inputs": [tensor("a")]})
    assert list(router.engine.requests.values())[-1].sampling.temperature == 0


async def test_binary_tensors(router: Router) -> None:
    data = join_elements(["a", "ü"])
    given = tensor(shape=[2], parameters={"binary_data_size": len(data)})
    del given["data"]
    binary = {"name": "o", "parameters": {"binary_data": True}}
    for parameters, outputs in (({"binary_data_output": True}, []), ({}, [binary])):
        head = json.dumps(
            {"inputs": [given], "parameters": parameters, "outputs": outputs}
        ).encode()
        response = await router.http.post(
            f"{MODEL}/infer",
            content=head + data,
            headers={"inference-header-content-length": str(len(head))},
        )
        assert response.status_code == 200, response.text
        length = int(response.headers["inference-header-content-length"])
        (output,) = json.loads(response.content[:length])["outputs"]
        assert "data" not in output
        tail = response.content[length:]
        assert len(tail) == output["parameters"]["binary_data_size"]
        assert split_elements("outputs.0", tail) == [b" a time"] * 2


BAD: tuple[tuple[Any, str], ...] = (
    ({"inputs": []}, "`inputs`"),
    ({}, "`inputs`: Field required"),
    ({"inputs": [tensor("a", datatype="INT32")]}, "`inputs.0.datatype` must be BYTES"),
    ({"inputs": [tensor("a", shape=[2])]}, "`inputs.0.shape` [2] is of 2 elements. Given: 1"),
    ({"inputs": [tensor("a", shape=[-1])]}, "`inputs.0.shape`"),
    ({"inputs": [tensor("a", shape=[1] * 9)]}, "`inputs.0.shape`"),
    ({"inputs": [tensor("a", shape=["1"])]}, "`inputs.0.shape.0`"),
    ({"inputs": [tensor("a", shape=[2**63] * 8)]}, "`inputs.0.shape`"),
    ({"inputs": [tensor("a", data=None)]}, "needs either `data` or `binary_data_size`"),
    ({"inputs": [tensor("a", data=[1.5])]}, "must be texts"),
    ({"inputs": [tensor("a", data=[True])]}, "must be texts"),
    ({"inputs": [tensor("a", data=[256])]}, "must be texts"),
    ({"inputs": [tensor("a", data=[255])]}, "no UTF-8 text"),
    ({"inputs": [tensor("a", data=[{"a": 1}])]}, "must be texts"),
    ({"inputs": [tensor("a", parameters={"binary_data_size": 5})]}, "the body ends before"),
    ({"inputs": [tensor("a", parameters={"binary_data_size": -1})]}, "binary_data_size"),
    ({"inputs": [tensor("a", parameters={"shared_memory_region": "x"})]}, "not known here"),
    ({"inputs": [{"name": "x"}]}, "Field required"),
    ({"inputs": [tensor(*"abcde")]}, "`inputs` hold 5 texts, and from 1 to 4 are taken"),
    ({"inputs": [tensor(shape=[0])]}, "`inputs` hold 0 texts"),
    ({"inputs": [tensor("")]}, "`inputs` cannot be empty"),
    ({"inputs": [tensor("a"), tensor("b")]}, "`outputs` must name an output for each of 2 inputs"),
    ({"inputs": [tensor("a")], "outputs": [{"name": "x"}] * 2}, "`outputs` must name one output"),
    ({"inputs": [tensor("a")], "parameters": {"sequence_id": 7}}, "`parameters.sequence_id`"),
    ({"inputs": [tensor("a")], "parameters": {"top_n_tokens": 1}}, "a tensor cannot show it"),
    ({"inputs": [tensor("a")], "parameters": {"decoder_input_details": True}}, "cannot show it"),
    ({"inputs": [tensor("a")], "parameters": {"temperature": 0.0}}, "must be strictly positive"),
    ({"inputs": [tensor("a")], "parameters": {"max_new_tokens": 10**6}}, "must be <= 512"),
    ({"inputs": [tensor("a", "b")], "parameters": {"details": True}}, "inputs of one text each"),
    ({"inputs": [tensor("a")], "parameters": [1]}, "`parameters`"),
)  # fmt: skip


@pytest.mark.parametrize(("body", "text"), BAD, ids=range(len(BAD)))
async def test_what_is_wrong_with_a_request_is_said(router: Router, body: Any, text: str) -> None:
    assert text in await refusal(router, body)
    assert not router.engine.requests
    assert router.metrics()["infercore_requests_in_flight", ""] == 0


async def test_bodies_that_are_no_request(router: Router) -> None:
    for content, headers, status in (
        (b"{", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"\xff", {}, 400),
        (b"[]", {}, 422),
        (b"{}", {"inference-header-content-length": "3"}, 400),
        (b"{}", {"inference-header-content-length": "-1"}, 400),
        (b"{}", {"inference-header-content-length": "x"}, 400),
        (b"{}", {"content-encoding": "gzip"}, 415),
        (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b" " * 2_000_001, {}, 413),
    ):
        response = await router.http.post(f"{MODEL}/infer", content=content, headers=headers)
        assert response.status_code == status, response.text
        assert response.json().keys() == {"error", "error_type"}
    body = json.dumps({"inputs": [tensor("a")]}).encode()
    for rest in (b"x", b"\x05\x00\x00\x00abc"):
        response = await router.http.post(
            f"{MODEL}/infer",
            content=body + rest,
            headers={"inference-header-content-length": str(len(body))},
        )
        assert "belong to no input" in response.json()["error"]


async def test_other_models_and_versions_are_not_found(router: Router) -> None:
    for path in ("/v2/models/nothing", f"{MODEL}/versions/2", "/v2/models/a/b/versions/1"):
        for answer in (
            await router.http.get(path),
            await router.http.get(f"{path}/ready"),
            await router.http.post(f"{path}/infer", json={"inputs": [tensor("a")]}),
            await router.http.post(f"{path}/generate", json={"text_input": "a"}),
            await router.http.post(f"{path}/generate_stream", json={"text_input": "a"}),
        ):
            assert answer.status_code == 404, answer.text
            assert "error" in answer.json()


# --- the extension for text generation ------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_generate_as_the_extension_has_it(router: Router, path: str) -> None:
    body = {"text_input": "a", "parameters": {"max_tokens": 5, "details": True}}
    reply = (await router.http.post(f"{path}/generate", json=body)).json()
    assert (reply["text_output"], reply["details"]["finish_reason"]) == (" a time", "length")
    assert [token["id"] for token in reply["details"]["logprobs"]] == SAID
    streamed = await router.http.post(f"{path}/generate_stream", json=body)
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line]
    assert [event["text_output"] for event in events] == [" a", " time"]
    assert events[-1]["details"]["finish_reason"] == "length"
    assert next(iter(router.engine.requests.values())).sampling.max_tokens == 5
    both = {"text_input": "a", "parameters": {"max_tokens": 0}}
    refused = await router.http.post(f"{path}/generate", json=both)
    assert refused.status_code == 422
    unknown = {"text_input": "a", "sequence_id": 1}
    refused = await router.http.post(f"{path}/generate", json=unknown)
    assert "`sequence_id`" in refused.json()["error"]
