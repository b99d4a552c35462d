"""TGI's flags whose function is not here: noted, or refused with what to do instead."""

from infercore_api.cli.flag import Flag, noted, refused

TGI_FLAGS: tuple[Flag, ...] = (
    noted("usage-stats", str, "no usage is collected or sent"),
    noted("disable-custom-kernels", bool, "a backend's kernels are part of it", default=False),
    noted("disable-grammar-support", bool, "grammars are not served", default=False),
    noted(
        "enable-prefill-logprobs",
        bool,
        "log-probabilities of prompts are computed for requests that ask for them",
        default=False,
    ),
    noted("waiting-served-ratio", str, "prompts join running batches in chunks"),
    noted("max-waiting-tokens", str, "prompts join running batches in chunks"),
    noted("cuda-graphs", str, "the backend plans what it captures"),
    noted("cuda-memory-fraction", str, "--memory-budget bounds memory"),
    noted("shard-uds-path", str, "sockets are in a private run directory"),
    noted("master-addr", str, "an engine is one process"),
    noted("master-port", str, "an engine is one process"),
    noted("prometheus-port", str, "metrics are served at /metrics of the API's port"),
    noted("sharded", str, "--num-shard says how many devices share the model"),
    refused("speculate", int, "speculation is not served; leave it out", "0"),
    refused(
        "trust-remote-code",
        bool,
        "code that comes with a model is never run; serve a model of a known architecture",
        default=False,
    ),
    refused("lora-adapters", str, "adapters are not served; merge one into its model", ""),
    refused("rope-scaling", str, "a model's own config.json says how it scales; set it there", ""),
    refused(
        "rope-factor", float, "a model's own config.json says how it scales; set it there", "1.0"
    ),
    refused(
        "tokenizer-config-path", str, "settings are read from the model's folder; put it there", ""
    ),
    refused(
        "weights-cache-override", str, "use --huggingface-hub-cache, or a folder as --model-id", ""
    ),
    refused("ngrok", bool, "put a reverse proxy in front of the server", default=False),
    refused("ngrok-authtoken", str, "put a reverse proxy in front of the server", ""),
    refused("ngrok-edge", str, "put a reverse proxy in front of the server", ""),
    refused(
        "env",
        bool,
        "`infercore --version` and `infercore plugins list` tell about the installation",
        default=False,
        env="",
        aliases=("e",),
    ),
)
