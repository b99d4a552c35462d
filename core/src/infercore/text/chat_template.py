"""Chat messages to a prompt, by the model's own Jinja template, in a process that can be killed."""

import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from infercore.errors import CheckpointError, InvalidRequest, TemplateError
from infercore.model_folder import read_json
from infercore.text.template_process import TemplateProcess, WorkerDiedError, WorkerTimeoutError
from infercore.text.tokenizer import special_tokens

Message = Mapping[str, Any]

TIME_LIMIT = 1.0  # seconds per render
MAX_OUTPUT = 1_000_000  # characters that a template may add to its messages' own
MEMORY_LIMIT = 512 << 20  # bytes of address space of a worker
MAX_WORKERS = 4  # renders at once; one is started ahead, the others when they are needed
# Ends the mark of a message's end: if it is gone, the template trims, so the cut text is trimmed.
EM_SPACE = "\N{EM SPACE}"
OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatTemplate:
    """Renders with the templates of one model. Thread-safe; `render` blocks, so call it off-loop.

    templates: {name: source}; "tool_use" serves requests with tools, "default" all others.
    special_tokens: {"bos_token": text, …}, which templates read.
    Raises CheckpointError for a template that does not compile.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        time_limit: float = TIME_LIMIT,
        max_output: int = MAX_OUTPUT,
        max_workers: int = MAX_WORKERS,
    ) -> None:
        self._time_limit = time_limit
        self._max_output = max_output
        self._start = {
            "templates": dict(templates),
            "special_tokens": dict(special_tokens),
            "time_limit": time_limit,
            "memory_limit": MEMORY_LIMIT,
        }
        self._turns = threading.BoundedSemaphore(max_workers)
        self._idle: deque[TemplateProcess] = deque()
        self._facts = self._compile() if templates else {}

    @classmethod
    def open(cls, path: Path, **limits: Any) -> Self:
        """The templates of a model folder; one without any opens too, and refuses to render."""
        return cls(read_templates(path), special_tokens(path), **limits)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The prompt for `messages`, special tokens included.

        messages: {"role", "content": text or list of parts, …}, JSON values only. A last message
            of the assistant is continued: the prompt ends with its text.
        variables: further ones that the template reads (`enable_thinking`, …).
        Raises TemplateError if the template refuses, or goes over its time or size; InvalidRequest
        for a variable that it does not read.
        """
        name = self._choose(tools)
        facts = self._facts[name]
        for variable in variables:
            if variable in OWN_VARIABLES or variable not in facts["variables"]:
                raise InvalidRequest(
                    f"chat_template_kwargs: the model's template reads no {variable!r}",
                    "chat_template_kwargs",
                )
        chat = [dict(message) for message in messages]
        if not facts["parts"]:
            chat = [_flatten(message) for message in chat]
        tag = secrets.token_hex(8) + EM_SPACE
        continued = _mark_end(chat, tag)
        own = {
            "messages": chat,
            "tools": tools and list(tools),
            "add_generation_prompt": add_generation_prompt and not continued,
            **variables,
        }
        size = sum(_text_size(message) for message in chat)
        text = self._ask(name, own, self._max_output + size)
        return _cut(text, tag) if continued else text

    def close(self) -> None:
        """End all workers; nothing may render after it."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _compile(self) -> dict[str, Any]:
        process = TemplateProcess(self._start)
        try:
            facts = process.facts()
        except (WorkerTimeoutError, WorkerDiedError) as error:
            process.close()
            raise CheckpointError(
                "the model's chat template cannot be tried out: its process hung or died; "
                "look at the template, or remove it to serve without chat"
            ) from error
        if "error" in facts:
            process.close()
            raise CheckpointError(
                f"the model's chat template does not compile: {facts['error']}; "
                "correct it, or remove it to serve without chat"
            )
        self._idle.append(process)
        return facts

    def _choose(self, tools: object) -> str:
        if not self._facts:
            raise TemplateError(
                "this model has no chat template; send a prompt to a completion route, "
                "or serve a chat model"
            )
        return "tool_use" if tools and "tool_use" in self._facts else "default"

    def _ask(self, name: str, variables: dict[str, Any], max_chars: int) -> str:
        request = {"name": name, "variables": variables, "max_chars": max_chars}
        with self._turns:
            process = self._take()
            try:
                answer = process.ask(request, self._time_limit)
            except WorkerTimeoutError:
                process = self._replace(process)
                raise TemplateError(
                    f"the chat template ran for over {self._time_limit:g} s on these messages "
                    "and was stopped; send fewer or simpler ones"
                ) from None
            except WorkerDiedError:
                process = self._replace(process)
                raise TemplateError(
                    "the chat template's process died on these messages; send fewer or simpler ones"
                ) from None
            finally:
                self._idle.append(process)
        if "error" in answer:
            raise TemplateError(f"the chat template refused these messages: {answer['error']}")
        text: str = answer["text"]
        return text

    def _take(self) -> TemplateProcess:
        """An idle worker that is still alive, or a new one."""
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return TemplateProcess(self._start)
            if process.alive:
                return process
            process.close()

    def _replace(self, process: TemplateProcess) -> TemplateProcess:
        process.close()
        return TemplateProcess(self._start)


def read_templates(path: Path) -> dict[str, str]:
    """{name: source} of a model folder, {} if it has none. Raises CheckpointError.

    chat_template.jinja (with additional_chat_templates/*.jinja) is the newest place, then
    chat_template.json, then tokenizer_config.json, as one text or a list of named ones.
    """
    newest = path / "chat_template.jinja"
    if newest.is_file():
        others = sorted((path / "additional_chat_templates").glob("*.jinja"))
        named = {file.stem: file for file in others} | {"default": newest}
        return {name: _read_text(file) for name, file in named.items()}
    for file in (path / "chat_template.json", path / "tokenizer_config.json"):
        value = (read_json(file) or {}).get("chat_template")
        if value is not None:
            return _named(file, value)
    return {}


def _named(file: Path, value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    try:
        named = {str(item["name"]): str(item["template"]) for item in value}
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{file}: chat_template is neither a text nor a list of {{name, template}}; correct it"
        ) from error
    if "default" not in named:
        raise CheckpointError(f'{file}: no chat template is named "default"; name one so')
    return named


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error


def _flatten(message: dict[str, Any]) -> dict[str, Any]:
    """Text parts as one text, for templates that take only that."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise TemplateError("this model's chat template takes text only; send no other parts")
    return message | {"content": "".join(part["text"] for part in content)}


def _mark_end(chat: list[dict[str, Any]], tag: str) -> bool:
    """Append `tag` to the text of a last assistant message, in place; False if there is none."""
    if not chat or chat[-1].get("role") != "assistant" or chat[-1].get("tool_calls"):
        return False
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + tag
        return True
    if isinstance(content, list) and content:
        last = content[-1]
        if isinstance(last, dict) and isinstance(last.get("text"), str):
            chat[-1]["content"] = [*content[:-1], last | {"text": last["text"] + tag}]
            return True
    return False


def _cut(text: str, tag: str) -> str:
    """The text before the tag that marks the end of the continued message."""
    at = text.rfind(tag)
    if at >= 0:
        return text[:at]
    at = text.rfind(tag.rstrip())
    if at < 0:
        raise TemplateError(
            "the chat template leaves the last assistant message out, so it cannot be continued; "
            "end with a user message"
        )
    return text[:at].rstrip()


def _text_size(message: Message) -> int:
    content = message.get("content")
    if isinstance(content, list):
        return sum(len(str(part)) for part in content)
    return len(content) if isinstance(content, str) else 0
