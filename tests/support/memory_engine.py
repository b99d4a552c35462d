"""An engine in memory: it answers what a test tells it to, when it tells it to."""

import asyncio

from infercore.engine.info import EngineInfo
from infercore.engine.request import EngineStats, FinishReason, Output, Request, TokenLogprobs
from infercore.errors import EngineUnavailable
from infercore_api.router.engine_client import EngineClient, EnginePhase, EngineState, Sink

INFO = EngineInfo(
    model_id="infercore/demo",
    model_path="",
    revision="",
    architecture="LlamaForCausalLM",
    backend="memory",
    devices=("none",),
    dtype="float32",
    kv_dtype="float32",
    quantization="none",
    vocab_size=4096,
    eos_ids=(2,),
    num_parameters=1,
    max_model_len=512,
    max_input_len=511,
    max_num_seqs=64,
    max_batch_tokens=512,
    block_size=16,
    kv_blocks=100,
    kv_tokens=1600,
    memory_total=1,
    memory_weights=1,
    memory_workspace=0,
    memory_kv=0,
    prompt_logprobs=True,
    late_inputs=True,
    batch_invariant=True,
    capabilities='{"limits": {}, "features": {}}',
    watermark=True,
)


class MemoryEngine(EngineClient):
    """Keeps the requests that came; `say` answers one.

    arrived: set once the first request came.
    script: token ids that each request is answered with at once; None = only `say` answers.
    """

    def __init__(self, script: list[int] | None = None) -> None:
        self.requests: dict[int, Request] = {}
        self.aborted: list[int] = []
        self.phase = EnginePhase.READY
        self.arrived = asyncio.Event()
        self._sinks: dict[int, Sink] = {}
        self._script = script

    async def start(self) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """There is nothing to disconnect from."""

    def submit(self, request: Request, sink: Sink) -> None:
        if self.phase is not EnginePhase.READY:
            raise EngineUnavailable("The engine is not ready")
        self.requests[request.request_id] = request
        self._sinks[request.request_id] = sink
        self.arrived.set()
        if self._script is not None:
            self.say(request.request_id, self._script, FinishReason.LENGTH)

    def abort(self, request_id: int) -> None:
        if self._sinks.pop(request_id, None) is not None:
            self.aborted.append(request_id)

    def say(
        self,
        request_id: int,
        token_ids: list[int],
        reason: FinishReason | None = None,
        error: Exception | None = None,
        cached_tokens: int = 0,
    ) -> None:
        """Deliver one output with so many tokens."""
        sink = self._sinks[request_id] if reason is None else self._sinks.pop(request_id)
        asked = self.requests[request_id].sampling.logprobs
        logprobs = None if asked is None else [TokenLogprobs(-0.5)] * len(token_ids)
        output = Output(request_id, token_ids, logprobs, reason, cached_tokens=cached_tokens)
        output.error = error  # type: ignore[assignment]
        sink.output(output)

    @property
    def state(self) -> EngineState:
        return EngineState(self.phase)

    @property
    def info(self) -> EngineInfo | None:
        return INFO

    @property
    def stats(self) -> EngineStats:
        return EngineStats(kv_blocks=99, kv_blocks_used=33, steps=7)
