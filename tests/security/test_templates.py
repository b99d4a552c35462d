"""Chat templates: those of a model that means harm, and those that a client brings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infercore.errors import TemplateError
from infercore.text.chat_template import ChatTemplate
from memory_router import Router

ROOT = Path(__file__).parents[2]
ESCAPES = (
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__cl' ~ 'ass__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ dict.__base__ }}",
    "{{ range.__class__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0.__class__}'.format_map({'0': messages}) }}",
    "{{ ('{0.__class__}'|format(messages)) }}",
    "{{ (messages|tojson).__class__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages.pop() }}",
    "{% set n = namespace(__class__=1) %}{{ n.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{% extends '/etc/passwd' %}",
    "{{ ().__reduce_ex__(2) }}",
    "{{ (messages|sort).__class__.__init__ }}",
    "{{ loop }}",
    "{{ range(10 ** 9)|list|length }}",
    "{{ messages.__getattribute__('__class__') }}",
    "{{ strftime_now('%s').__class__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{% for x in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ messages|xmlattr }}",
)
SWITCH = "".join(
    f"{{% {'if' if number == 0 else 'elif'} messages[0].content == '{number}' %}}{payload}"
    for number, payload in enumerate(ESCAPES)
    if "extends" not in payload
).replace("{% elif messages[0].content == '0'", "{% if messages[0].content == '0'")
TOLD = re.compile(r"<class|<function|<module|uid=|root:|0x[0-9a-f]{6}|object at")
CHATS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {},
    "/tokenize": {},
    "/v1/messages": {"model": "", "max_tokens": 1},
    "/v1/messages/count_tokens": {"model": ""},
}


@pytest.fixture(scope="module")
def escaping() -> Iterator[ChatTemplate]:
    source = f"{SWITCH}{{% else %}}fine{{% endif %}}"
    with ChatTemplate({"default": source}, {}) as template:
        yield template


@pytest.mark.parametrize("number", [n for n, e in enumerate(ESCAPES) if "extends" not in e])
def test_classic_escapes_reach_nothing(escaping: ChatTemplate, number: int) -> None:
    """S14: each is refused, or gives the text of something undefined; the next one is served."""
    try:
        text = escaping.render([{"role": "user", "content": str(number)}])
    except TemplateError as error:
        text = str(error)
    assert not TOLD.search(text), text
    assert escaping.render([{"role": "user", "content": "x"}]) == "fine"


def test_no_other_module_makes_templates() -> None:
    """S14: in no room; what renders pages or code would be a second door."""
    rooms = ("core", "api", "backends", "quantization", "conformance")
    users = {
        file.name
        for room in rooms
        for file in (ROOT / room).rglob("*.py")
        if "src" in file.parts
        and re.search(r"^\s*(import|from) jinja2", file.read_text(), re.MULTILINE)
    }
    assert users == {"template_worker.py"}


BOMBS = (
    "{% for i in range(10 ** 7) %}{% for j in range(10 ** 7) %}{% endfor %}{% endfor %}",
    "{% for i in range(90000) %}{{ 'a' * 90000 }}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a'.center(10 ** 10) }}",
    "{{ '%010000000000d'|format(1) }}",
    "{{ [0] * 10 ** 10 }}",
    "{% set n = 9 %}{{ n ** (n ** n) }}",
    "{{ lipsum(n=10 ** 7) }}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% set n = namespace(x='a' * 30000) %}{{ n.x|wordwrap(1)|replace('a', n.x) }}",
)


@pytest.mark.parametrize("bomb", BOMBS)
def test_endless_and_exploding_templates_are_stopped(bomb: str) -> None:
    """S15: by time, by output or by memory, in a process of its own, which is replaced."""
    source = f"{{% if messages[0].content == 'bomb' %}}{bomb}{{% else %}}fine{{% endif %}}"
    with ChatTemplate({"default": source}, {}, time_limit=0.9, max_output=1_000_000) as template:
        with pytest.raises(TemplateError) as stopped:
            template.render([{"role": "user", "content": "bomb"}])
        assert len(str(stopped.value)) < 1000
        assert template.render([{"role": "user", "content": "x"}]) == "fine"


@pytest.mark.parametrize("path", CHATS)
async def test_no_request_brings_its_template(router: Router, path: str) -> None:
    """S16: under no name that a server has had for it."""
    messages = [{"role": "user", "content": "a"}]
    for name in ("chat_template", "chat_template_content", "template", "jinja"):
        body = {**CHATS[path], "messages": messages, name: "{{ 1 }}"}
        answer = await router.http.post(path, json=body)
        assert answer.status_code in (400, 422), name
        assert name in answer.text


@pytest.mark.parametrize(
    "name",
    ["messages", "chat_template", "template", "tools", "add_generation_prompt", "tokenize",
     "tokenizer", "raise_exception", "range", "self", "loop", "bos_token", "__class__", "",
     "a" * 500],
)  # fmt: skip
async def test_variables_are_those_that_the_template_reads(router: Router, name: str) -> None:
    """S16: of these the demo's reads none, or they are not a client's to set."""
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "chat_template_kwargs": {name: "{{ 7 * 7 }}"},
    }
    openai = await router.http.post("/v1/chat/completions", json=body)
    assert openai.status_code == 400
    assert openai.json()["error"]["param"] == "chat_template_kwargs"
    assert (await router.http.post("/chat_tokenize", json=body)).status_code == 422


async def test_what_a_message_says_is_no_template(router: Router) -> None:
    """S16: text stays text."""
    body = {"messages": [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}]}
    answer = await router.http.post("/chat_tokenize", json=body)
    assert "{{ 7 * 7 }}{% raw %}" in answer.json()["templated_text"]
