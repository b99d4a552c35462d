"""The flags of `infercore serve`: one table, from which parser, help, environment and docs come.

Names, environment variables and meanings are TGI's where TGI has the function. What TGI has and
this server has not is in the table too: harmless flags are accepted and said to do nothing, the
others are refused with what to do instead, so that no option is ever dropped in silence.
"""

from dataclasses import dataclass
from typing import Any

from infercore.config import EngineConfig
from infercore_api.router.options import RouterOptions

MODEL = "Model"
LIMITS = "Request limits"
BATCHING = "Batching and memory"
NETWORK = "Network"
OBSERVABILITY = "Logs"
TGI_ONLY = "Accepted for TGI's users"


@dataclass(frozen=True, slots=True)
class Flag:
    """One option.

    name: without dashes, as TGI or we spell it. kind: str, int, float, bool, or list[str].
    field: where the value goes, "engine.x", "router.x", "serve.x"; "" for those of TGI_ONLY.
    env: environment variable, "" for none. no: a bool flag also has `--no-NAME`.
    zero: a number may be 0; otherwise it must be positive.
    note: what is said if a flag of TGI_ONLY is given. allowed: values of it that change nothing;
        any other is refused, unless the tuple is empty: then every value is noted.
    """

    name: str
    kind: Any
    default: Any
    section: str
    help: str
    field: str = ""
    env: str = ""
    aliases: tuple[str, ...] = ()
    no: bool = False
    zero: bool = False
    note: str = ""
    allowed: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name as an identifier."""
        return self.name.replace("-", "_")

    @property
    def spellings(self) -> tuple[str, ...]:
        dashed = tuple(f"-{a}" if len(a) == 1 else f"--{a}" for a in self.aliases)
        first = f"--{self.name}/--no-{self.name}" if self.no else f"--{self.name}"
        return (first, *dashed)


def _engine(field: str) -> Any:
    return EngineConfig.__dataclass_fields__[field].default


def _router(field: str) -> Any:
    return RouterOptions.__dataclass_fields__[field].default


def _flag(name: str, kind: Any, section: str, text: str, field: str = "", **more: Any) -> Flag:
    """A flag whose default and environment variable follow from its name and its field."""
    home, _, attribute = field.partition(".")
    defaults = {"engine": _engine, "router": _router}
    default = more.pop("default", defaults[home](attribute) if home in defaults else None)
    env = more.pop("env", name.upper().replace("-", "_"))
    return Flag(name, kind, default, section, text, field, env, **more)


def _ours(name: str, kind: Any, section: str, text: str, field: str, **more: Any) -> Flag:
    """A flag that TGI has not; its environment variable carries our name."""
    env = "INFERCORE_" + name.upper().replace("-", "_")
    return _flag(name, kind, section, text, field, env=env, **more)


def _noted(name: str, kind: Any, note: str, **more: Any) -> Flag:
    """A flag of TGI's that does nothing here, and says so.

    A value is a str, never parsed: its variable may be another program's, as PROMETHEUS_PORT is.
    """
    return _flag(name, kind, TGI_ONLY, f"No effect: {note}.", note=note, **more)


def _refused(name: str, kind: Any, note: str, *allowed: str, **more: Any) -> Flag:
    """A flag of TGI's whose function is not here; refused unless its value changes nothing."""
    text = f"Refused: {note}."
    return _flag(name, kind, TGI_ONLY, text, note=note, allowed=allowed or ("false",), **more)


