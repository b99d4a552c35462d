"""The Grafana board, and the metrics' family, against a real server under traffic."""

import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pages import ROOT
from processes import Server, eventually, serving
from promtext import Series, family_of, faults, samples, selected, selectors

BOARD = ROOT / "deploy" / "grafana" / "infercore.json"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")

STEADY = {
    "tgi_batch_max_total_tokens": "a limit",
    "infercore_engine_ready": "it was ready before the first look",
    "infercore_padded_tokens_total": "this backend plans no shapes",
    "infercore_failed_steps_total": "no step fails here",
}
"""What a healthy server does not move, and why; it is there all the same."""

STORY = "Once upon a time there was a little girl who lived in a house by the sea. " * 4


def queries() -> list[str]:
    """Every query of the board."""
    board = json.loads(BOARD.read_text())
    return [
        target["expr"].replace("$__rate_interval", "5m")
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def scrape(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        text: str = response.read().decode()
    return text


def traffic(server: Server) -> None:
    """More than runs at once, a shared prefix, a refusal, a client that leaves."""
    parameters = {"max_new_tokens": 150, "do_sample": True, "stop": ["never said"]}
    body: dict[str, Any] = {"inputs": STORY, "parameters": parameters}

    def ask() -> None:
        server.open("/generate", body).read()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    with server.open("/generate_stream", body) as leaving:
        leaving.readline()
    with pytest.raises(urllib.error.HTTPError):
        server.post("/generate", {"inputs": STORY, "parameters": {"max_new_tokens": 10**6}})
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What `/metrics` said before, throughout and after; little KV, so that some is preempted."""
    few = {"TOY_BLOCKS": "40"}
    with serving(tmp_path_factory.mktemp("b"), "--vllm-metrics", toy=True, env=few) as server:
        found = [scrape(server)]
        work = threading.Thread(target=traffic, args=(server,))
        work.start()
        while work.is_alive():
            found.append(scrape(server))
            work.join(0.2)
        eventually(
            lambda: server.metric("infercore_running_sequences") == 0, 20, "the engine is idle"
        )
        yield [*found, scrape(server)]


@pytest.fixture(scope="module")
def values(looks: list[str]) -> dict[Series, set[float]]:
    """{series: all values that it had}"""
    found: defaultdict[Series, set[float]] = defaultdict(set)
    for look in looks:
        for series, value in samples(look).items():
            found[series].add(value)
    return dict(found)


@pytest.mark.parametrize("query", queries())
def test_every_series_of_the_board_is_there_and_moves(
    query: str, looks: list[str], values: dict[Series, set[float]]
) -> None:
    first, last = samples(looks[0]), samples(looks[-1])
    wanted = list(selectors(query))
    assert wanted
    for name, labels in wanted:
        assert selected(first, name, labels), f"{name} is not there from the start"
        mine = selected(last, name, labels)
        moved = any(len(values[series]) > 1 for series in mine)
        assert moved or name in STEADY, f"{name}{dict(labels)} does not move"


def test_what_is_steady_is_on_the_board() -> None:
    assert STEADY.keys() <= {name for query in queries() for name, _ in selectors(query)}


def test_the_board_has_every_panel_of_tgis() -> None:
    """By what they show: each series that TGI's own board queries is queried here too."""
    theirs = {
        *("tgi_request_count", "tgi_request_success", "tgi_request_failure", "tgi_queue_size"),
        *("tgi_request_input_length_bucket", "tgi_request_generated_tokens_bucket"),
        *("tgi_request_mean_time_per_token_duration_bucket", "tgi_request_duration_bucket"),
        *("tgi_request_queue_duration_bucket", "tgi_request_skipped_tokens_bucket"),
        *("tgi_batch_current_max_tokens", "tgi_batch_current_size", "tgi_batch_concat"),
        *("tgi_batch_inference_duration_bucket", "tgi_batch_forward_duration_bucket"),
        *("tgi_batch_decode_duration_bucket", "tgi_batch_filter_duration_bucket"),
        "tgi_batch_concat_duration_bucket",
    }
    assert theirs <= {name for query in queries() for name, _ in selectors(query)}


def test_the_board_is_one_that_grafana_takes() -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_our_own_family_is_clean(looks: list[str]) -> None:
    for look in (looks[0], looks[-1]):
        assert faults(family_of(look, "infercore_")) == []


def test_the_linter_sees_what_is_wrong() -> None:
    text = (
        "# HELP a_ms In milliseconds\n# TYPE a_ms gauge\na_ms 1\n"
        "# TYPE b counter\nb 1\n# HELP c_total C\n# TYPE c_total gauge\nc_total 1\n"
    )
    said = " ".join(faults(text))
    assert all(why in said for why in ("base units", "no help", "without _total", "no counter"))


@needs_promtool
def test_promtool_finds_our_own_family_clean(looks: list[str]) -> None:
    assert PROMTOOL is not None
    for look in (looks[0], looks[-1]):
        checked = subprocess.run(
            [PROMTOOL, "check", "metrics"],
            input=family_of(look, "infercore_"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@needs_promtool
def test_promtool_parses_every_query(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    rules = [{"record": f"query_{at}", "expr": query} for at, query in enumerate(queries())]
    file = tmp_path / "rules.json"  # which is YAML too
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    subprocess.run([PROMTOOL, "check", "rules", str(file)], check=True, capture_output=True)


def test_vllms_names_tell_the_same(looks: list[str]) -> None:
    found = samples(looks[-1])
    own = {name: value for (name, labels), value in found.items() if not labels}
    labels = frozenset({"model_name": "infercore/demo", "engine": "0"}.items())
    for theirs, ours in (
        ("vllm:num_requests_running", "infercore_running_sequences"),
        ("vllm:kv_cache_usage_perc", "infercore_kv_usage_ratio"),
        ("vllm:prefix_cache_hits_total", "infercore_cached_prompt_tokens_total"),
        ("vllm:generation_tokens_total", "infercore_generated_tokens_total"),
        ("vllm:num_preemptions_total", "infercore_preemptions_total"),
        ("vllm:time_to_first_token_seconds_count", "infercore_time_to_first_token_seconds_count"),
        ("vllm:inter_token_latency_seconds_sum", "infercore_inter_token_latency_seconds_sum"),
    ):
        assert found[theirs, labels] == own[ours]
    ended = found["vllm:request_success_total", labels | {("finished_reason", "length")}]
    assert ended + found["vllm:request_success_total", labels | {("finished_reason", "stop")}] == 6
