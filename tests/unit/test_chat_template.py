"""Chat templates: rendered as published ones expect, and harmless whatever they hold."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import infercore
from infercore.errors import CheckpointError, InvalidRequest, TemplateError
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate, read_templates
from infercore.text.template_process import TemplateProcess

USER = {"role": "user", "content": "hi"}
PLAIN = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TRIMMED = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} [end]\n{% endfor %}"
# What a message says chooses what the template does; one process compiles them all.
SWITCH = """
{%- set said = messages[0].content -%}
{%- if said == 'loop' -%}
  {%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}
{%- elif said == 'big' -%}{%- for a in range(99999) -%}{{ 'x' * 100 }}{%- endfor -%}
{%- elif said == 'memory' -%}{{ ('x' * 10000000000) | length }}
{%- elif said == 'power' -%}{%- set n = 10 ** 10 -%}{{ 10 ** n }}
{%- elif said == 'raise' -%}{{ raise_exception('roles must alternate') }}
{%- elif said == 'type' -%}{{ 'a' + 1 }}
{%- elif said == 'class' -%}{{ ''.__class__.__mro__[1].__subclasses__() }}
{%- elif said == 'format' -%}{{ '{0.__class__}'.format(messages) }}
{%- elif said == 'globals' -%}{{ raise_exception.__globals__ }}
{%- elif said == 'cycler' -%}{{ cycler.__init__.__globals__.os.popen('true').read() }}
{%- elif said == 'mutate' -%}{{ messages.append(1) }}
{%- elif said == 'namespace' -%}{%- set n = namespace(__class__=1) -%}
{%- elif said == 'dict' -%}{{ dict.__init__ }}
{%- elif said == 'tools' -%}{{ tools | tojson }}
{%- elif said == 'date' -%}{{ strftime_now('%Y') }}
{%- elif said == 'think' -%}{{ enable_thinking }}
{%- elif said == 'generation' -%}{% generation %}[{{ said }}]{% endgeneration %}
{%- elif said == 'break' -%}
  {%- for a in range(9) -%}{%- if a == 2 -%}{%- break -%}{%- endif -%}{{ a }}{%- endfor -%}
{%- elif said == 'counter' -%}
  {%- set n = namespace(i=0) -%}{%- for a in range(3) -%}{%- set n.i = n.i + 1 -%}{%- endfor -%}
  {{ n.i }}
{%- else -%}{{ said }}
{%- endif -%}
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[ChatTemplate]:
    with ChatTemplate.open(demo_path()) as template:
        yield template


@pytest.fixture(scope="module")
def switch() -> Iterator[ChatTemplate]:
    tokens = {"bos_token": "<s>"}
    with ChatTemplate({"default": SWITCH}, tokens, time_limit=0.6, max_output=10_000) as template:
        yield template


def say(template: ChatTemplate, text: str, **variables: Any) -> str:
    return template.render([{"role": "user", "content": text}], variables=variables)


def test_the_demos_prompt(demo: ChatTemplate) -> None:
    system = {"role": "system", "content": "Be brief."}
    assert demo.render([system, USER]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert demo.render([USER], add_generation_prompt=False).endswith("hi<|im_end|>\n")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("generation", "[generation]"),
        ("break", "01"),
        ("counter", "3"),
        ("naïve 日本 <b>&amp;", "naïve 日本 <b>&amp;"),
        ("think", "True"),
    ],
)
def test_what_published_templates_use(switch: ChatTemplate, said: str, expected: str) -> None:
    variables = {"enable_thinking": True} if said == "think" else {}
    assert say(switch, said, **variables) == expected


def test_tojson_escapes_no_html_and_keeps_letters(switch: ChatTemplate) -> None:
    tools = [{"type": "function", "function": {"name": "<é>", "b": 1, "a": "'&"}}]
    text = switch.render([{"role": "user", "content": "tools"}], tools=tools)
    assert text == json.dumps(tools, ensure_ascii=False)


def test_strftime_now_is_this_year(switch: ChatTemplate) -> None:
    assert re.fullmatch(r"20\d\d", say(switch, "date"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("raise", r"refused these messages: roles must alternate$"),
        ("type", r"TypeError"),
        ("big", r"is over 10003 characters"),
        ("memory", r"too much memory"),
        ("class", r"unsafe"),
        ("cycler", r"unsafe"),
        ("mutate", r"unsafe|not safely callable"),
        ("namespace", r"__class__"),
    ],
)
def test_what_a_template_may_not_do(switch: ChatTemplate, said: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        say(switch, said)
    assert say(switch, "fine") == "fine"


@pytest.mark.parametrize("said", ["globals", "dict", "format"])
def test_internals_are_undefined(switch: ChatTemplate, said: str) -> None:
    assert say(switch, said) == ""


@pytest.mark.parametrize("said", ["loop", "power"])
def test_endless_work_is_stopped_and_delays_nobody(switch: ChatTemplate, said: str) -> None:
    spare = TemplateProcess(switch._start)  # else its start would be in the race
    spare.facts()
    switch._idle.append(spare)
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(say, switch, said)
        others = 0
        while not endless.done():
            assert say(switch, "fine") == "fine"
            others += 1
        with pytest.raises(TemplateError, match=r"ran for over 0\.6 s .* was stopped"):
            endless.result()
    assert others > 1
    assert say(switch, "fine") == "fine"


def test_a_killed_worker_is_replaced(demo: ChatTemplate) -> None:
    expected = demo.render([USER])
    (worker,) = demo._idle
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert demo.render([USER]) == expected


def test_many_threads_share_a_template(demo: ChatTemplate) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: say(demo, f"number {i}"), range(60)))
    for i, text in enumerate(texts):
        assert f"number {i}<|im_end|>" in text
    assert len(demo._idle) <= 4


