"""The pages about the HTTP side name what is there, and nothing else: routes, fields."""

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from infercore_api.router import anthropic_schema, problems
from infercore_api.router.anthropic_schema import CountBody, MessagesBody, TextBlock, Turn
from infercore_api.router.openai_schema import IGNORED, ChatBody, CompletionBody, StreamOptions
from infercore_api.router.responses_schema import ContentPart, InputMessage, ResponsesBody
from infercore_api.router.tgi_schema import CompatBody, Parameters
from infercore_api.router.tokenization import (
    DetokenizeBody,
    TokenizeBody,
    TokenizeMessagesBody,
    TokenizePromptBody,
)
from infercore_api.router.vertex import VertexBody
from infercore_api.router.watermark import DetectBody
from pages import ROOT, page

ROUTE = re.compile(r'@(?:router|app)\.(get|post)\("([^"]+)"')
BODIES = (
    CompatBody,
    Parameters,
    VertexBody,
    TokenizeBody,
    TokenizePromptBody,
    TokenizeMessagesBody,
    DetokenizeBody,
    DetectBody,
    ChatBody,
    CompletionBody,
    StreamOptions,
    ResponsesBody,
    InputMessage,
    ContentPart,
    MessagesBody,
    Turn,
    TextBlock,
)


def first_cells(text: str) -> Iterator[str]:
    """What stands in the first column of each table, between backquotes."""
    for cell in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", cell)


def test_every_route_is_there() -> None:
    served = {
        f"{method.upper()} {path.replace(':path', '')}"
        for file in (ROOT / "api/src/infercore_api/router").glob("*.py")
        for method, path in ROUTE.findall(file.read_text())
    }
    pages = page("reference/http.md") + page("reference/kserve.md")
    documented = {name for name in first_cells(pages) if " /" in name}
    assert documented == served


@pytest.mark.parametrize("body", BODIES)
def test_every_field_is_there(body: type[BaseModel]) -> None:
    named = set(re.findall(r"[`\"](\w+)[`\"]", page("reference/http.md")))
    assert body.model_fields.keys() <= named


def test_what_has_no_effect_and_what_is_refused_are_told_apart() -> None:
    _, _, rest = page("reference/http.md").partition("Accepted without effect")
    ignored, _, refused = rest.partition("Refused until they are served")
    assert set(re.findall(r"`(\w+)`", ignored)) == IGNORED
    refused = refused.partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", refused)) == {*ChatBody.HARMLESS, *CompletionBody.HARMLESS}


def test_what_of_anthropics_has_no_effect_and_what_is_refused() -> None:
    _, _, rest = page("reference/http.md").partition("No effect on the answer of a served model")
    ignored, _, refused = rest.partition("Not served yet")
    assert set(re.findall(r"`(\w+)`", ignored)) == anthropic_schema.IGNORED
    refused = refused.partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", refused)) == set(CountBody.HARMLESS)


def test_what_of_responses_has_no_effect_and_what_is_refused() -> None:
    _, _, rest = page("reference/http.md").partition("Fields without effect in responses")
    ignored, _, refused = rest.partition("Not served in responses")
    assert set(re.findall(r"and `(\w+)`", ignored)) == ResponsesBody.IGNORED - IGNORED
    refused = refused.partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", refused)) == set(ResponsesBody.HARMLESS)


def test_every_type_of_anthropics_is_there() -> None:
    text = page("reference/errors.md").partition("On Anthropic's paths")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([\d, ]+) \|$", text, re.MULTILINE)
    documented = {int(s): kind for kind, statuses in rows for s in statuses.split(",")}
    assert documented == problems.ANTHROPIC_TYPES


def test_every_status_is_there() -> None:
    text = page("reference/errors.md")
    for kind, row in problems._ROWS.items():
        code = f" `{row.code}`" if row.code else ""
        assert (
            f"| `{kind.__name__}` | {row.status} `{row.error_type}` "
            f"| {row.openai_status} `{row.openai_type}`{code} |"
        ) in text
    for status, name in problems._HTTP_NAMES.items():
        assert f"| {status} `{name}` |" in text
