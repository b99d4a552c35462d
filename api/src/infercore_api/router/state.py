"""RouterState: all that the HTTP routes share. It is built once, by the router's `main`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infercore.engine.info import EngineInfo
from infercore.errors import EngineUnavailable, InvalidRequest
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.observability.metrics import Metrics
from infercore_api.router.engine_client import EngineClient
from infercore_api.router.generation import Generator
from infercore_api.router.options import RouterOptions
from infercore_api.router.step_watch import StepWatch
from infercore_api.router.validation import Limits, Workers

# what clients send when they were not told a name
_ANY_MODEL = frozenset({"", "tgi", "dummy"})


@dataclass(slots=True)
class RouterState:
    """One engine, one model's texts, one set of options, and what is built from them.

    tokenizer_info: what `/tokenizer_info` answers.
    """

    engine: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    options: RouterOptions
    tokenizer_info: Mapping[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(init=False)
    generator: Generator = field(init=False)
    workers: Workers = field(init=False)
    step_watch: StepWatch = field(init=False)

    def __post_init__(self) -> None:
        vllm_model = self.model_name if self.options.vllm_metrics else None
        self.metrics = Metrics(self.engine, vllm_model)
        self.generator = Generator(
            self.engine, self.tokenizer, self.metrics, self.options.max_concurrent_requests
        )
        self.workers = Workers(self.options.validation_workers)
        self.step_watch = StepWatch(self.engine)

    @property
    def info(self) -> EngineInfo:
        """The engine's facts. Raises EngineUnavailable before it was ready once."""
        info = self.engine.info
        if info is None:
            phase = self.engine.state.phase.value
            raise EngineUnavailable(f"The engine is not ready yet ({phase}); try again shortly")
        return info

    @property
    def limits(self) -> Limits:
        return Limits.of(self.options, self.info)

    @property
    def model_name(self) -> str:
        """The name that replies carry."""
        return self.options.model_names[0]

    def check_model(self, name: str) -> None:
        """Refuse a name that is not served; a URL and the clients' fillers mean any model."""
        known = name in _ANY_MODEL or name in self.options.model_names
        if not known and not name.startswith(("http://", "https://")):
            names = ", ".join(f"`{name}`" for name in self.options.model_names)
            raise InvalidRequest(f"The model `{name}` is not served here; use {names}", "model")
