"""The process that renders chat templates: a template is a program that came with the model.

Started as `python -m infercore.text.template_worker`. It reads frames from stdin and answers each
on stdout; a frame is four bytes of length (little end first) and JSON. The first frame holds
{templates, special_tokens, time_limit, memory_limit}; its answer tells {template name:
{variables, parts}}. Each later one is {name, variables, max_chars}, answered by {text} or
{error}. It ends at the end of stdin, and by SIGALRM if a render outlives its time by half a
second, so that it never outlives its parent. No torch, and no code from the model's folder.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO

import jinja2
from jinja2 import ext, meta, nodes, parser, utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

GRACE = 0.5  # seconds that the parent has to end a render itself


class Generation(ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model said, for training; transparent."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Dict:
    """`dict` in a template: makes dictionaries, and gives nothing of the class away."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class Namespace(utils.Namespace):
    """`namespace` in a template, which refuses names that reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a template's own name
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def make_environment() -> ImmutableSandboxedEnvironment:
    """The environment that published templates are written for (huggingface.co/docs)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=Dict(),
        namespace=Namespace,
    )
    return environment


class Renderer:
    """Compiled templates of one model."""

    def __init__(self, sources: dict[str, str], special_tokens: dict[str, str]) -> None:
        self._environment = make_environment()
        self._sources = sources
        self._special_tokens = special_tokens
        self._templates = {
            name: self._environment.from_string(source) for name, source in sources.items()
        }

    def facts(self) -> dict[str, Any]:
        """{template: {variables that it reads, whether it takes content as a list of parts}}"""
        return {
            name: {"variables": self._variables(source), "parts": self._takes_parts(name)}
            for name, source in self._sources.items()
        }

    def render(self, name: str, variables: dict[str, Any], max_chars: int) -> str:
        chunks, total = [], 0
        for chunk in self._templates[name].generate(self._special_tokens | variables):
            total += len(chunk)
            if total > max_chars:
                raise jinja2.TemplateError(f"the rendered text is over {max_chars} characters")
            chunks.append(chunk)
        return "".join(chunks)

    def _variables(self, source: str) -> list[str]:
        read = meta.find_undeclared_variables(self._environment.parse(source))
        return sorted(read - self._environment.globals.keys() - self._special_tokens.keys())

    def _takes_parts(self, name: str) -> bool:
        """Whether a list of text parts comes out as text: seen by trying."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
        try:
            text = self.render(name, {"messages": probe, "add_generation_prompt": True}, 1_000_000)
        except Exception:  # noqa: BLE001 - a template may raise anything for what it does not expect
            return False
        return "probe" in text and "'text'" not in text and '"text"' not in text


def _compile(start: dict[str, Any]) -> tuple[Renderer, dict[str, Any]]:
    renderer = Renderer(start["templates"], start["special_tokens"])
    return renderer, renderer.facts()


def _answer(request: dict[str, Any], renderer: Renderer) -> dict[str, Any]:
    try:
        return {"text": renderer.render(**request)}
    except jinja2.TemplateError as error:
        return {"error": error.message or type(error).__name__}
    except MemoryError:
        return {"error": "rendering took too much memory"}
    except Exception as error:  # noqa: BLE001 - the boundary of a request
        return {"error": f"{type(error).__name__}: {error}"}


def _read(stream: BinaryIO) -> Any:
    """The next frame, None at the end."""
    header = stream.read(4)
    size = int.from_bytes(header, "little")
    body = stream.read(size)
    return json.loads(body) if len(header) == 4 and len(body) == size else None


def _write(stream: BinaryIO, value: Any) -> None:
    body = json.dumps(value).encode()
    stream.write(len(body).to_bytes(4, "little") + body)
    stream.flush()


def _limited(seconds: float, work: Callable[[], Any]) -> Any:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    result = work()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return result


def main() -> None:
    """Answer frames until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    start = _read(stdin)
    if start is None:
        return
    limit = start["memory_limit"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seconds = start["time_limit"] + GRACE
    try:
        renderer, facts = _limited(seconds, partial(_compile, start))
        _write(stdout, facts)
    except jinja2.TemplateSyntaxError as error:
        _write(stdout, {"error": f"line {error.lineno}: {error.message}"})
        return
    while (request := _read(stdin)) is not None:
        _write(stdout, _limited(seconds, partial(_answer, request, renderer)))


if __name__ == "__main__":
    main()
