"""RouterOptions: what the operator chose for the HTTP side."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infercore.watermark import Watermark


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """What the operator chose for the HTTP side; how long prompts may be, the engine says.

    model_names: names that clients may ask for; replies carry the first.
    version: shown by `/info` and `system_fingerprint`.
    max_concurrent_requests: sequences in work at once; one more is refused with 429.
    max_best_of, max_stop_sequences, max_top_n_tokens: limits per request.
    max_client_batch_size: most prompts in a completion request, and most choices per prompt.
    payload_limit: bytes of a request body.
    validation_workers: threads that tokenize.
    read_timeout: seconds that a request's head, and then its body, may take to arrive.
    write_timeout: seconds that a client may leave its stream unread before it is aborted.
    keep_alive: seconds of silence in a stream before a comment is sent.
    stall_timeout: seconds of the engine with work and without a step before it is not alive.
    api_keys: one of them must come with every request, except for health; () = none is asked for.
    api_key_file: file of further keys, looked at again while the server runs.
    vertex_predict_route, vertex_health_route: paths of Vertex AI's own choice, None = no others.
    allowed_hosts: names that the Host header may have; () = any.
    cors_allow_origin: origins of pages that browsers let call the server; "*" = any.
    grpc_port: where gRPC is served, None = nowhere.
    vllm_metrics: `/metrics` has series under vLLM's names too.
    otlp_endpoint: URL of the collector that gets traces; None = what OTEL_* says, or none.
    otlp_service_name: the service that traces say they are of.
    watermark_key: the secret of marked texts; "" = the key that everybody knows.
    watermark_gamma, watermark_delta: share of green tokens, and what their logits gain.
    """

    model_names: tuple[str, ...]
    version: str = "1.0.0"
    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    payload_limit: int = 2_000_000
    validation_workers: int = 2
    read_timeout: float = 30.0
    write_timeout: float = 30.0
    keep_alive: float = 15.0
    stall_timeout: float = 120.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_key_file: str | None = None
    vertex_predict_route: str | None = None
    vertex_health_route: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors_allow_origin: tuple[str, ...] = ()
    grpc_port: int | None = None
    vllm_metrics: bool = False
    otlp_endpoint: str | None = None
    otlp_service_name: str = "infercore.router"
    watermark_key: str = field(default="", repr=False)
    watermark_gamma: float = 0.5
    watermark_delta: float = 2.0

    @property
    def watermark(self) -> "Watermark":
        """What marks texts and finds the mark. Raises InvalidRequest for numbers out of range."""
        from infercore.watermark import PUBLIC_KEY, Watermark, key_of  # NumPy: not for `--help`

        key = key_of(self.watermark_key) if self.watermark_key else PUBLIC_KEY
        return Watermark(key, self.watermark_gamma, self.watermark_delta)
