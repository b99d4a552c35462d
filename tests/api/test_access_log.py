"""The access log: one JSON line per request, and what clients wrote in none of them."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from processes import Server, eventually, serving

CANARY = "plughcanary"
CHAT = [{"role": "user", "content": CANARY}]
ASKED: tuple[tuple[str, Any], ...] = (
    ("/generate", {"inputs": CANARY, "parameters": {"max_new_tokens": 3}}),
    ("/generate_stream", {"inputs": CANARY, "parameters": {"max_new_tokens": 3}}),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 3}),
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 3, "stop": CANARY, "logprobs": 1}),
    ("/v1/responses", {"input": CANARY, "max_output_tokens": 16}),
    ("/v1/messages", {"model": "tgi", "messages": CHAT, "max_tokens": 3}),
    ("/tokenize", {"inputs": CANARY}),
    # odd, or refused: out of range, of a wrong type, unknown, too long, not there, not JSON
    ("/generate", {"inputs": CANARY, "parameters": {"max_new_tokens": 0}}),
    ("/generate", {"inputs": {CANARY: CANARY}, "parameters": CANARY}),
    ("/v1/chat/completions", {"messages": [{"role": CANARY, "content": CANARY}]}),
    ("/v1/chat/completions", {"messages": CHAT, "response_format": {"type": CANARY}}),
    ("/generate", {"inputs": CANARY * 2000}),
    ("/v1/none", {"inputs": CANARY}),
    ("/generate", CANARY.encode() + b"{"),
)


def ask(server: Server, path: str, body: Any, number: int) -> int:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", "x-request-id": f"asked-{number}"}
    request = urllib.request.Request(server.url + path, content, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_line_per_request_and_no_prompt(folder: Path) -> None:
    talkative = {"LOG_LEVEL": "debug"}
    with serving(folder, "--json-output", toy=True, env=talkative) as server:
        statuses = [ask(server, *asked, number) for number, asked in enumerate(ASKED)]
        assert statuses[:7] == [200] * 7
        assert sum(400 <= status < 500 for status in statuses[7:]) >= 6
        with urllib.request.urlopen(f"{server.url}/metrics") as metrics:
            assert CANARY not in metrics.read().decode()
        eventually(lambda: server.metric("infercore_requests_in_flight") == 0, 20, "all ended")
        assert server.end() == 0
    text = server.log.read_text()
    assert CANARY not in text
    lines = [json.loads(line) for line in text.splitlines()]  # each of them, of every process
    mine = [line for line in lines if line["target"] == "infercore.access"]
    told = {line["request_id"]: line for line in mine if line["path"] != "/metrics"}
    for number, ((path, _), status) in enumerate(zip(ASKED, statuses, strict=True)):
        line = told[f"asked-{number}"]
        assert (line["method"], line["path"], line["status"]) == ("POST", path, status)
        assert sum(each["request_id"] == line["request_id"] for each in mine) == 1
    whole = told["asked-0"]
    assert (whole["generated_tokens"], whole["finish_reason"]) == (3, "length")
    assert whole["prompt_tokens"] > 0
    parts = sum(whole[f"{part}_seconds"] for part in ("queue", "prefill", "decode"))
    assert 0 < parts <= whole["seconds"] + 0.001
    assert "/metrics" in {line["path"] for line in mine}  # probes and scrapes: at debug alone
