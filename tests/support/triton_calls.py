"""`python triton_calls.py HTTP-ADDRESS GRPC-ADDRESS`: what Triton's own client gets, as JSON.

A program of its own: the client wants another protobuf than the server, and its messages have the
names of ours, which one process cannot hold twice.
"""

import json
import queue
import sys
from importlib import import_module
from typing import Any

import numpy as np

# by name, since checks of types run where the client is not installed
over_grpc = import_module("tritonclient.grpc")
over_http = import_module("tritonclient.http")
InferenceServerException = import_module("tritonclient.utils").InferenceServerException

MODEL, STORY = "infercore/demo", "Once upon a time"
PARAMETERS = {"max_new_tokens": 12}


def text_input(kind: Any, texts: list[str], **options: Any) -> Any:
    tensor = kind.InferInput("text_input", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], object), **options)
    return tensor


def texts_of(result: Any, name: str = "text_output") -> list[str]:
    """From binary data the client makes bytes, from JSON texts."""
    found = result.as_numpy(name).tolist()
    return [text if isinstance(text, str) else text.decode() for text in found]


def facts(client: Any, **options: Any) -> dict[str, Any]:
    """What both clients are asked alike."""
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "version_ready": client.is_model_ready(MODEL, "1"),
        "server": client.get_server_metadata(**options)["name"],
        "model": client.get_model_metadata(MODEL, **options)["versions"],
        "version": client.get_model_metadata(MODEL, "1", **options)["inputs"][0]["name"],
    }


def refusals(client: Any, kind: Any) -> list[list[str]]:
    calls: tuple[Any, ...] = (
        lambda: client.infer("nothing", [text_input(kind, [STORY])]),
        lambda: client.infer(MODEL, [text_input(kind, [STORY])], model_version="2"),
        lambda: client.infer(MODEL, [text_input(kind, [STORY])], parameters={"top_p": 1.5}),
        lambda: client.infer(MODEL, [kind.InferInput("text_input", [1], "INT32")]),
    )
    found = []
    for call in calls:
        try:
            call()
        except InferenceServerException as error:
            found.append([str(error.status()), str(error.message())])
    return found


def http_calls(address: str) -> dict[str, Any]:
    client = over_http.InferenceServerClient(address)
    named = [over_http.InferRequestedOutput("answer", binary_data=False)]
    two = [STORY, "The cat"]
    return {
        **facts(client),
        "text": texts_of(
            client.infer(MODEL, [text_input(over_http, [STORY])], parameters=PARAMETERS)
        ),
        "as_json": texts_of(
            client.infer(
                MODEL,
                [text_input(over_http, [STORY], binary_data=False)],
                model_version="1",
                outputs=named,
                request_id="7",
                parameters=PARAMETERS,
            ),
            "answer",
        ),
        "two": texts_of(client.infer(MODEL, [text_input(over_http, two)], parameters=PARAMETERS)),
        "refusals": refusals(client, over_http),
    }


def grpc_calls(address: str) -> dict[str, Any]:
    client = over_grpc.InferenceServerClient(address)
    said: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: said.put((result, error)))
    client.async_stream_infer(MODEL, [text_input(over_grpc, [STORY])], parameters=PARAMETERS)
    tokens = [said.get(timeout=60)[0] for _ in range(12)]
    client.async_stream_infer(MODEL, [text_input(over_grpc, [STORY])], parameters={"top_p": 1.5})
    _, error = said.get(timeout=60)
    client.stop_stream()
    return {
        **facts(client, as_json=True),
        "text": texts_of(
            client.infer(MODEL, [text_input(over_grpc, [STORY])], parameters=PARAMETERS)
        ),
        "tokens": [texts_of(token)[0] for token in tokens],
        "finals": [
            token.get_response().parameters["triton_final_response"].bool_param for token in tokens
        ],
        "stream_error": str(error.message()),
        "refusals": refusals(client, over_grpc),
    }


if __name__ == "__main__":
    json.dump({"http": http_calls(sys.argv[1]), "grpc": grpc_calls(sys.argv[2])}, sys.stdout)