FLAGS: tuple[Flag, ...] = (
    _flag(
        "model-id",
        str,
        MODEL,
        "A local folder, a hub id, or the bundled model.",
        "engine.model",
        default="infercore/demo",
    ),
    _flag("revision", str, MODEL, "The hub's branch, tag or commit.", "engine.revision"),
    _ours("backend", str, MODEL, "Name of an installed backend plugin.", "engine.backend"),
    _flag(
        "dtype",
        str,
        MODEL,
        "Compute dtype: float32, bfloat16, float16; auto = the checkpoint's.",
        "engine.dtype",
    ),
    _flag(
        "kv-cache-dtype",
        str,
        MODEL,
        "Dtype of the KV cache; auto = the compute dtype.",
        "engine.kv_dtype",
    ),
    _flag(
        "quantize",
        str,
        MODEL,
        "Quantization method that reads the checkpoint; by default what the checkpoint says.",
        "engine.quantize",
    ),
    _ours("threads", int, MODEL, "CPU threads for compute; by default all.", "engine.threads"),
    _ours(
        "served-model-name",
        list[str],
        MODEL,
        "Names that clients may ask for; replies carry the first. By default the model's id.",
        "router.model_names",
        default=None,
    ),
    _flag(
        "huggingface-hub-cache",
        str,
        MODEL,
        "Folder of downloaded models; by default the hub library's.",
        "serve.hub_cache",
    ),
    _flag(
        "max-concurrent-requests",
        int,
        LIMITS,
        "Sequences in work at once; one more is answered 429.",
        "router.max_concurrent_requests",
    ),
    _flag("max-best-of", int, LIMITS, "Largest `best_of`.", "router.max_best_of"),
    _flag(
        "max-stop-sequences",
        int,
        LIMITS,
        "Most stop texts of a request.",
        "router.max_stop_sequences",
        zero=True,
    ),
    _flag(
        "max-top-n-tokens",
        int,
        LIMITS,
        "Most likeliest tokens shown per position.",
        "router.max_top_n_tokens",
        zero=True,
    ),
    _flag(
        "max-input-tokens",
        int,
        LIMITS,
        "Longest prompt, in tokens; by default one less than --max-total-tokens.",
        "engine.max_input_len",
    ),
    _flag(
        "max-input-length",
        int,
        LIMITS,
        "TGI's older name of --max-input-tokens; give one of them.",
        "engine.max_input_len",
    ),
    _flag(
        "max-total-tokens",
        int,
        LIMITS,
        "Longest sequence, prompt and output; by default what the model and memory allow.",
        "engine.max_model_len",
    ),
    _flag(
        "max-client-batch-size",
        int,
        LIMITS,
        "Most prompts, and most choices, of a request.",
        "router.max_client_batch_size",
    ),
    _flag("payload-limit", int, LIMITS, "Largest request body, in bytes.", "router.payload_limit"),
    _flag(
        "validation-workers",
        int,
        LIMITS,
        "Threads that tokenize and render templates.",
        "router.validation_workers",
    ),
    _flag(
        "max-batch-prefill-tokens",
        int,
        BATCHING,
        "Token budget of a step: decodes first, then chunks of prompts; by default what suits the "
        "backend. TGI bounds a prefill "
        "batch by it; here longer prompts are cut into chunks.",
        "engine.max_batch_tokens",
    ),
    _flag(
        "max-batch-total-tokens",
        int,
        BATCHING,
        "Tokens that the KV cache holds; by default what memory allows.",
        "engine.kv_tokens",
    ),
    _flag("max-batch-size", int, BATCHING, "Most sequences in a step.", "engine.max_num_seqs"),
    _ours(
        "memory-budget",
        str,
        BATCHING,
        "Memory for weights, workspace and KV cache, such as 8G or 512M; by default most of "
        "what is available.",
        "engine.memory_budget",
    ),
    _ours("block-size", int, BATCHING, "Tokens per KV block.", "engine.block_size"),
    _ours(
        "prefix-cache",
        bool,
        BATCHING,
        "Reuse KV blocks of equal prefixes.",
        "engine.prefix_cache",
        no=True,
    ),
    _ours(
        "step-ahead",
        bool,
        BATCHING,
        "Submit the next step before the last one's result.",
        "engine.step_ahead",
        no=True,
    ),
    _ours(
        "max-overtake",
        float,
        BATCHING,
        "Seconds that a request which does not fit may be overtaken for.",
        "engine.max_overtake",
        zero=True,
    ),
    _ours(
        "max-waiting",
        int,
        BATCHING,
        "Most requests in the engine's queue; one more is answered 429.",
        "engine.max_waiting",
    ),
    _ours(
        "step-timeout",
        float,
        BATCHING,
        "Seconds without a finished step, with work pending, before the engine is restarted.",
        "engine.step_timeout",
    ),
    _flag(
        "hostname",
        str,
        NETWORK,
        "Address to listen on; 0.0.0.0 for every interface. TGI's variable HOSTNAME is not read: "
        "in containers it holds the container's name.",
        "serve.hostname",
        default="127.0.0.1",
        env="INFERCORE_HOSTNAME",
    ),
    _flag(
        "port",
        int,
        NETWORK,
        "Port to listen on.",
        "serve.port",
        default=3000,
        aliases=("p",),
        zero=True,
    ),
    _flag(
        "api-key",
        str,
        NETWORK,
        "Key that POST requests must carry. The variable keeps it off the command line.",
        "router.api_key",
    ),
    _flag(
        "cors-allow-origin",
        list[str],
        NETWORK,
        "Origins whose pages may call the server; by default any.",
        "router.cors_allow_origin",
        default=None,
    ),
    _ours(
        "write-timeout",
        float,
        NETWORK,
        "Seconds that a client may leave its stream unread before it is aborted.",
        "router.write_timeout",
    ),
    _flag(
        "graceful-termination-timeout",
        float,
        NETWORK,
        "Seconds that live requests are given to finish at the end.",
        "serve.graceful_timeout",
        default=90.0,
        aliases=("g",),
        zero=True,
    ),
    _flag(
        "json-output",
        bool,
        OBSERVABILITY,
        "Log JSON lines. LOG_LEVEL (error, warning, info, debug) sets how much.",
        "serve.json_output",
        default=False,
    ),
    _noted("usage-stats", str, "no usage is collected or sent"),
    _noted("disable-custom-kernels", bool, "a backend's kernels are part of it", default=False),
    _noted("disable-grammar-support", bool, "grammars are not served", default=False),
    _noted(
        "enable-prefill-logprobs",
        bool,
        "log-probabilities of prompts are computed for requests that ask for them",
        default=False,
    ),
    _noted("waiting-served-ratio", str, "prompts join running batches in chunks"),
    _noted("max-waiting-tokens", str, "prompts join running batches in chunks"),
    _noted("cuda-graphs", str, "the backend plans what it captures"),
    _noted("cuda-memory-fraction", str, "--memory-budget bounds memory"),
    _noted("shard-uds-path", str, "sockets are in a private run directory"),
    _noted("master-addr", str, "an engine is one process"),
    _noted("master-port", str, "an engine is one process"),
    _noted("prometheus-port", str, "metrics are served at /metrics of the API's port"),
    _refused("num-shard", int, "an engine runs on one device; leave it out", "1"),
    _refused("sharded", str, "an engine runs on one device; leave it out", "false"),
    _refused("speculate", int, "speculation is not served; leave it out", "0"),
    _refused(
        "trust-remote-code",
        bool,
        "code that comes with a model is never run; serve a model of a known architecture",
        default=False,
    ),
    _refused("lora-adapters", str, "adapters are not served; merge one into its model", ""),
    _refused("rope-scaling", str, "a model's own config.json says how it scales; set it there", ""),
    _refused(
        "rope-factor", float, "a model's own config.json says how it scales; set it there", "1.0"
    ),
    _refused(
        "tokenizer-config-path", str, "settings are read from the model's folder; put it there", ""
    ),
    _refused("otlp-endpoint", str, "traces are not exported; use /metrics and the logs", ""),
    _refused("otlp-service-name", str, "traces are not exported; leave it out", ""),
    _refused("watermark-gamma", float, "the watermark is not served; leave it out", ""),
    _refused("watermark-delta", float, "the watermark is not served; leave it out", ""),
    _refused(
        "weights-cache-override", str, "use --huggingface-hub-cache, or a folder as --model-id", ""
    ),
    _refused("ngrok", bool, "put a reverse proxy in front of the server", default=False),
    _refused("ngrok-authtoken", str, "put a reverse proxy in front of the server", ""),
    _refused("ngrok-edge", str, "put a reverse proxy in front of the server", ""),
    _refused(
        "env",
        bool,
        "`infercore --version` and `infercore plugins list` tell about the installation",
        default=False,
        env="",
        aliases=("e",),
    ),
)
