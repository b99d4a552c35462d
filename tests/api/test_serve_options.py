"""The table of flags: where values go, how they are refused, and the page that is made of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from infercore.errors import ConfigError
from infercore_api.cli.flag import TGI_ONLY
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.options import parse_size, serve_options
from infercore_api.cli.reference import flags_markdown

DOCS = Path(__file__).parents[2] / "docs"
# every flag of TGI's launcher (text-generation-launcher --help, 3.3)
TGI_FLAGS = """
    api-key cors-allow-origin cuda-graphs cuda-memory-fraction disable-custom-kernels
    disable-grammar-support dtype enable-prefill-logprobs env graceful-termination-timeout hostname
    huggingface-hub-cache json-output kv-cache-dtype lora-adapters master-addr master-port
    max-batch-prefill-tokens max-batch-size max-batch-total-tokens max-best-of
    max-client-batch-size max-concurrent-requests max-input-length max-input-tokens
    max-stop-sequences max-top-n-tokens max-total-tokens max-waiting-tokens model-id ngrok
    ngrok-authtoken ngrok-edge num-shard otlp-endpoint otlp-service-name payload-limit port
    prometheus-port quantize revision rope-factor rope-scaling shard-uds-path sharded speculate
    tokenizer-config-path trust-remote-code usage-stats validation-workers waiting-served-ratio
    watermark-delta watermark-gamma weights-cache-override
"""


def given(**values: Any) -> Any:
    """The options behind a few flags, all others at their defaults."""
    return serve_options({flag.key: flag.default for flag in FLAGS} | values)


def test_values_go_where_the_table_says() -> None:
    options = given(
        model_id="m",
        max_total_tokens=100,
        max_batch_total_tokens=4096,
        memory_budget="1.5G",
        prefix_cache=False,
        max_best_of=7,
        api_key=["k", "l"],
        port=5,
    )
    assert (options.engine.model, options.engine.max_model_len) == ("m", 100)
    assert (options.engine.kv_tokens, options.engine.memory_budget) == (4096, 3 * 2**29)
    assert options.engine.prefix_cache is False
    assert (options.router["max_best_of"], options.router["api_keys"]) == (7, ("k", "l"))
    assert options.router["model_names"] == ("m",)
    assert options.port == 5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_total_tokens": 0}, "--max-total-tokens must be positive. Given: 0"),
        ({"max_batch_prefill_tokens": -1}, "--max-batch-prefill-tokens must be positive"),
        ({"max_total_tokens": 6, "max_input_tokens": 9}, "--max-input-tokens (9) must be below"),
        ({"max_input_tokens": 5, "max_input_length": 5}, "--max-input-length say the same"),
        ({"memory_budget": "lots"}, "--memory-budget 'lots' is no size"),
        ({"memory_budget": "0G"}, "--memory-budget must be positive"),
        ({"payload_limit": 0}, "--payload-limit must be positive"),
        ({"max_overtake": -1.0}, "--max-overtake must be at least 0. Given: -1.0"),
        ({"step_timeout": float("nan")}, "--step-timeout must be finite. Given: nan"),
        ({"write_timeout": float("inf")}, "--write-timeout must be finite. Given: inf"),
        ({"port": 70000}, "--port must be below 65536"),
        ({"num_shard": 0}, "--num-shard"),
        ({"trust_remote_code": True}, "--trust-remote-code: code that comes with a model"),
        ({"rope_scaling": "linear"}, "--rope-scaling linear: a model's own config.json"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_name_of_its_flag(
    values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        given(**values)


def test_zero_is_a_choice_where_it_means_something() -> None:
    options = given(max_stop_sequences=0, max_overtake=0.0, port=0)
    assert (options.router["max_stop_sequences"], options.engine.max_overtake) == (0, 0.0)


def test_both_names_of_the_longest_prompt_are_understood() -> None:
    assert given(max_input_tokens=5).engine.max_input_len == 5
    assert given(max_input_length=5).engine.max_input_len == 5


def test_every_flag_of_tgi_is_known_and_none_is_there_twice() -> None:
    names = [flag.name for flag in FLAGS]
    assert len(names) == len(set(names))
    assert set(TGI_FLAGS.split()) <= set(names)
    variables = [variable for flag in FLAGS for variable in flag.env.split()]
    assert len(variables) == len(set(variables))
    assert not {"HOSTNAME", "ENV"} & set(variables), "they are set by others"


def test_flags_without_a_function_are_never_dropped_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert given(usage_stats="off", num_shard=2, sharded="true").engine.ranks == 2
    assert "--usage-stats has no effect: no usage is collected" in caplog.text
    assert "--sharded has no effect" in caplog.text


def test_sizes() -> None:
    sizes = {"17": 17, "4k": 4096, "512M": 2**29, "8GiB": 2**33, "1.5g": 3 * 2**29}
    assert {text: parse_size("--x", text) for text in sizes} == sizes


def test_every_field_of_a_flag_exists() -> None:
    """A flag whose value went nowhere would be an option that is ignored."""
    options = given()
    for flag in FLAGS:
        home, _, field = flag.field.partition(".")
        if flag.section == TGI_ONLY:
            assert flag.note
            continue
        if field in {"hub_cache", "watermark_key_file"} or field.startswith("engine_"):
            continue  # they become something else: a variable, a key, a link
        holder: Any = {"engine": options.engine, "serve": options}.get(home)
        assert field in options.router if holder is None else hasattr(holder, field), flag.name


def test_the_reference_of_flags_is_generated_from_the_table() -> None:
    page = DOCS / "reference" / "serve.md"
    assert page.read_text() == flags_markdown(), (
        f"regenerate it: python -m infercore_api.cli.reference > {page.relative_to(DOCS.parent)}"
    )
