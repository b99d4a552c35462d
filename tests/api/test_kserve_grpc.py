"""KServe's Open Inference Protocol over gRPC, and Triton's own client against it and REST."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_calls import inference, serving_grpc
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.grpc import open_inference_pb2 as oip
from infercore_api.router.kserve_infer import join_elements, split_elements
from memory_engine import MemoryEngine
from memory_router import Router
from processes import free_port, serving

SAID = [260, 553]  # " a", " time"
STORY = "Once upon a time"


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


@pytest.fixture
def router(texts: Any) -> Router:
    """Answers " a time" to everything."""
    return Router(texts, MemoryEngine(SAID))


# --- gRPC -----------------------------------------------------------------------------------------


def asked(*contents: bytes, raw: bool = False, **changes: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="infercore/demo", **changes)
    given = request.inputs.add(name="text_input", datatype="BYTES", shape=[len(contents)])
    if raw:
        request.raw_input_contents.append(join_elements([each.decode() for each in contents]))
    else:
        given.contents.bytes_contents.extend(contents)
    return request


@pytest.mark.parametrize("raw", [False, True])
async def test_infer_over_grpc(router: Router, raw: bool) -> None:
    async with serving_grpc(router.state) as channel:
        reply = await inference(channel).ModelInfer(asked(b"a", "ü".encode(), raw=raw, id="7"))
        assert (reply.id, reply.model_name, reply.model_version) == ("7", "infercore/demo", "1")
        (output,) = reply.outputs
        assert (output.name, output.datatype, list(output.shape)) == ("text_output", "BYTES", [2])
        if raw:
            said = split_elements("", reply.raw_output_contents[0])
        else:
            said = list(output.contents.bytes_contents)
        assert said == [b" a time"] * 2
        ready = await inference(channel).ModelReady(oip.ModelReadyRequest(name="tgi", version="1"))
        assert ready.ready


def _parameter(**value: Any) -> oip.ModelInferRequest:
    request = asked(b"a")
    for name, each in value.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        setattr(request.parameters[name], kind[type(each)], each)
    return request


def _changed(**fields: Any) -> oip.ModelInferRequest:
    request = asked(b"a")
    for name, value in fields.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], name, value)
    return request


def _more(name: str, *values: Any) -> oip.ModelInferRequest:
    request = asked(b"a")
    getattr(request, name).extend(values)
    return request


BAD_GRPC = (
    (asked(b"\xff"), "no UTF-8 text"),
    (asked(), "`inputs` hold 0 texts"),
    (asked(*[b"a"] * 5), "`inputs` hold 5 texts"),
    (_changed(datatype="FP32"), "`inputs.0.datatype` must be BYTES"),
    (_changed(shape=[3]), "`inputs.0.shape` [3] is of 3 elements. Given: 1"),
    (_changed(shape=[-1]), "`inputs.0.shape`"),
    (_more("raw_input_contents", b"", b""), "one entry per input"),
    (_more("raw_input_contents", b"\x01\x00\x00\x00a"), "both `contents` and raw contents"),
    (_parameter(top_p=2.0), "`top_p` must be > 0.0 and < 1.0"),
    (_parameter(temperature="hot"), "`parameters.temperature`"),
    (_parameter(priority=1), "`parameters.priority`: This field is not known here"),
    (_parameter(top_n_tokens=1), "a tensor cannot show it"),
    (oip.ModelInferRequest(model_name="infercore/demo"), "`inputs` hold 0 texts"),
)


@pytest.mark.parametrize(("request_", "text"), BAD_GRPC, ids=range(len(BAD_GRPC)))
async def test_what_is_wrong_is_said_over_grpc_too(
    router: Router, request_: Any, text: str
) -> None:
    async with serving_grpc(router.state) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference(channel).ModelInfer(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in str(caught.value.details())
        stream = inference(channel).ModelStreamInfer(iter([request_, asked(b"a", id="next")]))
        replies = [reply async for reply in stream]
        assert text in replies[0].error_message
        assert [reply.infer_response.id for reply in replies[1:]] == ["next", "next"]


async def test_a_stream_answers_one_request_after_the_other(router: Router) -> None:
    requests = [asked(b"a", id="1", raw=True), asked(b"b", id="2")]
    async with serving_grpc(router.state) as channel:
        stream = inference(channel).ModelStreamInfer(iter(requests))
        replies = [reply.infer_response async for reply in stream]
        several = inference(channel).ModelStreamInfer(iter([asked(b"a", b"b")]))
        assert "a stream takes one" in (await several.read()).error_message
    assert [reply.id for reply in replies] == ["1", "1", "2", "2"]
    final = [reply.parameters["triton_final_response"].bool_param for reply in replies]
    assert final == [False, True, False, True]
    assert split_elements("", replies[1].raw_output_contents[0]) == [b" time"]
    assert replies[3].outputs[0].contents.bytes_contents[0] == b" time"
    assert router.metrics()["infercore_requests_total", "success"] == 2


async def test_leaving_a_stream_ends_its_request(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    async with serving_grpc(router.state) as channel:
        stream = inference(channel).ModelStreamInfer(iter([asked(b"a"), asked(b"b")]))
        reading = asyncio.ensure_future(stream.read())
        await router.engine.arrived.wait()
        router.engine.say(1, [260])
        await reading
        stream.cancel()
        for _ in range(1000):
            if router.engine.aborted:
                break
            await asyncio.sleep(0.01)
        assert router.engine.aborted == [1]
        assert list(router.engine.requests) == [1]


# --- Triton's client, and a real server -----------------------------------------------------------


def triton_python() -> str:
    """A Python that has tritonclient: this one, or the one that the variable names."""
    python = os.environ.get("INFERCORE_TRITON_PYTHON", sys.executable)
    code = "import tritonclient.grpc, tritonclient.http"
    if subprocess.run([python, "-c", code], capture_output=True, check=False).returncode:
        pytest.skip("tritonclient is not installed here; see INFERCORE_TRITON_PYTHON")
    return python


def test_tritons_client_gets_what_generate_gives(tmp_path_factory: pytest.TempPathFactory) -> None:
    python, port = triton_python(), free_port()
    script = Path(__file__).parents[1] / "support" / "triton_calls.py"
    flags = ("--dtype", "float32", "--max-total-tokens", "512", "--grpc-port", str(port))
    with serving(tmp_path_factory.mktemp("kserve"), *flags) as server:
        body = {"inputs": STORY, "parameters": {"max_new_tokens": 12, "details": True}}
        said = server.post("/generate", body)
        ended = subprocess.run(
            [python, str(script), f"127.0.0.1:{server.port}", f"127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        got = json.loads(ended.stdout)
    text, tokens = said["generated_text"], said["details"]["tokens"]
    for kind in got.values():
        assert all(kind[name] for name in ("live", "ready", "model_ready", "version_ready"))
        facts = [kind[name] for name in ("server", "model", "version")]
        assert facts == ["infercore", ["1"], "text_input"]
        assert kind["text"] == [text]
        assert len(kind["refusals"]) == 4
    over_http, over_grpc = got["http"], got["grpc"]
    assert over_http["as_json"] == [text]
    assert over_http["two"][0] == text
    assert [status for status, _ in over_http["refusals"]] == ["404", "404", "422", "422"]
    assert [status for status, _ in over_grpc["refusals"]] == [
        *["StatusCode.NOT_FOUND"] * 2, *["StatusCode.INVALID_ARGUMENT"] * 2]  # fmt: skip
    assert over_grpc["tokens"] == [token["text"] for token in tokens]
    assert over_grpc["finals"] == [False] * 11 + [True]
    assert "`top_p`" in over_grpc["stream_error"]