def test_large_messages_pass_through_the_pipes(demo: ChatTemplate) -> None:
    text = "long " * 400_000
    assert text in say(demo, text)


def test_variables_that_the_template_does_not_read_are_refused(switch: ChatTemplate) -> None:
    for name in ("bos_token", "range", "other", "said"):
        with pytest.raises(InvalidRequest, match=f"reads no '{name}'") as caught:
            say(switch, "x", **{name: "x"})
        assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("source", [PLAIN, TRIMMED])
@pytest.mark.parametrize("end", ["Well,", "Well, ", "Well,\n", ""])
def test_a_last_assistant_message_is_continued(source: str, end: str) -> None:
    messages = [USER, {"role": "assistant", "content": end}]
    with ChatTemplate({"default": source}, {"bos_token": ""}) as template:
        text = template.render(messages)
    if source == PLAIN:
        assert text == f"user: hi\nassistant: {end}"
    else:
        assert text == f"[user] hi [end]\n[assistant] {end}".rstrip()


def test_a_template_that_hangs_while_compiling_is_refused() -> None:
    with pytest.raises(CheckpointError, match="hung or died"):
        ChatTemplate({"default": "{{ 10 ** (10 ** 10) }}"}, {}, time_limit=0.1)


def test_continuing_needs_text_that_the_template_shows(demo: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "One, "}, {"type": "text", "text": "two,"}]
    assert demo.render([USER, {"role": "assistant", "content": parts}]).endswith("One, two,")
    call = {"function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert demo.render([USER, called]).endswith("<|im_start|>assistant\n")
    with (
        ChatTemplate({"default": "{{ messages[0].content }}"}, {}) as first,
        pytest.raises(TemplateError, match="leaves the last assistant message out"),
    ):
        first.render([USER, {"role": "assistant", "content": "x"}])


def test_parts_become_text_where_the_template_takes_only_text(demo: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    message = {"role": "user", "content": parts}
    assert "one two<|im_end|>" in demo.render([message])
    with ChatTemplate({"default": PLAIN}, {"bos_token": "<s>"}) as template:
        assert template.render([message]) == "<s>user: one two\n"
        image = {"type": "image_url", "image_url": {"url": "x"}}
        with pytest.raises(TemplateError, match="takes text only"):
            template.render([{"role": "user", "content": [*parts, image]}])


def test_tools_choose_the_tool_template() -> None:
    named = {"default": "plain {{ x }}", "tool_use": "tools {{ y }}"}
    with ChatTemplate(named, {}) as template:
        assert template.render([USER], variables={"x": 1}) == "plain 1"
        assert (
            template.render([USER], tools=[{"type": "function"}], variables={"y": 2}) == "tools 2"
        )
        assert template.render([USER], tools=[], variables={"x": 3}) == "plain 3"


def write(path: Path, name: str, value: object) -> None:
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_where_templates_are_read_from(tmp_path: Path) -> None:
    assert read_templates(tmp_path) == {}
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert read_templates(tmp_path) == {"default": "d", "tool_use": "t"}
    write(tmp_path, "chat_template.json", {"chat_template": "json"})
    assert read_templates(tmp_path) == {"default": "json"}
    write(tmp_path, "chat_template.jinja", "jinja")
    write(tmp_path, "additional_chat_templates/rag.jinja", "rag")
    assert read_templates(tmp_path) == {"default": "jinja", "rag": "rag"}


@pytest.mark.parametrize("value", [3, [1], [{"name": "default"}], [{"name": "a", "template": "b"}]])
def test_damaged_template_settings(tmp_path: Path, value: object) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.*chat.template"):
        read_templates(tmp_path)


def test_template_that_does_not_compile_names_its_line() -> None:
    with pytest.raises(CheckpointError, match=r"does not compile: line 2: .*endfor"):
        ChatTemplate({"default": "{% for m in messages %}\n{% endif %}"}, {})


def test_no_template_refuses_to_render(tmp_path: Path) -> None:
    with (
        ChatTemplate.open(tmp_path) as template,
        pytest.raises(TemplateError, match="has no chat template"),
    ):
        template.render([USER])


PARENT = """
import sys, threading
from infercore.text.chat_template import ChatTemplate
template = ChatTemplate({"default": sys.argv[1]}, {}, time_limit=0.2)
print(template._idle[0].pid, flush=True)
if sys.argv[2] == "busy":
    try:
        template._idle[0]._send({"name": "default", "variables": {}, "max_chars": 1})
    finally:
        print("sent", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_workers_die_with_their_parent(state: str) -> None:
    # the probe at start needs an end, the render has none
    endless = (
        "{% if messages is not defined %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, endless, state], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout as stdout:
        pid = int(stdout.readline())
        if state == "busy":
            assert stdout.readline() == "sent\n"
        parent.kill()
        parent.wait()
    while not gone(pid):  # pytest's own timeout is the limit
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Ended: no such process, or a zombie that waits for whoever adopted it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_the_worker_imports_neither_torch_nor_numpy() -> None:
    script = "import sys; import infercore.text.template_worker; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "tokenizers"} & set(modules)


def test_only_the_sandbox_makes_templates() -> None:
    source = Path(infercore.__file__).parent
    makers = {
        (file.name, found)
        for file in source.rglob("*.py")
        for found in re.findall(r"\b(\w*Environment|\w*Template)\(\*?", file.read_text())
        if "jinja2" in file.read_text()
    }
    assert makers == {("template_worker.py", "ImmutableSandboxedEnvironment")}
