"""The curl examples of the pages are answered by a server."""

import json
import re
import shlex
import urllib.request
from pathlib import Path
from typing import Any

from processes import QUICK, serving

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:3000"
EXAMPLES = [
    command
    for page in (ROOT / "README.md", ROOT / "docs/tutorials/first-server.md")
    for command in re.findall(
        r"^```sh\n(curl .*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    )
]


def ask(command: str, url: str) -> list[Any]:
    """What a curl command asks for, asked without curl: the JSON of each event, or of the body."""
    words = shlex.split(command.replace("\\\n", " "))
    address = next(word for word in words if word.startswith(ADDRESS))
    headers = [words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H"]
    data = [words[i + 1].encode() for i, word in enumerate(words) if word == "-d"]
    request = urllib.request.Request(
        address.replace(ADDRESS, url), data[0] if data else None, dict(headers)
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        body = response.read().decode()
        streams = "text/event-stream" in response.headers["content-type"]
    events = body.strip().split("\n\n") if streams else [body]
    return [json.loads(event.removeprefix("data:")) for event in events]


def test_curl_examples_are_answered(tmp_path: Path) -> None:
    assert len(EXAMPLES) >= 4
    with serving(tmp_path, *QUICK) as server:
        for command in EXAMPLES:
            keys = set().union(*(reply.keys() for reply in ask(command, server.url)))
            assert {"generated_text", "choices", "model_id"} & keys, command
        chat = next(command for command in EXAMPLES if '"temperature": 0}' in command)
        assert "Paris" in ask(chat, server.url)[0]["choices"][0]["message"]["content"]
