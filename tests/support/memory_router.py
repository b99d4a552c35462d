"""A router without processes, over an engine in memory."""

from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router import anthropic, kserve, openai, tgi
from infercore_api.router.app import create_app
from infercore_api.router.options import RouterOptions
from infercore_api.router.state import RouterState
from memory_engine import MemoryEngine

MODELS = ("infercore/demo",)


class Router:
    """A router over a MemoryEngine, and a client that calls it in this process."""

    def __init__(
        self, texts: tuple[Tokenizer, ChatTemplate], engine: MemoryEngine, **options: Any
    ) -> None:
        self.engine = engine
        self.state = RouterState(engine, *texts, RouterOptions(MODELS, **options))

        def register(*, app: Any, state: RouterState) -> None:
            tgi.register_routes(app, state)
            openai.register_routes(app, state)
            anthropic.register_routes(app, state)
            kserve.register_routes(app, state)

        self.app = create_app(self.state, register)
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://router")

    def metrics(self) -> dict[tuple[str, str], float]:
        """{(name, value of its first label): value}"""
        families = text_string_to_metric_families(self.state.metrics.render().decode())
        return {
            (sample.name, next(iter(sample.labels.values()), "")): sample.value
            for family in families
            for sample in family.samples
        }
